"""Who lives: the steward, the workers of all generations, and those who are to take over.

Every worker has a link to the steward. The master keeps the steward's end for the worker's life, so that a steward who
dies cuts nobody off: his successor gets the same ends. The worker's end leaves the master as soon as the worker has it,
and the steward reads the end of the link the moment a worker dies.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator

from proxy.app.children import Child, fork
from proxy.app.plan import Plan, Roles, StewardPlace, WorkerPlace
from proxy.app.sockets import Sockets
from proxy.limits.board import Board
from proxy.observe.log import get_logger
from proxy.transport.packets import packet_pair

log = get_logger()


class Household:
    """The master's children."""

    def __init__(self, roles: Roles, sockets: Sockets, board: Board, clock: Callable[[], float]) -> None:
        """Nobody lives yet.

        Args:
            clock: As time.monotonic().
        """
        self.sockets = sockets
        self.board = board
        self.children: dict[int, Child] = {}  # by process
        self._roles = roles
        self._clock = clock
        self.on_born: Callable[[Child], None] = lambda child: None
        self.on_gone: Callable[[Child], None] = lambda child: None

    # --- who is who ---

    def workers(self) -> Iterator[Child]:
        """All of them, of any generation."""
        return (child for child in self.children.values() if child.role == "worker")

    def stewards(self) -> Iterator[Child]:
        """The one who serves, the one who is to take over, the one who has not left yet."""
        return (child for child in self.children.values() if child.role == "steward")

    # --- births and deaths ---

    def start_worker(
        self, plan: Plan, index: int, life: int, stewards: Iterable[Child], *, heir: bool = False
    ) -> Child:
        """A worker, of whom these stewards are told.

        Args:
            life: From 1: the how manieth in this place.
            heir: It is of a generation that has not begun.
        Raises:
            OSError: There can be no further process, or descriptor.
        """
        name = f"w{plan.generation}.{index}" if life == 1 else f"w{plan.generation}.{index}.{life}"
        link, far_link = packet_pair()
        row = self.board.take_row()
        try:
            with far_link:
                child = self._start_worker(plan, index, name, far_link, row, heir)
        except BaseException:
            link.close()
            self.board.free_row(row)
            raise
        child.link = link
        for steward in stewards:
            steward.post(["worker", name], [link.fileno()])
        return child

    def _start_worker(self, plan: Plan, index: int, name: str, link: socket.socket, row: int, heir: bool) -> Child:
        control, far_control = packet_pair()
        sockets = self.sockets.of_worker(plan.doors, index, plan.workers, heir=heir)
        place = WorkerPlace(index, name, sockets, far_control, link, self.board.descriptor, row)
        keep = {far_control.fileno(), link.fileno(), self.board.descriptor, *(sock.fileno() for _, sock in sockets)}
        try:
            with far_control:
                pid = fork(lambda: self._roles.worker(plan, place), f"worker-{index}", plan.settings, keep)
        except BaseException:
            control.close()
            raise
        now = self._clock()
        child = Child("worker", name, plan.generation, pid, control, now, now, index=index, row=row)
        self._welcome(child)
        return child

    def start_steward(self, plan: Plan, workers: Iterable[Child], hand_over: int | None = None) -> Child:
        """A steward, who has links to these workers.

        Raises:
            OSError: There can be no further process, or descriptor.
        """
        settings, sockets = plan.settings, self.sockets
        control, far_control = packet_pair()
        place = StewardPlace(
            far_control,
            {worker.name: worker.link for worker in workers if worker.link is not None},
            sockets.of_steward(plan.doors),
            sockets.first(settings.metrics.address),
            sockets.first(settings.admin.address),
            sockets.at(settings.admin.socket),
            hand_over,
            self.board.descriptor,
        )
        listening = [place.metrics, place.admin, place.admin_socket, *(sock for _, sock in place.sockets)]
        keep = {sock.fileno() for sock in (far_control, *place.links.values(), *listening) if sock is not None}
        keep |= {self.board.descriptor} if hand_over is None else {self.board.descriptor, hand_over}
        try:
            with far_control:
                pid = fork(lambda: self._roles.steward(plan, place), "steward", settings, keep)
        except BaseException:
            control.close()
            raise
        now = self._clock()
        child = Child("steward", f"s{plan.generation}", plan.generation, pid, control, now, now)
        self._welcome(child)
        return child

    def adopt(self, child: Child) -> None:
        """A child of before an upgrade."""
        self.children[child.pid] = child
        child.since = round(time.time() - (self._clock() - child.born), 3)
        self.on_born(child)

    def _welcome(self, child: Child) -> None:
        log.info("process.started", role=child.role, process=child.name, pid=child.pid, generation=child.generation)
        self.adopt(child)

    def bury(self, child: Child) -> None:
        """It has been waited for: let go of what led to it, and tell the stewards."""
        del self.children[child.pid]
        self.on_gone(child)
        child.close()
        if child.role == "worker":
            if child.row >= 0:
                self.board.free_row(child.row)
            for steward in self.stewards():
                steward.post(["worker_gone", child.name])


def ended(status: int) -> str:
    """How a process ended, as waitpid() has it."""
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit status {code}"
