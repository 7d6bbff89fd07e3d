"""A fleet: several proxies that share what they know of users by a Valkey or Redis server. The only door to coredis.

Theory of operation. Every member says which users have sessions through it, how many, and at which backend, whenever
that changes; a login asks first (`stand`), in one script, so that of two proxies that ask for the same user at the same
time the second one hears of the first. What members say to each other, they say by a stream (`say`, `hear`). Nothing
there is needed for mail: whoever gets FleetLost goes on alone, and says all that it has when it is back. What is kept
there, and how, stands in `fleet_scripts`.

All that changes something goes over one connection, in the order in which it was asked for. Another one listens.
"""

from __future__ import annotations

import json
import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import trio
from coredis import PureToken, Redis
from coredis.exceptions import RedisError
from coredis.retry import NoRetryPolicy

from proxy.ledger.fleet_scripts import (
    BEAT,
    EVEN_IF_FULL,
    FORGET,
    HERE,
    INSTANCES,
    LEAVE,
    LIFE,
    MEMBERS,
    ORDERS,
    SAID,
    STAND,
    USER,
)
from proxy.ledger.resident import Share
from proxy.observe import metrics
from proxy.settings.models import Fleet as Settings

logging.getLogger("coredis").setLevel(logging.CRITICAL)  # what it has to say it raises, too

BEAT_SECONDS = 3.0
DEAD_SECONDS = 15.0  # so long after its last beat a member's sessions do not count any more
KEEP_SECONDS = 6 * 3600.0  # what is said of sessions; members say it again before that
_FORGOTTEN_SECONDS = 24 * 3600.0
_CONNECT_SECONDS = 2.0
_ANSWER_SECONDS = 1.0
_GATHER_SECONDS = 0.002  # logins that ask together cost a fraction of what they cost one by one
_LISTEN_SECONDS = 2.0  # without an order; then it is asked again
_MOST_ORDERS = 4_000
_ORDERS_AT_ONCE = 100
_MOST_ERROR_CHARACTERS = 200
_MOST_DIGITS = 18

_Ask = Callable[[Any], Any]  # of coredis' client, or of a pipeline

_SECONDS = metrics.histogram(
    "porter_fleet_request_duration_seconds",
    "What a login asks the fleet, until it is answered.",
    buckets=(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0),
)


class FleetLost(Exception):
    """The server does not answer, or not as it should. The text is for administrators, and holds no secret."""


class NameTaken(FleetLost):
    """Another proxy of the same name is a member."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the fleet says of a user.

    in: what was said of him holds now. out: he has no sessions here. elsewhere: he has sessions at another backend by
    other proxies. was: he had, until a while ago. full: he would have too many. All but the first two change nothing.
    """

    kind: Literal["in", "out", "elsewhere", "was", "full"]
    backend: str
    others: int = 0  # sessions at other proxies
    others_counted: int = 0  # of them in connections_per_user
    seconds: float = 0.0  # since his last session ended, where that is remembered
    sticky: bool = False  # whether he may go back there
    left: str = field(default="", compare=False)  # of `was`: when that was, for stand(firm=)


@dataclass(frozen=True, slots=True)
class Beat:
    """What a member hears when it says that it lives."""

    life: str  # of the data: another one means that all was lost
    alive: bool  # whether this member counted until now; else what it had said may be gone
    now: float  # Unix time, the server's
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """What one member says to all."""

    id: str
    member: str
    kind: str
    body: Any
    said_at: float  # Unix time, the server's


@asynccontextmanager
async def connect(settings: Settings, member: str, instance: str, pin_seconds: float) -> AsyncIterator[Fleet]:
    """A connection to the server, until the block ends.

    Args:
        member: This proxy's name.
        instance: What tells this run of it from another proxy of the same name.
        pin_seconds: How long it is of use where a user without sessions was.
    Raises:
        FleetLost: There is none.
    """
    problem: Exception | None = None
    # What is raised in here would come out as a group, or as a group of groups: coredis has nurseries of its own.
    with _problems(settings):
        asks, listens = _client(settings), _client(settings)
        async with asks, listens:
            try:
                with _problems(settings), trio.fail_after(_CONNECT_SECONDS):
                    fleet = Fleet(settings, asks, listens, member, instance, pin_seconds)
                    for script in (STAND, EVEN_IF_FULL + STAND, BEAT):
                        await asks.script_load(script)  # else a first question would be asked twice
                yield fleet
            except Exception as exc:
                problem = exc
    if problem is not None:
        raise problem


