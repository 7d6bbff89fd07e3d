"""What a shell is told at Tab, and how little that may take."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.cli import completion
from tests.admin.houses import FakeHouse, open_house
from tests.cli.asking import command


def complete(config: Path, line: str) -> list[str]:
    """What a shell would offer for the last word."""
    words = line.replace("CONFIG", str(config))
    number = len(words.split(" ")) - 1
    environment = {"_IMAP_PORTER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        result = command()
    assert result.stderr == ""
    return result.stdout.split()


BACKENDS = [
    ("imap-porter drain -c CONFIG ", ["d1", "d2"]),
    ("imap-porter down -c CONFIG d2", ["d2"]),
    ("imap-porter kick -c CONFIG --backend d", ["d1", "d2"]),
    ("imap-porter move -c CONFIG ann d", ["d1", "d2"]),
    ("imap-porter who -c CONFIG --backend x", []),
    ("imap-porter drain -c /nowhere.yaml ", []),
    ("imap-porter drain --url http://imap.example.org ", []),
]


@pytest.mark.parametrize(("line", "offered"), BACKENDS, ids=[row[0] for row in BACKENDS])
async def test_backends(line: str, offered: list[str], config: Path) -> None:
    async with open_house(config.with_name("admin.sock"), FakeHouse()):
        assert await trio.to_thread.run_sync(lambda: complete(config, line)) == offered


WORDS = [
    ("imap-porter und", ["undrain"]),
    ("imap-porter log-level w", ["warning"]),
    ("imap-porter events --kind a", ["audit"]),
]


@pytest.mark.parametrize(("line", "offered"), WORDS, ids=[row[0] for row in WORDS])
def test_words(line: str, offered: list[str], config: Path) -> None:
    assert complete(config, line) == offered


def test_nobody_runs(config: Path) -> None:
    assert complete(config, "imap-porter drain -c CONFIG ") == []


def test_nobody_answers(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one who answers octet by octet keep anybody waiting."""
    monkeypatch.setattr(completion, "PATIENCE_SECONDS", 0.1)
    over = threading.Event()

    def trickle() -> None:
        connection, _ = listener.accept()
        with connection:
            while not over.wait(0.02):
                connection.sendall(b"H")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(config.with_name("admin.sock")))
        listener.listen()
        listener.settimeout(20)
        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert complete(config, "imap-porter drain -c CONFIG ") == []
        finally:
            over.set()
            thread.join(20)


async def test_names_that_are_no_words(config: Path) -> None:
    class Odd(FakeHouse):
        async def look(self, verb: str, question: Any) -> Mapping[str, Any]:
            return {"backends": [{"name": "d\x1b[31m"}, {"name": "d1"}]}

    async with open_house(config.with_name("admin.sock"), Odd()):
        offered = await trio.to_thread.run_sync(lambda: complete(config, "imap-porter drain -c CONFIG "))
    assert offered == ["d1"]


def test_help_imports_little() -> None:
    """It is what a shell starts for each Tab."""
    heavy = "{'pydantic', 'trio', 'rich', 'starlette', 'yaml', 'http.client'}"
    build = "import sys, proxy.cli.main, typer.main; typer.main.get_command(proxy.cli.main.app)"
    code = f"{build}; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ)
    )
    assert done.stdout == "set()\n"
