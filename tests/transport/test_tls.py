"""TLS on real sockets, both ends in this process; the peer is sometimes Python's own ssl module."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trustme
from cryptography import x509
from OpenSSL import SSL

from proxy.settings.backend_models import BackendTls
from proxy.transport.stream import ConnectionLost
from proxy.transport.tls import ServerCertificates, TlsFailed, TlsStream, accept_tls
from proxy.transport.tls_client import TlsClient, client_context

Pair = tuple[socket.socket, socket.socket]


def unverified() -> SSL.Context:
    return client_context(BackendTls(verify=False))


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def issue(authority: trustme.CA, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Makes a certificate for some names and gives the paths of its chain and key."""

    def issue(*names: str) -> tuple[Path, Path]:
        leaf = authority.issue_cert(*names)
        stem = names[0].replace("*", "any")
        chain, key = tmp_path / f"{stem}.crt", tmp_path / f"{stem}.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(key)
        return chain, key

    return issue


@pytest.fixture
def sockets() -> Iterator[Pair]:
    """A connected pair of TCP sockets, non-blocking."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    listener.close()
    client.setblocking(False)
    server.setblocking(False)
    yield client, server
    client.close()
    server.close()


async def shake_hands(
    sockets: Pair,
    certificates: ServerCertificates,
    context: SSL.Context,
    host: str = "localhost",
    *,
    speaks_first: bool = False,
) -> tuple[TlsStream, TlsStream]:
    """Both sides at once: (client's stream, server's stream)."""
    client, server = sockets
    done: dict[str, TlsStream] = {}

    async def accept() -> None:
        done["server"] = await accept_tls(server, certificates.base_context(), speaks_first=speaks_first)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            done["client"] = await TlsClient(context, host).connect(client)
    return done["client"], done["server"]


def peer_name(client: TlsStream) -> str:
    certificate = client.connection.get_peer_certificate()
    assert certificate is not None
    names = certificate.to_cryptography().extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return names.value.get_values_for_type(x509.DNSName)[0]


CHOICES = [
    ("imap.example.org", "imap.example.org"),
    ("IMAP.Example.ORG", "imap.example.org"),
    ("a.wild.example", "*.wild.example"),
    ("a.b.wild.example", "default.example"),
    ("unknown.example", "default.example"),
]


@pytest.mark.parametrize(("asked", "shown"), CHOICES)
async def test_the_certificate_is_chosen_by_name(
    sockets: Pair, issue: Callable[..., tuple[Path, Path]], asked: str, shown: str
) -> None:
    pairs = [issue("default.example"), issue("imap.example.org"), issue("*.wild.example")]
    client, _ = await shake_hands(sockets, ServerCertificates(pairs, "1.2"), unverified(), host=asked)
    assert peer_name(client) == shown


ASKED = [
    ("IMAP_1.example-a.org", "IMAP_1.example-a.org"),
    ("a b", ""),
    ("a\r\nb", ""),
    ("a;b", ""),
    ("", ""),
]


@pytest.mark.parametrize(("asked", "told"), ASKED)
async def test_backends_hear_of_host_names_alone(
    sockets: Pair, issue: Callable[..., tuple[Path, Path]], asked: str, told: str
) -> None:
    certificates = ServerCertificates([issue("default.example")], "1.2")
    _, server = await shake_hands(sockets, certificates, unverified(), host=asked)
    facts = server.facts()
    assert (facts.version, facts.server_name) == ("TLSv1.3", told)
    assert facts.cipher


async def test_octets_pass_both_ways_and_an_end_is_an_end(
    sockets: Pair, issue: Callable[..., tuple[Path, Path]], ca: Path
) -> None:
    certificates = ServerCertificates([issue("localhost")], "1.2")
    client, server = await shake_hands(sockets, certificates, client_context(BackendTls(ca=ca)))
    big = bytes(range(256)) * 12000

    async def send() -> None:
        await client.send(big)
        client.end_sending()

    received = b""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while data := await server.receive():
                received += data
    assert received == big


async def test_a_connection_that_breaks_is_no_end(
    sockets: Pair, issue: Callable[..., tuple[Path, Path]], ca: Path
) -> None:
    certificates = ServerCertificates([issue("localhost")], "1.2")
    _, server = await shake_hands(sockets, certificates, client_context(BackendTls(ca=ca)))
    sockets[0].close()
    with pytest.raises(ConnectionLost):
        await server.receive()


@pytest.mark.parametrize("speaks_first", [True, False])
async def test_a_greeting_after_the_handshake_arrives(
    sockets: Pair, issue: Callable[..., tuple[Path, Path]], ca: Path, speaks_first: bool
) -> None:
    certificates = ServerCertificates([issue("localhost")], "1.2")
    client, server = await shake_hands(
        sockets, certificates, client_context(BackendTls(ca=ca)), speaks_first=speaks_first
    )
    await server.send(b"* OK\r\n")
    await server.send(b"* BYE\r\n")
    with trio.fail_after(5):
        received = b""
        while len(received) < 13:
            received += await client.receive()
    assert received == b"* OK\r\n* BYE\r\n"
    assert sockets[1].getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 0


async def accept_only(server: socket.socket, certificates: ServerCertificates) -> TlsFailed | None:
    try:
        await accept_tls(server, certificates.base_context(), speaks_first=True)
    except TlsFailed as failure:
        return failure
    return None


async def handshake_of_ssl(sockets: Pair, certificates: ServerCertificates, context: ssl.SSLContext) -> str:
    """Python's ssl as the client; gives how its handshake ended."""
    client, server = sockets
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client.setblocking(True)
    client.settimeout(10)
    results: list[str] = []

    def connect() -> None:
        try:
            with context.wrap_socket(client, server_hostname="localhost") as wrapped:
                results.append(f"{wrapped.version()} {wrapped.selected_alpn_protocol()}")
        except ssl.SSLError as exc:
            results.append(str(exc))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, connect)
        await accept_only(server, certificates)
    return results[0]


