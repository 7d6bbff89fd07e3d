"""Users and sessions of a running proxy, steered over the administrators' socket: moved, held, released, ended."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from proxy.outcome import FAREWELLS, Outcome
from tests.integration.placement_stage import UNAVAILABLE, backend_of
from tests.servers.accounts import USERS
from tests.servers.dovecot import Dovecot
from tests.servers.porter import Porter, wait_for
from tests.servers.wire import Wire

pytestmark = pytest.mark.server

USER, OTHER_USER = "u05", "u06"
WRONG = "wrong-7x1k"
ROUTING = {"move_delay": "200ms", "move_patience": "3s", "sticky": "0s"}


class SocketConnection(http.client.HTTPConnection):
    """HTTP over the administrators' socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)


class House:
    """A proxy of two workers before two backends, and who steers it."""

    def __init__(self, porter: Porter, path: Path) -> None:
        self.porter, self._path = porter, path
        self._context = porter.pki.client_context()
        self._wires: list[Wire] = []

    # --- people ---

    def enter(self) -> Wire:
        self._wires.append(Wire.connect(self.porter.imaps_port, self._context))
        return self._wires[-1]

    def log_in(self, user: str = USER) -> Wire:
        wire = self.enter()
        answer = wire.login(user, USERS[user])
        assert answer.startswith(b"OK"), answer
        return wire

    def try_to_log_in(self, user: str = USER, password: str | None = None) -> bytes:
        with self.enter() as wire:
            return wire.login(user, USERS[user] if password is None else password)

    def live_in_both_workers(self, user: str = USER) -> list[Wire]:
        """Some sessions of a user, so many that each worker has one."""
        wires = [self.log_in(user)]
        while len({each["worker"] for each in self.sessions(user=user)}) < 2:
            assert len(wires) < 40
            wires.append(self.log_in(user))
        return wires

    def close(self) -> None:
        for wire in self._wires:
            wire.close()

    # --- administrators ---

    def ask(self, target: str, body: dict[str, Any] | None = None, status: int = 200) -> dict[str, Any]:
        with closing(SocketConnection(self._path)) as connection:
            method = "GET" if body is None else "POST"
            text = None if body is None else json.dumps(body)
            connection.request(method, target, text, {"Content-Type": "application/json"})
            with connection.getresponse() as answer:
                document: dict[str, Any] = json.loads(answer.read())
                assert answer.status == status, document
        return document

    def change(self, verb: str, status: int = 200, **values: Any) -> dict[str, Any]:
        """Have something changed; gives what was done."""
        answer = self.ask(f"/v1/{verb}", {**values, "reason": "a complaint"}, status)
        done: dict[str, Any] = answer.get("done", answer)
        return done

    def sessions(self, **filters: str) -> list[dict[str, Any]]:
        query = "&".join(f"{key}={quote(value)}" for key, value in filters.items())
        listed: list[dict[str, Any]] = self.ask(f"/v1/sessions?limit=1000&{query}")["sessions"]
        return listed

    def explain(self, user: str = USER) -> dict[str, Any]:
        return self.ask(f"/v1/explain/{user}")


@pytest.fixture
def house(start_porter: Callable[..., Porter], dovecots: list[Dovecot], short_folder: Path) -> Iterator[House]:
    path = short_folder / "a.sock"
    made = House(
        start_porter(admin={"socket": str(path)}, routing=ROUTING, limits={"connections_per_address": 500}), path
    )
    try:
        yield made
    finally:
        made.close()


def other_than(backend: str) -> str:
    return "d2" if backend == "d1" else "d1"


def ends(wire: Wire, outcome: Outcome) -> bool:
    """Whether that is all that the client is told, and then the end."""
    return wire.rest() == FAREWELLS[outcome]


