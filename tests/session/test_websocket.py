"""The story of a session over WebSocket: how it is let in, what it carries, and every way it ends."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio_websocket
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection

from proxy.model import Endpoint
from proxy.outcome import FAREWELLS, Outcome
from proxy.session import serve_websocket
from tests.session.stage import (
    GREETING,
    LOGGED_IN,
    LOOPBACK,
    PATIENCE_SECONDS,
    WELCOME,
    Client,
    Scene,
    Wire,
    mailbox,
    tcp_pair,
    until,
)
from tests.transport.websocket_client import request

Stage = Callable[..., Awaitable[Scene]]

PAGE = "https://mail.example.org"
SERVER = [(b"X-Forwarded-For", b"203.0.113.7")]


def listener(tls: str = "none", **more: Any) -> list[dict[str, Any]]:
    trusted = {"trusted_networks": ["127.0.0.0/8"]} if tls == "none" else {}
    websocket = {"origins": [PAGE], **more.pop("websocket", {})}
    return [
        {"address": f"{LOOPBACK}:8143", "tls": tls, "protocol": "websocket", "websocket": websocket, **trusted, **more}
    ]


class Page:
    """A client that speaks IMAP in messages."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self.websocket = websocket
        self.kinds: list[type] = []
        self._buffer = b""

    async def send(self, *messages: bytes | str) -> None:
        for message in messages:
            await self.websocket.send_message(message)

    async def line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            with trio.fail_after(PATIENCE_SECONDS):
                message = await self.websocket.get_message()
            self.kinds.append(type(message))
            self._buffer += message.encode() if isinstance(message, str) else message
        line, end, self._buffer = self._buffer.partition(b"\r\n")
        return line + end

    async def answer(self, tag: bytes) -> bytes:
        said = b""
        while not (line := await self.line()).startswith(tag + b" "):
            said += line
        return said + line

    async def log_in(self) -> None:
        assert (await self.line()).startswith(b"* OK [CAPABILITY IMAP4rev1 ")
        await self.send(b"a LOGIN ann right\r\n")
        assert await self.answer(b"a") == b"a" + WELCOME

    async def end(self) -> tuple[bytes, int]:
        """What is said up to the close, and its code."""
        said, self._buffer = self._buffer, b""
        with trio.fail_after(PATIENCE_SECONDS):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    message = await self.websocket.get_message()
                    said += message.encode() if isinstance(message, str) else message
        assert self.websocket.closed is not None
        return said, self.websocket.closed.code


def knock(scene: Scene, *, nursery: trio.Nursery | None = None) -> Client:
    """A connection comes in."""
    ours, theirs = tcp_pair()
    host, port = theirs.getpeername()
    door, admission = scene._door, scene.house.admission
    assert (admission.admit_unknown() if door.learns_later(host) else admission.admit(host)) is None
    (nursery or scene._nursery).start_soon(serve_websocket, theirs, Endpoint(host, port), door, scene.house)
    scene.clients.append(Client(ours, theirs))
    return scene.clients[-1]


@asynccontextmanager
async def page(
    scene: Scene,
    *,
    trust: ssl.SSLContext | None = None,
    subprotocol: str = "imap",
    headers: list[tuple[bytes, bytes]] | None = None,
    nursery: trio.Nursery | None = None,
    first: bytes = b"",
) -> AsyncIterator[Page]:
    client = knock(scene, nursery=nursery)
    if first:
        await client.send(first)
    if trust is not None:
        await client.start_tls(trust)
    async with trio.open_nursery() as reading:
        with trio.fail_after(PATIENCE_SECONDS):
            connection = await trio_websocket.wrap_client_stream(
                reading,
                client._stream,  # type: ignore[arg-type]
                "mail.example.org",
                "/imap",
                subprotocols=[subprotocol] if subprotocol else [],
                extra_headers=headers or [],
                message_queue_size=0,
            )
        yield Page(connection)
        with trio.move_on_after(1):
            await connection.aclose()
        reading.cancel_scope.cancel()


async def take(peer: Wire, size: int) -> int:
    """Read so many octets at least, and forget them; gives how many there were."""
    taken, peer._buffer = len(peer._buffer), b""
    while taken < size:
        with trio.fail_after(PATIENCE_SECONDS):
            data = await peer._stream.receive_some()
        assert data
        taken += len(data)
    return taken


