"""Backends that misbehave on purpose: each connection gets a thread that plays one part of a few lines."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.servers.ports import LOOPBACK

PATIENCE_SECONDS = 20
_LITERAL = re.compile(rb"\{(\d+)(\+?)\}$")


class Peer:
    """The proxy's connection, as a backend sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self.received = b""
        self.sent_bytes = 0

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)
        self.sent_bytes += len(data)

    def line(self) -> bytes:
        """The next command line without its CRLF, literals in place."""
        line = self._until_crlf()
        while literal := _LITERAL.search(line):
            if not literal[2]:
                self.send(b"+ go on\r\n")
            line += b"\r\n" + self._exactly(int(literal[1])) + self._until_crlf()
        return line

    def log_in(self) -> None:
        """Play a whole login, whichever commands the proxy chooses for it."""
        self.send(b"* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN] ready\r\n")
        while not self._answer_until_login():
            pass

    def read_login(self) -> bytes:
        """Play a login up to the command with the password, without its answer; its tag."""
        self.send(b"* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN] ready\r\n")
        while True:
            tag, command = self._command()
            if command in (b"LOGIN", b"AUTHENTICATE"):
                return tag
            self._answer(tag, command)

    def wait_for_end(self) -> None:
        """Return when the proxy has closed."""
        while data := self._connection.recv(65536):
            self.received += data

    def reset(self) -> None:
        """End the connection as a machine does that has lost it: RST in place of FIN."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()

    def _answer_until_login(self) -> bool:
        tag, command = self._command()
        if command not in (b"LOGIN", b"AUTHENTICATE"):
            self._answer(tag, command)
            return False
        self.send(tag + b" OK [CAPABILITY IMAP4rev1 IDLE] logged in\r\n")
        return True

    def _answer(self, tag: bytes, command: bytes) -> None:
        untagged = {
            b"CAPABILITY": b"* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN\r\n",
            b"ID": b"* ID NIL\r\n",
        }
        self.send(untagged.get(command, b"") + tag + b" OK done\r\n")

    def _command(self) -> tuple[bytes, bytes]:
        line = self.line()
        words = line.split()
        if len(words) < 2:
            raise ConnectionError("no command")
        command = words[1].upper()
        if command == b"AUTHENTICATE" and len(words) == 3:
            self.send(b"+ \r\n")
            self._until_crlf()
        return words[0], command

    def _until_crlf(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._receive()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._receive()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def _receive(self) -> None:
        data = self._connection.recv(65536)
        if not data:
            raise ConnectionError("the proxy closed")
        self.received += data
        self._buffer += data


Part = Callable[[Peer], None]


class FakeBackend:
    """Plays one part to everybody who connects, and remembers what they sent."""

    def __init__(self, port: int, part: Part) -> None:
        self.port = port
        self.peers: list[Peer] = []
        self._part = part
        self._listener = socket.create_server((LOOPBACK, port))
        self._listener.settimeout(0.1)
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        self._listener.close()

    @property
    def received(self) -> bytes:
        return b"".join(peer.received for peer in self.peers)

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=self._play, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _play(self, connection: socket.socket) -> None:
        peer = Peer(connection)
        self.peers.append(peer)
        connection.settimeout(PATIENCE_SECONDS)
        # The proxy may close at any moment: that is no fault of this side.
        with connection, contextlib.suppress(OSError):
            self._part(peer)


# --- the parts ---


def hang(peer: Peer) -> None:
    """Accept and say nothing."""
    peer.wait_for_end()


def greet_bye(peer: Peer) -> None:
    peer.send(b"* BYE Too many connections on host-17\r\n")


def greet_preauth(peer: Peer) -> None:
    peer.send(b"* PREAUTH Welcome root\r\n")
    peer.wait_for_end()


def greet_http(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 400 Bad Request\r\nServer: other\r\nConnection: close\r\n\r\n<html>400</html>\n")
    peer.wait_for_end()


def greet_without_end(peer: Peer) -> None:
    """One line that never stops."""
    for _ in range(256):
        peer.send(b"* OK " + b"x" * 65536)
    peer.wait_for_end()


def close_at_once(peer: Peer) -> None:
    """Accept and close."""


def close_at_login(peer: Peer) -> None:
    peer.read_login()


def hang_at_login(peer: Peer) -> None:
    peer.read_login()
    peer.wait_for_end()


def answer_for_ever(peer: Peer) -> None:
    """Untagged lines in place of an answer to the login."""
    peer.read_login()
    for number in range(20000):
        peer.send(b"* OK still working on it, step %d\r\n" % number)
    peer.wait_for_end()


def refuse(peer: Peer) -> None:
    """A refusal that says more than strangers should know."""
    tag = peer.read_login()
    peer.send(tag + b" NO [AUTHENTICATIONFAILED] no such user in /var/mail on host-17\r\n")
    peer.wait_for_end()


def be_unavailable(peer: Peer) -> None:
    tag = peer.read_login()
    peer.send(tag + b" NO [UNAVAILABLE] authentication service on host-17 is down\r\n")
    peer.wait_for_end()


def serve(peer: Peer) -> None:
    """A server as it should be, but for three messages: 1 is short, 2 never comes to its end, 3 is huge."""
    peer.log_in()
    while True:
        tag, name, *arguments = peer.line().split()
        match name.upper(), arguments[:1]:
            case b"IDLE", _:
                peer.send(b"+ idling\r\n")
                peer.line()
            case b"FETCH", [b"1"]:
                peer.send(b"* 1 FETCH (BODY[] {5}\r\nshort)\r\n")
            case b"FETCH", [b"2"]:
                peer.send(LITERAL_START)
                peer.wait_for_end()
                return
            case b"FETCH", [b"3"]:
                send_huge_message(peer)
            case b"LOGOUT", _:
                peer.send(b"* BYE Logging out\r\n" + tag + b" OK done\r\n")
                return
        peer.send(tag + b" OK done\r\n")


HUGE_SIZE = 200 * 2**20
HUGE_PIECE = bytes(range(32, 96)) * 1024


def send_huge_message(peer: Peer) -> None:
    peer.send(b"* 3 FETCH (BODY[] {%d}\r\n" % HUGE_SIZE)
    for _ in range(HUGE_SIZE // len(HUGE_PIECE)):
        peer.send(HUGE_PIECE)
    peer.send(b")\r\n")


def answer_after_the_end(peer: Peer) -> None:
    """Answer a command only when the other side has said that there will be no more."""
    peer.log_in()
    tag = peer.line().split()[0]
    peer.wait_for_end()
    peer.send(b"* 1 EXISTS\r\n" + tag + b" OK NOOP done\r\n")


LITERAL_SIZE = 100_000
LITERAL_HEAD = b"* 1 FETCH (BODY[] {%d}\r\n" % LITERAL_SIZE
LITERAL_START = LITERAL_HEAD + b"first half of a message\r\n" * 200


def die_in_literal(peer: Peer) -> None:
    peer.log_in()
    peer.line()
    peer.send(LITERAL_START)


def reset_in_literal(peer: Peer) -> None:
    peer.log_in()
    peer.line()
    peer.send(LITERAL_START)
    peer.reset()


def die_in_line(peer: Peer) -> None:
    peer.log_in()
    peer.line()
    peer.send(b"* 1 FETCH (FLA")


def die_between_responses(peer: Peer) -> None:
    peer.log_in()
    tag = peer.line().split()[0]
    peer.send(tag + b" OK NOOP done\r\n")


def say_bye(peer: Peer) -> None:
    peer.log_in()
    tag = peer.line().split()[0]
    peer.send(tag + b" OK NOOP done\r\n* BYE Server is restarting\r\n")
