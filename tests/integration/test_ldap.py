"""A directory behind the whole proxy: real OpenLDAP servers, `imap-porter serve`, and real Dovecots."""

from __future__ import annotations

import base64
import os
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, Self

import pytest

from proxy.routing.rendezvous import Member, Rendezvous
from tests.servers.accounts import MASTER, MASTER_PASSWORD, USERS
from tests.servers.dovecot import Dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Door, Porter, wait_for
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.slapd import PEOPLE, SERVICE_DN, SERVICE_PASSWORD, Slapd, person, write_slapd
from tests.servers.wire import Wire

pytestmark = pytest.mark.server
Changes = dict[str, Any]
Start = Callable[..., Porter]

ALICE, BOB = USERS["alice"], USERS["bob"]
FAILED = b"NO [AUTHENTICATIONFAILED] Authentication failed."
UNAVAILABLE = b"NO [UNAVAILABLE] Account is temporarily unavailable."
LIMIT = b"NO [LIMIT] Too many connections or attempts; try again later."
NO_CACHE = {"positive": "0s", "negative": "0s"}
# What is tried here fails often, and always comes from one address.
NO_LIMITS = {"failed_login_delay": "0s", "login_tries": 100, "exempt_networks": ["127.0.0.0/8"]}
POOL = 4

Spread = Rendezvous([Member("d1", 1.0), Member("d2", 1.0)])


@pytest.fixture
def make_slapd(folder: Path, ports: Ports, pki: Pki) -> Iterator[Callable[..., Slapd]]:
    """Start a directory with the people of the tests, and some more."""
    with ExitStack() as stack:

        def make(more: str = "") -> Slapd:
            server = write_slapd(Path(tempfile.mkdtemp(prefix="slapd-", dir=folder)), ports, pki, more)
            stack.callback(server.stop)
            server.start()
            return server

        yield make


@pytest.fixture
def slapd(make_slapd: Callable[..., Slapd]) -> Slapd:
    return make_slapd()


@pytest.fixture
def start(start_porter: Start, short_folder: Path, pki: Pki) -> Iterator[Start]:
    """Start a proxy in front of the Dovecots that asks these directories, by default one after a search."""
    service, master = short_folder / "ldap", short_folder / "master"
    for path, secret in ((service, SERVICE_PASSWORD), (master, MASTER_PASSWORD)):
        path.write_text(secret + "\n")
        path.chmod(0o600)
    started: list[Porter] = []

    def start(*servers: Slapd, ldap: Changes | None = None, **changes: Any) -> Porter:
        source = {
            "urls": [server.url for server in servers],
            "bind": {"dn": SERVICE_DN, "password": {"file": str(service)}},
            "search": {"base": PEOPLE, "filter": "(uid={name})"},
            "pool": POOL,
            "ca": str(pki.ca),
            **(ldap or {}),
        }
        changes = {"cache": NO_CACHE, "limits": NO_LIMITS, **changes}
        login = {"method": "master", "name": MASTER, "password": {"file": str(master)}, **changes.pop("login", {})}
        identity = [{"ldap": {key: value for key, value in source.items() if value is not None}}]
        started.append(start_porter(identity=identity, backends={"login": login}, **changes))
        return started[-1]

    yield start
    assert [porter for porter in started if SERVICE_PASSWORD in porter.output()] == []


def enter(door: Door, source: str = LOOPBACK) -> Wire:
    """Connect by a door, from one of the addresses of this machine, and come to where LOGIN is allowed."""
    connection = socket.create_connection((LOOPBACK, door.port), timeout=20, source_address=(source, 0))
    context = door.pki.client_context()
    if not door.starttls:
        return Wire(context.wrap_socket(connection, server_hostname="localhost"))
    wire = Wire(connection)
    wire.starttls(context)
    return wire


def log_in(porter: Porter, name: str, password: str, source: str = LOOPBACK) -> bytes:
    """One try on a connection of its own; the tagged line without its tag."""
    with enter(porter.doors["imaps"], source) as wire:
        answer = wire.login(name, password)
        wire.command(b"LOGOUT")
        wire.rest()
    return answer


