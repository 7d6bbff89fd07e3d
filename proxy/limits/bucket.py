"""Token buckets, of which each is one number.

A bucket holds `count` tokens and fills up within `per` seconds. All there is to know of it is when it will be full
again: the further away that is, the fewer tokens are left. A bucket that has never been used is NEVER_USED, one whose
time is past need not be remembered, and none has to be refilled (the virtual scheduling of ITU-T I.371).
"""

from __future__ import annotations

NEVER_USED = 0.0

# A part of a token: what rounding may cost, so that the last one of a full bucket is not refused.
_TOLERANCE = 0.01


class Rate:
    """So many tokens within so many seconds, and what that makes of a bucket. Pure: the time is an argument."""

    __slots__ = ("_least", "count", "per", "seconds_each")

    def __init__(self, count: int, per: float) -> None:
        self.count, self.per = count, per
        self.seconds_each = per / count
        self._least = per - self.seconds_each * (1 - _TOLERANCE)

    def take(self, full_at: float, now: float, count: int = 1) -> float:
        """Take tokens out, be they there or not; gives what becomes of the bucket."""
        return (full_at if full_at > now else now) + count * self.seconds_each

    def wait(self, full_at: float, now: float) -> float:
        """Seconds until there is a whole token; nothing or less: there is one."""
        return full_at - now - self._least

    def left(self, full_at: float, now: float) -> int:
        """How many whole tokens there are."""
        missing = max(full_at - now, 0.0) / self.seconds_each
        return max(0, int(self.count - missing + _TOLERANCE))

    def debt(self, full_at: float, now: float) -> float:
        """Seconds until what was taken beyond the last token is paid; nothing or less: nothing was."""
        return full_at - now - self.per
