"""The directory without a directory: templates and escaping, the breaker, result codes, what entries say."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio

from proxy.auth.ldap.breaker import BindPause, Breaker
from proxy.auth.ldap.connection import Connector, check_filter, ldap3
from proxy.auth.ldap.connections import Connections, Counters
from proxy.auth.ldap.entries import Entry, EntryReader, Misfit
from proxy.auth.ldap.server import LdapServer
from proxy.auth.ldap.source import LdapAccountSource, LdapSource, ldap_source
from proxy.auth.ldap.template import Template, common_ancestor, escape
from proxy.auth.ldap.verdicts import Result, ServerFailed, raise_failure, raise_unless_bound
from proxy.auth.names import NameRules
from proxy.auth.scram_keys import make_scram_keys, scram_text
from proxy.auth.source import AccountSource, IdentitySource, NotMine
from proxy.model import Credentials, Endpoint, Identity, Origin
from proxy.observe.metrics import exposition
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_models import LdapBind, LdapIdentity, LdapSearch
from proxy.settings.identity_values import Map, parse_ldap_url
from proxy.settings.models import Names
from proxy.settings.secret import Secret

ORIGIN = Origin(Endpoint("192.0.2.1", 50000), secure=True)
NOWHERE = (parse_ldap_url("ldap://127.0.0.1:1"),)

HOSTILE = [
    "*", "a)(uid=*", "(", ")", "\\", "\\2a", "\0", "x,ou=other", "a+b", '"', "#a", " a ", "a=b", "a<b>;", "ä€𝄞",
    "{local}", "&|!~",
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("alice.b-c_d@example.org", "alice.b-c_d@example.org"),
        ("*()\\\0", "\\2a\\28\\29\\5c\\00"),
        ("a,b+c", "a\\2cb\\2bc"),
        (" #", "\\20\\23"),
        ("Lučić", "Lu\\c4\\8di\\c4\\87"),  # RFC 4514 §4
    ],
)
def test_escape(value: str, escaped: str) -> None:
    assert escape(value) == escaped


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_stays_one_value_of_a_filter(value: str) -> None:
    text = Template("(&(objectClass=person)(mail={name}))").fill(value)
    root = ldap3.operation.search.parse_filter(text, None, False, False, None, False)
    (both,) = root.elements
    _, match = both.elements
    assert match.tag == ldap3.operation.search.MATCH_EQUAL
    found = ldap3.operation.search.prepare_filter_for_sending(match.assertion["value"])
    assert found == value.encode()


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_stays_one_value_of_a_dn(value: str) -> None:
    text = Template("uid={name},ou=people").fill(value)
    assert text is not None
    assert [(kind, found) for kind, found, _ in ldap3.utils.dn.parse_dn(text)] == [
        ("uid", escape(value)),
        ("ou", "people"),
    ]


@pytest.mark.parametrize(
    ("template", "name", "filled"),
    [
        ("(mail={name})", "alice@example.org", "(mail=alice@example.org)"),
        ("uid={local},dc={domain}", "alice@example.org", "uid=alice,dc=example.org"),
        ("uid={local}", "alice", "uid=alice"),
        ("uid={local},dc={domain}", "alice", None),
        ("(|(uid={local})(uid={local}))", "a{domain}", "(|(uid=a\\7bdomain\\7d)(uid=a\\7bdomain\\7d))"),
    ],
)
def test_template(template: str, name: str, filled: str | None) -> None:
    assert Template(template).fill(name) == filled


@pytest.mark.parametrize(
    ("template", "ancestor"),
    [
        ("uid={local},ou=people,dc=example", "ou=people,dc=example"),
        ("uid={local}, ou=people,dc=example", "ou=people,dc=example"),
        ("uid={local},ou={domain},dc=example", "dc=example"),
        ("cn=x\\,{local},ou=a\\,b\\\\,dc=example", "ou=a\\,b\\\\,dc=example"),
        ("cn=x+uid={local},dc=example", "dc=example"),
        ("uid={local}", ""),
    ],
)
def test_where_all_entries_are(template: str, ancestor: str) -> None:
    assert common_ancestor(template) == ancestor


@pytest.mark.parametrize("text", ["(mail=a)", "(&(objectClass=person)(!(employeeType=left))(|(uid=a)(mail=a)))"])
def test_filters(text: str) -> None:
    check_filter(text)


@pytest.mark.parametrize("text", ["mail=a", "(mail=a", "()", "(&(mail=a)(uid=b)", "(mail)", "(mail=a)(uid=b)"])
def test_no_filters(text: str) -> None:
    with pytest.raises(ValueError, match="RFC 4515"):
        check_filter(text)


class TestBreaker:
    def test_a_failure_takes_it_down_and_a_trial_up_again(self) -> None:
        breaker = Breaker(pause_seconds=1)
        first, second = breaker.admit(0, 5), breaker.admit(0, 5)
        assert first is not None
        assert second is not None
        assert breaker.failed(first, 2, "frozen")
        assert not breaker.failed(second, 2.1, "frozen")  # told once
        assert (breaker.up, breaker.reason) == (False, "frozen")
        assert breaker.overtaken(second)
        assert breaker.admit(2.9, 5) is None
        trial = breaker.admit(3, 5)
        assert trial is not None
        assert not breaker.overtaken(trial)
        assert breaker.admit(3.1, 5) is None  # one at a time
        assert breaker.succeeded(4)
        assert breaker.up
        assert not breaker.succeeded(5)

    def test_a_trial_that_fails_begins_another_pause(self) -> None:
        breaker = Breaker(pause_seconds=1)
        breaker.failed(self.admitted(breaker, 0), 0, "refused")
        trial = self.admitted(breaker, 1)
        assert not breaker.failed(trial, 1.5, "still refused")
        assert breaker.reason == "still refused"
        assert breaker.admit(2.4, 5) is None
        assert breaker.admit(2.5, 5) is not None

    def test_a_trial_that_is_never_heard_of_ends(self) -> None:
        breaker = Breaker(pause_seconds=1)
        breaker.failed(self.admitted(breaker, 0), 0, "refused")
        self.admitted(breaker, 1)
        assert breaker.admit(5.9, 5) is None
        assert breaker.admit(6, 5) is not None

    def test_a_trial_that_was_not_made_is_left_to_the_next(self) -> None:
        breaker = Breaker(pause_seconds=1)
        ordinary = self.admitted(breaker, 0)
        breaker.failed(ordinary, 0, "refused")
        trial = self.admitted(breaker, 1)
        breaker.withdraw(ordinary, 1.1)
        assert breaker.admit(1.1, 5) is None
        breaker.withdraw(trial, 1.2)
        assert breaker.admit(1.2, 5) is not None

    def test_a_failure_from_before_a_success_does_not_count(self) -> None:
        breaker = Breaker(pause_seconds=1)
        hung = self.admitted(breaker, 0)
        breaker.succeeded(1)
        assert not breaker.failed(hung, 2, "timed out")
        assert breaker.up

    def test_a_straggler_does_not_end_a_trial(self) -> None:
        breaker = Breaker(pause_seconds=1)
        straggler = self.admitted(breaker, 0)
        breaker.failed(self.admitted(breaker, 0), 0, "refused")
        trial = self.admitted(breaker, 1)
        breaker.failed(straggler, 1.5, "timed out")
        assert breaker.reason == "refused"
        breaker.withdraw(trial, 1.6)
        assert breaker.admit(1.6, 5) is not None

    @staticmethod
    def admitted(breaker: Breaker, now: float) -> object:
        admission = breaker.admit(now, 5)
        assert admission is not None
        return admission


class TestBindPause:
    def test_after_a_no_one_bind_at_a_time(self) -> None:
        pause = BindPause(seconds=10)
        assert pause.wait(0) == 0
        pause.refused(1)
        assert pause.wait(3) == 8
        assert pause.wait(11) == 0  # this one binds
        assert pause.wait(11) == 10  # nobody else does meanwhile
        pause.refused(12)
        assert pause.wait(13) == 9

    def test_a_yes_ends_it(self) -> None:
        pause = BindPause(seconds=10)
        pause.refused(0)
        pause.accepted()
        assert pause.wait(1) == 0
        assert pause.wait(1) == 0


AD = "80090308: LdapErr: DSID-0C090439, comment: AcceptSecurityContext error, data {}, v4563"


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        (Result(49, "invalidCredentials"), Outcome.AUTHENTICATION_FAILED),
        (Result(49, "invalidCredentials", AD.format("52e")), Outcome.AUTHENTICATION_FAILED),
        (Result(49, "invalidCredentials", AD.format("775")), Outcome.AUTHENTICATION_FAILED),
        (Result(49, "invalidCredentials", AD.format("532")), Outcome.EXPIRED),
        (Result(49, "invalidCredentials", AD.format("773")), Outcome.EXPIRED),
        (Result(49, "invalidCredentials", "password expired!"), Outcome.EXPIRED),
        (Result(49, "invalidCredentials", "", 0), Outcome.EXPIRED),
        (Result(49, "invalidCredentials", "", 1), Outcome.AUTHENTICATION_FAILED),
        (Result(0, "success", "", 2), Outcome.EXPIRED),
        (Result(48, "inappropriateAuthentication"), Outcome.AUTHENTICATION_FAILED),
        (Result(53, "unwillingToPerform", "Account inactivated. Contact system administrator."),
            Outcome.AUTHENTICATION_FAILED),
        (Result(19, "constraintViolation", "Exceed password retry limit."), Outcome.AUTHENTICATION_FAILED),
        (Result(32, "noSuchObject"), Outcome.AUTHENTICATION_FAILED),
        (Result(34, "invalidDNSyntax"), Outcome.AUTHENTICATION_FAILED),
        (Result(8, "strongerAuthRequired"), Outcome.UNAVAILABLE),
        (Result(10, "referral"), Outcome.UNAVAILABLE),
        (Result(13, "confidentialityRequired"), Outcome.UNAVAILABLE),
    ],
)  # fmt: skip
def test_what_a_bind_comes_to(result: Result, outcome: Outcome) -> None:
    with pytest.raises(Refused) as refused:
        raise_unless_bound(result)
    assert refused.value.outcome is outcome


@pytest.mark.parametrize("policy_error", [None, 0, 8])  # 0: a grace login
def test_a_bind_that_succeeded(policy_error: int | None) -> None:
    raise_unless_bound(Result(0, "success", "", policy_error))


@pytest.mark.parametrize(("code", "person"), [(10, True), (50, True), (7, False), (8, False), (13, False)])
def test_whose_trouble_a_bind_tells_of(code: int, person: bool) -> None:
    with pytest.raises(Refused) as refused:
        raise_unless_bound(Result(code, "name"))
    assert (refused.value.outcome, refused.value.person) == (Outcome.UNAVAILABLE, person)


@pytest.mark.parametrize(("code", "down"), [(51, True), (52, True), (1, False), (3, False), (11, False), (80, False)])
def test_what_another_server_may_answer(code: int, down: bool) -> None:
    for check in (raise_unless_bound, lambda result: raise_failure("search", result)):
        with pytest.raises(ServerFailed) as failure:
            check(Result(code, "name"))
        assert failure.value.down is down


KEYS = make_scram_keys(b"secret", 5000)
Values = Mapping[str, tuple[bytes, ...]]


def reader(**attributes: str) -> EntryReader:
    return EntryReader(attributes, NameRules(Names(default_domain="example.org")), "ldap")


@pytest.mark.parametrize(
    ("attributes", "values", "identity"),
    [
        ({}, {}, Identity("given", "ldap")),
        ({"name": "mail"}, {"mail": (b"Alice@example.org",)}, Identity("alice@example.org", "ldap")),
        ({"name": "uid"}, {"uid": (b"alice",)}, Identity("alice@example.org", "ldap")),
        ({"backend": "mailHost"}, {"mailhost": (b"b1",)}, Identity("given", "ldap", "b1")),
        ({"backend": "mailHost"}, {}, Identity("given", "ldap")),
        ({"office": "l"}, {"l": ("Zürich".encode(),)}, Identity("given", "ldap", None, {"office": "Zürich"})),
        ({"groups": "ou"}, {"ou": (b"b", b"a", b"\xff")}, Identity("given", "ldap", None, {"groups": "a,b"})),
        ({"photo": "jpegPhoto"}, {"jpegphoto": (b"\xff\xd8\xff\xe0",)}, Identity("given", "ldap")),
    ],
)
def test_identity_of_an_entry(attributes: dict[str, str], values: Values, identity: Identity) -> None:
    assert reader(**attributes).identity("given", Entry("uid=a", values)) == identity


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, r"^the entry has no mail \(attributes\.name\)$"),
        ({"mail": (b"a@example.org", b"b@example.org")}, "2 values of mail"),
        ({"mail": (b"\xff",)}, "mail is not text"),
        ({"mail": (b"",)}, "mail is not text"),
        ({"mail": (b"a*master",)}, "mail: the name contains the master separator"),
        ({"mail": (b"a",), "mailhost": (b"b1", b"b2")}, "2 values of mailHost"),
        ({"mail": (b"a",), "mailhost": (b"b1\r\nx",)}, "mailHost is not text"),
    ],
)
def test_entries_at_odds_with_the_settings(values: Values, problem: str) -> None:
    with pytest.raises(Misfit, match=problem):
        reader(name="mail", backend="mailHost").identity("given", Entry("uid=a", values))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((), None),
        ((b"{SSHA}abc", b"\xff"), None),
        ((b"{SSHA}abc", b"\xff", scram_text(KEYS).encode()), KEYS),
    ],
)
def test_scram_keys_among_other_hashes(values: tuple[bytes, ...], found: object) -> None:
    assert reader(scram="userPassword").scram(Entry("uid=a", {"userpassword": values})) == found


SERVICE = LdapBind(dn="cn=porter", password=Secret("env", "P", b"secret"))
BY_SEARCH = LdapSearch(base="dc=example", filter="(mail={name})")


@pytest.mark.parametrize(
    ("settings", "can_look_up"),
    [
        (LdapIdentity(urls=NOWHERE, search=BY_SEARCH), True),
        (LdapIdentity(urls=NOWHERE, search=BY_SEARCH, bind=SERVICE), True),
        (LdapIdentity(urls=NOWHERE, user_dn="uid={local}", bind=SERVICE), True),
        (LdapIdentity(urls=NOWHERE, user_dn="uid={local}"), False),
    ],
)
def test_only_what_can_look_up_says_so(settings: LdapIdentity, can_look_up: bool, rules: NameRules) -> None:
    source = ldap_source(settings, rules, "ldap-2")
    asked: IdentitySource = source
    assert asked.name == "ldap-2"
    assert isinstance(source, AccountSource) is can_look_up


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (LdapIdentity(urls=NOWHERE, search=LdapSearch(base="dc=example", filter="mail={name}")), "^search.filter: "),
        (LdapIdentity(urls=NOWHERE, search=BY_SEARCH, bind=LdapBind(dn="cn=p", password=Secret("env", "P", b"\xff"))),
            "^bind.password: "),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(settings: LdapIdentity, problem: str, rules: NameRules) -> None:
    with pytest.raises(ValueError, match=problem):
        LdapSource(settings, rules)


@pytest.mark.parametrize("secret", [b"", b"\xff"])
async def test_passwords_that_no_directory_sees(secret: bytes, rules: NameRules) -> None:
    source = LdapSource(LdapIdentity(urls=NOWHERE, user_dn="uid={local}"), rules)
    with pytest.raises(Refused) as refused:
        await source.authenticate(Credentials("PLAIN", "alice", "", secret), "alice", ORIGIN)
    assert refused.value.outcome is Outcome.AUTHENTICATION_FAILED


async def test_a_name_without_the_domain_that_is_asked_for(rules: NameRules) -> None:
    source = LdapAccountSource(LdapIdentity(urls=NOWHERE, user_dn="uid={local},dc={domain}", bind=SERVICE), rules)
    assert isinstance(await source.authenticate(Credentials("PLAIN", "a", "", b"x"), "a", ORIGIN), NotMine)
    assert await source.look_up("a") is None


BY_LOCAL_PART = [
    {"user_dn": "uid={local},dc=example"},
    {"search": LdapSearch(base="dc=example", filter="(uid={local})")},
    {"search": LdapSearch(base="dc=example", filter="(|(uid={local})(mail={name}))")},
]


@pytest.mark.parametrize("way", BY_LOCAL_PART)
@pytest.mark.parametrize("default_domain", [None, "example.org"])
async def test_a_name_of_another_domain_than_the_entrys(default_domain: str | None, way: dict[str, Any]) -> None:
    """Whoever is asked answers UNAVAILABLE, for nobody listens there."""
    names = NameRules(Names(default_domain=default_domain))
    source = LdapAccountSource(LdapIdentity(urls=NOWHERE, bind=SERVICE, **way), names)
    other = "alice@example.com"
    assert isinstance(await source.authenticate(Credentials("PLAIN", other, "", b"x"), other, ORIGIN), NotMine)
    assert await source.look_up(other) is None
    with pytest.raises(Refused):
        await source.look_up(names.canonical("alice"))
    named = LdapAccountSource(LdapIdentity(urls=NOWHERE, bind=SERVICE, attributes=Map({"name": "mail"}), **way), names)
    with pytest.raises(Refused):
        await named.look_up(other)


class FakeConnection:
    """A connection that a server may have closed."""

    def __init__(self, outcomes: list[Result | ServerFailed]) -> None:
        self.outcomes = outcomes
        self.closed = False

    def bind(self, dn: str, password: bytes, deadline: float) -> Result:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, ServerFailed):
            raise outcome
        return outcome

    def usable(self, now: float, max_idle_seconds: float) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


class FakeOpener:
    def __init__(self, *connections: list[Result | ServerFailed]) -> None:
        self.connections = [FakeConnection(outcomes) for outcomes in connections]
        self.opened = 0

    def open(self, deadline: float) -> FakeConnection:
        self.opened += 1
        return self.connections[self.opened - 1]


OK, NO = Result(0, "success"), Result(49, "invalidCredentials")
GONE, LATE = ServerFailed("closed", gone=True), ServerFailed("no answer in time")


def server(opener: FakeOpener, pool: int = 1) -> LdapServer:
    return LdapServer("ldap://fake", opener, None, pool=pool, operation_seconds=1)  # type: ignore[arg-type]


def bind(connections: Connections) -> Result:
    return connections.bind("uid=a", b"secret")


@pytest.mark.parametrize(
    ("connections", "answers"),
    [
        ([[OK, NO, OK]], [OK, NO, OK]),  # one connection stays
        ([[OK, GONE], [OK]], [OK, OK]),  # closed while idle: again, on a new one
        ([[OK, GONE], [NO]], [OK, NO]),
        ([[OK, GONE], [GONE]], [OK, GONE]),  # but once
        ([[GONE], [OK]], [GONE]),  # not one that is new
        ([[OK, LATE], [OK]], [OK, LATE]),  # a verdict may be under way
    ],
)
async def test_what_is_repeated(connections: list[list[Result | ServerFailed]], answers: list[object]) -> None:
    opener = FakeOpener(*connections)
    asked = server(opener)
    for answer in answers:
        if isinstance(answer, ServerFailed):
            with pytest.raises(ServerFailed, match=str(answer)):
                await asked.ask(bind, 5)
        else:
            assert await asked.ask(bind, 5) is answer
    asked.close()
    assert all(connection.closed for connection in opener.connections[: opener.opened])


REFUSED, BUSY = Result(49, "invalidCredentials"), Result(51, "busy")


@pytest.mark.parametrize(
    ("answers", "seconds", "opened"),
    [
        ([REFUSED, OK], 10, 1),  # the second is not even connected for
        ([REFUSED, REFUSED], 0, 2),
        ([BUSY, BUSY], 10, 2),  # nothing that locks an account
        ([LATE, LATE], 10, 2),
        ([Result(0, "success", "", 2)] * 2, 10, 2),
    ],
)
def test_a_wrong_password_of_the_proxys_own_is_not_tried_again_at_once(
    answers: list[Result | ServerFailed], seconds: float, opened: int
) -> None:
    opener = FakeOpener(*([answer] for answer in answers))
    pause = BindPause(seconds)
    for _ in range(2):
        connections = Connections(opener, SERVICE, 1, Counters("ldap://fake"), pause)  # type: ignore[arg-type]
        connections.begin(time.monotonic() + 5)
        with pytest.raises(ServerFailed):
            connections.search("dc=example", "(mail=a)", "subtree", ())
    assert opener.opened == opened
    assert all(connection.closed for connection in opener.connections[:opened])


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"* OK ready\r\n", "TLS: the port speaks no TLS"),
        (b"", "TLS: closed by the server; perhaps the port speaks no TLS"),
    ],
)
async def test_ldaps_where_something_else_listens(answer: bytes, problem: str) -> None:
    """The directory is right, the port is another service's."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if answer:
            await stream.send_all(answer)
            with suppress(trio.BrokenResourceError):
                await stream.receive_some()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), serve, 0)
        port = listener.socket.getsockname()[1]
        url = parse_ldap_url(f"ldaps://127.0.0.1:{port}")
        connector = Connector(url, ssl.create_default_context(), start_tls=False, connect_seconds=5)
        with pytest.raises(ServerFailed) as failure:
            await trio.to_thread.run_sync(connector.open, time.monotonic() + 5)
        nursery.cancel_scope.cancel()
    assert str(failure.value) == problem


