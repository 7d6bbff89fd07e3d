"""Backends go up and down, drain and change weight at random, while people come and go: nobody is ever at two at once.

The backends themselves are the witnesses: each logs when a session begins and when it ends, to the second. The proxy
leaves two seconds between a user's last session at one backend and his first at another.
"""

from __future__ import annotations

import random
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from argon2 import PasswordHasher

from tests.integration.placement_stage import NAMES, UNAVAILABLE, Cast, backend_of
from tests.servers.accounts import USERS
from tests.servers.dovecot import Dovecot, write_dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Porter, porter_settings, wait_for
from tests.servers.ports import Ports
from tests.servers.programs import require
from tests.servers.wire import Wire

pytestmark = pytest.mark.server

SEED = 20240506
WALK_SECONDS = 20
PEOPLE = [user for user in USERS if user.startswith("u")][:8]
_TIME = r"^(\w{3} \d\d \d\d:\d\d:\d\d) "
_LOGIN = re.compile(_TIME + r"imap-login: Info: Login: user=<(\w+)>.* session=<([^>]+)>", re.MULTILINE)
_END = re.compile(
    _TIME + r"imap\((\w+)\)<\d+><([^>]+)>: Info: (?:Disconnected|Logged out|Connection closed)", re.MULTILINE
)


@pytest.fixture(params=["backend", "file"])
def cast(folder: Path, pki: Pki, ports: Ports, request: pytest.FixtureRequest) -> Iterator[Cast]:
    """With identities that only the backend can judge, and with such as are known beforehand."""
    require("dovecot")
    place = Path(tempfile.mkdtemp(prefix="walk-", dir=folder))
    place.chmod(0o755)
    servers = [write_dovecot(name, place / name, pki, ports) for name in NAMES]
    settings, taken = porter_settings(
        pki, {server.name: f"imap://127.0.0.1:{server.imap_port}" for server in servers}, ports
    )
    if request.param == "file":
        hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        users = {user: {"hash": hasher.hash(USERS[user])} for user in PEOPLE}
        (place / "users.yaml").write_text(yaml.safe_dump(users))
        settings["identity"] = [{"file": {"path": str(place / "users.yaml")}}]
    settings["admin"] = {"socket": str(place / "admin.sock")}
    settings["timeouts"] |= {"backend_connect": "1s", "backend_login": "5s"}
    settings["routing"] = {"move_delay": "2s", "sticky": "1s"}
    settings["backends"] |= {
        "health": {"interval": "200ms", "timeout": "1s", "down_after": 2, "up_after": 2, "hold_down": "1s"},
        "failover": "500ms",
        "disconnect_spread": "500ms",
    }
    running = None
    try:
        for server in servers:
            server.start()
        running = Porter(place, settings, pki, taken)
        cast = Cast(running, servers)
        yield cast
        cast.close()
        running.stop()
    finally:
        if running is not None:
            running.kill()
        for server in servers:
            server.stop()


class Person(threading.Thread):
    """Comes, stays a while, and goes; or is sent away, and comes back."""

    def __init__(self, cast: Cast, user: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.cast, self.user = cast, user
        self.chance = random.Random(seed)
        self.stopping = threading.Event()
        self.sessions = 0
        self.seen: set[str] = set()
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self._visit()
        except BaseException as exc:
            self.problem = exc

    def _visit(self) -> None:
        try:
            with self.cast.enter() as wire:
                wire.socket.settimeout(60)
                answer = wire.login(self.user, USERS[self.user])
                if not answer.startswith(b"OK"):
                    assert answer == UNAVAILABLE, answer
                    time.sleep(self.chance.uniform(0, 0.3))
                    return
                self.sessions += 1
                self.seen.add(backend_of(wire))
                until = time.monotonic() + self.chance.choice([0, 0.2, 1, 3])
                while time.monotonic() < until and not self.stopping.is_set():
                    wire.command(b"NOOP")
                    time.sleep(0.02)
                if self.chance.random() < 0.7:
                    wire.command(b"LOGOUT")
        except EOFError:  # sent away, or the backend was killed
            return


def spans(server: Dovecot, killed: list[float]) -> list[tuple[str, str, float, float]]:
    """User, backend, begin and end of each session that a backend tells of; killed with it, it ended then."""
    log = server.log()
    ends = {session: _seconds(at) for at, _, session in _END.findall(log)}
    found = []
    for at, user, session in _LOGIN.findall(log):
        began = _seconds(at)
        end = ends.get(session) or min((int(when) for when in killed if when >= began), default=None)
        assert end is not None, f"{session} of {user} at {server.name} never ended"
        found.append((user, server.name, began, end))
    return found


def _seconds(at: str) -> float:
    return datetime.strptime(f"{datetime.now().year} {at}", "%Y %b %d %H:%M:%S").timestamp()


def test_nobody_is_at_two_backends(cast: Cast) -> None:
    chance = random.Random(SEED)
    killed: dict[str, list[float]] = {name: [] for name in NAMES}
    people = [Person(cast, user, SEED + number) for number, user in enumerate([*PEOPLE, *PEOPLE])]
    for person in people:
        person.start()
    end = time.monotonic() + WALK_SECONDS
    while time.monotonic() < end:
        name = chance.choice(NAMES)
        server = cast.dovecots[name]
        step = chance.choice(["kill", "drain", "drain over", "undrain", "undrain", "down", "weight"])
        if not server.running:
            server.start()
        elif step == "kill":
            server.kill()
            killed[name].append(time.time())
        elif step == "weight":
            cast.command("weight", name, str(chance.choice([1, 1, 2, 5])), "--reason", "walk")
        else:
            verb, *over = step.split()
            cast.command(verb, name, *(["--over", "1s"] if over else []), "--reason", "walk", may_be_declined=True)
        time.sleep(chance.uniform(0.2, 1.5))
    for person in people:
        person.stopping.set()
    for name, server in cast.dovecots.items():
        if not server.running:
            server.start()
        cast.command("undrain", name, "--reason", "the walk is over")
    for person in people:
        person.join(60)
        assert not person.is_alive()
        if person.problem is not None:
            raise person.problem
    assert sum(person.sessions for person in people) > 50, "there was something to see"
    assert any(len(person.seen) > 1 for person in people), "somebody has moved"
    cast.porter.stop()
    everything = sorted(
        (user, began, end, backend)
        for name, server in cast.dovecots.items()
        for user, backend, began, end in spans(server, killed[name])
    )
    for user in PEOPLE:
        mine = [each for each in everything if each[0] == user]
        for one in mine:
            for other in mine:
                apart = one[3] == other[3] or one[2] < other[1] or other[2] < one[1]
                assert apart, f"{one} and {other}"
    assert cast.porter.log("ledger.move_stuck") == []


@pytest.mark.parametrize("cast", ["backend"], indirect=True)
def test_the_witnesses_can_accuse(cast: Cast) -> None:
    """Past the proxy a user may well be at two backends: that is seen."""
    servers = list(cast.dovecots.values())
    wires = [Wire.connect(server.imap_port) for server in servers[:2]]
    for wire in wires:
        assert wire.login(PEOPLE[0], USERS[PEOPLE[0]]).startswith(b"OK")
    time.sleep(1.1)  # to the second, see above
    for wire in wires:
        wire.command(b"LOGOUT")
        wire.close()
    assert wait_for(lambda: all(_END.search(server.log()) for server in servers[:2]))
    (one,), (other,) = spans(servers[0], []), spans(servers[1], [])
    assert (one[0], one[1], other[1]) == (PEOPLE[0], "d1", "d2")
    assert not one[3] < other[2]
    assert not other[3] < one[2]
