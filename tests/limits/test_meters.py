"""What users and sessions may do by time: buckets by class, actions, several workers, and how much is remembered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.imap.commands import COMMANDS
from proxy.imap.observer import Permit
from proxy.limits import meters as room
from proxy.limits.meters import Meter, Meters
from proxy.limits.reached import ACTIONS as KNOWN
from proxy.settings.limit_models import ByteRate, CommandRate, Limits

GRANTED, REFUSED, DELAYED = Permit.GRANTED, Permit.REFUSED, Permit.DELAYED


class Clock:
    """Time that goes on when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Told(list[tuple[Any, ...]]):
    """What was said of limits that were reached."""

    def __call__(self, limit: str, action: str, **keys: object) -> None:
        self.append((limit, action, keys))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    said = Told()
    monkeypatch.setattr(room, "reached", said)
    return said


def limits(**settings: Any) -> Limits:
    """Rates are (count, seconds, action)."""
    made: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "bytes_per_user":
            made[name] = ByteRate(rate=value[0], per=value[1], action=value[2])
        else:
            rates = value if isinstance(value, dict) else {"all": value}
            made[name] = {
                key: CommandRate(rate=rate, per=per, action=action) for key, (rate, per, action) in rates.items()
            }
    return Limits(**made)


def opened(meters: Meters, name: str = "ann") -> Meter:
    meter = meters.open(name)
    assert meter is not None
    return meter


def granted(meter: Meter, command: str = "NOOP", most: int = 100) -> int:
    """How many of a command may begin now."""
    for count in range(most):
        if meter.permits(command) is not GRANTED:
            return count
    return most


def test_without_limits_there_is_nothing_to_count() -> None:
    assert Meters(Limits()).open("ann") is None


CLASSES: list[tuple[dict[str, Any], dict[str, int]]] = [
    ({"all": (3, 60.0, "refuse")}, {"NOOP": 3, "UID FETCH": 3, "OTHER": 3, "LOGOUT": 9}),
    ({"SEARCH": (2, 60.0, "refuse")}, {"SEARCH": 2, "UID SEARCH": 2, "NOOP": 9, "UID FETCH": 9, "LOGOUT": 9}),
    ({"UID SEARCH": (2, 60.0, "refuse")}, {"SEARCH": 9, "UID SEARCH": 2}),
    ({"all": (5, 60.0, "delay"), "APPEND": (1, 60.0, "refuse")}, {"APPEND": 1, "NOOP": 5, "FETCH": 5}),
    ({"OTHER": (1, 60.0, "refuse")}, {"OTHER": 1, "NOOP": 9}),
    ({"LOGOUT": (1, 60.0, "refuse")}, {"LOGOUT": 9}),
]


@pytest.mark.parametrize("limit", ["commands_per_user", "commands_per_session"])
@pytest.mark.parametrize(("rates", "expected"), CLASSES)
def test_classes(limit: str, rates: dict[str, Any], expected: dict[str, int], clock: Clock) -> None:
    for command, count in expected.items():
        meter = opened(Meters(limits(**{limit: rates}), clock))
        assert granted(meter, command, most=9) == count, command


def test_every_command_but_logout_is_counted(clock: Clock) -> None:
    meters = Meters(limits(commands_per_session=(1, 60.0, "refuse")), clock)
    assert {name for name in COMMANDS if granted(opened(meters), name, most=2) == 2} == {"LOGOUT"}


def test_a_search_by_uid_and_a_search_share_a_bucket(clock: Clock) -> None:
    meter = opened(Meters(limits(commands_per_session={"SEARCH": (2, 60.0, "refuse")}), clock))
    assert [meter.permits(name) for name in ("SEARCH", "UID SEARCH", "SEARCH", "UID SEARCH")] == [
        GRANTED,
        GRANTED,
        REFUSED,
        REFUSED,
    ]


def test_a_user_is_counted_over_his_sessions_and_a_session_by_itself(clock: Clock) -> None:
    meters = Meters(limits(commands_per_user=(4, 60.0, "refuse"), commands_per_session=(3, 60.0, "refuse")), clock)
    first, second, other = opened(meters), opened(meters), opened(meters, "bob")
    assert [granted(first), granted(second), granted(other)] == [3, 1, 3]


