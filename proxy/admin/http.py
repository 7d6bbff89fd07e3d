"""HTTP on a listener of its own: starlette answers, hypercorn speaks the protocol, trio carries it.

hypercorn's own `serve` has no bound on connections and shields its writes without a deadline: a client that asks and
never reads would stay for ever, and with it the process; one that sends a large body nobody asked for, likewise. So the
loop that accepts is ours, and so is the stream that hypercorn writes to. What bounds a client:

- there are at most MAX_CONNECTIONS; for one more one that has asked for nothing is closed, or it is closed itself;
- TLS, where it is spoken, begins within REQUEST_SECONDS;
- a connection serves one request and lives for CONNECTION_SECONDS at most. A WebSocket that somebody was let in for
  stays (`Stay`): it counts no more among these, and whoever lets it stay bounds how many there are;
- a request's headers hold at most MAX_HEADER_BYTES and are complete after REQUEST_SECONDS;
- a body is read only as fast as a handler takes it, a few reads ahead;
- each write ends after WRITE_SECONDS, and all of them a second after the server is told to stop.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.admin.unix_socket import peer_uid
from proxy.observe import metrics
from proxy.observe.log import get_logger

log = get_logger()

MAX_CONNECTIONS = 128
MAX_HEADER_BYTES = 16 * 1024
CONNECTION_SECONDS = 30.0
REQUEST_SECONDS = 10.0
WRITE_SECONDS = 10.0
PING_SECONDS = 20.0
_STOPPING_SECONDS = 1.0
_SILENCE_SECONDS = 60.0
_MOST_TOLD = 100

_FAILED = metrics.counter(
    "porter_admin_connections_failed_total",
    "Connections of administrators' doors that a mistake of ours, or of a library, ended.",
)
_LEAVING_SECONDS = 0.2

Stay = Callable[[], AbstractContextManager[None]]
Readiness = Callable[[], tuple[bool, Mapping[str, Any]]]


# --- what is served ---


_SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class _SafeHeaders:
    """Headers for every answer, the ones starlette makes by itself included; whoever answers may say other ones."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in _SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


MIDDLEWARE = [Middleware(_SafeHeaders)]


async def _at_hand() -> None:
    """Nobody else has anything to tell."""


def metrics_app(
    exposition: Callable[[], tuple[bytes, str]] = metrics.exposition, refresh: Callable[[], Awaitable[None]] = _at_hand
) -> Starlette:
    """GET /metrics: all metrics as text.

    Args:
        exposition: Called in the event loop's thread, where the tallies live.
        refresh: Has other processes tell theirs first.
    """

    async def show_metrics(_request: Request) -> Response:
        await refresh()
        text, content_type = exposition()
        return Response(text, headers={"Content-Type": content_type})

    return Starlette(routes=[Route("/metrics", show_metrics)], middleware=MIDDLEWARE)


def health_routes(ready: Readiness) -> list[Route]:
    """GET /livez: the event loop turns. GET /readyz: whether new clients are welcome, 200 or 503.

    Args:
        ready: Gives that, and what the answer's JSON holds.
    """

    async def show_live(_request: Request) -> Response:
        return JSONResponse({"live": True})

    async def show_ready(_request: Request) -> Response:
        is_ready, details = ready()
        return JSONResponse(dict(details), status_code=200 if is_ready else 503)

    return [Route("/livez", show_live), Route("/readyz", show_ready)]


def health_app(ready: Readiness) -> Starlette:
    """health_routes() by themselves."""
    return Starlette(routes=health_routes(ready), middleware=MIDDLEWARE)


# --- how it is served ---


