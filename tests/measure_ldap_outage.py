"""What an outage of the directory does to those who are logged in. By hand, on a machine that does nothing else:

    python -m tests.measure_ldap_outage [--tries 500] [--seconds 5] [--rate 5]

50 sessions say NOOP at a fixed rate while others try to log in: with the directory as it should be, frozen (SIGSTOP),
thawed, stopped and started again. `--seconds 0` lets all who try come at once. Ten more sessions say NOOP to a Dovecot
past the proxy: what they wait for is the machine, which serves everybody here, the clients too. Figures of one run
compare, others don't.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import selectors
import shutil
import ssl
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import trio

from tests.servers.accounts import MASTER, MASTER_PASSWORD, USERS
from tests.servers.dovecot import Dovecot, write_dovecot
from tests.servers.pki import Pki, write_pki
from tests.servers.porter import Porter, porter_settings
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.slapd import PEOPLE, SERVICE_DN, SERVICE_PASSWORD, Slapd, write_slapd
from tests.servers.wire import Wire

SESSIONS = 50
PAST_THE_PROXY = 10
QUIET_SECONDS = 5.0
THREADS_EVERY_SECONDS = 0.01
AGAIN_SECONDS = 0.05  # after the directory's return: who waits for it tries so often
GIVE_UP_SECONDS = 30.0


# --- those who are logged in: a process of their own, so that nobody else's work makes their clock late ---


@dataclass
class Noop:
    """One question and how long its answer took."""

    proxied: bool
    sent_at: float
    seconds: float


class Speaker:
    """A session that says NOOP."""

    def __init__(self, wire: Wire, *, proxied: bool) -> None:
        self.socket = wire.socket
        self.socket.setblocking(False)
        self.proxied = proxied
        self._sent: list[float] = []
        self._said = 0
        self._half = b""

    @property
    def waiting(self) -> bool:
        return bool(self._sent)

    def speak(self) -> None:
        self._said += 1
        self._sent.append(time.monotonic())
        self.socket.send(b"n%d NOOP\r\n" % self._said)

    def listen(self) -> Iterator[Noop]:
        """What has been answered."""
        try:
            while data := self.socket.recv(16384):
                *lines, self._half = (self._half + data).split(b"\r\n")
                for line in lines:
                    if line.startswith(b"n"):
                        assert line.split()[1] == b"OK", line
                        sent_at = self._sent.pop(0)
                        yield Noop(self.proxied, sent_at, time.monotonic() - sent_at)
            raise EOFError("a session has ended")
        except (BlockingIOError, ssl.SSLWantReadError):
            return


def speak(imaps_port: int, dovecot_port: int, ca: Path, rate: float, results: Connection) -> None:
    """Say NOOP, each session at this rate, until told to end; then send all that was measured."""
    context = ssl.create_default_context(cafile=str(ca))
    speakers = []
    for number in range(SESSIONS + PAST_THE_PROXY):
        proxied = number < SESSIONS
        wire = Wire.connect(imaps_port, context) if proxied else Wire.connect(dovecot_port)
        assert wire.login("alice", USERS["alice"]).startswith(b"OK")
        speakers.append(Speaker(wire, proxied=proxied))
    measured: list[Noop] = []
    results.send(None)
    with selectors.DefaultSelector() as selector:
        for speaker in speakers:
            selector.register(speaker.socket, selectors.EVENT_READ, speaker)
        every = 1 / (rate * len(speakers))
        due, turn = time.monotonic(), 0
        asked_to_end = False
        while not asked_to_end or any(speaker.waiting for speaker in speakers):
            now = time.monotonic()
            while due <= now:
                if not asked_to_end:
                    speakers[turn % len(speakers)].speak()
                turn, due = turn + 1, due + every
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                measured += key.data.listen()
            asked_to_end = asked_to_end or results.poll()
    results.send(measured)


# --- those who try to log in: another process ---


@dataclass
class Try:
    """One login."""

    answered_at: float
    answer: str


async def _line(stream: Any, start: bytes) -> bytes:
    """The first of the lines to come that starts so; the server says nothing behind it unasked."""
    received = b""
    while True:
        *lines, _ = received.split(b"\r\n")
        for line in lines:
            if line.startswith(start):
                return line
        more = await stream.receive_some()
        if not more:
            raise EOFError("the connection has ended")
        received += more


async def _try(imaps_port: int, context: ssl.SSLContext, name: str, tries: list[Try]) -> str:
    """One login on a connection of its own; its answer in a word."""
    connection = await trio.open_tcp_stream(LOOPBACK, imaps_port)
    stream: Any = trio.SSLStream(connection, context, server_hostname="localhost", https_compatible=True)
    async with stream:
        await _line(stream, b"* OK")
        await stream.send_all(f"a LOGIN {name} {USERS[name]}\r\n".encode())
        answer = (await _line(stream, b"a ")).decode().split()
        word = "OK" if answer[1] == "OK" else answer[2].strip("[]")
        tries.append(Try(time.monotonic(), word))
        await stream.send_all(b"b LOGOUT\r\n")
        await _line(stream, b"b ")
    return word


async def _try_all(imaps_port: int, context: ssl.SSLContext, count: int, seconds: float) -> list[Try]:
    """So many tries, spread over so many seconds."""
    tries: list[Try] = []
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            await trio.sleep_until(began + seconds * number / count)
            nursery.start_soon(_try, imaps_port, context, f"u{number % 20 + 1:02}", tries)
    return tries


async def _try_until_good(imaps_port: int, context: ssl.SSLContext) -> list[Try]:
    """A try every moment, until one succeeds."""
    tries: list[Try] = []

    async def each(nursery: trio.Nursery) -> None:
        if await _try(imaps_port, context, "bob", tries) == "OK":
            nursery.cancel_scope.cancel()

    with trio.fail_after(GIVE_UP_SECONDS):
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(each, nursery)
                await trio.sleep(AGAIN_SECONDS)
    return tries


def attempt(imaps_port: int, ca: Path, orders: Connection) -> None:
    """Carry out orders, (count, seconds) or None for until one succeeds, and answer each with its tries."""
    context = ssl.create_default_context(cafile=str(ca))
    while (order := orders.recv()) != "end":
        if order is None:
            orders.send(trio.run(_try_until_good, imaps_port, context))
        else:
            orders.send(trio.run(_try_all, imaps_port, context, *order))


# --- the measurement ---


@dataclass
class Phase:
    """A part of the run."""

    name: str
    began: float
    ended: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    most_threads: int = 0
    cpu_seconds: float = 0.0
    recovered_seconds: float | None = None


class Run:
    """The phases, and what the proxy's process does in them."""

    def __init__(self, porter: Porter, slapd: Slapd, orders: Connection) -> None:
        self._process = porter.process.pid
        self._slapd = slapd
        self._orders = orders
        self.phases: list[Phase] = []

    def quiet(self) -> None:
        with self._phase("nobody tries"):
            time.sleep(QUIET_SECONDS)

    def tries(self, name: str, count: int, seconds: float) -> None:
        with self._phase(name) as phase:
            self._order((count, seconds), phase)

    def recovery(self, name: str, back: Callable[[], None]) -> None:
        with self._phase(name) as phase:
            back()
            since = time.monotonic()
            good = [each.answered_at for each in self._order(None, phase) if each.answer == "OK"]
            phase.recovered_seconds = min(good) - since

    def _order(self, order: object, phase: Phase) -> list[Try]:
        self._orders.send(order)
        tries: list[Try] = self._orders.recv()
        phase.answers.update(each.answer for each in tries)
        return tries

    @contextmanager
    def _phase(self, name: str) -> Iterator[Phase]:
        over = threading.Event()
        phase = Phase(name, time.monotonic())
        before = self._cpu_seconds()

        def watch() -> None:
            while not over.wait(THREADS_EVERY_SECONDS):
                phase.most_threads = max(phase.most_threads, len(os.listdir(f"/proc/{self._process}/task")))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield phase
        finally:
            over.set()
            watcher.join()
        phase.ended = time.monotonic()
        phase.cpu_seconds = self._cpu_seconds() - before
        self.phases.append(phase)

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def milliseconds(noops: list[Noop]) -> str:
    """p50, p99 and the worst."""
    taken = [noop.seconds * 1000 for noop in noops]
    if len(taken) < 2:
        return f"{'-':>8}{'-':>8}{'-':>8}"
    p99 = quantiles(taken, n=100, method="inclusive")[98]
    return f"{median(taken):8.1f}{p99:8.1f}{max(taken):8.1f}"


