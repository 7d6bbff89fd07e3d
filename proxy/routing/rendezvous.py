"""Weighted rendezvous hashing: which backend a key belongs to, by its own numbers and nobody's memory.

Theory of operation. Every backend draws a number for every key, and the highest number wins:

    h     = BLAKE2b-64(backend name, NUL, key), its upper 52 bits, moved by one half into the open interval (0, 1)
    score = -weight / ln(h)

The scores of one backend know nothing of the others. So a backend that leaves moves exactly its own keys, spread over
all others by weight; one that comes takes keys and moves none between the rest; a changed weight moves the
difference. A backend wins in proportion to its weight (-ln(h) / weight is exponentially distributed with that rate).
The hash needs no secret, as every proxy has to agree, and anybody can check it:

    printf 'dovecot-1\\0alice@example.org' | b2sum -l 64

Agreement between machines. The 52 bits and the half need 53 bits, which a double holds, so h is exact and never 0
nor 1. While all weights are equal the order of the scores is the order of h and no logarithm is taken: exact
everywhere. Otherwise ln may differ in its last bit between mathematical libraries, which shows only where two scores
are that close: for one home in about 10^15. Equal scores go to the name that sorts first. Nothing depends on the order
of the settings, on addresses or on Python's own hash().

A weight of 0 never wins: the backend keeps who is there and gets no new homes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from struct import Struct
from typing import Protocol

CACHED_KEYS = 16384  # at 100 backends about 1 KiB each
_STEP = 2.0**-52


@dataclass(frozen=True, slots=True)
class Member:
    """A backend as placement sees it."""

    name: str
    weight: float = 1.0  # 0: no new homes
    state: str = "active"  # told in the epoch; changes no score


@dataclass(frozen=True, slots=True)
class Score:
    """What one backend scored for one key."""

    name: str
    weight: float
    score: float  # 0.0: it takes no new homes


class _Hasher(Protocol):
    def copy(self) -> _Hasher: ...
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class Rendezvous:
    """One membership. It never changes: a new membership is a new object, with an empty cache and another epoch."""

    __slots__ = ("_draining", "_field", "_ranked", "epoch", "members")

    def __init__(self, members: Iterable[Member], *, cached_keys: int = CACHED_KEYS) -> None:
        """Take the backends in any order.

        Raises:
            ValueError: A name comes twice, or a weight is negative or no number.
        """
        self.members = tuple(sorted(members, key=lambda member: member.name))
        for member in self.members:
            if not (math.isfinite(member.weight) and member.weight >= 0):
                raise ValueError(f"backend {member.name!r}: weight {member.weight} is no finite number from 0 up")
        if len({member.name for member in self.members}) < len(self.members):
            raise ValueError("two backends have the same name")
        self.epoch = _epoch(self.members)
        self._field = _Field([member for member in self.members if member.weight > 0])
        self._draining = tuple(Score(member.name, member.weight, 0.0) for member in self.members if not member.weight)
        self._ranked = lru_cache(cached_keys)(partial(_rank, self._field))

    def order(self, key: str) -> tuple[str, ...]:
        """The backends that may be this key's home, best first; those behind the first are where to fall back."""
        return self._ranked(key)

    def scores(self, key: str) -> tuple[Score, ...]:
        """Every backend with its score, in the order of `order`; those that take no new homes come last."""
        field = self._field
        by_name = dict(zip(field.names, zip(field.weights, field.scores(field.points(key)), strict=True), strict=True))
        return tuple(Score(name, *by_name[name]) for name in _rank(field, key)) + self._draining


class _Field:
    """The backends that compete for homes, sorted by name, as columns."""

    __slots__ = ("equal", "names", "prefixes", "unpack", "weights")

    def __init__(self, members: Sequence[Member]) -> None:
        self.names = [member.name for member in members]
        self.weights = [float(member.weight) for member in members]
        self.equal = len(set(self.weights)) < 2
        # Copying a hasher that has read the backend's name is a third cheaper than building one per key.
        self.prefixes: list[_Hasher] = [blake2b(name.encode() + b"\0", digest_size=8) for name in self.names]
        self.unpack = Struct(f">{len(members)}Q").unpack

    def points(self, key: str) -> list[float]:
        """2**52 times h of every backend."""
        octets = key.encode()
        digests = []
        for prefix in self.prefixes:
            hasher = prefix.copy()
            hasher.update(octets)
            digests.append(hasher.digest())
        return [(digest >> 12) + 0.5 for digest in self.unpack(b"".join(digests))]

    def scores(self, points: list[float]) -> list[float]:
        log = math.log
        return [-weight / log(point * _STEP) for weight, point in zip(self.weights, points, strict=True)]


def _rank(field: _Field, key: str) -> tuple[str, ...]:
    values = field.points(key)
    if not field.equal:
        values = field.scores(values)
    # A stable sort: equal values stay in the order of the names, also with reverse.
    best_first = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    names = field.names
    return tuple([names[index] for index in best_first])


def _epoch(members: Iterable[Member]) -> str:
    """A short name for a membership: proxies that show the same one place alike (names, weights and states count)."""
    hasher = blake2b(digest_size=6)
    for member in members:
        hasher.update(f"{member.name}\0{float(member.weight)!r}\0{member.state}\n".encode())
    return hasher.hexdigest()
