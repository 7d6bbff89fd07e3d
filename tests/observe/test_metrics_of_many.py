"""Several processes, whose metrics one of them shows."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.metrics import METRICS, Counter, Gauge, Histogram, Metrics
from proxy.observe.series import Merge

BOUNDS = (0.1, 1.0)
MOST_PACKET_BYTES = 60_000


class Process:
    """One process with the program's declarations."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.logins: Counter = self.metrics.counter("porter_logins_total", "Logins.", backend=None)
        self.bytes: Counter = self.metrics.counter("porter_relayed_bytes_total", "Octets.")
        self.sessions: Gauge = self.metrics.gauge("porter_sessions", "Sessions.", state=("new", "old"))
        self.up: Gauge = self.metrics.gauge("porter_up", "Up.", merge="min", backend=None)
        self.took: Histogram = self.metrics.histogram("porter_login_duration_seconds", "Time.", BOUNDS, phase=None)

    def says(self, changes: list[Any] | None = None) -> list[Any]:
        """What it tells, as it arrives elsewhere."""
        told: list[Any] = json.loads(json.dumps(self.metrics.changes() if changes is None else changes))
        return told

    def shows(self) -> dict[str, float]:
        """`name{value,…}` → value."""
        text, _ = self.metrics.exposition()
        return {
            f"{sample.name}{{{','.join(sample.labels.values())}}}": sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }


@pytest.fixture
def steward() -> Process:
    return Process()


def test_counts_are_added_up_and_outlive_who_counted(steward: Process) -> None:
    one, two = Process(), Process()
    steward.logins.labels("a").inc(5)
    for worker in (one, two):
        worker.logins.labels("a").inc()
        worker.logins.labels("a").inc(2)
        worker.bytes.inc(0.5)
        for seconds in (0.1, 0.5, 7.0):
            worker.took.labels("tls").observe(seconds)
    steward.metrics.merge("one", one.says())
    steward.metrics.merge("two", two.says())
    one.logins.labels("a").inc(10)
    steward.metrics.merge("one", one.says())
    expected = {
        "porter_logins_total{a}": 21,
        "porter_relayed_bytes_total{}": 1,
        "porter_login_duration_seconds_bucket{0.1,tls}": 2,
        "porter_login_duration_seconds_bucket{1.0,tls}": 4,
        "porter_login_duration_seconds_bucket{+Inf,tls}": 6,
        "porter_login_duration_seconds_count{tls}": 6,
        "porter_login_duration_seconds_sum{tls}": 15.2,
        "porter_sessions{new}": 0,
        "porter_sessions{old}": 0,
    }
    assert steward.shows() == pytest.approx(expected)
    steward.metrics.forget("one")
    assert steward.shows() == pytest.approx(expected)
    assert one.says() == []


MERGES: list[tuple[Merge, float, float]] = [("sum", 13, 10), ("max", 7, 7), ("min", 1, 3)]


@pytest.mark.parametrize(("merge", "together", "later"), MERGES)
def test_what_gauges_make_together(merge: Merge, together: float, later: float) -> None:
    def declared() -> tuple[Metrics, Gauge]:
        metrics = Metrics()
        return metrics, metrics.gauge("porter_x", "X.", merge=merge, backend=None)

    (shown, own), *workers = (declared() for _ in range(4))
    own.labels("a").set(3)
    for (metrics, gauge), value in zip(workers, (2, 7, 1), strict=True):
        gauge.labels("a").set(value + 1)
        gauge.labels("a").dec()
        shown.merge(f"w{value}", metrics.changes())
    assert f'porter_x{{backend="a"}} {together}.0' in shown.exposition()[0].decode()
    shown.forget("w2")
    shown.forget("w1")
    shown.forget("nobody")
    assert f'porter_x{{backend="a"}} {later}.0' in shown.exposition()[0].decode()


def test_a_gauge_that_was_only_touched_has_no_say(steward: Process) -> None:
    worker = Process()
    for process in (steward, worker):
        process.up.labels("a")
    assert worker.says() == []
    assert steward.shows()["porter_up{a}"] == 0
    worker.up.labels("a").set(1)
    steward.metrics.merge("w", worker.says())
    assert steward.shows()["porter_up{a}"] == 1
    worker.up.labels("a").set(0)
    assert worker.says() == [["porter_up", ["a"], 0]]


def test_a_zero_that_was_said_is_told(steward: Process) -> None:
    worker = Process()
    worker.up.labels("a").set(0)
    assert worker.says() == [["porter_up", ["a"], 0]]
    worker.up.labels("a").set(0)
    worker.sessions.labels("new").inc(0)
    worker.bytes.inc(0)
    assert worker.says() == []


