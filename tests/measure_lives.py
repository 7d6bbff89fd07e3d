"""How a drain spreads, and what a storm of logins does to those who are in: `python -m tests.measure_lives FOLDER`.

Figures to read, no test: they hang on the machine. A cheap backend, two workers, all on this machine's loopback.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.servers.crowd import crowd, wait_until
from tests.servers.pki import Pki, write_pki
from tests.servers.porter import Porter, porter_settings
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening

DRAINED, STORMED, OPEN = 2000, 5000, 50
PASSWORD = "any-pass-will-do-8k"


def start(folder: Path, pki: Pki, ports: Ports, backend: int, **changes: Any) -> Porter:
    """A proxy of two workers in front of the cheap backend."""
    settings, taken = porter_settings(pki, {"sink": f"imap://{LOOPBACK}:{backend}"}, ports)
    settings |= {"limits": {"connections_per_address": 20000}, **changes}
    folder.mkdir()
    return Porter(folder, settings, pki, taken)


def drain(porter: Porter, pki: Pki) -> list[tuple[str, str]]:
    """SIGTERM with many sessions, half of them in IDLE."""
    names = [f"u{number:05}" for number in range(DRAINED)]
    with crowd(porter.imaps_port, pki.client_context(), PASSWORD) as clients:
        records = clients.call(names[: DRAINED // 2], "idle") + clients.call(names[DRAINED // 2 :], "noop")
        wait_until(lambda: all(record.logged_in or record.ended for record in records), 120)
        began = time.monotonic()
        porter.terminate()
        porter.process.wait(60)
        took = time.monotonic() - began
        wait_until(lambda: all(record.ended for record in records))
    buckets = Counter(int((record.ended - began) * 10) for record in records)
    fullest = max(buckets.values()) / DRAINED
    return [
        ("sessions", str(DRAINED)),
        ("with BYE", str(sum(bool(record.farewell) for record in records))),
        ("cut inside a response", str(sum(record.torn for record in records))),
        ("fullest 100 ms", f"{fullest:.1%}"),
        ("exit after", f"{took:.1f} s, status {porter.process.returncode}"),
    ]


def storm(porter: Porter, pki: Pki) -> list[tuple[str, str]]:
    """Everybody comes at once, while a few go on working."""
    with crowd(porter.imaps_port, pki.client_context(), PASSWORD) as clients:
        working = clients.call([f"o{number}" for number in range(OPEN)], "noop")
        wait_until(lambda: all(record.logged_in for record in working))
        memory = porter.resident_bytes()
        for record in working:
            record.seconds.clear()
        began = time.monotonic()
        with crowd(porter.imaps_port, pki.client_context(), PASSWORD) as others:
            records = others.call([f"s{number:05}" for number in range(STORMED)], "idle")
            wait_until(lambda: all(record.logged_in or record.ended for record in records), 120)
            took = time.monotonic() - began
            waits = [seconds for record in working for seconds in record.seconds]
            refused = Counter(record.trouble or record.refused.decode() for record in records if not record.logged_in)
            peak = porter.resident_bytes()
        wait_until(lambda: porter.metrics().total("porter_sessions") <= OPEN + 1, 60)
        time.sleep(2)
        after = porter.resident_bytes()
    return [
        ("logins at once", str(STORMED)),
        ("let in", f"{sum(record.logged_in for record in records)} in {took:.1f} s"),
        ("not let in", str(dict(refused))),
        ("NOOP of open sessions, ms", f"p50 {percentile(waits, 50):.0f}, p99 {percentile(waits, 99):.0f}"),
        ("memory, MiB", f"{memory / 2**20:.0f} before, {peak / 2**20:.0f} at the peak, {after / 2**20:.0f} after"),
    ]


def percentile(seconds: list[float], part: int) -> float:
    """In milliseconds."""
    return statistics.quantiles(seconds, n=100)[part - 1] * 1000


def main(folder: Path) -> None:
    """Measure, and show."""
    folder.mkdir(parents=True, exist_ok=True)
    ports, pki = Ports(), write_pki(folder / "pki")
    backend = ports.take()
    sink = subprocess.Popen([sys.executable, "-m", "tests.servers.sink", str(backend)])
    try:
        wait_until_listening({backend}, 20, lambda: None)
        table = Table("", "")
        for name, measure, timeouts in (("drain", drain, {"drain": "30s"}), ("storm", storm, {"drain": "2s"})):
            porter = start(folder / name, pki, ports, backend, timeouts=timeouts)
            try:
                for row in measure(porter, pki):
                    table.add_row(*row)
            finally:
                porter.kill()
            table.add_section()
        Console().print(table)
    finally:
        sink.kill()
        ports.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
