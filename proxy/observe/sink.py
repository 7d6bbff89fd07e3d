"""Where log lines wait for their writer: a bounded queue and one thread; or none, in a process that forks.

Theory of operation. put() takes a lock for a moment, appends and returns; it never writes, so a pipe that nobody
reads or a disk that hangs holds up the writer thread and nothing else. The writer sleeps until a first line comes,
waits a moment for more, and writes all of them at once. When lines or octets in the queue reach their bound, new
lines are lost and counted; once the queue has drained, a line says how many.

The lock is reentrant because a signal handler or a finalizer may log while its own thread is inside put().

A process that forks must have no threads: what they hold at that moment is held for ever in the child. It writes its
few lines itself, as far as that is possible without waiting (DirectSink), and keeps the rest for the next time.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

# 20,000 session lines of 400 octets: some 20 s of a login storm while a log collector restarts.
MAX_LINES = 20_000
MAX_BYTES = 8 * 1024 * 1024
GATHER_SECONDS = 0.1
_FILE_WRITE_BYTES = 256 * 1024


class Sink(Protocol):
    """Takes lines and never makes anybody wait."""

    def put(self, line: bytes) -> None: ...

    def take_dropped(self) -> int: ...

    def close(self, timeout: float = 2.0) -> bool: ...

    def after_fork(self) -> None: ...


class LogSink:
    """A file descriptor that may block, written to by a thread of its own."""

    def __init__(
        self,
        descriptor: int,
        lost_line: Callable[[int], bytes],
        *,
        max_lines: int = MAX_LINES,
        max_bytes: int = MAX_BYTES,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        """Start nothing yet: the thread comes with the first line, so a process may fork before.

        Args:
            descriptor: Stays open and as it is.
            lost_line: Makes the line that reports so many lost lines.
        """
        self._descriptor = descriptor
        self._lost_line = lost_line
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._gather_seconds = gather_seconds
        # Processes share a pipe: what is longer than PIPE_BUF may be torn by another's lines (pipe(7)).
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._write_bytes = _FILE_WRITE_BYTES if regular else select.PIPE_BUF
        self.dropped = 0  # lines lost since the start
        self._reported = 0  # of these: known to whoever reads the log
        self._counted = 0  # of these: known to the metrics
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._wake = threading.Semaphore(0)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._awake = False  # the writer has been called and has not yet seen an empty queue
        self._queue: list[bytes] = []
        self._waiting_lines = 0  # in the queue, or taken and not yet written
        self._waiting_bytes = 0

    def after_fork(self) -> None:
        """In a child: begin anew. The writer thread stayed in the parent, and so do the lines it still has."""
        self._reset()
        self.dropped = self._reported = self._counted = 0

    def put(self, line: bytes) -> None:
        """Queue a line, or lose it if there is no room. Never waits for the descriptor."""
        with self._lock:
            size = self._waiting_bytes + len(line)
            if self._closed or size > self._max_bytes or self._waiting_lines >= self._max_lines:
                self.dropped += 1
                return
            self._queue.append(line)
            self._waiting_bytes = size
            self._waiting_lines += 1
            if not self._awake:
                self._call_writer()

    def take_dropped(self) -> int:
        """How many lines were lost since the last call."""
        dropped = self.dropped
        news, self._counted = dropped - self._counted, dropped
        return news

    def close(self, timeout: float = 2.0) -> bool:
        """Write what waits, for at most `timeout` seconds; then take no more. True: all of it was written."""
        with self._lock:
            self._closed = True
            self._closing.set()
            if self._thread is None:
                return not self._queue
            if not self._awake:
                self._call_writer()
            thread = self._thread
        thread.join(timeout)
        return not thread.is_alive()

    def _call_writer(self) -> None:
        self._awake = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            self._thread.start()
        self._wake.release()

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            self._closing.wait(self._gather_seconds)
            while lines := self._take():
                self._write_lines(lines)
            with self._lock:  # a line may have come since, but none can come once it is closed
                if self._closed and not self._queue:
                    return

    def _take(self) -> list[bytes]:
        """All queued lines; when there are none, the report of lost ones, and then the writer may sleep."""
        with self._lock:
            lines, self._queue = self._queue, []
            if not lines and (lost := self.dropped - self._reported):
                self._reported = self.dropped
                lines = [self._lost_line(lost)]
                self._waiting_lines += 1
                self._waiting_bytes += len(lines[0])
            if not lines:
                self._awake = False
            return lines

    def _write_lines(self, lines: list[bytes]) -> None:
        start = 0
        while start < len(lines):
            end, size = start + 1, len(lines[start])
            while end < len(lines) and size + len(lines[end]) <= self._write_bytes:
                size += len(lines[end])
                end += 1
            written = self._write(b"".join(lines[start:end]))
            with self._lock:
                self._waiting_lines -= end - start
                self._waiting_bytes -= size
                if not written:
                    # Nothing can say so here: the reader is gone or the disk is full. The metric still counts.
                    self.dropped += end - start
                    self._reported = self.dropped
            start = end

    def _write(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # somebody who shares the descriptor made it non-blocking
                writable = select.poll()
                writable.register(self._descriptor, select.POLLOUT)
                writable.poll()
            except OSError:
                return False
        return True


class DirectSink:
    """A file descriptor that may block, written to without a thread.

    put() and pump() write what can be written at once; the lines that are left wait for the next call, in a queue with
    the same bounds.
    """

    def __init__(self, descriptor: int, lost_line: Callable[[int], bytes], *, max_lines: int = MAX_LINES) -> None:
        """As LogSink."""
        self._descriptor = descriptor
        self._lost_line = lost_line
        self._max_lines = max_lines
        self._mode = os.fstat(descriptor).st_mode
        self._own: int | None = None
        if stat.S_ISFIFO(self._mode):
            try:
                # Whoever shares the pipe has it blocking, and that is not ours to change: an opening of our own isn't.
                self._own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                self._own = None  # another user's pipe: poll() in _write has to do
        self._queue: deque[bytes] = deque()
        self._waiting_bytes = 0
        self.dropped = 0
        self._reported = 0
        self._counted = 0
        self._closed = False

    def after_fork(self) -> None:
        """In a child: the lines that wait are the parent's."""
        self._queue.clear()
        self._waiting_bytes = 0
        self.dropped = self._reported = self._counted = 0

    def put(self, line: bytes) -> None:
        """Write a line, or keep it for later, or lose it if there is no room."""
        full = len(self._queue) >= self._max_lines or self._waiting_bytes + len(line) > MAX_BYTES
        if self._closed or full:
            self.dropped += 1
            return
        self._queue.append(line)
        self._waiting_bytes += len(line)
        self.pump()

    def pump(self) -> bool:
        """Write what waits, as far as that is possible at once. True: nothing is left."""
        while self._queue:
            line = self._queue[0]
            written = self._write(line[: select.PIPE_BUF])
            if written is None:
                return False
            self._waiting_bytes -= written
            if written == len(line):
                self._queue.popleft()
            else:
                self._queue[0] = line[written:]
            if not self._queue and (lost := self.dropped - self._reported):
                self._reported = self.dropped
                self._queue.append(self._lost_line(lost))
                self._waiting_bytes += len(self._queue[0])
        return True

    def take_dropped(self) -> int:
        """How many lines were lost since the last call."""
        dropped = self.dropped
        news, self._counted = dropped - self._counted, dropped
        return news

    def close(self, timeout: float = 2.0) -> bool:
        """Write what waits, for at most `timeout` seconds; then take no more. True: all of it was written."""
        self._closed = True
        deadline = time.monotonic() + timeout
        while not self.pump() and (left := deadline - time.monotonic()) > 0:
            writable = select.poll()
            writable.register(self._descriptor, select.POLLOUT)
            writable.poll(min(left, 0.1) * 1000)
        if self._own is not None:
            os.close(self._own)
            self._own = None
        return not self._queue

    def _write(self, data: bytes) -> int | None:
        """Write, if that needs no waiting. None: it would; everything, too, when there is nobody left to read it."""
        try:
            if stat.S_ISSOCK(self._mode):
                with socket.socket(fileno=os.dup(self._descriptor)) as sock:
                    return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if self._own is not None:
                return os.write(self._own, data)
            writable = select.poll()
            writable.register(self._descriptor, select.POLLOUT)
            return os.write(self._descriptor, data) if writable.poll(0) else None
        except BlockingIOError:
            return None
        except OSError:
            self.dropped += 1
            self._reported = self.dropped
            return len(data)
