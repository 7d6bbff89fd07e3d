"""This proxy as a member of a fleet: it says what it has, asks before it lets users in, and hears what others want.

Theory of operation. While the server is there every login asks it (`join`), and what changes without being asked, ends
of sessions above all, is told within a moment (`_keep_told`). When the server is lost, or slower than a second, nobody
asks it any more, until this proxy has said anew all that it has. The fleet's word wins: whoever is divided by what two
proxies did alone has his sessions ended at the one that comes back later.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from proxy.app.fleet_logins import Logins
from proxy.app.fleet_orders import Orders
from proxy.ledger.fleet import BEAT_SECONDS, DEAD_SECONDS, KEEP_SECONDS, Beat, Fleet, FleetLost, NameTaken, connect
from proxy.ledger.guests import Guest
from proxy.ledger.host import Ledger, Place
from proxy.ledger.resident import NOTHING, Share, Whereabouts
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.routing.directions import Directions, is_over, not_over, released
from proxy.settings.models import Settings
from proxy.transport.packets import slices

log = get_logger()

_RETRY_SECONDS = 1.0
_SHORT_SECONDS = 10.0  # whoever was a member for less waits longer until he tries again
_MOST_DOUBLED = 4
_TOLD_SECONDS = 0.05  # so long changes are gathered
_AT_ONCE = 200  # users
_AGAIN_SECONDS = KEEP_SECONDS / 4  # all that there is is said once more
_MOST_NAMES = 10  # in one line of the log
_LEAVE_SECONDS = 1.0
_OVER_SECONDS = 7 * 86400.0  # so long after its end what was said is thrown away: nobody remembers it any more
_LOST_SIGHT_OF = Share("", 0, 0, left_seconds=0.0, sticky=True)  # his sessions ended while nobody took note

_UP = metrics.gauge(
    "porter_fleet_up", "1 while this proxy is a member of its fleet; 0 while it goes on alone.", member=None
)
_MEMBERS = metrics.gauge(
    "porter_fleet_members", "Proxies of the fleet that live, this one included; 0: it is lost.", member=None
)
_LOST = metrics.counter("porter_fleet_lost_total", "Times that the fleet was lost.")


class Member:
    """What the registry asks, and the tasks that keep the answers right."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        instance: str,
        ledger: Ledger,
        directions: Directions,
        orders: Orders,
        adopt: Callable[[str, Any], None],
        close: Callable[[str, str], None],
    ) -> None:
        """Args:
        name: This proxy's among the others.
        instance: What tells this proxy from another one of that name, in all its generations.
        directions: What administrators say of users here.
        orders: What is said to the others, and heard from them.
        adopt: Takes over what is said of a user elsewhere.
        close: Ends a session, by id and reason: its user has too many.
        """
        assert settings.fleet is not None
        self.name = name
        self._settings, self._instance = settings.fleet, instance
        self._pin_seconds = max(settings.routing.sticky, settings.routing.move_delay)
        self._ledger, self._directions, self._adopt = ledger, directions, adopt
        self._logins = Logins(settings, ledger, orders, self._lost_at, close)
        self._orders = orders
        orders.on_said = self._hear_said
        self._scope = trio.CancelScope()  # while we are not
        self._members: tuple[str, ...] = ()
        self._name_before = ""  # of the steward's before this one
        self._spells = 0  # short ones, one after the other
        self._problem = "not asked yet"
        self._loss: type[Exception] | None = None  # the kind that was told
        self._life = ""  # of the data that we have seen last
        self._unsaid: set[str] = set()  # of whom something else is said here than others know
        self._agrees = trio.Lock()  # what is said is either being put there or being heard
        self._untold: set[str] = set()  # whose login has asked just when he was to be told of
        self._tells = trio.Lock()
        self._lost_by: FleetLost | None = None
        for gauge in (_UP, _MEMBERS):
            gauge.labels(name).set(0)
        self.tried = trio.Event()  # to become a member, well or badly
        self.leaves = False  # nobody takes over what is here

    @property
    def is_up(self) -> bool:
        """Whether logins ask."""
        return self._logins.fleet is not None

    @property
    def others(self) -> int:
        """How many other proxies there are."""
        return max(0, len(self._members) - 1)

    def status(self) -> dict[str, Any]:
        """For people."""
        return {"name": self.name, "up": self.is_up, "members": list(self._members), "error": self._problem or None}

    # --- one after the other ---

    def memory(self) -> dict[str, Any]:
        """What the next steward's has to know; JSON."""
        return {"unsaid": sorted(self._unsaid), "name": self.name}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take over what another's memory() holds."""
        match memory:
            case {"unsaid": list(names), "name": str(name)}:
                self._name_before = name
                self._unsaid.update(name for name in names if isinstance(name, str))

    # --- becoming a member, and not being one any more ---

    async def run(self) -> None:
        """Be a member whenever the server lets us, until cancelled."""
        self._ledger.watch()
        try:
            while True:
                try:
                    await self._belong()
                except FleetLost as exc:
                    self._note_loss(exc)
                except Exception as exc:  # mail does not need a fleet: whatever this was, it must not end the steward
                    self._problem = "a mistake of this proxy's; the log tells more"
                    if type(exc) is not self._loss:  # once per spell
                        self._loss = type(exc)
                        log.exception("fleet.crashed")
                self.tried.set()
                self._ledger.take_touched(())  # all is told at once to whoever hears it again; strangers' names go, too
                # Each time all is told: a server that comes and goes must not have the processor.
                await trio.sleep(_RETRY_SECONDS * 2 ** min(self._spells, _MOST_DOUBLED))
        finally:
            if self.leaves:
                await self._leave()

    async def _leave(self) -> None:
        """Over a connection of its own: the other one was cancelled with all that was under way."""
        with suppress(FleetLost), trio.move_on_after(_LEAVE_SECONDS, shield=True):
            async with connect(self._settings, self.name, self._instance, self._pin_seconds) as fleet:
                await fleet.leave()

    async def _belong(self) -> None:
        began = trio.current_time()
        async with connect(self._settings, self.name, self._instance, self._pin_seconds) as fleet:
            beat = await fleet.beat()
            if self._name_before not in ("", self.name):
                await fleet.leave(self._name_before)
            heard = await self._orders.catch_up(fleet, beat.now, anew=beat.life != self._life)
            await self._agree(fleet, beat)
            users = await self._tell_all(fleet)
            self._check(beat := await fleet.beat())
            self._members, self._logins.fleet, self._problem, self._loss = beat.members, fleet, "", None
            self._scope, self._lost_by = trio.CancelScope(), None
            _UP.labels(self.name).set(1)
            log.info(
                "fleet.joined", members=len(self._members), users=users, seconds=round(trio.current_time() - began, 3)
            )
            self.tried.set()
            joined_at = trio.current_time()
            try:
                with self._scope:
                    async with trio.open_nursery() as nursery:
                        tasks = (self._keep_living, self._keep_told, self._keep_telling, self._orders.keep_saying)
                        nursery.start_soon(self._until_lost, fleet.run)
                        nursery.start_soon(self._until_lost, partial(self._orders.run, fleet, heard))
                        for task in tasks:
                            nursery.start_soon(self._until_lost, partial(task, fleet))
            finally:
                self._spells = self._spells + 1 if trio.current_time() - joined_at < _SHORT_SECONDS else 0
                self._logins.end()
                self._members = ()
                self._untold.clear()
                self._orders.clear()
                _UP.labels(self.name).set(0)
                _MEMBERS.labels(self.name).set(0)
            if self._lost_by is not None:
                raise self._lost_by

    async def _until_lost(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except FleetLost as exc:
            self._lose(exc)

    def _lose(self, exc: FleetLost) -> None:
        """From now on nobody asks."""
        self._logins.fleet, self._lost_by = None, self._lost_by or exc
        self._scope.cancel()

    def _lost_at(self, fleet: Fleet, exc: FleetLost) -> None:
        """A login has not been answered; it may be an old one's, and another connection there by now."""
        if fleet is self._logins.fleet:
            self._lose(exc)

    def _note_loss(self, exc: FleetLost) -> None:
        self._problem = str(exc)
        if type(exc) is self._loss:  # once per spell
            return
        self._loss = type(exc)
        _LOST.inc()
        if isinstance(exc, NameTaken):
            log.warning("fleet.name_taken", fleet_name=self.name, error=self._problem)
        else:
            log.warning("fleet.lost", error=self._problem)

    async def _keep_living(self, fleet: Fleet) -> None:
        while True:
            _MEMBERS.labels(self.name).set(len(self._members))
            await trio.sleep(BEAT_SECONDS)
            beat = await fleet.beat()
            self._check(beat)
            self._members = beat.members

    def _check(self, beat: Beat) -> None:
        """Whether what was said here still stands there. Raises FleetLost: It may not."""
        if beat.life != self._life:
            raise FleetLost(f"{self._settings.valkey}: all that was there is gone")
        if not beat.alive:
            raise FleetLost(f"{self._settings.valkey}: this proxy was not heard of for {DEAD_SECONDS:g} s")

    # --- saying what we have ---

    async def _tell_all(self, fleet: Fleet) -> int:
        """Say who has sessions here, and who has none any more; gives how many have."""
        ledger = self._ledger
        known, here = await fleet.known_here(), ledger.occupants()
        ledger.take_touched(())
        heard_of_us = trio.current_time()
        for some in slices([*here, *known.difference(here)], _AT_ONCE):
            await self._tell(fleet, some, known=known)
            if trio.current_time() - heard_of_us > BEAT_SECONDS:
                heard_of_us = trio.current_time()
                self._check(await fleet.beat())
        return len(here)

    async def _tell(self, fleet: Fleet, names: Sequence[str], *, known: Collection[str] = ()) -> None:
        """What holds of these users here, at the moment that it is said.

        Args:
            known: Of whom the fleet believes that they have sessions here.
        """
        divided: list[str] = []
        for some in slices(names, _AT_ONCE):
            async with self._tells:
                # Whose login asks just now is told of by that, or afterwards; what is not yet decided is nobody's.
                asking = self._logins.undecided()
                self._untold.update(asking.intersection(some))
                shares = [(name, self._share(name, known)) for name in some if name not in asking]
                # Those that are counted in this; who comes while it is on its way is counted in the next.
                unproved = [self._logins.take_unproved(name) for name, _ in shares]
                self._logins.telling = frozenset(name for name, _ in shares)
                try:
                    verdicts = await fleet.tell(shares) if shares else []
                finally:
                    self._logins.telling = frozenset()
            for (name, share), late, verdict in zip(shares, unproved, verdicts, strict=True):
                if verdict.kind == "elsewhere":
                    divided.append(name)
                else:
                    self._logins.close_beyond(late, verdict.others_counted + share.counted)
        if parted := self._ledger.part(divided):
            log.warning("fleet.divided", users=len(parted), names=parted[:_MOST_NAMES])

    def _share(self, name: str, known: Collection[str]) -> Share:
        share = self._ledger.share(name)
        return _LOST_SIGHT_OF if share == NOTHING and name in known else share

    async def _keep_told(self, fleet: Fleet) -> None:
        """Tell what has changed without being asked for."""
        while True:
            await trio.sleep(_TOLD_SECONDS)
            asking = self._logins.undecided()
            untold, self._untold = self._untold - asking, self._untold & asking
            await self._tell(fleet, [*untold.union(self._ledger.take_touched(asking))])
            if self._unsaid:
                await self._say_said(fleet)

    async def _keep_telling(self, fleet: Fleet) -> None:
        """Say where users were who left while we were away; then what others would forget, a little at a time."""
        for some in slices(self._ledger.absent(), _AT_ONCE):
            await self._tell(fleet, some)
            await trio.sleep(_TOLD_SECONDS)
        while True:
            known, here = await fleet.known_here(), self._ledger.occupants()
            # Of some an earlier connection may have told later than this one.
            await self._tell(fleet, [*known.difference(here)], known=known)
            await self._forget_said(fleet)
            pause = _AGAIN_SECONDS / (1 + len(here) / _AT_ONCE)
            for some in slices(here, _AT_ONCE):
                await trio.sleep(pause)
                await self._tell(fleet, some)
            await trio.sleep(pause)

    # --- what administrators do to users ---

    def kick(self, whom: dict[str, str]) -> int:
        """End sessions at the others as well, by `admin.questions.Kick`; gives how many proxies are told."""
        if self.is_up:
            self._orders.say("kick", whom)
        return self.others

    def said(self, name: str) -> None:
        """Something else is said of a user here, for all to know."""
        self._unsaid.add(name)

    async def _agree(self, fleet: Fleet, beat: Beat) -> None:
        """Take over what was said while we were away, and say what is not known there. Who was released is known there
        as well, for a while: whoever is not was never spoken of, or all was lost.
        """
        stored = await fleet.said()
        self._life = beat.life
        lost = [name for name in self._directions if stored.get(name) is None and name not in self._unsaid]
        for some in slices(lost, _AT_ONCE):
            # Others may have come back at the same time, who know better: they were told since.
            restored = await fleet.restore_said({name: self._directions.memory([name]) for name in some})
            await self._orders.say_now(fleet, "said", sorted(restored))
            stored |= await fleet.said([name for name in some if name not in restored])
        for name, rows in stored.items():
            if rows is not None and name not in self._unsaid:
                self._adopt(name, not_over(rows, time.time()))
        await self._say_said(fleet)

    async def _forget_said(self, fleet: Fleet) -> None:
        """What has been over for so long that nobody remembers it."""
        long_ago = time.time() - _OVER_SECONDS
        await fleet.forget_said({name: rows for name, rows in (await fleet.said()).items() if is_over(rows, long_ago)})

    async def _say_said(self, fleet: Fleet) -> None:
        names = list(self._unsaid)
        for some in slices(names, _AT_ONCE):
            async with self._agrees:
                said = {name: self._directions.memory([name]) for name in some}
                await fleet.put_said({name: rows or released(name, time.time()) for name, rows in said.items()})
                await self._orders.say_now(fleet, "said", list(some))
                # Of whom something else is said by now, that is not said yet.
                self._unsaid -= {name for name in some if self._directions.memory([name]) == said[name]}

    async def _hear_said(self, fleet: Fleet, names: Sequence[str]) -> None:
        """Another member says something else of these."""
        async with self._agrees:
            for name, rows in (await fleet.said(names)).items():
                if rows is not None and name not in self._unsaid:
                    self._adopt(name, not_over(rows, time.time()))

    # --- logins ---

    async def join(self, guest: Guest, place: Place, *, verified: bool, waits: Callable[[], None]) -> tuple[str, int]:
        """As Logins.join()."""
        return await self._logins.join(guest, place, verified=verified, waits=waits)

    def confirmed(self, guest: Guest) -> None:
        """As Logins.confirmed()."""
        self._logins.confirmed(guest)

    async def counted_elsewhere(self, name: str) -> int:
        """How many sessions of a user count at other proxies, so far as is known."""
        return await self._logins.counted_elsewhere(name, self._members)

    async def whereabouts(self, name: str) -> Whereabouts | None:
        """Where a user without sessions here is, or was, by what other proxies say; None: nothing is known."""
        return await self._logins.whereabouts(name, self._members)
