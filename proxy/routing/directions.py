"""What administrators said of single users: live at that backend, or stay out for a while.

A direction wins over everything else that says where somebody lives. It lasts until it is taken back or its time is
over; who is moved and held has two, each with its own end. It is the same in all processes: whoever may have to place
users alone is told of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

MOST = 10_000  # users
_MOST_TEXT = 400  # of a reason, or of who gave it


@dataclass(frozen=True, slots=True)
class Direction:
    """One word about one user."""

    backend: str | None  # where he lives; None: nowhere, he is held
    until: float | None  # Unix time; None: until it is taken back
    reason: str
    by: str  # who said so
    since: float  # Unix time
    number: int = 0  # of two about the same user the one with the higher number was said later

    def is_over(self, now: float) -> bool:
        """Whether its time has passed, Unix time."""
        return self.until is not None and self.until <= now


@dataclass(frozen=True, slots=True)
class Said:
    """All that is said of one user; at least one of the two."""

    moved: Direction | None = None
    held: Direction | None = None

    @property
    def backend(self) -> str | None:
        """Where he lives; None: where he would without."""
        return None if self.moved is None else self.moved.backend

    def __bool__(self) -> bool:
        return self.moved is not None or self.held is not None


class TooMany(Exception):
    """There are directions about MOST users. The text is for whoever asked."""


class Directions:
    """By canonical name."""

    def __init__(self) -> None:
        self._by_name: dict[str, Said] = {}
        self._number = 0  # the highest that was ever seen

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def get(self, name: str) -> Said | None:
        """What was said of a user, if anything; expire() forgets what is over."""
        return self._by_name.get(name)

    def put(self, name: str, backend: str | None, *, until: float | None, reason: str, by: str, since: float) -> None:
        """From now on he lives there; None: he is held. What else is said of him stays.

        Raises:
            TooMany: Of too many others something is said already.
        """
        if name not in self._by_name and len(self._by_name) >= MOST:
            raise TooMany(f"{MOST} users are moved or held already; release some first")
        self._number += 1
        self._set(name, Direction(backend, until, reason[:_MOST_TEXT], by[:_MOST_TEXT], since, self._number))

    def drop(self, name: str) -> Said | None:
        """Nothing is said of him any more; gives what was."""
        self._number += 1
        return self._by_name.pop(name, None)

    def clear(self) -> None:
        """Nothing is said of anybody."""
        self._by_name.clear()

    def expire(self, now: float) -> list[str]:
        """Forget what is over, Unix time; gives of whom something was."""
        over = [
            name
            for name, said in self._by_name.items()
            if any(each is not None and each.is_over(now) for each in (said.moved, said.held))
        ]
        for name in over:
            said = self._by_name.pop(name)
            left = Said(*(each if each and not each.is_over(now) else None for each in (said.moved, said.held)))
            if left:
                self._by_name[name] = left
        return over

    # --- for people ---

    def document(self, name: str) -> dict[str, Any] | None:
        """What was said of a user, as an object; where he is moved and held the rest is of the hold."""
        said = self._by_name.get(name)
        if said is None:
            return None
        first = said.held or said.moved
        assert first is not None
        return {
            "backend": said.backend,
            "held": said.held is not None,
            "until": first.until,
            "reason": first.reason,
            "by": first.by,
            "since": first.since,
        }

    # --- for other processes ---

    def memory(self, names: Iterable[str] | None = None) -> list[list[Any]]:
        """What was said of all users, or of these, for take() and learn(); JSON."""
        wanted = self._by_name if names is None else names
        return [
            [name, *astuple(each)]
            for name in wanted
            if (said := self._by_name.get(name)) is not None
            for each in (said.moved, said.held)
            if each is not None
        ]

    def take(self, memory: object) -> None:
        """Believe what others say, whatever was known. What makes no sense is passed over."""
        for name, direction in _read(memory):
            self._set(name, direction)

    def learn(self, memory: object) -> list[str]:
        """Believe what others remember, unless something later is known; gives of whom it was news."""
        learned = []
        for name, direction in _read(memory):
            said = self._by_name.get(name, Said())
            known = said.held if direction.backend is None else said.moved
            if known is None or known.number < direction.number:
                self._set(name, direction)
                learned.append(name)
        return learned

    def _set(self, name: str, direction: Direction) -> None:
        said = self._by_name.get(name)
        if said is None:
            if len(self._by_name) >= MOST:
                return
            said = Said()
        self._number = max(self._number, direction.number)
        if direction.backend is None:
            self._by_name[name] = Said(said.moved, direction)
        else:
            self._by_name[name] = Said(direction, said.held)


def is_over(memory: object, now: float) -> bool:
    """Whether nothing of what is remembered holds any more, Unix time."""
    return all(direction.is_over(now) for _, direction in _read(memory))


def not_over(memory: object, now: float) -> list[list[Any]]:
    """What holds still, of what is remembered; what released() says does nowhere, however late a clock is."""
    return [
        [name, *astuple(direction)]
        for name, direction in _read(memory)
        if not direction.is_over(now) and not direction.is_over(direction.since)
    ]


def released(name: str, now: float) -> list[list[Any]]:
    """Nothing is said of a user any more, for others who remember that something was: it is over since it was said."""
    return [[name, *astuple(Direction(None, now, "released", "", now))]]


def _read(memory: object) -> Iterator[tuple[str, Direction]]:
    for each in memory if isinstance(memory, list) else ():
        match each:
            case [
                str(name),
                (str() | None) as backend,
                (int() | float() | None) as until,
                str(reason),
                str(by),
                int() | float() as since,
                int(number),
                *_,
            ] if math.isfinite(since) and (until is None or math.isfinite(until)):
                yield name, Direction(backend, until, reason[:_MOST_TEXT], by[:_MOST_TEXT], since, number)