def test_what_is_refused_takes_nothing(clock: Clock) -> None:
    meter = opened(Meters(limits(commands_per_user={"all": (5, 50.0, "refuse"), "SEARCH": (1, 50.0, "refuse")}), clock))
    assert granted(meter, "SEARCH") == 1
    assert [meter.permits("SEARCH") for _ in range(100)] == [REFUSED] * 100
    assert granted(meter) == 4
    clock.now += 10.0
    assert granted(meter) == 1


ACTIONS = [
    ("delay", DELAYED, False),
    ("refuse", REFUSED, False),
    ("disconnect", DELAYED, True),
]


@pytest.mark.parametrize(("action", "permit", "exhausted"), ACTIONS)
@pytest.mark.parametrize("limit", ["commands_per_user", "commands_per_session"])
def test_actions(limit: str, action: str, permit: Permit, exhausted: bool, clock: Clock, told: Told) -> None:
    meter = opened(Meters(limits(**{limit: (2, 10.0, action)}), clock))
    assert [meter.permits("NOOP") for _ in range(3)] == [GRANTED, GRANTED, permit]
    assert meter.exhausted is exhausted
    assert meter.delays is (action == "delay")
    assert told == [(limit, action, {"name": "ann", "command": "NOOP"})]
    assert action in KNOWN[limit]
    assert meter.permits("LOGOUT") is GRANTED


def test_the_strictest_action_counts(clock: Clock, told: Told) -> None:
    rates = {"all": (1, 10.0, "delay"), "NOOP": (1, 10.0, "disconnect"), "CHECK": (1, 10.0, "refuse")}
    meters = Meters(limits(commands_per_session=rates), clock)
    assert [opened(meters).permits("NOOP") for _ in range(2)] == [GRANTED] * 2
    meter = opened(meters)
    assert [meter.permits("CHECK") for _ in range(2)] == [GRANTED, REFUSED]
    assert [meter.permits("NOOP"), meter.exhausted] == [DELAYED, False]  # of all there may be no more, of NOOP yet one
    meter = opened(meters)
    assert [meter.permits("NOOP") for _ in range(2)] == [GRANTED, DELAYED]
    assert meter.exhausted
    assert [action for _, action, _ in told] == ["refuse", "delay", "disconnect"]


def test_a_delayed_command_is_told_of_once_and_goes_on_when_there_is_a_token(clock: Clock, told: Told) -> None:
    meter = opened(Meters(limits(commands_per_user=(2, 10.0, "delay")), clock))
    assert granted(meter) == 2
    assert meter.delay() == pytest.approx(5.0, rel=0.02)
    clock.now += 4.0
    assert meter.permits("NOOP") is DELAYED
    assert meter.delay() == pytest.approx(1.0, rel=0.1)
    clock.now += 1.0
    assert meter.delay() <= 0
    assert [meter.permits("NOOP"), meter.delays, meter.permits("NOOP")] == [GRANTED, False, DELAYED]
    assert len(told) == 2


def test_what_was_delayed_may_be_refused_in_the_end(clock: Clock) -> None:
    settings = limits(commands_per_user=(3, 100.0, "refuse"), commands_per_session=(1, 10.0, "delay"))
    meters = Meters(settings, clock)
    meter, other = opened(meters), opened(meters)
    assert [meter.permits("NOOP"), meter.permits("NOOP"), meter.delays] == [GRANTED, DELAYED, True]
    assert other.permits("NOOP") is GRANTED
    clock.now += 10.0
    assert other.permits("NOOP") is GRANTED
    assert [meter.permits("NOOP"), meter.delays, meter.delay()] == [REFUSED, False, 0.0]


def test_octets_are_paid_for_afterwards(clock: Clock, told: Told) -> None:
    meters = Meters(limits(bytes_per_user=(1000, 10.0, "delay")), clock)
    first, second = opened(meters), opened(meters)
    assert not first.counts_commands
    assert [first.carried(600), second.carried(400), first.carried(0)] == [True, True, True]
    assert not second.carried(500)
    assert [first.debt(), second.debt()] == [pytest.approx(5.0), pytest.approx(5.0)]
    assert not first.exhausted
    assert told == [("bytes_per_user", "delay", {"name": "ann"})]
    clock.now += 5.01
    assert first.debt() <= 0
    assert first.carried(0)


