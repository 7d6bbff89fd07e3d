"""An IMAP client that sends exactly the octets it is told to, and shows exactly those that come back."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from types import TracebackType
from typing import Self

from tests.servers.ports import LOOPBACK

_used_ports: set[int] = set()


def _unused_address() -> tuple[str, int]:
    """A local address that no connection of this run has had before, since tests find their log lines by it.

    The kernel gives the port of a closed connection out again, now and then at once.
    """
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            host, port = probe.getsockname()
        if port not in _used_ports:
            _used_ports.add(port)
            return host, port


class Wire:
    """One connection. Every read has a limit: nothing here waits for ever."""

    def __init__(self, connection: socket.socket, *, read_greeting: bool = True) -> None:
        self.socket = connection
        self._buffer = bytearray()
        self._tags = 0
        self.greeting = self.line() if read_greeting else b""

    @classmethod
    def connect(
        cls, port: int, tls: ssl.SSLContext | None = None, *, seconds: float = 20, greeting: bool = True
    ) -> Self:
        """Connect to a loopback port, with TLS from the first octet where a context is given."""
        connection = socket.create_connection((LOOPBACK, port), timeout=seconds, source_address=_unused_address())
        try:
            if tls is not None:
                connection = tls.wrap_socket(connection, server_hostname="localhost")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return cls(connection, read_greeting=greeting)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    @property
    def address(self) -> str:
        """This end of the connection, as the proxy's log writes it."""
        host, port = self.socket.getsockname()
        return f"{host}:{port}"

    def starttls(self, tls: ssl.SSLContext) -> None:
        """STARTTLS, and the handshake behind its OK."""
        assert self.command(b"STARTTLS")[-1].split()[1] == b"OK"
        assert not self._buffer, "octets in clear behind the OK"
        self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line without its CRLF.

        Raises:
            EOFError: The connection has ended instead.
        """
        searched = 0
        while (end := self._buffer.find(b"\r\n", searched)) < 0:
            searched = max(len(self._buffer) - 1, 0)
            if not self._receive():
                raise EOFError(f"ended before a line; half of it: {bytes(self._buffer)!r}")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def exactly(self, count: int) -> bytes:
        """The next `count` octets."""
        while len(self._buffer) < count:
            if not self._receive():
                raise EOFError(f"ended after {len(self._buffer)} of {count} octets")
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def rest(self) -> bytes:
        """All octets up to the end of the connection, in whichever way it ends."""
        while self._receive():
            pass
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def silent_for(self, seconds: float) -> bool:
        """True if nothing arrives and the connection stays open meanwhile."""
        if self._buffer:
            return False
        before = self.socket.gettimeout()
        self.socket.settimeout(seconds)
        try:
            self._receive()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(before)
        return False

    def command(self, command: bytes, *, tag: bytes = b"") -> list[bytes]:
        """Send one command; all lines up to the one with its tag, that one last."""
        tag = tag or self._next_tag()
        self.send(tag + b" " + command + b"\r\n")
        return self.until(tag)

    def until(self, tag: bytes) -> list[bytes]:
        """The lines up to the one with this tag, which is the last of them."""
        lines: list[bytes] = []
        while True:
            lines.append(self.line())
            if lines[-1].startswith(tag + b" "):
                return lines

    def login(self, name: str, password: str) -> bytes:
        """LOGIN; the tagged line without its tag."""
        return self.command(f'LOGIN "{name}" "{password}"'.encode())[-1].split(b" ", 1)[1]

    def append(self, mailbox: bytes, message: bytes, *, synchronizing: bool) -> bytes:
        """APPEND with either kind of literal (RFC 7888); the tagged line without its tag."""
        tag = self._next_tag()
        sign = b"" if synchronizing else b"+"
        self.send(b"%s APPEND %s {%d%s}\r\n" % (tag, mailbox, len(message), sign))
        if synchronizing:
            line = self.line()
            assert line.startswith(b"+"), line
        self.send(message)
        self.send(b"\r\n")
        return self.until(tag)[-1].split(b" ", 1)[1]

    def fetch_body(self, sequence: bytes) -> bytes:
        """One whole message, by the size that the server announces."""
        tag = self._next_tag()
        self.send(tag + b" FETCH " + sequence + b" BODY.PEEK[]\r\n")
        line = self.line()
        while b"BODY[] {" not in line:
            assert not line.startswith(tag), line
            line = self.line()
        body = self.exactly(int(line.rpartition(b"{")[2].rstrip(b"}")))
        assert self.line() == b")"
        assert self.until(tag)[-1].split()[1] == b"OK"
        return body

    def _next_tag(self) -> bytes:
        self._tags += 1
        return b"t%d" % self._tags

    def _receive(self) -> bool:
        """Read once; False at the end of the connection. A reset is an end, silence is a TimeoutError."""
        try:
            data = self.socket.recv(65536)
        except (ConnectionError, ssl.SSLError):
            return False
        self._buffer += data
        return bool(data)


def ends_within(connection: socket.socket, seconds: float) -> bool:
    """True if the peer closes or resets within this time, whatever it sends before."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        with contextlib.suppress(TimeoutError):
            try:
                if not connection.recv(65536):
                    return True
            except (ConnectionError, ssl.SSLError):
                return True
    return False
