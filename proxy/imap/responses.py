"""What the proxy says to clients in its own name, before login (RFC 9051 §7)."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable

READY_FOR_LITERAL = b"+ Ready for literal data\r\n"
# RFC 2971 §3.2. The name alone: a version would tell strangers which holes to try.
IDENTIFICATION = b'* ID ("name" "imap-porter")\r\n'
LOGGING_OUT = b"* BYE Logging out.\r\n"


def tagged(tag: bytes, reply: bytes) -> bytes:
    """The response that ends a command; with the tag `*`, what stands in for it where no tag could be read."""
    return b"%b %b\r\n" % (tag, reply)


def greeting(capability: Iterable[bytes]) -> bytes:
    """The first line of a connection, without a version or a host's name (RFC 9051 §7.1.1)."""
    return b"* OK [CAPABILITY %b] IMAP ready.\r\n" % b" ".join(capability)


def capabilities(capability: Iterable[bytes]) -> bytes:
    """The untagged CAPABILITY response (RFC 9051 §7.2.2)."""
    return b"* CAPABILITY %b\r\n" % b" ".join(capability)


def continuation(challenge: bytes) -> bytes:
    """The continuation request of a SASL exchange; the space stays when the challenge is empty (RFC 9051 §6.2.2)."""
    return b"+ %b\r\n" % b2a_base64(challenge, newline=False)