@pytest.mark.parametrize(
    ("offered", "end"),
    [
        (["imap"], "TLSv1.3 imap"),
        (["h2", "imap"], "TLSv1.3 imap"),
        (["h2", "http/1.1"], "alert no application protocol"),
        ([], "TLSv1.3 None"),
    ],
)
async def test_alpn(sockets: Pair, issue: Callable[..., tuple[Path, Path]], offered: list[str], end: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if offered:
        context.set_alpn_protocols(offered)
    said = await handshake_of_ssl(sockets, ServerCertificates([issue("localhost")], "1.2"), context)
    assert end in said


@pytest.mark.parametrize(
    ("minimum", "maximum", "ok"),
    [
        ("1.2", ssl.TLSVersion.TLSv1_2, True),
        ("1.3", ssl.TLSVersion.TLSv1_2, False),
        ("1.3", ssl.TLSVersion.TLSv1_3, True),
    ],
)
async def test_versions(
    sockets: Pair, issue: Callable[..., tuple[Path, Path]], minimum: str, maximum: ssl.TLSVersion, ok: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = maximum
    said = await handshake_of_ssl(sockets, ServerCertificates([issue("localhost")], minimum), context)
    assert said.startswith("TLSv") is ok, said


async def test_a_client_that_needs_a_second_hello_is_served(
    sockets: Pair, issue: Callable[..., tuple[Path, Path]]
) -> None:
    """Its first key share is for a group that the server lacks: a HelloRetryRequest comes between (RFC 8446 §4.1.4)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ecdh_curve("secp521r1")
    said = await handshake_of_ssl(sockets, ServerCertificates([issue("localhost")], "1.2"), context)
    assert said == "TLSv1.3 None"


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"a LOGIN x y\r\n", b"\x16\x03\x01\x00\x05hello"])
async def test_what_is_no_tls_fails(sockets: Pair, issue: Callable[..., tuple[Path, Path]], garbage: bytes) -> None:
    client, server = sockets
    client.send(garbage)
    client.shutdown(socket.SHUT_WR)
    with trio.fail_after(5):
        failure = await accept_only(server, ServerCertificates([issue("localhost")], "1.2"))
    assert failure is not None
    assert failure.reason in ("protocol", "closed")


async def test_new_files_are_shown_to_new_clients_and_tickets_stay_good(
    issue: Callable[..., tuple[Path, Path]], authority: trustme.CA
) -> None:
    certificates = ServerCertificates([issue("old.example")], "1.2")
    base = certificates.base_context()
    listener = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    authority.configure_trust(context)

    def visit(session: ssl.SSLSession | None) -> tuple[str, bool, ssl.SSLSession | None]:
        sock = socket.create_connection(listener.getsockname(), 10)
        with context.wrap_socket(sock, server_hostname="x.example", session=session) as wrapped:
            assert wrapped.recv(6) == b"* OK\r\n"  # tickets come before it
            peer = wrapped.getpeercert() or {}
            return str(peer["subjectAltName"][0][1]), bool(wrapped.session_reused), wrapped.session

    async def serve() -> None:
        await trio.lowlevel.wait_readable(listener)
        server, _ = listener.accept()
        server.setblocking(False)
        stream = await accept_tls(server, base, speaks_first=True)
        await stream.send(b"* OK\r\n")
        stream.close()

    async def once(session: ssl.SSLSession | None) -> tuple[str, bool, ssl.SSLSession | None]:
        results: list[tuple[str, bool, ssl.SSLSession | None]] = []

        def run() -> None:
            results.append(visit(session))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, run)
                await serve()
        return results[0]

    try:
        name, reused, session = await once(None)
        assert (name, reused) == ("old.example", False)
        certificates.swap([issue("new.example")])
        assert (await once(None))[:2] == ("new.example", False)
        assert (await once(session))[1] is True
    finally:
        listener.close()


async def test_a_swap_is_all_or_nothing(sockets: Pair, issue: Callable[..., tuple[Path, Path]]) -> None:
    old, new, other = issue("old.example"), issue("new.example"), issue("other.example")
    certificates = ServerCertificates([old], "1.2")
    with pytest.raises(ValueError, match="does not fit"):
        certificates.swap([new, (new[0], other[1])])
    client, _ = await shake_hands(sockets, certificates, unverified(), host="new.example")
    assert peer_name(client) == "old.example"


# --- tls-exporter ---


def exported(client: TlsStream) -> bytes:
    """What RFC 9266 §2 has a client compute."""
    return client.connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")


async def test_both_ends_know_the_channel_binding_and_no_other_connection_has_it(
    issue: Callable[..., tuple[Path, Path]],
) -> None:
    certificates = ServerCertificates([issue("localhost")], "1.2")
    seen = set()
    for _ in range(3):
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            there.setblocking(False)
            client, server = await shake_hands((here, there), certificates, unverified())
            binding = server.channel_binding()
            assert binding is not None
            assert len(binding) == 32
            assert binding == server.channel_binding() == client.channel_binding() == exported(client)
            seen.add(binding)
    assert len(seen) == 3


async def test_an_older_tls_has_no_channel_binding(sockets: Pair, issue: Callable[..., tuple[Path, Path]]) -> None:
    context = unverified()
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    client, server = await shake_hands(sockets, ServerCertificates([issue("localhost")], "1.2"), context)
    assert client.connection.get_protocol_version_name() == "TLSv1.2"
    assert server.channel_binding() is None
