"""What Postfix is told, octet for octet, and what a client can't do."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from proxy.admin import socketmap
from proxy.admin.socketmap import (
    MAX_REQUEST_BYTES,
    BadNetstring,
    Netstrings,
    Socketmap,
    lmtp_endpoint,
    netstring,
    without_extension,
)
from proxy.model import Endpoint
from proxy.observe.metrics import exposition
from proxy.outcome import Outcome, Refused
from proxy.settings.addresses import parse_backend_url
from proxy.settings.models import Server

POSTFIX = Endpoint("192.0.2.25", 50000)
LMTP = {
    "d1": Endpoint("10.0.0.11", 24),
    "d2": Endpoint("dovecot-2.example.org", 2424),
    "d6": Endpoint("2001:db8::6", 24),
}
HOMES = {"alice@example.org": "d1", "bob": "d2", "six@example.org": "d6", "al ice@example.org": "d1", "ж": "d1"}


async def route(name: str) -> str:
    """The people of these tests, and what can go wrong."""
    if name.startswith("out"):
        raise Refused(Outcome.UNAVAILABLE, "the directory is down")
    if name.startswith("bug"):
        return {"a": "b"}[name]
    if name.startswith("gone"):
        return "a backend that there is no more"
    if name.startswith("slow"):
        await trio.sleep(3600)
    if name not in HOMES:
        raise LookupError(name)
    return HOMES[name]


@pytest.fixture
def table() -> Socketmap:
    return Socketmap(route, LMTP.__getitem__)


@asynccontextmanager
async def connected(table: Socketmap) -> AsyncIterator[trio.SocketStream]:
    """A connection that is served; it has to end when the client's end does."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.serve, ours, POSTFIX)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as client:
            yield client


async def read_all(client: trio.SocketStream) -> bytes:
    """To the end of the connection."""
    return b"".join([chunk async for chunk in client])


async def ask(table: Socketmap, *chunks: bytes) -> bytes:
    """All that comes back, once everything was sent."""
    async with connected(table) as client:
        for chunk in chunks:
            await client.send_all(chunk)
            await trio.testing.wait_all_tasks_blocked()
        await client.send_eof()
        return await read_all(client)


REQUESTS = [
    ("route alice@example.org", b"OK lmtp:inet:10.0.0.11:24"),
    ("route bob", b"OK lmtp:inet:dovecot-2.example.org:2424"),
    ("route six@example.org", b"OK lmtp:inet:[ipv6:2001:db8::6]:24"),
    ("route al ice@example.org", b"OK lmtp:inet:10.0.0.11:24"),
    ("route ж", b"OK lmtp:inet:10.0.0.11:24"),
    ("route alice+lists@example.org", b"OK lmtp:inet:10.0.0.11:24"),
    ("route nobody@example.org", b"NOTFOUND "),
    ("route ", b"NOTFOUND "),
    ("route", b"NOTFOUND "),
    ("route " + "x" * (MAX_REQUEST_BYTES - 6), b"NOTFOUND "),
    ("route out@example.org", b"TEMP temporarily unavailable"),
    ("route bug@example.org", b"TEMP internal error"),
    ("route gone@example.org", b"TEMP internal error"),
    ("routes alice@example.org", b"PERM there is no such map here, but route"),
    ("", b"PERM there is no such map here, but route"),
]


@pytest.mark.parametrize(("request_", "reply"), REQUESTS, ids=[request[:40] for request, _ in REQUESTS])
async def test_requests(request_: str, reply: bytes, table: Socketmap) -> None:
    sent = netstring(request_.encode())
    assert await ask(table, sent) == netstring(reply)


async def test_one_connection_carries_all_of_them(table: Socketmap) -> None:
    sent = b"".join(netstring(request.encode()) for request, _ in REQUESTS)
    replies = b"".join(netstring(reply) for _, reply in REQUESTS)
    assert await ask(table, sent) == replies
    assert await ask(table, *(sent[at : at + 7] for at in range(0, 300, 7)), sent[301:]) == replies


