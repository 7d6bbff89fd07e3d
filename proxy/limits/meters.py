"""How many commands sessions may give by time, and how much they may carry.

A limit has a bucket of tokens (`bucket`) for every user, which his sessions share, or for every session. A command
takes a token out of each bucket that counts it; where one lacks it, it takes none, and the limit's action says what
becomes of it. Octets are paid for once they are carried: how many will come nobody knows before.

Users have sessions in several workers. Each worker has buckets of its own for a user, and takes out of them what the
others tell (`take_used`, `deduct`), once a second: so long a user may have, at the most, as much from each of them as
from one. A user's buckets outlive his last session here until they are full again, for reconnecting must not fill them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from proxy.imap.command_stream import Permit
from proxy.imap.commands import COMMANDS
from proxy.limits.bucket import NEVER_USED, Rate
from proxy.limits.reached import reached
from proxy.settings.limit_models import CommandRate, Limits

ALL = "all"
_BYTES = "bytes"
_NEVER_LIMITED = "LOGOUT"  # who wants to leave may leave

_MOST_RESTING = 100_000  # users without a session here whose buckets are remembered
_LOOKED_AT = 1000  # of these, so many are looked at once a second
_MOST_TOLD = 40_000  # octets of JSON, about: all of it has to fit into one packet

# Where several limits are reached at once, the first action counts.
_ACTIONS = ("disconnect", "refuse", "delay")


class _Rule:
    """One limit on one class of commands, or on octets, and where its bucket is."""

    __slots__ = ("action", "index", "key", "limit", "of_user", "rate")

    def __init__(self, limit: str, key: str, rate: Rate, action: str, *, index: int) -> None:
        self.limit, self.key, self.rate, self.action, self.index = limit, key, rate, action, index
        self.of_user = limit.endswith("_user")

    def counts(self, command: str) -> bool:
        """Whether it is for this command. `UID SEARCH` is a SEARCH too."""
        return self.key in (ALL, command) or command == f"UID {self.key}"


class _User:
    """What is known of one user in this worker."""

    __slots__ = ("buckets", "name", "sessions", "untold", "used")

    def __init__(self, name: str, rules: int) -> None:
        self.name = name
        self.sessions = 0
        self.buckets = [NEVER_USED] * rules
        self.used = [0] * rules  # since the other workers were told
        self.untold = False

    def rested(self, now: float) -> bool:
        """Whether there is nothing to remember: a new one would be the same."""
        return not self.untold and max(self.buckets, default=NEVER_USED) <= now


class Meters:
    """All buckets of a worker."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        of_user = _rules("commands_per_user", limits.commands_per_user)
        self._of_session = len(of_session := _rules("commands_per_session", limits.commands_per_session))
        self._bytes: _Rule | None = None
        if (octets := limits.bytes_per_user) is not None:
            rate = Rate(octets.rate, octets.per)
            self._bytes = _Rule("bytes_per_user", _BYTES, rate, octets.action, index=len(of_user))
        in_order = sorted((*of_user, *of_session), key=lambda rule: _ACTIONS.index(rule.action))
        self._of_user = of_user if self._bytes is None else [*of_user, self._bytes]
        self._by_key = {rule.key: rule for rule in self._of_user}
        self._by_command = {
            command: tuple(rule for rule in in_order if rule.counts(command)) for command in COMMANDS - {_NEVER_LIMITED}
        }
        self._counts_commands = bool(in_order)
        self._users: dict[str, _User] = {}
        self._resting: dict[str, _User] = {}  # those without a session here, of all of them
        self._untold: dict[str, _User] = {}

    def __len__(self) -> int:
        """How many users are remembered."""
        return len(self._users)

    def open(self, name: str) -> Meter | None:
        """Begin to count for a session of this user, until it is closed. None: nothing is limited."""
        if not self._counts_commands and self._bytes is None:
            return None
        user = self._users.get(name)
        if user is None:
            user = self._users[name] = _User(name, len(self._of_user))
        user.sessions += 1
        self._resting.pop(name, None)
        own = [NEVER_USED] * self._of_session
        return Meter(self, user, own, self._by_command if self._counts_commands else {}, self._bytes, self._clock)

    def take_used(self) -> dict[str, list[list[Any]]]:
        """What users have used here that nobody was told yet: [class, count] for each limit, for other workers.

        To be called once a second until there is nothing more: {}.
        """
        self._forget_rested()
        used: dict[str, list[list[Any]]] = {}
        size = 0
        while self._untold and size < _MOST_TOLD:
            name, user = self._untold.popitem()
            used[name] = [[rule.key, count] for rule, count in zip(self._of_user, user.used, strict=True) if count]
            user.used = [0] * len(user.used)
            user.untold = False
            size += 3 * len(name.encode()) + 32 * len(used[name])  # "é" is six octets of JSON and two of UTF-8
        return used

    def deduct(self, used: Mapping[str, list[list[Any]]]) -> None:
        """Take out what users have used in another worker. Limits that are not set here are passed over."""
        now = self._clock()
        for name, entries in used.items():
            user = self._users.get(name)
            if user is None:
                user = self._users[name] = _User(name, len(self._of_user))
                self._rest(user)
            for key, count, *_ in entries:
                if (rule := self._by_key.get(key)) is not None:
                    user.buckets[rule.index] = rule.rate.take(user.buckets[rule.index], now, count)

    def left(self, name: str) -> list[dict[str, Any]]:
        """What a user has left of each limit that counts over all of his sessions, so far as is known here."""
        user, now = self._users.get(name), self._clock()
        buckets = [NEVER_USED] * len(self._of_user) if user is None else user.buckets
        return [
            {
                "limit": rule.limit if rule.key in (ALL, _BYTES) else f"{rule.limit} ({rule.key})",
                "most": rule.rate.count,
                "left": rule.rate.left(buckets[rule.index], now),
                "per_seconds": rule.rate.per,
            }
            for rule in self._of_user
        ]

    def note(self, user: _User) -> None:
        """The user has used something that is to be told."""
        user.untold = True
        self._untold[user.name] = user

    def release(self, user: _User) -> None:
        """One of the user's sessions is over."""
        user.sessions -= 1
        if not user.sessions:
            self._rest(user)

    def _rest(self, user: _User) -> None:
        self._resting[user.name] = user
        if len(self._resting) > _MOST_RESTING:
            self._forget(next(iter(self._resting)))

    def _forget_rested(self) -> None:
        now = self._clock()
        for _ in range(min(_LOOKED_AT, len(self._resting))):
            name = next(iter(self._resting))
            user = self._resting.pop(name)
            self._resting[name] = user  # the next time it is others' turn
            if user.rested(now):
                self._forget(name)

    def _forget(self, name: str) -> None:
        del self._users[name], self._resting[name]
        self._untold.pop(name, None)


