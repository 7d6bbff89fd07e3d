"""Waiting in trio's place, so that sessions are carried without a wake-up of trio's scheduler.

Theory of operation. To wake a task for every batch of events costs more than to carry a command. trio tells
instruments right before it waits for its descriptors, and for how long it is going to. There the engine waits instead,
for its own descriptors and for trio's: the epoll of trio is one more descriptor in the engine's. As long as only
sessions have something to say, trio does not notice.

Invariants. The wait ends as soon as trio has anything to do: its epoll is ready, or the time is over. In the second
case trio would now wait for as long once more, so it is poked; likewise where a callback may have woken a task
(`stirred`), since trio has decided before how long to wait. That trio's epoll is ready is looked at once more after the
callbacks: of a listener that processes share another may have taken the connection, and trio would wait in vain.
Whatever is raised in here ends this way of waiting, and not the service: trio would only forget the instrument.

trio's epoll is private. Where a trio keeps it elsewhere, and where another engine of the same run waits in its place
already, trio_epoll() gives None, and the engine waits in a task as everybody does.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import trio
from trio.lowlevel import RunVar

from proxy.observe.log import get_logger

log = get_logger()

Events = list[tuple[int, int]]
MOST_EVENTS = 64  # taken at a time

_taken: RunVar[bool] = RunVar("an engine waits in trio's place", default=False)


class Carrier(Protocol):
    """Whoever waits for the events and deals with them."""

    @property
    def left(self) -> bool:
        """Whether events have been taken that nobody has dealt with yet."""
        ...

    def carry(self) -> bool:
        """Deal with what is there, without waiting; gives whether there may be more."""
        ...

    def hand_out_some(self, events: Events) -> bool:
        """Deal with these events for a while; gives whether trio's descriptor is among them."""
        ...


def trio_epoll() -> int | None:
    """The descriptor of the epoll that the running trio waits for; None: it can't be had."""
    try:
        runner = _runner()
        descriptor = runner.io_manager._epoll.fileno()
        runner.waiting_for_idle, runner.clock_autojump_threshold  # noqa: B018 - asked for in before_io_wait
    except AttributeError:
        return None
    return None if _taken.get() else int(descriptor)


def _runner() -> Any:
    return trio._core._run.GLOBAL_RUN_CONTEXT.runner


class Wait(trio.abc.Instrument):
    """One engine's wait in trio's place."""

    def __init__(self, epoll: select.epoll, descriptor: int, carrier: Carrier) -> None:
        """Args:
        epoll: What the engine waits for.
        descriptor: What trio_epoll() has given.
        """
        self._epoll, self._descriptor, self._carrier = epoll, descriptor, carrier
        self._token, self._runner = trio.lowlevel.current_trio_token(), _runner()
        self._more = False  # there may be more than has been dealt with
        self.stirred = False  # a callback may have woken a task of trio
        self.broken = trio.Event()  # this way of waiting has come to its end

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Wait so for as long as the block runs."""
        with select.epoll() as only_trio:
            only_trio.register(self._descriptor, select.EPOLLIN)
            self._only_trio = only_trio
            self._epoll.register(self._descriptor, select.EPOLLIN)
            _taken.set(True)
            trio.lowlevel.add_instrument(self)
            try:
                yield
            finally:
                trio.lowlevel.remove_instrument(self)
                _taken.set(False)
                self._epoll.unregister(self._descriptor)

    def before_io_wait(self, timeout: float) -> None:
        """trio would wait now, for so many seconds at most."""
        if self.broken.is_set():
            return
        try:
            self._wait(timeout)
        except Exception:
            log.exception("relay.wait_failed")
            self.broken.set()
            self._poke()

    def _wait(self, timeout: float) -> None:
        self.stirred = False
        waits = timeout > 0 and not self._tests_wait(timeout)
        if self._more or self._carrier.left or not waits:  # sessions have their turn, and then trio its own
            self._more = self._carrier.carry()
            if timeout > 0 and (self._more or self.stirred):
                self._poke()
                return
        if not waits:
            return
        end = time.monotonic() + timeout
        while not self.stirred and (left := end - time.monotonic()) > 0:
            trio_is_ready = self._carrier.hand_out_some(self._epoll.poll(left, MOST_EVENTS))
            if self._carrier.left:
                break
            if trio_is_ready and self._only_trio.poll(0, 1):
                return
        self._poke()

    def _tests_wait(self, timeout: float) -> bool:
        """Whether trio wants to know if nothing at all happens for so long: a poke would be something."""
        return bool(self._runner.waiting_for_idle) or timeout == self._runner.clock_autojump_threshold

    def _poke(self) -> None:
        self._token.run_sync_soon(_nothing, idempotent=True)


def _nothing() -> None:
    """Run by trio, which therefore does not wait."""
