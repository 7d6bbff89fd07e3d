"""`imap-porter status` and `reload`, against the real API on a real socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.cli import processes
from proxy.cli.running import EXIT_REFUSED, EXIT_UNAVAILABLE
from proxy.cli.terminal import EXIT_OK, EXIT_SETTINGS
from tests.admin.houses import LOOKS, STATUS, FakeHouse
from tests.cli.asking import asked, command

Write = Callable[..., Path]


@pytest.fixture
def path(config: Path) -> Path:
    """Where the proxy would listen."""
    return config.with_name("admin.sock")


async def test_status(config: Path) -> None:
    result = await asked(FakeHouse(), config, "status")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    first, fleet, last, head, worker, steward, empty, generations, generation = result.stdout.splitlines()
    assert first == "imap-porter 1.2.3, generation 3"
    assert fleet == r"fleet: a goes on alone: redis://\x1b[31m: no answer in time"
    assert last.startswith("last reload: rejected, ")
    assert last.endswith(r" ago: porter.yaml:3: \x1b[31m")
    assert head.split() == ["process", "role", "generation", "pid", "state", "restarts", "sessions"]
    assert worker.split() == ["w3.1", "worker", "3", "102", "accepting", "1", "7"]
    assert steward.split() == ["s3", "steward", "3", "101", "accepting", "0"]
    assert (empty, generations.split()) == ("", ["generation", "state", "since", "workers", "sessions"])
    assert generation.split()[:2] + generation.split()[-2:] == ["3", "current", "1", "7"]


async def test_status_for_scripts(config: Path) -> None:
    result = await asked(FakeHouse(), config, "status", "--json")
    expected = {"ok": True, **STATUS, **LOOKS["generations"]}
    document = json.loads(result.stdout)
    assert (result.exit_code, {key: document[key] for key in expected}) == (EXIT_OK, expected)


async def test_reload(config: Path) -> None:
    house = FakeHouse()
    result = await asked(house, config, "reload", "--reason", "new")
    assert (result.exit_code, result.stdout, result.stderr) == (EXIT_OK, "generation 4; changed: workers\n", "")
    assert house.reloads == 1


async def test_what_the_proxy_does_not_take_is_told(config: Path) -> None:
    house = FakeHouse()
    house.mistakes = "porter.yaml:3: one\nporter.yaml:4: two"
    result = await asked(house, config, "reload", "--reason", "new")
    assert (result.exit_code, result.stdout) == (EXIT_REFUSED, "")
    assert result.stderr == "porter.yaml:3: one\nporter.yaml:4: two\n"


async def test_reload_for_scripts(config: Path) -> None:
    house = FakeHouse()
    result = await asked(house, config, "reload", "--reason", "new", "--json")
    assert json.loads(result.stdout) == {"ok": True, "reloaded": "generation 4; changed: workers", "warning": ""}
    house.mistakes = "no"
    result = await asked(house, config, "reload", "--reason", "new", "--json")
    assert json.loads(result.stdout) == {"ok": False, "problem": "no"}


def test_mistakes_are_found_without_the_proxy(write: Write) -> None:
    result = command("reload", "--reason", "new", "-c", write([{"file": {"path": "none.yaml"}}]))
    assert result.exit_code == EXIT_SETTINGS
    assert "no such file" in result.stderr


def test_not_running(config: Path, path: Path) -> None:
    result = command("reload", "--reason", "new", "-c", config)
    assert (result.exit_code, result.stderr) == (
        EXIT_UNAVAILABLE,
        f"the proxy is not running: nobody listens on {path}\n",
    )


def test_nobody_answers(path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_RELOAD_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        result = command("reload", "--reason", "new", "-c", config)
    assert result.exit_code == EXIT_UNAVAILABLE
    assert result.stderr.startswith(f"{path}: no answer within 0.05 s; it may still happen; ")


async def test_log_level(config: Path) -> None:
    house = FakeHouse()
    result = await asked(house, config, "log-level", "debug", "--reason", "a riddle")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    assert result.stdout == "all processes log at debug, was info, until the next reload\n"
    assert house.asked == [("log-level", "debug")]