def ends(scene: Scene, cause: str) -> float:
    return scene.counted(f'porter_websocket_ends_total{{cause="{cause}"}}')


def openings(scene: Scene, result: str) -> float:
    return scene.counted(f'porter_websocket_openings_total{{result="{result}"}}')


@pytest.mark.parametrize("tls", ["none", "implicit"])
async def test_a_session_like_any_other(stage: Stage, trust: ssl.SSLContext, tls: str) -> None:
    scene = await stage(listeners=listener(tls))
    async with page(scene, trust=trust if tls == "implicit" else None) as client:
        assert client.websocket.subprotocol == "imap"
        greeting = await client.line()
        assert b"STARTTLS" not in greeting
        assert b"LOGINDISABLED" not in greeting
        await client.send(b"a LOG", b"IN ann right\r", b"\nb NOOP\r\nc NO", b"OP\r\n")
        assert await client.answer(b"a") == b"a" + WELCOME
        assert await client.answer(b"c") == b"b OK NOOP completed.\r\nc OK NOOP completed.\r\n"
        assert [session.session.name for session in scene.house.engine.sessions] == ["ann"]  # type: ignore[attr-defined]
        await client.send(b"d LOGOUT\r\n")
        assert await client.end() == (b"* BYE Logging out\r\nd OK Logout completed.\r\n", 1000)
    line = await scene.closing()
    assert (line["outcome"], line["secure"], line["via"]) == (Outcome.LOGGED_OUT, tls == "implicit", "")
    assert line["client"].startswith(f"{LOOPBACK}:")
    await until(lambda: ends(scene, "session") == 1)
    assert openings(scene, "accepted") == 1


async def test_answers_are_of_the_clients_kind(stage: Stage) -> None:
    async def mails(peer: Wire) -> None:
        await peer.send(GREETING)
        tag = (await peer.line()).split()[0]
        await peer.send(tag + LOGGED_IN)
        await peer.line()
        await peer.send("* STATUS Grüße\r\n".encode())
        await peer.line()
        await peer.send(b"* STATUS Gr\xfc\xdfe\r\n")
        await mailbox(peer)

    scene = await stage(mails, listeners=listener())
    async with page(scene) as client:
        await client.line()
        await client.send("a LOGIN ann right\r\n")
        await client.answer(b"a")
        await client.send("b NOOP\r\n")
        assert await client.line() == "* STATUS Grüße\r\n".encode()
        await client.send(b"c NOOP\r\n")
        assert await client.line() == b"* STATUS Gr\xfc\xdfe\r\n"
        assert client.kinds == [bytes, str, str, bytes]


REFUSALS = [
    ("no subprotocol", {"subprotocol": ""}, 400, "subprotocol"),
    ("another subprotocol", {"subprotocol": "xmpp"}, 400, "subprotocol"),
    ("another page", {"headers": [(b"Origin", b"https://evil.example")]}, 403, "origin"),
    ("no page", {"headers": [(b"Origin", b"null")]}, 403, "origin"),
    ("two clients", {"headers": [*SERVER, (b"Forwarded", b"for=198.51.100.9")]}, 400, "forwarded"),
]


@pytest.mark.parametrize(("name", "how", "status", "reason"), REFUSALS, ids=[case[0] for case in REFUSALS])
async def test_who_is_refused(stage: Stage, name: str, how: dict[str, Any], status: int, reason: str) -> None:
    scene = await stage(listeners=listener())
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConnectionRejected, check=lambda exc: exc.status_code == status), allow_unwrapped=True
    ):
        async with page(scene, **how):
            pass
    line = await scene.closing()
    assert line["outcome"] == Outcome.PROTOCOL_VIOLATION
    (refused,) = scene.logged("websocket.refused")
    assert refused["reason"] == reason
    assert openings(scene, reason) == 1


async def test_the_page_may(stage: Stage) -> None:
    scene = await stage(listeners=listener(websocket={"require_origin": True}))
    async with page(scene, headers=[(b"Origin", PAGE.encode())]) as client:
        await client.log_in()
    await scene.until_closed(1)


