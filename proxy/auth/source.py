"""What an identity source is, and what it can answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from proxy.model import Account, Credentials, Identity, KeyShape, Origin

PASSWORD_MECHANISMS = frozenset({"LOGIN", "PLAIN"})  # LOGIN stands for the command
TOKEN_MECHANISMS = frozenset({"XOAUTH2", "OAUTHBEARER"})
SCRAM_MECHANISMS = frozenset({"SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"})


@dataclass(frozen=True, slots=True)
class NotMine:
    """The source doesn't know the name or the token: the next one is asked. `why` is for the log."""

    why: str = "the name is not known"


Answer = Identity | NotMine


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that a source needs, tried now: for `imap-porter check --connect`."""

    what: str  # "ldaps://ldap1.example.org: bind"
    problem: str  # "": it works
    detail: str = ""  # what was found there
    seconds: float = 0.0


class IdentitySource(Protocol):
    """Something that knows who people are: a file, a directory, an issuer of tokens, the backend itself."""

    @property
    def name(self) -> str:
        """Its key in the settings, which the log repeats: file, backend, ldap, ... The second of a kind is ldap-2."""
        ...

    @property
    def mechanisms(self) -> frozenset[str]:
        """The mechanisms whose secrets it can judge; LOGIN stands for the command."""
        ...

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Answer:
        """Judge credentials.

        Args:
            credentials: As the client sent them; the secret is not empty.
            name: The canonical form of the authentication identity, the only spelling to look up or pass on. "": the
                client left it to its token (RFC 7628 §3.1).
            origin: Where the client is.
        Returns:
            The identity: yes. NotMine: this source doesn't know the name.
        Raises:
            Refused: AUTHENTICATION_FAILED: no. UNAVAILABLE: it can't be said now. Any other outcome is a final
                answer about this person, such as EXPIRED.
        """
        ...

    async def probe(self) -> Sequence[Probe]:
        """Try what it needs from elsewhere. Bounded in time; raises nothing that stands for an outage."""
        ...


@runtime_checkable
class HashingSource(IdentitySource, Protocol):
    """A source whose "no" takes noticeable time, which must not tell who is known."""

    async def pretend(self, credentials: Credentials, name: str) -> None:
        """Spend what a wrong password costs here, for a name that is not known.

        Args:
            credentials: As the client sent them.
            name: The canonical form of the authentication identity.
        Raises:
            Refused: UNAVAILABLE, as a verification would.
        """
        ...


@runtime_checkable
class AccountSource(IdentitySource, Protocol):
    """A source that knows names without being shown their secrets: what SCRAM and EXTERNAL need."""

    @property
    def knows_scram(self) -> bool:
        """Whether it holds SCRAM keys, of anybody at all."""
        ...

    @property
    def usual_shape(self) -> KeyShape:
        """How most of its SCRAM keys look, so that unknown names look alike."""
        ...

    async def look_up(self, name: str) -> Account | None:
        """The account of a canonical name; None: not mine.

        Raises:
            Refused: UNAVAILABLE, or another final answer about this person.
        """
        ...


@runtime_checkable
class FindingSource(AccountSource, Protocol):
    """A source that remembers whom names belong to."""

    async def find(self, name: str) -> Identity | None:
        """Whom a canonical name belongs to, as look_up() said it now or a while ago; None: not mine.

        Raises:
            Refused: As look_up() does.
        """
        ...
