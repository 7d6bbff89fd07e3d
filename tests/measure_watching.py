"""What watching costs. By hand, on a machine that does nothing else:

    python -m tests.measure_watching FOLDER [scrape] [readers] [cost] [--rounds 6] [--json]

FOLDER holds `imapload` and `imapsink`, a load generator and a cheap backend. `scrape`: how long /metrics takes while
many sessions are open. `readers`: what NOOPs wait while many read events, one of whom is frozen, and logins go on.
`cost`: CPU of all the proxy's processes per login and per command beside that of the same program with watching off
(tests.unwatched_porter). Two workers. What is compared takes turns in one run: figures of one run compare, others
don't.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import yaml
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from proxy.admin.verbs import EVENTS_PATH
from proxy.auth.passwords import Parameters, hash_password
from tests.servers.crowd import crowd
from tests.servers.pki import Pki, write_pki
from tests.servers.porter import Porter, porter_settings
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.processes import family

PASSWORD = "bench-7t1w"
PROGRAMS = {"watched": "proxy", "unwatched": "tests.unwatched_porter"}
PARTS = ("scrape", "readers", "cost")
OPEN = 50  # sessions that say NOOP
NOOPS_PER_SECOND = 500
LOGINS_PER_SECOND = 20
WARM_UP = 1000  # logins
PIECES = 10  # of a round, in which those who are compared take turns
SCRAPE_PAUSE = 0.5
START_SECONDS = 30.0

Row = tuple[str, ...]


# --- what is run ---


class Load:
    """The load generator with its sessions open, held before and after its work."""

    def __init__(self, folder: Path, mode: str, port: int, sessions: int, *options: str) -> None:
        command = [str(folder / "imapload"), mode, "--port", str(port), "--sessions", str(sessions)]
        command += ["--password", PASSWORD, "--sync", *options]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._await("ESTABLISHED")

    def work(self) -> None:
        """Until it is done."""
        self.go_on()
        self._await("DONE")

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Log out; gives what it has to tell."""
        self.go_on()
        output, complaints = self.process.communicate(timeout=300)
        return _told(output, complaints)

    def _await(self, word: str) -> None:
        assert self.process.stderr
        while not (line := self.process.stderr.readline()).startswith(word):
            if not line:
                raise RuntimeError(f"imapload has ended before {word}")


def log_in(folder: Path, port: int, sessions: int) -> None:
    """So many whole short sessions, 32 at a time."""
    command = [str(folder / "imapload"), "login", "--port", str(port), "--sessions", str(sessions)]
    done = subprocess.run([*command, "--password", PASSWORD], capture_output=True, text=True, timeout=600, check=False)
    _told(done.stdout, done.stderr)


def _told(output: str, complaints: str) -> dict[str, Any]:
    if not output.startswith("{"):
        raise RuntimeError(complaints)
    told: dict[str, Any] = json.loads(output)
    if told["failed"]:
        raise RuntimeError(output)
    return told


