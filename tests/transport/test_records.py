"""The short way to OpenSSL: it does what pyOpenSSL's own calls do, and ends as they end."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from OpenSSL import SSL

from proxy.transport import records
from proxy.transport.records import records_of
from tests.servers.pki import Pki, write_pki

Pair = tuple[SSL.Connection, SSL.Connection]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return write_pki(tmp_path_factory.mktemp("keys") / "pki")


@contextmanager
def connected(pki: Pki) -> Iterator[Pair]:
    """A server's and a client's end after the handshake, non-blocking."""
    serving = SSL.Context(SSL.TLS_SERVER_METHOD)
    serving.use_certificate_chain_file(str(pki.certificate))
    serving.use_privatekey_file(str(pki.private_key))
    serving.clear_mode(0x1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        server, client = SSL.Connection(serving, ours), SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), theirs)
        server.set_accept_state()
        client.set_connect_state()
        pending = [client, server]
        while pending:
            for end in list(pending):
                with suppress(SSL.WantReadError):
                    end.do_handshake()
                    pending.remove(end)
        with pytest.raises(SSL.WantReadError):
            client.recv(1)  # the tickets
        yield server, client


@pytest.fixture
def pair(pki: Pki) -> Iterator[Pair]:
    with connected(pki) as ends:
        yield ends


def test_octets_pass_both_ways(pair: Pair) -> None:
    server, client = pair
    ours = records_of(server)
    assert ours is not server, "this pyOpenSSL allows the short way"
    client.send(b"a NOOP\r\n")
    assert ours.recv(16384) == b"a NOOP\r\n"
    client.send(b"x" * 16384)
    assert ours.recv(16384) == b"x" * 16384
    client.send(b"abcdef")
    assert (ours.recv(4), ours.recv(4)) == (b"abcd", b"ef")
    assert ours.send(b"a OK\r\n") == 6
    assert ours.send(memoryview(b"* OK\r\n")) == 6
    assert client.recv(100) + client.recv(100) == b"a OK\r\n* OK\r\n"


def test_what_was_read_stays_as_it_is(pair: Pair) -> None:
    server, client = pair
    ours = records_of(server)
    client.send(b"first")
    first = ours.recv(16384)
    client.send(b"other")
    ours.recv(16384)
    assert first == b"first"


def full(send: Callable[[bytes], int]) -> None:
    for _ in range(100_000):
        send(b"x" * 16384)


ENDS: list[tuple[str, Callable[[Any, SSL.Connection], object]]] = [
    ("nothing there", lambda ours, client: ours.recv(16384)),
    ("no room", lambda ours, client: full(ours.send)),
    ("close_notify", lambda ours, client: (client.shutdown(), ours.recv(16384))),
    ("end without close_notify", lambda ours, client: (client._socket.close(), ours.recv(16384))),
    ("nobody reads any more", lambda ours, client: (client._socket.close(), full(ours.send))),
    ("no record", lambda ours, client: (client._socket.send(b"GET / HTTP/1.1\r\n\r\n"), ours.recv(16384))),
]


@pytest.mark.parametrize("act", [act for _, act in ENDS], ids=[name for name, _ in ENDS])
def test_it_ends_as_pyopenssl_ends(act: Callable[[Any, SSL.Connection], object], pki: Pki) -> None:
    raised = []
    for shorten in (lambda connection: connection, records_of):
        with connected(pki) as (server, client), pytest.raises(SSL.Error) as caught:
            act(shorten(server), client)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


def test_another_pyopenssl(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = pair
    monkeypatch.setattr(records, "_bindings", None)
    assert records_of(server) is server
