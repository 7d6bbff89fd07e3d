"""The relay engine: one epoll, every established session as callbacks on descriptors.

Theory of operation. A task per session costs a wake-up of the scheduler per chunk; so after login a session has
no task. The engine owns an epoll of its own, and waits for it where trio would wait (`waiting`). It takes up to
`_ROUNDS` rounds of `MOST_EVENTS` events and calls back; callbacks never wait. After `_BUDGET_SECONDS` it lets trio run
its other tasks: without that a few bulk transfers would hold up every login.

The other way round trio runs all tasks that are ready before the engine's turn comes again, and in a storm of logins
that is hundreds of handshakes. So whoever has work to do for a login calls turn() before it: sessions that have waited
too long are carried then and there.

A session that a limit makes wait sees to it that its descriptors are watched for nothing, and is called back when it
may go on; there is one list of all that wait, and no timer but for the first of them.

Invariants. No trio `wait_*` on a descriptor that is registered here. An event may be stale (its descriptor closed
by an earlier event of the batch, or already another session's): the callback is looked up per event, and a callback
that finds nothing to do returns.
"""

from __future__ import annotations

import heapq
import itertools
import math
import select
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import trio

from proxy.observe.log import get_logger
from proxy.outcome import Outcome
from proxy.relay.waiting import MOST_EVENTS, Events, Wait, trio_epoll

log = get_logger()

IN, OUT = select.EPOLLIN, select.EPOLLOUT
LOST = select.EPOLLHUP | select.EPOLLERR
LEFT = select.EPOLLRDHUP  # told only of what is watched for nothing: the other end has no more to say, or is gone
UNWATCHED = -1
_NOTHING = select.EPOLLET | LEFT
_ROUNDS = 8
_BUDGET_SECONDS = 0.001
_PATIENCE_SECONDS = 0.002
_SWEEP_SECONDS = 5.0
_SWEEP_SLICE = 500
# Those that wait are called back together, as many as are due within so much time ...
_GRAIN_SECONDS = 0.01
_SOON_SECONDS = 0.001  # is now
_RESUMED_AT_ONCE = 64
# ... and now and then they are asked whether they still wait, so that none is kept long after its end.
_LONGEST_PAUSE_SECONDS = 10.0

Callback = Callable[[int], None]


class Carried(Protocol):
    """What the engine and its owner know of a session."""

    @property
    def id(self) -> str: ...
    @property
    def at_safe_point(self) -> bool: ...
    def say_goodbye(self, outcome: Outcome) -> None: ...
    def say_goodbye_soon(self, outcome: Outcome) -> None: ...
    def sweep(self, now: float) -> None: ...
    def fail(self) -> None: ...


class Pausing(Carried, Protocol):
    """A session that may have to wait."""

    def resume(self, due: float) -> None:
        """Go on, or pause once more; of no effect where it has ended, or pauses for another time meanwhile.

        Args:
            due: As Engine.pause() gave it.
        """
        ...