@contextmanager
def serving(module: str, folder: Path, settings: dict[str, Any], ports: dict[str, int]) -> Iterator[int]:
    """A proxy as it is, or without anything to watch; gives the master's process id."""
    folder.mkdir()
    (folder / "porter.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    command = [sys.executable, "-m", module, "serve", "-c", str(folder / "porter.yaml")]
    with (folder / "porter.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until_listening(set(ports.values()), START_SECONDS, lambda: None)
        yield process.pid
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def cpu_ns(process_id: int) -> int:
    """What a process and all its descendants have taken, to the nanosecond, in user and kernel space."""
    total = 0
    for member in family(process_id):
        for thread in Path(f"/proc/{member}/task").glob("*/schedstat"):
            with suppress(OSError):  # it has ended since
                total += int(thread.read_text().split()[0])
    return total


@dataclass
class Stage:
    """What every part needs."""

    folder: Path  # of the load generator
    scratch: Path
    chosen: argparse.Namespace
    ports: Ports = field(default_factory=Ports)
    backend: int = 0
    progress: Progress = field(default_factory=lambda: Progress(console=Console(stderr=True), transient=True))

    def __post_init__(self) -> None:
        self.pki: Pki = write_pki(self.scratch / "pki")

    def settings(self, **changes: Any) -> tuple[dict[str, Any], dict[str, int]]:
        """Room for everybody."""
        settings, taken = porter_settings(self.pki, {"sink": f"imap://{LOOPBACK}:{self.backend}"}, self.ports)
        limits: dict[str, Any] = dict.fromkeys(
            ("connections", "connections_per_address", "connections_per_user"), 20000
        )
        settings |= {"limits": limits | {"exempt_networks": [f"{LOOPBACK}/32"]}, **changes}
        return settings, taken

    @contextmanager
    def porter(self, name: str, settings: dict[str, Any], taken: dict[str, int]) -> Iterator[Porter]:
        home = self.scratch / name
        home.mkdir()
        porter = Porter(home, settings, self.pki, taken)
        try:
            yield porter
        finally:
            porter.kill()

    def task(self, what: str, steps: int) -> TaskID:
        return self.progress.add_task(what, total=steps)


# --- how long a scrape takes ---


def measure_scrape(stage: Stage) -> dict[str, Any]:
    """With so many idle sessions."""
    chosen = stage.chosen
    task = stage.task(f"scrape: {chosen.sessions} idle sessions log in", chosen.scrapes)
    with stage.porter("scraped", *stage.settings()) as porter:
        load = Load(stage.folder, "idle", porter.imaps_port, chosen.sessions, "--concurrency", "64")
        stage.progress.update(task, description=f"scrape: {chosen.sessions} idle sessions")
        time.sleep(2.0)  # what their logins have left to do is done
        seconds, octets, cpu = [], 0, []
        for _ in range(chosen.scrapes):
            time.sleep(SCRAPE_PAUSE)
            before, began = cpu_ns(porter.process.pid), time.perf_counter()
            with urllib.request.urlopen(f"http://{LOOPBACK}:{porter.metrics_port}/metrics", timeout=10) as response:
                octets = len(response.read())
            seconds.append(time.perf_counter() - began)
            cpu.append(cpu_ns(porter.process.pid) - before)
            stage.progress.advance(task)
        seen = porter.metrics().total("porter_sessions", state="authenticated")
        load.end()
    return {
        "sessions": seen,
        "scrapes": len(seconds),
        "octets": octets,
        "median_ms": median(seconds) * 1e3,
        "most_ms": max(seconds) * 1e3,
        "cpu_ms": median(cpu) / 1e6,
    }


# --- what readers of events do to others ---


def read_events(port: int, token: str, readers: int, orders: Connection) -> None:
    """In a process of its own: all read all kinds but the last one, who reads nothing, until there is an order.

    Nothing is decoded, only counted: with that many readers it is they who would be measured.
    """
    socks = [_subscribe(port, token) for _ in range(readers)]
    selector = selectors.DefaultSelector()
    for sock in socks[:-1]:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    selector.register(orders, selectors.EVENT_READ)
    orders.send(readers)
    events = 0
    while True:
        for key, _ in selector.select():
            if key.fileobj is orders:
                orders.send(events)
                return
            assert isinstance(key.fileobj, socket.socket)
            received = key.fileobj.recv(1 << 16)
            if not received:
                raise EOFError("a reader was shut out")
            events += received.count(b'"event":')  # one that is cut just there is not missed among thousands


def _subscribe(port: int, token: str) -> socket.socket:
    sock = socket.create_connection((LOOPBACK, port), timeout=10)
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    lines = [
        f"GET {EVENTS_PATH} HTTP/1.1",
        f"Host: {LOOPBACK}:{port}",
        f"Authorization: Bearer {token}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    ]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(1)
    if not answer.startswith(b"HTTP/1.1 101"):
        raise PermissionError(answer.decode())
    return sock


@contextmanager
def reading(stage: Stage, admin: int, token: str, told: list[int]) -> Iterator[None]:
    """Many read meanwhile; how many events they have had is added to `told`."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=read_events, args=(admin, token, stage.chosen.readers, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield
        ours.send("end")
        told.append(ours.recv())
    finally:
        process.kill()
        process.join()


def measure_readers(stage: Stage) -> dict[str, Any]:
    """NOOPs of open sessions at a fixed rate, with the readers and without, by turns."""
    chosen, token, admin = stage.chosen, secrets.token_urlsafe(32), stage.ports.take()
    cheap = hash_password(token.encode(), Parameters(memory_kib=8, time=1, parallelism=1))
    tokens = [{"name": "bench", "role": "operator", "hash": cheap}]
    settings, taken = stage.settings(admin={"address": f"{LOOPBACK}:{admin}", "tokens": tokens})
    waits: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    events: list[int] = []
    task = stage.task(f"readers: {chosen.readers}", 2 * chosen.rounds)
    with stage.porter("read", settings, taken | {"admin": admin}) as porter, ExitStack() as stack:
        log_in(stage.folder, porter.imaps_port, WARM_UP)
        clients = stack.enter_context(crowd(porter.imaps_port, stage.pki.client_context(), PASSWORD))
        records = clients.come_and_go([f"guest{number:03}" for number in range(500)], LOGINS_PER_SECOND)
        for number in range(chosen.rounds):
            for kind in list(waits)[:: 1 if number % 2 else -1]:
                with ExitStack() as round_stack:
                    if kind == "with":
                        round_stack.enter_context(reading(stage, admin, token, events))
                    waits[kind].append(_ping(stage, porter))
                stage.progress.advance(task)
        clients.hold()
        lost = porter.metrics().total("porter_events_lost_total")
    refused = sum(bool(record.trouble or record.refused) for record in records)
    return {
        "readers": chosen.readers,
        "logins": len(records),
        "logins_failed": refused,
        "events_read": sum(events),
        "events_lost": lost,
        **{kind: {name: [each[name] for each in rounds] for name in rounds[0]} for kind, rounds in waits.items()},
    }


def _ping(stage: Stage, porter: Porter) -> dict[str, float]:
    options = ["--seconds", str(stage.chosen.seconds), "--rate", str(NOOPS_PER_SECOND)]
    load = Load(stage.folder, "ping", porter.imaps_port, OPEN, *options)
    before = cpu_ns(porter.process.pid)
    load.work()
    cores = (cpu_ns(porter.process.pid) - before) / 1e9 / stage.chosen.seconds
    told = load.end()
    return {"p50_us": told["p50_us"], "p99_us": told["p99_us"], "max_us": told["max_us"], "cores": cores}


# --- what it costs where nobody looks ---


def measure_cost(stage: Stage) -> dict[str, Any]:
    """CPU per login and per command, with watching and without, by turns.

    Every round has processes of its own: where things lie in memory makes one some per cent cheaper than another. They
    take turns many times in it, so that what else the machine does meets both.
    """
    chosen = stage.chosen
    task = stage.task("cost: a login, a command", PIECES * chosen.rounds)
    login_us: dict[str, list[float]] = {kind: [] for kind in PROGRAMS}
    command_us: dict[str, list[float]] = {kind: [] for kind in PROGRAMS}
    for number in range(chosen.rounds):
        with ExitStack() as stack:
            contenders = {}
            for kind, module in PROGRAMS.items():
                settings, taken = stage.settings()
                home = stage.scratch / f"{kind}-{number}"
                process_id = stack.enter_context(serving(module, home, settings, taken))
                contenders[kind] = process_id, taken["imaps"]
                log_in(stage.folder, taken["imaps"], WARM_UP)  # caches, the heap, Python itself
            costs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in PROGRAMS}
            for piece in range(PIECES):
                for kind in list(PROGRAMS)[:: 1 if piece % 2 else -1]:
                    costs[kind].append(_cost(stage, *contenders[kind]))
                stage.progress.advance(task)
        for kind, pieces in costs.items():
            logins, commands = zip(*pieces, strict=True)
            login_us[kind].append(fmean(logins))
            command_us[kind].append(fmean(commands))
    return {"rounds": chosen.rounds, "login_us": login_us, "command_us": command_us}


def _cost(stage: Stage, process_id: int, port: int) -> tuple[float, float]:
    """Of a login, and of a command, in microseconds of CPU."""
    chosen, logins = stage.chosen, stage.chosen.logins // PIECES
    before = cpu_ns(process_id)
    log_in(stage.folder, port, logins)
    for_logins = cpu_ns(process_id) - before
    load = Load(stage.folder, "ping", port, OPEN, "--seconds", str(chosen.seconds / PIECES))
    before = cpu_ns(process_id)
    load.work()
    for_commands = cpu_ns(process_id) - before
    return for_logins / logins / 1e3, for_commands / load.end()["round_trips"] / 1e3


# --- showing ---


def show_scrape(measured: dict[str, Any]) -> list[Row]:
    return [
        ("sessions", f"{measured['sessions']:.0f}", ""),
        ("a scrape, ms: median", f"{measured['median_ms']:.1f}", "≤ 50"),
        ("  most", f"{measured['most_ms']:.1f}", "≤ 50"),
        ("  octets", str(measured["octets"]), ""),
        ("  CPU of all processes, ms", f"{measured['cpu_ms']:.1f}", ""),
    ]


def show_readers(measured: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [
        ("readers, one of them frozen", str(measured["readers"]), ""),
        ("logins meanwhile", f"{measured['logins']}, {measured['logins_failed']} failed", "0 failed"),
        ("events read, lost", f"{measured['events_read']}, {measured['events_lost']:.0f}", ""),
    ]
    for name, label in (("p50_us", "NOOP p50, µs"), ("p99_us", "NOOP p99, µs"), ("max_us", "NOOP most, µs")):
        for kind in ("without", "with"):
            rows.append((f"{label}, {kind}", spread(measured[kind][name]), ""))
    rows += [(f"CPU, cores, {kind}", spread(measured[kind]["cores"], 2), "") for kind in ("without", "with")]
    return rows


def show_cost(measured: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for name, label in (("login_us", "CPU per login, µs"), ("command_us", "CPU per command, µs")):
        watched, unwatched = measured[name]["watched"], measured[name]["unwatched"]
        rows += [(f"{label}, watched", spread(watched, 1), ""), (f"{label}, unwatched", spread(unwatched, 1), "")]
        more = [one - other for one, other in zip(watched, unwatched, strict=True)]
        parts = [(one / other - 1) * 100 for one, other in zip(watched, unwatched, strict=True)]
        aims = ("", "≤ 3") if name == "login_us" else ("≤ 2", "")
        rows += [("  watching, µs", spread(more, 2), aims[0]), ("  watching, %", spread(parts, 1), aims[1])]
    return rows


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and between which the middle half of the rounds is."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


MEASURE = {"scrape": measure_scrape, "readers": measure_readers, "cost": measure_cost}
SHOW = {"scrape": show_scrape, "readers": show_readers, "cost": show_cost}


def show(results: dict[str, Any]) -> None:
    """Tables, or one for all."""
    before, after = results["load_average"]
    table = Table(
        "", "median (middle half of the rounds)", "asked", title=f"load average {before} before, {after} after"
    )
    for part, rows in SHOW.items():
        if part in results:
            for row in rows(results[part]):
                table.add_row(*row)
            table.add_section()
    Console().print(table)


@contextmanager
def staged(chosen: argparse.Namespace) -> Iterator[Stage]:
    """The backend, and room for files."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stage = Stage(chosen.folder, scratch, chosen)
        stack.callback(stage.ports.close)
        stage.backend = stage.ports.take()
        command = [chosen.folder / "imapsink", "--listen", f"{LOOPBACK}:{stage.backend}", "--password", PASSWORD]
        sink = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(sink.kill)
        wait_until_listening({stage.backend}, START_SECONDS, lambda: None)
        stack.enter_context(stage.progress)
        yield stage


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with imapload and imapsink")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; none: all")
    parser.add_argument("--rounds", type=int, default=6, help="of each that is compared")
    parser.add_argument("--sessions", type=int, default=9000, help="that are open during a scrape")
    parser.add_argument("--scrapes", type=int, default=20)
    parser.add_argument("--readers", type=int, default=100, help="of events")
    parser.add_argument("--logins", type=int, default=2000, help="in each round")
    parser.add_argument("--seconds", type=float, default=6.0, help="of NOOPs in each round")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    before = round(os.getloadavg()[0], 2)
    with staged(chosen) as stage:
        results: dict[str, Any] = {part: MEASURE[part](stage) for part in PARTS if part in (chosen.parts or PARTS)}
    results |= {"load_average": [before, round(os.getloadavg()[0], 2)]}
    if chosen.json:
        print(json.dumps(results, indent=2))
    else:
        show(results)


if __name__ == "__main__":
    main()
