"""What an identity source answered, remembered for a while.

A yes counts for `positive` seconds from when the source was asked, and never past the end of what was shown. A no
counts for `negative` seconds. Yes and no are kept apart, so that a flood of wrong passwords pushes out no yes; each
side forgets what was asked for longest ago. An answer counts for exactly the same question: name, secret, and whether
that is a password or a token, whatever mechanism brought it; of the secret there is only a keyed hash, under a key of
this process. Whom the client wants to act as is no part of it: no source looks at that.

An outage is never remembered, and with `serve_stale` a yes outlives `positive` for as long as its source is out. A
source that is well and has trouble with this one account (`Refused.person`) is not out.

Equal questions at the same time are asked once: the first asker leads, the others wait for its answer. A leader that
leaves (its client is gone) hands on: of those that wait, one asks again.

Without a secret there is no question that could be told from another: SCRAM's proof, above all, is good once. That
passes through untouched, as does the account that SCRAM asks for by name.

Whom a name belongs to, which deliveries ask, is remembered like a yes or a no, but apart from logins: mail to made-up
names pushes out no answer to a password. Mail must go where sessions go: what a source answers to a login counts from
then on, and what was remembered of that name is forgotten. A no is remembered for a moment alone, since mail bounces.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from typing import Protocol, TypeVar

import trio

from proxy.auth.source import TOKEN_MECHANISMS, AccountSource, Answer, HashingSource, IdentitySource, NotMine, Probe
from proxy.model import Account, Credentials, Identity, KeyShape, Origin
from proxy.observe import metrics
from proxy.observe.metrics import METRICS
from proxy.observe.tally import NumberTally
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_models import Cache

RESULTS = ("hit", "negative", "miss", "shared", "stale")
_REMEMBERED = frozenset({Outcome.AUTHENTICATION_FAILED, Outcome.AUTHORIZATION_FAILED, Outcome.EXPIRED})
_DIGEST_OCTETS = 16
_NAME = "name"  # the kind of a question that shows nothing but a name
_MOST_SECONDS_UNKNOWN = 2.0  # for a burst of mail; who was added a moment ago must not miss any

_QUESTIONS = metrics.counter(
    "porter_identity_cache_total",
    "Questions to identity sources, by where the answer came from: a yes (`hit`) or a no (`negative`) remembered, the "
    "source itself (`miss`), an equal question under way (`shared`), an old yes while the source was out (`stale`).",
    source=None,
    result=RESULTS,
)

_Key = tuple[str, str, bytes]  # the secret's kind or _NAME, the name, hash of the secret
_Told = Answer | Refused  # a Refused is told here, not raised: whoever asked gets one of his own
_Kept = TypeVar("_Kept", Identity, NotMine | Refused)


def cached(
    source: IdentitySource,
    settings: Cache,
    *,
    key: bytes | None = None,
    clock: Callable[[], float] = trio.current_time,
    unix_time: Callable[[], float] = time.time,
) -> CachedSource:
    """A source that remembers its answers, and is otherwise what it was: a HashingSource, an AccountSource, or both.

    Args:
        source: Who is asked.
        settings: For how long, and how much.
        key: For the hashes of secrets; None: a new one, that nobody knows.
        clock: Monotonic seconds.
        unix_time: What identities' ends are told in.
    """
    kind: type[CachedSource] = CachedSource
    match isinstance(source, HashingSource), isinstance(source, AccountSource):
        case True, True:
            kind = _CachedHashingAccountSource
        case True, False:
            kind = _CachedHashingSource
        case False, True:
            kind = _CachedAccountSource
    return kind(source, settings, key or secrets.token_bytes(32), clock, unix_time)


class CachedSource:
    """A source with its memory. Made by `cached`."""

    _remembers_not_mine = True

    def __init__(
        self,
        source: IdentitySource,
        settings: Cache,
        key: bytes,
        clock: Callable[[], float],
        unix_time: Callable[[], float],
    ) -> None:
        self._source = source
        self._settings = settings
        self._key = key
        self._clock, self._unix_time = clock, unix_time
        self._forget_all()
        self._results = {result: NumberTally(_QUESTIONS.labels(source.name, result)) for result in RESULTS}
        METRICS.on_flush(self._flush)

    @property
    def source(self) -> IdentitySource:
        """Who is asked."""
        return self._source

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def mechanisms(self) -> frozenset[str]:
        return self._source.mechanisms

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Answer:
        """What the source says, or said.

        Raises:
            Refused: As the source does.
        """

        async def ask() -> Answer:
            answer = await self._source.authenticate(credentials, name, origin)
            self._overtake(name, answer)
            return answer

        if not credentials.secret:
            return await ask()
        kind = "token" if credentials.mechanism in TOKEN_MECHANISMS else "password"
        key = self._question(kind, name, credentials)
        told = await self._tell(key, ask, remember_not_mine=self._remembers_not_mine)
        if isinstance(told, Refused):
            raise _afresh(told)
        return told

    async def probe(self) -> Sequence[Probe]:
        return await self._source.probe()

    def clear(self) -> None:
        """Forget everything: the source has changed. Answers that are on their way are not remembered."""
        self._forget_all()

    def _forget_all(self) -> None:
        self._memory = _Memory(self._settings.negative)
        self._names = _Memory(min(self._settings.negative, _MOST_SECONDS_UNKNOWN))

    def _overtake(self, name: str, told: Answer) -> None:
        """A login has heard whose a name is: of that name, and of its owner's own, no older answer counts."""
        self._names.forget((_NAME, name, b""))
        if isinstance(told, Identity) and told.name != name:
            self._names.forget((_NAME, told.name, b""))

    def _question(self, kind: str, name: str, credentials: Credentials) -> _Key:
        digest = blake2b(credentials.secret, digest_size=_DIGEST_OCTETS, key=self._key).digest()
        return kind, name, digest

    async def _tell(self, key: _Key, ask: Callable[[], Awaitable[Answer]], *, remember_not_mine: bool) -> _Told:
        """The answer: remembered, of an equal question under way, or asked for."""
        while True:
            memory = self._names if key[0] == _NAME else self._memory
            if (remembered := self._recall(memory, key)) is not None:
                return remembered
            if (flight := memory.flights.get(key)) is None:
                break
            await flight.landed.wait()
            if (told := flight.told) is not None:
                self._count("stale" if isinstance(told, Identity) and told.stale else "shared")
                return told
        flight = memory.flights[key] = _Flight()
        began = self._clock()
        try:
            told = await _heard(ask)
            told = flight.told = self._judge(memory, key, told, began, remember_not_mine)
            if flight.overtaken:
                memory.forget(key)
        finally:
            del memory.flights[key]
            flight.landed.set()
        return told

    def _recall(self, memory: _Memory, key: _Key) -> _Told | None:
        """What is remembered and still counts."""
        if (yes := memory.yes.get(key)) is not None:
            identity, asked_at = yes
            if self._clock() - asked_at < self._settings.positive and not self._has_ended(identity):
                memory.yes.move_to_end(key)
                self._count("hit")
                return identity
        elif (no := memory.no.get(key)) is not None:
            answer, asked_at = no
            if self._clock() - asked_at < memory.negative:
                memory.no.move_to_end(key)
                self._count("negative")
                return answer
        return None

    def _judge(self, memory: _Memory, key: _Key, told: _Told, asked_at: float, remember_not_mine: bool) -> _Told:
        """Remember what the source told. What it has changed its mind about is forgotten in any case."""
        if isinstance(told, Refused) and told.outcome is Outcome.UNAVAILABLE:
            return self._stale(memory, key, told)
        self._count("miss")
        memory.yes.pop(key, None)
        memory.no.pop(key, None)
        if isinstance(told, Identity):
            if self._settings.positive and told.verified and not told.stale:
                self._remember(memory.yes, key, told, asked_at)
        elif memory.negative and (told.outcome in _REMEMBERED if isinstance(told, Refused) else remember_not_mine):
            self._remember(memory.no, key, told, asked_at)
            self._forget_old(memory.no, memory.negative)
        return told

    def _stale(self, memory: _Memory, key: _Key, outage: Refused) -> _Told:
        """The source is out: an old yes, where that is allowed, or just that."""
        may = self._settings.serve_stale is not None and not outage.person
        if may and (yes := memory.yes.get(key)) is not None:
            identity, asked_at = yes
            most = self._settings.positive + (self._settings.serve_stale or 0.0)
            if self._clock() - asked_at < most and not self._has_ended(identity):
                self._count("stale")
                return replace(identity, stale=True)
        self._count("miss")
        return outage

    def _remember(self, side: OrderedDict[_Key, tuple[_Kept, float]], key: _Key, told: _Kept, asked_at: float) -> None:
        side[key] = (told, asked_at)
        if len(side) > self._settings.entries:
            side.popitem(last=False)

    def _forget_old(self, side: OrderedDict[_Key, tuple[_Kept, float]], seconds: float) -> None:
        """Two for each that comes: so what is over goes, little by little."""
        for key, (_, asked_at) in list(islice(side.items(), 2)):
            if self._clock() - asked_at >= seconds:
                del side[key]

    def _has_ended(self, identity: Identity) -> bool:
        return identity.expires_at is not None and self._unix_time() >= identity.expires_at

    def _count(self, result: str) -> None:
        self._results[result].value += 1

    def _flush(self) -> None:
        for tally in self._results.values():
            tally.flush()


