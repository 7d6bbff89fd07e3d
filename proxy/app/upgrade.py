"""A new version of the program in the place of the old one: same process, same sockets, same children.

The new program's `check` has to find nothing wrong with it and the settings; then the master executes itself. What it
has in its hands goes along: open descriptors, and a list of them in memory that the environment names. The new program
finds that list, adopts the children, who have noticed nothing, and goes on as with a reload.

The list is read by another version than wrote it, so keys that are not known are ignored, and none may ever change its
meaning.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

from proxy import __version__
from proxy.app import private_socket
from proxy.app.children import Child
from proxy.app.household import Household
from proxy.app.plan import Roles
from proxy.app.renewal import Renewal
from proxy.app.sockets import Listening, Sockets
from proxy.app.succession import Generation
from proxy.limits.board import Board
from proxy.model import Endpoint
from proxy.observe.log import get_logger
from proxy.settings.models import Log, Timeouts

log = get_logger()

_VARIABLE = "IMAP_PORTER_INHERITED"
_CHECK_SECONDS = 60.0
_MOST_TEXT = 2000
_STEWARD_LEAVES_SECONDS = 5.0


class Upgrade:
    """A look at the program that is installed now, by a process of its own."""

    def __init__(self, config: Path, now: float) -> None:
        """Start it."""
        self._deadline = now + _CHECK_SECONDS
        self._output = os.fdopen(os.memfd_create("check"), "w+b")
        self._process: subprocess.Popen[bytes] | None = None
        self._problem = ""
        try:
            command = check_command(config)
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT
            )
        except (OSError, ValueError) as exc:
            self._problem = str(exc)

    def look(self, now: float) -> str | None:
        """What came of it: "" is well, None is nothing yet, anything else is a reason to stay with the old program."""
        if self._process is None:
            return self._problem
        status = self._process.poll()
        if status is None and now < self._deadline:
            return None
        if status is None:
            return f"no verdict after {_CHECK_SECONDS:g} s"
        if status == 0:
            return ""
        self._output.seek(0)
        text = self._output.read(_MOST_TEXT).decode(errors="replace").strip()
        return f"exit status {status}: {text}"

    def close(self) -> None:
        """End it, where it has not ended by itself."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._output.close()


def check_command(config: Path) -> list[str]:
    """How the program that is installed now checks the settings: as it was started, with another verb.

    Raises:
        ValueError: It was not started by `serve`.
    """
    verb = sys.orig_argv.index("serve")
    return [sys.executable, *sys.orig_argv[1:verb], "check", "-c", str(config)]


def replace_program(renewal: Renewal) -> str:
    """Execute the program that is installed now. Returns only if that fails, with the reason."""
    household = renewal.household
    descriptors = [each.socket.fileno() for each in household.sockets.tcp]
    descriptors += [listener.socket.fileno() for listener in household.sockets.unix.values()]
    descriptors.append(household.board.descriptor)
    for child in household.children.values():
        descriptors.append(child.control.fileno())
        if child.link is not None:
            descriptors.append(child.link.fileno())
    note = os.memfd_create("inherited")
    with os.fdopen(os.dup(note), "w") as file:
        json.dump(_state(renewal), file)
    descriptors.append(note)
    environment = {**os.environ, _VARIABLE: str(note)}
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - our own command
    except OSError as exc:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        os.close(note)
        return str(exc)


