"""Guessing passwords has an end, and nobody can lock the owner out.

Two limits, each over a sliding time. By address: how many different pairs of name and secret have failed. By name and
network: how many different secrets have failed for the name, so that many addresses side by side don't guess more than
one. What keeps the owner in:

- The same wrong secret again is no guess: a device with an old password counts as one failure, however often it tries.
- The second limit holds a name only in the network where it was guessed at; elsewhere the owner is free.
- Whoever has logged in from a network before is not held by the first limit there, whatever his neighbours behind the
  same address do; the second still bounds what is guessed at his name.
- SCRAM shows no secret that could be compared, so every failed proof counts; where the name has logged in from the
  network before, ten times as many may.

At a limit every try is refused, the right secret and one known to be wrong alike: any difference would be an answer.
Refused tries don't count, so the limit opens again by itself.

Tries under way count by name and network as if they had failed, unless with the same secret: else many at once would
pass before the first has failed. Of SCRAM exchanges there may be as many under way as the user may have sessions. Tries
under way don't count by address, where an office comes back all at once after a restart.

Tables hold keyed hashes, no name and no secret, under a key of this process. They are bounded: who floods them pushes
out the failures that are longest ago, first of those who are at no limit. Whoever is pushed out starts from zero. That
takes 100,000 newer failures, each from somebody below his own limit, and gives a guesser back what he had once.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Collection
from hashlib import blake2b
from itertools import count, islice
from types import TracebackType

from proxy.outcome import Outcome, Refused
from proxy.settings.limit_models import FailuresPerAddress, FailuresPerUser, Limits
from proxy.settings.networks import NetworkSet, network_of
from proxy.settings.units import duration_text

# Failures in each table, and pairs of name and network that have logged in. At worst, each failure from somebody else,
# that is 40 MB a table, some 400 octets a failure, and 18 MB for the pairs.
_MOST_FAILURES = 100_000
_MOST_KNOWN = 100_000
_KNOWN_SECONDS = 30 * 24 * 3600.0
_MOST_NAME_CHARACTERS = 256
_DIGEST_OCTETS = 16
_PROOFS_OF_KNOWN = 10  # times `count`
# How many are looked at for one who may be forgotten without opening a limit.
_EVICTION_CHOICES = 8


class Throttle:
    """The failures of logins and what they lead to. Synchronous: nothing happens between a check and its change."""

    def __init__(self, limits: Limits, *, most_failures: int = _MOST_FAILURES, most_known: int = _MOST_KNOWN) -> None:
        by_address, by_user = limits.login_failures_per_address, limits.login_failures_per_user
        self._exempt = NetworkSet(limits.exempt_networks)
        self._address_prefixes = (32, by_address.ipv6_prefix)
        self._network_prefixes = (by_user.ipv4_prefix, by_user.ipv6_prefix)
        self._by_address = _Failures("login_failures_per_address", by_address, by_address.count, most_failures)
        self._by_person = _Failures("login_failures_per_user", by_user, by_user.count, most_failures)
        self._by_known = _Failures("login_failures_per_user", by_user, by_user.count * _PROOFS_OF_KNOWN, most_failures)
        self._most_proofs = limits.connections_per_user
        self._proofs: Counter[bytes] = Counter()  # person -> SCRAM exchanges under way
        self._under_way: dict[bytes, dict[bytes, int]] = {}  # person -> secret -> tries; no more than connections
        self._known: OrderedDict[bytes, float] = OrderedDict()  # person -> last login; the longest ago is first
        self._most_known = most_known
        self._key = secrets.token_bytes(32)
        self._unequalled = count()

    def begin(self, host: str, name: str, secret: bytes, now: float) -> Attempt:
        """Let a try go on, and keep its place until it has ended.

        Args:
            host: The client's address.
            name: The canonical name; where it is none, what the client wrote. "": it left the name to its token.
            secret: What was offered. b"": a proof is about to be (SCRAM).
            now: Monotonic seconds.
        Raises:
            Refused: LIMIT.
        """
        if host in self._exempt:
            return UNCOUNTED
        named = name[:_MOST_NAME_CHARACTERS].encode("utf-8", "surrogatepass")
        # Without a secret no two tries are known to be alike.
        tried = self._digest(named, secret) if secret else next(self._unequalled).to_bytes(8, "big")
        # Whoever names nobody is told apart by his token: it can't be guessed, and others may not close its limit.
        person = self._digest(named or tried, network_of(host, *self._network_prefixes))
        address = network_of(host, *self._address_prefixes)
        failed_here = len(self._by_address.of(address, now))
        if failed_here >= self._by_address.count and not self._knows(person, now):
            raise self._by_address.reached(failed_here)
        if secret:
            self._check_secret(person, tried, now)
            under_way = self._under_way.setdefault(person, {})
            under_way[tried] = under_way.get(tried, 0) + 1
        else:
            self._check_proof(person, now)
            self._proofs[person] += 1
        return Attempt(self, address, person, tried, compared=bool(secret))

    def _check_proof(self, person: bytes, now: float) -> None:
        failures = self._by_known if self._knows(person, now) else self._by_person
        failed, under_way = len(failures.of(person, now)), self._proofs[person]
        if failed >= failures.count or under_way >= self._most_proofs:
            raise failures.reached(failed, under_way)

    def _check_secret(self, person: bytes, tried: bytes, now: float) -> None:
        wrong = self._by_person.of(person, now)
        others = sum(each != tried and each not in wrong for each in self._under_way.get(person, ()))
        if len(wrong) >= self._by_person.count or len(wrong) + others + (tried not in wrong) > self._by_person.count:
            raise self._by_person.reached(len(wrong), others)

    def _knows(self, person: bytes, now: float) -> bool:
        last = self._known.get(person)
        return last is not None and now - last < _KNOWN_SECONDS

    def attempt_ended(self, person: bytes, tried: bytes, *, compared: bool) -> None:
        """A try is no longer under way."""
        if not compared:
            self._proofs[person] -= 1
            if not self._proofs[person]:
                del self._proofs[person]
            return
        under_way = self._under_way.get(person)
        if under_way is None or tried not in under_way:
            return
        under_way[tried] -= 1
        if not under_way[tried]:
            del under_way[tried]
            if not under_way:
                del self._under_way[person]

    def attempt_failed(self, address: bytes, person: bytes, tried: bytes, now: float, *, compared: bool) -> None:
        """A try was wrong."""
        self._by_address.add(address, tried, now)
        (self._by_person if compared or not self._knows(person, now) else self._by_known).add(person, tried, now)

    def attempt_succeeded(self, person: bytes, now: float) -> None:
        """A try was right."""
        self._known[person] = now
        self._known.move_to_end(person)
        if len(self._known) > self._most_known:
            self._known.popitem(last=False)

    def _digest(self, name: bytes, rest: bytes) -> bytes:
        text = len(name).to_bytes(2, "big") + name + rest
        return blake2b(text, digest_size=_DIGEST_OCTETS, key=self._key).digest()


class Attempt:
    """A try that may go on. The first word about how it ended counts; leaving its `with` without one is `void`."""

    __slots__ = ("_address", "_compared", "_person", "_throttle", "_tried")

    def __init__(
        self,
        throttle: Throttle | None,
        address: bytes = b"",
        person: bytes = b"",
        tried: bytes = b"",
        *,
        compared: bool = True,
    ) -> None:
        self._throttle = throttle  # None: exempt, or ended
        self._compared = compared  # by its secret; False: each try is another (SCRAM)
        self._address, self._person, self._tried = address, person, tried

    def failed(self, now: float) -> None:
        """The secret was wrong."""
        if (throttle := self._end()) is not None:
            throttle.attempt_failed(self._address, self._person, self._tried, now, compared=self._compared)

    def succeeded(self, now: float) -> None:
        """The secret was right. To be told as soon as it is known, so that its place is free for the next try."""
        if (throttle := self._end()) is not None:
            throttle.attempt_succeeded(self._person, now)

    def void(self) -> None:
        """Nothing was learned: an outage, another limit, a client that left."""
        self._end()

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.void()

    def _end(self) -> Throttle | None:
        throttle, self._throttle = self._throttle, None
        if throttle is not None:
            throttle.attempt_ended(self._person, self._tried, compared=self._compared)
        return throttle


UNCOUNTED = Attempt(None)  # of what cannot be guessed


class _Failures:
    """Who failed with what, and when last.

    Both levels are in the order of the last failure, so that what is over stands in front. Nobody has more than
    `count`: of more, the latest tell when the limit opens again.
    """

    __slots__ = ("_by_whom", "_limit", "_most", "_per", "_total", "count")

    def __init__(self, limit: str, settings: FailuresPerAddress | FailuresPerUser, count: int, most: int) -> None:
        self._limit = limit
        self.count = count
        self._per = settings.per
        self._most = max(most, count)  # one alone can always reach his limit
        self._by_whom: OrderedDict[bytes, dict[bytes, float]] = OrderedDict()
        self._total = 0

    def of(self, whom: bytes, now: float) -> Collection[bytes]:
        """With what he has failed and that still counts."""
        failures = self._by_whom.get(whom)
        if failures is None:
            return ()
        over = []
        for tried, last in failures.items():
            if last > now - self._per:
                break
            over.append(tried)
        for tried in over:
            del failures[tried]
        self._total -= len(over)
        if not failures:
            del self._by_whom[whom]
        return failures

    def add(self, whom: bytes, tried: bytes, now: float) -> None:
        """He failed with this."""
        failures = self._by_whom.setdefault(whom, {})
        self._by_whom.move_to_end(whom)
        self._total += failures.pop(tried, None) is None
        failures[tried] = now
        if len(failures) > self.count:
            del failures[next(iter(failures))]
            self._total -= 1
        self._forget(now)

    def reached(self, failed: int, under_way: int = 0) -> Refused:
        """The refusal of a try at the limit."""
        more = f" and {under_way} under way" if under_way else ""
        detail = f"{self._limit}: {failed}{more} of {self.count} in {duration_text(self._per)}"
        return Refused(Outcome.LIMIT, detail, limit=self._limit)

    def _forget(self, now: float) -> None:
        """Drop what is over, and what is too much. There is always one who stays: the last added."""
        for _ in range(2):  # two for each that comes: so what is over goes, little by little
            whom, failures = next(iter(self._by_whom.items()))
            if next(reversed(failures.values())) > now - self._per:
                break
            self._drop(whom)
        while self._total > self._most:
            self._drop(self._expendable())

    def _expendable(self) -> bytes:
        """The one whose last failure is longest ago, of those who are at no limit if there is one among the first."""
        first = next(iter(self._by_whom))
        older = islice(self._by_whom.items(), min(_EVICTION_CHOICES, len(self._by_whom) - 1))
        return next((whom for whom, failures in older if len(failures) < self.count), first)

    def _drop(self, whom: bytes) -> None:
        self._total -= len(self._by_whom.pop(whom))
