"""How many connections each worker has, where all workers of a host see it: shared memory, and no message.

Theory of operation. The board is a file in memory (memfd_create(2)) that whoever has its descriptor maps; so it
survives forks, and the exec of an upgrade. It has a row for each worker: how many connections he has in all, and, by a
hash of the client's network, how many from there. A worker writes to his own row only, and adds up the others'. The
master gives rows out and takes them back; one that he takes back is zeroed, so that what a killed worker had is free.

- A number has one writer and is stored by one instruction, aligned: nobody reads half of one, and no lock is needed.
- Between a worker's look and his own change others may look, too: each of them may let one connection more in than
  there should be. Nobody is ever counted twice or forgotten for that.
- Networks that share a slot count together: somebody may reach his limit too early, never too late. A worker tells his
  own connections apart exactly (`admission`), and with 20,000 networks at 65,536 slots three of four share with nobody.
  The hash has a key, drawn for each board, for else networks could be chosen to share a slot with somebody.
- A row takes up to 260 KiB, and none before it is looked at.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
from hashlib import blake2b
from typing import Final

MOST_ROWS: Final = 4096  # workers of all generations that still have a session
SLOTS: Final = 65_536

_MAGIC = b"porterboard 1\0\0\0"
_KEY = slice(16, 48)
_TAKEN = slice(4096, 4096 + MOST_ROWS)  # an octet for each row: whether a worker has it
_HEADER_BYTES = 8192
_NUMBER_BYTES = 4
_ROW_BYTES = SLOTS * _NUMBER_BYTES + 4096  # whole pages, so that rows share none
_ROW_NUMBERS = _ROW_BYTES // _NUMBER_BYTES
_TOTAL = SLOTS  # behind the slots
_BYTES = _HEADER_BYTES + MOST_ROWS * _ROW_BYTES


class Board:
    """The rows of all workers. The master's is kept for good; a worker asks his for his own row."""

    def __init__(self, descriptor: int) -> None:
        """Map the board that a descriptor leads to, which stays the caller's.

        Raises:
            ValueError: It is none of this version's.
            OSError: It cannot be mapped.
        """
        if os.fstat(descriptor).st_size != _BYTES:
            raise ValueError("no board, or one of another version")
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _BYTES)
        if self._memory[: len(_MAGIC)] != _MAGIC:
            raise ValueError("no board, or one of another version")
        self._numbers = memoryview(self._memory).cast("I")

    @classmethod
    def create(cls) -> Board:
        """A board on which nobody has a row yet. Its descriptor is closed on exec, unless that is changed.

        Raises:
            OSError: There is no descriptor left, or no memory.
        """
        descriptor = os.memfd_create("porter-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.pwrite(descriptor, secrets.token_bytes(32), _KEY.start)
            os.pwrite(descriptor, _MAGIC, 0)
            os.ftruncate(descriptor, _BYTES)
            # Whoever reads behind the end of a file that was cut dies of it, and workers are not to be trusted so far.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def take_row(self) -> int:
        """A row for a new worker. Low ones first: each is looked at by everybody.

        Raises:
            OSError: ENOSPC, there are too many workers.
        """
        row = self._memory.find(b"\0", _TAKEN.start, _TAKEN.stop) - _TAKEN.start
        if row < 0:
            raise OSError(errno.ENOSPC, "more workers than the board has rows")
        self._memory[_TAKEN.start + row] = 1
        return row

    def free_row(self, row: int) -> None:
        """Its worker is no more: what he had counts no longer."""
        start = _HEADER_BYTES + row * _ROW_BYTES
        self._memory[start : start + _ROW_BYTES] = bytes(_ROW_BYTES)
        self._memory[_TAKEN.start + row] = 0

    def row(self, row: int) -> Row:
        """A worker's own row."""
        return Row(self._memory, self._numbers, row)


class Row:
    """What one worker writes, and reads of the others."""

    __slots__ = ("_key", "_memory", "_numbers", "_row", "_start")

    def __init__(self, memory: mmap.mmap, numbers: memoryview[int], row: int) -> None:
        self._memory, self._numbers = memory, numbers
        self._key = memory[_KEY]
        self._row = row
        self._start = _first(row)

    def slot(self, network: bytes) -> int:
        """Where connections from a network are counted."""
        return int.from_bytes(blake2b(network, digest_size=2, key=self._key).digest(), "big")

    def add(self, change: int) -> None:
        """So many connections more."""
        self._numbers[self._start + _TOTAL] += change

    def add_from(self, slot: int, change: int) -> None:
        """So many connections more from the networks of a slot."""
        self._numbers[self._start + slot] += change

    def elsewhere(self) -> int:
        """How many connections other workers have."""
        return self._sum_of_others(_TOTAL)

    def elsewhere_from(self, slot: int) -> int:
        """How many connections other workers have from the networks of a slot."""
        return self._sum_of_others(slot)

    def _sum_of_others(self, place: int) -> int:
        numbers, find, total = self._numbers, self._memory.find, 0
        found = find(b"\1", _TAKEN.start, _TAKEN.stop)
        while found >= 0:
            row = found - _TAKEN.start
            if row != self._row:
                total += numbers[_first(row) + place]
            found = find(b"\1", found + 1, _TAKEN.stop)
        return total


def _first(row: int) -> int:
    """Where a row begins, in numbers."""
    return _HEADER_BYTES // _NUMBER_BYTES + row * _ROW_NUMBERS
