"""The relay engine: one trio task, one epoll, every established session as callbacks on descriptors.

Theory of operation. A task per session costs a wake-up of the scheduler per chunk; so after login a session has
no task. The engine owns an epoll of its own and waits for it through trio. Woken, it takes up to `_ROUNDS` rounds
of `_EVENTS` events and calls back; callbacks never wait. After `_BUDGET_SECONDS` it lets trio run its other tasks:
without that a few bulk transfers would hold up every login.

The other way round trio runs all tasks that are ready before the engine's turn comes again, and in a storm of logins
that is hundreds of handshakes. So whoever has work to do for a login calls turn() before it: sessions that have waited
too long are carried then and there.

Invariants. No trio `wait_*` on a descriptor that is registered here. An event may be stale (its descriptor closed
by an earlier event of the batch, or already another session's): the callback is looked up per event, and a callback
that finds nothing to do returns.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import trio

from proxy.observe.log import get_logger
from proxy.outcome import Outcome

log = get_logger()

IN, OUT = select.EPOLLIN, select.EPOLLOUT
LOST = select.EPOLLHUP | select.EPOLLERR
UNWATCHED = -1
_ROUNDS = 8
_EVENTS = 64
_BUDGET_SECONDS = 0.001
_PATIENCE_SECONDS = 0.002
_SWEEP_SECONDS = 5.0
_SWEEP_SLICE = 500

Callback = Callable[[int], None]


class Carried(Protocol):
    """What the engine and its owner know of a session."""

    @property
    def id(self) -> str: ...
    @property
    def at_safe_point(self) -> bool: ...
    def say_goodbye(self, outcome: Outcome) -> None: ...
    def sweep(self, now: float) -> None: ...
    def fail(self) -> None: ...


class Engine:
    """Drives all established sessions of a worker."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._owners: dict[int, Carried] = {}
        self._left: list[tuple[int, int]] = []  # events that were polled and not handed out yet
        self._sessions: dict[str, Carried] = {}  # by id
        self.now = time.monotonic()  # of the current round: seconds, monotonic

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

        Gives `new`. A descriptor that is watched for nothing still tells once when its connection is lost (HUP, ERR):
        edge-triggered, for otherwise it would tell for ever.
        """
        if old == UNWATCHED:
            self._epoll.register(descriptor, new or select.EPOLLET)
        else:
            self._epoll.modify(descriptor, new or select.EPOLLET)
        return new

    def say_goodbye(self, session: Carried, outcome: Outcome) -> None:
        """End a session with a farewell, whatever state it is in."""
        try:
            session.say_goodbye(outcome)
        except Exception:
            self._failed(session)

    def redirect(self, descriptor: int, callback: Callback) -> None:
        """Call back somewhere else from now on."""
        self._callbacks[descriptor] = callback

    def forget(self, descriptor: int) -> None:
        """Let one side of a session go; its descriptor is closed next."""
        self._callbacks.pop(descriptor, None)
        self._owners.pop(descriptor, None)

    def remove(self, session: Carried, descriptors: Iterable[int]) -> None:
        """Let a session go. Its descriptors are closed next, and with that leave the epoll (epoll(7), Q6)."""
        for descriptor in descriptors:
            self.forget(descriptor)
        self._sessions.pop(session.id, None)

    async def run(self) -> None:
        """Carry sessions until cancelled."""
        descriptor = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            while self._carry():
                await trio.lowlevel.cancel_shielded_checkpoint()

    def turn(self) -> None:
        """Carry sessions now, if they have waited for it: called by tasks that are about to be busy themselves."""
        if time.monotonic() - self.now > _PATIENCE_SECONDS:
            self._carry()

    def _carry(self) -> bool:
        """Hand events out until there are none or the budget is used up; gives whether it was."""
        clock, poll, get = time.monotonic, self._epoll.poll, self._callbacks.get
        self.now = clock()
        end = self.now + _BUDGET_SECONDS
        for _ in range(_ROUNDS):
            # What is left is kept: an edge-triggered event would not be told again.
            events, self._left = self._left or poll(0, _EVENTS), []
            if not events:
                break
            for position, (ready, mask) in enumerate(events):
                callback = get(ready)
                if callback is not None:
                    try:
                        callback(mask)
                    except Exception:
                        self._failed(self._owners.get(ready))
                if not position & 7 and clock() > end:
                    self._left = events[position + 1 :]
                    return True
        return False

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
                    session.sweep(time.monotonic())
                except Exception:
                    self._failed(session)

    def close(self) -> None:
        self._epoll.close()
