"""OAUTHBEARER: an OAuth 2.0 bearer token in the clothes of an HTTP header (RFC 7628)."""

from __future__ import annotations

import json
import re

from proxy.model import Challenge, Credentials, MalformedResponse
from proxy.outcome import Outcome
from proxy.sasl.gs2 import split_gs2_header

_KEY_AND_VALUE = re.compile(rb"([A-Za-z]+)=([^\0]*)")
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)  # RFC 6750 §2.1
_PORT = re.compile(rb"[0-9]{1,5}")

# RFC 6750 §3.1. What is not here, an outage above all, would be a lie about the token: the tagged NO tells it alone.
_STATUS = {
    Outcome.AUTHENTICATION_FAILED: "invalid_token",
    Outcome.EXPIRED: "invalid_token",
    Outcome.AUTHORIZATION_FAILED: "insufficient_scope",
}


class OAuthBearer:
    """One exchange of OAUTHBEARER."""

    __slots__ = ("_openid_configuration", "_scope")

    def __init__(self, scope: str, openid_configuration: str) -> None:
        """What a client is told when its token won't do.

        Args:
            scope: The scopes a token needs, separated by spaces; "" for none.
            openid_configuration: The URL where a client learns where to get a token; "" for none.
        """
        self._scope = scope
        self._openid_configuration = openid_configuration

    def step(self, response: bytes | None) -> Challenge | Credentials:
        """Take `gs2-header ^A auth=Bearer token ^A ^A`; ask for it if it did not come at once.

        A client that sends `auth=` without a value asks which scope it needs (RFC 7628 §4.3): its credentials have no
        secret, and the failure tells.

        Args:
            response: Decoded octets. None: no initial response was sent. b"": an empty one ("=", RFC 4959 §3).
        Raises:
            MalformedResponse: It is anything else, or binds to a channel.
        Source: RFC 7628 §3.1.
        """
        if response is None:
            return Challenge(b"")
        header, rest = split_gs2_header(response)
        if header.binding not in ("n", "y"):
            raise MalformedResponse("OAUTHBEARER does not bind to a channel")  # RFC 7628 §3.1: only the -PLUS would
        if rest[:1] != b"\1":
            raise MalformedResponse("expected ^A behind the GS2 header")
        values = read_key_values(rest[1:])
        if "port" in values and not _PORT.fullmatch(values["port"]):
            raise MalformedResponse("the port is no number")
        if "auth" not in values:
            raise MalformedResponse("auth is missing")
        return Credentials(
            mechanism="OAUTHBEARER",
            # Whom the client claims to be; the token says who it is.
            authentication_identity=header.authorization_identity,
            authorization_identity="",
            secret=bearer_token(values["auth"]) if values["auth"] else b"",
        )

    def failure(self, outcome: Outcome) -> Challenge | None:
        """Why the token won't do, and where to get another. Source: RFC 7628 §3.2.2."""
        status = _STATUS.get(outcome)
        if status is None:
            return None
        told = {"status": status, "scope": self._scope, "openid-configuration": self._openid_configuration}
        return json_challenge({key: value for key, value in told.items() if value})


def read_key_values(octets: bytes) -> dict[str, bytes]:
    """Read `key=value ^A` as often as it comes, and the ^A behind the last. A key that nobody knows is fine.

    Raises:
        MalformedResponse: A pair is none, a key comes twice, or the end is missing.
    Source: RFC 7628 §3.1, the rules kvpair and client-resp.
    """
    if octets == b"\1":
        return {}
    if not octets.endswith(b"\1\1"):
        raise MalformedResponse("expected ^A^A at the end")
    values: dict[str, bytes] = {}
    for pair in octets[:-2].split(b"\1"):
        match = _KEY_AND_VALUE.fullmatch(pair)
        if match is None:
            raise MalformedResponse("expected key=value between each ^A and the next")
        key = match[1].decode("ascii")
        if key in values:
            raise MalformedResponse("a key comes twice")
        values[key] = match[2]
    return values


def bearer_token(value: bytes) -> bytes:
    """The token of `Bearer token`.

    Raises:
        MalformedResponse: It is another scheme, or what follows has characters that no token has.
    Source: RFC 6750 §2.1.
    """
    match = _BEARER.fullmatch(value)
    if match is None:
        raise MalformedResponse("expected Bearer and a token")
    return match[1]


def json_challenge(told: dict[str, str]) -> Challenge:
    """A failure as both token mechanisms tell it."""
    return Challenge(json.dumps(told, separators=(",", ":")).encode("ascii"))