def test_a_user_moves_and_comes_back(house: House) -> None:
    wires = house.live_in_both_workers()
    idle = house.log_in()
    idle.send(b"i IDLE\r\n")
    assert idle.line().startswith(b"+ ")
    stranger = house.log_in(OTHER_USER)
    home = backend_of(wires[0])
    away = other_than(home)
    assert house.explain()["route"]["backend"] == home

    assert house.change("move", user=USER, backend=away) == {"user": USER, "sessions": len(wires) + 1, "backend": away}
    for wire in [*wires, idle]:
        assert ends(wire, Outcome.MOVED)
    for wire in house.live_in_both_workers():
        assert backend_of(wire) == away
    assert {each["backend"] for each in house.sessions(user=USER)} == {away}
    told = house.explain()
    assert (told["directions"]["backend"], told["directions"]["held"], told["directions"]["until"]) == (
        away,
        False,
        None,
    )
    assert told["directions"]["by"].startswith("uid ")
    assert (told["route"]["backend"], told["route"]["why"]) == (away, "override")
    assert told["route"]["override_from"].endswith(": a complaint")
    assert b" OK " in stranger.command(b"NOOP")[-1], "nobody else has noticed"

    # He stays with his sessions, and goes home after the last of them.
    assert house.change("release", user=USER) == {"user": USER, "held": False, "backend": away}
    staying = house.sessions(user=USER)
    assert backend_of(house.log_in()) == away
    assert len(house.sessions(user=USER)) == len(staying) + 1
    house.change("kick", user=USER)
    assert wait_for(lambda: house.sessions(user=USER) == [])
    assert backend_of(house.log_in()) == home
    house.change("release", 404, user=USER)


def test_a_move_to_where_there_is_nothing(house: House) -> None:
    house.change("move", 404, user=USER, backend="d9")
    assert house.explain()["directions"] is None


def test_a_user_is_held_and_released(house: House) -> None:
    wires = house.live_in_both_workers()
    assert house.change("hold", user=USER) == {"user": USER, "sessions": len(wires)}
    for wire in wires:
        assert ends(wire, Outcome.MOVED)
    for _ in range(6):
        assert house.try_to_log_in() == UNAVAILABLE
    assert house.try_to_log_in(OTHER_USER).startswith(b"OK")
    told = house.explain()
    assert told["directions"]["held"] is True
    assert told["route"]["backend"] == ""
    assert told["route"]["reason"].endswith(": a complaint")
    assert [failure["outcome"] for failure in told["failures"]] == ["unavailable"] * 6
    assert house.change("release", user=USER) == {"user": USER, "held": True, "backend": None}
    assert house.try_to_log_in().startswith(b"OK")


def test_a_hold_ends_by_itself_and_a_move_stays(house: House) -> None:
    home = house.explain()["route"]["backend"]
    house.change("move", user=USER, backend=other_than(home))
    house.change("hold", user=USER, for_seconds=1.5)
    assert house.try_to_log_in() == UNAVAILABLE
    (line,) = house.porter.wait_for_log("registry.direction_ended")
    assert (line["name"], line["level"]) == (USER, "info")
    assert backend_of(house.log_in()) == other_than(home)


def test_sessions_are_ended(house: House) -> None:
    first, second = house.log_in(), house.log_in()
    third, fourth = house.log_in(OTHER_USER), house.log_in("u07")
    listed = house.sessions(user=USER)
    (mine,) = [each for each in listed if each["client"] == first.address]
    house.change("kick", 404, session="nobody")
    house.change("kick", 404, backend="d9")
    house.change("kick", 400, session=mine["id"], user=USER)

    assert house.change("kick", session=mine["id"]) == {"sessions": 1, "proxies": 0}
    assert ends(first, Outcome.KICKED)
    assert wait_for(lambda: len(house.sessions(user=USER)) == 1)
    assert house.change("kick", user=USER) == {"user": USER, "sessions": 1, "proxies": 0}
    assert ends(second, Outcome.KICKED)
    there = backend_of(third)
    count = len(house.sessions(backend=there))
    assert house.change("kick", backend=there) == {"sessions": count, "proxies": 0}
    assert ends(third, Outcome.KICKED)
    assert house.change("kick", address="192.0.2.1") == {"sessions": 0, "proxies": 0}
    assert wait_for(lambda: len(house.sessions(backend=there)) == 0)
    left = len(house.sessions())
    assert house.change("kick", address="127.0.0.1") == {"sessions": left, "proxies": 0}
    assert ends(fourth, Outcome.KICKED)
    closed = house.porter.wait_for_log("session.closed", 4, outcome="kicked")
    assert {line["name"] for line in closed} == {USER, OTHER_USER, "u07"}
    assert house.try_to_log_in().startswith(b"OK"), "nothing keeps him from coming back"


def test_who_is_inside_a_command_is_ended_when_patience_is_over(house: House) -> None:
    wire = house.log_in()
    wire.send(b"a APPEND INBOX {10+}\r\n12345")
    assert wait_for(lambda: house.ask(f"/v1/sessions/{house.sessions(user=USER)[0]['id']}").get("activity") == "busy")
    house.change("kick", user=USER)
    assert house.porter.wait_for_log("session.closed", outcome="kicked", seconds=15)