class Engine:
    """Drives all established sessions of a worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._owners: dict[int, Carried] = {}
        self._left: Events = []  # events that were polled and not handed out yet
        self._sessions: dict[str, Carried] = {}  # by id
        self._wait: Wait | None = None
        self._trio_descriptor = UNWATCHED
        self._pauses: list[tuple[float, int, Pausing]] = []  # a heap
        self._count = itertools.count()
        self._earlier = trio.Event()  # somebody is due before all others
        self.now = clock()  # of the current round: seconds, monotonic

    @property
    def sessions(self) -> Collection[Carried]:
        """All sessions; changes while they come and go."""
        return self._sessions.values()

    def find(self, session_id: str) -> Carried | None:
        """A session that is here."""
        return self._sessions.get(session_id)

    def add(self, session: Carried, callbacks: dict[int, Callback]) -> None:
        """Take a session in. Its descriptors are not watched until watch() says for what."""
        self._sessions[session.id] = session
        self._callbacks.update(callbacks)
        for descriptor in callbacks:
            self._owners[descriptor] = session

    def watch(self, descriptor: int, old: int, new: int) -> int:
        """Change what a descriptor is watched for: IN, OUT, both, 0 for nothing; UNWATCHED is what it begins with.

        Gives `new`. A descriptor that is watched for nothing still tells once when its connection is LOST, or LEFT by
        the other end: edge-triggered, for otherwise it would tell for ever.
        """
        if old == UNWATCHED:
            self._epoll.register(descriptor, new or _NOTHING)
        else:
            self._epoll.modify(descriptor, new or _NOTHING)
        return new

    def pause(self, session: Pausing, seconds: float) -> float:
        """Call a session's resume() after so much time, or earlier. Gives when that is due."""
        seconds = min(max(seconds, _GRAIN_SECONDS), _LONGEST_PAUSE_SECONDS)
        due = math.ceil((self._clock() + seconds) / _GRAIN_SECONDS) * _GRAIN_SECONDS
        if not self._pauses or due < self._pauses[0][0]:
            self._earlier.set()
            self.stir()
        heapq.heappush(self._pauses, (due, next(self._count), session))
        return due

    def say_goodbye(self, session: Carried, outcome: Outcome, *, soon: bool = False) -> None:
        """End a session with a farewell, whatever state it is in; or (`soon`) in a state where it is understood."""
        try:
            (session.say_goodbye_soon if soon else session.say_goodbye)(outcome)
        except Exception:
            self._failed(session)

    def redirect(self, descriptor: int, callback: Callback) -> None:
        """Call back somewhere else from now on."""
        self.stir()
        self._callbacks[descriptor] = callback

    def stir(self) -> None:
        """What a callback does may wake a task: trio must look."""
        if self._wait is not None:
            self._wait.stirred = True

    def forget(self, descriptor: int) -> None:
        """Let one side of a session go; its descriptor is closed next."""
        self._callbacks.pop(descriptor, None)
        self._owners.pop(descriptor, None)

    def remove(self, session: Carried, descriptors: Iterable[int]) -> None:
        """Let a session go. Its descriptors are closed next, and with that leave the epoll (epoll(7), Q6)."""
        self.stir()
        for descriptor in descriptors:
            self.forget(descriptor)
        self._sessions.pop(session.id, None)

    async def run(self) -> None:
        """Carry sessions until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._resume_all)
            nursery.start_soon(self._carry_all)

    async def _carry_all(self) -> None:
        trio_descriptor = trio_epoll()
        if trio_descriptor is None:
            await self._carry_in_a_task()
            return
        self._wait, self._trio_descriptor = Wait(self._epoll, trio_descriptor, self), trio_descriptor
        with self._wait.in_place():
            await self._wait.broken.wait()
        self._wait, self._trio_descriptor = None, UNWATCHED
        await self._carry_in_a_task()

    async def _carry_in_a_task(self) -> None:
        descriptor = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            while self.carry():
                await trio.lowlevel.cancel_shielded_checkpoint()

    def turn(self) -> None:
        """Carry sessions now, if they have waited for it: called by tasks that are about to be busy themselves."""
        if self._clock() - self.now > _PATIENCE_SECONDS:
            # What this leaves over is the next wait's first; a task that waits would not know of it.
            while self.carry() and self._wait is None:
                pass

    def carry(self) -> bool:
        """Hand events out until there are none or the budget is used up; gives whether it was."""
        poll, end = self._epoll.poll, self._clock() + _BUDGET_SECONDS
        for _ in range(_ROUNDS):
            # What is left is kept: an edge-triggered event would not be told again.
            events, self._left = self._left or poll(0, MOST_EVENTS), []
            if not events or (self.hand_out(events, end) and len(events) == 1):
                return False
            if self._left:
                return True
        return False

    @property
    def left(self) -> bool:
        """Whether events have been taken that nobody has dealt with yet."""
        return bool(self._left)

    def hand_out_some(self, events: Events) -> bool:
        """Call back for these events for a while; gives whether trio's descriptor was among them."""
        return self.hand_out(events, self._clock() + _BUDGET_SECONDS)

    def hand_out(self, events: Events, end: float = math.inf) -> bool:
        """Call back for these events, until it is too late; gives whether trio's descriptor was among them."""
        clock, get, trio_descriptor = self._clock, self._callbacks.get, self._trio_descriptor
        self.now = clock()
        trio_is_ready = False
        for position, (ready, mask) in enumerate(events):
            callback = get(ready)
            if callback is not None:
                try:
                    callback(mask)
                except Exception:
                    self._failed(self._owners.get(ready))
            elif ready == trio_descriptor:
                trio_is_ready = True
            if not position & 7 and clock() > end:
                self._left = events[position + 1 :]
                break
        return trio_is_ready

    async def _resume_all(self) -> None:
        """Call back those that wait, each when it is due."""
        while True:
            self._earlier = trio.Event()
            if not self._pauses:
                await self._earlier.wait()
            elif (wait := self._pauses[0][0] - self._clock()) > _SOON_SECONDS:
                with trio.move_on_after(wait):
                    await self._earlier.wait()
            else:
                await trio.lowlevel.checkpoint()
                self._resume_due()

    def _resume_due(self) -> None:
        now, pauses = self._clock(), self._pauses
        self.now = now
        for _ in range(_RESUMED_AT_ONCE):
            if not pauses or pauses[0][0] > now + _SOON_SECONDS:
                break
            due, _, session = heapq.heappop(pauses)
            try:
                session.resume(due)
            except Exception:
                self._failed(session)

    def _failed(self, session: Carried | None) -> None:
        """A bug was met in one session, and ends that session only."""
        log.exception("relay.failed", session_id=session.id if session is not None else "")
        if session is None:
            return
        try:
            session.fail()
        except Exception:
            log.exception("relay.failed", session_id=session.id)
            self._sessions.pop(session.id, None)

    async def sweep(self) -> None:
        """Look at every session now and then: idle ones, and ends that never came."""
        while True:
            await trio.sleep(_SWEEP_SECONDS)
            for position, session in enumerate(list(self.sessions)):
                if not position % _SWEEP_SLICE:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                try:
                    session.sweep(self._clock())
                except Exception:
                    self._failed(session)

    def close(self) -> None:
        self._epoll.close()