def plain(wire: Wire, name: str, password: str) -> bytes:
    """AUTHENTICATE PLAIN, which carries what no quoted string could; the tagged line without its tag."""
    response = base64.b64encode(f"\0{name}\0{password}".encode("utf-8", "surrogateescape"))
    return wire.command(b"AUTHENTICATE PLAIN " + response)[-1].split(b" ", 1)[1]


def backend_of(wire: Wire) -> str:
    """Who answers in this session: each backend has a mailbox that says so."""
    (listed,) = [line for line in wire.command(b'LIST "" On-*') if line.startswith(b"* LIST")]
    return listed.rpartition(b"On-")[2].strip(b'"').decode()


def change(slapd: Slapd, uid: str, attribute: str, value: str) -> None:
    """Give an entry another value in place of those that it has."""
    slapd.add(f"dn: uid={uid},{PEOPLE}\nchangetype: modify\nreplace: {attribute}\n{attribute}: {value}\n\n")


# --- the ways to a directory, and what it says ---

WAYS: dict[str, Callable[[Slapd], Changes]] = {
    "ldap": lambda _: {},
    "ldaps": lambda slapd: {"urls": [slapd.tls_url]},
    "StartTLS": lambda _: {"start_tls": True},
    "user_dn": lambda _: {"user_dn": f"uid={{name}},{PEOPLE}", "search": None, "bind": None},
    "ldapi": lambda slapd: {"urls": [slapd.socket_url], "bind": {"external": True}},
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_in(start: Start, slapd: Slapd, way: str) -> None:
    porter = start(slapd, ldap=WAYS[way](slapd))
    mechanisms = {"LOGIN": Wire.login, "PLAIN": plain}
    for door, mechanism, name in product(porter.doors.values(), mechanisms, ("alice", "bob")):
        with enter(door) as wire:
            assert mechanisms[mechanism](wire, name, "no-pw-of-anybody") == FAILED
            assert mechanisms[mechanism](wire, name, USERS[name]).startswith(b"OK [CAPABILITY ")
            assert backend_of(wire) == Spread.order(name)[0]
            wire.command(b"LOGOUT")
            wire.rest()
    for mechanism, name in product(mechanisms, ("alice", "bob")):
        lines = porter.wait_for_log("session.closed", 2, name=name, mechanism=mechanism, outcome="logged_out")
        assert {(line["source"], line["backend"]) for line in lines} == {("ldap", Spread.order(name)[0])}
        assert not any(line["stale"] for line in lines)
    lines = porter.wait_for_log("login.refused", 8, outcome="authentication_failed", backend="")
    assert {line["detail"] for line in lines} == {"ldap: bind: invalidCredentials (49)"}
    metrics = porter.metrics()
    assert metrics.total("porter_identity_answers_total", source="ldap", answer="yes") == 8
    assert metrics.total("porter_identity_answers_total", source="ldap", answer="no") == 8
    assert metrics.total("porter_identity_answers_total") == 16


@pytest.mark.parametrize("way", ["ldaps", "StartTLS"])
def test_a_server_that_cannot_prove_its_name_is_not_asked(start: Start, slapd: Slapd, pki: Pki, way: str) -> None:
    asked = {"urls": [slapd.url], **WAYS[way](slapd)}
    misnamed = [slapd.misnamed(url) for url in asked["urls"]]
    for settings in ({"ca": str(pki.wrong_ca)}, {"urls": misnamed}):
        porter = start(slapd, ldap={**asked, **settings})
        assert log_in(porter, "alice", ALICE) == UNAVAILABLE
        (line,) = porter.wait_for_log("login.refused", outcome="unavailable")
        assert "certificate verify failed" in line["detail"]


def test_the_entry_names_the_backend(start: Start, slapd: Slapd, dovecots: list[Dovecot]) -> None:
    porter = start(slapd, ldap={"attributes": {"backend": "mailHost"}})
    for dovecot in dovecots:  # one of them is not the hash's choice
        change(slapd, "alice", "mailHost", f"{LOOPBACK}:{dovecot.imap_port}")
        with enter(porter.doors["imaps"]) as wire:
            assert wire.login("alice", ALICE).startswith(b"OK")
            assert backend_of(wire) == dovecot.name
    assert log_in(porter, "bob", BOB) == UNAVAILABLE, "no backend is bob.backend.example: and not by the hash instead"
    (line,) = porter.wait_for_log("login.refused")
    assert line["detail"] == 'unknown backend "bob.backend.example" given by source ldap'
    assert log_in(porter, "bob", "no-pw-of-anybody") == FAILED, "only the owner learns of it"


def test_the_entry_names_the_person(start: Start, make_slapd: Callable[..., Slapd]) -> None:
    slapd = make_slapd(person("carol", "cpass-1w5e", mail="U05") + person("dave", "dpass-8r2n", mail=()))
    porter = start(slapd, ldap={"attributes": {"name": "mail"}})
    assert log_in(porter, "Carol", "cpass-1w5e").startswith(b"OK")
    (line,) = porter.wait_for_log("session.closed", name="u05")
    assert (line["authentication_identity"], line["backend"]) == ("Carol", Spread.order("u05")[0])
    assert log_in(porter, "dave", "dpass-8r2n").startswith(b"NO [CONTACTADMIN]"), "he has no mail attribute"


def test_every_no_sends_the_same_octets(start: Start, slapd: Slapd) -> None:
    porter = start(slapd)
    tries = [("alice", BOB), ("nobody-here", ALICE), ("alice", ""), ("", ALICE), ("a@b@c", ALICE), ("a" * 257, ALICE)]
    with enter(porter.doors["imaps"]) as wire:
        assert [wire.login(*offer) for offer in tries] == [FAILED] * len(tries)
        assert wire.login("alice", ALICE).startswith(b"OK")
    lines = porter.wait_for_log("login.refused", len(tries))
    assert [line["detail"] for line in lines] == [
        "ldap: bind: invalidCredentials (49)",
        f"ldap: no entry under {PEOPLE} for (uid=nobody-here)",
        "no password",
        "the name is empty",
        'the name has more than one "@", or nothing on one side of it',
        "the name is longer than 256 octets",
    ]


@pytest.mark.parametrize("way", ["ldap", "user_dn"])
def test_a_name_is_no_pattern(start: Start, make_slapd: Callable[..., Slapd], way: str) -> None:
    """Whoever knows alice's password, and whatever his name makes of a filter or of a DN: it is not alice's."""
    strange = "we*rd)(uid=u07"
    slapd = make_slapd(person(strange, "spass-9d3k", mail="u06"))
    ldap = {**WAYS[way](slapd), "attributes": {"name": "mail"}}
    if way == "ldap":
        ldap["search"] = {"base": PEOPLE, "filter": "(&(objectClass=inetOrgPerson)(uid={name}))"}
    change(slapd, "alice", "mail", "alice")
    # So that the star is as good as any character, for the proxy and for Dovecot's master user.
    porter = start(slapd, ldap=ldap, names={"master_separator": "%"}, login={"method": "authzid"})
    in_a_filter = ("*", "al*", "alice*", "alice)(uid=*", "*)(uid=alice", "alice))(|(uid=*", "\\2a", "(", ")")
    in_a_dn = ("\\61lice", "#0405616c696365", "alice+uid=alice", f"alice,{PEOPLE}", '"alice"', "alice\\", "alice;")
    names = [*in_a_filter, *in_a_dn]
    with enter(porter.doors["imaps"]) as wire:
        answers = {name: plain(wire, name, ALICE) for name in names}
    assert answers == dict.fromkeys(names, FAILED)
    lines = porter.wait_for_log("login.refused", len(names))
    said = {"ldap": f"ldap: no entry under {PEOPLE} for ", "user_dn": "ldap: bind: invalidCredentials (49)"}
    assert all(line["detail"].startswith(said[way]) for line in lines)
    for name, password, who in ((strange, "spass-9d3k", "u06"), ("alice", ALICE, "alice")):
        with enter(porter.doors["imaps"]) as wire:
            assert plain(wire, name, password).startswith(b"OK"), name
        porter.wait_for_log("session.closed", name=who)


# --- outages ---

# A promise to users: so long after the directory's return the first who tries is let in.
RECOVERY_SECONDS = 2
# Not the proxy's: these clients, two Dovecots and the directory want the same cores, perhaps other tests too.
NOISE_SECONDS = 1
CLIENTS = 25
TRIES = 500


class Storm:
    """Clients that log in with right passwords, again and again, each time on a new connection."""

    def __init__(self, porter: Porter) -> None:
        self._porter = porter
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]
        self.answers: list[tuple[float, bytes]] = []  # when they came

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def count(self, answer: bytes) -> int:
        return sum(told.startswith(answer) for _, told in list(self.answers))

    def good_since(self, when: float) -> bool:
        return any(at > when and told.startswith(b"OK") for at, told in list(self.answers))

    def _run(self, number: int) -> None:
        name = f"u{number % 20 + 1:02}"
        while not self._over.is_set():
            try:
                answer = log_in(self._porter, name, USERS[name])
            except Exception as exc:
                answer = repr(exc).encode()
            self.answers.append((time.monotonic(), answer))


