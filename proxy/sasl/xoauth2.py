"""XOAUTH2: a name and an OAuth 2.0 bearer token, as Google defined it before OAUTHBEARER was."""

from __future__ import annotations

from proxy.model import Challenge, Credentials, MalformedResponse
from proxy.outcome import Outcome
from proxy.sasl.oauthbearer import bearer_token, json_challenge, read_key_values

# HTTP's statuses: 401 asks for another token, 400 says that no fresh one would do better. What is not here, an outage
# above all, is told by the tagged NO alone.
_STATUS = {
    Outcome.AUTHENTICATION_FAILED: "401",
    Outcome.EXPIRED: "401",
    Outcome.AUTHORIZATION_FAILED: "400",
}


class XOAuth2:
    """One exchange of XOAUTH2."""

    __slots__ = ("_scope",)

    def __init__(self, scope: str) -> None:
        """What a client is told when its token won't do.

        Args:
            scope: The scopes a token needs, separated by spaces; "" for none.
        """
        self._scope = scope

    def step(self, response: bytes | None) -> Challenge | Credentials:
        """Take `user=name ^A auth=Bearer token ^A ^A`; ask for it with an empty challenge if it did not come at once.

        As with Dovecot the two may change places and others may stand beside them; unlike there the end must be whole.

        Args:
            response: Decoded octets. None: no initial response was sent. b"": an empty one ("=", RFC 4959 §3).
        Raises:
            MalformedResponse: It is not made so, or the name or the token is missing, empty, or there twice.
        Source: https://developers.google.com/workspace/gmail/imap/xoauth2-protocol.
        """
        if response is None:
            return Challenge(b"")
        values = read_key_values(response)
        name, authorization = values.get("user"), values.get("auth")
        if not name or authorization is None:
            raise MalformedResponse("XOAUTH2 takes a name and a token")
        return Credentials(
            mechanism="XOAUTH2",
            authentication_identity=name.decode("utf-8", "surrogateescape"),
            authorization_identity="",
            secret=bearer_token(authorization),
        )

    def failure(self, outcome: Outcome) -> Challenge | None:
        """Why the token won't do, in the three fields that clients of Google's servers know."""
        status = _STATUS.get(outcome)
        if status is None:
            return None
        return json_challenge({"status": status, "schemes": "bearer", "scope": self._scope})