class Meter:
    """What counts for one session."""

    __slots__ = ("_by_command", "_bytes", "_clock", "_delayed_by", "_meters", "_own", "_user", "exhausted")

    def __init__(
        self,
        meters: Meters,
        user: _User,
        own: list[float],
        by_command: Mapping[str, tuple[_Rule, ...]],
        octets: _Rule | None,
        clock: Callable[[], float],
    ) -> None:
        self._meters, self._own, self._by_command, self._bytes, self._clock = meters, own, by_command, octets, clock
        self._user: _User = user
        self._delayed_by: _Rule | None = None
        self.exhausted = False  # a limit wants the session to end

    @property
    def delays(self) -> bool:
        """Whether the last command that was asked about has to wait."""
        return self._delayed_by is not None

    @property
    def counts_commands(self) -> bool:
        """Whether commands are limited; else there is no use in asking permits()."""
        return bool(self._by_command)

    def permits(self, command: str) -> Permit:
        """Whether a command may begin now. One that is delayed waits for delay()."""
        rules = self._by_command.get(command)
        if not rules:
            self._delayed_by = None
            return Permit.GRANTED
        now, user, own = self._clock(), self._user, self._own
        for rule in rules:
            if rule.rate.wait((user.buckets if rule.of_user else own)[rule.index], now) > 0:
                return self._reached(rule, command)
        for rule in rules:
            index = rule.index
            if rule.of_user:
                user.buckets[index] = rule.rate.take(user.buckets[index], now)
                user.used[index] += 1
                if not user.untold:
                    self._meters.note(user)
            else:
                own[index] = rule.rate.take(own[index], now)
        self._delayed_by = None
        return Permit.GRANTED

    def carried(self, count: int) -> bool:
        """So many octets went by. False: the session has a debt(), or is `exhausted`."""
        rule = self._bytes
        if rule is None:
            return True
        user, index, now = self._user, rule.index, self._clock()
        in_debt = rule.rate.debt(user.buckets[index], now) > 0
        if count:
            user.buckets[index] = rule.rate.take(user.buckets[index], now, count)
            user.used[index] += count
            if not user.untold:
                self._meters.note(user)
        if rule.rate.debt(user.buckets[index], now) <= 0:
            return True
        self.exhausted = rule.action == "disconnect"
        if not in_debt:  # once for each time
            reached(rule.limit, rule.action, name=user.name)
        return False

    def delay(self) -> float:
        """Seconds until the command that is delayed may begin; nothing or less: it may, or there is none."""
        rule = self._delayed_by
        if rule is None:
            return 0.0
        return rule.rate.wait((self._user.buckets if rule.of_user else self._own)[rule.index], self._clock())

    def debt(self) -> float:
        """Seconds until the octets that were carried are paid for; nothing or less: they are."""
        rule = self._bytes
        return 0.0 if rule is None else rule.rate.debt(self._user.buckets[rule.index], self._clock())

    def close(self) -> None:
        """The session is over; to be called once."""
        self._meters.release(self._user)

    def _reached(self, rule: _Rule, command: str) -> Permit:
        if rule is not self._delayed_by:  # the same command may have to wait more than once
            reached(rule.limit, rule.action, name=self._user.name, command=command)
        self._delayed_by = rule if rule.action == "delay" else None
        if rule.action == "refuse":
            return Permit.REFUSED
        self.exhausted = rule.action == "disconnect"
        return Permit.DELAYED


def _rules(limit: str, rates: Mapping[str, CommandRate] | None) -> list[_Rule]:
    return [
        _Rule(limit, key, Rate(rate.rate, rate.per), rate.action, index=index)
        for index, (key, rate) in enumerate((rates or {}).items())
    ]
