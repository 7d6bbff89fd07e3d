"""`imap-porter status` and `reload`, against the real API on a real socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from typer.testing import CliRunner, Result

from proxy.cli import processes
from proxy.cli.main import app
from proxy.cli.running import EXIT_REFUSED, EXIT_UNAVAILABLE
from proxy.cli.terminal import EXIT_OK, EXIT_SETTINGS
from tests.admin.houses import STATUS, FakeHouse, open_house

Write = Callable[..., Path]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@pytest.fixture
def config(write: Write, path: Path) -> Path:
    return write([{"backend": {}}], admin={"socket": str(path)})


def command(config: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(app, [*arguments, "-c", str(config)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


async def asked(path: Path, house: FakeHouse, config: Path, *arguments: str) -> Result:
    """Run a command while the house is open."""
    async with open_house(path, house):
        return await trio.to_thread.run_sync(lambda: command(config, *arguments))


async def test_status(path: Path, config: Path) -> None:
    result = await asked(path, FakeHouse(), config, "status")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    first, last, head, worker, steward = result.stdout.splitlines()
    assert first == "imap-porter 1.2.3, generation 3"
    assert last.startswith("last reload: rejected, ")
    assert last.endswith(r" ago: porter.yaml:3: \x1b[31m")
    assert head.split() == ["process", "role", "generation", "pid", "state", "restarts", "sessions"]
    assert worker.split() == ["w3.1", "worker", "3", "102", "accepting", "1", "7"]
    assert steward.split() == ["s3", "steward", "3", "101", "accepting", "0"]


async def test_status_for_scripts(path: Path, config: Path) -> None:
    result = await asked(path, FakeHouse(), config, "status", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (EXIT_OK, {"ok": True, **STATUS})


async def test_reload(path: Path, config: Path) -> None:
    house = FakeHouse()
    result = await asked(path, house, config, "reload")
    assert (result.exit_code, result.stdout, result.stderr) == (EXIT_OK, "generation 4; changed: workers\n", "")
    assert house.reloads == 1


async def test_what_the_proxy_does_not_take_is_told(path: Path, config: Path) -> None:
    house = FakeHouse()
    house.mistakes = "porter.yaml:3: one\nporter.yaml:4: two"
    result = await asked(path, house, config, "reload")
    assert (result.exit_code, result.stdout) == (EXIT_REFUSED, "")
    assert result.stderr == "porter.yaml:3: one\nporter.yaml:4: two\n"


async def test_reload_for_scripts(path: Path, config: Path) -> None:
    house = FakeHouse()
    result = await asked(path, house, config, "reload", "--json")
    assert json.loads(result.stdout) == {"ok": True, "reloaded": "generation 4; changed: workers"}
    house.mistakes = "no"
    result = await asked(path, house, config, "reload", "--json")
    assert json.loads(result.stdout) == {"ok": False, "problem": "no"}


def test_mistakes_are_found_without_the_proxy(write: Write) -> None:
    result = command(write([{"file": {"path": "none.yaml"}}]), "reload")
    assert result.exit_code == EXIT_SETTINGS
    assert "no such file" in result.stderr


def test_not_running(path: Path, config: Path) -> None:
    result = command(config, "reload")
    assert (result.exit_code, result.stderr) == (
        EXIT_UNAVAILABLE,
        f"the proxy is not running: nobody listens on {path}\n",
    )


def test_nobody_answers(path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_RELOAD_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        result = command(config, "reload")
    assert result.exit_code == EXIT_UNAVAILABLE
    assert result.stderr.startswith(f"{path}: no answer within 0.05 s; it may still happen; ")
