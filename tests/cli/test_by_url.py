"""Commands that ask at the address of a proxy, with a token: what they say who they are, and whom they trust."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from proxy.admin.events import Kind
from proxy.cli import live
from proxy.cli.doors import NoDoor, address_door
from proxy.cli.running import EXIT_REFUSED, EXIT_UNAVAILABLE
from proxy.cli.terminal import EXIT_OK, EXIT_SETTINGS
from tests.admin.houses import OPERATOR, VIEWER, FakeHouse, open_address
from tests.cli.asking import command

WHY = ("--reason", "x")


@asynccontextmanager
async def opened(house: FakeHouse) -> AsyncIterator[tuple[str, str]]:
    async with open_address(house) as endpoint:
        yield ("--url", f"http://{endpoint.host}:{endpoint.port}")


async def by_url(*arguments: str) -> tuple[int, str, str]:
    """Run a command while a house is open at an address."""
    async with opened(FakeHouse()) as url:
        result = await trio.to_thread.run_sync(lambda: command(*arguments, *url))
    return result.exit_code, result.stdout, result.stderr


async def test_a_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAP_PORTER_TOKEN", OPERATOR)
    status, out, err = await by_url("weight", "d1", "7", *WHY, "--json")
    assert (status, err, json.loads(out)["after"]["weight"]) == (EXIT_OK, "", 7)


async def test_a_token_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAP_PORTER_TOKEN", "another")
    file = tmp_path / "token"
    file.write_text(f"{VIEWER}\nits hash\n")
    status, out, err = await by_url("backends", "--token-file", str(file))
    assert (status, err, "d1" in out) == (EXIT_OK, "", True)
    status, out, err = await by_url("kick", "--user", "ann", *WHY, "--token-file", str(file))
    assert (status, out, err) == (EXIT_REFUSED, "", "office is a viewer, and this is for an operator\n")
    status, out, err = await by_url("trace", "ann", *WHY, "--token-file", str(file))
    assert (status, out, err) == (EXIT_REFUSED, "", "office is a viewer, and traces are for an operator\n")


async def test_a_wrong_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAP_PORTER_TOKEN", "wrong")
    for arguments in (("who",), ("events",), ("route", "alice@example.org")):
        assert await by_url(*arguments) == (EXIT_REFUSED, "", "nobody has this token\n")


async def test_route_asks_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAP_PORTER_TOKEN", OPERATOR)
    status, out, _ = await by_url("route", "alice@example.org", "--json")
    assert (status, json.loads(out)["running"]) == (EXIT_OK, True)


async def test_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAP_PORTER_TOKEN", OPERATOR)
    original = live._next

    async def read_one(connection: object) -> dict[str, object]:
        monkeypatch.setattr(live, "_next", _interrupt)
        return await original(connection)  # type: ignore[arg-type]

    monkeypatch.setattr(live, "_next", read_one)
    house, results = FakeHouse(), []

    async def run() -> None:
        results.append(await trio.to_thread.run_sync(lambda: command("events", "--json", *url)))

    with trio.fail_after(20):
        async with opened(house) as url, trio.open_nursery() as nursery:
            nursery.start_soon(run)
            while not len(house.hub):  # noqa: ASYNC110 - it is another thread that comes
                await trio.sleep(0.01)
            house.hub.publish(Kind.BACKEND, "backend.went_down", backend="d1")
    assert (results[0].exit_code, results[0].stderr) == (EXIT_OK, "")
    assert json.loads(results[0].stdout)["backend"] == "d1"


async def _interrupt(_connection: object) -> None:
    raise KeyboardInterrupt


# --- what is not sent ---

NO_DOOR = [
    ("http://imap.example.org:9143", "everybody on the way could read the token"),
    ("imap.example.org:9143", "expected https://HOST:PORT"),
    ("ftp://imap.example.org", "expected https://HOST:PORT"),
    ("https://", "expected https://HOST:PORT"),
    ("https://imap.example.org:99999", "expected https://HOST:PORT"),
    ("https://imap.example.org/v1", "expected https://HOST:PORT"),
    ("https://ann:secret@imap.example.org", "expected https://HOST:PORT"),
    ("https://imäp.example.org", "expected https://HOST:PORT"),
    ("https://imap.example.org\x1b", "expected https://HOST:PORT"),
]


@pytest.mark.parametrize(("url", "problem"), NO_DOOR)
def test_no_such_door(url: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAP_PORTER_TOKEN", OPERATOR)
    result = command("status", "--url", url)
    assert (result.exit_code, result.stdout) == (EXIT_SETTINGS, "")
    assert problem in result.stderr
    assert "secret" not in result.stderr


def test_no_token() -> None:
    result = command("status", "--url", "http://127.0.0.1:1")
    assert (result.exit_code, "takes a token" in result.stderr) == (EXIT_SETTINGS, True)
    result = command("status", "--url", "http://127.0.0.1:1", "--token-file", "/nowhere")
    assert (result.exit_code, result.stderr) == (EXIT_SETTINGS, "--token-file /nowhere: No such file or directory\n")


@pytest.mark.parametrize("content", [b"", b"\n", b"two words\n", b"\xff\n", b"x" * 513, b"a\x1b\n"])
def test_no_token_in_the_file(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(NoDoor) as caught:
        address_door("https://localhost", file, None)
    assert str(caught.value) == f"--token-file {file}: no token is there, as `hash-password --token` prints them"


def test_a_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAP_PORTER_TOKEN", "very-secret")
    assert "very-secret" not in repr(address_door("https://[::1]:9143", None, None))


def test_whom_to_trust(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAP_PORTER_TOKEN", OPERATOR)
    result = command("status", "--url", "https://localhost", "--ca", str(tmp_path / "ca.pem"))
    assert (result.exit_code, "No such file" in result.stderr) == (EXIT_SETTINGS, True)


@pytest.mark.parametrize("arguments", [("status",), ("route", "ann"), ("events",)], ids=" ".join)
def test_nobody_is_there(arguments: tuple[str, ...], dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAP_PORTER_TOKEN", OPERATOR)
    url = f"https://127.0.0.1:{dead_port}"
    result = command(*arguments, "--url", url)
    assert (result.exit_code, result.stderr) == (EXIT_UNAVAILABLE, f"{url}: nobody listens there\n")


@pytest.mark.parametrize("arguments", [("status",), ("events",)], ids=" ".join)
def test_somebody_who_says_nothing(arguments: tuple[str, ...], mute_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAP_PORTER_TOKEN", OPERATOR)
    monkeypatch.setattr("proxy.cli.running.TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(live, "TIMEOUT_SECONDS", 0.05)
    for scheme in ("http", "https"):
        result = command(*arguments, "--url", f"{scheme}://127.0.0.1:{mute_port}")
        assert result.exit_code == EXIT_UNAVAILABLE
        assert "within 0.05 s" in result.stderr or "in time" in result.stderr


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("IMAP_PORTER_TOKEN", OPERATOR)
    monkeypatch.setattr(socket, "create_connection", unknown)
    result = command("status", "--url", "https://imap.example.org")
    assert (result.exit_code, result.stderr) == (
        EXIT_UNAVAILABLE,
        "https://imap.example.org: Name or service not known\n",
    )
