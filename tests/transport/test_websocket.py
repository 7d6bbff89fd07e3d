"""The opening handshake and the frames of a WebSocket, octet by octet."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import pytest
import trio
import trio.testing

from proxy.model import Endpoint
from proxy.settings.client_models import WebSockets
from proxy.settings.models import Listener
from proxy.transport.door import Door
from proxy.transport.stream import ConnectionLost
from proxy.transport.tls import HTTP, ServerCertificates
from proxy.transport.websocket import NORMAL, WebSocket, WebSocketFailed
from tests.servers.pki import Pki
from tests.transport import visits
from tests.transport.websocket_client import (
    ACCEPTED,
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close,
    frame,
    frames,
    request,
)

DEFAULTS = WebSockets()


class Script:
    """A stream on which everything was said beforehand."""

    secure = False
    socket: socket.socket

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = [chunk for chunk in chunks if chunk]
        self.sent = b""
        self.ended = self.closed = False

    @property
    def transport(self) -> socket.socket:
        raise AssertionError("nobody asks for it")

    async def receive(self) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""

    async def send(self, data: bytes) -> None:
        self.sent += data

    def end_sending(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True


def octets(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


async def opened(*chunks: bytes, limits: WebSockets = DEFAULTS) -> tuple[WebSocket, Script]:
    stream = Script([request(), *chunks])
    websocket = WebSocket(stream, limits)
    await websocket.receive_opening()
    await websocket.accept()
    stream.sent = b""
    return websocket, stream


async def hear(websocket: WebSocket) -> bytes:
    """Everything up to the client's close. Raises as receive()."""
    heard = b""
    while not websocket.client_closed:
        heard += await websocket.receive()
    return heard


@pytest.mark.parametrize("whole", [True, False])
async def test_the_opening_handshake(whole: bool) -> None:
    said = request(
        b"Origin: https://mail.example.org",
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        b"X-Forwarded-For: 203.0.113.7",
        b"X-Forwarded-For: 192.0.2.1",
        b"Forwarded: for=203.0.113.7",
        subprotocol=b"soap, imap",
    )
    stream = Script([said] if whole else octets(said))
    websocket = WebSocket(stream, DEFAULTS)
    opening = await websocket.receive_opening()
    assert opening.subprotocols == ["soap", "imap"]
    assert opening.origin == "https://mail.example.org"
    assert opening.x_forwarded_for == ["203.0.113.7", "192.0.2.1"]
    assert opening.forwarded == ["for=203.0.113.7"]
    assert stream.sent == b""
    await websocket.accept()
    lines = stream.sent.lower().split(b"\r\n")
    assert stream.sent.startswith(b"HTTP/1.1 101 ")
    assert b"sec-websocket-accept: " + ACCEPTED in stream.sent.replace(b"Sec-WebSocket-Accept", b"sec-websocket-accept")
    assert b"sec-websocket-protocol: imap" in lines
    assert not [line for line in lines if line.startswith(b"sec-websocket-extensions")], "nothing is compressed"


REFUSED = [
    ("a page", request(without=[b"Upgrade", b"Connection"]), 400),
    ("no key", request(without=[b"Sec-WebSocket-Key"]), 400),
    ("no version", request(without=[b"Sec-WebSocket-Version"]), 400),
    ("another version", request(b"Sec-WebSocket-Version: 8", without=[b"Sec-WebSocket-Version"]), 426),
    ("another upgrade", request(b"Upgrade: h2c", without=[b"Upgrade"]), 400),
    ("no host", request(without=[b"Host"]), 400),
    ("a host that is none", request(b"Host: " + b"x" * 70 + b"\xff", without=[b"Host"]), 400),
    ("not readable", request(b"Sec-WebSocket-Protocol: \xff"), 400),
    ("POST", request(start=b"POST /imap HTTP/1.1"), 400),
    ("HTTP/1.0", request(start=b"GET / HTTP/1.0", without=[b"Host"]), 400),
    ("IMAP", b"a LOGIN ann right\r\n\r\n", 400),
    ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", 400),
    ("a header without end", request()[:-2] + b"X: " + b"x" * 20000, 431),
    ("many headers", request(*[b"X-%d: x" % number for number in range(3000)]), 431),
    ("frames before the answer", request() + frame(BINARY, b"a NOOP\r\n"), 400),
]


