"""Active checks, on backends that play one part, or on clocks that jump."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from proxy.backends.backend import Backend
from proxy.backends.check import Check, Told
from proxy.backends.monitor import Monitor
from proxy.backends.pool import Pool
from proxy.observe.metrics import exposition
from proxy.outcome import Outcome, Refused
from proxy.settings.discovery_models import Health, ProbeLogin
from proxy.settings.models import Backends, Server, Timeouts
from proxy.settings.secret import Secret
from tests.backends.conftest import LOOPBACK, Part, Served


def server(name: str, port: int = 143, **changes: Any) -> Server:
    return Server.model_validate({"name": name, "url": f"imap://{LOOPBACK}:{port}", **changes})


def pool(*servers: Server) -> Pool:
    return Pool(Backends(servers=servers), Timeouts())


async def greet(stream: trio.SocketStream) -> None:
    await stream.send_all(b"* OK [CAPABILITY IMAP4rev1] ready\r\n")


async def refuse(stream: trio.SocketStream) -> None:
    await stream.send_all(b"* BYE not now\r\n")


async def say_nothing(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def refuse_login(stream: trio.SocketStream) -> None:
    await greet(stream)
    await stream.receive_some()
    await stream.send_all(b"p1 NO [UNAVAILABLE] pr0be: no storage\r\n")


async def first_report(made: Pool, health: Health) -> tuple[str, str]:
    reports: list[tuple[str, str]] = []
    done = trio.Event()

    def report(name: str, problem: str) -> None:
        reports.append((name, problem))
        done.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Monitor(made, health, report).run)
            await done.wait()
            nursery.cancel_scope.cancel()
    return reports[0]


LOGIN = ProbeLogin(name="probe", password=Secret("env", "PROBE", b"pr0be"))

FOUND: list[tuple[Part, ProbeLogin | None, str]] = [
    (greet, None, ""),
    (refuse, None, "greeting: a greeting that refuses: * BYE not now"),
    (say_nothing, None, "greeting: no answer within 0.05 s"),
    (refuse_login, None, ""),
    (refuse_login, LOGIN, "login: the probe's (health.login): login refused: NO [UNAVAILABLE] ***: no storage"),
]


@pytest.mark.parametrize(("part", "login", "found"), FOUND)
async def test_what_a_check_finds(serve: Served, part: Part, login: ProbeLogin | None, found: str) -> None:
    listening = await serve(part)
    health = Health(interval=0.01, timeout=0.05 if part is say_nothing else 5.0, login=login)
    assert await first_report(pool(server("d1", listening.port)), health) == ("d1", found)


async def test_nobody_listens(refusing: int) -> None:
    name, problem = await first_report(pool(server("d1", refusing, state="down")), Health(interval=0.01))
    assert (name, problem) == ("d1", f"connect: cannot connect to {LOOPBACK}:{refusing}: Connection refused")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """When each backend was checked; nothing is connected to."""
    seen: dict[str, list[float]] = defaultdict(list)

    class Noted(Check):
        def __init__(self, name: str) -> None:
            self._name = name

        async def run(self) -> Told:
            seen[self._name].append(trio.current_time())
            if self._name.startswith("broken"):
                raise RuntimeError("a bug")
            if self._name.startswith("slow"):
                await trio.sleep(3)
            if self._name.startswith("bad"):
                raise Refused(Outcome.UNAVAILABLE, "no", step="tls")
            if self._name.startswith("short"):
                raise Refused(Outcome.UNAVAILABLE, "Too many open files", step="local")
            return Told("", None, 0.0)

    monkeypatch.setattr(Backend, "check", lambda backend, login: Noted(backend.name))
    return seen


async def watched(made: Pool, health: Health, seconds: float) -> dict[str, list[str]]:
    reports: dict[str, list[str]] = defaultdict(list)
    monitor = Monitor(made, health, lambda name, problem: reports[name].append(problem))
    with trio.move_on_after(seconds):
        await monitor.run()
    return reports


async def test_each_at_its_own_time(checks: dict[str, list[float]], autojump_clock: trio.testing.MockClock) -> None:
    names = [f"d{number}" for number in range(20)]
    reports = await watched(pool(*map(server, names)), Health(interval=5.0), 600)
    assert reports.keys() == set(names)
    for times in checks.values():
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert min(gaps) >= 4
        assert max(gaps) <= 6
        assert max(gaps) - min(gaps) > 1
        assert 100 <= len(times) <= 145
    assert len({times[0] for times in checks.values()}) == len(names)


async def test_one_that_does_not_work_is_tried_more_often(
    checks: dict[str, list[float]], autojump_clock: trio.testing.MockClock
) -> None:
    await watched(pool(server("bad1"), server("d1")), Health(interval=60.0), 600)
    gaps = [later - earlier for earlier, later in pairwise(checks["bad1"])]
    assert min(gaps) >= 0.8
    assert max(gaps) <= 1.2
    assert len(checks["d1"]) <= 13


async def test_a_slow_check_delays_nobody_and_does_not_pile_up(
    checks: dict[str, list[float]], autojump_clock: trio.testing.MockClock
) -> None:
    await watched(pool(server("slow"), server("fast")), Health(interval=1.0), 60)
    assert 17 <= len(checks["slow"]) <= 21
    assert len(checks["fast"]) >= 48


async def test_a_mistake_of_ours_ends_nothing(
    checks: dict[str, list[float]], autojump_clock: trio.testing.MockClock
) -> None:
    reports = await watched(pool(server("broken"), server("bad"), server("good")), Health(interval=1.0), 60)
    assert "broken" not in reports
    assert len(checks["broken"]) >= 48
    assert set(reports["bad"]) == {"tls: no"}
    assert set(reports["good"]) == {""}


async def test_a_mistake_of_who_is_told_ends_nothing(
    checks: dict[str, list[float]], autojump_clock: trio.testing.MockClock
) -> None:
    def report(name: str, problem: str) -> None:
        raise RuntimeError("a bug")

    with trio.move_on_after(60):
        await Monitor(pool(server("a"), server("b")), Health(interval=1.0), report).run()
    assert len(checks["a"]) >= 48
    assert len(checks["b"]) >= 48


async def test_our_own_shortage_is_no_news_of_a_backend(
    checks: dict[str, list[float]], autojump_clock: trio.testing.MockClock, capfd: pytest.CaptureFixture[str]
) -> None:
    reports = await watched(pool(server("short"), server("good")), Health(interval=1.0), 60)
    assert "short" not in reports
    assert len(checks["short"]) >= 48
    assert set(reports["good"]) == {""}
    assert "backend.check_not_tried backend=short" in capfd.readouterr().err
    assert counts("short") == {"ok": 0, "failed": 0}


def counts(name: str) -> dict[str, float]:
    return {
        sample.labels["result"]: sample.value
        for family in text_string_to_metric_families(exposition()[0].decode())
        for sample in family.samples
        if sample.name == "porter_backend_checks_total" and sample.labels["backend"] == name
    }


async def test_counts_of_backends_that_are_gone(
    checks: dict[str, list[float]], autojump_clock: trio.testing.MockClock
) -> None:
    made = pool(server("kept"), server("slow-gone"), server("slow-moved"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Monitor(made, Health(interval=1.0), lambda name, problem: None).run)
        await trio.sleep(30)
        assert counts("slow-gone")["ok"] > 0
        made.update([server("kept"), server("slow-moved", 144)])
        await trio.sleep(30)
        assert counts("slow-gone") == {}
        assert counts("kept")["ok"] >= 48
        assert counts("slow-moved")["ok"] >= 16
        nursery.cancel_scope.cancel()


async def test_backends_come_and_go(checks: dict[str, list[float]], autojump_clock: trio.testing.MockClock) -> None:
    made = pool(server("stays"), server("goes"), server("moves", 143))
    began = trio.current_time()

    async def change() -> None:
        await trio.sleep(30.5)
        made.update([server("stays"), server("moves", 144), server("comes")])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        await watched(made, Health(interval=1.0), 60)
    assert max(checks["goes"]) - began <= 30.5
    assert len(checks["comes"]) >= 23
    for name in ("stays", "moves"):
        assert len(checks[name]) >= 46
        assert max(later - earlier for earlier, later in pairwise(checks[name])) < 2.5
