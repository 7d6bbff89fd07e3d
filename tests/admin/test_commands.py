"""What a change does, and what it leaves behind."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import trio

from proxy.admin.commands import BackendView, NotPossible, NotThere, carry_out
from proxy.admin.events import Kind
from proxy.admin.guard import Caller
from proxy.admin.verbs import VERBS, Role
from proxy.observe import metrics
from proxy.outcome import Refused
from tests.admin.conftest import Lines
from tests.admin.houses import D1, D2, D3, FakeHouse

WHY = "new disks"
OPS = Caller("ops", Role.OPERATOR)


async def change(house: FakeHouse, verb: str, **values: Any) -> dict[str, Any]:
    return await carry_out(house, VERBS[verb], VERBS[verb].ask(**{"reason": WHY, **values}), OPS)


def counted(verb: str) -> str:
    text, _ = metrics.exposition()
    return next(
        line for line in text.decode().splitlines() if line.startswith(f'porter_admin_changes_total{{verb="{verb}"}}')
    ).rpartition(" ")[2]


async def test_a_change_leaves_its_line(logged: Lines) -> None:
    house, drains = FakeHouse(D3), float(counted("drain"))
    answer = await change(house, "drain", backend="d1", reason="disks\n\x1b[31m", over_seconds=5.0)
    assert answer == {"done": {"before": asdict(D1), "after": asdict(house.views["d1"])}, "warning": ""}
    assert (house.views["d1"].state, house.drains) == ("drain", [("d1", 5)])
    await change(house, "weight", backend="d1", weight=7)
    assert (house.views["d1"].state, house.views["d1"].weight) == ("drain", 7)
    assert float(counted("drain")) == drains + 1
    first, second = ({key: value for key, value in line.items() if key != "time"} for line in logged())
    assert first == {
        "level": "warning",
        "event": "admin.changed",
        "caller": "ops",
        "verb": "drain",
        "backend": "d1",
        "user": None,
        "session": None,
        "address": None,
        "sessions": None,
        "seconds": 5,
        "old": "up",
        "new": "drain",
        "reason": r"disks\n\x1b[31m",
    }
    assert (second["caller"], second["old"], second["new"]) == ("ops", 1, 7)
    assert second["seconds"] is None


async def test_no_such_backend(logged: Lines) -> None:
    for verb, values in (("down", {}), ("weight", {"weight": 1}), ("move", {"user": "alice"})):
        with pytest.raises(NotThere, match='no such backend: "d9"'):
            await change(FakeHouse(), verb, backend="d9", **values)
    assert logged() == []


async def test_a_move_to_where_nobody_gets_in(logged: Lines) -> None:
    house = FakeHouse()
    assert (await change(house, "move", user="a", backend="d1"))["warning"] == ""
    assert "d2 is down" in (await change(house, "move", user="a", backend="d2"))["warning"]
    house.set_state("d1", "down")
    assert "d1 is down" in (await change(house, "move", user="a", backend="d1"))["warning"]


NAMED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("kick", {}, {"user": "ann@example.org", "sessions": 2, "proxies": 1}),
    ("move", {"backend": "d1"}, {"user": "ann@example.org", "sessions": 1, "backend": "d1"}),
    ("hold", {}, {"user": "ann@example.org", "sessions": 3}),
    ("release", {}, {"user": "ann@example.org", "held": False, "backend": "d2"}),
    ("trace", {}, {"user": "ann@example.org", "trace": "t1", "until": 1000.0}),
]


@pytest.mark.parametrize(("verb", "values", "done"), NAMED, ids=[row[0] for row in NAMED])
async def test_a_user_is_named_as_he_likes(
    logged: Lines, verb: str, values: dict[str, Any], done: dict[str, Any]
) -> None:
    """The house, the log, the event and whoever asked have the name under which he has sessions."""
    house = FakeHouse()
    house.aliases["Annie@Example.org"] = "ann@example.org"
    with house.hub.subscribe([Kind.AUDIT]) as reader:
        answer = await change(house, verb, user="Annie@Example.org", **values)
        with trio.fail_after(5):
            assert (await anext(reader))["user"] == "ann@example.org"
    assert answer == {"done": done, "warning": ""}
    assert next(iter(answer["done"])) == "user"
    ((_, order, *_),) = house.asked
    assert getattr(order, "user", order) == "ann@example.org"
    (line,) = logged()
    assert line["user"] == "ann@example.org"


@pytest.mark.parametrize(("verb", "values", "done"), NAMED, ids=[row[0] for row in NAMED])
async def test_a_user_whom_no_source_knows(
    logged: Lines, verb: str, values: dict[str, Any], done: dict[str, Any]
) -> None:
    """It is done all the same: a source may be out just now, when a hold is needed most."""
    house = FakeHouse()
    house.strangers.add("mistyped")
    answer = await change(house, verb, user="mistyped", **values)
    assert answer["done"] == {**done, "user": "mistyped"}
    assert answer["warning"] == "no source knows mistyped, or one that would is out: taken as it is spelled"
    assert len(house.asked) == 1


async def test_both_warnings(logged: Lines) -> None:
    house = FakeHouse()
    house.strangers.add("mistyped")
    warning = (await change(house, "move", user="mistyped", backend="d2"))["warning"]
    assert warning.startswith("no source knows mistyped, ")
    assert warning.endswith("; d2 is down; the user's logins are refused until it is up")


async def test_what_is_no_name(logged: Lines) -> None:
    house = FakeHouse()
    for verb, values, _ in NAMED:
        with pytest.raises(Refused):
            await change(house, verb, user="a\nb", **values)
    assert (house.asked, logged()) == ([], [])


async def test_a_kick_of_nobody_by_name_names_nobody(logged: Lines) -> None:
    assert (await change(FakeHouse(), "kick", backend="d1"))["done"] == {"sessions": 2, "proxies": 1}


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
async def test_nobody_is_moved_to_nowhere(logged: Lines, name: str, other: BackendView | None, takes: bool) -> None:
    house = FakeHouse(*([] if other is None else [other]))
    views = dict(house.views)
    if takes:
        await change(house, "drain", backend="d1", over_seconds=5.0)
        assert house.drains == [("d1", 5)]
        return
    with pytest.raises(NotPossible) as raised:
        await change(house, "drain", backend="d1", over_seconds=5.0)
    assert str(raised.value) == ("no other backend without a tag takes homes; its users would be sent away and refused")
    assert (house.views, house.drains, logged()) == (views, [], [])


WARNED: list[tuple[str, dict[str, Any], bool]] = [
    ("drain", {}, True),
    ("down", {}, True),
    ("weight", {"weight": 0}, True),
    ("weight", {"weight": 1}, False),
    ("undrain", {}, False),
]


@pytest.mark.parametrize(("verb", "values", "warned"), WARNED, ids=[f"{row[0]} {row[1]}" for row in WARNED])
async def test_the_last_one_of_a_pool(logged: Lines, verb: str, values: dict[str, Any], warned: bool) -> None:
    warning = 'no other backend of the pool "gold" takes homes; who is placed anew is refused'
    answer = await change(FakeHouse(D3), verb, backend=D2.name, **values)
    assert answer["warning"] == (warning if warned else "")
    assert (await change(FakeHouse(IN_GOLD), verb, backend=D2.name, **values))["warning"] == ""
    assert all("warning" not in line for line in logged())
