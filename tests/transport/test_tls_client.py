"""TLS towards backends: whom it trusts, what it says of those it does not, and which sessions it takes up again."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtensionOID
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1

from proxy.settings.backend_models import BackendTls
from proxy.transport.stream import ConnectionLost
from proxy.transport.tls import Context, ServerCertificates, TlsFailed, TlsStream, accept_tls
from proxy.transport.tls_client import SessionFailed, TlsClient, client_context, resumed
from tests.servers.pki import Pki

Issue = Callable[..., Context]
VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
every_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def issue(authority: trustme.CA, tmp_path: Path) -> Issue:
    """Makes a server's context with a certificate for some names."""

    def issue(*names: str, not_after: datetime | None = None, version: str = "1.2") -> Context:
        leaf = authority.issue_cert(*names, not_after=not_after)
        chain, key = tmp_path / "server.crt", tmp_path / "server.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(key)
        return ServerCertificates([(chain, key)], version).base_context()

    return issue


def trusting(ca: Path, version: str = "1.3") -> Context:
    context = client_context(BackendTls(ca=ca))
    context.set_max_proto_version(VERSIONS[version])
    return context


async def visit(client: TlsClient, server: Context, *, keep: bool = True, fresh: bool = False) -> TlsStream:
    """A connection up to its greeting, and what it leaves to the next one.

    Raises:
        TlsFailed: As connect().
    """
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    failure: TlsFailed | None = None

    async def greet() -> None:
        with there:
            try:
                stream = await accept_tls(there, server, speaks_first=True)
                await stream.send(b"* OK\r\n")
                while await stream.receive():
                    pass
            except (TlsFailed, ConnectionLost):
                pass

    with here, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(greet)
            try:
                connected = await client.connect(here, fresh=fresh)
                assert await connected.receive() == b"* OK\r\n"
                if keep:
                    client.keep(connected)
                connected.end_sending()
            except TlsFailed as exc:
                failure = exc
            here.close()
    if failure is not None:
        raise failure
    return connected


# --- whom it trusts ---


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "::1", "a.wild.example", "bücher.example"])
async def test_a_certificate_for_the_expected_name(issue: Issue, ca: Path, name: str) -> None:
    server = issue("localhost", "127.0.0.1", "::1", "*.wild.example", "bücher.example")
    client = TlsClient(trusting(ca), name)
    stream = await visit(client, server)
    assert client.certificate(stream).name_problem == ""


NAMES = [
    ("localhost", "certificate is not for localhost: it names other.example, third.example, 192.0.2.1"),
    ("192.0.2.2", "certificate is not for 192.0.2.2: it names other.example, third.example, 192.0.2.1"),
    ("a.b", "certificate is not for a.b: it names other.example, third.example, 192.0.2.1"),
]


@every_version
@pytest.mark.parametrize(("expected", "told"), NAMES)
async def test_another_name_is_refused_and_both_are_told(
    issue: Issue, ca: Path, expected: str, told: str, version: str
) -> None:
    server = issue("other.example", "third.example", "192.0.2.1")
    with pytest.raises(TlsFailed) as caught:
        await visit(TlsClient(trusting(ca, version), expected), server)
    assert (caught.value.reason, str(caught.value)) == ("name", told)


async def test_of_many_names_some_are_told(issue: Issue, ca: Path) -> None:
    server = issue(*(f"n{number}.example" for number in range(10)))
    with pytest.raises(TlsFailed, match=r"it names n0\.example, .*, n7\.example and 2 more$"):
        await visit(TlsClient(trusting(ca), "localhost"), server)


