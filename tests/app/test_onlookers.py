"""What administrators who look on have workers told, and what they are told of what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from proxy.admin.answers import TopList
from proxy.admin.events import Kind, Reader
from proxy.app import onlookers as room
from proxy.app.onlookers import Onlookers
from proxy.app.registry import Registry
from proxy.ledger.guests import Guest
from proxy.ledger.resident import Stage
from proxy.observe.metrics import METRICS
from proxy.routing.cluster import BackendEvent
from tests.app.fake_workers import settings_of
from tests.app.test_registry import Closer, guest


class Ear:
    """In place of a worker's link: gives its answers one after the other, and the last one from then on."""

    def __init__(self, name: str, onlookers: Onlookers, *answers: Any) -> None:
        self.name = name
        self.heard: list[list[Any]] = []
        self.packets = SimpleNamespace(waiting=0)
        self._onlookers, self._answers = onlookers, answers

    def post(self, message: list[Any], _most: int = 0) -> None:
        self.heard.append(message)
        if message[0] == "ask":
            answer, *others = self._answers
            self._answers = (*others,) or self._answers
            self._onlookers.inquiries.told(self, ["told", message[1], answer])  # type: ignore[arg-type]


class Hall:
    """Onlookers, and workers that they have."""

    def __init__(self) -> None:
        self.ears: dict[str, Ear] = {}
        self.registry = Registry(settings_of(), Closer())
        self.onlookers = Onlookers(self.ears, self.registry, "warning")  # type: ignore[arg-type]

    def join(self, name: str, *answers: Any) -> Ear:
        ear = self.ears[name] = Ear(name, self.onlookers, *answers)
        self.onlookers.greet(ear)  # type: ignore[arg-type]
        return ear

    def heard(self, kind: str) -> list[list[list[Any]]]:
        """What each has been told of a kind."""
        return [[message[1:] for message in ear.heard if message[0] == kind] for ear in self.ears.values()]


@pytest.fixture
def hall() -> Hall:
    return Hall()


