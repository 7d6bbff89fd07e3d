"""A rolling update with the chart's own settings, as its Deployment goes about it: nobody is refused.

The pods are processes on this machine, and HAProxy is the load balancer: it asks /readyz, well within the chart's
drain_grace, and tells the clients' addresses by PROXY v2. It tries no second pod for a client, as kube-proxy doesn't.
"""

from __future__ import annotations

import csv
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.servers.crowd import Crowd, Record, crowd, wait_until
from tests.servers.haproxy import V2, Haproxy
from tests.servers.helm import EXAMPLES, Manifest, find, require_helm, settings_of
from tests.servers.pki import Pki
from tests.servers.porter import Porter
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.valkey import Valkey

pytestmark = pytest.mark.server

PASSWORD = "any-pass-will-do-8k"
SESSIONS = 500
PER_SECOND = 20.0
BACK_SECONDS = 60.0
BALANCER = """
global
  stats socket {folder}/socket mode 600 level admin
defaults
  mode tcp
  timeout connect 3s
  timeout client 35m
  timeout server 35m
listen imaps
  bind {host}:{port}
  balance random(1)
  retries 0
  option httpchk GET /readyz
"""
POD = "  server {name} {host}:{imaps} {header} check port {admin} inter 2s fall 2 rise 1\n"


@dataclass
class Release:
    """What the chart says: a Deployment, and the settings of its pods."""

    deployment: Manifest
    settings: dict[str, Any]

    @property
    def most_more(self) -> int:
        rolling = self.deployment["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxUnavailable"] == 0
        return int(rolling["maxSurge"])

    @property
    def replicas(self) -> int:
        return int(self.deployment["spec"]["replicas"])

    @property
    def ready_seconds(self) -> float:
        return float(self.deployment["spec"]["minReadySeconds"])

    @property
    def leave_seconds(self) -> float:
        return float(self.deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])


@pytest.fixture
def release(tmp_path: Path) -> Release:
    manifests = require_helm(4, tmp_path).template({}, EXAMPLES["minimal"])
    return Release(find(manifests, "Deployment"), settings_of(manifests))


@pytest.fixture
def sinks(ports: Ports) -> Iterator[list[str]]:
    """Backends that let everybody in, by their URLs."""
    taken = [ports.take(), ports.take()]
    command = [sys.executable, "-m", "tests.servers.sink"]
    root = Path(__file__).resolve().parents[2]
    processes = [subprocess.Popen([*command, str(port)], cwd=root) for port in taken]
    try:
        wait_until_listening(set(taken), 20, lambda: None)
        yield [f"imap://{LOOPBACK}:{port}" for port in taken]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@dataclass
class Pods:
    """Places for pods, those of before the update and those of after it; the balancer knows all of them."""

    release: Release
    sinks: list[str]
    pki: Pki
    folder: Path
    ports: list[dict[str, int]]
    valkey: Valkey | None  # what they know of each other by
    running: list[Porter] = field(default_factory=list)

    def start(self) -> Porter:
        """The next one; returns when it is ready."""
        ports = self.ports[len(self.running)]
        place = self.folder / f"pod-{len(self.running)}"
        place.mkdir()
        porter = Porter(place, self._settings(ports, place), self.pki, ports)
        self.running.append(porter)
        wait_until(lambda: ready(ports["admin"]), 30)
        return porter

    def _settings(self, ports: dict[str, int], place: Path) -> dict[str, Any]:
        """The chart's, with this machine's ports, files and backends, and all clients at one address."""
        given = self.release.settings
        fleet = {}
        if self.valkey is not None:
            password = {"file": str(self.valkey.password_file)}
            fleet = {"fleet": {"valkey": self.valkey.url, "password": password, "name": place.name}}
        listeners = [
            {
                **listener,
                "address": f"{LOOPBACK}:{ports[name]}",
                "proxy_protocol": {"trusted_networks": [f"{LOOPBACK}/32"]},
            }
            for name, listener in zip(("imaps", "starttls"), given["listeners"], strict=True)
        ]
        return {
            **given,
            "listeners": listeners,
            "tls": {
                "certificates": [{"certificate": str(self.pki.certificate), "private_key": str(self.pki.private_key)}]
            },
            "backends": {
                **given["backends"],
                "servers": [
                    {**server, "url": url} for server, url in zip(given["backends"]["servers"], self.sinks, strict=True)
                ],
            },
            "admin": {"address": f"{LOOPBACK}:{ports['admin']}", "socket": str(place / "admin.sock")},
            "metrics": {"address": f"{LOOPBACK}:{ports['metrics']}"},
            "limits": {"exempt_networks": [f"{LOOPBACK}/32"]},
            "log": {"format": "json"},
            **fleet,
        }


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as no:
        no.close()
        return False
    except OSError:
        return False


