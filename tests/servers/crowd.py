"""Many clients at once, each of which writes down what became of it."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from tests.servers.ports import LOOPBACK

_PATIENCE_SECONDS = 60.0


@dataclass
class Record:
    """What became of one client's connection."""

    name: str
    kind: str  # idle, noop, slow or brief
    logged_in: bool = False
    refused: bytes = b""  # the answer to LOGIN, where it was no OK
    asked: int = 0  # commands
    answered: int = 0
    farewell: bytes = b""  # the BYE line
    torn: bool = False  # it ended inside a response
    ended: float = 0.0  # monotonic; 0.0: it has not
    trouble: str = ""  # what kept it from logging in
    seconds: list[float] = field(default_factory=list)  # how long each command took

    @property
    def lost(self) -> int:
        """Commands that were never answered."""
        return self.asked - self.answered


class _Caller:
    """One client."""

    def __init__(self, crowd: Crowd, record: Record) -> None:
        self._crowd, self.record = crowd, record
        self._buffer = b""
        self._count = 0
        self._stream: trio.SSLStream[trio.SocketStream]

    async def run(self) -> None:
        record = self.record
        try:
            await self._log_in()
        except (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError) as exc:
            record.trouble = f"{type(exc).__name__}: {exc}"
            record.ended = time.monotonic()
            return
        try:
            if record.logged_in:
                await getattr(self, f"_{record.kind}")()
        except (OSError, EOFError, trio.BrokenResourceError):
            record.torn = record.torn or (bool(self._buffer) and not record.farewell)
        finally:
            record.ended = time.monotonic()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    async def _log_in(self) -> None:
        with trio.fail_after(_PATIENCE_SECONDS):
            plain = await trio.open_tcp_stream(LOOPBACK, self._crowd.port)
            self._stream = trio.SSLStream(plain, self._crowd.context, server_hostname="localhost")
            if not (greeting := await self._line()).startswith(b"* OK"):
                raise EOFError(greeting)
            await self._stream.send_all(b"a LOGIN %b %b\r\n" % (self.record.name.encode(), self._crowd.password))
            while not (answer := await self._line()).startswith(b"a "):
                pass
        if answer.startswith(b"a OK"):
            self.record.logged_in = True
        else:
            self.record.refused = answer

    async def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            received = await self._stream.receive_some(4096)
            if not received:
                raise EOFError(self._buffer)
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        if line.startswith(b"* BYE"):
            self.record.farewell = line
        return line

    async def _command(self, text: bytes) -> None:
        self._count += 1
        tag = b"c%d " % self._count
        began = time.monotonic()
        await self._stream.send_all(tag + text + b"\r\n")
        self.record.asked += 1
        while not (await self._line()).startswith(tag):
            if self.record.farewell:
                raise EOFError
        self.record.answered += 1
        self.record.seconds.append(time.monotonic() - began)

    async def _noop(self) -> None:
        """NOOP about once a second."""
        while True:
            await self._pause(random.uniform(0.5, 1.5))
            await self._command(b"NOOP")

    async def _idle(self) -> None:
        """IDLE until the connection ends."""
        await self._stream.send_all(b"i IDLE\r\n")
        while True:
            await self._line()

    async def _slow(self) -> None:
        """Inside a response nearly always (see tests.servers.sink)."""
        while True:
            self._count += 1
            await self._stream.send_all(b"s%d SLOW\r\n" % self._count)
            if (line := await self._line()).startswith(b"* BYE"):
                await self._line()
            self.record.torn = True
            size = int(line.partition(b"{")[2].rstrip(b"}"))
            while len(self._buffer) < size:
                received = await self._stream.receive_some(4096)
                if not received:
                    raise EOFError
                self._buffer += received
            self._buffer = self._buffer[size:]
            await self._line()
            self.record.torn = False
            await self._line()

    async def _brief(self) -> None:
        """In, one NOOP, out."""
        await self._command(b"NOOP")
        await self._stream.send_all(b"o LOGOUT\r\n")
        while True:
            await self._line()

    async def _pause(self, seconds: float) -> None:
        """Wait, but notice a farewell meanwhile."""
        with trio.move_on_after(seconds):
            while True:
                await self._line()


class Crowd:
    """Clients in a thread of their own."""

    def __init__(self, port: int, context: ssl.SSLContext, password: str) -> None:
        self.port, self.context, self.password = port, context, password.encode()
        self.records: list[Record] = []
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery
        self._stop: trio.Event
        self._ready = threading.Event()
        self._rate = 0.0
        self._names: Sequence[str] = ()
        self._steady: trio.CancelScope | None = None

    def run(self) -> None:
        """The thread's work."""
        trio.run(self._main)

    async def _main(self) -> None:
        self._token, self._stop = trio.lowlevel.current_trio_token(), trio.Event()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await self._stop.wait()
            self._nursery.cancel_scope.cancel()

    def call(self, names: Sequence[str], kind: str) -> list[Record]:
        """A client for each name, all at once."""
        records = [Record(name, kind) for name in names]
        self.records += records
        trio.from_thread.run_sync(self._start, records, trio_token=self._token)
        return records

    def _start(self, records: Sequence[Record]) -> None:
        for record in records:
            self._nursery.start_soon(_Caller(self, record).run)

    def come_and_go(self, names: Sequence[str], per_second: float) -> list[Record]:
        """From now on so many brief clients a second, until hold(); gives the list that grows."""
        records: list[Record] = []
        trio.from_thread.run_sync(self._begin, names, per_second, records, trio_token=self._token)
        return records

    def _begin(self, names: Sequence[str], per_second: float, records: list[Record]) -> None:
        self._steady = trio.CancelScope()
        self._nursery.start_soon(self._flow, names, per_second, records, self._steady)

    async def _flow(
        self, names: Sequence[str], per_second: float, records: list[Record], scope: trio.CancelScope
    ) -> None:
        with scope:
            due = trio.current_time()
            while True:
                due += 1 / per_second
                await trio.sleep_until(due)
                records.append(Record(random.choice(names), "brief"))
                self._nursery.start_soon(_Caller(self, records[-1]).run)

    def hold(self) -> None:
        """No more clients come and go."""
        trio.from_thread.run_sync(lambda: self._steady and self._steady.cancel(), trio_token=self._token)

    def leave(self) -> None:
        """All connections end."""
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)


def wait_until(claim: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return when it has come true."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


@contextmanager
def crowd(port: int, context: ssl.SSLContext, password: str) -> Iterator[Crowd]:
    """Clients of one listener with TLS from the start."""
    gathered = Crowd(port, context, password)
    thread = threading.Thread(target=gathered.run)
    thread.start()
    try:
        assert gathered._ready.wait(10)
        yield gathered
    finally:
        gathered.leave()
        thread.join(30)