def threads(porter: Porter) -> int:
    """How many its process has."""
    return len(os.listdir(f"/proc/{porter.process.pid}/task"))


def test_outages_under_load(start: Start, slapd: Slapd) -> None:
    porter = start(slapd, ldap={"timeout": "2s"})
    most_threads = 0
    with enter(porter.doors["imaps"]) as first, enter(porter.doors["starttls"]) as second:
        assert first.login("alice", ALICE).startswith(b"OK")
        assert second.login("bob", BOB).startswith(b"OK")
        at_rest = threads(porter)

        def until(storm: Storm, answer: bytes, more: int) -> None:
            """Let the storm go on until it has had so many more of these answers; who is logged in works meanwhile."""
            nonlocal most_threads
            enough = storm.count(answer) + more
            deadline = time.monotonic() + 30
            while storm.count(answer) < enough:
                assert time.monotonic() < deadline, Counter(told for _, told in storm.answers)
                for wire in (first, second):
                    assert wire.command(b"NOOP")[-1].split()[1] == b"OK"
                most_threads = max(most_threads, threads(porter))

        def recovers(storm: Storm, since: float) -> None:
            assert wait_for(lambda: storm.good_since(since), RECOVERY_SECONDS + NOISE_SECONDS)

        with Storm(porter) as storm:
            until(storm, b"OK", 100)
            slapd.freeze()
            until(storm, UNAVAILABLE, 125)
            back = time.monotonic()
            slapd.thaw()
            recovers(storm, back)
            until(storm, b"OK", 75)
            slapd.stop()
            until(storm, UNAVAILABLE, 125)
            slapd.start()
            recovers(storm, time.monotonic())
            until(storm, b"OK", 75)
        assert first.command(b"NOOP")[-1].split()[1] == b"OK"
    told = Counter(answer if answer.startswith(b"NO") else answer[:2] for _, answer in storm.answers)
    assert set(told) == {b"OK", UNAVAILABLE}
    assert told.total() >= TRIES
    # Others than those that ask the directory there were before.
    assert most_threads <= at_rest + POOL
    assert {line["outcome"] for line in porter.log("login.refused")} == {"unavailable"}
    # Some more than two of each where a last answer comes behind the first failure; no line for each login.
    assert 2 <= len(porter.log("ldap.server_down")) == len(porter.log("ldap.server_up")) <= 2 + 2 * POOL
    metrics = porter.metrics()
    assert metrics.total("porter_identity_answers_total", source="ldap", answer="unavailable") == told[UNAVAILABLE]
    assert metrics.total("porter_identity_answers_total", source="ldap", answer="no") == 0
    assert metrics.total("porter_ldap_server_up", server=slapd.url) == 1


