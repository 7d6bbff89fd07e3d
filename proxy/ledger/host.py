"""The ledger of one host: its live sessions, by user."""

from __future__ import annotations

from proxy.ledger.session import Session
from proxy.outcome import Outcome, Refused


class Ledger:
    """Live sessions and the limits over them.

    `admit` is async because the ledger may live in another process; here it answers at once. Check and change stand
    in one piece, without a checkpoint between them.
    """

    def __init__(self, connections_per_user: int) -> None:
        self._connections_per_user = connections_per_user
        self._sessions: dict[str, tuple[Session, str]] = {}  # by id; with the name it was admitted under
        self._by_user: dict[str, int] = {}

    async def admit(self, session: Session) -> None:
        """Take a session in, before its backend is asked.

        Raises:
            Refused: LIMIT, the user has as many sessions as he may.
        """
        count = self._by_user.get(session.name, 0)
        if count >= self._connections_per_user:
            detail = f"connections_per_user: {count} sessions of {self._connections_per_user}"
            raise Refused(Outcome.LIMIT, detail, limit="connections_per_user")
        self._by_user[session.name] = count + 1
        self._sessions[session.id] = (session, session.name)

    def release(self, session: Session) -> None:
        """Let a session go; one that was not admitted is no mistake."""
        admitted = self._sessions.pop(session.id, None)
        if admitted is None:
            return
        _, name = admitted
        count = self._by_user[name] - 1
        if count:
            self._by_user[name] = count
        else:
            del self._by_user[name]

    def __len__(self) -> int:
        return len(self._sessions)
