"""A real Prometheus on loopback that scrapes one proxy twice a second."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.servers.porter import wait_for
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.programs import require

READY_SECONDS = 20


@dataclass
class Prometheus:
    """One server with its folder."""

    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Return once it answers."""
        command = [
            require("prometheus"),
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'tsdb'}",
            f"--web.listen-address={LOOPBACK}:{self.port}",
        ]
        with (self.folder / "prometheus.log").open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait_until_listening({self.port}, READY_SECONDS, self._check_alive)
            if not wait_for(self._is_ready, READY_SECONDS):  # it listens before it answers
                raise TimeoutError(f"prometheus is not ready: {(self.folder / 'prometheus.log').read_text()}")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process = None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that there are at this moment."""
        return self._ask("query", query=expression)["result"]  # type: ignore[no-any-return]

    def firing(self) -> dict[str, list[dict[str, str]]]:
        """The labels of alerts that fire, by name."""
        found: dict[str, list[dict[str, str]]] = {}
        for alert in self._ask("alerts")["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    def rule_errors(self) -> list[str]:
        """What rules could not be evaluated, and why."""
        groups = self._ask("rules")["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}" for each in groups for rule in each["rules"] if rule.get("lastError")
        ]

    def _ask(self, what: str, **parameters: str) -> Any:
        url = f"http://{LOOPBACK}:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def _is_ready(self) -> bool:
        self._check_alive()
        try:
            urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/-/ready", timeout=10).close()
        except OSError:
            return False
        return True

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"prometheus ended: {(self.folder / 'prometheus.log').read_text()}")


def write_prometheus(folder: Path, ports: Ports, target: int, rules: str) -> Prometheus:
    """Write all that it needs into `folder`.

    Args:
        target: The port of a proxy's metrics, on loopback.
        rules: The text of its rules.
    """
    folder.mkdir(parents=True)
    (folder / "rules.yml").write_text(rules)
    configuration = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "imap-porter", "static_configs": [{"targets": [f"{LOOPBACK}:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    return Prometheus(folder, ports.take())
