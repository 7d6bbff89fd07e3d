"""`imap-porter backends`, `drain`, `undrain`, `down`, `weight`, against the real API on a real socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.admin.commands import BackendView
from proxy.cli import running
from proxy.cli.running import EXIT_REFUSED, EXIT_UNAVAILABLE, rough_duration
from proxy.cli.terminal import EXIT_OK, EXIT_SETTINGS
from tests.admin.houses import D3, FakeHouse, open_house
from tests.cli.asking import asked, command

Write = Callable[..., Path]

NOWHERE = "no other backend without a tag takes homes; who is placed anew is refused"
CHANGES = [("drain", "d1"), ("undrain", "d1"), ("down", "d1"), ("weight", "d1", "5")]


@pytest.fixture
def path(config: Path) -> Path:
    """Where the proxy would listen."""
    return config.with_name("admin.sock")


async def test_backends(config: Path) -> None:
    result = await asked(FakeHouse(), config, "backends")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    head, first, second = result.stdout.splitlines()
    assert head.split() == ["backend", "pool", "state", "health", "weight", "sessions", "users", "waiting"]
    assert first.split() == ["d1", "up", "up", "for", "3m", "1", "3", "2", "1"]
    assert second.split()[:6] == ["d2", "gold", "up", "down", "for", "12s:"]
    assert r"connect: Connection refused \x1b[31m" in second
    assert second.rstrip().endswith("its users go to their next choice, by DNS")


async def test_backends_for_scripts(config: Path) -> None:
    result = await asked(FakeHouse(), config, "backends", "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["ok"]) == (EXIT_OK, True)
    assert [(each["name"], each["up"], each["pool"]) for each in document["backends"]] == [
        ("d1", True, ""),
        ("d2", False, "gold"),
    ]


CHANGED = [
    (("drain", "d1"), "d1: state drain, was up; 3 sessions of 2 users there", []),
    (
        ("drain", "d1", "--over", "5m"),
        "d1: state drain, was up; 3 sessions of 2 users there; those who are not bound to it move within 5m",
        [("d1", 300.0)],
    ),
    (
        ("drain", "--backend", "d1", "--over", "5m"),
        "d1: state drain, was up; 3 sessions of 2 users there; those who are not bound to it move within 5m",
        [("d1", 300.0)],
    ),
    (
        ("drain", "--backend", "d1"),
        "d1: state drain, was up; 3 sessions of 2 users there; those who are not bound to it move within 30s",
        [("d1", 30.0)],
    ),
    (("undrain", "d2"), "d2: state up, was up; 1 session of 1 user there", []),
    (("down", "d2"), "d2: state down, was up; 1 session of 1 user there", []),
    (("weight", "d1", "7"), "d1: weight 7, was 1; 3 sessions of 2 users there", []),
]


@pytest.mark.parametrize(("arguments", "said", "drains"), CHANGED, ids=[" ".join(row[0]) for row in CHANGED])
async def test_a_change(config: Path, arguments: tuple[str, ...], said: str, drains: list[tuple[str, float]]) -> None:
    house = FakeHouse(D3)
    result = await asked(house, config, *arguments, "--reason", "new disks")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    assert result.stdout.splitlines()[0] == said
    assert "until the proxy starts anew" in result.stdout
    assert house.drains == drains


async def test_a_change_for_scripts(config: Path) -> None:
    house = FakeHouse()
    result = await asked(house, config, "weight", "d1", "0", "--json", "--reason", "new disks")
    document = json.loads(result.stdout)
    assert (document["ok"], document["before"]["weight"], document["after"]["weight"]) == (True, 1, 0)
    assert document["warning"] == NOWHERE
    assert house.views["d1"].weight == 0


@pytest.mark.parametrize(("others", "warned"), [((), True), ((D3,), False)], ids=["alone", "with another"])
async def test_a_warning(config: Path, others: tuple[BackendView, ...], warned: bool) -> None:
    result = await asked(FakeHouse(*others), config, "down", "d1", "--reason", "new disks")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    assert (NOWHERE in result.stdout.splitlines()) is warned


@pytest.mark.parametrize("arguments", CHANGES, ids=[row[0] for row in CHANGES])
def test_a_change_says_why(config: Path, arguments: tuple[str, ...]) -> None:
    result = command(*arguments, "-c", config)
    assert result.exit_code == 2
    assert "--reason" in result.stderr


UNUSABLE = [
    (("drain", "d1", "--over", "5"), "say the unit"),
    (("drain", "d1", "--over", "2d"), "over_seconds: Input should be less than or equal to 86400"),
    (("weight", "d1", "1001"), "equal to 1000"),
    (("weight", "d1", "many"), "valid int"),
    (("down", "d1", "--reason", " "), "reason: String should have at least 1"),
    (("drain", "d1", "--over", "5m"), "no other backend without a tag takes homes; its users would be"),
    (("down", "d9"), 'no such backend: "d9"'),
    (("down", "../route/x"), 'no such backend: "../route/x"'),
    (("down", "\udcff"), "backend: Input should be a valid string"),
]


@pytest.mark.parametrize(("arguments", "problem"), UNUSABLE, ids=[problem for _, problem in UNUSABLE])
async def test_what_cannot_be_done(config: Path, arguments: tuple[str, ...], problem: str) -> None:
    house = FakeHouse()
    result = await asked(house, config, *arguments[:1], "--reason", "x", *arguments[1:])
    assert (result.exit_code, result.stdout) == (EXIT_REFUSED, "")
    assert problem in result.stderr
    assert house.views == FakeHouse().views


async def test_what_cannot_be_done_for_scripts(config: Path) -> None:
    result = await asked(FakeHouse(), config, "down", "d9", "--reason", "x", "--json")
    assert result.exit_code == EXIT_REFUSED
    assert json.loads(result.stdout) == {"ok": False, "problem": 'no such backend: "d9"'}


@pytest.mark.parametrize("names", [(), ("d1", "--backend", "d1")], ids=["none", "two"])
def test_one_backend_is_drained_at_a_time(config: Path, names: tuple[str, ...]) -> None:
    result = command("drain", *names, "--reason", "x", "-c", config)
    assert result.exit_code == 2
    assert "either BACKEND or --backend NAME" in result.stderr


def test_no_socket_in_the_settings(write: Write) -> None:
    config = write([{"backend": {}}])
    result = command("backends", "-c", config)
    assert (result.exit_code, result.stdout) == (EXIT_SETTINGS, "")
    assert f"{config}: admin.socket is not set; add" in result.stderr


def test_mistakes_in_the_settings(write: Write) -> None:
    result = command("backends", "-c", write([{"file": {"path": "none.yaml"}}]))
    assert result.exit_code == EXIT_SETTINGS
    assert "no such file" in result.stderr


def leave_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize("leave", [lambda path: None, leave_dead], ids=["nothing there", "a dead socket"])
def test_not_running(path: Path, config: Path, leave: Callable[[Path], Any]) -> None:
    leave(path)
    result = command("drain", "d1", "--reason", "x", "-c", config)
    assert (result.exit_code, result.stdout) == (EXIT_UNAVAILABLE, "")
    assert result.stderr == f"the proxy is not running: nobody listens on {path}\n"


async def test_another_user(path: Path, config: Path) -> None:
    async with open_house(path, FakeHouse(), uids={4711}):
        result = await trio.to_thread.run_sync(lambda: command("backends", "-c", config))
    assert result.exit_code == EXIT_REFUSED
    assert "only root and the user whom the proxy runs as" in result.stderr


UNKNOWN = "; the change may still be made; look before you ask again"
STRANGERS = [
    (b"* OK IMAP4rev1 \x1b[31m\r\n", "admin.sock: "),
    (b"", "Remote end closed connection"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n[[[[", "no answer of a proxy's"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "no answer of a proxy's"),
    (b"HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\nOh no", "HTTP status 500"),
]


@pytest.mark.parametrize(("answer", "problem"), STRANGERS, ids=[problem for _, problem in STRANGERS])
def test_somebody_else_answers(path: Path, config: Path, answer: bytes, problem: str) -> None:
    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                received = b""
                while not received.endswith(b"}" if received.startswith(b"POST") else b"\r\n\r\n"):
                    received += connection.recv(4096)
                connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        result = command("backends", "-c", config)
        document = json.loads(command("down", "d1", "--reason", "x", "--json", "-c", config).stdout)
        thread.join(20)
    assert (result.exit_code, result.stdout) == (EXIT_UNAVAILABLE, "")
    assert problem in result.stderr
    assert UNKNOWN not in result.stderr
    assert result.stderr.rstrip("\n").isprintable()
    assert (document["ok"], problem in document["problem"]) == (False, True)
    assert document["problem"].endswith(UNKNOWN)


@pytest.mark.parametrize(("arguments", "said"), [(("backends",), ""), (("down", "d1", "--reason", "x"), UNKNOWN)])
def test_nobody_answers(
    path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(running, "TIMEOUT_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        result = command(*arguments, "-c", config)
    assert result.exit_code == EXIT_UNAVAILABLE
    assert result.stderr == f"{path}: no answer within 0.05 s{said}\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119.4, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172799, "47h"), (9e6, "104d")],
)
def test_rough_duration(seconds: float, text: str) -> None:
    assert rough_duration(seconds) == text
