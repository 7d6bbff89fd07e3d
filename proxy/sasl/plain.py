"""PLAIN: both names and the password in one response (RFC 4616)."""

from __future__ import annotations

from proxy.model import Challenge, Credentials, MalformedResponse
from proxy.outcome import Outcome


class Plain:
    """One exchange of PLAIN. It keeps nothing between its steps."""

    __slots__ = ()

    def step(self, response: bytes | None) -> Challenge | Credentials:
        """Take `[authzid] NUL authcid NUL passwd`; ask for it with an empty challenge if it did not come at once.

        Args:
            response: Decoded octets. None: no initial response was sent. b"": an empty one ("=", RFC 4959 §3).
        Raises:
            MalformedResponse: Not exactly two NULs, or no authentication identity, or no password.
        Source: RFC 4616 §2.
        """
        if response is None:
            return Challenge(b"")
        fields = response.split(b"\0", 3)
        if len(fields) != 3 or not fields[1] or not fields[2]:
            raise MalformedResponse("PLAIN takes an authorization identity or none, a name and a password")
        authorization_identity, authentication_identity, password = fields
        return Credentials(
            mechanism="PLAIN",
            authentication_identity=authentication_identity.decode("utf-8", "surrogateescape"),
            authorization_identity=authorization_identity.decode("utf-8", "surrogateescape"),
            secret=password,
        )

    def failure(self, outcome: Outcome) -> Challenge | None:
        """None: PLAIN has no way to tell more than the tagged NO does."""
        return None