@pytest.mark.parametrize(("name", "said", "status"), REFUSED, ids=[case[0] for case in REFUSED])
async def test_what_is_no_opening_handshake(name: str, said: bytes, status: int) -> None:
    stream = Script([said[index : index + 4096] for index in range(0, len(said), 4096)])
    with pytest.raises(WebSocketFailed):
        await WebSocket(stream, DEFAULTS).receive_opening()
    head, _, body = stream.sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-length: %d" % len(body) in head.lower()
    assert b"connection: close" in head.lower()
    assert stream.ended


async def test_another_version_is_told_ours() -> None:
    stream = Script([request(b"Sec-WebSocket-Version: 8", without=[b"Sec-WebSocket-Version"])])
    with pytest.raises(WebSocketFailed):
        await WebSocket(stream, DEFAULTS).receive_opening()
    assert b"sec-websocket-version: 13" in stream.sent.lower()  # RFC 6455 §4.2.2


@pytest.mark.parametrize("said", [b"", request()[:40]])
async def test_who_leaves_before_he_has_asked(said: bytes) -> None:
    with pytest.raises(ConnectionLost):
        await WebSocket(Script([said]), DEFAULTS).receive_opening()


BODY = "Grüße, 猫\r\n".encode()
LARGE = bytes(range(256)) * 300
HEARD = [
    ("binary", frame(BINARY, b"a NOOP\r\n"), b"a NOOP\r\n", []),
    ("text", frame(TEXT, BODY), BODY, []),
    ("two lines", frame(BINARY, b"a NOOP\r\nb NOOP\r\n"), b"a NOOP\r\nb NOOP\r\n", []),
    ("parts of a line", frame(BINARY, b"a NO") + frame(BINARY, b"OP\r") + frame(BINARY, b"\n"), b"a NOOP\r\n", []),
    ("empty messages", frame(BINARY) * 3 + frame(TEXT, b"x") + frame(TEXT), b"x", []),
    ("both kinds", frame(TEXT, b"a ") + frame(BINARY, b"\xff") + frame(TEXT, b"\r\n"), b"a \xff\r\n", []),
    ("larger than 125", frame(BINARY, LARGE[:300]), LARGE[:300], []),
    ("larger than 65535", frame(BINARY, LARGE), LARGE, []),
    ("fragments", frame(TEXT, b"a N", fin=False) + frame(CONTINUATION, b"OOP\r\n"), b"a NOOP\r\n", []),
    (
        "a character in two fragments",
        frame(TEXT, BODY[:3], fin=False) + frame(CONTINUATION, BODY[3:], fin=False) + frame(CONTINUATION),
        BODY,
        [],
    ),
    ("ping", frame(PING, b"are you") + frame(BINARY, b"x"), b"x", [(PONG, b"are you")]),
    (
        "ping between fragments",
        frame(BINARY, b"1", fin=False) + frame(PING, b"?") + frame(CONTINUATION, b"2"),
        b"12",
        [(PONG, b"?")],
    ),
    ("pong that nobody asked for", frame(PONG, b"hello") + frame(BINARY, b"x"), b"x", []),
]


@pytest.mark.parametrize(("name", "said", "heard", "answers"), HEARD, ids=[case[0] for case in HEARD])
async def test_what_is_heard(name: str, said: bytes, heard: bytes, answers: list[tuple[int, bytes]]) -> None:
    said += close(1000)
    for chunks in ([said], octets(said), [said[:7], said[7:]]):
        websocket, stream = await opened(*chunks)
        assert await hear(websocket) == heard
        told = [(each.opcode, each.payload) for each in frames(stream.sent)]
        assert told == [*answers, (CLOSE, (1000, ""))]


