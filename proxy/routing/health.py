"""Whether one backend works: told by checks and by the logins that pass, decided by counting."""

from __future__ import annotations

from proxy.settings.models import Health as HealthSettings

_MOST_REASON = 300  # characters: it is passed on to all workers, and may hold what a backend has said


class Health:
    """One backend. It counts as up until it has failed so often in a row.

    Nobody logs in at a backend that is down, so only checks bring it up again.
    """

    __slots__ = ("_person", "_settings", "failures", "reason", "since", "successes", "up")

    def __init__(self, settings: HealthSettings, now: float) -> None:
        self._settings = settings
        self._person = ""  # whose login failed last, of those that reached the backend
        self.up = True
        self.since = now  # when that last changed
        self.reason = ""  # of the last failure
        self.failures = 0  # in a row, while it is up
        self.successes = 0  # in a row, while it is down

    def succeeded(self, now: float, *, checked: bool) -> bool:
        """A check or a user's login went well.

        Returns:
            Whether it is up by this.
        """
        self.failures = 0
        if self.up or not checked:
            return False
        self.successes += 1
        if self.successes < self._settings.up_after:
            return False
        self._turn(now, up=True)
        return True

    def failed(self, now: float, reason: str, *, checked: bool, name: str = "", reached: bool) -> bool:
        """A check or a user's login has failed by the backend's fault.

        Args:
            now: The time.
            reason: What went wrong, for people.
            checked: It was a check.
            name: Otherwise, whose login it was.
            reached: The backend had greeted before it got stuck. Of logins that did, only one counts of those of the
                same user in a row: one broken mailbox takes no backend down.
        Returns:
            Whether it is down by this.
        """
        if reached and not checked:
            if name == self._person:
                return False
            self._person = name
        self.reason = reason[:_MOST_REASON]
        if not self.up:
            if checked:
                self.successes = 0
            return False
        self.failures += 1
        if self.failures < self._settings.down_after:
            return False
        self._turn(now, up=False)
        return True

    def recall(self, since: float, reason: str, *, up: bool) -> None:
        """Be as another process has it."""
        if up is not self.up:
            self._turn(since, up=up)
        self.since, self.reason = since, reason[:_MOST_REASON]

    def _turn(self, now: float, *, up: bool) -> None:
        self.up = up
        self.since = now
        self.failures = self.successes = 0
