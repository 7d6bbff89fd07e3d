"""A login at a backend, from the connection to the tagged OK, and every step where it can stick."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.backends.backend import SAMPLE_VISITOR, Backend
from proxy.backends.check import Check, Told
from proxy.backends.login import BackendSession
from proxy.backends.pool import Pool
from proxy.model import Credentials, Identity, Visitor
from proxy.outcome import Outcome, Refused
from proxy.settings.discovery_models import ProbeLogin
from proxy.settings.limit_models import LoginsPerBackend
from proxy.settings.models import Backends, Timeouts
from proxy.settings.secret import Secret
from proxy.transport.proxy_header import LOCAL_V1, LOCAL_V2, encode_v1, encode_v2
from tests.backends.conftest import LOOPBACK, Part, Resolver, Served

ANN = Identity("ann", "backend")
OFFERED = Credentials("LOGIN", "ann", "", b"right")
GREETING = b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready\r\n"
STARTTLS_GREETING = b"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] ready\r\n"
Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def backend(url: str, *, ca: Path | None = None, **timeouts: float) -> Backend:
    tls: dict[str, Any] = {} if ca is None else {"ca": str(ca)}
    settings = Backends.model_validate({"servers": [{"name": "d1", "url": url}], "tls": tls})
    return Pool(settings, Timeouts.model_validate(timeouts))["d1"]


async def opened(backend: Backend) -> BackendSession:
    with trio.fail_after(5):
        return await backend.open(ANN, OFFERED)


async def refusal(backend: Backend) -> Refused:
    with pytest.raises(Refused) as caught:
        await opened(backend)
    return caught.value


async def say(stream: Stream, data: bytes) -> None:
    await stream.send_all(data)


async def hear(stream: Stream) -> bytes:
    """One command, which the proxy sends in one piece."""
    return bytes(await stream.receive_some())


async def play(stream: Stream) -> None:
    await say(stream, GREETING)
    tag = (await hear(stream)).split()[0]
    await say(stream, b"* OK [ALERT] Soon closed\r\n" + tag + b" OK [CAPABILITY IMAP4rev1 IDLE] in\r\n* 3 EXISTS\r\n")


def inside_tls(context: ssl.SSLContext) -> Part:
    async def part(stream: trio.SocketStream) -> None:
        await play(trio.SSLStream(stream, context, server_side=True))

    return part


def after_starttls(context: ssl.SSLContext) -> Part:
    async def part(stream: trio.SocketStream) -> None:
        await say(stream, STARTTLS_GREETING)
        tag = (await hear(stream)).split()[0]
        await say(stream, tag + b" OK go on\r\n")
        inside = trio.SSLStream(stream, context, server_side=True)
        tag = (await hear(inside)).split()[0]
        await say(inside, b"* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n" + tag + b" OK\r\n")
        tag = (await hear(inside)).split()[0]
        await say(
            inside, b"* OK [ALERT] Soon closed\r\n" + tag + b" OK [CAPABILITY IMAP4rev1 IDLE] in\r\n* 3 EXISTS\r\n"
        )

    return part


@pytest.mark.parametrize("scheme", ["imap", "imaps", "imap+starttls"])
async def test_a_login_by_each_way(serve: Served, authority: trustme.CA, ca: Path, scheme: str) -> None:
    context = server_context(authority, LOOPBACK)
    parts: dict[str, Part] = {"imap": play, "imaps": inside_tls(context), "imap+starttls": after_starttls(context)}
    server = await serve(parts[scheme])
    session = await opened(backend(f"{scheme}://{LOOPBACK}:{server.port}", ca=ca))
    assert session.capability == (b"IMAP4rev1", b"IDLE")
    assert session.notes == (b"* OK [ALERT] Soon closed\r\n",)
    assert session.trailing_data == b"* 3 EXISTS\r\n"
    assert session.stream.secure is (scheme != "imap")
    assert session.connected_at <= trio.current_time()
    session.stream.close()
    await server.wait_until_gone()


# --- deadlines ---


async def say_nothing(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


@pytest.mark.parametrize(
    ("scheme", "step", "detail"),
    [
        ("imaps", "tls", "did not answer within 0.05 s"),
        ("imap", "greeting", "did not finish the login within 0.06 s"),
        ("imap+starttls", "greeting", "did not finish the login within 0.06 s"),
    ],
)
async def test_a_backend_that_says_nothing(serve: Served, ca: Path, scheme: str, step: str, detail: str) -> None:
    server = await serve(say_nothing)
    url = f"{scheme}://{LOOPBACK}:{server.port}"
    refused = await refusal(backend(url, ca=ca, backend_connect=0.05, backend_login=0.06))
    assert (refused.outcome, refused.step, refused.silent) == (Outcome.UNAVAILABLE, step, True)
    assert refused.detail == f"{LOOPBACK}:{server.port} {detail}"
    await server.wait_until_gone()


async def test_a_backend_that_hangs_in_its_handshake_after_starttls(serve: Served, ca: Path) -> None:
    async def hang(stream: trio.SocketStream) -> None:
        await say(stream, STARTTLS_GREETING)
        tag = (await hear(stream)).split()[0]
        await say(stream, tag + b" OK go on\r\n")
        await say_nothing(stream)

    server = await serve(hang)
    refused = await refusal(backend(f"imap+starttls://{LOOPBACK}:{server.port}", ca=ca, backend_login=0.05))
    assert refused.outcome is Outcome.UNAVAILABLE
    assert refused.step in ("starttls", "tls")
    await server.wait_until_gone()


async def test_a_backend_that_does_not_even_answer(mute: int) -> None:
    refused = await refusal(backend(f"imap://{LOOPBACK}:{mute}", backend_connect=0.05))
    assert (refused.outcome, refused.step) == (Outcome.UNAVAILABLE, "connect")
    assert refused.detail == f"{LOOPBACK}:{mute} did not answer within 0.05 s"


async def test_a_resolver_that_does_not_answer(resolver: Resolver) -> None:
    resolver.answer = None
    refused = await refusal(backend("imap://d1.example.org", backend_connect=0.05))
    assert refused.outcome is Outcome.UNAVAILABLE
    assert refused.step in ("resolve", "connect")


# --- TLS that fails ---


async def test_a_backend_that_closes_after_its_ok_to_starttls(serve: Served, ca: Path) -> None:
    async def close(stream: trio.SocketStream) -> None:
        await say(stream, STARTTLS_GREETING)
        tag = (await hear(stream)).split()[0]
        await say(stream, tag + b" OK go on\r\n")

    server = await serve(close)
    refused = await refusal(backend(f"imap+starttls://{LOOPBACK}:{server.port}", ca=ca))
    assert refused.outcome is Outcome.UNAVAILABLE
    assert refused.step in ("starttls", "tls")
    await server.wait_until_gone()


def unnamed_certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate with a common name alone, which vouches for itself: old administrators' work."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "unnamed.pem"
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    pem.write_bytes(
        certificate.public_bytes(encoding) + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return pem, context


@pytest.mark.parametrize("host", [LOOPBACK, "localhost"])
@pytest.mark.parametrize("scheme", ["imaps", "imap+starttls"])
async def test_a_certificate_without_a_name(
    serve: Served, tmp_path: Path, resolver: Resolver, scheme: str, host: str
) -> None:
    pem, context = unnamed_certificate(tmp_path)
    server = await serve(inside_tls(context) if scheme == "imaps" else after_starttls(context))
    resolver.answer = [(LOOPBACK, server.port)]
    refused = await refusal(backend(f"{scheme}://{host}:{server.port}", ca=pem))
    assert (refused.outcome, refused.step) == (Outcome.UNAVAILABLE, "tls")
    assert f"certificate is not for {host}: it names no host" in refused.detail
    await server.wait_until_gone()


async def test_a_certificate_for_another(serve: Served, authority: trustme.CA, ca: Path) -> None:
    server = await serve(inside_tls(server_context(authority, "other.example.org", "192.0.2.1")))
    refused = await refusal(backend(f"imaps://{LOOPBACK}:{server.port}", ca=ca))
    assert (refused.outcome, refused.step) == (Outcome.UNAVAILABLE, "tls")
    assert f"certificate is not for {LOOPBACK}: it names " in refused.detail
    assert "other.example.org" in refused.detail
    await server.wait_until_gone()


async def test_a_backend_that_speaks_no_tls(serve: Served, ca: Path) -> None:
    server = await serve(play)
    refused = await refusal(backend(f"imaps://{LOOPBACK}:{server.port}", ca=ca))
    assert (refused.outcome, refused.step) == (Outcome.UNAVAILABLE, "tls")
    assert refused.detail.startswith(f"TLS with {LOOPBACK}:{server.port} failed: ")
    await server.wait_until_gone()


# --- ends ---


async def reset(stream: trio.SocketStream) -> None:
    await say(stream, GREETING)
    await hear(stream)
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, (1).to_bytes(4, "little") + bytes(4))
    stream.socket.close()
    raise trio.BrokenResourceError


async def hang_up(stream: trio.SocketStream) -> None:
    await say(stream, GREETING)
    await hear(stream)


@pytest.mark.parametrize("part", [reset, hang_up])
async def test_a_backend_that_is_lost_during_the_login(serve: Served, part: Part) -> None:
    server = await serve(part)
    refused = await refusal(backend(f"imap://{LOOPBACK}:{server.port}"))
    assert (refused.outcome, refused.step, refused.silent) == (Outcome.UNAVAILABLE, "login", True)
    await server.wait_until_gone()


async def leave_id_unanswered(stream: trio.SocketStream) -> None:
    await say(stream, GREETING.replace(b" SASL-IR AUTH=PLAIN", b""))
    await say_nothing(stream)


async def leave_capability_unanswered(stream: trio.SocketStream) -> None:
    await say(stream, b"* OK ready\r\n")
    await say_nothing(stream)


@pytest.mark.parametrize(
    ("part", "secret", "step"),
    [
        (leave_capability_unanswered, b"right", "capability"),
        (leave_id_unanswered, b"\xff", "capability"),  # its literal waits for the answer to ID
        (leave_id_unanswered, b"right", "id"),
    ],
)
async def test_the_step_tells_whether_the_login_has_left(serve: Served, part: Part, secret: bytes, step: str) -> None:
    server = await serve(part)
    asked = probed(f"imap://{LOOPBACK}:{server.port}", client_address="id", backend_login=0.05)
    with pytest.raises(Refused) as caught, trio.fail_after(5):
        await asked.open(ANN, Credentials("LOGIN", "ann", "", secret), lambda: SAMPLE_VISITOR)
    assert (caught.value.step, caught.value.silent) == (step, True)
    await server.wait_until_gone()


async def greet_and_wait(stream: trio.SocketStream) -> None:
    await say(stream, GREETING)
    await say_nothing(stream)


@pytest.mark.parametrize(("scheme", "part"), [("imap", say_nothing), ("imap", greet_and_wait), ("imaps", say_nothing)])
async def test_a_cancelled_login_closes_the_connection(serve: Served, ca: Path, scheme: str, part: Part) -> None:
    server = await serve(part)
    with trio.move_on_after(0.03) as scope:
        await backend(f"{scheme}://{LOOPBACK}:{server.port}", ca=ca).open(ANN, OFFERED)
    assert scope.cancelled_caught
    await server.wait_until_gone()


async def test_a_refusal_of_the_backend_closes_the_connection(serve: Served) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await say(stream, GREETING)
        tag = (await hear(stream)).split()[0]
        await say(stream, tag + b" NO [EXPIRED] no more\r\n")
        await say_nothing(stream)

    server = await serve(refuse)
    refused = await refusal(backend(f"imap://{LOOPBACK}:{server.port}"))
    assert (refused.outcome, refused.step, refused.silent) == (Outcome.EXPIRED, "login", False)
    await server.wait_until_gone()


# --- the probe ---

METHODS: dict[str, dict[str, Any]] = {
    "password": {},
    "authzid": {"method": "authzid", "name": "porter", "password": {"env": "MASTER"}},
    "token": {"method": "token"},
}


def probed(
    url: str, method: str = "password", *, ca: Path | None = None, client_address: str = "none", **timeouts: float
) -> Backend:
    tls: dict[str, Any] = {} if ca is None else {"ca": str(ca)}
    servers = [{"name": "d1", "url": url, "client_address": client_address}]
    settings = Backends.model_validate({"servers": servers, "tls": tls, "login": METHODS[method]})
    return Pool(settings, Timeouts.model_validate(timeouts))["d1"]


async def be_probed(stream: Stream) -> None:
    await say(stream, GREETING)
    assert await hear(stream) == b"p1 LOGOUT\r\n"
    await say(stream, b"* BYE\r\np1 OK\r\n")


def probed_inside_tls(context: ssl.SSLContext) -> Part:
    async def part(stream: trio.SocketStream) -> None:
        await be_probed(trio.SSLStream(stream, context, server_side=True))

    return part


def probed_after_starttls(context: ssl.SSLContext) -> Part:
    async def part(stream: trio.SocketStream) -> None:
        await say(stream, STARTTLS_GREETING)
        await hear(stream)
        await say(stream, b"p1 OK go on\r\n")
        inside = trio.SSLStream(stream, context, server_side=True)
        await hear(inside)
        await say(inside, b"* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\np2 OK\r\n")
        assert await hear(inside) == b"p3 LOGOUT\r\n"

    return part


@pytest.mark.parametrize("scheme", ["imap", "imaps", "imap+starttls"])
async def test_a_probe_by_each_way(serve: Served, authority: trustme.CA, ca: Path, scheme: str) -> None:
    context = server_context(authority, LOOPBACK)
    parts: dict[str, Part] = {
        "imap": be_probed,
        "imaps": probed_inside_tls(context),
        "imap+starttls": probed_after_starttls(context),
    }
    server = await serve(parts[scheme])
    told = await probed(f"{scheme}://{LOOPBACK}:{server.port}", ca=ca).probe()
    assert told.capability == "IMAP4rev1 SASL-IR AUTH=PLAIN"
    assert told.greeting == "ready"
    assert told.seconds >= 0
    assert (told.certificate is not None) is (scheme != "imap")
    if told.certificate is not None:
        assert told.certificate.names == (LOOPBACK,)
    await server.wait_until_gone()


async def greet_without_plain(stream: trio.SocketStream) -> None:
    await say(stream, b"* OK [CAPABILITY IMAP4rev1 AUTH=CRAM-MD5] ready\r\n")
    await say_nothing(stream)


@pytest.mark.parametrize(
    ("scheme", "part", "method", "step", "detail"),
    [
        ("imaps", say_nothing, "password", "tls", "did not answer within 0.11 s"),
        ("imap", say_nothing, "password", "greeting", "did not answer within 0.11 s"),
        ("imaps", greet_and_wait, "password", "tls", "TLS with "),
        ("imap+starttls", greet_and_wait, "password", "starttls", "the backend offers no STARTTLS"),
        ("imap", greet_without_plain, "authzid", "login", "the backend offers no AUTH=PLAIN"),
        ("imap", greet_and_wait, "token", "login", "the backend offers neither AUTH=XOAUTH2 nor AUTH=OAUTHBEARER"),
    ],
)
async def test_a_probe_that_sticks(
    serve: Served,
    ca: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    part: Part,
    method: str,
    step: str,
    detail: str,
) -> None:
    monkeypatch.setenv("MASTER", "s3cret")
    server = await serve(part)
    url = f"{scheme}://{LOOPBACK}:{server.port}"
    timeouts: dict[str, Any] = {"backend_connect": 0.05, "backend_login": 0.06} if part is say_nothing else {}
    with pytest.raises(Refused) as caught:
        await probed(url, method, ca=ca, **timeouts).probe()
    assert (caught.value.outcome, caught.value.step) == (Outcome.UNAVAILABLE, step)
    assert detail in caught.value.detail
    await server.wait_until_gone()


async def test_a_probe_of_nobody(refusing: int, mute: int) -> None:
    for port, detail in ((refusing, "cannot connect to "), (mute, "did not answer within 0.1 s")):
        with pytest.raises(Refused) as caught:
            await probed(f"imap://{LOOPBACK}:{port}", backend_connect=0.05, backend_login=0.05).probe()
        assert (caught.value.outcome, caught.value.step) == (Outcome.UNAVAILABLE, "connect")
        assert detail in caught.value.detail


# --- the client's address ---


async def hear_header(stream: trio.SocketStream, length: int) -> bytes:
    """So many octets and not one more: TLS may follow."""
    heard = b""
    while len(heard) < length:
        heard += bytes(await stream.receive_some(length - len(heard)))
    return heard


HEADERS = {
    "proxy_v1": (encode_v1(SAMPLE_VISITOR), LOCAL_V1),
    "proxy_v2": (encode_v2(SAMPLE_VISITOR), LOCAL_V2),
}


@pytest.mark.parametrize("scheme", ["imap", "imaps", "imap+starttls"])
@pytest.mark.parametrize("client_address", HEADERS)
async def test_a_proxy_header_comes_before_everything(
    serve: Served, authority: trustme.CA, ca: Path, scheme: str, client_address: str
) -> None:
    context = server_context(authority, LOOPBACK)
    parts: dict[str, Part] = {"imap": play, "imaps": inside_tls(context), "imap+starttls": after_starttls(context)}
    expected = HEADERS[client_address][0]
    heard = []

    async def behind_header(stream: trio.SocketStream) -> None:
        heard.append(await hear_header(stream, len(expected)))
        await parts[scheme](stream)

    server = await serve(behind_header)
    asked = probed(f"{scheme}://{LOOPBACK}:{server.port}", ca=ca, client_address=client_address)
    with trio.fail_after(5):
        session = await asked.open(ANN, OFFERED, lambda: SAMPLE_VISITOR)
    session.stream.close()
    assert heard == [expected]


async def test_header_and_client_hello_leave_in_one_segment(serve: Served, ca: Path) -> None:
    heard: list[bytes] = []

    async def listen(stream: trio.SocketStream) -> None:
        heard.append(bytes(await stream.receive_some()))

    server = await serve(listen)
    asked = probed(f"imaps://{LOOPBACK}:{server.port}", ca=ca, client_address="proxy_v1")
    with pytest.raises(Refused), trio.fail_after(5):
        await asked.open(ANN, OFFERED, lambda: SAMPLE_VISITOR)
    header = encode_v1(SAMPLE_VISITOR)
    assert heard[0].startswith(header)
    assert len(heard[0]) > len(header) + 100


async def test_id_goes_before_the_login_in_one_flight(serve: Served) -> None:
    heard: list[bytes] = []

    async def part(stream: trio.SocketStream) -> None:
        await say(stream, GREETING)
        heard.append(await hear(stream))
        await say(stream, b"* ID NIL\r\np1 OK\r\np2 OK [CAPABILITY IMAP4rev1] in\r\n")

    server = await serve(part)
    asked = probed(f"imap://{LOOPBACK}:{server.port}", client_address="id")
    with trio.fail_after(5):
        session = await asked.open(ANN, OFFERED, lambda: SAMPLE_VISITOR)
    session.stream.close()
    identification, login = heard[0].splitlines()
    assert identification.startswith(b'p1 ID ("x-originating-ip" "192.0.2.1" "x-originating-port" "40000" ')
    assert login == b'p2 LOGIN "ann" "right"'


async def test_a_client_is_told_of_only_where_that_is_asked_for(serve: Served) -> None:
    server = await serve(play)
    asked = 0

    def visitor() -> Visitor:
        nonlocal asked
        asked += 1
        return SAMPLE_VISITOR

    with trio.fail_after(5):
        session = await backend(f"imap://{LOOPBACK}:{server.port}").open(ANN, OFFERED, visitor)
    session.stream.close()
    assert asked == 0


async def test_a_connection_lost_at_the_header(serve: Served) -> None:
    async def close_at_once(stream: trio.SocketStream) -> None:
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, (1).to_bytes(4, "little") + bytes(4))
        stream.socket.close()
        raise trio.BrokenResourceError

    server = await serve(close_at_once)
    asked = probed(f"imap://{LOOPBACK}:{server.port}", client_address="proxy_v2")
    with pytest.raises(Refused) as caught, trio.fail_after(5):
        await asked.open(ANN, OFFERED, lambda: SAMPLE_VISITOR)
    assert caught.value.outcome is Outcome.UNAVAILABLE
    assert caught.value.step in ("connect", "greeting")


# --- checks ---


async def checked(check: Check) -> Check:
    with trio.fail_after(5):
        await check.run()
    return check


@pytest.mark.parametrize("scheme", ["imap", "imaps", "imap+starttls"])
@pytest.mark.parametrize("client_address", HEADERS)
async def test_a_check_speaks_for_itself(
    serve: Served, authority: trustme.CA, ca: Path, scheme: str, client_address: str
) -> None:
    context = server_context(authority, LOOPBACK)
    parts: dict[str, Part] = {
        "imap": be_probed,
        "imaps": probed_inside_tls(context),
        "imap+starttls": probed_after_starttls(context),
    }
    local = HEADERS[client_address][1]
    heard = []

    async def behind_header(stream: trio.SocketStream) -> None:
        heard.append(await hear_header(stream, len(local)))
        await parts[scheme](stream)

    server = await serve(behind_header)
    asked = probed(f"{scheme}://{LOOPBACK}:{server.port}", ca=ca, client_address=client_address)
    await checked(asked.check())
    assert heard == [local]
    await server.wait_until_gone()


PROBE_LOGIN = ProbeLogin(name="probe", password=Secret("env", "PROBE", b"pr0be"))


async def test_a_check_logs_in_and_takes_leave(serve: Served) -> None:
    said: list[bytes] = []

    async def part(stream: trio.SocketStream) -> None:
        await say(stream, GREETING)
        said.append(await hear(stream))
        await say(stream, b"p1 OK [CAPABILITY IMAP4rev1] in\r\n")
        said.append(await hear(stream))
        await say(stream, b"* BYE\r\nbye OK\r\n")

    server = await serve(part)
    # As the master elsewhere: the probe logs in with its own name and password.
    await checked(probed(f"imap://{LOOPBACK}:{server.port}", "token").check(PROBE_LOGIN))
    assert said == [b'p1 LOGIN "probe" "pr0be"\r\n', b"bye LOGOUT\r\n"]
    await server.wait_until_gone()


async def test_a_check_whose_login_is_refused(serve: Served) -> None:
    async def part(stream: trio.SocketStream) -> None:
        await say(stream, GREETING)
        await hear(stream)
        await say(stream, b"p1 NO not pr0be\r\n")

    server = await serve(part)
    with pytest.raises(Refused) as caught:
        await checked(probed(f"imap://{LOOPBACK}:{server.port}").check(PROBE_LOGIN))
    assert (caught.value.step, caught.value.detail) == ("login", "login refused: NO not ***")


@pytest.mark.parametrize(
    ("scheme", "part", "step"),
    [("imap", say_nothing, "greeting"), ("imaps", say_nothing, "tls"), ("imap", greet_and_wait, "login")],
)
async def test_a_check_knows_where_it_stood(serve: Served, ca: Path, scheme: str, part: Part, step: str) -> None:
    server = await serve(part)
    check = probed(f"{scheme}://{LOOPBACK}:{server.port}", ca=ca).check(PROBE_LOGIN)
    with trio.move_on_after(0.05) as scope:
        await check.run()
    assert scope.cancelled_caught
    assert check.step == step
    await server.wait_until_gone()


async def test_a_check_waits_for_no_turn(serve: Served) -> None:
    logins = await serve(say_nothing)
    settings = Backends.model_validate({"servers": [{"name": "d1", "url": f"imap://{LOOPBACK}:{logins.port}"}]})
    full = Pool(settings, Timeouts(), limits=LoginsPerBackend(at_once=1, waiting=0))["d1"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(full.open, ANN, OFFERED)
        await logins.wait_until_accepted()
        refused = await refusal(full)
        assert (refused.outcome, refused.step) == (Outcome.UNAVAILABLE, "queue")
        with trio.move_on_after(0.1):
            await full.check().run()
        assert logins.accepted == 2
        nursery.cancel_scope.cancel()


# --- words of a backend ---


@pytest.mark.parametrize(
    ("greeting", "identification", "saw"),
    [
        ("Dovecot ready.", "NIL", ""),
        ("ready for 192.0.2.1.", "", "192.0.2.1"),
        ("ready for 192.0.2.11", '("a" "192.0.2.100")', ""),
        ("hello [2001:DB8::1]:993", "", "2001:db8::1"),
        ("2.3.19.1 at 12:30:11, 999.1.1.1", '("remote" "10.0.0.9")', "10.0.0.9"),
        ("192.0.2.1 by 10.0.0.9", "", "192.0.2.1"),
    ],
)
def test_whom_a_backends_words_name(greeting: str, identification: str, saw: str) -> None:
    told = Told("", None, 0.0, greeting, identification)
    assert told.named(["192.0.2.1", "2001:db8::1", "10.0.0.9"]) == saw