def test_what_can_be_seen(house: House) -> None:
    wires = house.live_in_both_workers()
    house.log_in(OTHER_USER)
    assert house.try_to_log_in(password=WRONG).startswith(b"NO")
    told = house.explain()
    (failure,) = told["failures"]
    assert (failure["outcome"], failure["mechanism"]) == ("authentication_failed", "LOGIN")
    assert WRONG not in json.dumps(told)
    assert {each["id"] for each in told["sessions"]} == {each["id"] for each in house.sessions(user=USER)}
    limits = {row["limit"]: row for row in told["limits"]}
    assert limits["connections_per_user"]["most"] - limits["connections_per_user"]["left"] == len(wires)

    users = house.ask("/v1/users")
    assert users["total"] == 2
    assert users["users"][0] == {"user": USER, "sessions": len(wires), "backends": [backend_of(wires[0])]}
    pages, after = [], ""
    while True:
        page = house.ask(f"/v1/sessions?limit=1{after}")
        pages += page["sessions"]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert [each["id"] for each in pages] == sorted(each["id"] for each in house.sessions())
    assert len(pages) == len(wires) + 1

    house.ask("/v1/top")
    for _ in range(20):
        wires[0].command(b"NOOP")
    top = {row["user"]: row for row in house.ask("/v1/top")["users"]}
    assert top[USER]["sessions"] == len(wires)
    assert top[USER]["commands_per_second"] > 0
    assert top[OTHER_USER]["commands_per_second"] == 0

    (mine,) = [each for each in house.sessions(user=USER) if each["client"] == wires[0].address]
    details = house.ask(f"/v1/sessions/{mine['id']}")
    assert (details["mechanism"], details["secure"], details["activity"]) == ("LOGIN", True, "between")
    assert details["commands"] >= 20
    assert details["octets_up"] > 20 * len(b"x NOOP\r\n")
    house.ask("/v1/sessions/nobody", status=404)


def test_how_much_is_logged(house: House) -> None:
    def logged() -> bool:
        """Whether the end of a session is, in each of some."""
        before = len(house.porter.log("session.closed"))
        for _ in range(4):
            assert house.try_to_log_in().startswith(b"OK")
        return wait_for(lambda: len(house.porter.log("session.closed")) == before + 4, 1)

    assert logged()
    assert house.change("log-level", level="warning") == {"level": "warning", "before": "info"}
    assert not logged()
    house.porter.kill_one("worker")
    assert wait_for(lambda: house.ask("/v1/status")["processes"] and len(house.porter.log("process.died")) == 1)
    assert house.change("log-level", level="info") == {"level": "info", "before": "warning"}
    assert logged()
    house.change("log-level", level="error")
    house.porter.process.send_signal(signal.SIGHUP)
    assert wait_for(lambda: len(house.porter.log("settings.reloaded")) == 1, 20)
    assert wait_for(logged, 10), "until the next reload"


def test_what_was_said_outlives_processes(house: House) -> None:
    home = house.explain()["route"]["backend"]
    away = other_than(home)
    house.change("move", user=USER, backend=away)
    house.change("hold", user=OTHER_USER)
    said = house.explain()["directions"]

    def holds() -> None:
        assert house.explain()["directions"] == said
        for _ in range(4):
            with house.log_in() as wire:
                assert backend_of(wire) == away
            assert house.try_to_log_in(OTHER_USER) == UNAVAILABLE

    holds()
    house.porter.process.send_signal(signal.SIGHUP)
    house.porter.wait_for_log("settings.reloaded", seconds=20)
    assert wait_for(lambda: len(house.porter.log("steward.began")) == 2)
    holds()
    house.porter.kill_one("steward")
    assert wait_for(lambda: len(house.porter.log("steward.began")) == 3, 20)
    holds()
    house.porter.kill_one("worker")
    assert wait_for(lambda: len(house.porter.log("worker.started")) == 5, 20)
    holds()
    house.porter.kill_one("steward")
    assert wait_for(lambda: len(house.porter.log("steward.began")) == 4, 20)
    holds()
    assert house.change("release", user=USER) == {"user": USER, "held": False, "backend": away}
    house.porter.kill_one("steward")
    assert wait_for(lambda: len(house.porter.log("steward.began")) == 5, 20)
    assert house.explain()["directions"] is None, "what was taken back stays so"
    assert wait_for(lambda: house.sessions(user=USER) == [])
    assert backend_of(house.log_in()) == home
