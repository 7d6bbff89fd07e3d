"""`imap-porter kick`, `move`, `hold`, `release`, `untrace`, `explain`, against the real API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy.admin import questions
from proxy.cli.running import EXIT_REFUSED
from proxy.cli.terminal import EXIT_OK
from tests.admin.houses import LOOKS, FakeHouse
from tests.cli.asking import asked, command

WHY = ("--reason", "a stolen phone")

CHANGES = [
    (("kick", "--session", "s1"), "2 sessions told to end; 1 other proxy is asked, too", ("kick", {"session": "s1"})),
    (("kick", "--user", "ann"), "2 sessions told to end; 1 other proxy is asked, too", ("kick", {"user": "ann"})),
    (
        ("kick", "--address", "10.0.0.1"),
        "2 sessions told to end; 1 other proxy is asked, too",
        ("kick", {"address": "10.0.0.1"}),
    ),
    (("kick", "--backend", "d1"), "2 sessions told to end; 1 other proxy is asked, too", ("kick", {"backend": "d1"})),
    (
        ("move", "ann", "d1"),
        "ann lives at d1 until released; 1 session will move there",
        ("move", {"user": "ann", "backend": "d1"}),
    ),
    (
        ("move", "ann", "d1", "--for", "90m"),
        "ann lives at d1 for 90m; 1 session will move there",
        ("move", {"user": "ann", "backend": "d1", "for_seconds": 5400.0}),
    ),
    (("hold", "ann"), "ann is held until released; 3 sessions told to end", ("hold", {"user": "ann"})),
    (
        ("hold", "ann", "--for", "1h"),
        "ann is held for 1h; 3 sessions told to end",
        ("hold", {"user": "ann", "for_seconds": 3600.0}),
    ),
    (("release", "ann"), "ann is released; was moved to d2", ("release", "ann")),
    (("untrace", "t1"), "it has ended", ("untrace", "t1")),
]


@pytest.mark.parametrize(("arguments", "said", "change"), CHANGES, ids=[" ".join(row[0]) for row in CHANGES])
async def test_a_change(config: Path, arguments: tuple[str, ...], said: str, change: tuple[str, Any]) -> None:
    house = FakeHouse()
    result = await asked(house, config, *arguments, *WHY)
    assert (result.exit_code, result.stderr, result.stdout) == (EXIT_OK, "", f"{said}\n")
    ((verb, question, *_),) = house.asked
    if isinstance(question, questions.Change):
        question = question.model_dump(exclude_none=True)
        assert question.pop("reason") == WHY[1]
    assert (verb, question) == change


async def test_a_warning(config: Path) -> None:
    result = await asked(FakeHouse(), config, "move", "ann", "d2", *WHY)
    assert result.stdout.splitlines()[1] == "d2 is down; the user's logins are refused until it is up"


ALIASES = [
    (("kick", "--user", "Annie"), "2 sessions told to end; 1 other proxy is asked, too"),
    (("move", "Annie", "d1"), "ann lives at d1 until released; 1 session will move there"),
    (("hold", "Annie"), "ann is held until released; 3 sessions told to end"),
    (("release", "Annie"), "ann is released; was moved to d2"),
]


@pytest.mark.parametrize(("arguments", "said"), ALIASES, ids=[" ".join(row[0]) for row in ALIASES])
async def test_whom_it_concerns_is_told_by_his_canonical_name(
    config: Path, arguments: tuple[str, ...], said: str
) -> None:
    house = FakeHouse()
    house.aliases["Annie"] = "ann"
    result = await asked(house, config, *arguments, *WHY)
    assert (result.exit_code, result.stdout) == (EXIT_OK, f"{said}\n")
    ((_, order, *_),) = house.asked
    assert getattr(order, "user", order) == "ann"


async def test_somebody_whom_no_source_knows(config: Path) -> None:
    house = FakeHouse()
    house.strangers.add("mistyped")
    result = await asked(house, config, "hold", "mistyped", *WHY)
    warning = "no source knows mistyped, or one that would is out: taken as it is spelled"
    assert (result.exit_code, result.stdout.splitlines()[1:]) == (EXIT_OK, [warning])


async def test_a_change_for_scripts(config: Path) -> None:
    result = await asked(FakeHouse(), config, "release", "ann", "--json", *WHY)
    assert json.loads(result.stdout) == {"ok": True, "user": "ann", "held": False, "backend": "d2", "warning": ""}


UNUSABLE = [
    (("kick",), "expected exactly one of session, user, address and backend"),
    (("kick", "--user", "ann", "--backend", "d1"), "expected exactly one of"),
    (("kick", "--session", "gone"), "no such session any more"),
    (("move", "ann", "d9"), 'no such backend: "d9"'),
    (("move", "ann", "d1", "--for", "5"), "say the unit"),
    (("move", "ann", "d1", "--for", "31d"), "for_seconds: Input should be less than or equal to 2592000"),
    (("hold", "", "--for", "1h"), "user: String should have at least 1 character"),
    (("release", "nobody"), "neither moved nor held"),
    (("untrace", "t2"), "no such trace any more"),
]


@pytest.mark.parametrize(("arguments", "problem"), UNUSABLE, ids=[" ".join(row[0]) for row in UNUSABLE])
async def test_what_cannot_be_done(config: Path, arguments: tuple[str, ...], problem: str) -> None:
    result = await asked(FakeHouse(), config, *arguments, *WHY)
    assert (result.exit_code, result.stdout) == (EXIT_REFUSED, "")
    assert problem in result.stderr


@pytest.mark.parametrize("arguments", [row[0] for row in CHANGES if "--for" not in row[0]], ids=" ".join)
def test_a_change_says_why(config: Path, arguments: tuple[str, ...]) -> None:
    result = command(*arguments, "-c", config)
    assert (result.exit_code, "--reason" in result.stderr) == (2, True)


# --- explain ---


class Told(FakeHouse):
    """A house that explains something else."""

    def __init__(self, **told: Any) -> None:
        super().__init__()
        self.told = told

    async def look(self, verb: str, question: Any) -> Mapping[str, Any]:
        return {**await super().look(verb, question), **self.told}


async def test_explain(config: Path) -> None:
    result = await asked(FakeHouse(), config, "explain", "Alice")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "canonical name alice@example.org" in lines
    assert any(
        line.startswith("moved to d1 until released, by ops at 1970-01-01") and line.endswith(": x") for line in lines
    )
    assert "logins_per_user 60 60 per 1m" in lines
    assert lines[lines.index("1 session") + 2].startswith("s1 alice@example.org 10.1.2.3:4567")
    assert lines[-1].endswith("10.1.2.3:1 PLAIN unavailable")


async def test_explain_somebody_whom_nobody_knows(config: Path) -> None:
    house = Told(
        route=None,
        problem="no source knows the name\x1b[31m",
        directions={"backend": None, "held": True, "until": 2.0, "reason": "\x9b", "by": "ops", "since": 1.0},
        attributes={"tag": "\x1b"},
        limits=[],
        sessions=[],
        failures=[],
    )
    result = await asked(house, config, "explain", "nobody")
    first, second, _, title, attribute = result.stdout.splitlines()
    assert first == r"no route: no source knows the name\x1b[31m"
    assert second.startswith("held until 1970-01-01")
    assert second.endswith(r"\x9b")
    assert (title, attribute.split()) == ("attributes, by users.yaml", ["tag", r"\x1b"])


async def test_explain_for_scripts(config: Path) -> None:
    result = await asked(FakeHouse(), config, "explain", "alice", "--json")
    assert json.loads(result.stdout) == {"ok": True, **LOOKS["explain"]}