async def serve_http(
    app: ASGIApp,
    listening: socket.socket,
    *,
    connection_seconds: float | None = None,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until cancelled; whoever is being answered then has a second left.

    Args:
        listening: TCP or unix; whoever opened it closes it. On a unix socket handlers find in `state.peer_uid` who has
            connected; on any, whether it is by TLS in `state.secure`, and in `state.stay` the `Stay` of a connection.
        connection_seconds: How long one connection lives, where CONNECTION_SECONDS are not enough for an answer.
        tls: None: plain HTTP.
        task_status: Started once it accepts.
    """
    # A duplicate: trio closes what it is handed, and other processes go on with the original.
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening.dup()))
    server = _Server(app, connection_seconds or CONNECTION_SECONDS, tls)
    async with listener, trio.open_nursery() as nursery:
        connections = await nursery.start(server.hold_connections)
        task_status.started()
        try:
            await trio.serve_listeners(server.serve_connection, [listener], handler_nursery=connections)
        finally:
            server.stop()


Connected = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class _BoundedStream(trio.abc.Stream):
    """A connection whose writes come to an end: hypercorn shields them, and a cancellation cannot reach them.

    hypercorn takes it for one without TLS, whichever it is: the handshake has been made.
    """

    def __init__(self, stream: Connected, sock: trio.socket.SocketType, writes: set[trio.CancelScope]) -> None:
        self.socket = sock  # hypercorn asks it for the addresses
        self._stream = stream
        self._writes = writes

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio.move_on_after(WRITE_SECONDS) as scope:
            self._writes.add(scope)
            try:
                await self._stream.send_all(data)
            finally:
                self._writes.discard(scope)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.SocketStream):
            await self._stream.send_eof()

    async def aclose(self) -> None:
        with trio.move_on_after(_STOPPING_SECONDS):  # TLS takes leave, which somebody may not want to read
            await self._stream.aclose()


class _Server:
    """The connections of one listener."""

    def __init__(self, app: ASGIApp, connection_seconds: float, tls: ssl.SSLContext | None) -> None:
        self._app = ASGIWrapper(_noted(app))  # type: ignore[arg-type]  # two spellings of ASGI
        self._context = WorkerContext(None)
        self._connection_seconds = connection_seconds
        self._tls = tls
        self._connections: set[_Connection] = set()  # but for those that stay
        self._stopping = trio.Event()
        self._life = trio.CancelScope(shield=True)
        self._writes: set[trio.CancelScope] = set()
        self._config = Config()
        self._config.accesslog = None
        # A logger of the standard library's: its lines arrive in our log by themselves.
        self._config.errorlog = logging.getLogger("hypercorn.error")
        self._config.include_server_header = False
        self._config.h11_max_incomplete_size = MAX_HEADER_BYTES
        self._config.h2_max_concurrent_streams = 8
        self._config.h2_max_header_list_size = MAX_HEADER_BYTES
        self._config.websocket_max_message_size = MAX_HEADER_BYTES
        self._config.websocket_ping_interval = PING_SECONDS
        # Reads of up to 64 KiB that a handler has not asked for. hypercorn puts its own "disconnected" behind them
        # and waits for room, so a small body that no handler reads must fit.
        self._config.max_app_queue_size = 8
        self._config.keep_alive_timeout = REQUEST_SECONDS
        self._config.keep_alive_max_requests = 0  # each answer says Connection: close

    async def hold_connections(self, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        """Keep a nursery for them, which outlives the one who accepts by the time that stop() gives."""
        with self._life:
            async with trio.open_nursery() as connections:
                task_status.started(connections)
                await self._stopping.wait()

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        """One connection, whatever its client does. A bug ends this connection only."""
        peer = "" if stream.socket.family == socket.AF_UNIX else str(stream.socket.getpeername()[0])
        connection = _Connection(self._connection_seconds, peer)
        if len(self._connections) >= MAX_CONNECTIONS and not self._make_room():
            await trio.aclose_forcefully(stream)
            return
        self._connections.add(connection)
        connection.on_stay = partial(self._connections.discard, connection)
        try:
            with connection.scope:
                await self._serve(stream, connection)
        except Exception as exc:
            _FAILED.inc()
            if _seldom(type(exc).__name__):  # a stranger may be able to bring it about as often as he likes
                log.exception("admin.connection_failed")
        finally:
            self._connections.discard(connection)
            await trio.aclose_forcefully(stream)

    def _make_room(self) -> bool:
        """Close one that has asked for nothing yet, of whoever has the most of those: so a stranger who opens many
        takes the place of nobody who has a question. Gives whether there was one.
        """
        idle = [connection for connection in self._connections if not connection.asks]
        if not idle:
            return False
        crowds = Counter(connection.peer for connection in idle)
        crowd = max(crowds.values())
        victim = min((each for each in idle if crowds[each.peer] == crowd), key=lambda each: each.since)
        self._connections.discard(victim)
        victim.scope.cancel()
        return True

    async def _serve(self, stream: trio.SocketStream, connection: _Connection) -> None:
        secured = stream if self._tls is None else await _secured(stream, self._tls)
        if secured is None:
            return
        bounded: Any = _BoundedStream(secured, stream.socket, self._writes)
        told = {"asks": connection.ask, "stay": connection.stay, "secure": self._tls is not None}
        if stream.socket.family == socket.AF_UNIX:
            told["peer_uid"] = peer_uid(stream.socket)
        await TCPServer(self._app, self._config, self._context, ConnectionState(told), bounded)

    def stop(self) -> None:
        """Nobody new is let in: an answer under way, a reload's above all, has a moment to get out.

        Writes are told by themselves: nothing else can end them.
        """
        self._stopping.set()
        self._life.deadline = trio.current_time() + _STOPPING_SECONDS
        for scope in self._writes:
            scope.deadline = min(scope.deadline, self._life.deadline)


def _noted(app: ASGIApp) -> ASGIApp:
    """Whoever has asked something is not idle any more."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope["state"].pop("asks")()
        await app(scope, receive, send)

    return answer


class _Seldom(logging.Filter):
    """Lets a message through once a minute: of what strangers can bring about, like whatever a parser cannot take."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be logged."""
        return _seldom(f"{record.msg!s:.40}{record.exc_info[0] if record.exc_info else ''}")


_told: OrderedDict[str, float] = OrderedDict()


def _seldom(what: str) -> bool:
    """Whether it is time to tell of it again, which then counts as done."""
    now = time.monotonic()
    if now - _told.get(what, -_SILENCE_SECONDS) < _SILENCE_SECONDS:
        return False
    _told[what] = now
    _told.move_to_end(what)
    if len(_told) > _MOST_TOLD:
        _told.popitem(last=False)
    return True


logging.getLogger("hypercorn.error").addFilter(_Seldom())


class _Connection:
    """How long a connection lives, and whether it counts among those that soon end."""

    def __init__(self, seconds: float, peer: str) -> None:
        self.peer, self.since = peer, trio.current_time()
        self.scope = trio.move_on_after(seconds)
        self.asks = False  # its request's header is complete
        self.stays = False
        self.on_stay: Callable[[], None] = lambda: None

    def ask(self) -> None:
        """It has asked for something."""
        self.asks = True

    @contextmanager
    def stay(self) -> Iterator[None]:
        """Live as long as this block, and a moment for what is to be said afterwards."""
        self.scope.deadline = math.inf
        if not self.stays:
            self.stays = True
            self.on_stay()
        try:
            yield
        finally:
            # hypercorn itself would notice at its next ping that nobody is there any more.
            self.scope.deadline = trio.current_time() + _LEAVING_SECONDS


async def _secured(stream: trio.SocketStream, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream] | None:
    """TLS, once it is there; None: it does not come about."""
    secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    with trio.move_on_after(REQUEST_SECONDS):
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError:
            return None
        return secured
    return None
