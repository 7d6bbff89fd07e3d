"""The way in over WebSocket: who may open one, and the session at its end."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

from proxy.ledger.session import Session
from proxy.model import Endpoint
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.transport.door import Door
from proxy.transport.forwarded import Contradiction, forwarded_client
from proxy.transport.stream import PlainStream, Stream
from proxy.transport.websocket import SUBPROTOCOL, Opening, WebSocket, WebSocketFailed
from proxy.transport.websocket_bridge import NOT_SENT_LOW_WATER_BYTES, Bridge, make_pair

log = get_logger()

_OPENINGS = metrics.counter(
    "porter_websocket_openings_total",
    "Opening handshakes of WebSockets, by what came of them.",
    result=("accepted", "protocol", "subprotocol", "origin", "forwarded", "limit", "descriptors", "timeout"),
)


class OpeningRefused(Exception):
    """No WebSocket was opened, and the client knows. `reason` is a label of the metric; the text is for the log."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Opened:
    """A WebSocket with a session to be served on it."""

    front: Endpoint | None  # who speaks in there, so far as is known
    stream: PlainStream  # the session's end
    bridge: Bridge  # has to run


async def open_websocket(
    stream: Stream, front: Endpoint | None, session: Session, door: Door, identify: Callable[[], str | None]
) -> Opened | str:
    """Hear what the client wants, and let it have that if it may. How long that may take is the caller's to say.

    Args:
        front: Who speaks here, so far as is known.
        session: Is told who the client is, where a web server speaks for it.
        identify: Counts the client by its address; gives the limit that it has reached, if it has.
    Returns:
        The limit that was reached, if one was.
    Raises:
        OpeningRefused: It may not.
        ConnectionLost: It is gone.
    """
    websocket = WebSocket(stream, door.websocket)
    try:
        opening = await websocket.receive_opening()
    except WebSocketFailed as exc:
        raise OpeningRefused("protocol", str(exc)) from None
    if SUBPROTOCOL not in opening.subprotocols:
        await websocket.reject(400, "The subprotocol is imap.")
        raise OpeningRefused("subprotocol", f"offered: {', '.join(opening.subprotocols) or 'none'}")
    if not door.allows_origin(opening.origin):
        await websocket.reject(403, "Pages of this origin may not connect.")
        raise OpeningRefused("origin", opening.origin or "no Origin")
    try:
        client = _spoken_for(opening, front, door)
    except Contradiction as exc:
        await websocket.reject(400, "X-Forwarded-For and Forwarded name different clients.")
        raise OpeningRefused("forwarded", str(exc)) from None
    if client is not None:
        session.client, session.via, front = client, str(front), client
    if session.admitted is None and (limit := identify()):
        _OPENINGS.labels("limit").inc()
        await websocket.reject(503, "Too many connections; try again later.")
        return limit
    return await _accept(websocket, stream, front)


def note_refused(session: Session, reason: str, detail: str) -> None:
    """A WebSocket that was asked for was not opened."""
    _OPENINGS.labels(reason).inc()
    log.info(
        "websocket.refused",
        session_id=session.id,
        client=str(session.client),
        via=session.via,
        listener=session.listener,
        reason=reason,
        detail=detail,
    )


def _spoken_for(opening: Opening, front: Endpoint | None, door: Door) -> Endpoint | None:
    """The client of a web server that is believed; None: there is no such server, or it names none."""
    if front is None or not door.believes_forwarded(front.host):
        return None
    return forwarded_client(opening.x_forwarded_for, opening.forwarded, door.trusts)


async def _accept(websocket: WebSocket, stream: Stream, front: Endpoint | None) -> Opened:
    try:
        ours, theirs = make_pair()
    except OSError as exc:
        await websocket.reject(503, "Too busy; try again later.")
        raise OpeningRefused("descriptors", exc.strerror or str(exc)) from None
    try:
        with contextlib.suppress(OSError):  # not every socket knows it
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_LOW_WATER_BYTES)
        await websocket.accept()
    except BaseException:
        ours.close()
        theirs.close()
        raise
    _OPENINGS.labels("accepted").inc()
    return Opened(front, PlainStream(ours), Bridge(websocket, theirs, websocket.limits.keepalive))
