"""The directory as an identity source, on real OpenLDAP servers."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.auth.authenticator import Authenticator
from proxy.auth.cache import cached
from proxy.auth.ldap.source import LdapAccountSource, LdapSource, ldap_source
from proxy.auth.names import NameRules
from proxy.auth.scram_keys import make_scram_keys, scram_text
from proxy.auth.source import NotMine
from proxy.model import Credentials, Endpoint, Identity, KeyShape, Origin
from proxy.observe.metrics import exposition
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_models import Cache, LdapBind, LdapIdentity, LdapSearch
from proxy.settings.identity_values import parse_ldap_url
from proxy.settings.models import Names
from proxy.settings.secret import Secret
from tests.servers.accounts import USERS
from tests.servers.pki import Pki, write_pki
from tests.servers.ports import Ports
from tests.servers.slapd import (
    PEOPLE,
    POLICY_DN,
    REFERRED,
    RESET_POLICY_DN,
    SERVICE_DN,
    SERVICE_PASSWORD,
    SUFFIX,
    Slapd,
    person,
    remove,
    write_slapd,
)

pytestmark = pytest.mark.server

ORIGIN = Origin(Endpoint("192.0.2.1", 50000), secure=True)
ALICE, PASSWORD = "alice@test.example", USERS["alice"].encode()
SERVICE = LdapBind(dn=SERVICE_DN, password=Secret("env", "LDAP", SERVICE_PASSWORD.encode()))
EXTERNAL = LdapBind(external=True)
BY_MAIL = LdapSearch(base=PEOPLE, filter="(&(objectClass=inetOrgPerson)(mail={name}))")
BY_UID = LdapSearch(base=PEOPLE, filter="(uid={local})")
USER_DN = f"uid={{local}},{PEOPLE}"
OTHER = "alice@other.example"  # whose password is not that of the entry
KEYS = make_scram_keys(b"scram-2k7h", 6000)


PEOPLE_OF_THESE_TESTS = "".join(
    [
        person("twice-1", "pw", mail="twice@test.example"),
        person("twice-2", "pw", mail="twice@test.example"),
        person("nameless", "pw", mail=[]),
        person("two-names", "pw", mail=["one@test.example", "two@test.example"]),
        person("no-password", None),
        person("many", "pw", l=["b", "a"], blob=b"\xff\xfe"),
        person("umlaut", "pw", mail="umlaut@test.example", l="Zürich"),
        person("expired", "pw", pwdPolicySubentry=POLICY_DN, pwdChangedTime="20200101000000Z"),
        person("reset", "pw", pwdPolicySubentry=RESET_POLICY_DN, pwdReset="TRUE"),
        person("left", "pw", employeeType="left"),
    ]
)


@dataclass
class Place:
    """Where the servers of this module are."""

    folder: Path
    pki: Pki
    ports: Ports
    plain: Slapd  # with StartTLS
    bare: Slapd  # without TLS


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="imap-porter-"))
    ports = Ports()
    pki = write_pki(folder / "pki")
    servers = []
    try:
        for name, with_pki in (("plain", pki), ("bare", None)):
            servers.append(write_slapd(folder / name, ports, with_pki, PEOPLE_OF_THESE_TESTS))
            servers[-1].start()
        yield Place(folder, pki, ports, *servers)
    finally:
        for server in servers:
            remove(server)
        ports.close()
        shutil.rmtree(folder, ignore_errors=True)


Make = Callable[..., LdapSource]


@pytest.fixture
def make(place: Place) -> Iterator[Make]:
    """Makes sources; they are closed when the test ends."""
    made: list[LdapSource] = []

    def source(*urls: str, default_domain: str | None = "test.example", **settings: Any) -> LdapSource:
        settings = {"ca": place.pki.ca, "pool": 2, "bind": SERVICE, **settings}
        if "user_dn" not in settings:
            settings.setdefault("search", BY_MAIL)
        parsed = tuple(map(parse_ldap_url, urls or (place.plain.url,)))
        made.append(ldap_source(LdapIdentity(urls=parsed, **settings), NameRules(Names(default_domain=default_domain))))
        return made[-1]

    yield source
    for each in made:
        each.close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that no resolver knows: one that no certificate has, and one with a first address where nobody is."""
    known = {"wrong.example": ["127.0.0.1"], "two.test.example": ["127.0.0.3", "127.0.0.1"]}
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> list[Any]:
        return [found for address in known.get(host, [host]) for found in resolve(address, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


async def outcome(source: LdapSource, name: str = ALICE, password: bytes = PASSWORD) -> Identity | Outcome | None:
    """Who it is, or the refusal's outcome; None: not mine."""
    try:
        answer = await source.authenticate(Credentials("LOGIN", name, "", password), name, ORIGIN)
    except Refused as refusal:
        return refusal.outcome
    return None if isinstance(answer, NotMine) else answer


async def detail(source: LdapSource, name: str = ALICE, password: bytes = PASSWORD) -> str:
    with pytest.raises(Refused) as refused:
        await source.authenticate(Credentials("LOGIN", name, "", password), name, ORIGIN)
    assert refused.value.outcome is Outcome.UNAVAILABLE
    return refused.value.detail


def connections(url: str) -> float:
    """How many were opened to a server, by all sources so far."""
    marks = (f'server="{url}"', 'operation="connect"', 'outcome="ok"')
    lines = exposition()[0].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(mark in line for mark in marks))


NO = Outcome.AUTHENTICATION_FAILED
OUT = Outcome.UNAVAILABLE
HERE = Identity(ALICE, "ldap")

WAYS = [
    ("ldap", lambda place: place.plain.url, {}),
    ("ldaps", lambda place: place.plain.tls_url, {}),
    ("StartTLS", lambda place: place.plain.url, {"start_tls": True}),
    ("ldapi", lambda place: place.plain.socket_url, {}),
    ("ldapi, EXTERNAL", lambda place: place.plain.socket_url, {"bind": EXTERNAL}),
    ("user_dn", lambda place: place.plain.url, {"user_dn": f"uid={{local}},{PEOPLE}", "bind": None}),
    ("user_dn, StartTLS", lambda place: place.plain.url, {"user_dn": f"uid={{local}},{PEOPLE}", "start_tls": True}),
    ("name in the certificate", lambda place: place.plain.tls_url.replace("127.0.0.1", "localhost"), {}),
]


@pytest.mark.parametrize(("way", "url", "settings"), WAYS, ids=[way for way, _, _ in WAYS])
async def test_logins(
    way: str, url: Callable[[Place], str], settings: dict[str, Any], place: Place, make: Make
) -> None:
    source = make(url(place), **settings)
    before = connections(url(place))
    for _ in range(2):
        assert await outcome(source) == HERE
        assert await outcome(source, password=b"wrong") is NO
        # Whom a bind by name does not let in may be anybody.
        assert await outcome(source, "nobody@test.example") is (NO if "user_dn" in settings else None)
        assert await outcome(source, password="Пароль".encode()) is NO
        assert await outcome(source, password=b"\xff") is NO
        assert await outcome(source, password=b"") is NO
    # One that searches and one that binds, and they stay.
    assert connections(url(place)) - before == (1 if "user_dn" in settings else 2)


@pytest.mark.parametrize(
    ("settings", "name", "identity"),
    [
        ({"attributes": {"name": "mail", "backend": "mailHost"}}, ALICE,
            Identity(ALICE, "ldap", "alice.backend.example")),
        ({"attributes": {"backend": "MAILHOST"}}, ALICE, Identity(ALICE, "ldap", "alice.backend.example")),
        ({"attributes": {"name": "uid"}}, ALICE, HERE),
        ({"attributes": {"name": "mail"}, "search": BY_UID}, "umlaut@other.example",
            Identity("umlaut@test.example", "ldap")),
        ({"attributes": {"town": "l", "id": "uid", "photo": "blob"}}, "many@test.example",
            Identity("many@test.example", "ldap", None, {"town": "a,b", "id": "many"})),
        ({"attributes": {"town": "l"}}, "umlaut@test.example",
            Identity("umlaut@test.example", "ldap", None, {"town": "Zürich"})),
        # Nobody may be looked up here but by himself, and by the service account.
        ({"attributes": {"backend": "mailHost"}, "user_dn": f"uid={{local}},{PEOPLE}", "bind": None}, ALICE,
            Identity(ALICE, "ldap", "alice.backend.example")),
        ({"attributes": {"backend": "mailHost"}, "user_dn": f"uid={{local}},{PEOPLE}"}, ALICE,
            Identity(ALICE, "ldap", "alice.backend.example")),
    ],
)  # fmt: skip
async def test_attributes(settings: dict[str, Any], name: str, identity: Identity, make: Make) -> None:
    password = USERS.get(name.partition("@")[0], "pw").encode()
    assert await outcome(make(**settings), name, password) == identity


@pytest.mark.parametrize(
    ("settings", "name", "password", "expected"),
    [
        ({}, "twice@test.example", b"pw", OUT),
        ({}, "no-password@test.example", b"pw", NO),
        ({}, "expired@test.example", b"pw", Outcome.EXPIRED),
        ({}, "expired@test.example", b"wrong", NO),
        # What is wrong with an entry is for its owner to hear.
        ({"search": BY_UID, "attributes": {"name": "mail"}}, "nameless", b"pw", Outcome.CONTACT_ADMIN),
        ({"search": BY_UID, "attributes": {"name": "mail"}}, "nameless", b"wrong", NO),
        ({"search": BY_UID, "attributes": {"name": "mail"}}, "two-names", b"pw", Outcome.CONTACT_ADMIN),
        ({"search": LdapSearch(base=PEOPLE, filter="(&(uid={name})(!(employeeType=left)))")}, "left", b"pw", None),
        # A password that is only good for being changed.
        ({}, "reset@test.example", b"pw", Outcome.EXPIRED),
        ({}, "reset@test.example", b"wrong", NO),
        ({"user_dn": USER_DN}, "reset@test.example", b"pw", Outcome.EXPIRED),
        # A referral, and a reference beside what is found, are not followed.
        ({"search": LdapSearch(base=REFERRED, filter="(uid={name})")}, "alice", PASSWORD, OUT),
        ({"search": LdapSearch(base=SUFFIX, filter="(uid={name})")}, "alice", PASSWORD, Identity("alice", "ldap")),
        ({"search": LdapSearch(base=SUFFIX, filter="(uid={name})", scope="one")}, "alice", PASSWORD, None),
        # A search that cannot be made makes nobody unknown.
        ({"search": LdapSearch(base=f"ou=nowhere,{SUFFIX}", filter="(uid={name})")}, "alice", PASSWORD, OUT),
        ({"search": LdapSearch(base="strange=name", filter="(uid={name})")}, "alice", PASSWORD, OUT),
    ],
)
async def test_outcomes(
    settings: dict[str, Any], name: str, password: bytes, expected: Identity | Outcome | None, make: Make
) -> None:
    assert await outcome(make(**settings), name, password) == expected


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        ({"search": BY_UID}, ALICE, HERE),
        ({"search": BY_UID}, OTHER, None),
        ({"user_dn": USER_DN}, ALICE, HERE),
        ({"user_dn": USER_DN}, OTHER, None),
        ({"search": LdapSearch(base=PEOPLE, filter="(|(uid={local})(mail={name}))")}, ALICE, HERE),
        ({"search": LdapSearch(base=PEOPLE, filter="(|(uid={local})(mail={name}))")}, OTHER, None),
        # The entry tells whose it is.
        ({"search": BY_UID, "attributes": {"name": "mail"}}, OTHER, HERE),
        ({"user_dn": USER_DN, "attributes": {"name": "mail"}}, OTHER, HERE),
    ],
)
async def test_nobody_becomes_his_namesake_of_another_domain(
    settings: dict[str, Any], name: str, expected: Identity | None, make: Make
) -> None:
    source = make(**settings)
    assert await outcome(source, name) == expected
    assert isinstance(source, LdapAccountSource)
    account = await source.look_up(name)
    assert (None if account is None else account.identity) == expected


