"""`imap-porter events`, `trace` and `top`: what comes while they run."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from typer.testing import Result

from proxy.admin.events import MAX_QUEUED, Kind
from proxy.cli import live, top
from proxy.cli.running import EXIT_REFUSED, EXIT_UNAVAILABLE
from proxy.cli.terminal import EXIT_OK
from tests.admin.houses import LOOKS, FakeHouse, open_house
from tests.cli.asking import asked, command, while_it_runs

WHY = ("--reason", "a riddle")


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Press Ctrl-C once so many events were read."""

    def after(events: int) -> None:
        original = live._next
        left = events

        async def read(connection: Any) -> dict[str, Any]:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return await original(connection)

        monkeypatch.setattr(live, "_next", read)

    return after


async def until_read(house: FakeHouse) -> None:
    while not len(house.hub):  # noqa: ASYNC110 - it is another thread that comes
        await trio.sleep(0.01)


async def happen(house: FakeHouse) -> None:
    """Three events of three kinds."""
    await until_read(house)
    house.hub.publish(Kind.SESSION, "session.opened", id="s1", user="ann\x1b[31m", client="10.0.0.1:2", backend="")
    house.hub.publish(Kind.LIMIT, "limit.reached", limit="connections", action="refuse")
    house.hub.publish(Kind.AUDIT, "admin.changed", verb="drain", reason="new disks")


async def test_events(config: Path, interrupt: Any) -> None:
    interrupt(3)
    result = await while_it_runs(FakeHouse(), config, happen, "events")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    told = [line.split(" ", 1)[1] for line in result.stdout.splitlines()]
    assert told == [
        r"session.opened id=s1 user=ann\x1b[31m client=10.0.0.1:2",
        "limit.reached limit=connections action=refuse",
        'admin.changed verb=drain reason="new disks"',
    ]


async def test_events_of_some_kinds_for_scripts(config: Path, interrupt: Any) -> None:
    interrupt(2)
    result = await while_it_runs(FakeHouse(), config, happen, "events", "--kind", "limit", "--kind", "audit", "--json")
    assert [json.loads(line)["kind"] for line in result.stdout.splitlines()] == ["limit", "audit"]


def test_there_is_no_such_kind(config: Path) -> None:
    result = command("events", "--kind", "weather", "-c", config)
    assert (result.exit_code, "'session'" in result.stderr) == (2, True)


async def test_events_that_came_too_fast(config: Path, interrupt: Any) -> None:
    async def storm(house: FakeHouse) -> None:
        await until_read(house)
        for number in range(MAX_QUEUED + 5):
            house.hub.publish(Kind.SESSION, "session.opened", id=f"s{number}")

    interrupt(3)
    result = await while_it_runs(FakeHouse(), config, storm, "events")
    assert "5 events were lost here: they came faster than they were read" in result.stdout


async def test_a_proxy_that_goes(config: Path) -> None:
    """It reloads, or ends: whoever reads is told."""
    results: list[Result] = []

    async def run() -> None:
        results.append(await trio.to_thread.run_sync(lambda: command("events", "-c", config)))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, open_house(config.with_name("admin.sock"), FakeHouse()) as house:
            nursery.start_soon(run)
            await until_read(house)
    assert (results[0].exit_code, results[0].stdout) == (EXIT_UNAVAILABLE, "")
    assert "the proxy has ended the connection" in results[0].stderr


def test_nobody_is_there(config: Path) -> None:
    for arguments in (("events",), ("trace", "ann", *WHY), ("top",)):
        result = command(*arguments, "-c", config)
        assert result.exit_code == EXIT_UNAVAILABLE
        assert result.stderr == f"the proxy is not running: nobody listens on {config.with_name('admin.sock')}\n"


# --- trace ---


class Traced(FakeHouse):
    """The trace brings three lines, one of them another's."""

    def trace(self, user: str, seconds: float) -> tuple[str, float]:
        begun = super().trace(user, seconds)
        for trace, side, text in (
            ("t1", "note", "PLAIN by users.yaml"),
            ("t0", "client", "another's"),
            ("t1", "client", "a1 NOOP"),
            ("t1", "backend", "a1 OK \x1b[31m"),
        ):
            self.hub.publish(Kind.TRACE, "trace.line", trace=trace, session="s1", side=side, text=text)
        return begun


async def nothing(_house: FakeHouse) -> None: ...