async def test_octets_that_are_no_text(table: Socketmap) -> None:
    assert await ask(table, netstring(b"route \xff\xfe@example.org")) == b"9:NOTFOUND ,"


async def test_without_a_delimiter_every_character_is_the_names() -> None:
    table = Socketmap(route, LMTP.__getitem__, recipient_delimiter="")
    assert await ask(table, netstring(b"route alice+lists@example.org")) == b"9:NOTFOUND ,"


EXTENSIONS = [
    ("alice@example.org", "+", "alice@example.org"),
    ("alice+lists@example.org", "+", "alice@example.org"),
    ("alice+lists+old@example.org", "+", "alice@example.org"),
    ("alice+@example.org", "+", "alice@example.org"),
    ("alice+lists", "+", "alice"),
    ("alice", "+", "alice"),
    ("+lists@example.org", "+", "+lists@example.org"),
    ("alice-lists+old@example.org", "+-", "alice@example.org"),
    ("alice-lists@example.org", "+", "alice-lists@example.org"),
    ("alice@exa+mple.org", "+", "alice@exa+mple.org"),
    ("alice+a@b@example.org", "+", "alice@example.org"),
    ("alice+lists@example.org", "", "alice+lists@example.org"),
    ("", "+", ""),
    ("+", "+", "+"),
    ("@example.org", "+", "@example.org"),
]


@pytest.mark.parametrize(("address", "delimiters", "mailbox"), EXTENSIONS)
def test_extensions(address: str, delimiters: str, mailbox: str) -> None:
    assert without_extension(address, delimiters) == mailbox


def server(url: str, lmtp: Endpoint | None = None) -> Server:
    return Server(name="d1", url=parse_backend_url(url), lmtp=lmtp)


ENDPOINTS = [
    (server("imaps://10.0.0.11"), (), Endpoint("10.0.0.11", 24)),
    (server("imap://dovecot.example.org:1143"), (), Endpoint("dovecot.example.org", 24)),
    (server("imap://dovecot.example.org"), ("10.0.0.5", "10.0.0.6"), Endpoint("10.0.0.5", 24)),
    (server("imap://10.0.0.11", Endpoint("10.1.0.11", 2424)), (), Endpoint("10.1.0.11", 2424)),
    (server("imap://10.0.0.11", Endpoint("10.1.0.11", 2424)), ("10.0.0.5",), Endpoint("10.1.0.11", 2424)),
]


@pytest.mark.parametrize(("given_", "addresses", "endpoint"), ENDPOINTS)
def test_where_deliveries_go(given_: Server, addresses: tuple[str, ...], endpoint: Endpoint) -> None:
    assert lmtp_endpoint(given_, addresses) == endpoint


# --- netstrings ---

BAD = [
    (b"x", "it does not begin with a length"),
    (b":,", "it does not begin with a length"),
    (b"-1:,", "it does not begin with a length"),
    (b"00:,", "it does not begin with a length"),
    (b"01:a,", "it does not begin with a length"),
    (b" 1:a,", "it does not begin with a length"),
    (b"12345", "it does not begin with a length"),
    (b"\xd9\xa1:a,", "it does not begin with a length"),  # a digit, but an Arabic one
    (b"GET / HTTP/1.1\r\n\r\n", "it does not begin with a length"),
    (b"4097:", "longer than 4096 octets"),
    (b"9999:", "longer than 4096 octets"),
    (b"1:ab", "it does not end with a comma"),
    (b"0:0:,", "it does not end with a comma"),
]


def taken(chunks: list[bytes]) -> list[bytes]:
    """All netstrings that arrive in these chunks."""
    received, found = Netstrings(), []
    for chunk in chunks:
        received.receive_data(chunk)
        while (one := received.next_netstring()) is not None:
            found.append(one)
    return found


@pytest.mark.parametrize(("octets", "problem"), BAD)
def test_what_is_no_netstring(octets: bytes, problem: str) -> None:
    for chunks in ([octets], [bytes([octet]) for octet in octets]):
        with pytest.raises(BadNetstring, match=f"^{problem}$"):
            taken(chunks)