@pytest.fixture(params=["each for itself", "a fleet"])
def pods(release: Release, sinks: list[str], pki: Pki, ports: Ports, request: pytest.FixtureRequest) -> Iterator[Pods]:
    valkey = request.getfixturevalue("valkey") if request.param == "a fleet" else None
    names = ("imaps", "starttls", "admin", "metrics")
    with tempfile.TemporaryDirectory(prefix="pods-") as folder:
        taken = [{name: ports.take() for name in names} for _ in range(2 * release.replicas)]
        pods = Pods(release, sinks, pki, Path(folder), taken, valkey)
        try:
            yield pods
        finally:
            for porter in pods.running:
                porter.kill()


class Balancer(Haproxy):
    """One HAProxy in front of all pods."""

    @property
    def port(self) -> int:
        return self.ports["imaps"]

    def up(self) -> int:
        """How many pods it sends clients to."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.folder / "socket"))
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return sum(row["svname"].startswith("pod-") and row["status"].startswith("UP") for row in rows)


@pytest.fixture
def balancer(pods: Pods, ports: Ports, tmp_path: Path) -> Iterator[Balancer]:
    port = ports.take()
    text = BALANCER.format(folder=tmp_path, host=LOOPBACK, port=port)
    for number, taken in enumerate(pods.ports):
        text += POD.format(
            name=f"pod-{number}",
            host=LOOPBACK,
            imaps=taken["imaps"],
            header=V2,
            admin=taken["admin"],
        )
    (tmp_path / "haproxy.cfg").write_text(text)
    running = Balancer(tmp_path, {"imaps": port})
    running.start()
    yield running
    running.stop()


class Regulars:
    """Clients that come back when their session ends, as mail programs do."""

    def __init__(self, clients: Crowd, names: list[str]) -> None:
        self._clients = clients
        half = len(names) // 2
        self.sessions = clients.call(names[:half], "idle") + clients.call(names[half:], "noop")
        self.ended: list[Record] = []
        self._away: dict[int, float] = {}  # since when
        self.away_seconds = 0.0  # the longest that anybody was

    def settled(self) -> bool:
        """Whether all are in; whoever was sent away comes again."""
        for number, session in enumerate(self.sessions):
            if session.ended and session.logged_in:
                self.ended.append(session)
                self._away[number] = session.ended
                (self.sessions[number],) = self._clients.call([session.name], session.kind)
            elif session.logged_in and number in self._away:
                self.away_seconds = max(self.away_seconds, time.monotonic() - self._away.pop(number))
        return all(session.logged_in and not session.ended for session in self.sessions)

    def live(self, seconds: float) -> None:
        """Go on for some time, and then until all are in."""
        began = time.monotonic()
        while not self.settled() or time.monotonic() < began + seconds:
            assert [session.refused or session.trouble for session in self.sessions if not_in(session)] == []
            assert time.monotonic() < min(self._away.values(), default=began + seconds) + BACK_SECONDS
            time.sleep(0.05)


def knows(porter: Porter, members: int) -> bool:
    return porter.metrics().total("porter_fleet_members") == members


def not_in(session: Record) -> bool:
    return bool(session.ended) and not session.logged_in


def test_a_rolling_update(pods: Pods, balancer: Balancer, pki: Pki) -> None:
    release = pods.release
    assert release.most_more == 1
    old = [pods.start() for _ in range(release.replicas)]
    wait_until(lambda: balancer.up() == release.replicas, 30)
    names = [f"u{number:04}" for number in range(SESSIONS)]
    with crowd(balancer.port, pki.client_context(), PASSWORD) as clients:
        regulars = Regulars(clients, names)
        regulars.live(0)
        assert min(porter.metrics().total("porter_sessions", state="authenticated") for porter in old) > SESSIONS / 4
        brief = clients.come_and_go(names, PER_SECOND)

        leaving: list[tuple[Porter, float]] = []
        for porter in old:  # one comes; when it has been ready for a while, one goes; nobody waits until it is gone
            pods.start()
            regulars.live(release.ready_seconds)
            porter.terminate()
            leaving.append((porter, time.monotonic()))
        for porter, since in leaving:
            while porter.process.poll() is None:
                regulars.live(0.2)
                assert time.monotonic() - since < release.leave_seconds, "the kubelet would kill it"
            assert porter.process.returncode == 0, porter.output()
        regulars.live(1)
        if pods.valkey is not None:
            for porter in pods.running[release.replicas :]:
                wait_until(partial(knows, porter, release.replicas), 10)
                assert porter.metrics().total("porter_fleet_lost_total") == 0

        clients.hold()
        wait_until(lambda: all(record.ended for record in brief), 30)
        assert len(brief) > SESSIONS
        everybody = clients.records + brief
        assert [record.refused or record.trouble for record in everybody if not record.logged_in] == []
        assert len(regulars.ended) >= SESSIONS / 2, "all that were with the old pods"
        assert [record.name for record in [*regulars.ended, *brief] if record.torn] == []
        assert [record.name for record in regulars.ended if not record.farewell] == []
        # A command and the farewell may cross.
        assert sum(record.lost for record in [*regulars.ended, *brief]) <= 10
        assert regulars.away_seconds < BACK_SECONDS
    for porter in pods.running[release.replicas :]:
        porter.terminate()
    for porter in pods.running:
        porter.stop()