@contextmanager
def reading(hall: Hall, *kinds: Kind) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Gives what has been read since, without the time."""
    with hall.onlookers.hub.subscribe(kinds) as reader:
        yield lambda: _queued(reader)


def _queued(reader: Reader) -> list[dict[str, Any]]:
    events = [{key: value for key, value in event.items() if key != "time"} for event in reader._queue]
    reader._queue.clear()
    return events


# --- what all workers have to know ---


def test_who_looks_on(hall: Hall) -> None:
    hall.join("w1.0")
    assert hall.heard("watch") == [[[[]]]], "a steward before may have had somebody who looked on"
    with reading(hall, Kind.TRACE, Kind.LIMIT):
        hall.join("w1.1")
        with reading(hall, Kind.SESSION, Kind.LIMIT):
            pass
    watched: list[list[list[str]]] = [[["limit", "trace"]], [["limit", "session", "trace"]], [["limit", "trace"]], [[]]]
    assert hall.heard("watch") == [[[[]], *watched], watched]


def test_the_log_level_of_all_and_of_those_who_come(hall: Hall) -> None:
    hall.join("w1.0")
    hall.onlookers.set_log_level("debug")
    hall.join("w1.1")
    hall.onlookers.set_log_level("error")
    hall.join("w1.2")
    assert hall.heard("log_level") == [
        [["warning"], ["debug"], ["error"]],  # a steward before may have had him say more, or less
        [["debug"], ["error"]],
        [["error"]],
    ]


async def test_directions_are_told_to_all(hall: Hall) -> None:
    for name in ("w1.0", "w1.1"):
        hall.join(name)
    registry = hall.registry
    registry.move("ann", "d2", until=None, reason="r", by="b")
    registry.hold("ann", until=5.0, reason="r", by="b")
    registry.expire_directions()
    registry.release_user("ann")
    told = [message for message in hall.ears["w1.0"].heard if message[0] not in ("watch", "log_level")]
    assert [message[0] for message in told] == [
        *("undirected", "directions"),
        *("undirected", "directions"),
        *("undirected", "directions"),  # the hold is over, the move is not
        "undirected",
    ]
    assert [[row[:2] for row in message[1]] for message in told if message[0] == "directions"] == [
        [["ann", "d2"]],
        [["ann", "d2"], ["ann", None]],
        [["ann", "d2"]],
    ]
    assert hall.ears["w1.1"].heard == hall.ears["w1.0"].heard


def test_all_directions_are_told_a_few_at_a_time(hall: Hall) -> None:
    for number in range(250):
        hall.registry.directions.put(f"u{number}", "d1", until=None, reason="r", by="b", since=1.0)
    ear = hall.join("w1.0")
    hall.onlookers.tell_all_directions(ear)  # type: ignore[arg-type]
    assert hall.heard("undirected") == [[[None]]], "whatever he has known before"
    assert [len(message[1]) for message in ear.heard if message[0] == "directions"] == [100, 100, 50]
    ear.heard.clear()
    hall.registry.on_directions([*hall.registry.directions])
    assert [len(message[1]) for message in ear.heard] == [100, 100, 50] * 2


# --- what happens ---


def test_what_workers_tell(hall: Hall) -> None:
    link: Any = hall.join("w1.0")
    values = {"limit": "commands_per_user", "action": "delay", "user": "ann", "client": "192.0.2.7"}
    junk: list[list[Any]] = [
        ["event"],
        ["event", "limit"],
        ["event", "limit", "limit.reached"],
        ["event", "limit", "limit.reached", [1]],
        ["event", 5, "limit.reached", {}],
        ["event", None, "limit.reached", {}],
        ["event", "none such", "limit.reached", {}],
        ["event", "session", "session.closed", {"id": "s1"}],  # which nobody wants
    ]
    with reading(hall, Kind.LIMIT) as read:
        for message in [*junk, ["event", "limit", "limit.reached", values, "of a later version"]]:
            hall.onlookers.told(link, message)
        assert read() == [{"kind": "limit", "event": "limit.reached", **values}]
    with reading(hall, Kind.AUDIT) as read:
        hall.onlookers.told(link, ["event", "limit", "limit.reached", values])
        assert read() == []


@pytest.mark.parametrize("kind", ["went_down", "came_up", "failed_over", "returned", "closed", "added", "removed"])
def test_backends(hall: Hall, kind: Any) -> None:
    event = BackendEvent("d1", kind, "connect: refused")
    hall.onlookers.turned(event)
    with reading(hall, Kind.BACKEND) as read:
        hall.onlookers.turned(event)
        assert read() == [
            {"kind": "backend", "event": f"backend.{kind}", "backend": "d1", "reason": "connect: refused"}
        ]


def test_sessions(hall: Hall) -> None:
    ann = guest("s1", "ann", "d1", Stage.OPENED)
    hall.onlookers.opened(ann)
    hall.onlookers.lost([ann])
    with reading(hall, Kind.SESSION) as read:
        hall.onlookers.opened(ann)
        hall.onlookers.lost([guest("s2", "bob", "d1", Stage.COUNTED), guest("s3", "cid", "d1"), ann])
        opened, lost = read()
    who = {"kind": "session", "id": "s1", "user": "ann", "client": "192.0.2.7:4711", "backend": "d1"}
    assert opened == {**who, "event": "session.opened", "listener": "imaps", "worker": "w1.0"}
    assert lost.pop("seconds") > 0
    assert lost == {**who, "event": "session.closed", "outcome": "worker_lost"}


def test_a_worker_takes_many_along(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOST_ENDS", 10)
    gone: list[Guest] = [guest(f"s{number}", "ann", "d1", Stage.OPENED) for number in range(50)]
    with reading(hall, Kind.SESSION) as read:
        hall.onlookers.lost(gone)
        assert len(read()) == 10


# --- who does most ---


def told(seconds: float, users: list[Any], backends: list[Any]) -> dict[str, Any]:
    return {"seconds": seconds, "users": users, "backends": backends}


async def test_the_top_of_all_workers(hall: Hall, autojump_clock: MockClock) -> None:
    hall.join("w1.0", told(10.0, [["ann", 2, 100, 1000, 50_000], ["bob", 1, 5, 10, 0]], [["d1", 3, 105, 1010, 50_000]]))
    hall.join("w1.1", told(5.0, [["ann", 1, 10, 100, 5], ["cid", 1, 60, 0, 0]], [["d2", 2, 70, 100, 5]]))
    top = await hall.onlookers.top(2)
    TopList.model_validate(top)
    assert top["seconds"] == 10.0
    assert top["users"] == [
        {"user": user, "sessions": sessions, "commands_per_second": commands,
         "octets_per_second_up": up, "octets_per_second_down": down}
        for user, sessions, commands, up, down in (("ann", 3, 12.0, 120, 5001), ("cid", 1, 12.0, 0, 0))
    ]  # fmt: skip
    assert [(row["backend"], row["sessions"], row["commands_per_second"]) for row in top["backends"]] == [
        ("d1", 3, 10.5),
        ("d2", 2, 14.0),
    ]


ODD: list[Any] = [
    None,
    5,
    [],
    {},
    {"seconds": 1.0},
    {"seconds": "1", "users": [], "backends": []},
    told(0.0, [["ann", 1, 5, 5, 5]], []),
    told(1.0, [5, None, [], ["bob"], [1, 1, 1, 1, 1], ["bob", 1, None, 1, 1], ["ann", 1, 0, 0, 0]], [{}]),
]


@pytest.mark.parametrize("answer", ODD, ids=str)
async def test_a_worker_that_answers_something_else(hall: Hall, answer: Any, autojump_clock: MockClock) -> None:
    hall.join("w1.0", answer)
    hall.join("w1.1", told(1.0, [["cid", 1, 3, 0, 0]], []))
    top = await hall.onlookers.top(20)
    TopList.model_validate(top)
    users = {row["user"]: row["commands_per_second"] for row in top["users"]}
    assert users.pop("cid") == 3.0
    assert users in ({}, {"ann": 0.0}), "of nobody is said what nobody knows"


async def test_who_has_just_begun_to_count_is_asked_again(hall: Hall, autojump_clock: MockClock) -> None:
    busy = told(6.0, [["ann", 1, 6, 0, 0]], [["d1", 1, 6, 0, 0]])
    hall.join("w1.0", busy, busy)
    hall.join("w1.1", told(0.0, [["bob", 1, 0, 0, 0]], []), told(1.2, [["bob", 1, 12, 0, 0]], []))
    began = trio.current_time()
    top = await hall.onlookers.top(20)
    assert trio.current_time() - began == pytest.approx(1.2)
    assert {row["user"]: row["commands_per_second"] for row in top["users"]} == {"ann": 1.0, "bob": 10.0}
    assert [len(asked) for asked in hall.heard("ask")] == [2, 2]
    began = trio.current_time()
    await hall.onlookers.top(20)
    assert trio.current_time() == began, "from then on nobody waits"


async def test_users_are_ranked_by_commands_and_octets(hall: Hall, autojump_clock: MockClock) -> None:
    """16 KiB are as much as a command."""
    rows = [["few", 1, 1, 0, 0], ["loads", 1, 1, 0, 10 * 16384], ["sends", 1, 0, 5 * 16384, 1], ["many", 1, 5, 0, 0]]
    hall.join("w1.0", told(1.0, rows, []))
    top = await hall.onlookers.top(3)
    assert [row["user"] for row in top["users"]] == ["loads", "sends", "many"]


async def test_nobody_answers(hall: Hall, autojump_clock: MockClock) -> None:
    top = await hall.onlookers.top(20)
    assert (top["seconds"], top["users"], top["backends"]) == (0.0, [], [])


async def test_commands_by_second(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    counts = {"FETCH": [3, 2], "NOOP": [1, 0], "IDLE": [0, 0]}
    monkeypatch.setattr("proxy.app.onlookers.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        METRICS, "look", lambda _: ((), [((name,), (list(value), 0.5)) for name, value in counts.items()])
    )
    commands = hall.onlookers._command_rates
    assert commands() == [], "nobody knows since when"
    now[0] += 2
    counts |= {"FETCH": [4, 2], "NOOP": [8, 0], "STORE": [0, 1]}
    for _ in range(2):  # whoever asks at the same time is told the same
        assert commands() == [
            {"command": "NOOP", "per_second": 3.5},
            {"command": "FETCH", "per_second": 0.5},
            {"command": "STORE", "per_second": 0.5},
        ]
    now[0] += 3
    counts["NOOP"] = [18, 0]
    assert [row["per_second"] for row in commands()] == [3.4, 0.2, 0.2], "whoever else has asked"
    now[0] += 1
    assert [row["per_second"] for row in commands()] == [2.83, 0.17, 0.17]
    now[0] += 4
    assert [row["per_second"] for row in commands()] == [1.7, 0.1, 0.1]
    assert commands() == [], "nothing has been for five seconds"
    now[0] += 3600
    assert commands() == [], "what was counted an hour ago is no beginning"
