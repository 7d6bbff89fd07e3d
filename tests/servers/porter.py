"""The product as an administrator runs it: a settings file, a process, its log and its metrics."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.servers.accounts import SECRETS, USERS
from tests.servers.pki import Pki
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening

READY_SECONDS = 20
STOP_SECONDS = 15


@dataclass(frozen=True)
class Door:
    """One way in, for a mail client: a port, TLS from the start or by STARTTLS, and whom to trust."""

    port: int
    starttls: bool
    pki: Pki


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples with this name and these labels."""
        matching = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(matching)


class Porter:
    """A running `imap-porter serve`."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        pki: Pki,
        ports: Mapping[str, int],
        *,
        log_descriptor: int | None = None,
    ) -> None:
        """Start it and wait until it listens.

        Args:
            log_descriptor: Where its output goes instead of the file that output() and log() read.
        """
        self.folder = folder
        self.pki = pki
        self.imaps_port = ports["imaps"]
        self.starttls_port = ports["starttls"]
        self.metrics_port = ports["metrics"]
        self._asked_to_end = False
        self._output = folder / "porter.log"
        command = _serve_command(folder, settings)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with self._output.open("wb") as output:
            descriptor = output.fileno() if log_descriptor is None else log_descriptor
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        try:
            wait_until_listening(set(ports.values()), READY_SECONDS, self.check_alive)
        except BaseException:
            self.kill()
            raise

    @property
    def doors(self) -> dict[str, Door]:
        return {
            "imaps": Door(self.imaps_port, False, self.pki),
            "starttls": Door(self.starttls_port, True, self.pki),
        }

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def check_alive(self) -> None:
        """Raise if the process has ended by itself."""
        if self.process.poll() is not None:
            raise RuntimeError(f"imap-porter ended with {self.process.returncode}:\n{self.output()}")

    def log(self, event: str = "") -> list[dict[str, Any]]:
        """The log so far, all of it or one kind of event."""
        # What follows the last line end is a line that is being written.
        lines = [json.loads(line) for line in self.output().split("\n")[:-1] if line.startswith("{")]
        return [line for line in lines if event in ("", line.get("event"))]

    def wait_for_log(self, event: str, count: int = 1, *, seconds: float = 10, **values: Any) -> list[dict[str, Any]]:
        """The lines of one event with these values, once there are `count` of them."""
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            found[:] = [line for line in self.log(event) if values.items() <= line.items()]
            return len(found) >= count

        if not wait_for(enough, seconds):
            raise AssertionError(f"{len(found)} of {count} {event} {values} in the log:\n{self.output()[-20_000:]}")
        return found

    def metrics(self) -> Metrics:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{self.metrics_port}/metrics", timeout=10) as response:
            return Metrics(response.read().decode())

    def status(self) -> dict[str, Any]:
        """What `imap-porter status` is told."""
        command = [_command(), "status", "--json", "-c", str(self.folder / "porter.yaml")]
        shown = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=30, check=True)
        return json.loads(shown.stdout)  # type: ignore[no-any-return]

    def pids(self, role: str) -> list[int]:
        """The processes of this role that live, the oldest first."""
        started = [line["pid"] for line in self.log("process.started") if line["role"] == role]
        return [pid for pid in started if pid in _family(self.process.pid)]

    def kill_one(self, role: str) -> None:
        """The one that was started last dies."""
        os.kill(self.pids(role)[-1], signal.SIGKILL)

    def resident_bytes(self) -> int:
        """Memory in use, by all its processes."""
        return sum(_memory_bytes(process_id, "VmRSS") for process_id in _family(self.process.pid))

    def peak_bytes(self) -> int:
        """The most memory that has been in use since the start."""
        return sum(_memory_bytes(process_id, "VmHWM") for process_id in _family(self.process.pid))

    def terminate(self) -> None:
        """Ask it to end, as a service manager does."""
        self.check_alive()
        self._asked_to_end = True
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """See it end, and look whether all went well while it ran."""
        if not self._asked_to_end:
            self.terminate()
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running {STOP_SECONDS} s after SIGTERM:\n{self.output()}") from None
        self.kill()
        output = self.output()
        assert code == 0, f"exit code {code}:\n{output}"
        assert [line for line in output.splitlines() if not line.startswith("{")] == [], "lines that are no JSON"
        assert "Traceback" not in output, output
        assert [line for line in self.log() if line.get("level") in ("error", "critical")] == [], output
        assert [secret for secret in _revealing() if secret in output] == [], output

    def kill(self) -> None:
        """End it and whatever it has started, now."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(5)


def porter_settings(pki: Pki, backends: Mapping[str, str], ports: Ports) -> tuple[dict[str, Any], dict[str, int]]:
    """The settings that most tests start from, and the ports in them.

    Args:
        backends: From names to URLs.
    """
    taken = {"imaps": ports.take(), "starttls": ports.take(), "metrics": ports.take()}
    settings = {
        "version": 1,
        "workers": 2,
        "listeners": [
            {"address": f"{LOOPBACK}:{taken['imaps']}", "tls": "implicit"},
            {"address": f"{LOOPBACK}:{taken['starttls']}", "tls": "starttls"},
        ],
        "tls": {"certificates": [{"certificate": str(pki.certificate), "private_key": str(pki.private_key)}]},
        "identity": [{"backend": {}}],
        "backends": {
            "servers": [{"name": name, "url": url} for name, url in backends.items()],
            "tls": {"ca": str(pki.ca)},
            "login": {"method": "password"},
        },
        "limits": {"failed_login_delay": "100ms"},
        "timeouts": {"drain": "2s"},
        "metrics": {"address": f"{LOOPBACK}:{taken['metrics']}"},
        "log": {"format": "json", "level": "info"},
    }
    return settings, taken


def serve_in_vain(folder: Path, settings: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run `imap-porter serve` with settings that it cannot serve with: it has to end by itself."""
    command = _serve_command(folder, settings)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=READY_SECONDS, check=False)


def wait_until_still(read: Callable[[], float], still_seconds: float = 0.5, seconds: float = 15) -> None:
    """Return once what is read has not changed for a while."""
    deadline = time.monotonic() + seconds
    last, since = read(), time.monotonic()
    while time.monotonic() - since < still_seconds:
        if time.monotonic() > deadline:
            raise TimeoutError(f"still changing after {seconds} s")
        time.sleep(0.05)
        if (value := read()) != last:
            last, since = value, time.monotonic()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """True as soon as the condition holds, False if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _serve_command(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    settings_file = folder / "porter.yaml"
    settings_file.write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    return [_command(), "serve", "-c", str(settings_file)]


def _command() -> str:
    beside = Path(sys.executable).parent / "imap-porter"
    if beside.exists():
        return str(beside)
    found = shutil.which("imap-porter")
    assert found, "imap-porter is not installed"
    return found


def _revealing() -> list[str]:
    """Every secret, and every secret as PLAIN sends it, whole or from its own first octet on."""
    encoded = [base64.b64encode(f"\0{name}\0{secret}".encode()).decode() for name, secret in USERS.items()]
    return [*SECRETS, *encoded]


def _family(process_id: int) -> list[int]:
    found = [process_id]
    for member in found:  # grows while it is walked
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def _memory_bytes(process_id: int, key: str) -> int:
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
