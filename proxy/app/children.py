"""Processes that the master starts: how they begin and end, and what is said to them.

A child is forked from a process that has imported everything and runs no thread. Before it does anything else it lets
go of whatever is not its own: the descriptors of its siblings, the master's signal handlers, root's rights. It never
returns into the master's code, but ends in os._exit().
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NoReturn

from proxy.app.memory import give_back
from proxy.app.process import become, drop_capabilities, harden, set_name
from proxy.observe.log import configure, get_logger, restore
from proxy.observe.metrics import METRICS
from proxy.settings.models import Settings
from proxy.transport.packets import Message, receive_packet, send_packet

log = get_logger()

Role = Literal["worker", "steward"]
ROLES: tuple[Role, ...] = ("worker", "steward")
# How long a thread that asks a directory may keep the event loop from the interpreter, in place of Python's 5 ms. Where
# there are no such threads it would only cost: 5 % of a login.
_SWITCH_SECONDS = 0.0002
# A child that is stopped for a minute, and then killed, misses a message each second and what happens meanwhile.
_MOST_WAITING = 1000
# In one packet (the kernel takes 253 descriptors, SCM_MAX_FD): even, for a certificate and its key go together.
_MOST_FILES = 200
_MOST_PATH_BYTES = 40_000


class Backoff:
    """When to start anew what has ended: at once, and later and later if it keeps dying young."""

    YOUNG_SECONDS = 10.0
    FIRST_SECONDS = 0.1
    MOST_SECONDS = 10.0

    def __init__(self) -> None:
        self._next = 0.0

    def after(self, lived_seconds: float) -> float:
        """How long to wait now that it has ended."""
        if lived_seconds >= self.YOUNG_SECONDS:
            self._next = 0.0
        wait = self._next
        self._next = min(self.MOST_SECONDS, max(self.FIRST_SECONDS, 2 * wait))
        return wait


@dataclass(eq=False, slots=True)
class Child:
    """One process, as the master knows it."""

    role: Role
    name: str  # a worker's id, or "s" and the generation
    generation: int
    pid: int
    control: socket.socket
    born: float
    heard: float  # when it was last heard of
    since: float = 0.0  # when it was born, Unix time
    index: int = 0  # a worker's
    row: int = -1  # a worker's, on the board; -1: on one of before an upgrade
    link: socket.socket | None = None  # the steward's end of a worker's
    ready: bool = False  # furnished
    begun: bool = False  # told to begin, or to accept
    accepting: bool = False
    leaving: bool = False  # it has been told to end, sooner or later
    gone: bool = False  # it has been waited for: its number may be another's by now
    kill_at: float | None = None
    outbox: deque[tuple[list[Message], tuple[int, ...]]] = field(default_factory=deque)

    def post(self, message: Message, descriptors: Iterable[int] = ()) -> None:
        """Say something as soon as there is room. The descriptors stay the caller's."""
        if len(self.outbox) < _MOST_WAITING:
            self.outbox.append(([message], tuple(os.dup(each) for each in descriptors)))
        self.flush()

    def post_files(self, files: Iterable[tuple[str, int]]) -> None:
        """Hand over files by path and descriptor."""
        listed = list(files)
        longest = max((len(path.encode(errors="replace")) for path, _ in listed), default=1)
        most = min(_MOST_FILES, _MOST_PATH_BYTES // longest // 2 * 2)
        for start in range(0, len(listed), most):
            part = listed[start : start + most]
            self.post(["files", [path for path, _ in part]], [descriptor for _, descriptor in part])

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self.outbox:
            messages, descriptors = self.outbox[0]
            try:
                if not send_packet(self.control, messages, descriptors):
                    return
            except OSError:  # it is gone, as waitpid() will tell
                self.close_outbox()
                return
            except ValueError:
                log.error("process.message_too_long", process=self.name, kind=messages[0][0])
            self.outbox.popleft()
            for descriptor in descriptors:
                os.close(descriptor)

    def receive(self) -> list[Message] | None:
        """What it says; [] if nothing now, None if it will say no more."""
        try:
            packet = receive_packet(self.control)
        except (EOFError, OSError):
            return None
        if packet is None:
            return []
        messages, descriptors = packet
        for descriptor in descriptors:  # children hand over none
            os.close(descriptor)
        return messages or [["alive"]]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless it is gone."""
        if not self.gone:
            os.kill(self.pid, number)

    def close_outbox(self) -> None:
        """Forget what has not been sent."""
        for _, descriptors in self.outbox:
            for descriptor in descriptors:
                os.close(descriptor)
        self.outbox.clear()

    def close(self) -> None:
        """Let go of everything that leads to it."""
        self.close_outbox()
        self.control.close()
        if self.link is not None:
            self.link.close()
            self.link = None


def settle_memory() -> None:
    """Before forks: what there is now lives as long as the master, and no collector need look at it in any child."""
    gc.unfreeze()
    gc.collect()
    give_back()
    gc.freeze()


def fork(body: Callable[[], None], process: str, settings: Settings, keep: Collection[int]) -> int:
    """Start a process that does `body` and then ends.

    Args:
        process: What it is called in metrics and, after `porter-`, by ps and top.
        keep: The descriptors that are its own, beside the standard ones.
    Returns:
        The process's number.
    Raises:
        OSError: There can be no further process.
    """
    # A signal must not find the master's handlers in the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live(body, process, settings, keep, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _live(
    body: Callable[[], None], process: str, settings: Settings, keep: Collection[int], mask: Iterable[int]
) -> NoReturn:
    """A child's whole life."""
    status = 1
    try:
        _begin(process, settings, keep, mask)
        body()
        status = 0
    except BaseException as exc:
        log.error("process.crashed", exc_info=exc)
    finally:
        restore()  # writes what waits
        os._exit(status)


def _begin(process: str, settings: Settings, keep: Collection[int], mask: Iterable[int]) -> None:
    signal.set_wakeup_fd(-1)
    # Ctrl-C and a careless service manager send theirs to all processes; the master says what is to be done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    METRICS.begin(process)
    configure(settings.log.format, settings.log.level)
    close_descriptors({0, 1, 2, *keep})
    set_name(f"porter-{process}")
    become(settings.user)
    drop_capabilities()
    harden()
    if any(source.ldap is not None for source in settings.identity):
        sys.setswitchinterval(_SWITCH_SECONDS)


def close_descriptors(keep: Collection[int]) -> None:
    """Close all descriptors but these, without regard to who thinks that they are his: he will never run again."""
    most = os.sysconf("SC_OPEN_MAX")
    for before, after in pairwise((-1, *sorted(keep), max(most, *keep) + 1)):
        if before + 1 < after:  # an empty range from 0 on would be all there are: close_range(2) takes -1 for the last
            os.closerange(before + 1, after)
