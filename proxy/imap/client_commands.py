"""The commands of the proxy's own login at a backend, put together: LOGIN, AUTHENTICATE, ID."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Set

from proxy.imap.grammar import MAX_ID_FIELD_BYTES, MAX_ID_PAIRS, MAX_ID_VALUE_BYTES, is_quotable, quote

MAX_LITERAL_MINUS_BYTES = 4096  # RFC 7888 §5: the longest non-synchronizing literal with LITERAL-
# Every server takes lines of 8192 octets (RFC 7162 §4); this leaves room for tag and line end.
MAX_COMMAND_BYTES = 8160
_TAG_BYTES = 20

# For bytes.translate(): all but printable ASCII becomes "?".
PRINTABLE = bytes(octet if 0x20 <= octet < 0x7F else ord("?") for octet in range(256))


def is_sayable(name: str) -> bool:
    """Whether a name has no CR, LF or NUL and can be written in UTF-8, which lone surrogates cannot."""
    return name.isprintable() or not any(c in "\r\n\0" or "\ud800" <= c <= "\udfff" for c in name)


def login_command(name: bytes, secret: bytes, offered: Set[bytes]) -> list[bytes]:
    """LOGIN without its tag, in the pieces that each wait for a continuation request but the first."""
    longest = MAX_LITERAL_MINUS_BYTES if b"LITERAL-" in offered else 0
    if b"LITERAL+" in offered:
        longest = max(len(name), len(secret))
    pieces = [b"LOGIN "]
    _add_string(pieces, name, longest)
    pieces[-1] += b" "
    _add_string(pieces, secret, longest)
    return pieces


def authenticate(mechanism: str, response: bytes, *, initial_response: bool) -> list[bytes]:
    """AUTHENTICATE in such pieces. Its response, in base64, goes along where that is allowed (SASL-IR, RFC 4959)."""
    command = b"AUTHENTICATE " + mechanism.encode("ascii")
    if initial_response and len(command) + len(response) <= MAX_COMMAND_BYTES:
        return [command + b" " + response]
    return [command, response]


def plain_response(authorization_identity: str, authentication_identity: str, secret: bytes) -> bytes:
    """The one message of PLAIN, in base64 (RFC 4616 §2)."""
    names = f"{authorization_identity}\0{authentication_identity}\0"
    return b64encode(names.encode("utf-8", "replace") + secret)


def xoauth2_response(name: str, token: bytes) -> bytes:
    """The one message of XOAUTH2, in base64. No RFC has it: it is Google's and Microsoft's."""
    return b64encode(f"user={name}".encode("utf-8", "replace") + _bearer(token))


def oauthbearer_response(name: str, token: bytes) -> bytes:
    """The one message of OAUTHBEARER, in base64 (RFC 7628 §3.1); the name is a saslname (RFC 5801 §4)."""
    saslname = name.replace("=", "=3D").replace(",", "=2C")
    return b64encode(f"n,a={saslname},".encode("utf-8", "replace") + _bearer(token))


def id_command(fields: tuple[tuple[str, str], ...]) -> bytes:
    """ID within the bounds of RFC 2971 §3.3 and of a line; an empty value is NIL.

    A field that does not fit is left out: half a value would be another one. The first ones come first, in their order.
    Dovecot's authentication process breaks on more than 16 KB of them.
    """
    parameters: list[bytes] = []
    left = MAX_COMMAND_BYTES - _TAG_BYTES - len(b"ID ()")
    for name, value in fields:
        if len(name) > MAX_ID_FIELD_BYTES or len(value) > MAX_ID_VALUE_BYTES:
            continue
        octets = _printable(value)
        pair = quote(_printable(name)) + b" " + (quote(octets) if octets else b"NIL")
        if len(parameters) < MAX_ID_PAIRS and len(pair) < left:
            left -= len(pair) + 1
            parameters.append(pair)
    return b"ID (" + b" ".join(parameters) + b")" if parameters else b"ID NIL"


def _printable(text: str) -> bytes:
    return text.encode("ascii", "replace").translate(PRINTABLE)


def _bearer(token: bytes) -> bytes:
    return b"\x01auth=Bearer " + token + b"\x01\x01"


def _add_string(pieces: list[bytes], string: bytes, longest_non_synchronizing: int) -> None:
    """Add a string as it fits; a synchronizing literal begins a new piece (RFC 9051 §4.3, RFC 7888)."""
    if is_quotable(string):
        pieces[-1] += quote(string)
    elif len(string) <= longest_non_synchronizing:
        pieces[-1] += b"{%d+}\r\n" % len(string) + string
    else:
        pieces[-1] += b"{%d}" % len(string)
        pieces.append(string)
