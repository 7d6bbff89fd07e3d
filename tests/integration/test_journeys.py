"""Whole sessions through the proxy on real Dovecots: what a user may rely on after login."""

from __future__ import annotations

import base64
import hashlib
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from argon2 import PasswordHasher

from tests.servers.accounts import MASTER, MASTER_PASSWORD, USERS
from tests.servers.dovecot import Dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Door, Porter
from tests.servers.wire import Wire

pytestmark = pytest.mark.server
StartPorter = Callable[..., Porter]
PROXY_ONLY_CAPABILITIES = ("AUTH=", "STARTTLS", "LOGINDISABLED", "SASL-IR", "LOGIN-REFERRALS", "UNAUTHENTICATE")


def enter(door: Door) -> Wire:
    """Connect by a door and come to where LOGIN is allowed."""
    context = door.pki.client_context()
    if not door.starttls:
        return Wire.connect(door.port, context)
    wire = Wire.connect(door.port)
    wire.starttls(context)
    return wire


def session(door: Door, name: str) -> Wire:
    """A session of this user."""
    wire = enter(door)
    answer = wire.login(name, USERS[name])
    assert answer.startswith(b"OK"), answer
    return wire


def backend_of(wire: Wire) -> str:
    """Who answers in this session: each backend has a mailbox that says so."""
    listed = [line for line in wire.command(b'LIST "" On-*') if line.startswith(b"* LIST")]
    assert len(listed) == 1, listed
    return listed[0].rpartition(b"On-")[2].strip(b'"').decode()


def plain(name: str, password: str, authorization_identity: str = "") -> bytes:
    """The initial response of PLAIN (RFC 4616)."""
    return base64.b64encode(f"{authorization_identity}\0{name}\0{password}".encode())


# --- large messages ---


