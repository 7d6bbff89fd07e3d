"""nginx's `auth_http`: the same questions as nginx asks, and what each answer comes to."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.auth import http
from proxy.auth.http import HttpSource, escape
from proxy.auth.names import NameRules
from proxy.auth.source import Answer
from proxy.model import Credentials, Endpoint, Identity, Origin
from proxy.outcome import Outcome, Refused
from proxy.settings.models import HttpIdentity
from tests.servers.auth_service import REFUSAL, AuthService, Person, Question, Reply
from tests.servers.nginx_mail import NginxMail, write_nginx_mail
from tests.servers.pki import Pki, write_pki
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.wire import Wire

MakeSource = Callable[..., HttpSource]
NAME, PASSWORD = "ann@example.org", "right-pw-5t"
LOCAL = Origin(Endpoint(LOOPBACK, 40001))
KEY = {"X-Auth-Key": "key-3f"}


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    taken = Ports()
    yield taken
    taken.close()


@pytest.fixture
def service(ports: Ports) -> Iterator[AuthService]:
    with AuthService(ports.take(), {NAME: Person(PASSWORD.encode())}) as running:
        yield running


@pytest.fixture
async def source_for(rules: NameRules) -> AsyncIterator[MakeSource]:
    """Makes sources for a URL, with other settings by keyword."""
    made: list[HttpSource] = []

    def make(url: str, **settings: Any) -> HttpSource:
        made.append(HttpSource(HttpIdentity.model_validate({"url": url, **settings}), rules))
        return made[-1]

    yield make
    for source in made:
        await source.close()


async def ask(
    source: HttpSource, name: str = NAME, password: bytes = PASSWORD.encode(), origin: Origin = LOCAL
) -> Answer:
    return await source.authenticate(Credentials("LOGIN", name, "", password), name, origin)


async def refusal_of(source: HttpSource) -> Refused:
    with pytest.raises(Refused) as caught:
        await ask(source)
    assert PASSWORD not in repr(caught.value)
    return caught.value


# --- the question, beside nginx's own ---

# What differs on purpose.
KEPT_DIFFERENCES = {
    "accept": "of HTTP/1.1's clients; the body is not read either way",
    "accept-encoding": "of HTTP/1.1's clients: nothing compressed",
    "connection": "kept, where nginx makes a new one for each question",
    "user-agent": "says who asks, for the service's log",
    "auth-ssl-protocol": "not known where identity sources are asked",
    "auth-ssl-cipher": "not known where identity sources are asked",
}

# By mechanism, name and password. A name that NameRules lets through has no blank in it; the escape is the same.
LOGINS = [
    ("PLAIN", "ann@example.org", b"simple"),
    ("LOGIN", "ann@example.org", b"simple"),
    ("LOGIN", "ann", b"two words"),
    ("PLAIN", "ann", b" blank before and behind "),
    ("PLAIN", "ann b", b"100%"),
    ("PLAIN", "50%ann", b"%41%20%zz"),
    ("PLAIN", "ann+folder@example.org", b"a+b"),
    ("PLAIN", "o'ann", b'"it\'s" \\ `quoted`'),
    ("PLAIN", "jörg@exämple.org", "pässwörd Å…€ 🔑".encode()),
    ("PLAIN", "ann", b"latin-1 \xe9\xff\xa0\x85"),
    ("PLAIN", "ann", b"controls \x01\t\r\n\x0b\x0c\x1f\x7f"),
    ("PLAIN", "ann", b":;,=&?#/<>[]{}|~!@$^*()"),
]


@pytest.fixture(scope="module")
def asked(ports: Ports) -> Iterator[AuthService]:
    """The service that nginx asks, and the source after it."""
    with AuthService(ports.take()) as running:
        yield running


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return write_pki(tmp_path_factory.mktemp("auth-http") / "pki")


@pytest.fixture(scope="module")
def nginx(asked: AuthService, pki: Pki, ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NginxMail]:
    running = write_nginx_mail(tmp_path_factory.mktemp("auth-http") / "nginx", asked.url, pki, ports, KEY)
    running.start()
    yield running
    running.stop()


def log_in(wire: Wire, mechanism: str, name: str, password: bytes) -> bytes:
    """A login at nginx; the tagged line without its tag."""
    if mechanism == "LOGIN":
        return wire.login(name, password.decode())
    wire.send(b"p1 AUTHENTICATE PLAIN\r\n")
    assert wire.line().startswith(b"+")
    wire.send(base64.b64encode(b"\0" + name.encode() + b"\0" + password) + b"\r\n")
    return wire.until(b"p1")[-1].split(b" ", 1)[1]


def compared(question: Question) -> dict[str, bytes]:
    """What has to be alike."""
    return {name: value for name, value in question.fields if name.lower() not in KEPT_DIFFERENCES}


@pytest.mark.server
@pytest.mark.parametrize(("mechanism", "name", "password"), LOGINS)
async def test_service_hears_what_it_heard_from_nginx(
    nginx: NginxMail, asked: AuthService, source_for: MakeSource, mechanism: str, name: str, password: bytes
) -> None:
    with Wire.connect(nginx.imap_port) as wire:
        assert log_in(wire, mechanism, name, password).startswith(b"NO ")
    theirs = asked.questions[-1]
    with pytest.raises(Refused):
        await ask(source_for(asked.url, headers=KEY), name, password)
    ours = asked.questions[-1]
    assert theirs is not ours
    assert compared(ours) == compared(theirs)
    assert len(compared(ours)) == len([each for each, _ in ours.fields if each.lower() not in KEPT_DIFFERENCES])
    assert (theirs.line, ours.line) == ("GET /auth HTTP/1.0", "GET /auth HTTP/1.1")


@pytest.mark.server
async def test_inside_tls_and_at_the_second_try(
    nginx: NginxMail, asked: AuthService, source_for: MakeSource, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "refusal", {**REFUSAL, "Auth-Wait": "1"})  # without it nginx ends the connection
    with Wire.connect(nginx.imaps_port, pki.client_context()) as wire:
        for _ in range(2):
            assert log_in(wire, "PLAIN", NAME, b"wrong") == b"NO Invalid login or password"
    theirs = asked.questions[-1]
    with pytest.raises(Refused):
        await ask(source_for(asked.url, headers=KEY), NAME, b"wrong", Origin(LOCAL.client, secure=True, tries=2))
    ours = asked.questions[-1]
    assert compared(ours) == compared(theirs)
    assert (ours["Auth-SSL"], ours["Auth-Login-Attempt"]) == (b"on", b"2")
    differing = {each.lower() for each, _ in ours.fields} ^ {each.lower() for each, _ in theirs.fields}
    assert differing == set(KEPT_DIFFERENCES)


def test_every_octet_is_escaped_or_not_as_nginx_has_it() -> None:
    escaped = {octet for octet in range(256) if escape(bytes([octet])) != bytes([octet])}
    assert escaped == {*range(0x21), ord("%")}
    assert escape(b"\x0a%\xff") == b"%0A%25\xff"


# --- the question, by itself ---


async def test_question_by_itself(service: AuthService, source_for: MakeSource) -> None:
    origin = Origin(Endpoint("2001:db8::7", 40001), secure=False, tries=3)
    assert await ask(source_for(service.url), origin=origin) == Identity(NAME, "http")
    (question,) = service.questions
    assert question["Host"] == LOOPBACK.encode()
    assert question["Client-IP"] == b"2001:db8::7"
    assert question["Auth-Login-Attempt"] == b"3"
    assert "Auth-SSL" not in question
    assert "Auth-Salt" not in question
    assert "Client-Host" not in question


async def test_only_the_canonical_name_is_sent(service: AuthService, source_for: MakeSource) -> None:
    await source_for(service.url).authenticate(Credentials("PLAIN", "ANN", "", PASSWORD.encode()), NAME, LOCAL)
    assert service.questions[0]["Auth-User"] == NAME.encode()


async def test_fields_of_the_settings(
    service: AuthService, source_for: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_AUTH_KEY", " secret key ")
    await ask(source_for(service.url, headers={"X-Auth-Key": {"env": "TEST_AUTH_KEY"}, "host": "auth.example.org"}))
    assert service.questions[0]["X-Auth-Key"] == b"secret key"
    assert service.questions[0]["Host"] == b"auth.example.org"


async def test_one_login_tells_nothing_to_the_next(service: AuthService, source_for: MakeSource) -> None:
    service.people[NAME] = Person(PASSWORD.encode(), {"Set-Cookie": "session=of-ann; Path=/"})
    source = source_for(service.url)
    for _ in range(2):
        await ask(source)
    assert "Cookie" not in service.questions[1]


# --- the answer ---


def raw(octets: bytes) -> Reply:
    return Reply(raw=octets)


OK = {"Auth-Status": "OK"}
YES_OCTETS = b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\n"
YES = [
    ("a bare yes", Reply(OK), Identity(NAME, "http")),
    ("204", Reply(OK, status=204), Identity(NAME, "http")),
    ("a body", Reply(OK, body=b"Auth-Server: 10.0.0.66\r\n" * 9), Identity(NAME, "http")),
    ("wait", Reply({**OK, "Auth-Wait": "3"}), Identity(NAME, "http")),
    ("other case", Reply({"auth-status": "OK", "AUTH-SERVER": "d1"}), Identity(NAME, "http", "d1")),
    ("no place", Reply({**OK, "Auth-Server": ""}), Identity(NAME, "http")),
    ("place", Reply({**OK, "Auth-Server": "10.0.0.11", "Auth-Port": "143"}), Identity(NAME, "http", "10.0.0.11:143")),
    ("no port", Reply({**OK, "Auth-Server": "10.0.0.11"}), Identity(NAME, "http", "10.0.0.11")),
    ("IPv6", Reply({**OK, "Auth-Server": "2001:db8::1", "Auth-Port": "1"}), Identity(NAME, "http", "[2001:db8::1]:1")),
    ("brackets", Reply({**OK, "Auth-Server": "[::1]", "Auth-Port": "65535"}), Identity(NAME, "http", "[::1]:65535")),
    ("IPv6, no port", Reply({**OK, "Auth-Server": "::1"}), Identity(NAME, "http", "::1")),
    ("name", Reply({**OK, "Auth-Server": "M_1.example.org"}), Identity(NAME, "http", "M_1.example.org")),
    ("user", Reply({**OK, "Auth-User": "Bob"}), Identity("bob@example.org", "http")),
    ("user in UTF-8", Reply({**OK, "Auth-User": "JÖRG@a.b".encode()}), Identity("jörg@a.b", "http")),
    ("user, nothing unescaped", Reply({**OK, "Auth-User": "b%6Fb"}), Identity("b%6fb@example.org", "http")),
    ("password", Reply({**OK, "Auth-Pass": "a b"}), Identity(NAME, "http", backend_secret=b"a b")),
    ("password, nothing unescaped", Reply({**OK, "Auth-Pass": "%41+"}), Identity(NAME, "http", backend_secret=b"%41+")),
    (
        "password in UTF-8",
        Reply({**OK, "Auth-Pass": "ä€".encode()}),
        Identity(NAME, "http", backend_secret="ä€".encode()),
    ),
    ("password in Latin-1", Reply({**OK, "Auth-Pass": b"p\xe4ss"}), Identity(NAME, "http", backend_secret=b"p\xe4ss")),
    (
        "password in UTF-8 beside a note in Latin-1",
        Reply({**OK, "Auth-Pass": "ä€".encode(), "X-Note": b"\xe4"}),
        Identity(NAME, "http", backend_secret="ä€".encode()),
    ),
    ("other fields twice", raw(YES_OCTETS + b"X-A: 1\r\nX-A: 2\r\n\r\n"), Identity(NAME, "http")),
]


@pytest.mark.parametrize(("name", "reply", "identity"), YES)
async def test_yes(service: AuthService, source_for: MakeSource, name: str, reply: Reply, identity: Identity) -> None:
    service.reply = reply
    found = await ask(source_for(service.url))
    assert found == identity
    assert isinstance(found, Identity)
    assert found.verified


NO = [
    ("as nginx's page has it", Reply(REFUSAL), 0.0, 'the service says "Invalid login or password"'),
    ("wait", Reply({**REFUSAL, "Auth-Wait": "3"}), 3.0, "Invalid"),
    ("wait for ever", Reply({**REFUSAL, "Auth-Wait": "99999"}), 60.0, "Invalid"),
    ("wait, no number", Reply({**REFUSAL, "Auth-Wait": "soon"}), 0.0, "Invalid"),
    ("wait, negative", Reply({**REFUSAL, "Auth-Wait": "-1"}), 0.0, "Invalid"),
    ("small letters", Reply({"Auth-Status": "ok"}), 0.0, '"ok"'),
    ("401", Reply(REFUSAL, status=401), 0.0, "Invalid"),
    ("403", Reply({**REFUSAL, "Auth-Wait": "2"}, status=403), 2.0, "Invalid"),
    ("code", Reply({**REFUSAL, "Auth-Error-Code": "535 5.7.8"}), 0.0, '", code "535 5.7.8"'),
    ("place all the same", Reply({**REFUSAL, "Auth-Server": "?", "Auth-Port": "?"}), 0.0, "Invalid"),
    ("long", Reply({"Auth-Status": "x" * 5000}), 0.0, '"' + "x" * 200 + '"'),
]


@pytest.mark.parametrize(("name", "reply", "wait", "detail"), NO)
async def test_no(
    service: AuthService, source_for: MakeSource, name: str, reply: Reply, wait: float, detail: str
) -> None:
    service.reply = reply
    refusal = await refusal_of(source_for(service.url))
    assert (refusal.outcome, refusal.wait_seconds) == (Outcome.AUTHENTICATION_FAILED, wait)
    assert detail in refusal.detail
    assert len(refusal.detail) < 500


UNUSABLE = [
    ("500", Reply(status=500), "HTTP status 500 without Auth-Status"),
    ("500, a refusal", Reply(REFUSAL, status=500), 'HTTP status 500 with Auth-Status "Invalid login or password"'),
    ("503, a yes", Reply(OK, status=503), "HTTP status 503"),
    ("404", Reply(status=404), "HTTP status 404"),
    ("429, a refusal", Reply(REFUSAL, status=429), "HTTP status 429"),
    ("401, a yes", Reply(OK, status=401), "HTTP status 401"),
    ("403, our key is wrong", Reply(status=403), "HTTP status 403 without Auth-Status"),
    ("redirect", Reply({**OK, "Location": "/auth2"}, status=302), "HTTP status 302"),
    ("no status", Reply({"Auth-Server": "10.0.0.11"}), "without Auth-Status"),
    ("empty status", Reply({"Auth-Status": ""}), "without Auth-Status"),
    ("port only", Reply({**OK, "Auth-Port": "143"}), "Auth-Port without Auth-Server"),
    ("empty server", Reply({**OK, "Auth-Server": "", "Auth-Port": "143"}), "Auth-Port without Auth-Server"),
    ("port 0", Reply({**OK, "Auth-Server": "d1", "Auth-Port": "0"}), 'Auth-Port is no port: "0"'),
    ("port 65536", Reply({**OK, "Auth-Server": "d1", "Auth-Port": "65536"}), "Auth-Port is no port"),
    ("port with a sign", Reply({**OK, "Auth-Server": "d1", "Auth-Port": "+143"}), "Auth-Port is no port"),
    ("wide digits", Reply({**OK, "Auth-Server": "d1", "Auth-Port": "１４３".encode()}), "Auth-Port is no port"),
    ("port in the server", Reply({**OK, "Auth-Server": "10.0.0.11:143"}), "Auth-Server is no host"),
    ("two words", Reply({**OK, "Auth-Server": "10.0.0.11 d2"}), "Auth-Server is no host"),
    ("URL", Reply({**OK, "Auth-Server": "imap://d1/"}), "Auth-Server is no host"),
    ("empty brackets", Reply({**OK, "Auth-Server": "[]"}), "Auth-Server is no host"),
    ("no name", Reply({**OK, "Auth-User": "a@b@c"}), "Auth-User: the name has more than one"),
    ("master separator", Reply({**OK, "Auth-User": "ann*master"}), "Auth-User: the name contains the master"),
    ("empty name", Reply({**OK, "Auth-User": ""}), "Auth-User: the name is empty"),
    ("empty password", Reply({**OK, "Auth-Pass": ""}), "Auth-Pass has 0 octets"),
    ("long password", Reply({**OK, "Auth-Pass": "s3cr3t" * 1000}), "Auth-Pass has 6000 octets"),
    ("large body", Reply(OK, body=b"x" * 70_000), "larger than 65536 octets"),
    ("large header", Reply({**OK, "X-Long": "x" * 200_000}), ""),
    ("server twice", raw(YES_OCTETS + b"Auth-Server: a\r\nAuth-Server: b\r\n\r\n"), "auth-server comes more than once"),
    ("password twice", raw(YES_OCTETS + b"Auth-Pass: s3cr3t\r\nAUTH-PASS: x\r\n\r\n"), "auth-pass comes more than"),
    ("user twice", raw(YES_OCTETS + b"Auth-User: a\r\nAuth-User: a\r\n\r\n"), "auth-user comes more than once"),
    ("yes twice", raw(YES_OCTETS + b"Auth-Status: OK\r\n\r\n"), "auth-status comes more than once"),
    ("yes and no", raw(YES_OCTETS + b"Auth-Status: Invalid\r\n\r\n"), "auth-status comes more than once"),
    ("long twice", raw(YES_OCTETS + (b"Auth-" + b"x" * 500 + b": 1\r\n") * 2 + b"\r\n"), "xx comes more than once"),
    ("user in wide letters", Reply({**OK, "Auth-User": "ａnn".encode()}), "Auth-User: the name holds characters that"),
    ("user in Latin-1", Reply({**OK, "Auth-User": b"j\xf6rg"}), "Auth-User: the name contains U+DCF6"),
    ("NUL", raw(b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Pass: s3cr3t\0x\r\n\r\n"), "RemoteProtocolError"),
    ("CR", raw(b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Pass: s3cr3t\rAuth-User: eve\r\n\r\n"), "RemoteProtocol"),
    ("cut short", raw(b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nAuth-Se"), ""),
    ("silent end", raw(b""), ""),
    ("no HTTP", raw(b"* OK IMAP4rev1 ready\r\n"), ""),
]


@pytest.mark.parametrize(("name", "reply", "detail"), UNUSABLE)
async def test_unusable(service: AuthService, source_for: MakeSource, name: str, reply: Reply, detail: str) -> None:
    service.reply = reply
    refusal = await refusal_of(source_for(service.url))
    assert refusal.outcome is Outcome.UNAVAILABLE
    assert detail in refusal.detail
    assert refusal.detail
    assert "s3cr3t" not in refusal.detail
    assert len(service.questions) == 1


async def test_wait_is_no_answer(service: AuthService, source_for: MakeSource) -> None:
    service.reply = Reply({"Auth-Status": "WAIT", "Auth-Wait": "5"})
    refusal = await refusal_of(source_for(service.url))
    assert (refusal.outcome, refusal.wait_seconds) == (Outcome.UNAVAILABLE, 5.0)


async def test_service_is_down_and_comes_back(service: AuthService, source_for: MakeSource) -> None:
    source = source_for(service.url)
    await ask(source)
    service.stop()
    for _ in range(2):
        assert (await refusal_of(source)).outcome is Outcome.UNAVAILABLE
    service.start()
    assert await ask(source) == Identity(NAME, "http")


async def test_service_keeps_silent(service: AuthService, source_for: MakeSource) -> None:
    service.answering.clear()
    refusal = await refusal_of(source_for(service.url, timeout="200ms"))
    assert (refusal.outcome, refusal.detail) == (Outcome.UNAVAILABLE, "no answer within 0.2 s")


async def test_questions_under_way_are_bounded(
    service: AuthService, source_for: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_MOST_UNDER_WAY", 2)
    service.answering.clear()
    source = source_for(service.url)
    answers: list[Answer] = []

    async def log_in(scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await ask(source))

    gone = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_in, trio.CancelScope())
        nursery.start_soon(log_in, gone)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await refusal_of(source)).detail == "2 questions are under way already"
        gone.cancel()  # whoever goes makes room
        await trio.testing.wait_all_tasks_blocked(0.01)
        service.answering.set()
        answers.append(await ask(source))
    assert answers == [Identity(NAME, "http")] * 2


# --- the probe ---


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_probe_takes_any_answer(service: AuthService, source_for: MakeSource, status: int) -> None:
    service.reply = Reply(status=status)
    (probe,) = await source_for(f"{service.url}?key=s3cr3t", headers=KEY).probe()
    assert (probe.what, probe.problem) == (f"{service.url}: request", "")
    assert probe.detail == f"HTTP status {status}"
    (question,) = service.questions
    assert question["X-Auth-Key"] == b"key-3f"
    assert not [name for name, _ in question.fields if name.lower().startswith("auth-")]


async def test_probe_of_nobody(source_for: MakeSource, ports: Ports) -> None:
    (probe,) = await source_for(f"http://{LOOPBACK}:{ports.take()}/auth").probe()
    assert probe.problem


async def test_certificate_is_verified(service: AuthService, source_for: MakeSource, tmp_path: Path) -> None:
    ca = write_pki(tmp_path / "pki").ca
    (probe,) = await source_for(f"https://{LOOPBACK}:{service.port}/auth", ca=str(ca)).probe()
    assert "ConnectError" in probe.problem
