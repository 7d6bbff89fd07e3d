"""What an identity source is, and the four things it can answer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from proxy.model import Credentials, Identity


class IdentitySource(Protocol):
    """Something that knows who people are: a file, a directory, an issuer of tokens, the backend itself."""

    @property
    def name(self) -> str:
        """Its key in the settings, which the log repeats: file, backend, ldap, ..."""
        ...

    @property
    def mechanisms(self) -> frozenset[str]:
        """The mechanisms it can judge; LOGIN stands for the command."""
        ...

    async def authenticate(self, credentials: Credentials, name: str) -> Identity | None:
        """Judge credentials.

        Args:
            credentials: As the client sent them; the secret is not empty.
            name: The canonical form of the authentication identity, the only spelling to look up or pass on.
        Returns:
            The identity: yes. None: not mine, this source doesn't know the name.
        Raises:
            Refused: AUTHENTICATION_FAILED: no. UNAVAILABLE: it can't be said now. Any other outcome is a final
                answer about this person, such as EXPIRED.
        """
        ...


@runtime_checkable
class HashingSource(IdentitySource, Protocol):
    """A source whose "no" takes noticeable time, which must not tell who is known."""

    async def pretend(self, credentials: Credentials) -> None:
        """Spend what a wrong password costs here, for a name that is not known.

        Raises:
            Refused: UNAVAILABLE, as a verification would.
        """
        ...
