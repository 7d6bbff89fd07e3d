"""The commands as an operator runs them: processes, on a real proxy with two backends and people who have sessions."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.pki import Pki
from tests.servers.porter import Porter, porter_settings, wait_for
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.wire import Wire

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "proxy")
NAMES = ("d1", "d2")
WHY = ("--reason", "a test")
SECONDS = 30


@pytest.fixture(scope="module")
def sinks(ports: Ports) -> Iterator[dict[str, str]]:
    """Two cheap backends that let everybody in."""
    taken = {name: ports.take() for name in NAMES}
    command = [sys.executable, "-m", "tests.servers.sink"]
    running = [subprocess.Popen([*command, str(port)], cwd=ROOT) for port in taken.values()]
    try:
        wait_until_listening(set(taken.values()), 20, lambda: None)
        yield {name: f"imap://{LOOPBACK}:{port}" for name, port in taken.items()}
    finally:
        for each in running:
            each.kill()
            each.wait()


@pytest.fixture(scope="module")
def token() -> tuple[str, str]:
    """A token and its hash, as the program makes them."""
    made = subprocess.run(
        [*COMMAND, "hash-password", "--token"], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    token, hashed = made.stdout.splitlines()
    return token, hashed


class Stage:
    """A proxy, its settings file, and people."""

    def __init__(self, porter: Porter, admin_port: int, token: str) -> None:
        self.porter = porter
        self.url = f"https://localhost:{admin_port}"
        self.token = token
        self.wires: list[Wire] = []

    @property
    def door(self) -> tuple[str, ...]:
        return ("-c", str(self.porter.folder / "porter.yaml"))

    def log_in(self, user: str) -> Wire:
        wire = Wire.connect(self.porter.imaps_port, self.porter.pki.client_context())
        self.wires.append(wire)
        answer = wire.login(user, "any-pass-will-do-8k")
        assert answer.startswith(b"OK"), answer
        return wire

    def run(self, *words: str, status: int = 0) -> str:
        """Run a command; its output."""
        done = subprocess.run(
            [*COMMAND, *words, *self.door], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ask(self, *words: str) -> dict[str, Any]:
        return json.loads(self.run(*words, "--json"))  # type: ignore[no-any-return]

    def backend_of(self, user: str) -> str:
        """Where he has sessions; "": he has none."""
        found = self.ask("who", "--user", user)["sessions"]
        return "" if not found else found[0]["backend"]

    def leave(self) -> None:
        for wire in self.wires:
            wire.close()


@pytest.fixture(scope="module")
def stage(sinks: dict[str, str], pki: Pki, ports: Ports, folder: Path, token: tuple[str, str]) -> Iterator[Stage]:
    settings, taken = porter_settings(pki, sinks, ports)
    taken["admin"] = ports.take()
    home = Path(tempfile.mkdtemp(prefix="cli-", dir=folder))
    settings["admin"] = {
        "socket": str(home / "admin.sock"),
        "address": f"{LOOPBACK}:{taken['admin']}",
        "tls": {"certificate": str(pki.certificate), "private_key": str(pki.private_key)},
        "tokens": [{"name": "ops", "role": "operator", "hash": token[1]}],
    }
    settings["routing"] = {"move_delay": "0s", "sticky": "0s"}
    porter = Porter(home, settings, pki, taken)
    stage = Stage(porter, taken["admin"], token[0])
    try:
        yield stage
        stage.leave()
        porter.stop()
    finally:
        porter.kill()


@pytest.fixture
def live(stage: Stage) -> Iterator[Callable[..., Live]]:
    """Run commands that go on until somebody ends them."""
    running: list[Live] = []

    def start(*words: str) -> Live:
        running.append(Live([*COMMAND, *words, *stage.door]))
        return running[-1]

    yield start
    for each in running:
        each.close()


class Live:
    """A command that prints while it runs."""

    def __init__(self, command: list[str]) -> None:
        self.lines: list[str] = []
        # Where the tests' own shell ignores interrupts, as one does in the background, what it starts would as well.
        ours = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
        finally:
            signal.signal(signal.SIGINT, ours)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)

    def wait_for(self, *words: str) -> str:
        """The first line that holds all of these."""

        def found() -> list[str]:
            return [line for line in self.lines if all(word in line for word in words)]

        assert wait_for(lambda: bool(found()), SECONDS), (words, self.lines)
        return found()[0]

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self._process.send_signal(signal.SIGINT)
        status = self._process.wait(SECONDS)
        self._thread.join(SECONDS)
        return status

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(SECONDS)
        self._thread.join(SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()


def test_who_and_explain(stage: Stage) -> None:
    stage.log_in("ann")
    stage.log_in("ann")
    assert [each["user"] for each in stage.ask("who", "--user", "ann")["sessions"]] == ["ann", "ann"]
    assert {each["user"]: each["sessions"] for each in stage.ask("who", "--users")["users"]}["ann"] == 2
    first = stage.ask("who", "--user", "ann", "--limit", "1")
    assert (len(first["sessions"]), first["total"]) == (1, 2)
    details = stage.ask("session", first["sessions"][0]["id"])
    assert (details["user"], details["state"]) == ("ann", "open")
    explained = stage.ask("explain", "ann")
    assert len(explained["sessions"]) == 2
    assert "ann" in stage.run("explain", "ann")
    assert "2 sessions" in stage.run("who", "--user", "ann")


def test_status(stage: Stage) -> None:
    # The master tells the steward of the processes a moment after they have begun.
    assert wait_for(lambda: [each["workers"] for each in stage.ask("status")["generations"]] == [2], SECONDS)
    answer = stage.ask("status")
    assert answer["caller"] == {"name": f"uid {os.getuid()}", "role": "operator"}
    assert all(each["since"] > 0 for each in answer["processes"])
    assert answer["generations"][0]["since"] > 0
    assert "generation" in stage.run("status")


def test_what_is_set(stage: Stage) -> None:
    assert stage.token not in stage.run("settings", "--all")
    assert "admin.socket" in stage.run("settings")
    assert "connections_per_user" in stage.run("limits")
    assert stage.ask("figures")["sessions"] >= 0


def test_kick(stage: Stage) -> None:
    wire = stage.log_in("karl")
    assert "1 session told to end" in stage.run("kick", "--user", "karl", *WHY)
    assert b"* BYE" in wire.rest()
    assert stage.run("kick", "--session", "gone", *WHY, status=2)


def test_move_and_release(stage: Stage) -> None:
    wire = stage.log_in("mia")
    before = stage.backend_of("mia")
    (other,) = {*NAMES} - {before}
    assert "1 session will move there" in stage.run("move", "mia", other, "--for", "1h", *WHY)
    assert b"* BYE" in wire.rest()
    stage.log_in("mia")
    assert stage.backend_of("mia") == other
    orders = stage.ask("explain", "mia")["directions"]
    assert (orders["backend"], orders["reason"], orders["by"]) == (other, "a test", f"uid {os.getuid()}")
    assert f"was moved to {other}" in stage.run("release", "mia", *WHY)
    assert "neither moved nor held" in stage.run("release", "mia", *WHY, status=2)


def test_hold_and_release(stage: Stage) -> None:
    wire = stage.log_in("hugo")
    assert "hugo is held" in stage.run("hold", "hugo", *WHY)
    assert b"* BYE" in wire.rest()
    with Wire.connect(stage.porter.imaps_port, stage.porter.pki.client_context()) as refused:
        assert refused.login("hugo", "any-pass-will-do-8k").startswith(b"NO [UNAVAILABLE]")
    assert "held until released" in stage.run("explain", "hugo")
    assert "hugo is released; was held" in stage.run("release", "hugo", *WHY)
    stage.log_in("hugo")


def test_drain(stage: Stage) -> None:
    assert stage.ask("drain", "d1", *WHY)["after"]["state"] == "drain"
    try:
        stage.log_in("dora")
        assert stage.backend_of("dora") == "d2"
    finally:
        assert stage.ask("undrain", "d1", *WHY)["after"]["state"] == "up"
    assert stage.ask("weight", "d2", "3", *WHY)["after"]["weight"] == 3
    assert stage.ask("weight", "d2", "1", *WHY)["after"]["weight"] == 1


def test_events(stage: Stage, live: Callable[..., Live]) -> None:
    seen = live("events", "--kind", "session", "--kind", "audit", "--json")
    # That somebody reads is known when the first change is seen.
    assert wait_for(lambda: bool(stage.ask("weight", "d1", "1", *WHY)) and bool(seen.lines), SECONDS)
    stage.log_in("emil").command(b"LOGOUT")
    opened = json.loads(seen.wait_for("session.opened", "emil"))
    closed = json.loads(seen.wait_for("session.closed", "emil"))
    assert (opened["kind"], opened["id"]) == ("session", closed["id"])
    audited = json.loads(seen.wait_for("admin.changed"))
    assert (audited["verb"], audited["reason"]) == ("weight", "a test")
    assert seen.interrupt() == 0


@pytest.mark.parametrize("further", [(), ("--json",)], ids=["for people", "for scripts"])
def test_who_has_read_enough_leaves(stage: Stage, further: tuple[str, ...]) -> None:
    events = " ".join([*COMMAND, "events", "--kind", "audit", *further, *stage.door])
    shell = Live(["bash", "-c", f'{events} | head -1; echo "status ${{PIPESTATUS[0]}}"'])
    try:
        assert wait_for(lambda: bool(stage.ask("weight", "d1", "1", *WHY)) and len(shell.lines) > 1, SECONDS)
        assert "weight" in shell.lines[0]
        assert shell.lines[1:] == ["status 0\n"]
    finally:
        shell.close()


def test_trace(stage: Stage, live: Callable[..., Live]) -> None:
    wire = stage.log_in("tom")
    traced = live("trace", "tom", "--for", "5m", *WHY)
    traced.wait_for("tracing tom for 5m")
    assert wire.command(b"NOOP")[-1].split()[1] == b"OK"
    traced.wait_for("C:", "NOOP")
    traced.wait_for("S:", "OK")
    assert traced.interrupt() == 0
    (line,) = stage.porter.wait_for_log("admin.changed", verb="untrace")
    assert "any-pass" not in "".join(traced.lines)
    assert line["reason"] == "a test"


def test_top(stage: Stage) -> None:
    wire, busy = stage.log_in("tina"), threading.Event()

    def keep_busy() -> None:
        while not busy.wait(0.01):
            wire.command(b"NOOP")

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        rates = stage.ask("top")
        shown = stage.run("top", "--once")
    finally:
        busy.set()
        thread.join(SECONDS)
    assert next(each for each in rates["users"] if each["user"] == "tina")["commands_per_second"] > 1
    assert "NOOP" in [each["command"] for each in rates["commands"]]
    assert "commands/s" in shown
    assert "tina" in shown


def test_top_in_a_terminal(stage: Stage) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "top", *stage.door], stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    try:
        while b"of the last" not in shown:
            shown += os.read(ours, 4096)
        os.write(ours, b"q")
        try:
            while os.read(ours, 4096):
                pass
        except OSError:
            pass  # so a terminal tells that nobody is there any more
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait(SECONDS)
        os.close(ours)


def test_log_level_and_reload(stage: Stage) -> None:
    assert "was info" in stage.run("log-level", "warning", *WHY)
    assert "was warning" in stage.run("log-level", "info", *WHY)
    assert stage.ask("reload", *WHY)["reloaded"]
    assert wait_for(lambda: stage.ask("status")["generation"] == 2, SECONDS)


def test_from_another_machine(stage: Stage, pki: Pki, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{stage.token}\n")

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words, "--url", stage.url],
            capture_output=True, text=True, timeout=SECONDS, check=False, env={**os.environ, **environment},
        )  # fmt: skip

    by_file = run("backends", "--json", "--ca", str(pki.ca), "--token-file", str(token))
    assert [each["name"] for each in json.loads(by_file.stdout)["backends"]] == list(NAMES), by_file.stderr
    by_variable = run("drain", "--backend", "d2", *WHY, "--ca", str(pki.ca), IMAP_PORTER_TOKEN=stage.token)
    assert "move within 2s" in by_variable.stdout, by_variable.stderr
    assert run("undrain", "d2", *WHY, "--ca", str(pki.ca), IMAP_PORTER_TOKEN=stage.token).returncode == 0
    wrong = run("backends", "--ca", str(pki.ca), IMAP_PORTER_TOKEN="wrong")
    assert (wrong.returncode, wrong.stderr) == (2, "nobody has this token\n")
    stranger = run("backends", IMAP_PORTER_TOKEN=stage.token)
    assert (stranger.returncode, "certificate" in stranger.stderr) == (3, True)
    assert stage.porter.wait_for_log("admin.changed", verb="drain", caller="ops")


def test_completion(stage: Stage) -> None:
    words = f"imap-porter drain -c {stage.porter.folder / 'porter.yaml'} d"
    environment = {"_IMAP_PORTER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
    program = Path(sys.executable).parent / "imap-porter"
    done = subprocess.run(
        [program], capture_output=True, text=True, timeout=SECONDS, check=False, env={**os.environ, **environment}
    )
    assert done.stdout.split() == list(NAMES), done.stderr