def test_octets_may_end_a_session(clock: Clock, told: Told) -> None:
    meter = opened(Meters(limits(bytes_per_user=(1000, 10.0, "disconnect")), clock))
    assert meter.carried(1000)
    assert not meter.carried(1)
    assert meter.exhausted
    assert told == [("bytes_per_user", "disconnect", {"name": "ann"})]
    assert set(KNOWN["bytes_per_user"]) == {"delay", "disconnect"}


def test_what_another_worker_gave_is_taken_out_here(clock: Clock) -> None:
    settings = limits(commands_per_user=(10, 100.0, "refuse"), bytes_per_user=(1000, 10.0, "delay"))
    here, there = Meters(settings, clock), Meters(settings, clock)
    meter = opened(here)
    assert granted(opened(there), most=4) == 4
    opened(there).carried(1500)
    here.deduct(json.loads(json.dumps(there.take_used())))
    assert there.take_used() == {}
    assert here.take_used() == {}  # what was told is not told again
    assert granted(meter) == 6
    assert not meter.carried(0)
    assert meter.debt() == pytest.approx(5.0)


def test_who_comes_here_afterwards_finds_what_he_left_there(clock: Clock) -> None:
    settings = limits(commands_per_user=(10, 100.0, "refuse"))
    here, there = Meters(settings, clock), Meters(settings, clock)
    assert granted(opened(there)) == 10
    here.deduct(there.take_used())
    assert granted(opened(here)) == 0
    clock.now += 50.0
    assert granted(opened(here)) == 5


def test_workers_with_other_limits_understand_each_other(clock: Clock) -> None:
    here = Meters(limits(commands_per_user={"SEARCH": (2, 60.0, "refuse"), "all": (9, 60.0, "refuse")}), clock)
    here.deduct({"ann": [["bytes", 500], ["all", 3, "of a later version"], ["FETCH", 7]]})
    assert granted(opened(here)) == 6
    assert granted(opened(here), "SEARCH") == 0  # `all` is empty


@pytest.mark.parametrize("name", ["a{}", "ö{}" * 60, "\U0001f600{}" * 30])
def test_what_is_told_fits_into_packets(name: str, clock: Clock) -> None:
    meters = Meters(limits(commands_per_user=(10, 100.0, "refuse"), bytes_per_user=(1000, 10.0, "delay")), clock)
    for number in range(3000):
        meter = opened(meters, name.replace("{}", str(number)))
        meter.permits("NOOP")
        meter.carried(2**40)
    told: dict[str, Any] = {}
    while used := meters.take_used():
        assert len(json.dumps([["used", used]])) < 60_000
        assert not set(used) & set(told)
        told |= used
    assert len(told) == 3000
    assert set(map(str, told.values())) == {str([["all", 1], ["bytes", 2**40]])}


def test_reconnecting_fills_no_bucket(clock: Clock) -> None:
    meters = Meters(limits(commands_per_user=(10, 100.0, "refuse")), clock)
    for _ in range(10):
        meter = opened(meters)
        assert meter.permits("NOOP") is GRANTED
        meter.close()
        meters.take_used()
    assert opened(meters).permits("NOOP") is REFUSED


def test_users_are_forgotten_when_their_buckets_are_full(clock: Clock) -> None:
    meters = Meters(limits(commands_per_user=(10, 100.0, "refuse")), clock)
    first, second = opened(meters), opened(meters)
    first.permits("NOOP")
    first.permits("NOOP")
    first.close()
    clock.now += 100.0
    meters.take_used()
    assert len(meters) == 1  # he has another session
    second.permits("NOOP")
    second.close()
    meters.take_used()
    assert len(meters) == 1  # full in ten seconds
    meters.deduct({"bob": [["all", 1]]})
    assert len(meters) == 2
    clock.now += 9.0
    meters.take_used()
    assert len(meters) == 2
    clock.now += 1.1
    meters.take_used()
    assert len(meters) == 0


