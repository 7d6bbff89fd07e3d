"""HTTP on a listener of its own: starlette answers, hypercorn speaks the protocol, trio carries it.

hypercorn's own `serve` has no bound on connections and shields its writes without a deadline: a client that asks and
never reads would stay for ever, and with it the process; one that sends a large body nobody asked for, likewise. So the
loop that accepts is ours, and so is the stream that hypercorn writes to. What bounds a client:

- there are at most MAX_CONNECTIONS; one more is closed at once;
- a connection serves one request and lives for CONNECTION_SECONDS at most;
- a request's headers hold at most MAX_HEADER_BYTES and are complete after REQUEST_SECONDS;
- a body is read only as fast as a handler takes it, a few reads ahead;
- each write ends after WRITE_SECONDS, and all of them a second after the server is told to stop.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
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

MAX_CONNECTIONS = 64
MAX_HEADER_BYTES = 16 * 1024
CONNECTION_SECONDS = 30.0
REQUEST_SECONDS = 10.0
WRITE_SECONDS = 10.0
_STOPPING_SECONDS = 1.0

Readiness = Callable[[], tuple[bool, Mapping[str, Any]]]


# --- what is served ---


class _SafeHeaders:
    """Headers for every answer, the ones starlette makes by itself included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cache-Control"] = "no-store"
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


def health_app(ready: Readiness) -> Starlette:
    """GET /livez: the event loop turns. GET /readyz: whether new clients are welcome, 200 or 503.

    Args:
        ready: Gives that, and what the answer's JSON holds.
    """

    async def show_live(_request: Request) -> Response:
        return JSONResponse({"live": True})

    async def show_ready(_request: Request) -> Response:
        is_ready, details = ready()
        return JSONResponse(dict(details), status_code=200 if is_ready else 503)

    return Starlette(routes=[Route("/livez", show_live), Route("/readyz", show_ready)], middleware=MIDDLEWARE)


# --- how it is served ---


async def serve_http(
    app: ASGIApp,
    listening: socket.socket,
    *,
    connection_seconds: float | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until cancelled; whoever is being answered then has a second left.

    Args:
        listening: TCP or unix; whoever opened it closes it. On a unix socket handlers find in `request.state.peer_uid`
            who has connected.
        connection_seconds: How long one connection lives, where CONNECTION_SECONDS are not enough for an answer.
        task_status: Started once it accepts.
    """
    # A duplicate: trio closes what it is handed, and other processes go on with the original.
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening.dup()))
    server = _Server(app, connection_seconds or CONNECTION_SECONDS)
    async with listener, trio.open_nursery() as nursery:
        connections = await nursery.start(server.hold_connections)
        task_status.started()
        try:
            await trio.serve_listeners(server.serve_connection, [listener], handler_nursery=connections)
        finally:
            server.stop()


class _BoundedStream(trio.abc.HalfCloseableStream):
    """A connection whose writes come to an end: hypercorn shields them, and a cancellation cannot reach them."""

    def __init__(self, stream: trio.SocketStream, writes: set[trio.CancelScope]) -> None:
        self.socket = stream.socket  # hypercorn asks it for the addresses
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
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Server:
    """The connections of one listener."""

    def __init__(self, app: ASGIApp, connection_seconds: float) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]  # two spellings of ASGI
        self._context = WorkerContext(None)
        self._connection_seconds = connection_seconds
        self._connections = 0
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
        if self._connections >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        bounded: Any = _BoundedStream(stream, self._writes)
        try:
            state = ConnectionState(_state(stream))
            with trio.move_on_after(self._connection_seconds):
                await TCPServer(self._app, self._config, self._context, state, bounded)
        except Exception:
            log.exception("admin.connection_failed")
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    def stop(self) -> None:
        """Nobody new is let in: an answer under way, a reload's above all, has a moment to get out.

        Writes are told by themselves: nothing else can end them.
        """
        self._stopping.set()
        self._life.deadline = trio.current_time() + _STOPPING_SECONDS
        for scope in self._writes:
            scope.deadline = min(scope.deadline, self._life.deadline)


def _state(stream: trio.SocketStream) -> dict[str, Any]:
    """What handlers are told of a connection."""
    return {"peer_uid": peer_uid(stream.socket)} if stream.socket.family == socket.AF_UNIX else {}
