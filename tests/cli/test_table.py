"""One table of verbs: the commands ask all of it and nothing else, and docs/commands.md has every command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

from proxy.admin import questions
from proxy.admin.events import Kind
from proxy.admin.verbs import VERBS
from proxy.cli.changes import LogLevel, changes
from proxy.cli.looks import EventKind, looks
from proxy.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text()
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]

ALONE = {"serve", "check", "schema", "test-login", "hash-password", "demo"}  # they ask no running proxy
OTHERWISE = {"who": {"sessions", "users"}, "status": {"status", "generations"}, "events": set()}  # not the verb alone
COMMON = {"--config", "--url", "--token-file", "--ca", "--json"}


def names(part: Any) -> set[str]:
    return set(get_command(part).commands)  # type: ignore[attr-defined]


def asked_verbs(command: str) -> set[str]:
    return OTHERWISE.get(command, {command})


def options(command: str) -> set[str]:
    return {option for parameter in COMMANDS[command].params for option in parameter.opts if option.startswith("--")}


def test_every_verb_has_its_command_and_every_command_its_verb() -> None:
    asking = set(COMMANDS) - ALONE
    assert asking == names(looks) | names(changes)
    assert {verb for command in asking for verb in asked_verbs(command)} == set(VERBS)
    written = "".join(path.read_text() for path in sorted((ROOT / "proxy" / "cli").glob("*.py")))
    asked = re.findall(r'(?:\.ask\(|\bput\(call, |\bchange\(call, )"([a-z-]+)"', written)
    assert set(asked) == set(VERBS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - ALONE))
def test_a_command_is_what_its_verbs_are(command: str) -> None:
    assert options(command) >= COMMON
    changing = any(VERBS[verb].method == "POST" for verb in asked_verbs(command))
    assert (command in names(changes)) is changing
    assert ("--reason" in options(command)) is changing
    assert not changing or next(each for each in COMMANDS[command].params if each.name == "reason").required


@pytest.mark.parametrize("verb", sorted({*VERBS} & {*COMMANDS}))
def test_a_command_says_what_the_table_says(verb: str) -> None:
    assert COMMANDS[verb].help.startswith(VERBS[verb].help)


def test_choices() -> None:
    assert list(EventKind) == [str(kind) for kind in Kind]
    assert list(LogLevel) == list(get_args(questions.LogLevel.model_fields["level"].annotation))


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_is_explained_with_an_example(command: str) -> None:
    explained = re.search(rf"^### {command}\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert explained, f"docs/commands.md has no section {command}"
    examples = re.findall(r"^\$ imap-porter (.*)$", explained[1], re.MULTILINE)
    assert examples
    for example in examples:
        words = example.split()
        assert words[0] == command
        assert {word for word in words if word.startswith("--")} <= options(command)
        assert ("--reason" in words) is (command in names(changes))


def test_nothing_else_is_explained() -> None:
    assert set(re.findall(r"^### (\S+)$", PAGE, re.MULTILINE)) == set(COMMANDS)


def test_options_that_are_named_exist() -> None:
    known = {option for command in COMMANDS for option in options(command)} | {"--help", "--install-completion"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known
