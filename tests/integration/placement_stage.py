"""Three Dovecots, a proxy in front of them that can be told things, and people who hold sessions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from proxy.routing.rendezvous import Member, Rendezvous
from tests.servers.accounts import USERS
from tests.servers.dovecot import Dovecot
from tests.servers.porter import Door, Porter, wait_for
from tests.servers.wire import Wire

NAMES = ("d1", "d2", "d3")
UNAVAILABLE = b"NO [UNAVAILABLE] Account is temporarily unavailable."
RING = Rendezvous([Member(name) for name in NAMES])


def order_of(user: str) -> tuple[str, ...]:
    """The backends of a user, home first, while all have the same weight."""
    return RING.order(user)


def users_of(backend: str) -> list[str]:
    """Whose home it is."""
    return [user for user in USERS if order_of(user)[0] == backend]


class Cast:
    """A proxy with its Dovecots."""

    def __init__(self, porter: Porter, dovecots: Iterable[Dovecot]) -> None:
        self.porter = porter
        self.dovecots = {each.name: each for each in dovecots}
        self.wires: list[Wire] = []
        self.killed = False

    @property
    def door(self) -> Door:
        return self.porter.doors["imaps"]

    def enter(self) -> Wire:
        wire = Wire.connect(self.door.port, self.door.pki.client_context())
        self.wires.append(wire)
        return wire

    def log_in(self, user: str) -> Wire:
        """A session of this user."""
        wire = self.enter()
        answer = wire.login(user, USERS[user])
        assert answer.startswith(b"OK"), answer
        return wire

    def try_to_log_in(self, user: str) -> bytes:
        """How a login is answered; nothing stays open."""
        with self.enter() as wire:
            return wire.login(user, USERS[user])

    def log_in_at_last(self, user: str, seconds: float = 20) -> Wire:
        """As log_in(), again while the answer is that it is unavailable."""
        deadline = time.monotonic() + seconds
        while True:
            wire = self.enter()
            answer = wire.login(user, USERS[user])
            if answer.startswith(b"OK"):
                return wire
            assert answer == UNAVAILABLE
            wire.close()
            assert time.monotonic() < deadline, self.porter.output()

    def until_up(self, backend: str, up: bool = True) -> None:
        """The proxy has noticed."""
        assert wait_for(lambda: self.porter.metrics().total("porter_backend_up", backend=backend) == int(up), 20), (
            self.porter.output()
        )

    def backends(self) -> dict[str, Any]:
        """What `imap-porter backends` says, by name."""
        shown = self.command("backends", "--json")
        return {each["name"]: each for each in json.loads(shown)["backends"]}

    def command(self, *words: str, may_be_declined: bool = False) -> str:
        """Run a command of the program against this proxy."""
        program = Path(sys.executable).parent / "imap-porter"
        settings = self.porter.folder / "porter.yaml"
        done = subprocess.run(
            [program, words[0], "-c", settings, *words[1:]], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode in ((0, 2) if may_be_declined else (0,)), done.stdout + done.stderr
        return done.stdout

    def close(self) -> None:
        for wire in self.wires:
            wire.close()

    def kill(self) -> None:
        """The proxy ends as a machine ends that loses its power."""
        self.killed = True
        self.porter.kill()


def backend_of(wire: Wire) -> str:
    """Who answers in this session: each backend has a mailbox that says so."""
    (listed,) = [line for line in wire.command(b'LIST "" On-*') if line.startswith(b"* LIST")]
    return listed[0:].rpartition(b"On-")[2].strip(b'"').decode()


StartCast = Callable[..., Cast]
