"""What identity sources answered, and how long that took, counted by source."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from proxy.observe import metrics
from proxy.observe.metrics import METRICS
from proxy.observe.tally import HistogramTally, NumberTally

YES, NO, NOT_MINE, UNAVAILABLE = "yes", "no", "not_mine", "unavailable"
KINDS = (YES, NO, NOT_MINE, UNAVAILABLE)
# What is remembered takes microseconds, a token a tenth of a millisecond, a directory milliseconds or seconds.
BUCKETS = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_ANSWERS = metrics.counter(
    "porter_identity_answers_total",
    "Answers of identity sources, remembered ones included; `no` and `yes` are final.",
    source=None,
    answer=KINDS,
)
_DURATION = metrics.histogram(
    "porter_identity_duration_seconds",
    "How long identity sources took to answer, remembered answers included.",
    BUCKETS,
    source=None,
)

# After so many logins in a row that nobody could judge the sources count as out, for so long. Then they get another
# chance: who is sent nobody because of it would never learn that they are back.
_OUT_AFTER = 3
_OUT_SECONDS = 15.0


class Answers:
    """The series of all sources, moved in the event loop's thread."""

    def __init__(self, sources: Iterable[str]) -> None:
        names = dict.fromkeys(sources)
        self._numbers = {name: {kind: NumberTally(_ANSWERS.labels(name, kind)) for kind in KINDS} for name in names}
        self._durations = {name: HistogramTally(_DURATION.labels(name), BUCKETS) for name in names}
        self._in_vain = 0  # logins that nobody could judge, in a row
        self._failed_at = -math.inf
        METRICS.on_flush(self.flush)

    @property
    def usable(self) -> bool:
        """Whether logins can be judged, so far as is known."""
        return self._in_vain < _OUT_AFTER or time.monotonic() - self._failed_at > _OUT_SECONDS

    def heard(self, source: str, kind: str, seconds: float) -> None:
        """A source has answered."""
        self._numbers[source][kind].value += 1
        self._durations[source].observe(seconds)

    def judged(self) -> None:
        """All sources together have said yes or no to a login."""
        self._in_vain = 0

    def unjudged(self) -> None:
        """Those that would have had to are out."""
        self._in_vain += 1
        self._failed_at = time.monotonic()

    def flush(self) -> None:
        """Add what the tallies hold."""
        for numbers in self._numbers.values():
            for number in numbers.values():
                number.flush()
        for duration in self._durations.values():
            duration.flush()
