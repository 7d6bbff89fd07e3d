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

A weight of 0 never wins: the backend keeps who is there and gets no new homes. Nor does a state change a score:
whoever may not take a key is passed over in its order, which is where the key would go, were that backend not there.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from struct import Struct
from typing import Protocol

CACHED_KEYS = 16384
EPOCH_OCTETS = 6  # as a number it is below 2**53: a double, and so a gauge, holds it
_LANE = 8  # octets of one hash
_FRACTION = 2**52 - 1  # of an IEEE 754 double, and its exponent where the value is from 1 up to 2
_FROM_1_TO_2 = 0x3FF << 52
_OFFSET = 1 - 2.0**-53  # from there to h; every value between is a double, so nothing is rounded


@dataclass(frozen=True, slots=True)
class Member:
    """A backend as placement sees it."""

    name: str
    weight: float = 1.0  # 0: no new homes
    state: str = "active"  # told in the epoch, as is the tag; neither changes a score
    tag: str = ""


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
    """One membership. It never changes: a new membership is a new object, with an empty cache."""

    __slots__ = ("_field", "_first", "_weightless", "members")

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
        self._field = _Field([member for member in self.members if member.weight > 0])
        self._weightless = tuple(Score(member.name, member.weight, 0.0) for member in self.members if not member.weight)
        self._first = lru_cache(cached_keys)(partial(_first, self._field))

    def first(self, key: str) -> str:
        """The first of `order`, which is all that most keys ever need, sooner and remembered; "": there is none."""
        return self._first(key)

    def order(self, key: str) -> tuple[str, ...]:
        """The backends that may be this key's home, best first; those behind the first are where to fall back."""
        return _rank(self._field, key)

    def scores(self, key: str) -> tuple[Score, ...]:
        """Every backend with its score, in the order of `order`; those that take no new homes come last."""
        field = self._field
        by_name = dict(zip(field.names, zip(field.weights, field.scores(field.points(key)), strict=True), strict=True))
        return tuple(Score(name, *by_name[name]) for name in _rank(field, key)) + self._weightless


class _Field:
    """The backends that compete for homes, sorted by weight and then by name, as columns."""

    __slots__ = ("by_name", "exponents", "fractions", "groups", "names", "octets", "prefixes", "unpack", "weights")

    def __init__(self, members: Iterable[Member]) -> None:
        members = sorted(members, key=lambda member: (member.weight, member.name))
        self.names = [member.name for member in members]
        self.weights = [float(member.weight) for member in members]
        self.by_name = sorted(range(len(members)), key=self.names.__getitem__)
        # Where in the columns the backends of one weight begin and end.
        self.groups = [
            (weight, bisect_left(self.weights, weight), bisect_right(self.weights, weight))
            for weight in sorted(set(self.weights))
        ]
        # Copying a hasher that has read the backend's name is a third cheaper than building one per key.
        self.prefixes: list[_Hasher] = [blake2b(name.encode() + b"\0", digest_size=_LANE) for name in self.names]
        self.octets = _LANE * len(members)
        self.fractions = int.from_bytes(_FRACTION.to_bytes(_LANE) * len(members))
        self.exponents = int.from_bytes(_FROM_1_TO_2.to_bytes(_LANE) * len(members))
        self.unpack = Struct(f">{len(members)}d").unpack

    def points(self, key: str) -> tuple[float, ...]:
        """For every backend a double from 1 up to 2, whose fraction is the upper 52 bits of the hash.

        All are made at once, in one long integer with a lane for each: one by one they take three times as long, which
        at 100 backends is a sixth of the whole look-up.
        """
        octets = key.encode()
        digests = []
        for prefix in self.prefixes:
            hasher = prefix.copy()
            hasher.update(octets)
            digests.append(hasher.digest())
        lanes = (int.from_bytes(b"".join(digests)) >> 12) & self.fractions | self.exponents
        return self.unpack(lanes.to_bytes(self.octets))

    def scores(self, points: Sequence[float]) -> list[float]:
        return [-weight / math.log(point - _OFFSET) for weight, point in zip(self.weights, points, strict=True)]


def _first(field: _Field, key: str) -> str:
    """Only the highest point of each weight can win: one logarithm per weight instead of one per backend."""
    points = field.points(key)
    best, first = 0.0, ""
    for weight, begin, end in field.groups:
        point = max(points[begin:end])
        score = -weight / math.log(point - _OFFSET)
        name = field.names[points.index(point, begin)]
        if score > best or (score == best and name < first):
            best, first = score, name
    return first


def _rank(field: _Field, key: str) -> tuple[str, ...]:
    values: Sequence[float] = field.points(key)
    if len(field.groups) > 1:
        values = field.scores(values)
    # A stable sort: equal values stay in the order of the names, also with reverse.
    best_first = sorted(field.by_name, key=values.__getitem__, reverse=True)
    names = field.names
    return tuple([names[index] for index in best_first])


def epoch(members: Iterable[Member]) -> str:
    """A short name for a membership: proxies that show the same one place alike.

    Names, weights, states and tags count, their order does not.
    """
    hasher = blake2b(digest_size=EPOCH_OCTETS)
    for member in sorted(members, key=lambda member: member.name):
        tag = f"\0{member.tag}" if member.tag else ""
        hasher.update(f"{member.name}\0{float(member.weight)!r}\0{member.state}{tag}\n".encode())
    return hasher.hexdigest()