def test_only_sensible_operations_are_counted_from_the_start() -> None:
    Counters("ldap://counted")
    lines = [line for line in exposition()[0].decode().splitlines() if 'server="ldap://counted"' in line]
    counted = {tuple(re.findall(r'(?:operation|outcome)="(\w+)"', line)) for line in lines} - {()}
    both = {(operation, outcome) for operation in ("connect", "bind", "search") for outcome in ("ok", "failed")}
    assert counted == {*both, ("bind", "no")}


async def test_a_server_that_is_down_is_not_asked() -> None:
    opener = FakeOpener([LATE])
    asked = server(opener)
    for _ in range(3):
        with pytest.raises(ServerFailed, match="no answer in time"):
            await asked.ask(bind, 5)
    assert opener.opened == 1
    assert not asked.up


async def test_a_failure_of_one_question_does_not_take_it_down() -> None:
    asked = server(FakeOpener([]))

    def question(connections: Connections) -> None:
        raise ServerFailed("busy with this one", down=False)

    with pytest.raises(ServerFailed):
        await asked.ask(question, 5)
    assert asked.up


async def test_too_many_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.auth.ldap.server.MAX_WAITING", -1)
    opener = FakeOpener([OK])
    asked = server(opener)
    with pytest.raises(ServerFailed, match="waiting"):
        await asked.ask(bind, 5)
    assert asked.up
    assert not opener.opened


async def test_a_refusal_is_an_answer() -> None:
    opener = FakeOpener([OK, NO, OK])
    asked = server(opener)

    def question(connections: Connections) -> None:
        bind(connections)
        raise Refused(Outcome.AUTHENTICATION_FAILED, "no")

    for _ in range(3):
        with pytest.raises(Refused):
            await asked.ask(question, 5)
    assert opener.opened == 1
    asked.close()


async def test_whoever_waits_is_sent_away_when_the_server_goes_down() -> None:
    opener = FakeOpener([LATE], [OK])
    asked = server(opener)
    failures: list[str] = []

    async def try_it() -> None:
        with pytest.raises(ServerFailed) as failure:
            await asked.ask(bind, 5)
        failures.append(str(failure.value))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(try_it)
    assert sorted(failures) == ["down: no answer in time"] * 19 + ["no answer in time"]
    assert opener.opened == 1
