"""Three proxies of one fleet, three backends and a server that dies now and then: people come and go at random, and
administrators tell each proxy something else. Whenever the fleet is whole nobody is at two backends, and nobody has
more sessions than he may.

The backends themselves are the witnesses, as in test_placement_walk. While the server is away, and for as long after
that as the divided need to leave, both may happen.
"""

from __future__ import annotations

import errno
import itertools
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.fleet_stage import is_up, write_users
from tests.integration.placement_stage import NAMES, UNAVAILABLE, Cast, backend_of
from tests.integration.test_placement_walk import PEOPLE, spans
from tests.servers.accounts import USERS
from tests.servers.dovecot import write_dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Porter, porter_settings, wait_for
from tests.servers.ports import Ports
from tests.servers.programs import require
from tests.servers.valkey import Valkey

pytestmark = pytest.mark.server

SEED = 20240507
WALK_SECONDS = 22
MORE_WALKS = 3
MOST = 2  # sessions of one user
THREADS = 3  # who try to have one of his
SETTLED_SECONDS = 6  # move_patience, move_delay, and what it takes to become a member again


class Span(NamedTuple):
    """A session, as its backend tells of it, to the second."""

    user: str
    backend: str
    began: float
    ended: float


class Away(NamedTuple):
    """A time without the server, generously."""

    began: float
    ended: float


@pytest.fixture
def casts(folder: Path, pki: Pki, ports: Ports, valkey: Valkey) -> Iterator[list[Cast]]:
    require("dovecot")
    place = Path(tempfile.mkdtemp(prefix="fleet-", dir=folder))
    place.chmod(0o755)
    servers = [write_dovecot(name, place / name, pki, ports) for name in NAMES]
    urls = {server.name: f"imap://127.0.0.1:{server.imap_port}" for server in servers}
    identity = write_users(place / "users.yaml", PEOPLE)
    casts: list[Cast] = []
    try:
        for server in servers:
            server.start()
        for name in "abc":
            settings, taken = porter_settings(pki, urls, ports)
            settings["identity"] = identity
            settings["fleet"] = {"valkey": valkey.url, "password": {"file": str(valkey.password_file)}, "name": name}
            (place / name).mkdir()
            settings["admin"] = {"socket": str(place / name / "admin.sock")}
            settings["timeouts"] |= {"backend_connect": "1s", "backend_login": "5s"}
            settings["limits"] |= {"connections_per_user": MOST, "connections_per_address": 2000}
            settings["routing"] = {"move_delay": "2s", "move_patience": "1s", "sticky": "1s"}
            settings["backends"] |= {"failover": "500ms", "disconnect_spread": "500ms"}
            casts.append(Cast(Porter(place / name, settings, pki, taken), servers))
        yield casts
        for cast in casts:
            cast.close()
            cast.porter.stop()
    finally:
        for cast in casts:
            cast.porter.kill()
        for server in servers:
            server.stop()