@pytest.mark.parametrize(
    ("settings", "name", "person"),
    [
        ({}, "twice@test.example", True),
        ({"search": LdapSearch(base=REFERRED, filter="(mail={name})")}, ALICE, False),
        ({"search": LdapSearch(base=f"ou=nowhere,{SUFFIX}", filter="(mail={name})")}, ALICE, False),
        ({"bind": LdapBind(dn=SERVICE_DN, password=Secret("env", "LDAP", b"wrong"))}, ALICE, False),
    ],
)
async def test_whose_trouble_it_is(settings: dict[str, Any], name: str, person: bool, make: Make) -> None:
    source = make(**settings)
    with pytest.raises(Refused) as refused:
        await source.authenticate(Credentials("LOGIN", name, "", PASSWORD), name, ORIGIN)
    assert (refused.value.outcome, refused.value.person) == (OUT, person)


HOSTILE = [
    "*",
    "a)(uid=*",
    "*)(uid=*))(|(uid=*",
    "\\",
    "\\2a",
    "\0",
    "alice,ou=people",
    "alice+cn=alice",
    "#616c",
]


@pytest.mark.parametrize("name", HOSTILE)
async def test_names_stay_names(name: str, make: Make) -> None:
    assert await outcome(make(search=LdapSearch(base=PEOPLE, filter="(uid={name})")), name) is None
    assert await outcome(make(user_dn=f"uid={{name}},{PEOPLE}"), name) is NO
    assert await outcome(make(user_dn=f"uid={{name}},{SUFFIX}"), "alice,ou=people") is NO


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("nobody", "(maill=nobody)"),
        ("a\n*", "(maill=a\\0a\\2a)"),
        ("a" * 250, f"(maill={'a' * 193}…"),
    ],
)
async def test_what_was_not_found(name: str, shown: str, make: Make) -> None:
    source = make(search=LdapSearch(base=PEOPLE, filter="(maill={name})"))
    answer = await source.authenticate(Credentials("LOGIN", name, "", PASSWORD), name, ORIGIN)
    assert answer == NotMine(f"no entry under {PEOPLE} for {shown}")


