"""The relay engine: one trio task, one epoll, every established session as callbacks on descriptors.

Theory of operation. A task per session costs a wake-up of the scheduler per chunk; so after login a session has
no task. The engine owns an epoll of its own and waits for it through trio. Woken, it takes up to `_ROUNDS` rounds
of `_EVENTS` events and calls back; callbacks never wait. After `_BUDGET_SECONDS` it lets trio run its other tasks:
without that a few bulk transfers would hold up every login.

Invariants. No trio `wait_*` on a descriptor that is registered here. An event may be stale (its descriptor closed
by an earlier event of the batch, or already another session's): the callback is looked up per event, and a callback
that finds nothing to do returns.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from proxy.observe.log import get_logger

log = get_logger()

IN, OUT = select.EPOLLIN, select.EPOLLOUT
_ROUNDS = 8
_EVENTS = 64
_BUDGET_SECONDS = 0.001
_SWEEP_SECONDS = 5.0
_SWEEP_SLICE = 500

Callback = Callable[[int], None]


class Swept(Protocol):
    """What the engine knows of a session: it is looked at now and then, and ended when it misbehaves."""

    def sweep(self, now: float) -> None: ...
    def fail(self) -> None: ...


class Engine:
    """Drives all established sessions of a worker."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._owners: dict[int, Swept] = {}
        self.sessions: set[Swept] = set()
        self.now = time.monotonic()  # of the current round: seconds, monotonic

    def add(self, session: Swept, callbacks: dict[int, Callback]) -> None:
        """Take a session in. Its descriptors are not watched until watch() says for what."""
        self.sessions.add(session)
        self._callbacks.update(callbacks)
        for descriptor in callbacks:
            self._owners[descriptor] = session

    def watch(self, descriptor: int, old: int, new: int) -> int:
        """Change what a descriptor is watched for (IN, OUT, both, 0 for nothing); gives `new`.

        An interest of 0 would still report HUP for ever, so such a descriptor leaves the epoll.
        """
        if not new:
            self._epoll.unregister(descriptor)
        elif old:
            self._epoll.modify(descriptor, new)
        else:
            self._epoll.register(descriptor, new)
        return new

    def remove(self, session: Swept, descriptors: Iterable[int]) -> None:
        """Let a session go. Its descriptors are closed next, and with that leave the epoll (epoll(7), Q6)."""
        for descriptor in descriptors:
            self._callbacks.pop(descriptor, None)
            self._owners.pop(descriptor, None)
        self.sessions.discard(session)

    async def run(self) -> None:
        """Carry sessions until cancelled."""
        clock, poll, get = time.monotonic, self._epoll.poll, self._callbacks.get
        descriptor = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            self.now = clock()
            end = self.now + _BUDGET_SECONDS
            for _ in range(_ROUNDS):
                events = poll(0, _EVENTS)
                if not events:
                    break
                for position, (ready, mask) in enumerate(events):
                    callback = get(ready)
                    if callback is not None:
                        try:
                            callback(mask)
                        except Exception:
                            self._failed(ready)
                    if not position & 7 and clock() > end:
                        await trio.lowlevel.cancel_shielded_checkpoint()
                        self.now = clock()
                        end = self.now + _BUDGET_SECONDS

    def _failed(self, descriptor: int) -> None:
        """A bug met in one session ends that session only."""
        log.exception("relay.failed")
        owner = self._owners.get(descriptor)
        if owner is not None:
            owner.fail()

    async def sweep(self) -> None:
        """Look at every session now and then: idle ones, and ends that never came."""
        while True:
            await trio.sleep(_SWEEP_SECONDS)
            for position, session in enumerate(list(self.sessions)):
                if not position % _SWEEP_SLICE:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                session.sweep(time.monotonic())

    def close(self) -> None:
        self._epoll.close()
