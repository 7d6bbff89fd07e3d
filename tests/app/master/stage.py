"""A master in a process of its own, with children who are fakes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from proxy.app.start import serve_with
from proxy.app.succession import Patience
from tests.app.master.fake_roles import PATIENCE, ROLES
from tests.servers.ports import LOOPBACK

SECONDS = 15


def settings_of(port: int, **changes: Any) -> dict[str, Any]:
    """The least that a master can be started with."""
    listener = {"address": f"{LOOPBACK}:{port}", "tls": "none", "trusted_networks": ["127.0.0.0/8"]}
    return {
        "version": 1,
        "workers": 2,
        "listeners": [listener],
        "identity": [{"backend": {}}],
        "backends": {"servers": [{"name": "dovecot-1", "url": f"imap://{LOOPBACK}:9"}]},
        **changes,
    }


class Mastered:
    """A master that runs."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        orders: Mapping[str, list[str]] | None = None,
        environment: Mapping[str, str] | None = None,
        executed: bool = False,
        patience: Patience = PATIENCE,
        descriptors: list[socket.socket] | None = None,
    ) -> None:
        """Start it.

        Args:
            orders: For the children, by name.
            executed: As a program, rather than as a fork of this one: only such a one can be upgraded.
            descriptors: Left to it as a service manager leaves them, from number 3 on.
        """
        self.folder = folder
        self.config = folder / "porter.yaml"
        self._log = folder / "log"
        self.write(settings)
        self.order(orders or {})
        self._status: int | None = None
        with self._log.open("wb") as output:
            if executed:
                program = str(Path(__file__).with_name("fake_roles.py"))
                command = [sys.executable, program, "serve", "-c", str(self.config)]
                environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environment or {})}
                self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environ)
                self.pid = self._process.pid
                return
            self.pid = os.fork()
            if self.pid == 0:
                self._become(output.fileno(), patience, dict(environment or {}), descriptors or [])

    def _become(
        self, output: int, patience: Patience, environment: dict[str, str], descriptors: list[socket.socket]
    ) -> None:
        status = 99
        try:
            for number in (1, 2):
                os.dup2(output, number)
            for number, sock in enumerate(descriptors, 3):
                os.dup2(os.dup(sock.fileno()), number)
            if descriptors:
                environment |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(descriptors))}
            status = serve_with(self.config, ROLES, patience, environment)
        finally:
            os._exit(status)

    # --- what it is told ---

    def write(self, settings: Mapping[str, Any]) -> None:
        self.config.write_text(json.dumps(settings, indent=1))  # which is YAML, and has no aliases

    def order(self, orders: Mapping[str, list[str]]) -> None:
        (self.folder / "orders.json").write_text(json.dumps(orders))

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def reload(self, settings: Mapping[str, Any] | None = None, result: str = "settings.reloaded") -> dict[str, Any]:
        """Have the settings read anew, and wait for the result."""
        count = len(self.log(result))
        if settings is not None:
            self.write(settings)
        self.send(signal.SIGHUP)
        line = self.wait_for(result, count + 1)[-1]
        if result == "settings.reloaded":
            self.wait_until_accepting(line["generation"], line["workers"])
        return line

    # --- what it does ---

    def log(self, event: str = "", **values: Any) -> list[dict[str, Any]]:
        lines = [line for line in self._log.read_text().split("\n")[:-1] if line.startswith("{")]
        found = [json.loads(line) for line in lines]
        return [line for line in found if event in ("", line["event"]) and values.items() <= line.items()]

    def wait_for(self, event: str, count: int = 1, **values: Any) -> list[dict[str, Any]]:
        """The lines with this event and these values, once there are so many."""
        self.wait_until(lambda: len(self.log(event, **values)) >= count, f"{count} {event} {values}")
        return self.log(event, **values)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > deadline or (self.ended() and not condition()):
                raise AssertionError(f"no {what} in:\n{self._log.read_text()}")
            time.sleep(0.01)

    def wait_for_children(self, event: str, count: int) -> None:
        """As wait_for(), when the master itself is gone."""
        deadline = time.monotonic() + SECONDS
        while len(self.log(event)) < count:
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)

    def wait_until_accepting(self, generation: int = 1, workers: int = 2) -> None:
        """All workers of a generation accept."""

        def heard() -> bool:
            lines = self.log("fake.heard", message=["accept"])
            return sum(line["process"].startswith(f"w{generation}.") for line in lines) >= workers

        self.wait_until(heard, f"{workers} accepting workers of generation {generation}")

    def heard(self, process: str) -> list[list[Any]]:
        """What a child has been told, without news of metrics and status."""
        lines = self.log("fake.heard", process=process)
        return [line["message"] for line in lines if line["message"][0] not in ("metrics", "status")]

    def pids(self) -> dict[str, int]:
        """The children that live, by name."""
        started = {line["process"]: line["pid"] for line in self.log("process.started")}
        gone = {line["pid"] for line in (*self.log("process.died"), *self.log("process.ended"))}
        return {name: pid for name, pid in started.items() if pid not in gone}

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a child a signal. Gives its number."""
        pid = self.pids()[name]
        os.kill(pid, number)
        return pid

    def ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
                if hasattr(self, "_process"):
                    self._process.returncode = self._status
        return self._status is not None

    def exit_status(self) -> int:
        """Wait for its end."""
        deadline = time.monotonic() + SECONDS
        while not self.ended():
            if time.monotonic() > deadline:
                raise AssertionError(f"still alive:\n{self._log.read_text()}")
            time.sleep(0.01)
        assert self._status is not None
        return self._status

    def output(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        if not self.ended():
            self.send(signal.SIGTERM)
        return self.exit_status()

    def close(self) -> None:
        """Nobody survives a test."""
        for pid in (self.pid, *self.pids().values()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.exit_status()


class Caller:
    """A client who hears who answers."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        """Connect; whether anybody accepts is another matter."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(SECONDS)
        self._lines = self.socket.makefile("rb")
        try:
            self.socket.connect(address)
        except OSError:
            self.close()
            raise

    def line(self) -> str:
        return self._lines.readline().decode().rstrip("\n")

    def name(self) -> str:
        """Who says hello."""
        return self.line().split(" ")[0]

    def is_heard(self) -> bool:
        """Whether the session lives."""
        self.socket.sendall(b"hello\n")
        return self.line() == "hello"

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


def who_answers(port: int, visits: int = 40) -> set[str]:
    """Everybody who accepts there, as far as so many visits tell."""
    found = set()
    for _ in range(visits):
        caller = Caller((LOOPBACK, port))
        found.add(caller.name())
        caller.close()
    return found


def refuses(port: int) -> bool:
    """Whether nobody listens."""
    try:
        Caller((LOOPBACK, port)).close()
    except ConnectionRefusedError:
        return True
    return False