async def test_names_with_marks_are_found(make: Make, place: Place) -> None:
    uid = "o'neill+x (*\\)"
    place.plain.add(person("marked", "pw", mail=f"{uid}@test.example"))
    try:
        assert await outcome(make(), f"{uid}@test.example", b"pw") == Identity(f"{uid}@test.example", "ldap")
    finally:
        place.plain.delete(f"uid=marked,{PEOPLE}")


UNTRUSTED = 'certificate verify failed: .*(certificate|issuer).*; "ca" says whom to trust$'
MISNAMED = (
    "certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.2'; "
    '"urls" has to name the server as its certificate does$'
)


@pytest.mark.parametrize(
    ("url", "settings", "problem"),
    [
        (lambda place: place.plain.tls_url, {"ca": "wrong"}, f": TLS: {UNTRUSTED}"),
        (lambda place: place.plain.url, {"ca": "wrong", "start_tls": True}, f": StartTLS: {UNTRUSTED}"),
        (lambda place: place.plain.misnamed(place.plain.tls_url), {}, f": TLS: {MISNAMED}"),
        (lambda place: place.plain.misnamed(place.plain.url), {"start_tls": True}, f": StartTLS: {MISNAMED}"),
        (lambda place: place.plain.tls_url.replace("127.0.0.1", "wrong.example"), {},
            f": TLS: {MISNAMED.replace('IP address', 'Hostname').replace('127.0.0.2', 'wrong.example')}"),
        (lambda place: f"ldaps://127.0.0.1:{place.plain.port}", {"connect_timeout": 0.5},
            ": TLS: closed by the server; perhaps the port speaks no TLS$"),
        (lambda place: f"ldap://127.0.0.1:{place.plain.tls_port}", {},
            ": (closed by the server|Connection reset by peer); does this port expect ldaps://\\?$"),
        (lambda place: f"ldap://127.0.0.1:{place.plain.tls_port}", {"start_tls": True},
            ": StartTLS: (closed by the server|Connection reset by peer); does this port expect ldaps://\\?$"),
        (lambda place: place.bare.url, {"start_tls": True}, ": StartTLS: protocolError$"),
        (lambda place: f"ldap://127.0.0.1:{place.ports.take()}", {}, ":[0-9]+: Connection refused$"),
        (lambda place: place.plain.socket_url.replace("%2Fldapi", "%2Fnobody"), {}, ": No such file or directory$"),
        (lambda place: "ldap://nowhere.invalid", {"insecure": True}, ": its name is not found: [^[]*$"),
        (lambda place: place.plain.url,
            {"bind": LdapBind(dn=SERVICE_DN, password=Secret("env", "LDAP", b"wrong-pw-77"))},
            "the proxy's own bind as cn=porter,.*: invalidCredentials"),
    ],
)  # fmt: skip
async def test_servers_that_cannot_be_used(
    url: Callable[[Place], str], settings: dict[str, Any], problem: str, place: Place, make: Make, names: None
) -> None:
    if settings.get("ca") == "wrong":
        settings = {**settings, "ca": place.pki.wrong_ca}
    source = make(url(place), **settings)
    text = await detail(source)
    assert re.search(problem, text), text
    assert "wrong-pw" not in text
    assert PASSWORD.decode() not in text
    # Nobody waits for it again.
    assert "down: " in await detail(source)


