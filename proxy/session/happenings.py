"""What happens to sessions, for whoever looks on just now: told only while somebody does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Happenings:
    """Whether anybody wants to know, and whom to tell."""

    def __init__(self) -> None:
        self.wanted: frozenset[str] = frozenset()  # kinds, as the administrators' events have them
        self.tell: Callable[[str, str, dict[str, Any]], object] = _untold  # kind, event, values


def _untold(_kind: str, _event: str, _values: dict[str, Any]) -> None:
    """Nobody listens."""
