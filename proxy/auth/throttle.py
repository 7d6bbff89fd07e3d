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

Tables hold keyed hashes, no name and no secret. They are bounded: who floods them pushes out the failures that are
longest ago, first of those who are at no limit. Whoever is pushed out starts from zero. That takes 100,000 newer
failures, each from somebody below his own limit, and gives a guesser back what he had once.

Several workers share a key, and what one learns he tells (`on_wrong`, `on_known`) and the others take over (`learn_…`),
so that nobody has more guesses for reaching more of them. What is told are plain objects for JSON: octets in
hexadecimal, and ages, for clocks differ. Tries under way are known to their own worker alone: of those that are offered
to several at the same moment, each may pass as many as the limit has left.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import count
from types import TracebackType
from typing import Any

import trio

from proxy.auth.failures import Failures
from proxy.settings.limit_models import Limits
from proxy.settings.networks import NetworkSet, network_of

# Failures in each table, and pairs of name and network that have logged in. At worst, each failure from somebody else,
# that is 40 MB a table, some 400 octets a failure, and 18 MB for the pairs.
_MOST_FAILURES = 100_000
_MOST_KNOWN = 100_000
_KNOWN_SECONDS = 30 * 24 * 3600.0
_KNOWN_AGAIN_SECONDS = 3600.0  # so seldom is it noted, and told, that somebody has logged in once more
_MOST_NAME_CHARACTERS = 256
_DIGEST_OCTETS = 16
# Of anything that another worker tells.
_MOST_TOLD_OCTETS = 32
_OLDEST_SECONDS = 1e9
_PROOFS_OF_KNOWN = 10  # times `count`


class Throttle:
    """The failures of logins and what they lead to. Synchronous: nothing happens between a check and its change."""

    def __init__(
        self,
        limits: Limits,
        *,
        key: bytes | None = None,
        clock: Callable[[], float] = trio.current_time,
        most_failures: int = _MOST_FAILURES,
        most_known: int = _MOST_KNOWN,
    ) -> None:
        """Nobody has tried anything yet.

        Args:
            key: Of the hashes, up to 64 octets; the same for all who hear each other. None: one of its own.
            clock: What `now` is read from, for what others tell.
            most_failures: How many are kept in each table.
            most_known: How many pairs of name and network that have logged in are kept.
        """
        by_address, by_user = limits.login_failures_per_address, limits.login_failures_per_user
        self._exempt = NetworkSet(limits.exempt_networks)
        self._address_prefixes = (32, by_address.ipv6_prefix)
        self._network_prefixes = (by_user.ipv4_prefix, by_user.ipv6_prefix)
        self._by_address = Failures("login_failures_per_address", by_address, by_address.count, most_failures)
        self._by_person = Failures("login_failures_per_user", by_user, by_user.count, most_failures)
        self._by_known = Failures("login_failures_per_user", by_user, by_user.count * _PROOFS_OF_KNOWN, most_failures)
        self._most_proofs = limits.connections_per_user
        self._proofs: Counter[bytes] = Counter()  # person -> SCRAM exchanges under way
        self._under_way: dict[bytes, dict[bytes, int]] = {}  # person -> secret -> tries; no more than connections
        self._known: OrderedDict[bytes, float] = OrderedDict()  # person -> last login; the longest ago is first
        self._most_known = most_known
        self._key = secrets.token_bytes(32) if key is None else key
        self._clock = clock
        # What tells tries apart that show no secret: here by the number, from those of others by what is before it.
        self._own, self._unequalled = secrets.token_bytes(8), count()
        self.on_wrong: Callable[[list[Any]], None] = _untold  # takes one item of what learn_wrong() takes
        self.on_known: Callable[[list[Any]], None] = _untold  # takes one item of what learn_known() takes

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
        tried = self._digest(named, secret) if secret else self._own + next(self._unequalled).to_bytes(8, "big")
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
        among_secrets = compared or not self._knows(person, now)
        self._by_address.add(address, tried, now)
        (self._by_person if among_secrets else self._by_known).add(person, tried, now)
        self.on_wrong([address.hex(), person.hex(), tried.hex(), among_secrets, 0.0])

    def attempt_succeeded(self, person: bytes, now: float) -> None:
        """A try was right."""
        last = self._known.get(person)
        if last is None or now - last >= _KNOWN_AGAIN_SECONDS:
            self._note_known(person, now)
            self.on_known([person.hex(), 0.0])

    def _note_known(self, person: bytes, now: float) -> None:
        self._known[person] = now
        self._known.move_to_end(person)
        if len(self._known) > self._most_known:
            self._known.popitem(last=False)

    # --- what others tell ---

    def learn_wrong(self, news: Iterable[Any]) -> None:
        """Somebody failed elsewhere. What makes no sense is passed over.

        Args:
            news: [address, person, tried, whether it counts among the person's wrong secrets rather than among the
                proofs of somebody who is known, age in seconds]. An address or a person may be "": it is not counted.
        """
        now = self._clock()
        for item in news:
            match item:
                case [str(address), str(person), str(tried), bool(among_secrets), int() | float() as age, *_] if (
                    0 <= age <= _OLDEST_SECONDS
                ):
                    self._learn_wrong(address, person, tried, now, now - age, among_secrets=among_secrets)

    def _learn_wrong(
        self, address: str, person: str, tried: str, now: float, last: float, *, among_secrets: bool
    ) -> None:
        try:
            where, who, what = _octets(address), _octets(person), _octets(tried)
        except ValueError:
            return
        if where:
            self._by_address.learn(where, what, last, now)
        if who:
            (self._by_person if among_secrets else self._by_known).learn(who, what, last, now)

    def learn_known(self, news: Iterable[Any]) -> None:
        """Somebody has logged in elsewhere. What makes no sense is passed over.

        Args:
            news: [person, age in seconds]; without an age it was just now.
        """
        now = self._clock()
        for item in news:
            match item:
                case [str(person), int() | float() as age, *_] if 0 <= age <= _OLDEST_SECONDS:
                    self._learn_known(person, now - age, now)
                case [str(person)]:
                    self._learn_known(person, now, now)

    def _learn_known(self, person: str, last: float, now: float) -> None:
        try:
            who = _octets(person)
        except ValueError:
            return
        if who and now - last < _KNOWN_SECONDS and last > self._known.get(who, -math.inf):
            self._note_known(who, last)

    def failures(self) -> tuple[list[list[Any]], list[list[Any]]]:
        """All that there is to know for somebody who comes new: what learn_wrong() takes, and learn_known()."""
        now = self._clock()
        wrong: list[list[Any]] = [
            [where.hex(), "", tried.hex(), True, now - last] for where, tried, last in self._by_address.all(now)
        ]
        for table, among_secrets in ((self._by_person, True), (self._by_known, False)):
            wrong += (["", who.hex(), tried.hex(), among_secrets, now - last] for who, tried, last in table.all(now))
        known = [[who.hex(), now - last] for who, last in self._known.items() if now - last < _KNOWN_SECONDS]
        return wrong, known

    def _digest(self, name: bytes, rest: bytes) -> bytes:
        text = len(name).to_bytes(2, "big") + name + rest
        return blake2b(text, digest_size=_DIGEST_OCTETS, key=self._key).digest()


def _octets(text: str) -> bytes:
    """Raises ValueError: It is not hexadecimal, or too long."""
    if len(text) > 2 * _MOST_TOLD_OCTETS:
        raise ValueError("too long")
    return bytes.fromhex(text)


def _untold(item: list[Any]) -> None:
    """Nobody hears it."""


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