async def test_trace(config: Path, interrupt: Any) -> None:
    interrupt(4)
    house = Traced()
    result = await while_it_runs(house, config, nothing, "trace", "ann", "--for", "5m", *WHY)
    assert result.exit_code == EXIT_OK
    assert [line.split(" ", 1)[1] for line in result.stdout.splitlines()] == [
        "s1 -- PLAIN by users.yaml",
        "s1 C: a1 NOOP",
        r"s1 S: a1 OK \x1b[31m",
    ]
    assert result.stderr.splitlines() == ["tracing ann for 5m; Ctrl-C ends it", "3 lines"]
    assert house.asked == [("trace", "ann", 300.0), ("untrace", "t1")]


async def test_trace_of_an_alias_and_of_a_stranger(config: Path, interrupt: Any) -> None:
    interrupt(4)
    house = Traced()
    house.aliases["Annie"] = "ann"
    house.strangers.add("Annie")
    result = await while_it_runs(house, config, nothing, "trace", "Annie", *WHY)
    first, second, _ = result.stderr.splitlines()
    assert first == "tracing ann for 1m; Ctrl-C ends it"
    assert second == "no source knows ann, or one that would is out: taken as it is spelled"
    assert house.asked[0] == ("trace", "ann", 60.0)


async def test_trace_for_scripts(config: Path, interrupt: Any) -> None:
    interrupt(4)
    result = await while_it_runs(Traced(), config, nothing, "trace", "ann", "--json", *WHY)
    assert [json.loads(line)["side"] for line in result.stdout.splitlines()] == ["note", "client", "backend"]
    assert result.stderr == ""


async def test_a_trace_that_ends_by_itself(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_LINGER_SECONDS", -1.0)  # the shortest trace is one second
    house = FakeHouse()
    result = await while_it_runs(house, config, nothing, "trace", "ann", "--for", "1s", *WHY)
    assert (result.exit_code, result.stdout) == (EXIT_OK, "")
    assert house.asked == [("trace", "ann", 1.0)]


DECLINED = [
    (("ninth",), "too many traces"),
    (("ann", "--for", "2h"), "seconds: Input should be less than or equal to 3600"),
]


@pytest.mark.parametrize(("arguments", "problem"), DECLINED, ids=[row[1] for row in DECLINED])
async def test_no_trace(config: Path, arguments: tuple[str, ...], problem: str) -> None:
    house = FakeHouse()
    result = await while_it_runs(house, config, nothing, "trace", *arguments, *WHY)
    assert (result.exit_code, problem in result.stderr) == (EXIT_REFUSED, True)
    assert "untrace" not in [each[0] for each in house.asked]


# --- top ---


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "ONCE_SECONDS", 0.0)


async def test_top(config: Path) -> None:
    house = FakeHouse()
    result = await asked(house, config, "top", "--once", "--limit", "7")
    assert (result.exit_code, result.stderr) == (EXIT_OK, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][1:] == ["of", "the", "last", "10.0", "s"]
    rates = ["1", "2.0", "3", "B", "4", "B"]
    assert lines[2:] == [
        ["backend", "sessions", "commands/s", "up/s", "down/s"],
        ["d1", *rates],
        [],
        ["command", "per", "second"],
        ["NOOP", "1.0"],
        [],
        ["user", "sessions", "commands/s", "up/s", "down/s"],
        ["alice@example.org", *rates],
    ]
    assert [question.limit for _, question in house.looks] == [1, 7]


async def test_top_for_scripts(config: Path) -> None:
    result = await asked(FakeHouse(), config, "top", "--json")
    assert json.loads(result.stdout) == {"ok": True, **LOOKS["top"]}


async def test_top_of_nobody(config: Path) -> None:
    class Quiet(FakeHouse):
        async def look(self, verb: str, question: Any) -> Mapping[str, Any]:
            return {"seconds": 10.0, "users": [], "backends": [], "commands": []}

    result = await asked(Quiet(), config, "top", "--once")
    assert len(result.stdout.splitlines()) == 1


STRANGERS = [
    (b"", "no answer within 0.3 s"),
    (b"* OK IMAP4rev1 \x1b[31m\r\n", "no answer within 0.3 s"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "HTTP status 200"),
    (b'HTTP/1.1 404 Oh\r\nContent-Length: 25\r\n\r\n{"problem": "no\\u001bno"}', r"no\x1bno"),
]


@pytest.mark.parametrize(("answer", "problem"), STRANGERS)
def test_somebody_else_answers(answer: bytes, problem: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TIMEOUT_SECONDS", 0.3)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            received = b""
            while not received.endswith(b"\r\n\r\n"):
                received += connection.recv(4096)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(config.with_name("admin.sock")))
        listener.listen()
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        result = command("events", "-c", config)
        thread.join(20)
    assert (result.exit_code in (EXIT_UNAVAILABLE, EXIT_REFUSED), result.stdout) == (True, "")
    assert problem in result.stderr
    assert result.stderr.rstrip("\n").isprintable()