def report(phases: list[Phase], noops: list[Noop]) -> None:
    write = sys.stdout.write
    write(f"{'':<28}{'NOOP through the proxy, ms':>26}{'past the proxy, ms':>26}\n")
    figures = f"{'p50':>8}{'p99':>8}{'max':>8}"
    write(f"{'':<28}{figures}{figures}{'threads':>9}{'CPU %':>7}  answers, first good login\n")
    for phase in phases:
        during = [noop for noop in noops if phase.began <= noop.sent_at < phase.ended]
        told = ", ".join(f"{count} {answer}" for answer, count in phase.answers.most_common())
        if phase.recovered_seconds is not None:
            told += f"; after {phase.recovered_seconds:.2f} s"
        cpu = 100 * phase.cpu_seconds / (phase.ended - phase.began)
        write(
            f"{phase.name:<28}{milliseconds([noop for noop in during if noop.proxied])}"
            f"{milliseconds([noop for noop in during if not noop.proxied])}{phase.most_threads:>9}{cpu:7.0f}  {told}\n"
        )


def settings_for(
    pki: Pki, dovecots: list[Dovecot], slapd: Slapd, folder: Path, ports: Ports
) -> tuple[dict[str, Any], dict[str, int]]:
    """A directory that is asked at every login, and the ports that were taken."""
    for name, secret in (("ldap", SERVICE_PASSWORD), ("master", MASTER_PASSWORD)):
        (folder / name).write_text(secret + "\n")
        (folder / name).chmod(0o600)
    urls = {server.name: f"imap://{LOOPBACK}:{server.imap_port}" for server in dovecots}
    settings, taken = porter_settings(pki, urls, ports)
    directory = {
        "urls": [slapd.url],
        "bind": {"dn": SERVICE_DN, "password": {"file": str(folder / "ldap")}},
        "search": {"base": PEOPLE, "filter": "(uid={name})"},
    }
    settings["identity"] = [{"ldap": directory}]
    settings["backends"]["login"] = {"method": "master", "name": MASTER, "password": {"file": str(folder / "master")}}
    settings["cache"] = {"positive": "0s", "negative": "0s"}
    settings["limits"] = {"connections_per_user": 1000, "exempt_networks": ["127.0.0.0/8"]}
    return settings, taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tries", type=int, default=500, help="logins in each phase")
    parser.add_argument("--seconds", type=float, default=5.0, help="over which they are spread")
    parser.add_argument("--rate", type=float, default=5.0, help="NOOPs a second in each session")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="imap-porter-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        ports, pki = Ports(), write_pki(folder / "pki")
        stack.callback(ports.close)
        dovecots = [write_dovecot(name, folder / name, pki, ports) for name in ("d1", "d2")]
        slapd = write_slapd(folder / "slapd", ports, pki)
        servers: list[Dovecot | Slapd] = [*dovecots, slapd]
        for server in servers:
            stack.callback(server.stop)
            server.start()
        settings, taken = settings_for(pki, dovecots, slapd, folder, ports)
        porter = Porter(folder, settings, pki, taken)
        stack.callback(porter.kill)
        spawn = multiprocessing.get_context("spawn")
        (noops, noops_end), (orders, orders_end) = spawn.Pipe(), spawn.Pipe()
        speaking = (porter.imaps_port, dovecots[0].imap_port, pki.ca, chosen.rate, noops_end)
        for target, given in ((speak, speaking), (attempt, (porter.imaps_port, pki.ca, orders_end))):
            process = spawn.Process(target=target, args=given, daemon=True)
            process.start()
            stack.callback(process.kill)
        noops.recv()
        run = Run(porter, slapd, orders)
        run.quiet()
        run.tries("directory as it should be", chosen.tries, chosen.seconds)
        slapd.freeze()
        run.tries("frozen", chosen.tries, chosen.seconds)
        run.recovery("thawed", slapd.thaw)
        run.tries("after that", chosen.tries, chosen.seconds)
        slapd.stop()
        run.tries("stopped", chosen.tries, chosen.seconds)
        run.recovery("started again", slapd.start)
        run.tries("after that", chosen.tries, chosen.seconds)
        run.quiet()
        orders.send("end")
        noops.send(None)
        report(run.phases, noops.recv())


if __name__ == "__main__":
    main()
