"""The GS2 header that begins the first message of SCRAM and OAUTHBEARER (RFC 5801 §4)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.model import MalformedResponse

# saslname: neither NUL nor "=" nor ",", but "=2C" and "=3D". Whether it is UTF-8 is for the rules of names to judge.
SASLNAME = rb"(?:[^\0=,]++|=2C|=3D)++"
_HEADER = re.compile(rb"(n|y|p=[A-Za-z0-9.-]+),(?:a=(" + SASLNAME + rb"))?,")


@dataclass(frozen=True, slots=True)
class Gs2Header:
    """What a client says of channel binding, and whom it wants to act as."""

    octets: bytes  # as they came, the second comma included: they are part of what a channel is bound to
    binding: str  # n: the client has none. y: it has, and thinks that the server has not. p=NAME: it binds to this
    authorization_identity: str  # "": the client names none


def split_gs2_header(message: bytes) -> tuple[Gs2Header, bytes]:
    """The header and what follows it.

    Raises:
        MalformedResponse: No header begins the message. The flag "F" is among these: it stands before the messages of
            GSS-API mechanisms alone.
    Source: RFC 5801 §4, RFC 5802 §7.
    """
    match = _HEADER.match(message)
    if match is None:
        raise MalformedResponse("expected a GS2 header, such as n,,")
    header = Gs2Header(match[0], match[1].decode("ascii"), decode_saslname(match[2] or b""))
    return header, message[match.end() :]


def decode_saslname(octets: bytes) -> str:
    """A name without its escapes; octets that are no UTF-8 survive as lone surrogates."""
    return octets.replace(b"=2C", b",").replace(b"=3D", b"=").decode("utf-8", "surrogateescape")
