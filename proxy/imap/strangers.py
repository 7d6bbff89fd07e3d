"""What somebody who has not logged in may send: bounds, and the protocols that are not spoken here."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.imap.events import ProtocolViolation

TLS_HANDSHAKE = b"\x16\x03"  # how a ClientHello begins (RFC 8446 §5.1)

_HTTP_METHODS = frozenset(
    {b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PRI"}
)


@dataclass(frozen=True, slots=True)
class DialogueBounds:
    """How much a client may send before it is logged in. Buffers hold that, and one read more.

    That holds for a driver that reads where next_event() asks for octets, and not while an offer is pending.
    """

    max_line_bytes: int = 8192  # all text of one command, literals not counted
    max_auth_line_bytes: int = 65536  # a line of AUTHENTICATE: tokens are large
    max_literal_bytes: int = 8192  # all literals of one command
    max_tag_bytes: int = 64
    max_bad_commands: int = 10  # the tenth BAD is followed by BYE
    max_commands: int = 1000  # of any kind: a client needs about five


DEFAULT_BOUNDS = DialogueBounds()


class TooBig(ProtocolViolation):
    """A literal that nobody asked for is larger than may be thrown away (RFC 7888 §4)."""


class ForeignProtocol(ProtocolViolation):
    """This is no IMAP at all. A browser that was lured here must not see an answer it could make something of."""


def has_bad_character(text: bytes) -> bool:
    return b"\0" in text or b"\r" in text


def is_http(tag: bytes, text: bytes) -> bool:
    """Whether this is the first line, or the one after, of what a browser sends when a page makes it talk to us."""
    return (tag in _HTTP_METHODS and text[-9:-3] == b" HTTP/") or tag[:5].lower() == b"host:"
