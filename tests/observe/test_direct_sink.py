"""Lines written without a thread, to readers who are slow, gone, or sit at a socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from proxy.observe.sink import DirectSink

LINE = b"x" * 99 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            pass


def lost_line(lines: int) -> bytes:
    return b"lost %d\n" % lines


def read_what_is_there(descriptor: int) -> bytes:
    data = b""
    try:
        while chunk := os.read(descriptor, 1 << 16):
            data += chunk
    except BlockingIOError:
        pass
    return data


def test_a_line_is_written_at_once_and_by_nobody_else(pipe: tuple[int, int]) -> None:
    sink = DirectSink(pipe[1], lost_line)
    threads = threading.active_count()
    for number in range(100):
        sink.put(b"%d\n" % number)
    assert read_what_is_there(pipe[0]) == b"".join(b"%d\n" % number for number in range(100))
    assert threading.active_count() == threads
    assert sink.close()


def test_a_blocked_pipe_blocks_nobody_and_the_losses_are_reported(pipe: tuple[int, int]) -> None:
    sink = DirectSink(pipe[1], lost_line, max_lines=50)
    for _ in range(2000):  # this returns, though nobody reads
        sink.put(LINE)
    assert sink.dropped > 500
    assert os.get_blocking(pipe[1])  # whoever shares it does not notice
    data = b""
    while not sink.pump():
        data += read_what_is_there(pipe[0])
    data += read_what_is_there(pipe[0])
    lines = data.splitlines(keepends=True)
    assert lines[-1] == b"lost %d\n" % sink.dropped
    assert lines[:-1] == [LINE] * (2000 - sink.dropped)
    assert (sink.take_dropped(), sink.take_dropped()) == (2000 - len(lines) + 1, 0)
    assert sink.close()


def test_close_gives_up_on_a_blocked_pipe(pipe: tuple[int, int]) -> None:
    sink = DirectSink(pipe[1], lost_line)
    for _ in range(2000):
        sink.put(LINE)
    assert not sink.close(0.01)
    sink.put(LINE)
    assert sink.dropped == 1


def test_a_reader_that_is_gone_costs_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    sink = DirectSink(pipe[1], lost_line)
    os.close(pipe[0])
    sink.put(LINE)
    sink.put(LINE)
    assert sink.dropped == 2
    assert sink.close()


def test_a_line_longer_than_the_pipe_takes_at_once(pipe: tuple[int, int]) -> None:
    sink = DirectSink(pipe[1], lost_line)
    long = b"y" * 200_000 + b"\n"
    sink.put(long)
    data = b""
    while not sink.pump():
        data += read_what_is_there(pipe[0])
    assert data + read_what_is_there(pipe[0]) == long
    assert sink.close()


def test_a_socket_as_the_journal_has_it() -> None:
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with reader, writer:
        reader.setblocking(False)
        sink = DirectSink(writer.fileno(), lost_line)
        for _ in range(20_000):
            sink.put(LINE)
        assert writer.getblocking()
        data = b""
        while not sink.pump():
            data += read_what_is_there(reader.fileno())
        assert data + read_what_is_there(reader.fileno()) == LINE * 20_000
        assert sink.close()


def test_a_file() -> None:
    descriptor = os.memfd_create("log")
    sink = DirectSink(descriptor, lost_line)
    sink.put(LINE)
    assert sink.close()
    assert os.pread(descriptor, 1000, 0) == LINE
    os.close(descriptor)


def test_after_a_fork_the_lines_that_wait_are_the_parents(pipe: tuple[int, int]) -> None:
    sink = DirectSink(pipe[1], lost_line)
    for _ in range(2000):
        sink.put(LINE)
    sink.after_fork()
    read_what_is_there(pipe[0])
    sink.put(b"child\n")
    assert sink.close()
    assert read_what_is_there(pipe[0]).endswith(b"child\n")