class _CachedHashingSource(CachedSource):
    """Its "not mine" costs nothing and is asked for again: what costs is the pretence, remembered like a no."""

    _remembers_not_mine = False
    _source: HashingSource

    async def pretend(self, credentials: Credentials, name: str) -> None:
        """Spend what a wrong password costs, as seldom as for a name that is known.

        Raises:
            Refused: UNAVAILABLE.
        """

        async def ask() -> Answer:
            await self._source.pretend(credentials, name)
            return NotMine()

        key = self._question("pretended", name, credentials)
        told = await self._tell(key, ask, remember_not_mine=True)
        if isinstance(told, Refused):
            raise _afresh(told)


class _CachedAccountSource(CachedSource):
    """An account is asked for each time, since a no to SCRAM is no verdict of the source's; whose it is, is not."""

    _source: AccountSource

    @property
    def knows_scram(self) -> bool:
        return self._source.knows_scram

    @property
    def usual_shape(self) -> KeyShape:
        return self._source.usual_shape

    async def look_up(self, name: str) -> Account | None:
        """The account of a canonical name; None: not mine.

        Raises:
            Refused: As the source does.
        """
        account = await self._source.look_up(name)
        if account is not None:
            self._overtake(name, account.identity)
        return account

    async def find(self, name: str) -> Identity | None:
        """Whom a canonical name belongs to, so said the source; None: not mine.

        Raises:
            Refused: As look_up() does.
        """

        async def ask() -> Answer:
            account = await self._source.look_up(name)
            return NotMine() if account is None else account.identity

        told = await self._tell((_NAME, name, b""), ask, remember_not_mine=True)
        if isinstance(told, Refused):
            raise _afresh(told)
        return None if isinstance(told, NotMine) else told


