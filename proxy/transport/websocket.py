"""The server's side of a WebSocket (RFC 6455), subprotocol `imap`.

Theory of operation. wsproto knows the protocol: octets in, events out. Octets of data frames are passed on as they
come, in whatever frames and messages, so that a message costs no memory however large it is, and in fragments however
small. There are no extensions: compressing costs 300 KiB a connection, and what is compressed beside a secret tells of
it. One task receives and another one sends; pongs and the answer to a close are the receiving task's to send, so
sending takes turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from proxy.settings.client_models import WebSockets
from proxy.transport.stream import ConnectionLost, Stream

SUBPROTOCOL = "imap"
# RFC 6455 §7.4.1.
NORMAL, GOING_AWAY, TOO_BIG = 1000, 1001, 1009
# What a client that may not come in can understand before it has asked for anything.
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

# Browsers send a kilobyte or two, with the cookies of the site's other pages.
_MOST_HEADER_BYTES = 16384
_FRAMES_PER_TURN = 16


class WebSocketFailed(Exception):
    """The client broke the rules. `code` is what a close frame tells it; the text is for the log."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class Opening:
    """What a client's opening handshake says (RFC 6455 §4.1)."""

    subprotocols: Sequence[str]
    origin: str | None
    x_forwarded_for: Sequence[str]
    forwarded: Sequence[str]