def test_an_outage_outlasts_no_password(start: Start, slapd: Slapd) -> None:
    """While the directory is out nobody is told that his password is wrong: neither the owner nor who guesses."""
    porter = start(slapd, ldap={"timeout": "1s"}, workers=1)  # each finds out for itself
    slapd.freeze()
    for name, password in (("alice", ALICE), ("alice", "no-pw-of-anybody"), ("nobody-here", ALICE)):
        assert log_in(porter, name, password) == UNAVAILABLE
    lines = porter.wait_for_log("login.refused", 3, outcome="unavailable")
    assert all(line["detail"].startswith(f"ldap: {slapd.url}: ") for line in lines)
    slapd.thaw()
    assert wait_for(lambda: log_in(porter, "alice", ALICE).startswith(b"OK"), RECOVERY_SECONDS + NOISE_SECONDS)
    assert log_in(porter, "alice", "no-pw-of-anybody") == FAILED


def test_the_second_server_goes_on_for_the_first(start: Start, make_slapd: Callable[..., Slapd]) -> None:
    first, second = make_slapd(), make_slapd()
    porter = start(first, second, ldap={"timeout": "4s"}, workers=1)  # each finds out for itself

    def up() -> list[float]:
        metrics = porter.metrics()
        return [metrics.total("porter_ldap_server_up", server=server.url) for server in (first, second)]

    assert log_in(porter, "alice", ALICE).startswith(b"OK")
    first.freeze()
    with Storm(porter) as storm:
        assert wait_for(lambda: storm.count(b"") >= 100, 60)
    assert storm.count(b"OK") == storm.count(b""), Counter(told for _, told in storm.answers)
    assert log_in(porter, "alice", BOB) == FAILED, "its no counts too"
    assert up() == [0, 1]
    first.thaw()
    second.stop()
    assert wait_for(lambda: log_in(porter, "alice", ALICE).startswith(b"OK"), RECOVERY_SECONDS + NOISE_SECONDS)
    assert up()[0] == 1


