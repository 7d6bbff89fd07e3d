"""EXTERNAL: what the connection has already shown, here a client certificate (RFC 4422 Appendix A)."""

from __future__ import annotations

from proxy.model import Challenge, Credentials, MalformedResponse
from proxy.outcome import Outcome


class External:
    """One exchange of EXTERNAL."""

    __slots__ = ("_expires_at", "_name")

    def __init__(self, name: str | None, expires_at: float | None) -> None:
        """What the certificate says.

        Args:
            name: Whose it is. None: it doesn't say so in the field where it should, and nobody logs in with it.
            expires_at: When it ends, Unix time.
        """
        self._name = name
        self._expires_at = expires_at

    def step(self, response: bytes | None) -> Challenge | Credentials:
        """Take the authorization identity, which may be empty; ask for it if it did not come at once.

        Args:
            response: Decoded octets. None: no initial response was sent. b"": an empty one ("=", RFC 4959 §3).
        Raises:
            MalformedResponse: It is not UTF-8, or holds a NUL.
        Source: RFC 4422 Appendix A.
        """
        if response is None:
            return Challenge(b"")
        if b"\0" in response:
            raise MalformedResponse("an authorization identity holds no NUL")
        try:
            authorization_identity = response.decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedResponse("an authorization identity is UTF-8") from None
        return Credentials(
            mechanism="EXTERNAL",
            authentication_identity=self._name or "",
            authorization_identity=authorization_identity,
            secret=b"",
            expires_at=self._expires_at,
        )

    def failure(self, outcome: Outcome) -> Challenge | None:
        """None: EXTERNAL has no way to tell more than the tagged NO does."""
        return None
