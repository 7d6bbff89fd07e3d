"""Carries a session over a WebSocket: what its end of a socket pair says goes to the client, and the other way round.

Theory of operation. Whoever serves the session holds the pair's other end and knows of no WebSocket. Two tasks carry,
one up and one down; either waits while the other side takes nothing, so that no more is kept than one chunk per
direction and what the pair holds in the kernel. The session's end becomes a closing handshake, and whatever happens to
the client the session's end. Whichever task comes to an end first takes the other one with it, and both ends are closed
behind them.
"""

from __future__ import annotations

import contextlib
import socket

import trio

from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.transport.stream import ConnectionLost, PlainStream
from proxy.transport.websocket import GOING_AWAY, NORMAL, WebSocket, WebSocketFailed

log = get_logger()

# In each direction, in the kernel.
_PAIR_BYTES = 65536
# As much of it may wait for a client that does not read, so that it shows when one takes nothing at all.
NOT_SENT_LOW_WATER_BYTES = 65536
# A client that has been told that it is over may take so long to say so, too.
_CLOSING_SECONDS = 2.0
# Of a drain that has run out of time: for the last words of the session, and for telling the client.
_LAST_SECONDS = 1.0

_ENDS = metrics.counter(
    "porter_websocket_ends_total",
    "WebSockets that are over, by what ended them: the session, a close of the client's, a connection that broke, no "
    "sign of life, a frame that is none, an end of the service.",
    cause=("session", "client", "lost", "silent", "protocol", "drained", "server_bug"),
)


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends, not blocking. Raises OSError where there are no descriptors."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PAIR_BYTES)
    return ends


class Bridge:
    """One WebSocket and the session on it. Both belong to the bridge once it runs, and are closed at its end."""

    def __init__(self, websocket: WebSocket, session: socket.socket, keepalive: float) -> None:
        """Args:
        session: One end of a pair; the session is served at the other one.
        keepalive: In seconds.
        """
        self._websocket, self._session = websocket, PlainStream(session)
        self._keepalive = keepalive
        self._cause = ""
        self._held_up = False  # the session takes nothing just now, so nothing of the client's is read

    async def run(self) -> None:
        """Until the session, the client or the service ends. Nothing but Cancelled is raised."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._down, nursery.cancel_scope)
                nursery.start_soon(self._up, nursery.cancel_scope)
        finally:
            self._session.close()
            self._websocket.cut()
            _ENDS.labels(self._cause or "drained").inc()

    async def _up(self, both: trio.CancelScope) -> None:
        """What the client says."""
        try:
            await self._hear()
        except ConnectionLost:
            self._ended_by("lost")
        except WebSocketFailed as exc:
            self._ended_by("protocol")
            log.info("websocket.failed", code=exc.code, detail=str(exc))
            with contextlib.suppress(ConnectionLost), trio.move_on_after(_CLOSING_SECONDS):
                await self._websocket.close(exc.code)
        except Exception:
            self._bug()
        both.cancel()

    async def _hear(self) -> None:
        """Until the client has closed. Once there is no session any more, only that is waited for."""
        websocket, listening = self._websocket, True
        while not websocket.client_closed:
            octets = await websocket.receive()
            if not octets or not listening:
                continue
            self._held_up = True
            try:
                await self._session.send(octets)
            except ConnectionLost:
                listening = False
            self._held_up = False
        self._ended_by("client")

    async def _down(self, both: trio.CancelScope) -> None:
        """What the session says, and signs of life."""
        try:
            await self._tell()
        except ConnectionLost:
            self._ended_by("lost")
        except trio.Cancelled:
            if not self._cause:
                await self._leave()
            raise
        except Exception:
            self._bug()
        both.cancel()

    async def _tell(self) -> None:
        """Until the session has ended and the client knows, or there is no client any more."""
        websocket, keepalive = self._websocket, self._keepalive
        due, pinged = trio.current_time() + keepalive, 0.0
        while True:
            if trio.current_time() >= due:
                if websocket.heard_at < pinged and not self._held_up:
                    self._ended_by("silent")
                    return
                pinged = trio.current_time()
                due = pinged + keepalive
                data: bytes | None = b""
            else:
                data = None
                with trio.move_on_at(due):
                    data = await self._next_words()
                if data is None:
                    continue
                if not data:
                    break
            with trio.move_on_after(2 * keepalive) as patience:
                await (websocket.send(data) if data else websocket.ping())
            if patience.cancelled_caught:
                self._ended_by("silent")
                return
        self._ended_by("session")
        with trio.move_on_after(_CLOSING_SECONDS):
            await websocket.close(NORMAL)
            await trio.sleep_forever()  # _up ends both when the client has answered

    async def _next_words(self) -> bytes:
        """What the session says; b"": it has ended."""
        try:
            return await self._session.receive()
        except ConnectionLost:  # it has left words of the client unread
            return b""

    async def _leave(self) -> None:
        """The service ends: pass on what the session has to say of that, and go. Short, and never interrupted."""
        with contextlib.suppress(ConnectionLost):
            with trio.move_on_after(_LAST_SECONDS, shield=True):
                while data := await self._next_words():
                    await self._websocket.send(data)
            with trio.move_on_after(_LAST_SECONDS, shield=True):
                await self._websocket.close(GOING_AWAY)

    def _ended_by(self, cause: str) -> None:
        self._cause = self._cause or cause  # what comes behind the first is its consequence

    def _bug(self) -> None:
        """One boundary per task: what is raised in here ends this session only."""
        log.exception("websocket.broken")
        self._ended_by("server_bug")