def test_a_new_hearer_is_told_all_gauges_and_what_was_counted_since(steward: Process) -> None:
    worker = Process()
    worker.logins.labels("a").inc(3)
    worker.sessions.labels("new").inc(2)
    worker.up.labels("a").set(1)
    worker.says()
    worker.logins.labels("a").inc(4)
    told = worker.says(worker.metrics.everything())
    assert sorted(told) == [["porter_logins_total", ["a"], 4], ["porter_sessions", ["new"], 2], ["porter_up", ["a"], 1]]
    assert worker.says() == []


def test_what_was_counted_passes_to_the_next_who_shows_it(steward: Process) -> None:
    worker, heir = Process(), Process()
    worker.logins.labels("a").inc(3)
    worker.sessions.labels("new").inc(2)
    worker.took.labels("tls").observe(0.5)
    steward.logins.labels("b").inc(1)
    steward.metrics.merge("w", worker.says())
    worker.logins.labels("a").inc(1)
    before = steward.shows()
    heir.metrics.merge("before", heir.says(steward.metrics.totals()))
    heir.metrics.merge("w", worker.says(worker.metrics.everything()))
    assert heir.shows() == {**before, "porter_logins_total{a}": 4}
    steward.metrics.forget("w")
    heir.metrics.forget("before")
    heir.metrics.merge("w", worker.says())
    assert heir.shows()["porter_logins_total{a}"] == 4


def test_a_series_that_is_gone_is_gone_everywhere(steward: Process) -> None:
    worker = Process()
    for process in (steward, worker):
        process.up.labels("a").set(1)
        process.logins.labels("a").inc()
        process.took.labels("a").observe(1)
    steward.metrics.merge("w", worker.says())
    for process in (steward, worker):
        for metric in (process.up, process.logins, process.took):
            metric.remove("a")
            metric.remove("a")
    steward.metrics.merge("w", worker.says())
    assert [key for key in steward.shows() if "{a" in key] == []
    worker.logins.labels("a").inc(2)
    steward.metrics.merge("w", worker.says())
    assert steward.shows()["porter_logins_total{a}"] == 2


FOREIGN: list[tuple[str, Any]] = [
    ("nothing", []),
    ("an unknown name", ["porter_of_another_version_total", ["a"], 3]),
    ("further items", ["porter_logins_total", ["a"], 0, "and more"]),
    ("no labels", ["porter_logins_total", [], 3]),
    ("another label", ["porter_logins_total", ["a", "b"], 3]),
    ("labels are none", ["porter_logins_total", "a", 3]),
    ("a value is missing", ["porter_logins_total", ["a"]]),
    ("less", ["porter_logins_total", ["a"], -3]),
    ("text", ["porter_logins_total", ["a"], "3"]),
    ("no number", ["porter_logins_total", ["a"], float("nan")]),
    ("endless", ["porter_up", ["a"], float("inf")]),
    ("another kind", ["porter_up", ["a"], [[[0.1, 3]], 1.0]]),
    ("a number for a histogram", ["porter_login_duration_seconds", ["a"], 3]),
    ("no list", ["porter_login_duration_seconds", ["a"], [3, 1.0]]),
    ("a mapping", {"porter_logins_total": 3}),
    ("a name alone", "porter_logins_total"),
    ("null", None),
    ("gone, and never was", ["porter_up", ["a"], None]),
]


@pytest.mark.parametrize(("name", "change"), FOREIGN, ids=[row[0] for row in FOREIGN])
def test_what_another_version_says_does_no_harm(steward: Process, name: str, change: Any) -> None:
    before = steward.shows()
    steward.metrics.merge("w", [change, ["porter_relayed_bytes_total", [], 1]])
    assert steward.shows() == {**before, "porter_relayed_bytes_total{}": 1}


def test_buckets_of_another_version_go_to_the_next_there_is(steward: Process) -> None:
    moved = [[0.05, 1], [0.1, 2], [0.5, 4], [9.0, 8], [None, 16], ["x", 32], [0.1, -64]]
    steward.metrics.merge("w", [["porter_login_duration_seconds", ["tls"], [moved, 1.5]]])
    shown = steward.shows()
    found = [shown[f"porter_login_duration_seconds_bucket{{{bound},tls}}"] for bound in ("0.1", "1.0", "+Inf")]
    assert found == [3, 7, 31]


def test_no_answer_is_larger_than_a_packet(steward: Process) -> None:
    worker = Process()
    names = [f"бэкенд-{number:04}.example.org" for number in range(1500)]
    for name in names:
        worker.logins.labels(name).inc(2)
        worker.up.labels(name).set(1)
        worker.took.labels(name).observe(0.1)
    answers = 0
    first = worker.metrics.everything()
    while first or (first := worker.metrics.changes()):
        assert len(json.dumps([["metrics", first]], separators=(",", ":"))) <= MOST_PACKET_BYTES
        steward.metrics.merge("w", worker.says(first))
        answers, first = answers + 1, []
    assert answers > 3
    shown, told = steward.shows(), worker.shows()
    assert shown == told


