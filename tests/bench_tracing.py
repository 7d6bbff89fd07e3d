"""What looking on costs, and nothing where nobody does. By hand: `python tests/bench_tracing.py`.

Through a relay on socket pairs, all ends in this process. Figures of one run compare, others don't.
"""

from __future__ import annotations

import socket
import sys
import timeit
from collections.abc import Callable
from time import monotonic

from proxy.imap.observer import Observer
from proxy.ledger.session import Session
from proxy.model import Endpoint
from proxy.relay.engine import IN, Engine
from proxy.relay.partings import Partings
from proxy.relay.relay import Relay
from proxy.relay.splice import Carriage
from proxy.relay.tracing import LINES_PER_SECOND, Tracing
from proxy.transport.stream import PlainStream

COMMAND = b"a123 NOOP\r\n"
ANSWER = b"a123 OK NOOP completed (0.001 + 0.000 secs).\r\n"
BODY = b"* 1 FETCH (UID 7 BODY[] {131000}\r\n" + b"x" * 131000 + b")\r\n"


class NoTally:
    bytes_from_client = bytes_from_backend = 0

    def finished(self, command: str, seconds: float) -> None:
        pass

    def idle(self, change: int) -> None:
        pass

    def blind(self, reason: str) -> None:
        raise AssertionError(reason)


def best(run: Callable[[], object], number: int) -> float:
    return min(timeit.repeat(run, number=number, repeat=7)) / number


def report(what: str, seconds: float) -> None:
    sys.stdout.write(f"{what:<40}{seconds * 1e6:10.3f} µs\n")


class Stage:
    """A relay, and both outer ends of it."""

    def __init__(self) -> None:
        client, self.client = socket.socketpair()
        backend, self.backend = socket.socketpair()
        for sock in (client, backend, self.client, self.backend):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        engine, tally = Engine(), NoTally()
        partings = Partings(10.0)
        carriage = Carriage(tally, 1860.0, lambda relay, outcome: None, lambda relay: None, partings)
        session = Session(Endpoint("192.0.2.1", 4711), "bench", name="ann")
        streams = PlainStream(client), PlainStream(backend)
        self.relay = Relay(engine, session, *streams, Observer(tally, monotonic), carriage)
        self.relay.start(b"", b"")

    def exchange(self) -> None:
        self.client.send(COMMAND)
        self.relay.on_client(IN)
        self.backend.recv(4096)
        self.backend.send(ANSWER)
        self.relay.on_backend(IN)
        self.client.recv(4096)

    def download(self) -> None:
        sent = self.backend.send(BODY)
        while sent:
            self.relay.on_backend(IN)
            sent -= len(self.client.recv(1 << 20))


def measure(what: str, stage: Stage) -> None:
    report(f"NOOP, {what}", best(stage.exchange, 20_000))
    report(f"128 KiB of mail, {what}", best(stage.download, 500))


if __name__ == "__main__":
    told: list[str] = []

    def tell(trace: str, session: str, side: str, text: str) -> bool:
        told.append(text)
        return True

    stage = Stage()
    now = 0.0
    tracing = Tracing(lambda: now)
    tracing.on_line = tell
    measure("not looked at", stage)
    tracing.begin("t1", "ann", 60.0, [stage.relay])
    report("NOOP, looked at", best(stage.exchange, 100))
    measure("looked at, too many lines", stage)
    assert len(told) == LINES_PER_SECOND
    tracing.end("t1")
    measure("not looked at any more", stage)