# --- what is remembered ---


def test_a_stale_yes_while_the_directory_is_out(start: Start, slapd: Slapd) -> None:
    cache = {"positive": "1s", "negative": "0s", "serve_stale": "1h"}
    porter = start(slapd, ldap={"timeout": "1s"}, cache=cache, workers=1)  # each remembers for itself

    def stale() -> float:
        return porter.metrics().total("porter_identity_cache_total", source="ldap", result="stale")

    assert log_in(porter, "alice", ALICE).startswith(b"OK")
    slapd.stop()

    def goes_on() -> bool:
        assert log_in(porter, "alice", ALICE).startswith(b"OK")
        return stale() > 0

    assert wait_for(goes_on), "the positive time is over at last"
    (line, *_) = porter.wait_for_log("session.closed", name="alice", stale=True)
    assert line["source"] == "ldap"
    for name, password in (("alice", "no-pw-of-anybody"), ("bob", BOB)):
        assert log_in(porter, name, password) == UNAVAILABLE, "only who has shown this secret before"
    slapd.start()
    assert wait_for(lambda: log_in(porter, "alice", BOB) == FAILED)
    known = stale()
    time.sleep(1)
    assert log_in(porter, "alice", ALICE).startswith(b"OK")
    assert stale() == known, "the directory is asked again"


def test_a_changed_password_stops_working(start: Start, slapd: Slapd) -> None:
    positive = 1
    cache = {"positive": f"{positive}s", "negative": "0s", "serve_stale": "1h"}
    porter = start(slapd, cache=cache, workers=1)  # each remembers for itself

    def remembered() -> bool:
        assert log_in(porter, "alice", ALICE).startswith(b"OK")
        return porter.metrics().total("porter_identity_cache_total", result="hit") > 0

    assert wait_for(remembered)
    change(slapd, "alice", "userPassword", "apass-new-7b")
    assert log_in(porter, "alice", "apass-new-7b").startswith(b"OK"), "a yes for another secret holds up nobody"
    time.sleep(positive)  # whatever was heard before the change is older now
    assert log_in(porter, "alice", ALICE) == FAILED
    slapd.stop()
    assert log_in(porter, "alice", ALICE) == UNAVAILABLE, "a no has ended what was remembered"