class _HashingAccountSource(HashingSource, AccountSource, Protocol):
    """A source that is both."""


class _CachedHashingAccountSource(_CachedHashingSource, _CachedAccountSource):
    """Both, too: a file with SCRAM keys."""

    _source: _HashingAccountSource


class _Flight:
    """A question under way."""

    __slots__ = ("landed", "overtaken", "told")

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.told: _Told | None = None  # still None when landed: the leader left
        self.overtaken = False  # a newer answer came meanwhile: whoever waits may have this one, nobody later


class _Memory:
    """Answers with the times they were asked for, those used longest ago first, and the questions under way."""

    __slots__ = ("flights", "negative", "no", "yes")

    def __init__(self, negative: float) -> None:
        self.negative = negative  # for how many seconds a no counts
        self.yes: OrderedDict[_Key, tuple[Identity, float]] = OrderedDict()
        self.no: OrderedDict[_Key, tuple[NotMine | Refused, float]] = OrderedDict()
        self.flights: dict[_Key, _Flight] = {}

    def forget(self, key: _Key) -> None:
        """Yes and no, and what is on its way."""
        self.yes.pop(key, None)
        self.no.pop(key, None)
        if (flight := self.flights.get(key)) is not None:
            flight.overtaken = True


async def _heard(ask: Callable[[], Awaitable[Answer]]) -> _Told:
    """An answer, whether it was returned or raised."""
    try:
        return await ask()
    except Refused as refusal:
        return _afresh(refusal)


def _afresh(refusal: Refused) -> Refused:
    """The same refusal without its past: a traceback would keep alive what stood on the stack, secrets too."""
    return Refused(
        refusal.outcome,
        refusal.detail,
        step=refusal.step,
        limit=refusal.limit,
        wait_seconds=refusal.wait_seconds,
        person=refusal.person,
    )
