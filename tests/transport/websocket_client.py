"""What a WebSocket client sends, octet by octet, well-formed or not, and what it reads from the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wsproto.frame_protocol import Frame, FrameProtocol

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3, and what it is answered with
ACCEPTED = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = bytes((1, 2, 3, 4))


def request(*more: bytes, without: Iterable[bytes] = (), subprotocol: bytes = b"imap", start: bytes = b"") -> bytes:
    """An opening handshake.

    Args:
        more: Header lines, without their ends.
        without: Names of headers to leave out, or that are among `more`.
        start: Another first line.
    """
    lines = [
        b"Host: mail.example.org",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: " + KEY,
        b"Sec-WebSocket-Version: 13",
        *([b"Sec-WebSocket-Protocol: " + subprotocol] if subprotocol else []),
    ]
    kept = [line for line in lines if line.partition(b":")[0] not in without]
    return b"\r\n".join([start or b"GET /imap HTTP/1.1", *kept, *more, b"", b""])


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """One frame (RFC 6455 §5.2)."""
    first = (0x80 if fin else 0) | reserved | opcode
    size = len(payload)
    if size < 126:
        head = bytes((first, size | (0x80 if masked else 0)))
    elif size < 65536:
        head = bytes((first, 126 | (0x80 if masked else 0))) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 127 | (0x80 if masked else 0))) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    return head + MASK + bytes(octet ^ MASK[index % 4] for index, octet in enumerate(payload))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def frames(data: bytes) -> Iterator[Frame]:
    """What a server has sent."""
    protocol = FrameProtocol(client=True, extensions=[])
    protocol.receive_bytes(data)
    return protocol.received_frames()