def _client(settings: Settings) -> Redis[str]:
    url, password = settings.valkey, settings.password
    return Redis(
        url.host,
        url.port,
        url.database,
        username=settings.username,
        password=None if password is None else password.value.decode("utf-8", "replace"),
        ssl_context=_tls(settings.ca) if url.tls else None,
        connect_timeout=_CONNECT_SECONDS,
        decode_responses=True,
        max_connections=1,
        retry_policy=NoRetryPolicy(),
    )


def _tls(ca: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@contextmanager
def _problems(settings: Settings) -> Iterator[None]:
    """What goes wrong at the server, as FleetLost."""
    try:
        yield
    except FleetLost:
        raise
    except (trio.TooSlowError, TimeoutError):
        raise FleetLost(f"{settings.valkey}: no answer in time") from None
    except (RedisError, OSError, ValueError, TypeError, IndexError, KeyError, RuntimeError) as exc:
        told = f"{exc}: {exc.__cause__}" if exc.__cause__ is not None else str(exc)
        text = "".join(mark if mark.isprintable() else " " for mark in told)
        raise FleetLost(f"{settings.valkey}: {text[:_MOST_ERROR_CHARACTERS] or type(exc).__name__}") from None


class Fleet:
    """The server, for one member. Each call raises FleetLost; after that nothing is known of what it has done."""

    def __init__(
        self, settings: Settings, asks: Redis[str], listens: Redis[str], member: str, instance: str, pin_seconds: float
    ) -> None:
        self._settings, self._asks, self._listens = settings, asks, listens
        self._member, self._instance, self._pin_seconds = member, instance, pin_seconds
        self._stand = asks.register_script(STAND)
        self._depart = asks.register_script(EVEN_IF_FULL + STAND)
        self._beat = asks.register_script(BEAT)
        self._leave = asks.register_script(EVEN_IF_FULL + LEAVE)
        self._forget = asks.register_script(EVEN_IF_FULL + FORGET)
        self._here = HERE + member
        # One asks at a time: in a queue of coredis' whoever gives up takes the turn of the next with him.
        self._turn = trio.Lock()
        self._asked: list[_Question] = []
        self._wanted = trio.Event()
        self._has_ended = False
        self._ahead = 0.0  # of the server's clock before ours

    # --- users ---

    async def stand(self, name: str, share: Share, *, most: int, firm: bool | str) -> Verdict:
        """Ask for a login, `share` counting it already.

        Args:
            most: How many of his sessions may count; -1: no matter.
            firm: That he was elsewhere until a while ago is known, and has been decided on; a text: until then, as
                `Verdict.left` has it, and whoever was there later still is asked about again.
        """
        began = trio.current_time()
        try:
            with self._in_time():
                return _verdict(await self._among_others(self._question(name, share, most, firm)))
        finally:
            _SECONDS.observe(trio.current_time() - began)

    async def _among_others(self, ask: _Ask) -> Any:
        """The answer to what goes with whatever else is asked just now."""
        if self._has_ended:
            raise FleetLost(f"{self._settings.valkey}: given up")
        question = _Question(ask)
        self._asked.append(question)
        self._wanted.set()
        try:
            await question.decided.wait()
        finally:
            if not question.decided.is_set() and question in self._asked:
                self._asked.remove(question)  # what is said of the user from now on must not be undone by it
        if question.problem is not None:
            raise question.problem
        return question.answer

    async def run(self) -> None:
        """Ask for the logins that wait, all of them at once: asking for one alone costs several times as much."""
        asked: list[_Question] = []
        try:
            while True:
                await self._wanted.wait()
                await trio.sleep(_GATHER_SECONDS)
                self._wanted = trio.Event()
                asked, self._asked = self._asked, []
                if not asked:
                    continue
                async with self._asking():
                    answers = await self._ask([question.ask for question in asked])
                for question, answer in zip(asked, answers, strict=True):
                    question.answer = answer
                    question.decided.set()
        finally:
            self._has_ended = True
            for question in (*asked, *self._asked):
                if not question.decided.is_set():
                    question.problem = FleetLost(f"{self._settings.valkey}: given up")
                    question.decided.set()

    async def tell(self, shares: Sequence[tuple[str, Share]]) -> list[Verdict]:
        """Say what there is of these users here, whatever the limits; gives what the fleet says of each."""
        async with self._asking():
            answers = await self._ask([self._question(name, share, -1, True) for name, share in shares])
            return [_verdict(answer) for answer in answers]

    async def _ask(self, questions: Sequence[_Ask]) -> list[Any]:
        if len(questions) == 1:
            return [await questions[0](self._asks)]
        async with self._asks.pipeline(transaction=False, raise_on_error=False) as pipeline:
            requests = [ask(pipeline) for ask in questions]
        return [await request for request in requests]

    def _question(self, name: str, share: Share, most: int, firm: bool | str) -> _Ask:
        left = -1.0 if share.left_seconds is None else share.left_seconds
        about: list[str | float] = [self._member, name, share.backend, share.sessions, share.counted, most]
        arguments = [
            *about,
            firm if isinstance(firm, str) else int(firm),
            left,
            int(share.sticky),
            self._pin_seconds,
            int(KEEP_SECONDS),
            DEAD_SECONDS,
        ]
        script = self._stand if share.sessions else self._depart
        keys = [USER + name, MEMBERS, self._here]
        return lambda client: script(keys=keys, args=arguments, client=client)

    async def look(self, name: str, members: Iterable[str]) -> Verdict | None:
        """What is known of a user, changing nothing; None: nothing of use.

        Args:
            members: Those that live.
        """
        with self._in_time():
            user = await self._among_others(lambda client: client.hgetall(USER + name))
            now = trio.current_time() + self._ahead
            backend = user.get("@backend", "")
            counts = [user[member].split() for member in members if member != self._member and member in user]
            others, counted = sum(int(count[0]) for count in counts), sum(int(count[1]) for count in counts)
            if not backend:
                return None
            if others:
                return Verdict("elsewhere", backend, others, counted)
            if "@left" not in user:
                return None
            return Verdict("was", backend, 0, 0, max(0.0, now - float(user["@left"])), user.get("@sticky") == "1")

    async def known_here(self) -> set[str]:
        """Whom the fleet believes to have sessions at this member."""
        async with self._asking():
            return set(await self._asks.smembers(self._here))

    # --- members ---

    async def beat(self) -> Beat:
        """Say that this member lives.

        Raises:
            NameTaken: And that another one does, of the same name.
        """
        async with self._asking():
            answer: Any = await self._beat(
                keys=[MEMBERS, INSTANCES, LIFE],
                args=[self._member, self._instance, DEAD_SECONDS, _FORGOTTEN_SECONDS, secrets.token_hex(8)],
            )
            heard, life, now, alive, *members = answer
            if heard:
                raise NameTaken(
                    f'another proxy is called "{self._member}" (fleet.name), and was heard of {float(heard):.0f} s ago'
                )
            self._ahead = float(now) - trio.current_time()
            return Beat(life, alive == "1", float(now), tuple(sorted(members)))

    async def known_members(self) -> list[str]:
        """All that were heard of lately, whether they live or not."""
        async with self._asking():
            return sorted(await self._asks.hkeys(MEMBERS))

    async def leave(self, member: str | None = None) -> None:
        """This member is gone, with all its sessions.

        Args:
            member: Another name of it that counts no more.
        """
        async with self._asking():
            await self._leave(keys=[MEMBERS, INSTANCES], args=[member or self._member, self._instance])

    # --- what administrators say of users ---

    async def said(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Of all users of whom something is said, or of these; None: nothing is, or nothing that makes sense."""
        async with self._asking():
            if names is None:
                found: Mapping[str, str | None] = await self._asks.hgetall(SAID)
            else:
                found = dict(zip(names, await self._asks.hmget(SAID, list(names)), strict=True)) if names else {}
            return {name: None if text is None else _read(text) for name, text in found.items()}

    async def put_said(self, said: Mapping[str, Any]) -> None:
        """From now on this is said of these users."""
        async with self._asking():
            if said:
                await self._asks.hset(SAID, {name: _json(rows) for name, rows in said.items()})

    async def restore_said(self, said: Mapping[str, Any]) -> set[str]:
        """This is said of these users, unless something is by now; gives of whom it is."""
        async with self._asking():
            async with self._asks.pipeline(transaction=False, raise_on_error=False) as pipeline:
                requests = {name: pipeline.hsetnx(SAID, name, _json(rows)) for name, rows in said.items()}
            return {name for name, request in requests.items() if await request}

    async def forget_said(self, said: Mapping[str, Any]) -> None:
        """Nothing is said of these users, if it was this."""
        async with self._asking():
            for name, rows in said.items():
                await self._forget(keys=[SAID], args=[name, _json(rows)])

    # --- orders ---

    async def say(self, orders: Iterable[tuple[str, Any]]) -> None:
        """Say something to all members: kinds, and what stands behind them in JSON."""
        async with self._asking():
            async with self._asks.pipeline(transaction=False, raise_on_error=False) as pipeline:
                requests = [
                    pipeline.xadd(
                        ORDERS,
                        {"member": self._member, "kind": kind, "body": _json(body)},
                        trim_strategy=PureToken.MAXLEN,
                        trim_operator=PureToken.APPROXIMATELY,
                        threshold=_MOST_ORDERS,
                    )
                    for kind, body in orders
                ]
            for request in requests:
                await request

    async def earlier(self, after: str = "0-0") -> list[Order]:
        """Some of what was said after this, the oldest first; []: that was all."""
        async with self._asking():
            entries = await self._asks.xrange(ORDERS, f"({after}", "+", count=_ORDERS_AT_ONCE)
            return [_order(entry) for entry in entries]

    async def newest(self) -> str:
        """The id of the last order."""
        async with self._asking():
            entries = await self._asks.xrevrange(ORDERS, "+", "-", count=1)
            return str(entries[0].identifier) if entries else "0-0"

    async def hear(self, after: str) -> list[Order]:
        """Wait a while for orders."""
        with self._in_time(_LISTEN_SECONDS):
            streams = await self._listens.xread(
                {ORDERS: after}, count=_ORDERS_AT_ONCE, block=int(1000 * _LISTEN_SECONDS)
            )
            return [_order(entry) for entries in (streams or {}).values() for entry in entries]

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        with self._in_time():
            async with self._turn:
                yield

    @contextmanager
    def _in_time(self, more_seconds: float = 0.0) -> Iterator[None]:
        with _problems(self._settings), trio.fail_after(_ANSWER_SECONDS + more_seconds):
            yield


class _Question:
    """What a login asks, or somebody who wants to know."""

    __slots__ = ("answer", "ask", "decided", "problem")

    def __init__(self, ask: _Ask) -> None:
        self.ask = ask
        self.decided = trio.Event()
        self.answer: Any = None
        self.problem: FleetLost | None = None


def _verdict(answer: Any) -> Verdict:
    kind, backend, others, counted, seconds, sticky, *left = answer
    return Verdict(kind, backend, int(others), int(counted), max(0.0, float(seconds)), sticky == "1", *left)


def _order(entry: Any) -> Order:
    """One that makes no sense is of no kind."""
    fields, said_at = entry.field_values, int(entry.identifier.partition("-")[0]) / 1000
    body = _read(fields.get("body", ""))
    if body is None:
        return Order(entry.identifier, "", "", None, said_at)
    return Order(entry.identifier, fields.get("member", ""), fields.get("kind", ""), body, said_at)


def _read(text: str) -> Any:
    """JSON of ours; None: it is not."""
    try:
        value = json.loads(text, parse_int=_whole)
        if "\\u" in text:
            _json(value, ascii_only=False).encode()  # half of a character, which cannot be written
    except (ValueError, RecursionError):
        return None
    return value


def _whole(digits: str) -> int:
    """Nobody here writes numbers that are more than a float can hold, and nobody could reckon with them."""
    if len(digits) > _MOST_DIGITS:
        raise ValueError
    return int(digits)


def _json(value: Any, *, ascii_only: bool = True) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only)