async def test_nobody_vouches(issue: Issue, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pem"
    trustme.CA().cert_pem.write_to_path(foreign)
    with pytest.raises(TlsFailed, match=r"certificate verify failed: unable to get .*\(it names localhost; ") as caught:
        await visit(TlsClient(trusting(foreign), "localhost"), issue("localhost"))
    assert caught.value.reason == "certificate"


async def test_a_certificate_that_has_ended(issue: Issue, ca: Path) -> None:
    ended = datetime.now(UTC) - timedelta(days=2)
    told = f"cert has expired (it names localhost; valid until {ended:%Y-%m-%d})"
    with pytest.raises(TlsFailed) as caught:
        await visit(TlsClient(trusting(ca), "localhost"), issue("localhost", not_after=ended))
    assert told in str(caught.value)


async def test_without_verification_anybody_will_do_and_the_problem_is_known(issue: Issue) -> None:
    client = TlsClient(client_context(BackendTls(verify=False)), "localhost")
    server = issue("other.example")
    stream = await visit(client, server)
    assert client.certificate(stream).name_problem == "certificate is not for localhost: it names other.example"
    assert not resumed(stream)
    assert resumed(await visit(client, server))


# --- certificates that break the rules ---


def tlv(tag: int, *parts: bytes) -> bytes:
    """One value in DER (X.690 §8.1)."""
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


DNS_NAME = tlv(0x82, b"localhost")
X400_ADDRESS = tlv(0xA3, tlv(0x30))
SRV_NAME = tlv(0xA0, bytes.fromhex("06082b06010505070807"), tlv(0xA0, tlv(0x02, b"\x01")))
NOT_TWICE, TWICE = x509.ObjectIdentifier("1.2.3.4"), x509.ObjectIdentifier("1.2.3.5")
VERSION_3, VERSION_5 = bytes.fromhex("a003020102"), bytes.fromhex("a003020104")

# What subjectAltName holds, and what of the certificate is replaced before it is signed.
ODD: list[tuple[str, bytes, tuple[bytes, bytes]]] = [
    ("an X.400 address", DNS_NAME + X400_ADDRESS, (b"", b"")),
    ("a name of another type than its own", DNS_NAME + SRV_NAME, (b"", b"")),
    ("no name at all", b"\x01", (b"", b"")),
    ("an extension twice", DNS_NAME, (b"\x06\x03\x2a\x03\x05", b"\x06\x03\x2a\x03\x04")),
    ("a version that there is not", DNS_NAME, (VERSION_3, VERSION_5)),
]


@pytest.fixture
def issue_odd(authority: trustme.CA, tmp_path: Path) -> Callable[[bytes, tuple[bytes, bytes]], Context]:
    """Makes a server's context with a certificate as no builder makes it."""

    def issue_odd(names: bytes, replaced: tuple[bytes, bytes]) -> Context:
        signer = load_pem_private_key(authority.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder(
                x509.load_pem_x509_certificate(authority.cert_pem.bytes()).subject,
                x509.Name([]),
                key.public_key(),
                x509.random_serial_number(),
                now - timedelta(days=1),
                now + timedelta(days=1),
            )
            .add_extension(
                x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, tlv(0x30, names)), critical=False
            )
            .add_extension(x509.UnrecognizedExtension(NOT_TWICE, tlv(0x05)), critical=False)
            .add_extension(x509.UnrecognizedExtension(TWICE, tlv(0x05)), critical=False)
            .sign(signer, hashes.SHA256())
        )
        content = made.tbs_certificate_bytes.replace(*replaced) if replaced[0] else made.tbs_certificate_bytes
        algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256 (RFC 5758 §3.2)
        signature = signer.sign(content, ec.ECDSA(hashes.SHA256()))
        encoded = tlv(0x30, content, algorithm, tlv(0x03, b"\0", signature))
        certificate, key_file = tmp_path / "odd.crt", tmp_path / "odd.key"
        certificate.write_bytes(encoded)
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.use_certificate_file(str(certificate), FILETYPE_ASN1)
        context.use_privatekey_file(str(key_file))
        return context

    return issue_odd


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(("what", "names", "replaced"), ODD)
async def test_a_certificate_that_cannot_be_read(
    issue_odd: Callable[[bytes, tuple[bytes, bytes]], Context],
    ca: Path,
    tmp_path: Path,
    what: str,
    names: bytes,
    replaced: tuple[bytes, bytes],
    trusted: bool,
) -> None:
    """Our verdict or OpenSSL's, whoever speaks first; nothing else comes out of it."""
    foreign = tmp_path / "foreign.pem"
    trustme.CA().cert_pem.write_to_path(foreign)
    server = issue_odd(names, replaced)
    with pytest.raises(
        TlsFailed, match=r"certificate cannot be read; one for localhost|\(it cannot be read\)"
    ) as caught:
        await visit(TlsClient(trusting(ca if trusted else foreign), "localhost"), server)
    assert caught.value.reason in ("name", "certificate") if trusted else caught.value.reason == "certificate"
    unverified = TlsClient(client_context(BackendTls(verify=False)), "localhost")
    shown = unverified.certificate(await visit(unverified, server))
    assert (shown.names, shown.not_after) == ((), None)
    assert shown.name_problem == "certificate cannot be read; one for localhost was expected"


# --- the certificate that the proxy shows ---


