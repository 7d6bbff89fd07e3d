"""What was counted a while ago, for rates that several people ask for: whoever asks often, or at the same time as
others, must not be told of a moment alone.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, TypeVar

MARK_SECONDS = 5.0
_LEAST_SECONDS = 1.0  # what was counted since less long ago tells nothing
_STALE_SECONDS = 60.0  # nor does what nobody has asked for in so long

_T = TypeVar("_T")


class Marks(Generic[_T]):
    """The last two counts, the older one first."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, _T]] = deque(maxlen=2)

    def since(self, now: float) -> tuple[float, _T] | None:
        """How long ago there is a count to begin with, and that count. None: there is none yet, and soon will be."""
        for at, counts in self._marks:
            if _LEAST_SECONDS <= now - at < _STALE_SECONDS:
                return now - at, counts
        return None

    def put(self, now: float, counts: _T) -> None:
        """This has been counted now."""
        last = self._marks[-1][0] if self._marks else -math.inf
        if now - last >= MARK_SECONDS:
            self._marks.append((now, counts))