async def test_who_asks_for_something_else(stage: Stage) -> None:
    scene = await stage(listeners=listener())
    client = knock(scene)
    await client.send(b"a LOGIN ann right\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
    assert (await scene.closing())["outcome"] == Outcome.PROTOCOL_VIOLATION
    assert not scene.backend.peers


async def test_who_never_finishes_to_ask(stage: Stage) -> None:
    scene = await stage(listeners=listener(), timeouts={"handshake": 0.05})
    client = knock(scene)
    await client.send(request()[:60])
    assert await client.rest() == b""
    assert (await scene.closing())["outcome"] == Outcome.PROTOCOL_VIOLATION
    assert openings(scene, "timeout") == 1


async def test_who_leaves_while_he_asks(stage: Stage) -> None:
    scene = await stage(listeners=listener())
    client = knock(scene)
    await client.send(request()[:60])
    await client.end()
    assert await client.rest() == b""
    assert (await scene.closing())["outcome"] == Outcome.CLIENT_CLOSED


async def test_a_web_server_says_who_it_is(stage: Stage) -> None:
    scene = await stage(listeners=listener(), limits={"connections_per_address": 1})
    async with page(scene, headers=SERVER) as client:
        await client.log_in()
        assert list(scene.house.admission._by_address.values()) == [1], "not the server's address"
        async with page(scene, headers=[(b"X-Forwarded-For", b"203.0.113.8")]) as other:
            await other.log_in()
        with pytest.RaisesGroup(
            pytest.RaisesExc(ConnectionRejected, check=lambda exc: exc.status_code == 503), allow_unwrapped=True
        ):
            async with page(scene, headers=SERVER):
                pass
    await scene.until_closed(3)
    clients = sorted((line["client"], line["outcome"]) for line in scene.logged("session.closed"))
    assert clients == [
        ("203.0.113.7:0", Outcome.CLIENT_CLOSED),
        ("203.0.113.7:0", Outcome.LIMIT),
        ("203.0.113.8:0", Outcome.CLIENT_CLOSED),
    ]
    assert all(line["via"].startswith(f"{LOOPBACK}:") for line in scene.logged("session.closed"))
    assert openings(scene, "limit") == 1


HEADER = b"PROXY TCP4 %b 192.0.2.1 40001 993\r\n"
BELIEVED = [(b"198.51.100.1", "198.51.100.1:40001"), (b"127.0.0.9", "203.0.113.7:0")]


@pytest.mark.parametrize(("spoken_for", "client"), BELIEVED)
async def test_a_balancer_and_a_web_server(stage: Stage, spoken_for: bytes, client: str) -> None:
    """Who the balancer names is believed if he is a web server, and not if he is a client."""
    scene = await stage(listeners=listener(proxy_protocol={"trusted_networks": ["127.0.0.1/32"]}))
    async with page(scene, headers=SERVER, first=HEADER % spoken_for) as user:
        await user.log_in()
    assert (await scene.closing())["client"] == client


async def test_with_tls_nobody_is_believed(stage: Stage, trust: ssl.SSLContext) -> None:
    scene = await stage(listeners=listener("implicit"))
    async with page(scene, trust=trust, headers=SERVER) as client:
        await client.log_in()
    assert (await scene.closing())["client"].startswith(f"{LOOPBACK}:")


async def test_browsers_say_http(stage: Stage, trust: ssl.SSLContext, authority: Any) -> None:
    browser = ssl.create_default_context()
    authority.configure_trust(browser)
    browser.set_alpn_protocols(["http/1.1"])
    scene = await stage(listeners=listener("implicit"))
    async with page(scene, trust=browser) as client:
        await client.log_in()
    await scene.until_closed(1)


async def test_a_large_body_both_ways(stage: Stage) -> None:
    """More than all the buffers on the way hold; neither side reads before the other has sent all it can."""
    size = 4_000_000
    heard: list[int] = []

    async def echo(peer: Wire) -> None:
        await peer.send(GREETING)
        tag = (await peer.line()).split()[0]
        await peer.send(tag + LOGGED_IN)
        await peer.line()
        await peer.send(b"+ Ready\r\n")
        heard.append(await take(peer, size + 2))
        await peer.send(b"* 1 FETCH (BODY[] {%d}\r\n" % size + b"\xff" * size + b")\r\nb OK Done.\r\n")
        await mailbox(peer)

    scene = await stage(echo, listeners=listener())
    async with page(scene) as client:
        await client.log_in()
        await client.send(b"b APPEND INBOX {%d}\r\n" % size)
        assert await client.line() == b"+ Ready\r\n"
        await client.send(b"x" * (size - 10), b"x" * 10, b"\r\n")
        assert await client.line() == b"* 1 FETCH (BODY[] {%d}\r\n" % size
        assert await client.line() == b"\xff" * size + b")\r\n"
        assert heard == [size + 2]
        assert await client.answer(b"b") == b"b OK Done.\r\n"
        assert max(client.kinds.count(bytes), 1) > 10


async def test_the_client_closes(stage: Stage) -> None:
    scene = await stage(listeners=listener())
    async with page(scene) as client:
        await client.log_in()
        await client.websocket.aclose(1000)
        assert client.websocket.closed
        assert client.websocket.closed.code == 1000
    assert (await scene.closing())["outcome"] == Outcome.CLIENT_CLOSED
    assert ends(scene, "client") == 1


@pytest.mark.parametrize("logged_in", [True, False])
async def test_the_client_vanishes(stage: Stage, logged_in: bool) -> None:
    scene = await stage(listeners=listener())
    async with page(scene) as client:
        if logged_in:
            await client.log_in()
        scene.clients[0].reset()
        assert (await scene.closing())["outcome"] == Outcome.CLIENT_CLOSED
        await until(lambda: ends(scene, "lost") == 1)
        await client.end()


@pytest.mark.parametrize("logged_in", [True, False])
async def test_a_frame_that_is_none(stage: Stage, logged_in: bool) -> None:
    scene = await stage(listeners=listener())
    async with page(scene) as client:
        if logged_in:
            await client.log_in()
        await scene.clients[0]._base.send_all(b"\x81\x05hello")
        assert (await client.end())[1] == 1002
        assert (await scene.closing())["outcome"] == Outcome.CLIENT_CLOSED
        assert ends(scene, "protocol") == 1


async def test_the_login_takes_too_long(stage: Stage) -> None:
    scene = await stage(listeners=listener(), timeouts={"login": 0.1})
    async with page(scene) as client:
        await client.line()
        assert await client.end() == (FAREWELLS[Outcome.LOGIN_TIMEOUT], 1000)
    assert (await scene.closing())["outcome"] == Outcome.LOGIN_TIMEOUT


async def test_the_backend_ends(stage: Stage) -> None:
    async def leave(peer: Wire) -> None:
        await peer.send(GREETING)
        tag = (await peer.line()).split()[0]
        await peer.send(tag + LOGGED_IN)
        await peer.line()

    scene = await stage(leave, listeners=listener())
    async with page(scene) as client:
        await client.log_in()
        await client.send(b"b NOOP\r\n")
        assert await client.end() == (FAREWELLS[Outcome.BACKEND_CLOSED], 1000)
    assert (await scene.closing())["outcome"] == Outcome.BACKEND_CLOSED


@pytest.mark.parametrize("logged_in", [True, False])
async def test_the_service_ends(stage: Stage, logged_in: bool) -> None:
    scene = await stage(listeners=listener())
    async with page(scene) as client:
        if logged_in:
            await client.log_in()
            (session,) = scene.house.engine.sessions
            scene.house.engine.say_goodbye(session, Outcome.DRAINED)
        else:
            await client.line()
            (visit,) = scene.house.visits
            visit.drain()
        assert await client.end() == (FAREWELLS[Outcome.DRAINED], 1000)
    assert (await scene.closing())["outcome"] == Outcome.DRAINED


async def test_a_drain_that_has_no_time_left(stage: Stage) -> None:
    scene = await stage(listeners=listener())
    async with (
        trio.open_nursery() as logins,
        page(scene, nursery=logins) as waits,
        page(scene, nursery=logins) as works,
    ):
        await waits.line()
        await works.log_in()
        logins.cancel_scope.cancel()
        assert await waits.end() == (FAREWELLS[Outcome.DRAINED], 1001)
        assert (await works.end())[1] == 1001
    await scene.until_closed(2)
    assert ends(scene, "drained") == 2


async def test_no_sign_of_life(stage: Stage) -> None:
    scene = await stage(listeners=listener(websocket={"keepalive": 1.0}))
    client = knock(scene)
    await client.send(request())
    while await client.line() != b"\r\n":
        pass
    await client.rest()
    assert b"\x89\x00" in client.received, "it was asked"
    line = await scene.closing()
    assert line["outcome"] == Outcome.CLIENT_CLOSED
    assert line["session_seconds"] < 4
    assert ends(scene, "silent") == 1


async def test_signs_of_life(stage: Stage) -> None:
    scene = await stage(listeners=listener(websocket={"keepalive": 1.0}))
    async with page(scene) as client:
        await client.log_in()
        await trio.sleep(3.2)
        await client.send(b"b NOOP\r\n")
        assert await client.answer(b"b") == b"b OK NOOP completed.\r\n"


async def test_a_client_that_takes_nothing(stage: Stage) -> None:
    async def pour(peer: Wire) -> None:
        await peer.send(GREETING)
        tag = (await peer.line()).split()[0]
        await peer.send(tag + LOGGED_IN)
        while True:
            await peer.send(b"* 1 FETCH (BODY[] {100000}\r\n" + b"x" * 100000 + b")\r\n")

    scene = await stage(pour, listeners=listener(websocket={"keepalive": 1.0}))
    async with page(scene) as client:
        assert (await client.line()).startswith(b"* OK ")
        await client.send(b"a LOGIN ann right\r\n")
        line = await scene.closing()
        assert line["outcome"] == Outcome.CLIENT_CLOSED
        assert line["bytes_from_backend"] < 20_000_000
        assert ends(scene, "silent") == 1


async def test_a_backend_that_takes_nothing_is_no_death(stage: Stage) -> None:
    """Back-pressure reaches the client, whose pongs stand behind what is not taken."""
    go = trio.Event()
    size = 12_000_000

    async def refuse(peer: Wire) -> None:
        await peer.send(GREETING)
        tag = (await peer.line()).split()[0]
        await peer.send(tag + LOGGED_IN)
        await go.wait()
        await take(peer, size)
        await peer.send(b"b OK Done.\r\n")
        await mailbox(peer)

    scene = await stage(refuse, listeners=listener(websocket={"keepalive": 1.0}))
    async with page(scene) as client:
        await client.log_in()
        async with trio.open_nursery() as sending:

            async def send() -> None:
                await client.send(b"b APPEND INBOX {%d+}\r\n" % size, b"x" * size, b"\r\n")

            sending.start_soon(send)
            await trio.sleep(3.5)
            assert not scene.logged("session.closed")
            go.set()
            assert await client.answer(b"b") == b"b OK Done.\r\n"


async def test_both_end_at_once(stage: Stage) -> None:
    """Whoever is first: each session is told of once, and nothing is left."""
    scene = await stage(listeners=listener())
    before = _descriptors()
    for delay in (0.0, 0.0005, 0.001, 0.002, 0.004):
        for ours in ("close", "reset"):
            async with page(scene) as client:
                await client.log_in()
                number = len(scene.clients)
                await client.send(b"z LOGOUT\r\n")
                await trio.sleep(delay)
                if ours == "close":
                    await client.websocket.aclose(1001)
                else:
                    scene.clients[-1].reset()
                await scene.until_closed(number)
    await until(lambda: not scene.backend.open)
    await until(lambda: scene.counted_in_all("porter_websocket_ends_total") == 10)
    for each in scene.clients:
        each.close()
    gc.collect()
    await until(lambda: _descriptors() <= before)


async def test_no_descriptors(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", none_left)
    scene = await stage(listeners=listener())
    client = knock(scene)
    await client.send(request())
    assert (await client.rest()).startswith(b"HTTP/1.1 503 ")
    assert openings(scene, "descriptors") == 1
    await scene.until_closed(1)


async def test_a_bug_ends_one_session(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = await stage(listeners=listener())
    async with page(scene) as other:
        await other.log_in()
        async with page(scene) as client:
            await client.log_in()

            def break_down(_websocket: object, _event: object) -> bytes:
                raise ZeroDivisionError

            monkeypatch.setattr("proxy.transport.websocket.WebSocket._payload", break_down)
            await client.send(b"b NOOP\r\n")
            await client.end()
            monkeypatch.undo()
        await scene.until_closed(1)
        assert ends(scene, "server_bug") == 1
        assert len(scene.logged("websocket.broken")) == 1
        await other.send(b"c NOOP\r\n")
        assert await other.answer(b"c") == b"c OK NOOP completed.\r\n"


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
