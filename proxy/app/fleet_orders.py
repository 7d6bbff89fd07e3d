"""What the members of a fleet say to each other: sessions to be ended, what administrators want, logins that failed.

    close     [[name, backend], …]        the sessions of these users there have to end: they log in elsewhere
    kick      {user | session | …: text}  an administrator ends sessions
    said      [name, …]                   something else is said of these users
    failures  [message, …]                as workers say them, `wrong` and `known`

An order that makes no sense, of another version's perhaps, is passed over; one that fails does not stop the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

import trio

from proxy.ledger.fleet import Fleet, Order
from proxy.observe import metrics
from proxy.observe.log import get_logger

log = get_logger()

KINDS = ("close", "kick", "said", "failures")
_GATHER_SECONDS = 0.02
_MOST_FAILURES = 1_000  # messages that wait to be said; further ones are for this proxy alone
_FAILURES_AT_ONCE = 50

_ORDERS = metrics.counter(
    "porter_fleet_orders_total",
    "What members of the fleet have said to each other.",
    kind=KINDS,
    way=("said", "heard"),
)


class Hands(Protocol):
    """Who carries out what others want."""

    def close(self, name: str, backend: str) -> int:
        """The sessions of a user at a backend have to end; gives how many there are."""
        ...

    def kick(self, whom: Mapping[str, Any]) -> int:
        """An administrator ends sessions, by `admin.questions.Kick`; gives how many.

        Raises:
            ValueError: That makes no sense.
        """
        ...

    def failed(self, message: list[Any]) -> None:
        """Somebody has failed to log in elsewhere, or has not."""
        ...


class Orders:
    """Both ways. What is said while there is no server is not said at all."""

    def __init__(self, member: str, hands: Hands, *, shares_failures: bool) -> None:
        """Args:
        member: This proxy's name.
        shares_failures: Whether all members hash failures alike.
        """
        self._member, self._hands, self._shares_failures = member, hands, shares_failures
        self._waiting: deque[tuple[str, Any]] = deque()
        self._failures: deque[list[Any]] = deque()
        self._something = trio.Event()
        self._heard = "0-0"  # the last order
        self.on_said: Callable[[Fleet, list[str]], Awaitable[None]] = _unheard

    def say(self, kind: str, body: Any) -> None:
        """Say something to the others."""
        self._waiting.append((kind, body))
        self._something.set()

    def say_failure(self, message: list[Any]) -> None:
        """Somebody has failed here, or has not: a message of a worker's."""
        if self._shares_failures and len(self._failures) < _MOST_FAILURES:
            self._failures.append(message)
            self._something.set()

    async def say_now(self, fleet: Fleet, kind: str, body: Any) -> None:
        """Say something that may not be lost on the way. Raises FleetLost."""
        await fleet.say([(kind, body)])
        _ORDERS.labels(kind, "said").inc()

    def clear(self) -> None:
        """There was nobody to hear it, and it is of no use later."""
        self._waiting.clear()
        self._failures.clear()

    async def run(self, fleet: Fleet, heard: str) -> None:
        """Hear what the others say after this order. Raises FleetLost."""
        while True:
            for order in await fleet.hear(heard):
                heard = self._heard = order.id
                if order.member != self._member:
                    await self._carry_out(fleet, order)

    async def keep_saying(self, fleet: Fleet) -> None:
        """Say what there is to say. Raises FleetLost."""
        while True:
            await self._something.wait()
            await trio.sleep(_GATHER_SECONDS)
            self._something = trio.Event()
            orders = [*self._waiting, *self._gathered()]
            self._waiting.clear()
            await fleet.say(orders)
            for kind, _ in orders:
                _ORDERS.labels(kind, "said").inc()

    def _gathered(self) -> Iterator[tuple[str, Any]]:
        while self._failures:
            yield "failures", [self._failures.popleft() for _ in range(min(_FAILURES_AT_ONCE, len(self._failures)))]

    async def catch_up(self, fleet: Fleet, now: float, *, anew: bool) -> str:
        """Learn who has failed while we were away, and give the last order. Raises FleetLost.

        Args:
            now: Unix time, the server's.
            anew: These are not the orders that we have heard before.
        """
        self._failures.clear()  # they would seem to be of now
        if not self._shares_failures:
            return await fleet.newest()
        heard = "0-0" if anew else self._heard
        while orders := await fleet.earlier(heard):
            for order in orders:
                if order.kind == "failures":  # ours as well: we may have been started anew
                    self._learn(order, now - order.said_at)
            heard = self._heard = orders[-1].id
        return heard

    async def _carry_out(self, fleet: Fleet, order: Order) -> None:
        if order.kind in KINDS:
            _ORDERS.labels(order.kind, "heard").inc()
        try:
            match order.kind, order.body:
                case "close", list(names):
                    self._tell(order, sum(map(self._close, names)))
                case "kick", dict(whom):
                    self._tell(order, self._hands.kick(whom))
                case "said", list(names):
                    await self.on_said(fleet, [name for name in names if isinstance(name, str)])
                case "failures", _ if self._shares_failures:
                    self._learn(order, 0.0)
        except ValueError as exc:
            log.warning("fleet.order_refused", kind=order.kind, member=order.member, error=str(exc))

    def _close(self, whom: Any) -> int:
        match whom:
            case [str(name), str(backend)]:
                return self._hands.close(name, backend)
        return 0

    def _learn(self, order: Order, age: float) -> None:
        for message in order.body if isinstance(order.body, list) else ():
            match message:
                case ["wrong" | "known" as kind, *items]:
                    aged = [_aged(item, max(0.0, age)) for item in items if isinstance(item, list)]
                    self._hands.failed([kind, *aged])

    def _tell(self, order: Order, sessions: int) -> None:
        log.info("fleet.order", kind=order.kind, member=order.member, sessions=sessions)


def _aged(item: list[Any], age: float) -> list[Any]:
    """An item of throttle.learn_wrong() or learn_known(), whose age is the last of it."""
    if item and isinstance(item[-1], int | float) and not isinstance(item[-1], bool):
        return [*item[:-1], item[-1] + age]
    return item


async def _unheard(_fleet: Fleet, _names: list[str]) -> None:
    """Nobody listens."""
