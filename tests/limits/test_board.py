"""Workers count where all of them see it: processes that are really forked, live on after an exec, and are killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy.limits import board as board_module
from proxy.limits.admission import Admission
from proxy.limits.board import MOST_ROWS, SLOTS, Board
from proxy.settings.limit_models import Limits


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board.create()
    yield made
    os.close(made.descriptor)


def test_rows_are_given_out_lowest_first(board: Board) -> None:
    assert [board.take_row() for _ in range(4)] == [0, 1, 2, 3]
    board.free_row(1)
    board.free_row(0)
    assert [board.take_row() for _ in range(3)] == [0, 1, 4]


def test_there_is_an_end_of_rows(board: Board) -> None:
    for _ in range(MOST_ROWS):
        board.take_row()
    with pytest.raises(OSError, match="more workers") as caught:
        board.take_row()
    assert caught.value.errno == errno.ENOSPC
    last = board.row(MOST_ROWS - 1)
    last.add(3)
    last.add_from(SLOTS - 1, 2)
    assert board.row(0).elsewhere() == 3
    assert board.row(0).elsewhere_from(SLOTS - 1) == 2


def test_one_counts_what_the_others_have(board: Board) -> None:
    rows = [board.row(board.take_row()) for _ in range(3)]
    for number, row in enumerate(rows):
        row.add(10**number)
        row.add_from(5, 2 * 10**number)
    assert [row.elsewhere() for row in rows] == [110, 101, 11]
    assert [row.elsewhere_from(5) for row in rows] == [220, 202, 22]
    assert [row.elsewhere_from(6) for row in rows] == [0, 0, 0]
    board.free_row(1)
    assert [rows[0].elsewhere(), rows[2].elsewhere()] == [100, 1]
    assert rows[board.take_row()].elsewhere_from(5) == 202
    assert rows[0].elsewhere() == 100  # who comes after him begins with nothing


def test_below_nothing_there_is_nothing(board: Board) -> None:
    row = board.row(board.take_row())
    with pytest.raises(ValueError, match="invalid value"):
        row.add(-1)


def test_all_who_map_a_board_hash_alike_and_other_boards_do_not(board: Board) -> None:
    networks = [bytes([10, 0, high, low]) for high in range(4) for low in range(100)]
    mine = [board.row(0).slot(network) for network in networks]
    assert mine == [Board(board.descriptor).row(1).slot(network) for network in networks]
    other = Board.create()
    theirs = [other.row(0).slot(network) for network in networks]
    os.close(other.descriptor)
    assert sum(one == another for one, another in zip(mine, theirs, strict=True)) < 5
    assert len(set(mine)) > 390
    assert all(0 <= slot < SLOTS for slot in mine)


def test_nobody_can_cut_it(board: Board) -> None:
    """A worker that did would kill all that look at the board."""
    with pytest.raises(PermissionError):
        os.ftruncate(board.descriptor, 0)
    assert not os.get_inheritable(board.descriptor)


@pytest.mark.parametrize("size", [0, 100, board_module._BYTES])
def test_what_is_no_board(size: int) -> None:
    descriptor = os.memfd_create("no-board")
    os.ftruncate(descriptor, size)
    with pytest.raises(ValueError, match="no board"):
        Board(descriptor)
    os.close(descriptor)


def test_a_row_takes_little_memory(board: Board) -> None:
    row, other = board.row(board.take_row()), board.row(board.take_row())
    for slot in range(SLOTS):
        row.add_from(slot, 1)
        other.elsewhere_from(slot)
    assert os.fstat(board.descriptor).st_blocks * 512 <= 600_000


AFTER_EXEC = """
import os, sys
from proxy.limits.board import Board
board = Board(int(sys.argv[1]))
row = board.row(1)
assert (row.elsewhere(), row.elsewhere_from(7)) == (5, 2)
row.add(1)
print(board.take_row())
"""


def test_it_lives_on_after_an_exec(board: Board) -> None:
    row = board.row(board.take_row())
    assert board.take_row() == 1
    row.add(5)
    row.add_from(7, 2)
    command = [sys.executable, "-c", AFTER_EXEC, str(board.descriptor)]
    told = subprocess.run(command, pass_fds=[board.descriptor], capture_output=True, text=True, check=True)
    assert told.stdout == "2\n"
    assert row.elsewhere() == 1
    assert board.take_row() == 3


# --- several processes ---

CONNECTIONS, PER_ADDRESS = 6, 3
LIMITS = Limits(connections=CONNECTIONS, connections_per_address=PER_ADDRESS)
ADDRESSES = ["192.0.2.1", "192.0.2.2", "2001:db8::1"]


class Worker:
    """A forked process with an admission of its own, which does what it is told."""

    def __init__(self, board: Board) -> None:
        self.row = board.take_row()
        self._end, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.inside: list[str | None] = []  # what it should have
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._end.close()
                _obey(far, Admission(LIMITS, Board(board.descriptor).row(self.row)))
                status = 0
            finally:
                os._exit(status)
        far.close()

    def ask(self, *order: str | None) -> Any:
        """Have it do something; gives what came of it."""
        self._end.send(json.dumps(order).encode())
        return json.loads(self._end.recv(1000))

    def kill(self, board: Board) -> None:
        """End it as a crash does, and do as the master does then."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._end.close()
        board.free_row(self.row)