# --- guessing ---

ELSEWHERE = "127.0.1.1"  # in another /24
NEXT_DOOR = "127.0.0.2"


def test_wrong_passwords_of_one_person(start: Start, slapd: Slapd) -> None:
    limits = {"failed_login_delay": "0s", "login_failures_per_user": {"count": 3, "per": "10m"}}
    porter = start(slapd, limits=limits)
    for _ in range(5):
        assert log_in(porter, "alice", "old-pw-of-a-phone") == FAILED, "the same again is no guess"
    assert log_in(porter, "alice", ALICE).startswith(b"OK")
    for password in ("guess-2", "guess-3"):
        assert log_in(porter, "Alice", password, NEXT_DOOR) == FAILED
    for password in (ALICE, "guess-4", "old-pw-of-a-phone"):
        assert log_in(porter, "alice", password) == LIMIT
        assert log_in(porter, "alice", password, NEXT_DOOR) == LIMIT, "its own network"
    assert log_in(porter, "alice", ALICE, ELSEWHERE).startswith(b"OK")
    assert log_in(porter, "bob", BOB).startswith(b"OK")
    lines = porter.wait_for_log("login.refused", 6, outcome="limit", limit="login_failures_per_user")
    assert {line["detail"] for line in lines} == {"login_failures_per_user: 3 of 3 in 10m"}
    metrics = porter.metrics()
    assert metrics.total("porter_limits_reached_total", limit="login_failures_per_user") == 6
    assert metrics.total("porter_limits_reached_total") == 6


def test_wrong_passwords_from_one_address(start: Start, slapd: Slapd) -> None:
    limits = {"failed_login_delay": "0s", "login_failures_per_address": {"count": 3, "per": "10m"}}
    porter = start(slapd, limits=limits)
    assert log_in(porter, "alice", ALICE).startswith(b"OK")
    for name in ("u01", "nobody-here", "nobody-here", "u02"):  # the same again is no guess
        assert log_in(porter, name, "guess-1") == FAILED
    assert log_in(porter, "bob", BOB) == LIMIT
    assert log_in(porter, "alice", ALICE).startswith(b"OK"), "she was here before"
    assert log_in(porter, "alice", "guess-1") == FAILED
    assert log_in(porter, "bob", BOB, NEXT_DOOR).startswith(b"OK")
    (line,) = porter.wait_for_log("login.refused", outcome="limit")
    assert (line["limit"], line["authentication_identity"]) == ("login_failures_per_address", "bob")
    assert line["detail"] == "login_failures_per_address: 3 of 3 in 10m"


def test_exempt_networks(start: Start, slapd: Slapd) -> None:
    limits = {
        "failed_login_delay": "0s",
        "login_failures_per_user": {"count": 1},
        "login_failures_per_address": {"count": 1},
        "exempt_networks": ["127.0.0.0/24"],
    }
    porter = start(slapd, limits=limits)
    for number in range(3):
        assert log_in(porter, "alice", f"guess-{number}") == FAILED
    assert log_in(porter, "alice", ALICE).startswith(b"OK")
    assert log_in(porter, "alice", "guess-1", ELSEWHERE) == FAILED
    assert log_in(porter, "alice", ALICE, ELSEWHERE) == LIMIT


def test_an_outage_is_no_guess(start: Start, slapd: Slapd) -> None:
    limits = {"failed_login_delay": "0s", "login_failures_per_user": {"count": 2}, "login_tries": 2}
    porter = start(slapd, ldap={"timeout": "1s"}, limits=limits)
    slapd.stop()
    with enter(porter.doors["imaps"]) as wire:
        for number in range(4):
            assert wire.login("alice", f"guess-{number}") == UNAVAILABLE
        slapd.start()
        assert wait_for(lambda: wire.login("alice", ALICE).startswith(b"OK"), RECOVERY_SECONDS + NOISE_SECONDS)
