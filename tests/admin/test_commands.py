"""The table of verbs: what a change may be, and what it leaves behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxy.admin.commands import VERBS, BackendView, Change, NoSuchBackend, NowhereToMove, UnusableChange, carry_out
from proxy.observe import metrics
from tests.admin.conftest import Lines
from tests.admin.houses import D2, D3, FakeHouse

WHY = "new disks"

CHANGES = [
    (Change.make("drain", WHY), {"state": "drain", "over_seconds": None, "reason": WHY}),
    (Change.make("drain", WHY, over_seconds=300.0), {"state": "drain", "over_seconds": 300.0, "reason": WHY}),
    (Change.make("undrain", f" {WHY}\n"), {"state": "up", "over_seconds": None, "reason": WHY}),
    (Change.make("down", WHY), {"state": "down", "over_seconds": None, "reason": WHY}),
    (Change.make("weight", WHY, weight=0), {"weight": 0, "over_seconds": None, "reason": WHY}),
]


@pytest.mark.parametrize(("change", "document"), CHANGES, ids=[change.verb for change, _ in CHANGES])
def test_a_change_is_read_as_it_was_sent(change: Change, document: dict[str, Any]) -> None:
    assert change.as_document() == document
    assert Change.read(document) == change


def test_every_verb_has_a_row() -> None:
    assert {change.verb for change, _ in CHANGES} == set(VERBS)


UNUSABLE = [
    ({}, "either state or weight"),
    ({"state": "up", "weight": 1, "reason": WHY}, "either state or weight"),
    ({"state": "sleep", "reason": WHY}, "state: expected one of down, drain, up"),
    ({"state": ["up"], "reason": WHY}, "state: "),
    ({"weight": True, "reason": WHY}, "weight: expected a whole number"),
    ({"weight": 1.0, "reason": WHY}, "weight: expected a whole number"),
    ({"weight": -1, "reason": WHY}, "between 0 and 1000"),
    ({"weight": 1001, "reason": WHY}, "between 0 and 1000"),
    ({"state": "drain", "over_seconds": "5m", "reason": WHY}, "over_seconds: expected a number of seconds"),
    ({"state": "drain", "over_seconds": float("nan"), "reason": WHY}, "over_seconds: expected a number between"),
    ({"state": "drain", "over_seconds": 1e9, "reason": WHY}, "over_seconds: expected a number between"),
    ({"state": "down", "over_seconds": 5, "reason": WHY}, "belongs to the state drain"),
    ({"state": "up"}, "reason: missing"),
    ({"state": "up", "reason": None}, "reason: missing"),
    ({"state": "up", "reason": " \n"}, "reason: expected 1 to 200"),
    ({"state": "up", "reason": "x" * 201}, "reason: expected 1 to 200"),
    ({"state": "up", "reason": WHY, "force": True}, "unknown: force"),
]


@pytest.mark.parametrize(("document", "problem"), UNUSABLE, ids=[problem for _, problem in UNUSABLE])
def test_unusable(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnusableChange, match=problem):
        Change.read(document)


def counted(verb: str) -> str:
    text, _ = metrics.exposition()
    return next(
        line for line in text.decode().splitlines() if line.startswith(f'porter_admin_changes_total{{verb="{verb}"}}')
    ).rpartition(" ")[2]


def test_a_change_leaves_its_line(logged: Lines) -> None:
    house, drains = FakeHouse(D3), float(counted("drain"))
    made = carry_out(house, "d1", Change.make("drain", "disks\n\x1b[31m", over_seconds=5), 1000)
    assert (made.before.state, made.after.state, made.warning, house.drains) == ("up", "drain", "", [("d1", 5)])
    made = carry_out(house, "d1", Change.make("weight", WHY, weight=7), 0)
    assert (made.after.state, made.after.weight) == ("drain", 7)
    assert float(counted("drain")) == drains + 1
    first, second = ({key: value for key, value in line.items() if key != "time"} for line in logged())
    assert first == {
        "level": "warning",
        "event": "admin.changed",
        "uid": 1000,
        "verb": "drain",
        "backend": "d1",
        "old": "up",
        "new": "drain",
        "over_seconds": 5,
        "reason": r"disks\n\x1b[31m",
    }
    assert (second["uid"], second["old"], second["new"], second["over_seconds"]) == (0, 1, 7, None)


def test_no_such_backend(logged: Lines) -> None:
    with pytest.raises(NoSuchBackend, match='no such backend: "d9"'):
        carry_out(FakeHouse(), "d9", Change.make("down", WHY), 0)
    assert logged() == []


IN_GOLD = replace(D3, pool="gold")
OTHERS = [
    ("none", None, False),
    ("up", D3, True),
    ("drains", replace(D3, state="drain"), False),
    ("set down", replace(D3, state="down"), False),
    ("weight 0", replace(D3, weight=0), False),
    ("failed over", replace(D3, failed_over=True), False),
    ("does not answer", replace(D3, up=False), False),
    ("of another pool", IN_GOLD, False),
]


@pytest.mark.parametrize(("name", "other", "takes"), OTHERS, ids=[row[0] for row in OTHERS])
def test_nobody_is_moved_to_nowhere(logged: Lines, name: str, other: BackendView | None, takes: bool) -> None:
    house = FakeHouse(*([] if other is None else [other]))
    views, over = dict(house.views), Change.make("drain", WHY, over_seconds=5)
    if takes:
        carry_out(house, "d1", over, 0)
        assert house.drains == [("d1", 5)]
        return
    with pytest.raises(NowhereToMove) as raised:
        carry_out(house, "d1", over, 0)
    assert str(raised.value) == ("no other backend without a tag takes homes; its users would be sent away and refused")
    assert (house.views, house.drains, logged()) == (views, [], [])


WARNED = [
    (Change.make("drain", WHY), True),
    (Change.make("down", WHY), True),
    (Change.make("weight", WHY, weight=0), True),
    (Change.make("weight", WHY, weight=1), False),
    (Change.make("undrain", WHY), False),
]


@pytest.mark.parametrize(("change", "warned"), WARNED, ids=[f"{change.verb} {change.value}" for change, _ in WARNED])
def test_the_last_one_of_a_pool(logged: Lines, change: Change, warned: bool) -> None:
    warning = 'no other backend of the pool "gold" takes homes; who is placed anew is refused'
    assert carry_out(FakeHouse(D3), D2.name, change, 0).warning == (warning if warned else "")
    assert carry_out(FakeHouse(IN_GOLD), D2.name, change, 0).warning == ""
    assert all("warning" not in line for line in logged())