def _obey(sock: socket.socket, admission: Admission) -> None:
    while order := sock.recv(1000):
        method, *arguments = json.loads(order)
        sock.send(json.dumps(getattr(admission, method)(*arguments)).encode())


STEPS = st.one_of(
    st.tuples(st.just("admit"), st.integers(0, 2), st.sampled_from(ADDRESSES)),
    st.tuples(st.just("admit"), st.integers(0, 2), st.sampled_from(ADDRESSES)),
    st.tuples(st.just("admit_unknown"), st.integers(0, 2)),
    st.tuples(st.just("release"), st.integers(0, 2), st.integers(0, 9)),
    st.tuples(st.just("killed"), st.integers(0, 2)),
)


@settings(max_examples=30)
@given(st.lists(STEPS, min_size=5, max_size=40))
def test_forked_workers_keep_the_limits_together_and_the_killed_leave_nothing(steps: list[tuple[Any, ...]]) -> None:
    board = Board.create()
    watch = board.row(MOST_ROWS - 1)  # of nobody: it sees all rows
    assume(len({watch.slot(packed(address)) for address in ADDRESSES}) == len(ADDRESSES))  # one key in 20,000
    workers = [Worker(board) for _ in range(3)]
    try:
        for step in steps:
            _step(board, workers, step)
            inside = [address for worker in workers for address in worker.inside]
            assert watch.elsewhere() == len(inside)
            known = Counter(address for address in inside if address is not None)
            assert all(count <= PER_ADDRESS for count in known.values())
            on_board = sum(
                watch.elsewhere_from(slot) for slot in {watch.slot(packed(address)) for address in ADDRESSES}
            )
            assert on_board == known.total()
        for worker in workers:
            for address in worker.inside:
                worker.ask("release", address)
        assert watch.elsewhere() == 0
    finally:
        for worker in workers:
            worker.kill(board)
        os.close(board.descriptor)


def _step(board: Board, workers: list[Worker], step: tuple[Any, ...]) -> None:
    inside = [address for worker in workers for address in worker.inside]
    worker = workers[step[1]]
    match step:
        case ("admit", _, address):
            expected = "connections" if len(inside) >= CONNECTIONS else None
            if expected is None and inside.count(address) >= PER_ADDRESS:
                expected = "connections_per_address"
            assert worker.ask("admit", address) == expected
            worker.inside += [] if expected else [address]
        case ("admit_unknown", _):
            expected = "connections" if len(inside) >= CONNECTIONS else None
            assert worker.ask("admit_unknown") == expected
            worker.inside += [] if expected else [None]
        case ("release", _, which) if worker.inside:
            worker.ask("release", worker.inside.pop(which % len(worker.inside)))
        case ("killed", index):
            worker.kill(board)
            workers[index] = Worker(board)
            assert workers[index].row == worker.row


def packed(address: str) -> bytes:
    """The network that an address counts in."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)[:8] + bytes(8)
    return socket.inet_pton(socket.AF_INET, address)


def test_all_at_the_same_moment_count_each_of_theirs(board: Board) -> None:
    """Each has its own row, so that nothing is lost; too many get in by at most one for each worker."""
    workers = []
    start_read, start_write = os.pipe()
    for _ in range(4):
        row = board.take_row()
        pid = os.fork()
        if pid == 0:
            os.close(start_write)
            os.read(start_read, 1)  # until all are there
            admission = Admission(
                Limits(connections=1000, connections_per_address=1000), Board(board.descriptor).row(row)
            )
            while admission.admit("192.0.2.1") is None:
                pass
            os._exit(0 if admission.open <= 1000 else 1)
        workers.append(pid)
    os.close(start_read)
    os.close(start_write)
    assert [os.waitpid(pid, 0)[1] for pid in workers] == [0] * 4
    watch = board.row(MOST_ROWS - 1)
    assert 1000 <= watch.elsewhere() < 1000 + 4
    assert watch.elsewhere_from(watch.slot(packed("192.0.2.1"))) == watch.elsewhere()