async def test_a_server_that_wants_a_certificate(strict: SSL.Context, pki: Pki) -> None:
    pair = pki.clients["san.email"]
    showing = BackendTls(ca=pki.ca, certificate=pair.certificate, private_key=pair.private_key)
    client = TlsClient(client_context(showing), "localhost")
    assert not resumed(await visit(client, strict))
    assert resumed(await visit(client, strict))


async def test_a_server_that_gets_none(strict: SSL.Context, pki: Pki) -> None:
    """With TLS 1.3 the verdict comes behind the handshake (RFC 8446 §4.4.2.4)."""
    old = trusting(pki.ca, "1.2")
    with pytest.raises(TlsFailed, match="handshake failure"):
        await visit(TlsClient(old, "localhost"), strict)
    with pytest.raises(ExceptionGroup) as caught:
        await visit(TlsClient(trusting(pki.ca), "localhost"), strict)
    assert caught.group_contains(ConnectionLost, match="certificate required")


# --- sessions ---


@every_version
async def test_a_session_that_was_kept_is_taken_up_again_and_again(issue: Issue, ca: Path, version: str) -> None:
    client, server = TlsClient(trusting(ca, version), "localhost"), issue("localhost")
    assert [resumed(await visit(client, server)) for _ in range(4)] == [False, True, True, True]
    certificate = client.certificate(await visit(client, server))
    assert (certificate.names, certificate.name_problem) == (("localhost",), "")


@every_version
async def test_nothing_is_kept_of_a_login_that_was_not_complete(issue: Issue, ca: Path, version: str) -> None:
    client, server = TlsClient(trusting(ca, version), "localhost"), issue("localhost")
    assert not resumed(await visit(client, server, keep=False))
    assert not resumed(await visit(client, server))


@every_version
async def test_a_session_is_for_one_server(issue: Issue, ca: Path, version: str) -> None:
    context, server = trusting(ca, version), issue("localhost", "other.example")
    await visit(TlsClient(context, "localhost"), server)
    assert not resumed(await visit(TlsClient(context, "other.example"), server))
    assert not resumed(await visit(TlsClient(context, "localhost"), server))


async def test_a_check_takes_nothing_up(issue: Issue, ca: Path) -> None:
    client, server = TlsClient(trusting(ca), "localhost"), issue("localhost")
    await visit(client, server)
    assert not resumed(await visit(client, server, keep=False, fresh=True))
    assert resumed(await visit(client, server))


async def test_a_server_that_has_forgotten(issue: Issue, ca: Path) -> None:
    """As after a restart, or where each of its processes has keys of its own."""
    client = TlsClient(trusting(ca), "localhost")
    await visit(client, issue("localhost"))
    again = issue("localhost")
    assert [resumed(await visit(client, again)) for _ in range(2)] == [False, True]
    with pytest.raises(TlsFailed, match="not for localhost"):
        await visit(client, issue("other.example"))
    assert resumed(await visit(client, again))


async def test_the_chain_is_looked_at_once_an_hour(issue: Issue, ca: Path, mock_clock: trio.testing.MockClock) -> None:
    """However often the session was taken up, with a new ticket each time."""
    client, server = TlsClient(trusting(ca), "localhost"), issue("localhost")
    seen = []
    for _ in range(6):
        seen.append(resumed(await visit(client, server)))
        mock_clock.jump(1000)
    assert seen == [False, True, True, True, False, True]


async def test_a_session_ends_with_its_certificate(issue: Issue, ca: Path, mock_clock: trio.testing.MockClock) -> None:
    server = issue("localhost", not_after=datetime.now(UTC) + timedelta(minutes=20))
    client = TlsClient(trusting(ca), "localhost")
    seen = []
    for _ in range(4):
        seen.append(resumed(await visit(client, server)))
        mock_clock.jump(500)
    assert seen == [False, True, True, False]


async def test_a_server_that_cannot_take_sessions_up(
    issue: Issue, ca: Path, mock_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """It asks for certificates and has given its sessions no context; it is left in peace for a while."""
    issue("localhost")
    server = SSL.Context(SSL.TLS_SERVER_METHOD)
    server.use_certificate_chain_file(str(tmp_path / "server.crt"))
    server.use_privatekey_file(str(tmp_path / "server.key"))
    server.set_verify(SSL.VERIFY_PEER)
    client = TlsClient(trusting(ca), "localhost")
    assert not resumed(await visit(client, server))
    with pytest.raises(SessionFailed):
        await visit(client, server)
    for _ in range(3):
        assert not resumed(await visit(client, server))
    mock_clock.jump(601)
    assert not resumed(await visit(client, server))
    with pytest.raises(SessionFailed):
        await visit(client, server)
