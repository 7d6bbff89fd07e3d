"""What operators hear of limits: each time a count, and a line now and then."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, get_args

import pytest
import structlog

from proxy.limits import reached as room
from proxy.limits.reached import ACTIONS, reached, watch
from proxy.observe import metrics
from proxy.settings.limit_models import Action, ByteAction, Limits

Events = Sequence[MutableMapping[str, Any]]


@pytest.fixture
def events() -> Iterator[Events]:
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(room, "_told", room._Told(60.0))
    monkeypatch.setattr("proxy.limits.reached.time.monotonic", lambda: now[0])
    return now


def figure(limit: str, action: str) -> float:
    text, _ = metrics.exposition()
    series = f'porter_limits_reached_total{{action="{action}",limit="{limit}"}} '
    return next(float(line.split()[1]) for line in text.decode().splitlines() if line.startswith(series))


def test_each_is_a_limit_of_the_settings_and_shown_from_the_start() -> None:
    assert ACTIONS.keys() <= Limits.model_fields.keys()
    for limit, actions in ACTIONS.items():
        for action in actions:
            assert figure(limit, action) >= 0
    assert set(ACTIONS["commands_per_user"]) == set(ACTIONS["commands_per_session"]) == set(get_args(Action))
    assert set(ACTIONS["bytes_per_user"]) == set(get_args(ByteAction))


def test_it_is_counted_each_time_and_told_once_a_minute(events: Events, clock: list[float]) -> None:
    before = figure("commands_per_user", "delay")
    for second in range(121):
        clock[0] = 1000.0 + second
        reached("commands_per_user", "delay", name="ann", command="FETCH")
    assert figure("commands_per_user", "delay") - before == 121
    told = {"limit": "commands_per_user", "action": "delay", "name": "ann", "client": "", "command": "FETCH"}
    assert list(events) == [{"event": "limit.reached", "log_level": "info", **told}] * 3


def test_others_and_other_limits_are_told_of_by_themselves(events: Events, clock: list[float]) -> None:
    for _ in range(2):
        for name in ("ann", "bob"):
            reached("commands_per_user", "delay", name=name)
            reached("commands_per_session", "refuse", name=name)
        reached("connections_per_address", client="192.0.2.1")
        reached("connections")
    assert len(events) == 6
    assert {event["action"] for event in events if event["limit"].startswith("connections")} == {"refuse"}


def test_many_names_grow_nothing(events: Events, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOST_TOLD", 10)
    for number in range(50):
        reached("logins_per_user", name=f"user{number}")
    assert len(room._told._last) == 10
    assert len(events) == 50


def test_who_reaches_it_again_and_again_is_not_told_of_more_often_for_others(
    events: Events, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_MOST_TOLD", 3)
    for minute in range(3):
        clock[0] = 1000.0 + 60.0 * minute
        reached("logins_per_user", name="ann")
        reached("logins_per_user", name=f"user{minute}")
    reached("logins_per_user", name="other")
    reached("logins_per_user", name="ann")
    assert [event["name"] for event in events].count("ann") == 3


@pytest.fixture
def told() -> Iterator[list[dict[str, str]]]:
    """What somebody is told who looks on; nobody does afterwards."""
    heard: list[dict[str, str]] = []
    yield heard
    watch(None)


def test_whoever_looks_on_is_told_once_a_second(events: Events, clock: list[float], told: list[dict[str, str]]) -> None:
    reached("commands_per_user", "delay", name="ann", command="FETCH")
    watch(told.append)
    for tenth in range(1201):
        clock[0] = 1000.0 + tenth / 10
        reached("commands_per_user", "delay", name="ann", command="FETCH")
    reached("commands_per_user", "delay", name="bob", command="FETCH")
    reached("connections_per_address", client="192.0.2.1")
    reached("connections_per_address", client="192.0.2.1")
    watch(None)
    reached("connections")
    ann = {"limit": "commands_per_user", "action": "delay", "user": "ann", "client": ""}
    assert told == [
        *[ann] * 121,
        ann | {"user": "bob"},
        {"limit": "connections_per_address", "action": "refuse", "user": "", "client": "192.0.2.1"},
    ]
    assert [event["name"] for event in events].count("ann") == 3, "the log has its own minute"
    assert events[-1]["limit"] == "connections", "what happens afterwards is for the log alone"


def test_who_begins_to_look_on_is_told_at_once(events: Events, clock: list[float], told: list[dict[str, str]]) -> None:
    for _ in range(2):  # the second one does not miss what the first was told in the same second
        watch(told.append)
        reached("logins_per_user", name="ann")
        reached("logins_per_user", name="ann")
    assert len(told) == 2
    assert len(events) == 1


def test_many_names_grow_nothing_for_whoever_looks_on(
    events: Events, clock: list[float], told: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_MOST_TOLD", 10)
    watch(told.append)
    for number in range(50):
        reached("logins_per_user", name=f"user{number}")
    assert len(room._watch.told._last) == 10
    assert len(told) == 50