async def test_the_second_server_answers_where_the_first_does_not(place: Place, make: Make) -> None:
    source = make(f"ldap://127.0.0.1:{place.ports.take()}", place.plain.url)
    for _ in range(3):
        assert await outcome(source) == HERE
        assert await outcome(source, password=b"wrong") is NO


async def test_every_address_of_a_name_is_tried(place: Place, make: Make, names: None) -> None:
    assert await outcome(make(place.plain.tls_url.replace("127.0.0.1", "two.test.example"))) == HERE


async def test_scram_keys(place: Place, make: Make) -> None:
    """The service account of these tests may read no userPassword; the keys stand in another attribute."""
    place.plain.add(person("keys", "pw", blob=["{SSHA}b2xk", scram_text(KEYS)]))
    try:
        source = make(attributes={"scram": "blob", "name": "mail"}, search=BY_UID)
        assert isinstance(source, LdapAccountSource)
        assert source.usual_shape == KeyShape(4096, 16)
        account = await source.look_up("keys")
        assert account is not None
        assert (account.identity, account.scram) == (Identity("keys@test.example", "ldap"), KEYS)
        assert source.usual_shape == KeyShape(6000, len(KEYS.salt))
        other = await source.look_up("bob")
        assert other is not None
        assert (other.identity.name, other.scram) == ("bob@test.example", None)
        assert await source.look_up("nobody") is None
        with pytest.raises(Refused) as refused:
            await source.look_up("two-names")
        assert (refused.value.outcome, refused.value.person) == (OUT, True)
    finally:
        place.plain.delete(f"uid=keys,{PEOPLE}")


