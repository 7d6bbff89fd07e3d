"""Lines and counted octets out of a byte stream that arrives in any pieces.

The methods are generators: they `yield` when they need more, so that a parser reads like blocking code
(`line = yield from reader.line(limit)`) and holds its place between two arrivals. A line that comes octet
by octet is searched once, not once per octet.
"""

from __future__ import annotations

from collections.abc import Generator

from proxy.imap.events import ProtocolViolation


class LineTooLong(ProtocolViolation):
    """A line exceeds the bound that the caller set."""


class EndOfData(Exception):
    """The peer closed the stream; what was asked for will never be complete."""


class Reader:
    """A buffer of received octets with a reading position."""

    __slots__ = ("_buffer", "_closed", "_searched")

    def __init__(self, data: bytes = b"") -> None:
        self._buffer = bytearray(data)
        self._searched = 0  # no LF stands before this offset
        self._closed = False

    def receive_data(self, data: bytes) -> None:
        """Add octets; b"" means that the peer is gone."""
        if data:
            self._buffer += data
        else:
            self._closed = True

    def __len__(self) -> int:
        return len(self._buffer)

    def line(self, limit: int) -> Generator[None, None, bytes]:
        """One line without its end. CRLF ends a line; a lone LF is let pass as one.

        Raises:
            LineTooLong: More than `limit` octets before the LF. They stay, for a second try with a higher limit.
            EndOfData: The peer closed before the end of the line.
        """
        buffer = self._buffer
        while (end := buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(buffer)
            if len(buffer) > limit:
                raise LineTooLong("line too long")
            if self._closed:
                raise EndOfData
            yield
        self._searched = 0
        if end > limit:
            raise LineTooLong("line too long")
        line = bytes(buffer[: end - 1 if end and buffer[end - 1] == 0x0D else end])
        del buffer[: end + 1]
        return line

    def peek(self, count: int) -> Generator[None, None, bytes]:
        """The next `count` octets, which stay where they are.

        Raises:
            EndOfData: The peer closed before they were complete.
        """
        while len(self._buffer) < count:
            if self._closed:
                raise EndOfData
            yield
        return bytes(self._buffer[:count])

    def octets(self, count: int) -> Generator[None, None, bytes]:
        """Exactly `count` octets. The caller has bounded `count`.

        Raises:
            EndOfData: The peer closed before they were complete.
        """
        taken = yield from self.peek(count)
        del self._buffer[:count]
        self._searched = 0
        return taken

    def skip(self, count: int) -> Generator[None, None, None]:
        """Throw `count` octets away without ever holding them.

        Raises:
            EndOfData: The peer closed before they had all come.
        """
        while count:
            present = min(count, len(self._buffer))
            del self._buffer[:present]
            self._searched = 0
            count -= present
            if count:
                if self._closed:
                    raise EndOfData
                yield

    def held(self) -> bytes:
        """All that is left; it stays."""
        return bytes(self._buffer)

    def rest(self) -> bytes:
        """All that is left; the buffer is empty afterwards."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return rest