def test_a_child_does_not_tell_what_its_parent_has_counted(steward: Process) -> None:
    master = Process()
    master.logins.labels("a").inc(3)
    master.sessions.labels("new").inc(2)
    master.took.labels("tls").observe(0.1)
    master.metrics.merge("w", [["porter_logins_total", ["a"], 3]])
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            master.metrics.begin("w1.0")
            begun = master.says()
            shown = master.shows()["porter_logins_total{a}"]
            master.logins.labels("a").inc()
            os.write(
                writer, json.dumps([begun, shown, master.says(), master.says(master.metrics.everything())]).encode()
            )
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        begun, shown, later, everything = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert (begun, shown, everything) == ([], 0, [])
    assert later == [["porter_logins_total", ["a"], 1]]
    steward.metrics.merge("master", master.says())
    steward.metrics.merge("w1.0", later)
    assert steward.shows()["porter_logins_total{a}"] == 4


def test_threads_lose_nothing() -> None:
    worker, heard = Process(), Process()
    ended = threading.Event()

    def count() -> None:
        for _ in range(2000):
            worker.logins.labels("a").inc()
            worker.sessions.labels("new").inc()
            worker.took.labels("tls").observe(0.5)

    def tell() -> None:
        while not ended.is_set():
            heard.metrics.merge("w", worker.metrics.changes())

    counting = [threading.Thread(target=count) for _ in range(4)]
    telling = threading.Thread(target=tell)
    for thread in (*counting, telling):
        thread.start()
    for thread in counting:
        thread.join()
    ended.set()
    telling.join()
    heard.metrics.merge("w", worker.metrics.changes())
    shown = heard.shows()
    assert shown["porter_logins_total{a}"] == shown["porter_sessions{new}"] == 8000
    assert shown["porter_login_duration_seconds_count{tls}"] == 8000


@pytest.mark.parametrize("seed", range(20))
def test_many_processes_show_what_one_would(seed: int) -> None:
    """Whoever counts, however often it is told, and whoever shows it in the end."""
    chance = random.Random(seed)
    alone, shown = Process(), Process()
    workers = [Process() for _ in range(3)]
    moves: list[Callable[[Process], None]] = [
        lambda p: p.logins.labels("a").inc(2),
        lambda p: p.logins.labels("b").inc(),
        lambda p: p.sessions.labels("new").inc(),
        lambda p: p.sessions.labels("old").dec(3),
        lambda p: p.took.labels("tls").observe(0.25),
        lambda p: p.took.labels("tls").observe(0),
    ]
    for _ in range(300):
        index = chance.randrange(3)
        if chance.random() < 0.7:
            move = chance.choice(moves)
            move(alone)
            move(workers[index])
        elif chance.random() < 0.9:
            shown.metrics.merge(f"w{index}", workers[index].says())
        else:
            heir = Process()
            heir.metrics.merge("before", shown.says(shown.metrics.totals()))
            for number, worker in enumerate(workers):
                heir.metrics.merge(f"w{number}", worker.says(worker.metrics.everything()))
            shown = heir
    for number, worker in enumerate(workers):
        shown.metrics.merge(f"w{number}", worker.says())
    assert shown.shows() == pytest.approx(alone.shows())


def test_wrong_use_is_refused() -> None:
    process = Process()
    for wrong in (
        lambda: process.logins.inc(),
        lambda: process.logins.labels(),
        lambda: process.logins.labels("a").labels("b"),
        lambda: process.logins.labels("a").inc(-1),
        lambda: process.sessions.set(1),
        lambda: process.took.observe(1),
        lambda: process.metrics.counter("porter_logins_total", "Again."),
    ):
        with pytest.raises(ValueError, match=r"labels|down|one already"):
            wrong()


def test_what_is_known_of_processes() -> None:
    """Only the series of the process that we are in are ours to tell."""

    def own() -> dict[str, dict[str, float]]:
        text, _ = METRICS.exposition()
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                if sample.name.startswith("porter_process_") and "process" in sample.labels:
                    found.setdefault(sample.labels["process"], {})[sample.name] = sample.value
        return found

    mine = own()[METRICS.process]
    assert mine["porter_process_cpu_seconds_total"] > 0
    assert mine["porter_process_resident_bytes"] > 1_000_000
    assert mine["porter_process_open_descriptors"] >= 3
    assert mine["porter_process_start_timestamp_seconds"] == pytest.approx(time.time(), abs=24 * 3600)

    METRICS.merge("w9.1", [["porter_process_cpu_seconds_total", ["w9.1"], 7.5]])
    METRICS.merge("w9.1", [["porter_process_cpu_seconds_total", ["w9.1"], 8.5]])
    assert own()["w9.1"] == {"porter_process_cpu_seconds_total": 8.5}
    METRICS.forget("w9.1")
    assert "w9.1" not in own()

    before, METRICS.process = METRICS.process, "w9.2"
    try:
        renamed = own()
        assert "w9.2" in renamed
        assert before not in renamed
    finally:
        METRICS.process = before