class Visitor(threading.Thread):
    """Comes to any of the proxies, stays a while, and goes; or is sent away, and comes back."""

    def __init__(self, casts: list[Cast], user: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.casts, self.user = casts, user
        self.chance = random.Random(seed)
        self.stopping = threading.Event()
        self.sessions = 0
        self.limited = 0
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
            wire = self.chance.choice(self.casts).enter()
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:  # else somebody has taken the port that the client wanted for itself
                raise
            return
        try:
            with wire:
                wire.socket.settimeout(60)
                answer = wire.login(self.user, USERS[self.user])
                if not answer.startswith(b"OK"):
                    assert answer == UNAVAILABLE or answer.startswith(b"NO [LIMIT]"), answer
                    self.limited += answer != UNAVAILABLE
                    time.sleep(self.chance.uniform(0.1, 0.5))
                    return
                self.sessions += 1
                self.seen.add(backend_of(wire))
                until = time.monotonic() + self.chance.choice([0, 0.2, 1, 3])
                while time.monotonic() < until and not self.stopping.is_set():
                    wire.command(b"NOOP")
                    time.sleep(0.05)
                if self.chance.random() < 0.7:
                    wire.command(b"LOGOUT")
        except EOFError:  # sent away
            return


def walk(casts: list[Cast], valkey: Valkey) -> list[Away]:
    """Tell proxies this and that; gives when they were without their server."""
    chance = random.Random(SEED)
    away: list[Away] = []
    end = time.monotonic() + WALK_SECONDS
    next_kill = time.monotonic() + 5
    while time.monotonic() < end:
        if time.monotonic() > next_kill:
            began = time.time()
            valkey.stop()
            time.sleep(chance.uniform(0, 2))
            valkey.start()
            assert wait_for(lambda: all(map(is_up, casts)), 30)
            away.append(Away(began - 1, time.time() + SETTLED_SECONDS))
            next_kill = time.monotonic() + SETTLED_SECONDS + 5
        cast, name = chance.choice(casts), chance.choice(NAMES)
        step = chance.choice(["drain", "drain over", "undrain", "undrain", "down", "weight", "weight"])
        if step == "weight":
            cast.command("weight", name, str(chance.choice([0, 1, 1, 5])), "--reason", "walk", may_be_declined=True)
        else:
            verb, *over = step.split()
            cast.command(verb, name, *(["--over", "1s"] if over else []), "--reason", "walk", may_be_declined=True)
        time.sleep(chance.uniform(0, 0.5))
    return away


def test_nobody_is_at_two_backends_of_a_fleet(casts: list[Cast], valkey: Valkey) -> None:
    assert wait_for(lambda: all(map(is_up, casts)), 20)
    visitors = [Visitor(casts, user, SEED + number) for number, user in enumerate(PEOPLE * THREADS)]
    for visitor in visitors:
        visitor.start()
    away = walk(casts, valkey)
    for _ in range(MORE_WALKS):  # on a machine with much else to do
        if has_seen_enough(visitors):
            break
        away += walk(casts, valkey)
    for visitor in visitors:
        visitor.stopping.set()
    for visitor in visitors:
        visitor.join(60)
        assert not visitor.is_alive()
        if visitor.problem is not None:
            raise visitor.problem
    assert away
    assert has_seen_enough(visitors)
    for cast in casts:
        cast.porter.stop()
        assert cast.porter.log("ledger.move_stuck") == []
    servers = casts[0].dovecots.values()
    sessions = [Span(*span) for server in servers for span in spans(server, [])]
    for user in PEOPLE:
        mine = sorted((each for each in sessions if each.user == user), key=lambda each: each.began)
        assert divided(mine, away) == []
        assert crowded(mine, away) == []


def has_seen_enough(visitors: list[Visitor]) -> bool:
    """Whether there was something to see, the limit was met, and people have moved."""
    moved = sum(len(visitor.seen) > 1 for visitor in visitors)
    sessions, limited = sum(visitor.sessions for visitor in visitors), sum(visitor.limited for visitor in visitors)
    return sessions > 100 and limited > 10 and moved > 5


def divided(mine: list[Span], away: list[Away]) -> list[tuple[Span, Span]]:
    """Sessions at two backends at the same time, while the fleet was whole."""
    return [
        (one, other)
        for one, other in itertools.combinations(mine, 2)
        if one.backend != other.backend
        and max(one.began, other.began) <= min(one.ended, other.ended)
        and not any(
            each.began <= max(one.began, other.began) and min(one.ended, other.ended) <= each.ended for each in away
        )
    ]


def crowded(mine: list[Span], away: list[Away]) -> list[list[Span]]:
    """Sessions that were there together, too many, while the fleet was whole. A backend hears of an end a little later
    than the proxy, and tells both to the second.
    """
    found = []
    for moment in sorted({each.began + 1 for each in mine}):
        there = [each for each in mine if each.began < moment < each.ended - 1]
        if len(there) > MOST and not any(each.began <= moment <= each.ended for each in away):
            found.append(there)
    return found


def test_the_witnesses_can_accuse() -> None:
    one, other = Span("u01", "d1", 10, 14), Span("u01", "d2", 14, 20)
    assert divided([one, other], []) == [(one, other)]
    assert divided([one, other], [Away(13, 15)]) == []
    assert divided([one, other._replace(began=15)], []) == []
    assert divided([one, other._replace(backend="d1")], []) == []
    there = [Span("u01", "d1", 10, 16)] * (MOST + 1)
    assert crowded(there, []) == [there]
    assert crowded(there, [Away(9, 20)]) == []
    assert crowded(there[:MOST], []) == []
