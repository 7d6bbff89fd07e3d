"""How a generation follows another: a new steward and new workers, who are all ready before the old ones hear of it.

    PREPARING      the heirs are started; while anything can still go wrong, nothing has changed
    HANDING_OVER   the old steward writes down what he knows and ends
    BEGINNING      the new steward serves, the new workers accept, the old ones keep their sessions
    DONE, FAILED

Every stage has a deadline. Until HANDING_OVER a failure kills the heirs and leaves the others as they are; from there
on nothing is taken back: who dies is replaced as at any other time. A first start is a succession to nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from proxy.app.children import Backoff, Child, Role
from proxy.app.household import Household
from proxy.app.plan import Plan
from proxy.settings.models import Log, Timeouts
from proxy.transport.listen import BindFailed


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the master waits for others, in seconds."""

    ready: float = 30.0  # for a new generation
    hand_over: float = 5.0
    accepting: float = 10.0
    silent: float = 60.0  # a child that has not been heard of
    leave: float = 5.0  # a child that has been told to stop
    drained: float = 10.0  # beyond the time that sessions have been given


@dataclass(eq=False, slots=True)
class Slot:
    """A place that somebody has to fill while its generation is the current one."""

    role: Role
    index: int = 0
    child: Child | None = None
    backoff: Backoff = field(default_factory=Backoff)
    due: float | None = None  # when a successor is to be started
    restarts: int = 0


class Generation:
    """The steward and the workers of one plan."""

    def __init__(self, number: int, workers: int, timeouts: Timeouts, log: Log, plan: Plan | None) -> None:
        """Args:
        plan: None: of a program that has been upgraded since; nobody can be started by it.
        """
        self.number = number
        self.timeouts = timeouts
        self.log = log
        self.plan = plan
        self.steward = Slot("steward")
        self.workers = [Slot("worker", index) for index in range(workers)]

    @property
    def slots(self) -> list[Slot]:
        return [*self.workers, self.steward]

    def slot_of(self, child: Child) -> Slot | None:
        """Whose place it has, if it has one."""
        return next((slot for slot in self.slots if slot.child is child), None)

    def children(self) -> Iterator[Child]:
        """Who lives now."""
        return (slot.child for slot in self.slots if slot.child is not None)


class Stage(Enum):
    PREPARING = auto()
    HANDING_OVER = auto()
    BEGINNING = auto()
    DONE = auto()
    FAILED = auto()


class Succession:
    """One change of generations."""

    def __init__(
        self,
        household: Household,
        heirs: Generation,
        before: Generation | None,
        patience: Patience,
        clock: Callable[[], float],
    ) -> None:
        """Start nobody yet."""
        self.stage = Stage.PREPARING
        self.heirs = heirs
        self.failure = ""
        self._household = household
        self._before = before
        self._patience = patience
        self._clock = clock
        self._hand_over = -1
        self.deadline = clock() + patience.ready
        self.on_ready: Callable[[], None] = lambda: None  # the last moment to fail, by BindFailed
        self.on_begun: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Start the heirs; a failure shows in `stage`."""
        plan = self.heirs.plan
        assert plan is not None
        try:
            if self._before is not None:
                self._hand_over = os.memfd_create("hand-over")
            for slot in self.heirs.workers:
                slot.child = self._household.start_worker(plan, slot.index, 1, [], heir=True)
            inherited = None if self._hand_over < 0 else self._hand_over
            self.heirs.steward.child = self._household.start_steward(plan, self._household.workers(), inherited)
        except OSError as exc:
            self.fail(f"no further process: {exc.strerror}")

    def heard(self, child: Child, kind: str) -> None:
        """A child has said something; it is noted there already."""
        if kind == "ready" and self.stage is Stage.PREPARING:
            self._look_who_is_ready()
        elif kind == "handed_over" and self.stage is Stage.HANDING_OVER and child is self._old_steward():
            child.kill_at = self._clock() + self._patience.leave
            self._begin()
        elif kind == "accepting" and self.stage is Stage.BEGINNING:
            self._look_who_accepts()

    def died(self, child: Child, how: str) -> None:
        """A child has died; it still has its slot."""
        if self.stage is Stage.PREPARING and self.heirs.slot_of(child) is not None:
            self.fail(f"{child.role} {child.name} ended before it was ready: {how}")
        elif self.stage is Stage.HANDING_OVER and child is self._old_steward():
            self._begin()

    def tick(self, now: float) -> None:
        """Wait no longer than there is patience for."""
        if now < self.deadline:
            return
        if self.stage is Stage.PREPARING:
            late = ", ".join(child.name for child in self.heirs.children() if not child.ready)
            self.fail(f"not ready after {self._patience.ready:g} s: {late}")
        elif self.stage is Stage.HANDING_OVER:
            old = self._old_steward()
            if old is not None:
                old.kill()  # two stewards must not serve the same workers
            self._begin()
        elif self.stage is Stage.BEGINNING:
            self.stage = Stage.DONE

    def fail(self, why: str) -> None:
        """Kill the heirs; the others have noticed nothing."""
        self.stage = Stage.FAILED
        self.failure = why
        for child in self.heirs.children():
            child.leaving = True
            child.kill()
        self._close()

    def _look_who_is_ready(self) -> None:
        if not all(slot.child is not None and slot.child.ready for slot in self.heirs.slots):
            return
        try:
            self.on_ready()
        except BindFailed as exc:
            self.fail(str(exc))
            return
        old = self._old_steward()
        if old is None or not old.begun:  # it knows nothing that the workers do not
            if old is not None:
                old.leaving = True
                old.kill()
            self._begin()
            return
        self.stage = Stage.HANDING_OVER
        self.deadline = self._clock() + self._patience.hand_over
        old.leaving = True
        old.post(["hand_over"], [self._hand_over])

    def _begin(self) -> None:
        assert self.heirs.plan is not None
        self.stage = Stage.BEGINNING
        self.deadline = self._clock() + self._patience.accepting
        self._close()
        for child in self._household.workers():
            if self.heirs.slot_of(child) is None and not child.leaving:
                child.leaving = True
                child.post(["retire", self.heirs.plan.settings.timeouts.old_generation])
        self.on_begun()
        for child in self.heirs.children():
            begin(child)
        self._look_who_accepts()

    def _look_who_accepts(self) -> None:
        if all(child.accepting for child in self.heirs.children() if child.role == "worker"):
            self.stage = Stage.DONE

    def _old_steward(self) -> Child | None:
        return None if self._before is None else self._before.steward.child

    def _close(self) -> None:
        if self._hand_over >= 0:
            os.close(self._hand_over)
            self._hand_over = -1


def begin(child: Child) -> None:
    """Let a child that is ready do its work."""
    child.begun = True
    child.post(["begin"] if child.role == "steward" else ["accept"])