async def test_accounts_by_name_of_the_entry(make: Make) -> None:
    source = make(user_dn=f"uid={{local}},{PEOPLE}", attributes={"backend": "mailHost"})
    assert isinstance(source, LdapAccountSource)
    assert not source.knows_scram
    account = await source.look_up(ALICE)
    assert account is not None
    assert account.identity == Identity(ALICE, "ldap", "alice.backend.example")
    assert await source.look_up("nobody@test.example") is None


WHOSE: list[tuple[dict[str, Any], str, Identity | Outcome | None]] = [
    # the settings, a name, whose it is: SCRAM keys are mapped nowhere
    ({"attributes": {"backend": "mailHost"}}, ALICE, Identity(ALICE, "ldap", "alice.backend.example")),
    ({"attributes": {"backend": "mailHost"}}, "Alice", Identity(ALICE, "ldap", "alice.backend.example")),
    ({"attributes": {"tag": "l"}}, "many@test.example", Identity("many@test.example", "ldap", None, {"tag": "a,b"})),
    ({"search": BY_UID, "attributes": {"name": "mail"}}, OTHER, HERE),
    ({"search": BY_UID}, OTHER, None),
    ({}, "nobody@test.example", None),
    ({"user_dn": USER_DN, "attributes": {"backend": "mailHost"}}, ALICE,
        Identity(ALICE, "ldap", "alice.backend.example")),
    ({"user_dn": USER_DN}, "nobody@test.example", None),
    # Nobody but the person could read the entry, so the name has to do.
    ({"user_dn": USER_DN, "bind": None, "attributes": {"backend": "mailHost"}}, ALICE, Identity(ALICE, "")),
    ({"user_dn": USER_DN, "bind": None}, "nobody@test.example", Identity("nobody@test.example", "")),
    ({}, "twice@test.example", OUT),
    ({"search": BY_UID, "attributes": {"name": "mail"}}, "nameless", OUT),
    ({"search": LdapSearch(base=f"ou=nowhere,{SUFFIX}", filter="(mail={name})")}, ALICE, OUT),
    # Anonymous, which this directory lets read nothing: a base that can't be seen makes nobody unknown.
    ({"bind": None}, ALICE, OUT),
]  # fmt: skip


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize(("settings", "name", "expected"), WHOSE)
async def test_whose_a_name_is(
    settings: dict[str, Any], name: str, expected: Identity | Outcome | None, remembered: bool, make: Make
) -> None:
    source = make(**settings)
    rules = NameRules(Names(default_domain="test.example"))
    authenticator = Authenticator([cached(source, Cache()) if remembered else source], rules)
    for _ in range(2):
        found: Identity | Outcome | None
        try:
            found = await authenticator.find(name)
        except Refused as refusal:
            found = refusal.outcome
        assert found == expected


