"""The queue and its writer thread, on pipes that are read late, never, or by nobody."""

from __future__ import annotations

import fcntl
import os
import select
import threading
from collections.abc import Iterator

import pytest

from proxy.observe.sink import LogSink

LINE = b"x" * 99 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            pass


def lost_line(lines: int) -> bytes:
    return b"lost %d\n" % lines


def read_to_end(descriptor: int) -> bytes:
    data = b""
    while chunk := os.read(descriptor, 1 << 16):
        data += chunk
    return data


def test_lines_arrive_in_order(pipe: tuple[int, int]) -> None:
    sink = LogSink(pipe[1], lost_line)
    expected = [b"%d\n" % number for number in range(1000)]
    for line in expected:
        sink.put(line)
    assert sink.close(5)
    os.close(pipe[1])
    assert read_to_end(pipe[0]) == b"".join(expected)
    assert sink.dropped == 0


def test_a_blocked_pipe_blocks_nobody_and_the_losses_are_reported(pipe: tuple[int, int]) -> None:
    capacity = fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ)
    sink = LogSink(pipe[1], lost_line, max_lines=50, gather_seconds=0)
    fits = capacity // len(LINE) + 50
    for _ in range(fits + 500):  # this returns, though nobody reads
        sink.put(LINE)
    assert sink.dropped >= 450
    reading: list[bytes] = []
    reader = threading.Thread(target=lambda: reading.append(read_to_end(pipe[0])))
    reader.start()
    assert sink.close(5)
    os.close(pipe[1])
    reader.join(5)
    lines = reading[0].splitlines(keepends=True)
    assert lines[-1] == b"lost %d\n" % sink.dropped
    assert lines.count(LINE) == fits + 500 - sink.dropped


def test_the_queue_is_bounded_by_octets_too(pipe: tuple[int, int]) -> None:
    sink = LogSink(pipe[1], lost_line, max_bytes=250)
    for _ in range(3):
        sink.put(LINE)
    assert sink.dropped == 1
    sink.put(b"short\n")
    assert sink.dropped == 1
    assert sink.close(5)


def test_losses_are_told_once_to_the_metrics(pipe: tuple[int, int]) -> None:
    sink = LogSink(pipe[1], lost_line, max_bytes=10)
    sink.put(LINE)
    sink.put(LINE)
    assert (sink.take_dropped(), sink.take_dropped()) == (2, 0)


def test_close_gives_up_on_a_blocked_pipe(pipe: tuple[int, int]) -> None:
    sink = LogSink(pipe[1], lost_line, gather_seconds=0)
    for _ in range(2000):
        sink.put(LINE)
    assert not sink.close(0.01)
    sink.put(LINE)
    assert sink.dropped == 1
    os.set_blocking(pipe[0], False)
    poll = select.poll()  # takes descriptors beyond 1023, too
    poll.register(pipe[0], select.POLLIN)
    while sink._thread is not None and sink._thread.is_alive():  # let the thread end before the descriptor does
        poll.poll(10)
        try:
            os.read(pipe[0], 1 << 16)
        except BlockingIOError:
            pass


def test_a_reader_that_is_gone_costs_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    sink = LogSink(pipe[1], lost_line)
    sink.put(LINE)
    sink.put(LINE)
    assert sink.close(5)
    assert sink.dropped == 2


def test_a_descriptor_that_somebody_made_nonblocking(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    sink = LogSink(pipe[1], lost_line)
    for _ in range(2000):
        sink.put(LINE)
    reading: list[bytes] = []
    reader = threading.Thread(target=lambda: reading.append(read_to_end(pipe[0])))
    reader.start()
    assert sink.close(5)
    os.close(pipe[1])
    reader.join(5)
    assert reading == [LINE * 2000]


def test_lines_of_several_writers_to_one_pipe_are_never_torn(pipe: tuple[int, int]) -> None:
    sinks = [LogSink(pipe[1], lost_line) for _ in range(3)]
    for number, sink in enumerate(sinks):
        for _ in range(1000):
            sink.put(b"%d" % number * 80 + b"\n")
    reading: list[bytes] = []
    reader = threading.Thread(target=lambda: reading.append(read_to_end(pipe[0])))
    reader.start()
    assert all(sink.close(5) for sink in sinks)
    os.close(pipe[1])
    reader.join(5)
    lines = reading[0].splitlines()
    assert len(lines) == 3000
    assert {bytes(line) for line in lines} == {b"0" * 80, b"1" * 80, b"2" * 80}


def test_after_a_fork_the_child_begins_anew(pipe: tuple[int, int]) -> None:
    sink = LogSink(pipe[1], lost_line, gather_seconds=60)  # the parent's line waits
    sink.put(b"parent\n")
    sink.after_fork()  # as in the child: its thread stayed in the parent
    sink.put(b"child\n")
    assert sink.close(5)
    os.close(pipe[1])
    assert read_to_end(pipe[0]) == b"child\n"