class WebSocket:
    """One WebSocket on a stream, which is the WebSocket's from now on."""

    __slots__ = (
        "_connection",
        "_frames",
        "_handshake",
        "_message_bytes",
        "_second_ends",
        "_sending",
        "_stream",
        "_text",
        "_torn",
        "client_closed",
        "heard_at",
        "limits",
    )

    def __init__(self, stream: Stream, limits: WebSockets) -> None:
        self._stream, self.limits = stream, limits
        self._handshake: H11Handshake | None = None
        self._connection: Connection
        self._sending = trio.Lock()
        self._torn = False  # a send was interrupted: what is sent behind it would be taken for its rest
        self._text: bool | None = None  # whether the client's first message was text
        self._message_bytes = 0
        self._frames, self._second_ends = 0, 0.0
        self.client_closed = False  # it has said so, and has been answered
        self.heard_at = 0.0  # when the client last said anything

    # --- opening handshake ---

    async def receive_opening(self) -> Opening:
        """What the client asks for. How long that may take is the caller's to say.

        Raises:
            WebSocketFailed: It asks for no WebSocket, and has been told so.
            ConnectionLost: It is gone.
        """
        self._handshake = handshake = H11Handshake(ConnectionType.SERVER)
        received = 0
        while True:
            data = await self._stream.receive()
            if not data:
                raise ConnectionLost("closed before its handshake was complete")
            received += len(data)
            if received > _MOST_HEADER_BYTES:
                await self.reject(431, "The request's header is too large.")
                raise WebSocketFailed(TOO_BIG, "the request's header is too large")
            try:
                handshake.receive_data(data)
            except RemoteProtocolError as exc:
                hint = exc.event_hint
                status = hint.status_code if isinstance(hint, RejectConnection) else 400
                headers = list(hint.headers) if isinstance(hint, RejectConnection) else []
                await self.reject(status, "IMAP over WebSocket is spoken here (RFC 6455).", headers)
                raise WebSocketFailed(1002, str(exc)) from None
            except UnicodeError:  # of a host name, or a list
                await self.reject(400, "A header holds what cannot be read.")
                raise WebSocketFailed(1002, "a header that cannot be read") from None
            for event in handshake.events():
                assert isinstance(event, Request)
                if not data.endswith(b"\n"):  # RFC 6455 §4.1: it has to wait for the answer, and these would get lost
                    await self.reject(400, "There is something behind the request.")
                    raise WebSocketFailed(1002, "octets behind the request")
                return _opening(event)

    async def accept(self) -> None:
        """Let the client in; it has offered our subprotocol. Raises ConnectionLost."""
        assert self._handshake is not None
        await self._put(self._handshake.send(AcceptConnection(subprotocol=SUBPROTOCOL)))
        assert self._handshake.connection is not None
        self._connection, self._handshake = self._handshake.connection, None
        self.heard_at = trio.current_time()

    async def reject(self, status: int, text: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Turn the client away, with a word for whoever looks. Raises ConnectionLost."""
        handshake = self._handshake
        assert handshake is not None
        body = text.encode() + b"\n"
        told = [*headers, (b"Content-Type", b"text/plain"), (b"Content-Length", b"%d" % len(body))]
        answer = handshake.send(
            RejectConnection(status_code=status, headers=[*told, (b"Connection", b"close")], has_body=True)
        )
        await self._put(answer + handshake.send(RejectData(data=body, body_finished=True)))
        self._stream.end_sending()

    # --- what the client says ---

    async def receive(self) -> bytes:
        """Octets of data frames, b"" where there were other frames only. Frames that ask for an answer get it.

        After a close `client_closed` is set, and nothing more can be received.

        Raises:
            WebSocketFailed: The client has broken the rules.
            ConnectionLost: It is gone without a word.
        """
        data = await self._receive()
        if not data:
            raise ConnectionLost("closed without a closing handshake")
        self._connection.receive_data(data)
        octets = bytearray()
        for event in self._connection.events():
            if isinstance(event, BytesMessage | TextMessage):
                octets += self._payload(event)
                if not event.frame_finished:
                    continue
            elif isinstance(event, Ping):
                await self._send(event.response())
            elif isinstance(event, CloseConnection):
                if self._connection.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
                    # wsproto's way to say that it cannot read what came.
                    raise WebSocketFailed(int(event.code), event.reason or "not a WebSocket frame")
                await self._send(event.response())
                self.client_closed = True
                break
            await self._pace()
        self.heard_at = trio.current_time()
        return bytes(octets)

    def _payload(self, event: BytesMessage | TextMessage) -> bytes | bytearray:
        if self._text is None:
            self._text = isinstance(event, TextMessage)
        octets = event.data.encode() if isinstance(event, TextMessage) else event.data
        self._message_bytes += len(octets)
        if self._message_bytes > self.limits.max_message:
            raise WebSocketFailed(TOO_BIG, "a message larger than websocket.max_message")
        if event.message_finished:
            self._message_bytes = 0
        return octets

    async def _pace(self) -> None:
        """Give the others their turn, and a client that sends too many frames a pause."""
        self._frames += 1
        if self._frames % _FRAMES_PER_TURN:
            return
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        if now >= self._second_ends:
            self._frames, self._second_ends = 0, now + 1.0
        elif self._frames >= self.limits.frames_per_second:
            await trio.sleep_until(self._second_ends)
        self.heard_at = trio.current_time()  # it is we who take our time

    # --- what it is told ---

    async def send(self, data: bytes) -> None:
        """A message: text for a client that began with text, where that can be, else binary. Raises ConnectionLost.

        IMAP knows octets: in text they could not all be told, and a client that reads text alone would be cut off by
        its browser (RFC 6455 §8.1). What is cut within a character goes as binary too, on both sides of the cut.
        """
        if self._text:
            try:
                await self._send(TextMessage(data=data.decode()))
            except UnicodeDecodeError:
                pass
            else:
                return
        await self._send(BytesMessage(data=data))

    async def ping(self) -> None:
        """Ask for a sign of life. Raises ConnectionLost."""
        await self._send(Ping())

    async def close(self, code: int) -> None:
        """Begin the closing handshake, unless the client has. Raises ConnectionLost."""
        await self._send(CloseConnection(code=code))

    def cut(self) -> None:
        """Close the stream, at once; may be called twice."""
        self._stream.close()

    async def _send(self, event: Event) -> None:
        async with self._sending:
            answers = isinstance(event, CloseConnection) and self._connection.state is ConnectionState.REMOTE_CLOSING
            if self._connection.state is not ConnectionState.OPEN and not answers:
                return  # nothing follows a close (RFC 6455 §5.5.1)
            await self._put(bytes(self._connection.send(event)))

    async def _put(self, data: bytes) -> None:
        if self._torn:
            raise ConnectionLost("a frame was interrupted")
        self._torn = True
        try:
            await self._stream.send(data)
        except trio.BusyResourceError as exc:
            raise _crossed() from exc
        self._torn = False

    async def _receive(self) -> bytes:
        try:
            return await self._stream.receive()
        except trio.BusyResourceError as exc:
            raise _crossed() from exc


def _crossed() -> ConnectionLost:
    """TLS has to write before it can read, or the other way round, while the other task waits for just that.

    Only a client that asks for new keys (RFC 8446 §4.6.3) and takes nothing gets there.
    """
    return ConnectionLost("new keys were asked for while nothing could be sent")


def _opening(request: Request) -> Opening:
    def values(name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in request.extra_headers if key == name]

    origins = values(b"origin")
    return Opening(
        request.subprotocols,
        ", ".join(origins) if origins else None,  # two are none that could be allowed
        values(b"x-forwarded-for"),
        values(b"forwarded"),
    )
