"""Processes come and go, sessions stay: reload, upgrade, kills, drain and a storm of logins, under steady load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.crowd import Crowd, Record, crowd, wait_until
from tests.servers.pki import Pki
from tests.servers.porter import Porter
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening

pytestmark = pytest.mark.server
StartPorter = Callable[..., Porter]

PASSWORD = "any-pass-will-do-8k"
SESSIONS = 500
PER_SECOND = 20.0
PATIENCE_SECONDS = 60.0


@pytest.fixture
def sink(ports: Ports) -> Iterator[str]:
    """A backend that lets everybody in, by its URL."""
    port = ports.take()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.sink", str(port)], cwd=Path(__file__).resolve().parents[2]
    )
    try:
        wait_until_listening({port}, 20, lambda: None)
        yield f"imap://{LOOPBACK}:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def many(start_porter: StartPorter, sink: str) -> Callable[..., Porter]:
    """A proxy of two workers in front of the sink, for many clients."""

    def start(**changes: Any) -> Porter:
        limits = {"connections": 20000, "connections_per_address": 20000, **changes.pop("limits", {})}
        return start_porter(backends_url={"sink": sink}, workers=2, limits=limits, **changes)

    return start


def all_in(gathered: Crowd, records: list[Record]) -> None:
    wait_until(lambda: all(record.logged_in or record.ended for record in records), PATIENCE_SECONDS)
    assert [record.trouble or record.refused for record in records if not record.logged_in] == []


def nothing_left(porter: Porter) -> None:
    """All counters are back at zero."""

    def empty() -> bool:
        metrics = porter.metrics()
        gauges = ("porter_sessions", "porter_backend_sessions", "porter_idle_sessions", "porter_moves_in_flight")
        return not any(metrics.total(gauge) for gauge in gauges)

    wait_until(empty, 20)


def test_reloads_an_upgrade_and_kills_under_load(many: Callable[..., Porter], pki: Pki, folder: Path) -> None:
    porter = many(admin={"socket": str(folder / "lives.sock")}, timeouts={"drain": "3s"})
    names = [f"u{number:04}" for number in range(SESSIONS)]
    with crowd(porter.imaps_port, pki.client_context(), PASSWORD) as clients:
        lasting = clients.call(names[: SESSIONS // 2], "idle") + clients.call(names[SESSIONS // 2 :], "noop")
        all_in(clients, lasting)
        brief = clients.come_and_go(names, PER_SECOND)

        for count in range(1, 11):
            porter.process.send_signal(signal.SIGHUP)
            porter.wait_for_log("settings.reloaded", count, seconds=30)
        assert [record for record in lasting if record.ended] == []

        porter.process.send_signal(signal.SIGUSR2)
        porter.wait_for_log("master.upgraded", seconds=30)
        assert [record for record in lasting if record.ended] == []

        porter.kill_one("steward")
        porter.wait_for_log("ledger.restored", seconds=20)
        time.sleep(2)  # of steady load
        assert [record for record in lasting if record.ended] == []

        porter.kill_one("worker")  # of the newest generation: none of the lasting ones is there
        porter.wait_for_log("process.restarted", role="worker", seconds=20)
        time.sleep(2)
        clients.hold()
        wait_until(lambda: all(record.ended for record in brief), PATIENCE_SECONDS)

        assert len(brief) > 100
        killed = [record for record in brief if record.logged_in and record.lost]
        refused = [record.refused or record.trouble for record in brief if not record.logged_in]
        assert [answer for answer in refused if answer] == refused
        # What the killed worker had in its hands is lost, and nothing else.
        assert len(killed) + len(refused) <= 20
        assert sum(record.lost for record in lasting) <= len([record for record in lasting if record.kind == "noop"])
        assert [record for record in lasting if record.ended] == []
        assert sum(record.answered for record in lasting) > SESSIONS
    nothing_left(porter)


def test_drain_ends_sessions_at_safe_points(many: Callable[..., Porter], pki: Pki) -> None:
    porter = many(timeouts={"drain": "10s"})
    names = [f"u{number:04}" for number in range(600)]
    with crowd(porter.imaps_port, pki.client_context(), PASSWORD) as clients:
        records = clients.call(names[:250], "idle") + clients.call(names[250:500], "noop")
        records += clients.call(names[500:], "slow")
        all_in(clients, records)
        porter.terminate()
        wait_until(lambda: all(record.ended for record in records), 30)
        assert porter.process.wait(20) == 0
    assert [record.name for record in records if not record.farewell] == []
    assert [record.name for record in records if record.torn] == []
    # A command and the farewell may cross.
    assert sum(record.lost for record in records) <= 5


def test_a_storm_of_logins(many: Callable[..., Porter], pki: Pki) -> None:
    """Everybody comes back at once; whoever was in stays in."""
    porter = many()
    with crowd(porter.imaps_port, pki.client_context(), PASSWORD) as clients:
        open_before = clients.call([f"o{number:03}" for number in range(50)], "noop")
        all_in(clients, open_before)
        storm = clients.call([f"s{number:04}" for number in range(1500)], "idle")
        all_in(clients, storm)
        assert [record for record in open_before if record.ended] == []
    nothing_left(porter)


def test_a_limit_per_user_holds_over_all_workers(many: Callable[..., Porter], pki: Pki) -> None:
    porter = many(limits={"connections_per_user": 7})
    with crowd(porter.imaps_port, pki.client_context(), PASSWORD) as clients:
        for _ in range(3):
            records = clients.call(["ann"] * 30, "idle")
            wait_until(lambda records=records: all(r.logged_in or r.refused or r.trouble for r in records))
        held = [record for record in clients.records if record.logged_in and not record.ended]
        wait_until(lambda: sum(record.logged_in and not record.ended for record in clients.records) == 7)
        assert held
        assert porter.metrics().total("porter_sessions", state="authenticated") == 7
    nothing_left(porter)


def test_a_killed_worker_leaves_no_ghosts(many: Callable[..., Porter], pki: Pki, folder: Path) -> None:
    porter = many(limits={"connections_per_user": 40}, admin={"socket": str(folder / "ghosts.sock")})
    with crowd(porter.imaps_port, pki.client_context(), PASSWORD) as clients:
        all_in(clients, clients.call(["ann"] * 40, "idle"))
        porter.kill_one("worker")
        porter.wait_for_log("process.restarted", role="worker", seconds=20)
        wait_until(lambda: any(record.ended for record in clients.records))
        gone = sum(bool(record.ended) for record in clients.records)
        wait_until(lambda: sum(each.get("sessions", 0) for each in porter.status()["processes"]) == 40 - gone, 10)
        all_in(clients, clients.call(["ann"] * gone, "idle"))
    nothing_left(porter)


def test_a_frozen_steward_stops_no_mail(many: Callable[..., Porter], pki: Pki) -> None:
    porter = many()
    porter.wait_for_log("steward.began")
    (steward,) = porter.pids("steward")
    with crowd(porter.imaps_port, pki.client_context(), PASSWORD) as clients:
        before = clients.call([f"b{number}" for number in range(20)], "noop")
        all_in(clients, before)
        os.kill(steward, signal.SIGSTOP)
        try:
            all_in(clients, clients.call([f"f{number}" for number in range(20)], "noop"))
            porter.wait_for_log("link.steward_silent")
        finally:
            os.kill(steward, signal.SIGCONT)
        porter.wait_for_log("link.steward_back", seconds=20)
        assert [record for record in clients.records if record.ended] == []
        wait_until(lambda: porter.metrics().total("porter_sessions", state="authenticated") == 40, 20)
    nothing_left(porter)
