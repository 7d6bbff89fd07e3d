"""`imap-porter who`, `session`, `limits`, `settings`, `figures`, `openapi`, against the real API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy.admin.openapi import openapi_document
from proxy.cli.running import EXIT_REFUSED
from proxy.cli.terminal import EXIT_OK
from tests.admin.houses import LOOKS, SESSION, FakeHouse
from tests.cli.asking import asked, command

SESSION_HEAD = ["session", "user", "client", "listener", "worker", "backend", "state", "for", "why"]


class FullHouse(FakeHouse):
    """2,345 sessions."""

    IDS = tuple(f"s{number:04}" for number in range(2345))

    async def look(self, verb: str, question: Any) -> Mapping[str, Any]:
        if verb != "sessions":
            return await super().look(verb, question)
        self.looks.append((verb, question))
        first = 0 if question.after is None else self.IDS.index(question.after) + 1
        page = self.IDS[first : first + question.limit]
        more = first + question.limit < len(self.IDS)
        sessions = [{**SESSION, "id": each, "user": "\x1b[31mann"} for each in page]
        return {"sessions": sessions, "total": len(self.IDS), "next": page[-1] if more else None}


async def test_who(config: Path) -> None:
    house = FakeHouse()
    result = await asked(house, config, "who")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    head, session, total = result.stdout.splitlines()
    assert head.split() == SESSION_HEAD
    assert session.split()[:3] == ["s1", "alice@example.org", "10.1.2.3:4567"]
    assert session.split()[3:] == ["[::]:993", "w3.1", "d1", "open", "5s", "hash"]
    assert total == "1 session"


async def test_who_by_what(config: Path) -> None:
    house = FakeHouse()
    filters = {"user": "ann", "backend": "d1", "address": "10.0.0.1", "listener": "[::]:993", "worker": "w1.1"}
    await asked(house, config, "who", *(word for name, value in filters.items() for word in (f"--{name}", value)))
    ((_, question),) = house.looks
    assert question.model_dump(exclude_none=True) == {**filters, "limit": 100}


@pytest.mark.parametrize(
    ("limit", "asked_for", "shown"), [(7, [7], 7), (1500, [1000, 500], 1500), (9000, [1000, 1000, 1000], 2345)]
)
async def test_who_turns_the_pages_by_itself(config: Path, limit: int, asked_for: list[int], shown: int) -> None:
    house = FullHouse()
    result = await asked(house, config, "who", "--limit", str(limit), "--json")
    document = json.loads(result.stdout)
    assert [each["id"] for each in document["sessions"]] == list(house.IDS[:shown])
    assert (document["ok"], document["total"]) == (True, 2345)
    assert document["next"] == (None if shown == 2345 else house.IDS[shown - 1])
    assert [min(question.limit, 1000) for _, question in house.looks] == asked_for


async def test_who_says_that_there_are_more(config: Path) -> None:
    result = await asked(FullHouse(), config, "who", "--limit", "2")
    assert result.stdout.splitlines()[-1] == "2 of 2,345 sessions; --limit shows more"
    assert r"\x1b[31mann" in result.stdout
    assert "\x1b" not in result.stdout


async def test_who_by_users(config: Path) -> None:
    house = FakeHouse()
    result = await asked(house, config, "who", "--users", "--limit", "5000")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["user", "sessions", "backends"],
        ["alice@example.org", "1", "d1"],
        ["1", "user"],
    ]
    ((verb, question),) = house.looks
    assert (verb, question.limit) == ("users", 1000)


def test_users_know_no_filters(config: Path) -> None:
    result = command("who", "--users", "--backend", "d1", "-c", config)
    assert (result.exit_code, "knows no filters" in result.stderr) == (2, True)


async def test_one_session(config: Path) -> None:
    result = await asked(FakeHouse(), config, "session", "s1")
    told = dict(line.strip().split(maxsplit=1) for line in result.stdout.splitlines())
    assert (told["id"], told["activity"], told["commands"], told["mechanism"]) == ("s1", "idle", "3", "PLAIN")
    assert told["since"].endswith(", for 5s")


async def test_a_session_that_is_gone(config: Path) -> None:
    result = await asked(FakeHouse(), config, "session", "s2")
    assert (result.exit_code, result.stdout) == (EXIT_REFUSED, "")
    assert result.stderr == "there is no such session any more\n"


async def test_limits(config: Path) -> None:
    result = await asked(FakeHouse(), config, "limits")
    assert result.stdout.splitlines()[1].split() == ["connections", "1000", "refuse", "2"]


async def test_settings(config: Path) -> None:
    result = await asked(FakeHouse(), config, "settings")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["setting", "value", "default"],
        ["workers", "2", "auto"],
    ]
    result = await asked(FakeHouse(), config, "settings", "--all")
    assert [line.split() for line in result.stdout.splitlines()] == [["setting", "value"], ["version", "1"]]


@pytest.mark.parametrize("verb", ["limits", "settings"])
async def test_what_is_set_for_scripts(config: Path, verb: str) -> None:
    result = await asked(FakeHouse(), config, verb, "--json")
    assert json.loads(result.stdout) == {"ok": True, **LOOKS[verb]}


async def test_what_is_json_anyhow(config: Path) -> None:
    house = FakeHouse()
    assert json.loads((await asked(house, config, "figures")).stdout) == LOOKS["figures"]
    assert json.loads((await asked(house, config, "openapi")).stdout) == json.loads(json.dumps(openapi_document()))
