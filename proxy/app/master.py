"""The master: it forks, keeps the sockets, replaces who dies, and passes on what it is told.

Theory of operation. One `selectors` loop, no thread, nothing that waits elsewhere: neither a thread nor an event loop
would survive a fork. What happens arrives as signals and as messages of the children; what is due by time is looked at
in each round. There is a current generation, whose places are filled again and again; there may be older workers, who
keep their sessions and are not replaced. At most one thing is under way: a change of generations (`Renewal`), a look at
a new program (`Upgrade`), or the end (`Farewell`); what is asked for meanwhile is done afterwards.
"""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable
from typing import Any

from proxy import __version__
from proxy.app.children import ROLES, Child
from proxy.app.farewell import Farewell
from proxy.app.household import Household, ended
from proxy.app.notify import Notifier
from proxy.app.renewal import Asked, Renewal
from proxy.app.succession import Generation, Patience, Slot, begin
from proxy.app.upgrade import Upgrade, replace_program
from proxy.app.wakeups import Wakeups
from proxy.observe import log as observe_log
from proxy.observe import metrics
from proxy.observe.log import get_logger, set_level
from proxy.observe.metrics import METRICS
from proxy.transport.packets import Message

log = get_logger()

SIGNALS = (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
EXIT_FAILED = 1
_ROUND_SECONDS = 1.0
_MOST_SHOWN = 200  # processes in the status, which has to fit into a packet

_RESTARTS = metrics.counter(
    "porter_process_restarts_total", "Processes started in place of one that ended.", role=ROLES
)


class Master:
    """The process that an administrator knows."""

    def __init__(
        self,
        household: Household,
        renewal: Renewal,
        notifier: Notifier,
        patience: Patience,
        clock: Callable[[], float],
        *,
        upgraded: bool = False,
    ) -> None:
        """The first generation has been started, or the last one of before an upgrade lives on."""
        self._household = household
        self._renewal = renewal
        self._notifier = notifier
        self._patience = patience
        self._clock = clock
        self._wakeups = Wakeups(SIGNALS)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeups, selectors.EVENT_READ)
        household.on_born = self._watch
        household.on_gone = self._unwatch
        for child in household.children.values():
            self._watch(child)
        renewal.on_serving = self._serving
        self._upgrade: Upgrade | None = None
        self._upgrade_wanted = False
        self._upgraded = self._served = upgraded
        self._farewell: Farewell | None = None
        self._next_round = self._next_ping = clock()
        self._told_status: dict[str, Any] = {}
        self._exit_status: int | None = None

    def run(self) -> int:
        """Live until the last child is gone. Gives the exit status."""
        self._wakeups.open()
        try:
            while self._exit_status is None:
                for key, _ in self._selector.select(self._patience_left()):
                    if isinstance(key.data, Child):
                        self._listen_to(key.data)
                for number in self._wakeups.take():
                    self._obey(number)
                self._bury_the_dead()
                self._look_at_the_clock()
        finally:
            self._selector.close()
            self._wakeups.close()
            self._household.sockets.close()
        return self._exit_status

    # --- what is heard ---

    def _obey(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._end(signal.Signals(number).name)
        elif number == signal.SIGHUP:
            self._renewal.want()
        elif number == signal.SIGUSR2:
            self._upgrade_wanted = True

    def _listen_to(self, child: Child) -> None:
        while messages := child.receive():
            child.heard = self._clock()
            for message in messages:
                self._understand(child, message)
        if messages is None:  # waitpid() will tell
            self._unwatch(child)

    def _understand(self, child: Child, message: Message) -> None:
        match message:
            case ["ready", *_]:
                child.ready = True
                self._welcome(child)
            case ["accepting", False, *_]:
                child.accepting = False
            case ["accepting", *_]:
                child.accepting = True
            case ["ask", question, "reload", *_]:
                self._renewal.want(Asked(child, question))
            case ["log_level", ("debug" | "info" | "warning" | "error") as level, *_]:
                set_level(level)
            case ["rejected", str() as path, str() as why, *_] if self._renewal.files is not None:
                self._renewal.files.rejected(path, why)
        self._renewal.heard(child, str(message[0]))

    def _welcome(self, child: Child) -> None:
        """Who replaces somebody begins at once; heirs wait for each other."""
        current = self._renewal.current
        if current is not None and current.slot_of(child) is not None and not child.leaving:
            begin(child)

    def _watch(self, child: Child) -> None:
        self._selector.register(child.control, selectors.EVENT_READ, child)

    def _unwatch(self, child: Child) -> None:
        if child.control.fileno() in self._selector.get_map():
            self._selector.unregister(child.control)

    # --- deaths and births ---

    def _bury_the_dead(self) -> None:
        for child in list(self._household.children.values()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                child.gone = True
                self._listen_to(child)  # its last words
                self._bury(child, ended(status))

    def _bury(self, child: Child, how: str) -> None:
        lived = self._clock() - child.born
        if child.leaving and how == "exit status 0":
            log.info("process.ended", role=child.role, process=child.name, pid=child.pid, lived_seconds=round(lived, 1))
        else:
            log.warning(
                "process.died",
                role=child.role,
                process=child.name,
                pid=child.pid,
                how=how,
                lived_seconds=round(lived, 1),
            )
        self._renewal.died(child, how)
        for generation in self._renewal.generations():
            slot = generation.slot_of(child)
            if slot is not None:
                slot.child = None
                if not child.leaving:
                    slot.due = self._clock() + slot.backoff.after(lived)
        self._household.bury(child)

    def _replace(self, generation: Generation, slot: Slot) -> None:
        """Start somebody in place of who has died."""
        if generation.plan is None:  # of the program before an upgrade, which nobody can be started by any more
            slot.due = self._clock() + slot.backoff.MOST_SECONDS
            self._renewal.want()
            return
        slot.due = None
        try:
            if slot.role == "steward":
                heirs = self._renewal.heirs()
                workers = [child for child in self._household.workers() if child not in heirs]
                slot.child = self._household.start_steward(generation.plan, workers)
                self._told_status = {}
            else:
                informed = [child for child in self._household.stewards() if not child.leaving]
                slot.child = self._household.start_worker(generation.plan, slot.index, slot.restarts + 2, informed)
        except OSError as exc:
            log.error("process.not_started", role=slot.role, error=exc.strerror)
            slot.due = self._clock() + slot.backoff.after(0.0)
            return
        slot.restarts += 1
        _RESTARTS.labels(slot.role).inc()
        child = slot.child
        log.info("process.restarted", role=slot.role, process=child.name, pid=child.pid, restarts=slot.restarts)
        if self._renewal.files is not None:
            try:
                self._renewal.files.tell_newcomer(child)
            except OSError as exc:
                log.error("files.not_told", error=exc.strerror)

    # --- what is due ---

    def _patience_left(self) -> float:
        """How long nothing is due."""
        if self._is_idle and (self._renewal.wanted or self._upgrade_wanted):
            return 0.0
        moments = [self._next_round]
        if self._notifier.ping_seconds is not None:
            moments.append(self._next_ping)
        if self._renewal.current is not None and self._farewell is None:
            moments += [slot.due for slot in self._renewal.current.slots if slot.due is not None]
        if self._renewal.succession is not None:
            moments.append(self._renewal.succession.deadline)
        if self._farewell is not None:
            moments.append(self._farewell.deadline)
        moments += [child.kill_at for child in self._household.children.values() if child.kill_at is not None]
        return max(0.0, min(moments) - self._clock())

    def _look_at_the_clock(self) -> None:
        now = self._clock()
        self._renewal.tick(now)
        if self._farewell is not None:
            self._farewell.tick(now)
        elif self._renewal.current is not None:
            for slot in self._renewal.current.slots:
                if slot.due is not None and slot.due <= now:
                    self._replace(self._renewal.current, slot)
        for child in self._household.children.values():
            if child.kill_at is not None and child.kill_at <= now:
                child.kill_at = None
                child.kill()
        self._do_what_is_wanted(now)
        if now >= self._next_round:
            self._next_round = now + _ROUND_SECONDS
            self._go_the_rounds(now)
        if self._notifier.ping_seconds is not None and now >= self._next_ping:
            self._next_ping = now + self._notifier.ping_seconds
            self._notifier.ping()
        if not self._household.children and (self._farewell is not None or self._renewal.failed_to_start):
            log.info("master.stopped")
            self._exit_status = 0 if self._farewell is not None else EXIT_FAILED

    def _go_the_rounds(self, now: float) -> None:
        """Once a second."""
        for child in self._household.children.values():
            child.flush()
            if now - child.heard > self._patience.silent:
                log.warning("process.silent", role=child.role, process=child.name, pid=child.pid)
                child.heard = now
                child.kill()
        if self._renewal.files is not None and self._farewell is None:
            try:
                self._renewal.files.look(self._household.children.values())
            except OSError as exc:  # it will be looked at again when it changes, or by a reload
                log.error("files.not_told", error=exc.strerror)
        observe_log.flush()
        self._inform_steward()

    def _inform_steward(self) -> None:
        current = self._renewal.current
        steward = None if current is None else current.steward.child
        if steward is None or not steward.begun or steward.outbox:
            return
        if not self._told_status:
            steward.post(["metrics", METRICS.everything()])
        elif changes := METRICS.changes():
            steward.post(["metrics", changes])
        if (status := self._status()) != self._told_status:
            self._told_status = status
            steward.post(["status", status])

    def _status(self) -> dict[str, Any]:
        """What administrators are shown of the processes."""
        current = self._renewal.current
        assert current is not None
        return {
            "version": __version__,
            "pid": os.getpid(),
            "generation": current.number,
            "processes": [
                {
                    "process": child.name,
                    "role": child.role,
                    "generation": child.generation,
                    "pid": child.pid,
                    "since": child.since,
                    "state": _state(child),
                    "restarts": 0 if (slot := current.slot_of(child)) is None else slot.restarts,
                }
                for child in [*self._household.children.values()][:_MOST_SHOWN]
            ],
            "last_reload": self._renewal.last,
        }

    # --- what is wanted ---

    @property
    def _is_idle(self) -> bool:
        """Whether there is nothing under way that must not be disturbed."""
        return self._renewal.succession is None and self._upgrade is None and self._farewell is None

    def _do_what_is_wanted(self, now: float) -> None:
        if self._upgrade is not None:
            self._look_at_upgrade(self._upgrade, now)
        if not self._is_idle or self._renewal.current is None:
            return
        if self._upgrade_wanted:
            self._upgrade_wanted = False
            log.info("master.upgrade_asked")
            self._upgrade = Upgrade(self._renewal.config, now)
        elif self._renewal.wanted:
            self._renewal.reload()

    def _look_at_upgrade(self, upgrade: Upgrade, now: float) -> None:
        verdict = upgrade.look(now)
        if verdict is None:
            return
        upgrade.close()
        self._upgrade = None
        if verdict:
            log.warning("master.upgrade_refused", reason=verdict)
            return
        self._notifier.reloading()
        self._wakeups.block()
        came = [number for number in self._wakeups.take() if number != signal.SIGCHLD]
        if came:  # a signal that our handlers have taken already would be lost with them
            self._upgrade_wanted = True
            for number in came:
                self._obey(number)
        else:
            self._inform_steward()
            log.info("master.upgrading", version=__version__)
            problem = replace_program(self._renewal)
            log.error("master.upgrade_failed", error=problem)
        self._wakeups.unblock()
        if self._farewell is None:
            self._notifier.ready("serving")

    def _serving(self) -> None:
        """A generation has begun."""
        current = self._renewal.current
        assert current is not None
        if self._upgraded:
            self._upgraded = False
            log.info("master.upgraded", version=__version__, pid=os.getpid(), generation=current.number)
        elif not self._served:
            self._served = True
            log.info("master.started", version=__version__, pid=os.getpid(), workers=len(current.workers))
        self._told_status = {}
        self._notifier.ready(f"serving, generation {current.number}, {len(current.workers)} workers")

    def _end(self, name: str) -> None:
        """The first time in peace, the second time now."""
        if self._farewell is not None:
            log.warning("master.stopping_at_once", signal=name)
            self._farewell.hurry()
            return
        self._renewal.cancel()
        if self._upgrade is not None:
            self._upgrade.close()
            self._upgrade = None
        log.info("master.draining", signal=name)
        timeouts = self._renewal.timeouts
        self._farewell = Farewell(self._household, timeouts, self._patience, self._clock)
        self._notifier.stopping("draining", self._farewell.seconds)


def _state(child: Child) -> str:
    if child.leaving:
        return "leaving"
    if not child.ready:
        return "starting"
    return "accepting" if child.accepting or (child.role == "steward" and child.begun) else "ready"