@pytest.mark.parametrize(("octets", "_problem"), BAD)
async def test_what_is_no_netstring_ends_the_connection(octets: bytes, _problem: str, table: Socketmap) -> None:
    async with connected(table) as client:
        await client.send_all(netstring(b"route bob") + octets)
        assert await read_all(client) == netstring(b"OK lmtp:inet:dovecot-2.example.org:2424")


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_the_split_of_the_octets_never_matters(data: list[bytes], size: int) -> None:
    octets = b"".join(map(netstring, data))
    assert taken([octets]) == data
    assert taken([octets[at : at + size] for at in range(0, len(octets), size)]) == data


@given(st.lists(st.text("0123456789:,a").map(str.encode) | st.binary()))
def test_any_octets_are_netstrings_or_are_not(chunks: list[bytes]) -> None:
    received = Netstrings()
    try:
        for chunk in chunks:
            received.receive_data(chunk)
            while received.next_netstring() is not None:
                pass
            assert len(received._buffer) <= MAX_REQUEST_BYTES + len("4096:")
    except BadNetstring:
        pass


# --- bounds ---


async def test_a_client_that_asks_nothing(table: Socketmap, autojump_clock: trio.testing.MockClock) -> None:
    async with connected(table) as client:
        assert await read_all(client) == b""


async def drip(client: trio.SocketStream) -> None:
    """Ask, an octet at a time."""
    for octet in netstring(b"route bob" + b" " * 90):
        await client.send_all(bytes([octet]))
        await trio.sleep(socketmap.IDLE_SECONDS / 10)


async def flood(client: trio.SocketStream) -> None:
    """Ask, and listen to nothing."""
    while True:
        await client.send_all(netstring(b"route bob") * 1000)


@pytest.mark.parametrize("behave", [drip, flood])
async def test_a_client_that_is_in_the_way(
    behave: Callable[[trio.SocketStream], Awaitable[None]], table: Socketmap, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected(table) as client:
        with pytest.raises(trio.BrokenResourceError):
            await behave(client)


async def test_a_decision_that_takes_too_long(table: Socketmap, autojump_clock: trio.testing.MockClock) -> None:
    sent = netstring(b"route slow@example.org") + netstring(b"route nobody")
    assert await ask(table, sent) == netstring(b"TEMP temporarily unavailable") + netstring(b"NOTFOUND ")


def count(name: str) -> float:
    """A series of the metrics."""
    line = next(line for line in exposition()[0].decode().splitlines() if line.startswith(name + " "))
    return float(line.rpartition(" ")[2])


async def test_too_many_connections(table: Socketmap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socketmap, "MAX_CONNECTIONS", 1)
    refused = count("porter_socketmap_connections_refused_total")
    async with connected(table) as client:
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            async with connected(table) as another:
                assert await read_all(another) == b""
        await client.send_all(netstring(b"route bob"))
        assert await client.receive_some()
    assert count("porter_socketmap_connections_refused_total") == refused + 2
    assert await ask(table, netstring(b"route nobody")) == b"9:NOTFOUND ,"  # a place is free again


async def test_a_client_that_leaves_in_the_middle(table: Socketmap) -> None:
    """Connections end by reset, too."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.send(netstring(b"route bob") * 100)
    theirs.close()
    await table.serve(ours, POSTFIX)
    assert ours.fileno() == -1


async def test_a_bug_ends_its_connection_alone(table: Socketmap, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Netstrings) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as broken:
        broken.setattr(Netstrings, "next_netstring", fail)
        assert await ask(table) == b""
    assert await ask(table, netstring(b"route nobody")) == b"9:NOTFOUND ,"


@pytest.mark.parametrize(
    ("request_", "answer"),
    [(b"route bob", "ok"), (b"route nobody", "notfound"), (b"route out", "temp"), (b"virtual bob", "perm")],
)
async def test_answers_are_counted(request_: bytes, answer: str, table: Socketmap) -> None:
    series = f'porter_socketmap_answers_total{{answer="{answer}"}}'
    before = count(series)
    await ask(table, netstring(request_))
    assert count(series) == before + 1
