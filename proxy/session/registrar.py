"""Who is asked where a user's next session belongs: one for all workers of a host."""

from __future__ import annotations

from typing import Protocol

from proxy.ledger.session import Session
from proxy.model import Identity


class Registrar(Protocol):
    """Knows where users live, and how many sessions they have, over all workers."""

    async def admit(self, session: Session, identity: Identity) -> str:
        """Take a session in before its backend is asked; gives the backend. May wait for a move of its user.

        Sets `session.epoch`, and `session.backend` so far as it is known, for the log, where it is refused too.

        Raises:
            Refused: LIMIT, UNAVAILABLE. The session was not taken in.
        """
        ...

    def confirm(self, session: Session) -> None:
        """Its backend has let a session in: to be called for each.

        Raises:
            Refused: LIMIT, of those whom only the backend could verify. The session is still to be released.
        """
        ...

    def release(self, session: Session, *, opened: bool) -> None:
        """Let a session go; one that was not admitted is no mistake.

        Args:
            opened: Whether it was logged in at its backend, or may have been: nobody heard the answer.
        """
        ...

    def failed(self, session: Session, problem: str, *, reached: bool) -> None:
        """Its backend did something wrong with a session's login.

        Args:
            reached: It had greeted before it went wrong.
        """
        ...