NOBODY = "(&(objectClass=inetOrgPerson)(mail=imap-porter-probe@porter.invalid))"


async def test_probe(place: Place, make: Make) -> None:
    dead = f"ldap://127.0.0.1:{place.ports.take()}"
    rows = await make(dead, place.plain.tls_url).probe()
    assert [(row.what, bool(row.problem), row.detail) for row in rows] == [
        (f"{dead}: connect", True, ""),
        (f"{place.plain.tls_url}: connect", False, "TLSv1.3"),
        (f"{place.plain.tls_url}: bind", False, ""),
        (f"{place.plain.tls_url}: search", False, PEOPLE),
        (f"{place.plain.tls_url}: filter", False, NOBODY),
    ]


async def test_probe_of_what_is_set_up_wrongly(place: Place, make: Make) -> None:
    wrong = LdapBind(dn=SERVICE_DN, password=Secret("env", "LDAP", b"wrong-pw-77"))
    rows = await make(bind=wrong).probe()
    assert [row.what.rpartition(" ")[2] for row in rows] == ["connect", "bind"]
    assert "invalidCredentials" in rows[1].problem
    rows = await make(search=LdapSearch(base=f"ou=nowhere,{SUFFIX}", filter="(uid={local})")).probe()
    assert "noSuchObject" in rows[2].problem
    rows = await make(search=LdapSearch(base=REFERRED, filter="(uid={local})")).probe()
    assert "referral" in rows[2].problem


async def test_probe_where_entries_are_named(place: Place, make: Make) -> None:
    rows = await make(bind=None, user_dn=USER_DN).probe()
    assert [(row.what, row.problem) for row in rows] == [(f"{place.plain.url}: connect", "")]
    rows = await make(user_dn=USER_DN).probe()
    assert [(row.problem, row.detail) for row in rows] == [("", ""), ("", ""), ("", PEOPLE)]
    rows = await make(user_dn=f"uid={{local}},ou={{domain}},{SUFFIX}").probe()
    assert [(row.problem, row.detail) for row in rows] == [("", ""), ("", ""), ("", SUFFIX)]
    rows = await make(user_dn=f"uid={{local}},ou=nowhere,{SUFFIX}").probe()
    assert [row.what.rpartition(" ")[2] for row in rows] == ["connect", "bind", "search"]
    assert rows[2].problem.startswith(f"ou=nowhere,{SUFFIX}, where entries are: noSuchObject (32)")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("(|(uid={name})(uid=alice))", f"finds an entry, for a name that nobody has: uid=alice,{PEOPLE}"),
        ("(|(uid={name})(uid=*))", "finds an entry, for a name that nobody has: uid="),
    ],
)
async def test_probe_of_a_filter_that_finds_anybody(text: str, problem: str, make: Make) -> None:
    rows = await make(search=LdapSearch(base=PEOPLE, filter=text)).probe()
    assert [bool(row.problem) for row in rows] == [False, False, False, True]
    assert problem in rows[3].problem
