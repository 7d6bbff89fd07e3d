"""The last logins that were refused, for administrators who want to know why somebody does not get in."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from proxy.ledger.session import Session
from proxy.outcome import Refused

MOST = 1000
_MOST_CHARACTERS = 200  # of a name, or of a detail: both come from strangers


@dataclass(frozen=True, slots=True)
class Refusal:
    """One login. `names` are those that it came under, in their canonical form."""

    time: float  # Unix time
    names: tuple[str, ...]
    client: str
    mechanism: str
    outcome: str
    detail: str

    def document(self) -> dict[str, Any]:
        """As it is told."""
        return {
            "time": round(self.time, 3),
            "client": self.client,
            "mechanism": self.mechanism,
            "outcome": self.outcome,
            "detail": self.detail,
        }


class Refusals:
    """The last MOST of a worker."""

    def __init__(self) -> None:
        self._last: deque[Refusal] = deque(maxlen=MOST)

    def __reversed__(self) -> Iterator[Refusal]:
        return reversed(self._last)

    def note(self, session: Session, refused: Refused, known_as: Callable[[str], str]) -> None:
        """A login was refused.

        Args:
            known_as: Gives the canonical form of a name, or what there is of it where it is no name.
        """
        spelled = (session.authorization_identity, session.authentication_identity)
        names = dict.fromkeys((session.name, *(known_as(name) for name in spelled if name)))
        kept = tuple(name for name in names if name and len(name) <= _MOST_CHARACTERS)
        detail = (refused.limit or refused.detail)[:_MOST_CHARACTERS]
        outcome = refused.outcome.value
        self._last.append(Refusal(time.time(), kept, str(session.client), session.mechanism, outcome, detail))