BROKEN = [
    ("not masked", frame(BINARY, b"a NOOP\r\n", masked=False), 1002),
    ("a reserved bit", frame(BINARY, b"x", reserved=0x40), 1002),
    ("an unknown opcode", frame(3, b"x"), 1002),
    ("a continuation of nothing", frame(CONTINUATION, b"x"), 1002),
    ("a message within another", frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    ("a ping in fragments", frame(PING, b"x", fin=False), 1002),
    ("a ping too long", frame(PING, b"x" * 126), 1002),
    ("text that is no UTF-8", frame(TEXT, b"a \xff\r\n"), 1007),
    ("text that ends within a character", frame(TEXT, b"\xc3"), 1007),
    ("a close of one octet", frame(CLOSE, b"\x03"), 1002),
    ("a close with a code that is none", close(999), 1002),
    ("a close with a code that is never sent", close(1005), 1002),
    ("a message too large", frame(BINARY, b"x" * 5000), 1009),
    ("fragments too large", (frame(BINARY, b"x" * 3000, fin=False) + frame(CONTINUATION, b"x" * 3000)), 1009),
    ("text too large in octets", frame(TEXT, "猫".encode() * 1400), 1009),
]


@pytest.mark.parametrize(("name", "said", "code"), BROKEN, ids=[case[0] for case in BROKEN])
async def test_broken_rules(name: str, said: bytes, code: int) -> None:
    for chunks in ([said], octets(said)):
        websocket, _ = await opened(*chunks, limits=WebSockets(max_message=4096))
        with pytest.raises(WebSocketFailed) as failed:
            await hear(websocket)
        assert failed.value.code == code


async def test_messages_are_measured_one_by_one() -> None:
    websocket, _ = await opened(frame(BINARY, b"x" * 4096) * 3 + close(1000), limits=WebSockets(max_message=4096))
    assert await hear(websocket) == b"x" * 3 * 4096


async def test_who_vanishes() -> None:
    websocket, _ = await opened(frame(BINARY, b"a NOOP\r\n")[:5])
    with pytest.raises(ConnectionLost):
        await hear(websocket)


TOLD = [
    ("nothing was said yet", None, b"* OK ready\r\n", BINARY, b"* OK ready\r\n"),
    ("binary", BINARY, b"* OK ready\r\n", BINARY, b"* OK ready\r\n"),
    ("text", TEXT, BODY, TEXT, BODY.decode()),
    ("no UTF-8 for text", TEXT, b"caf\xe9\r\n", BINARY, b"caf\xe9\r\n"),
    ("a cut character for text", TEXT, BODY[:3], BINARY, BODY[:3]),
]


@pytest.mark.parametrize(("name", "first", "data", "opcode", "payload"), TOLD, ids=[case[0] for case in TOLD])
async def test_what_is_told(name: str, first: int | None, data: bytes, opcode: int, payload: bytes | str) -> None:
    websocket, stream = await opened(b"" if first is None else frame(first, b"a"))
    if first is not None:
        await websocket.receive()
    await websocket.send(data)
    await websocket.close(NORMAL)
    await websocket.send(b"nothing follows a close")
    assert [(each.opcode, each.payload) for each in frames(stream.sent)] == [(opcode, payload), (CLOSE, (NORMAL, ""))]


async def test_both_close_at_once() -> None:
    websocket, stream = await opened(close(1000))
    await websocket.close(NORMAL)
    assert await hear(websocket) == b""
    assert [each.opcode for each in frames(stream.sent)] == [CLOSE], "the client's is the answer"


async def test_empty_fragments_cost_nothing() -> None:
    flood = frame(BINARY, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 5000
    limits = WebSockets(frames_per_second=1_000_000)
    websocket, _ = await opened(flood, frame(CONTINUATION, b"x") + close(1000), limits=limits)
    assert await hear(websocket) == b"x"


async def test_many_frames_are_read_slowly(autojump_clock: trio.testing.MockClock) -> None:
    websocket, _ = await opened(frame(BINARY, b"x") * 1600 + close(1000), limits=WebSockets(frames_per_second=160))
    began = trio.current_time()
    assert await hear(websocket) == b"x" * 1600
    assert 8 <= trio.current_time() - began <= 11


async def test_nothing_follows_a_frame_that_was_interrupted() -> None:
    class Stuck(Script):
        stuck = False

        async def send(self, data: bytes) -> None:
            if self.stuck:
                self.sent += data[:3]
                await trio.sleep_forever()
            await super().send(data)

    stream = Stuck([request()])
    websocket = WebSocket(stream, DEFAULTS)
    await websocket.receive_opening()
    await websocket.accept()
    stream.stuck = True
    with trio.CancelScope() as scope:
        scope.cancel()
        await websocket.send(b"* 1 EXISTS\r\n")
    before = stream.sent
    with trio.CancelScope(deadline=trio.current_time() + 0.01):
        await websocket.send(b"* 1 EXISTS\r\n")
    stream.stuck = False
    with pytest.raises(ConnectionLost):
        await websocket.close(NORMAL)
    assert stream.sent == before + frame(BINARY, b"* 1 EXISTS\r\n", masked=False)[:3]


async def test_new_keys_while_nothing_can_be_sent() -> None:
    """TLS would have to write and both tasks wait for that: the connection is given up, as trio says it has to be."""

    class Crossed(Script):
        async def receive(self) -> bytes:
            raise trio.BusyResourceError

        async def send(self, data: bytes) -> None:
            raise trio.BusyResourceError

    websocket, stream = await opened()
    crossed = Crossed([])
    websocket._stream = crossed
    for act in (websocket.receive, websocket.ping):
        with pytest.raises(ConnectionLost, match="new keys"):
            await act()
    assert stream.sent == b""


ALPN = [(["http/1.1"], None), (["h2", "http/1.1"], None), ([], None), (["h2"], "alpn"), (["imap"], "alpn")]


@pytest.mark.parametrize(("offered", "failure"), ALPN)
async def test_what_is_spoken_inside_tls(
    certificates: ServerCertificates, pki: Pki, offered: list[str], failure: str | None
) -> None:
    base = certificates.base_context(None, HTTP)
    certificates.swap([(pki.certificate, pki.private_key)])
    context = visits.client(None)
    if offered:
        context.set_alpn_protocols(offered)
    visited = await visits.visit(base, context)
    assert (visited.failure and visited.failure.reason) == failure


PAGES = ["https://mail.example.org", "https://Other.example.org:443", "http://localhost:8080", "http://[::1]:80"]
ORIGINS = [
    ("https://mail.example.org", True),
    ("https://MAIL.example.org", True),
    ("https://mail.example.org:443", True),
    ("https://other.example.org", True),
    ("http://localhost:8080", True),
    ("http://[::1]", True),
    ("http://mail.example.org", False),
    ("https://mail.example.org:444", False),
    ("https://mail.example.org.evil.example", False),
    ("https://evil.example", False),
    ("https://mail.example.org, https://evil.example", False),
    ("http://localhost", False),
    ("null", False),
    ("", False),
]


@pytest.mark.parametrize(("origin", "allowed"), ORIGINS)
def test_which_pages_may(origin: str, allowed: bool) -> None:
    read = Listener.model_validate(
        {"address": Endpoint("::", 443), "tls": "implicit", "protocol": "websocket", "websocket": {"origins": PAGES}}
    )
    assert Door(read).allows_origin(origin) is allowed
    assert not Door(read.model_copy(update={"websocket": None})).allows_origin(origin), "none by default"


@pytest.mark.parametrize("required", [True, False])
def test_programs_that_are_no_browsers(required: bool) -> None:
    section = WebSockets(require_origin=required)
    listener = Listener(address=Endpoint("::", 443), tls="implicit", protocol="websocket", websocket=section)
    assert Door(listener).allows_origin(None) is not required