def _state(renewal: Renewal) -> dict[str, Any]:
    household, current = renewal.household, renewal.current
    assert current is not None
    return {
        "pid": os.getpid(),
        "version": __version__,
        "throttle_key": renewal.throttle_key.hex(),
        "generation": current.number,
        "number": renewal.number,
        "workers": len(current.workers),
        "timeouts": {"drain": current.timeouts.drain, "drain_grace": current.timeouts.drain_grace},
        "log": {"format": current.log.format, "level": current.log.level},
        "board": household.board.descriptor,
        "tcp": [
            {
                "host": each.endpoint.host,
                "port": each.endpoint.port,
                "descriptor": each.socket.fileno(),
                "given": each.given,
            }
            for each in household.sockets.tcp
        ],
        "unix": [
            {"path": str(path), "descriptor": listener.socket.fileno(), "given": listener.given}
            for path, listener in household.sockets.unix.items()
        ],
        "children": [
            {
                "role": child.role,
                "name": child.name,
                "generation": child.generation,
                "pid": child.pid,
                "born": child.born,
                "control": child.control.fileno(),
                "link": None if child.link is None else child.link.fileno(),
                "index": child.index,
                "row": child.row,
                "ready": child.ready,
                "begun": child.begun,
                "accepting": child.accepting,
                "leaving": child.leaving,
                "current": current.slot_of(child) is not None,
            }
            for child in household.children.values()
        ],
    }


class Inheritance:
    """What this program has from the one that it has replaced."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    @property
    def log(self) -> Log:
        """How the log was written."""
        return Log(**self._state["log"])

    @property
    def throttle_key(self) -> bytes:
        return bytes.fromhex(self._state["throttle_key"])

    def sockets(self) -> Sockets:
        """The listening sockets."""
        sockets = Sockets()
        for each in self._state["tcp"]:
            sock = _socket(each["descriptor"])
            sockets.tcp.append(Listening(Endpoint(each["host"], each["port"]), sock, given=each["given"]))
        for each in self._state["unix"]:
            path, sock = Path(each["path"]), _socket(each["descriptor"])
            made = private_socket.given(sock) if each["given"] else private_socket.inherited(path, sock)
            sockets.unix[path] = made
        return sockets

    def board(self) -> tuple[Board, bool]:
        """The board that the workers write on; or a new one, where that is of another version, and so False."""
        descriptor = self._state["board"]
        os.set_inheritable(descriptor, False)
        try:
            return Board(descriptor), True
        except ValueError:
            log.warning("master.board_replaced")
            os.close(descriptor)
            return Board.create(), False

    def household(self, roles: Roles, clock: Callable[[], float]) -> tuple[Household, Generation]:
        """The children, and which of them are the current generation."""
        board, same = self.board()
        household = Household(roles, self.sockets(), board, clock)
        given = self._state["timeouts"]
        timeouts = Timeouts(drain=given["drain"], drain_grace=given["drain_grace"])
        current = Generation(self._state["generation"], self._state["workers"], timeouts, self.log, None)
        now = clock()
        for each in self._state["children"]:
            child = Child(
                each["role"], each["name"], each["generation"], each["pid"], _socket(each["control"]), each["born"], now
            )
            child.index, child.row = each["index"], each["row"] if same else -1
            child.link = None if each["link"] is None else _socket(each["link"])
            child.ready, child.begun = each["ready"], each["begun"]
            child.accepting, child.leaving = each["accepting"], each["leaving"]
            if child.role == "steward" and child.leaving:
                child.kill_at = now + _STEWARD_LEAVES_SECONDS
            household.adopt(child)
            if each["current"]:
                slot = current.steward if child.role == "steward" else current.workers[child.index]
                slot.child = child
        for slot in current.slots:  # somebody was about to be replaced
            if slot.child is None:
                slot.due = now
        return household, current

    @property
    def number(self) -> int:
        """The last generation's, be it that it never began."""
        return int(self._state["number"])


def inherited(environment: MutableMapping[str, str]) -> Inheritance | None:
    """What the program that we have replaced left us; None if we have replaced none."""
    descriptor = environment.pop(_VARIABLE, None)
    if descriptor is None:
        return None
    with os.fdopen(int(descriptor), "r") as file:
        file.seek(0)
        state = json.load(file)
    # The variable may have come to us from a parent that somebody else has replaced: its descriptors are not ours.
    return Inheritance(state) if state["pid"] == os.getpid() else None


def _socket(descriptor: int) -> socket.socket:
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