@pytest.fixture(scope="module")
def large_message() -> bytes:
    """50 MiB of lines that no compression and no luck could rebuild."""
    size = 50 * 2**20
    head = b"From: sender@test.example\r\nSubject: large\r\n\r\n"
    octets = random.Random(9051).randbytes(size * 3 // 4)
    text = base64.encodebytes(octets).replace(b"\n", b"\r\n")
    return (head + text)[: size - 2] + b"\r\n"


@pytest.fixture
def passing_through(request: pytest.FixtureRequest) -> Iterator[None]:
    """What passes through the proxy is never kept there."""
    if request.config.getoption("--bare"):
        yield
        return
    porter: Porter = request.getfixturevalue("porter")
    before = porter.resident_bytes()
    yield
    assert porter.peak_bytes() - before < 16 * 2**20


@pytest.mark.usefixtures("passing_through")
@pytest.mark.parametrize("synchronizing", [True, False], ids=["synchronizing", "non-synchronizing"])
def test_a_large_message_is_the_same_both_ways(door: Door, large_message: bytes, synchronizing: bool) -> None:
    with session(door, "u01") as wire:
        assert wire.append(b"INBOX", large_message, synchronizing=synchronizing).startswith(b"OK")
        exists = [line for line in wire.command(b"SELECT INBOX") if line.endswith(b" EXISTS")]
        number = exists[0].split()[1]
        digest = hashlib.sha256(wire.fetch_body(number)).hexdigest()
        assert digest == hashlib.sha256(large_message).hexdigest()
        wire.command(b"STORE " + number + rb" +FLAGS (\Deleted)")
        assert wire.command(b"EXPUNGE")[-1].split()[1] == b"OK"


# --- IDLE ---


@pytest.mark.parametrize("by_append", [True, False], ids=["append", "delivery"])
def test_idle_shows_a_new_message(door: Door, dovecots: list[Dovecot], by_append: bool) -> None:
    message = b"Subject: news\r\n\r\nThere is news.\r\n"
    with session(door, "u02") as idler:
        backend = backend_of(idler)
        exists = next(line for line in idler.command(b"SELECT INBOX") if line.endswith(b" EXISTS"))
        count = int(exists.split()[1])
        idler.send(b"i IDLE\r\n")
        assert idler.line().startswith(b"+")
        if by_append:
            with session(door, "u02") as other:
                assert other.append(b"INBOX", message, synchronizing=True).startswith(b"OK")
        else:
            next(server for server in dovecots if server.name == backend).deliver("u02", message)
        seen = idler.line()
        while not seen.endswith(b" EXISTS"):
            seen = idler.line()
        assert seen == b"* %d EXISTS" % (count + 1)
        idler.send(b"DONE\r\n")
        assert idler.until(b"i")[-1].startswith(b"i OK")


# --- placement ---


def test_a_user_has_one_backend_and_users_are_spread(porter: Porter, dovecots: list[Dovecot]) -> None:
    home: dict[str, str] = {}
    # Other tests' proxies may have sent users elsewhere.
    before = {server.name: server.log() for server in dovecots}
    for name in (f"u{number:02}" for number in range(1, 21)):
        with session(porter.doors["imaps"], name) as first, session(porter.doors["starttls"], name) as second:
            home[name] = backend_of(first)
            assert backend_of(second) == home[name], name
    users = {server.name: [name for name, backend in home.items() if backend == server.name] for server in dovecots}
    assert all(len(names) >= 4 for names in users.values()), users
    for server in dovecots:
        news = server.log().removeprefix(before[server.name])
        seen = {name for name in home if f"Login: user=<{name}>" in news}
        assert seen == set(users[server.name])


# --- the login and what is sent along with it ---


@pytest.mark.parametrize(
    "login",
    [
        f"a LOGIN u03 {USERS['u03']}\r\n".encode(),
        f"a LOGIN {{3+}}\r\nu03 {{{len(USERS['u03'])}+}}\r\n{USERS['u03']}\r\n".encode(),
        b"a AUTHENTICATE PLAIN " + plain("u03", USERS["u03"]) + b"\r\n",
    ],
    ids=["login", "literals", "plain"],
)
def test_commands_behind_the_login_are_answered_in_order(door: Door, login: bytes) -> None:
    with enter(door) as wire:
        wire.send(login + b"b SELECT INBOX\r\nc STATUS INBOX (MESSAGES)\r\nd NOOP\r\n")
        lines = wire.until(b"d")
    tagged = [line.split()[:2] for line in lines if not line.startswith(b"*")]
    assert tagged == [[b"a", b"OK"], [b"b", b"OK"], [b"c", b"OK"], [b"d", b"OK"]]


def test_commands_behind_a_refused_login_are_answered_as_before_login(porter: Porter) -> None:
    with enter(porter.doors["imaps"]) as wire:
        wire.send(b"a LOGIN u03 wrong\r\nb NOOP\r\nc SELECT INBOX\r\nd LOGOUT\r\n")
        lines = wire.until(b"d")
    tagged = [line.split()[:2] for line in lines if not line.startswith(b"*")]
    assert tagged[0] == [b"a", b"NO"]
    assert tagged[1] == [b"b", b"OK"]
    assert tagged[2][1] in (b"BAD", b"NO")
    assert tagged[3] == [b"d", b"OK"]


def test_the_greeting_names_nobody_and_clear_text_offers_no_password(porter: Porter) -> None:
    with Wire.connect(porter.starttls_port) as wire:
        assert wire.greeting.startswith(b"* OK")
        assert b"dovecot" not in wire.greeting.lower()
        offered = wire.command(b"CAPABILITY")[0].split()
        assert b"STARTTLS" in offered
        assert b"LOGINDISABLED" in offered
        assert [name for name in offered if name.startswith(b"AUTH=")] == []
        assert b"[PRIVACYREQUIRED]" in wire.login("u03", USERS["u03"])


def test_the_answer_to_a_login_carries_only_what_the_session_can_do(porter: Porter) -> None:
    with enter(porter.doors["imaps"]) as wire:
        answer = wire.login("u03", USERS["u03"]).decode()
    assert answer.startswith("OK [CAPABILITY "), answer
    capability = answer[answer.index("[") + 1 : answer.index("]")].split()
    assert "IDLE" in capability
    assert "COMPRESS=DEFLATE" in capability
    assert [name for name in capability if name.startswith(PROXY_ONLY_CAPABILITIES)] == []


def test_compress(door: Door) -> None:
    with session(door, "u04") as wire:
        assert wire.command(b"COMPRESS DEFLATE")[-1].split()[1] == b"OK"
        deflate, inflate = zlib.compressobj(wbits=-15), zlib.decompressobj(wbits=-15)
        answers = b""
        for command in (b"a SELECT INBOX\r\n", b"b NOOP\r\n", b"c LOGOUT\r\n"):
            wire.send(deflate.compress(command) + deflate.flush(zlib.Z_SYNC_FLUSH))
        answers = inflate.decompress(wire.rest())
    assert [tag for tag in (b"a OK", b"b OK", b"c OK") if tag not in answers] == []


# --- who logs in at the backend, and how ---


@pytest.fixture
def users_file(short_folder: Path) -> Path:
    """Identities with passwords that no backend knows."""
    # The cheapest that the algorithm allows: what is tested here is not its strength.
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    users = {"u05": {"hash": hasher.hash("known-here-only")}, "u06": {"hash": hasher.hash("u06-here"), "backend": "d2"}}
    path = short_folder / "users.yaml"
    path.write_text(yaml.safe_dump(users))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("method", ["master", "authzid"])
def test_the_proxy_logs_in_for_the_user(
    start_porter: StartPorter, dovecots: list[Dovecot], users_file: Path, method: str
) -> None:
    secret = users_file.with_name("master-secret")
    secret.write_text(MASTER_PASSWORD + "\n")
    secret.chmod(0o600)
    login = {"method": method, "name": MASTER, "password": {"file": str(secret)}}
    porter = start_porter(identity=[{"file": {"path": str(users_file)}}], backends={"login": login})
    with enter(porter.doors["imaps"]) as wire:
        assert wire.login("u05", "known-here-only").startswith(b"OK")
        assert backend_of(wire) in {server.name for server in dovecots}
        assert wire.command(b"SELECT INBOX")[-1].split()[1] == b"OK"
    with enter(porter.doors["starttls"]) as wire:
        assert wire.command(b"AUTHENTICATE PLAIN " + plain("u06", "u06-here"))[-1].split()[1] == b"OK"
        assert backend_of(wire) == "d2", "the backend that the file names"
    with enter(porter.doors["imaps"]) as wire:
        assert b"[AUTHENTICATIONFAILED]" in wire.login("u05", USERS["u05"]), "the backend's password is not asked for"


def test_an_unknown_user_reads_like_a_wrong_password(
    porter: Porter, start_porter: StartPorter, users_file: Path
) -> None:
    from_file = start_porter(identity=[{"file": {"path": str(users_file)}}])
    for proxy in (porter, from_file):
        answers = []
        for name in ("u05", "nobody-here"):
            with enter(proxy.doors["imaps"]) as wire:
                answers.append(wire.login(name, "certainly-wrong"))
        assert answers[0] == answers[1]
        assert answers[0].startswith(b"NO [AUTHENTICATIONFAILED]")


def test_a_name_with_the_master_separator_is_refused(porter: Porter, dovecots: list[Dovecot]) -> None:
    with enter(porter.doors["imaps"]) as wire:
        answer = wire.login(f"u05*{MASTER}", MASTER_PASSWORD)
    assert answer.startswith(b"NO [AUTHENTICATIONFAILED]")
    assert [server.name for server in dovecots if f"*{MASTER}" in server.log()] == []


@pytest.mark.parametrize(
    "attempt",
    [
        b"x LOGIN bob wrong-person\r\n",
        b"x login {3+}\r\nbob {12+}\r\nwrong-person\r\n",
        b"x LOGIN {3}\r\n",
        b"x AUTHENTICATE PLAIN " + plain("bob", "wrong-person") + b"\r\n",
        b"x authenticate PLAIN\r\n",
        b"x STARTTLS\r\n",
        b"x UNAUTHENTICATE\r\n",
    ],
)
@pytest.mark.parametrize("cut", [False, True], ids=["behind another command", "cut into octets"])
def test_nobody_logs_in_twice(porter: Porter, dovecots: list[Dovecot], attempt: bytes, cut: bool) -> None:
    for server in dovecots:
        server.trace("u07")
    with session(porter.doors["imaps"], "u07") as wire:
        if cut:
            for octet in attempt:
                wire.send(bytes([octet]))
        else:
            wire.send(b"w NOOP\r\n" + attempt)
        assert wire.until(b"x")[-1].startswith(b"x BAD")
        assert wire.command(b"NOOP")[-1].split()[1] == b"OK"
        wire.command(b"LOGOUT")
        assert wire.rest() == b""
    received = b"".join(server.received("u07") for server in dovecots)
    assert b"NOOP" in received
    words = (b"LOGIN", b"AUTHENTICATE", b"STARTTLS", b"BOB", b"WRONG-PERSON")
    assert [word for word in words if word in received.upper()] == []


# --- TLS to the backends ---


@pytest.mark.parametrize("scheme", ["imaps", "imap+starttls"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_tls_to_the_backends(start_porter: StartPorter, dovecots: list[Dovecot], scheme: str, host: str) -> None:
    porter = start_porter(backends_url=backend_urls(dovecots, scheme, host))
    with session(porter.doors["imaps"], "u08") as wire:
        name = backend_of(wire)
    lines = [
        line for server in dovecots if server.name == name for line in server.log().splitlines() if "user=<u08>" in line
    ]
    assert "TLS" in lines[-1]


@pytest.mark.parametrize("scheme", ["imaps", "imap+starttls"])
def test_a_backend_that_cannot_prove_its_name_gets_no_password(
    start_porter: StartPorter, dovecots: list[Dovecot], pki: Pki, scheme: str
) -> None:
    before = [server.log().count("u09") for server in dovecots]
    urls = backend_urls(dovecots, scheme, "localhost")
    porter = start_porter(backends_url=urls, backends={"tls": {"ca": str(pki.wrong_ca)}})
    with enter(porter.doors["imaps"]) as wire:
        assert wire.login("u09", USERS["u09"]).startswith(b"NO [UNAVAILABLE]")
        assert wire.command(b"NOOP")[-1].split()[1] == b"OK", "the client may try again on this connection"
    assert [server.log().count("u09") for server in dovecots] == before


def backend_urls(dovecots: list[Dovecot], scheme: str, host: str) -> dict[str, str]:
    ports = {server.name: server.imaps_port if scheme == "imaps" else server.imap_port for server in dovecots}
    return {name: f"{scheme}://{host}:{port}" for name, port in ports.items()}


# --- what the operator sees ---


def test_metrics_move(start_porter: StartPorter) -> None:
    porter = start_porter()
    before = porter.metrics()
    with session(porter.doors["imaps"], "u10") as wire:
        wire.append(b"INBOX", b"Subject: x\r\n\r\n" + b"y" * 20000 + b"\r\n", synchronizing=False)
        wire.command(b"SELECT INBOX")
        wire.fetch_body(b"*")
        wire.send(b"i IDLE\r\n")
        assert wire.line().startswith(b"+")
        during = porter.metrics()
        wire.send(b"DONE\r\n")
        wire.until(b"i")
        wire.command(b"LOGOUT")
        wire.rest()
    with enter(porter.doors["imaps"]) as wire:
        wire.login("u10", "certainly-wrong")
        wire.command(b"LOGOUT")
    porter.wait_for_log("session.closed", 2)
    after = porter.metrics()

    def grown(name: str, **labels: str) -> float:
        return after.total(name, **labels) - before.total(name, **labels)

    assert grown("porter_login_attempts_total", outcome="ok") == 1
    assert grown("porter_login_attempts_total", outcome="authentication_failed") == 1
    assert grown("porter_relayed_bytes_total", direction="from_client") > 20000
    assert grown("porter_relayed_bytes_total", direction="from_backend") > 20000
    for command in ("APPEND", "SELECT", "FETCH"):
        assert grown("porter_command_duration_seconds_count", command=command) == 1, command
    assert during.total("porter_idle_sessions") == 1
    assert after.total("porter_idle_sessions") == 0
    assert during.total("porter_sessions") - before.total("porter_sessions") == 1
    assert after.total("porter_sessions") == before.total("porter_sessions")
    assert grown("porter_login_duration_seconds_count") >= 1
    assert after.total("porter_backend_up") == 2


def test_each_session_leaves_one_line(start_porter: StartPorter) -> None:
    porter = start_porter()
    for name in ("u11", "u12", "u11"):
        with session(porter.doors["imaps"], name) as wire:
            wire.command(b"SELECT INBOX")
            wire.command(b"LOGOUT")
            wire.rest()
    with session(porter.doors["starttls"], "u13") as wire:
        wire.command(b"NOOP")
    porter.stop()
    lines = porter.log("session.closed")
    assert sorted(line["name"] for line in lines) == ["u11", "u11", "u12", "u13"]
    assert {line["backend"] for line in lines} <= {"d1", "d2"}
    assert all(line["bytes_from_client"] > 0 and line["bytes_from_backend"] > 0 for line in lines)
    outcomes = {line["name"]: line["outcome"] for line in lines}
    assert outcomes == {"u11": "logged_out", "u12": "logged_out", "u13": "client_closed"}


def test_sigterm_says_bye_to_sessions(start_porter: StartPorter) -> None:
    porter = start_porter()
    with session(porter.doors["imaps"], "u14") as idler, session(porter.doors["imaps"], "u15") as quiet:
        idler.send(b"i IDLE\r\n")
        assert idler.line().startswith(b"+")
        porter.terminate()
        assert idler.line().startswith(b"* BYE")
        assert quiet.line().startswith(b"* BYE")
    porter.stop()
    assert [line["outcome"] for line in porter.log("session.closed")] == ["drained", "drained"]
