"""Clients with and without certificates that visit a listener, by Python's own ssl module on real sockets."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

import trio
from OpenSSL import SSL

from proxy.transport.client_certificate import ClientCertificate
from proxy.transport.tls import TlsFailed, accept_tls
from tests.servers.pki import KeyPair


@dataclass(frozen=True)
class Visited:
    """How a connection went: what the server knows, and what the client was told."""

    failure: TlsFailed | None
    certificate: ClientCertificate | None
    alert: str
    reused: bool
    session: ssl.SSLSession | None

    @property
    def names(self) -> tuple[str, ...] | None:
        return None if self.certificate is None else self.certificate.names


def client(pair: KeyPair | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return context if pair is None else pair.show(context)


async def visit(
    base: SSL.Context,
    context: ssl.SSLContext,
    *,
    name: str | None = "localhost",
    session: ssl.SSLSession | None = None,
) -> Visited:
    """One connection: a handshake, a greeting, and away."""
    told: list[tuple[str, bool, ssl.SSLSession | None]] = []

    def connect() -> None:
        with socket.create_connection(listener.getsockname(), 10) as sock:
            try:
                with context.wrap_socket(sock, server_hostname=name, session=session) as wrapped:
                    greeting = wrapped.recv(6)  # tickets come before it, and in TLS 1.3 the verdict too
                    told.append(("" if greeting else "closed", bool(wrapped.session_reused), wrapped.session))
            except ssl.SSLError as exc:
                told.append((exc.reason or str(exc), False, None))
            except ConnectionError as exc:  # more of ours was on its way than the server waited for
                told.append((str(exc), False, None))

    with socket.create_server(("127.0.0.1", 0)) as listener, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, connect)
            failure, certificate = await serve(listener, base)
    return Visited(failure, certificate, *told[0])


async def serve(listener: socket.socket, base: SSL.Context) -> tuple[TlsFailed | None, ClientCertificate | None]:
    await trio.lowlevel.wait_readable(listener)
    server, _ = listener.accept()
    with server:
        server.setblocking(False)
        try:
            stream = await accept_tls(server, base, speaks_first=True)
        except TlsFailed as failure:
            return failure, None
        certificate = stream.client_certificate("san.email")
        await stream.send(b"* OK\r\n")
        stream.close()
        return None, certificate


def assert_refused(visited: Visited, detail: str) -> None:
    """By the server, for the certificate; and the client knows."""
    assert visited.failure is not None
    assert visited.failure.reason == "certificate"
    assert detail in str(visited.failure)
    assert visited.alert