def test_what_was_not_told_is_not_forgotten(clock: Clock) -> None:
    meters = Meters(limits(commands_per_user=(10, 100.0, "refuse")), clock)
    meter = opened(meters)
    meter.permits("NOOP")
    meter.close()
    clock.now += 100.0
    assert meters.take_used() == {"ann": [["all", 1]]}
    assert meters.take_used() == {}
    assert len(meters) == 0


def test_who_came_back_is_not_forgotten(clock: Clock) -> None:
    meters = Meters(limits(commands_per_user=(10, 100.0, "refuse")), clock)
    opened(meters).close()
    meter = opened(meters)
    meters.take_used()
    assert len(meters) == 1
    assert [granted(meter), granted(opened(meters))] == [10, 0]


def test_who_used_nothing_is_forgotten_too(clock: Clock) -> None:
    meters = Meters(limits(commands_per_session=(10, 100.0, "refuse")), clock)
    meter = opened(meters)
    assert granted(meter) == 10
    meter.close()
    assert meters.take_used() == {}
    assert len(meters) == 0


def test_those_who_are_remembered_are_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOST_RESTING", 5)
    meters = Meters(limits(commands_per_user=(10, 100.0, "refuse")), clock)
    living = opened(meters, "living")
    living.permits("NOOP")
    for number in range(50):
        meter = opened(meters, f"user{number}")
        meter.permits("NOOP")
        meter.close()
        meters.deduct({f"elsewhere{number}": [["all", 1]]})
    assert len(meters) == 6
    assert len(meters.take_used()) <= 6
    assert granted(living) == 9


def test_what_a_user_has_left(clock: Clock) -> None:
    meters = Meters(
        limits(
            commands_per_user={"all": (5, 60.0, "refuse"), "SEARCH": (2, 30.0, "refuse")},
            bytes_per_user=(1000, 10.0, "delay"),
            commands_per_session=(3, 60.0, "refuse"),
        ),
        clock,
    )

    def left(name: str = "ann") -> dict[str, tuple[int, int, float]]:
        rows = json.loads(json.dumps(meters.left(name)))
        return {row["limit"]: (row["most"], row["left"], row["per_seconds"]) for row in rows}

    full = {
        "commands_per_user": (5, 5, 60.0),
        "commands_per_user (SEARCH)": (2, 2, 30.0),
        "bytes_per_user": (1000, 1000, 10.0),
    }
    assert left() == full, "of all his sessions together; what one session may do is another question"
    meter = opened(meters)
    assert meter.permits("SEARCH") is GRANTED
    assert meter.permits("NOOP") is GRANTED
    assert {limit: row[1] for limit, row in left().items()} == {
        "commands_per_user": 3,
        "commands_per_user (SEARCH)": 1,
        "bytes_per_user": 1000,
    }
    assert left("bob") == full
    clock.now += 3600
    assert left() == full
    assert Meters(Limits(), clock).left("ann") == []


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(0, 2), st.integers(1, 20)), max_size=40))
def test_workers_together_allow_the_rate_and_one_second_of_each_other(steps: list[tuple[float, int, int]]) -> None:
    """Three workers that tell each other once a second, a client that takes what he can get from any of them."""
    rate, per = 20, 10.0
    clock = Clock()
    workers = [Meters(limits(commands_per_user=(rate, per, "refuse")), clock) for _ in range(3)]
    sessions = [opened(worker) for worker in workers]
    allowed: list[tuple[float, int]] = []
    told_at = clock.now
    for pause, which, tries in steps:
        clock.now += pause
        while clock.now - told_at >= 1.0:
            told_at += 1.0
            used = [worker.take_used() for worker in workers]
            for at, worker in enumerate(workers):
                for other, what in enumerate(used):
                    if other != at:
                        worker.deduct(what)
        allowed.append((clock.now, granted(sessions[which], most=tries)))
    for first, (since, _) in enumerate(allowed):
        total = 0
        for until, count in allowed[first:]:
            total += count
            # Within one second each of the three may give what one may: what the others gave is known after it.
            assert total <= rate + (until - since) * rate / per + 2 * rate + 1
