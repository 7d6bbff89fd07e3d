"""Messages between the processes of one host: JSON in packets over a pair of unix sockets.

A message is an array whose first item is its kind; a packet is an array of messages. SOCK_SEQPACKET keeps packets
whole: whoever takes over a socket from a process that has died begins with a whole one. What fits into no packet goes
in several, marked as first, further and last: of what a process that died has left unfinished nothing is taken. Both
ends are processes of ours, but perhaps of different versions: what makes no sense is passed over.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import trio

MOST_BYTES = 60_000  # of a packet; the kernel takes some three of these before the sender has to wait
Message = list[Any]
_T = TypeVar("_T")

_WHOLE, _FIRST, _FURTHER, _LAST = b"=", b"<", b"+", b">"
_MOST_ASSEMBLED = 64 * 1024 * 1024
_MOST_DESCRIPTORS = 200  # of a packet (SCM_MAX_FD is 253)
_LAZY_SECONDS = 0.05
_SHORT_OF_MEMORY = frozenset({errno.ENOBUFS, errno.ENOMEM})
_SHORT_SECONDS = 0.1

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


def slices(told: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    """So many at once, for messages that others have their turn between."""
    for start in range(0, len(told), most):
        yield told[start : start + most]


def packet_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends, non-blocking and closed on exec."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def encode(messages: Iterable[Message]) -> Iterator[bytes]:
    """Packets, with as many messages in each as fit."""
    return _pack(map(_text, messages))


def _text(message: Message) -> bytes:
    # Names may hold octets that are no UTF-8, as lone surrogates.
    return _encode(message).encode("utf-8", "surrogatepass")


def _pack(texts: Iterable[bytes]) -> Iterator[bytes]:
    gathered: list[bytes] = []
    size = 0
    for text in texts:
        if gathered and size + len(text) > MOST_BYTES:
            yield _packet(gathered)
            gathered, size = [], 0
        if len(text) > MOST_BYTES:
            yield from _parts(b"[" + text + b"]")
        else:
            gathered.append(text)
            size += len(text) + 1
    if gathered:
        yield _packet(gathered)


def _packet(texts: list[bytes]) -> bytes:
    return _WHOLE + b"[" + b",".join(texts) + b"]"


def _parts(text: bytes) -> Iterator[bytes]:
    for start in range(0, len(text), MOST_BYTES):
        end = start + MOST_BYTES
        yield (_LAST if end >= len(text) else _FURTHER if start else _FIRST) + text[start:end]


def decode(packet: bytes) -> list[Message]:
    """The messages of a packet; none of one that makes no sense, or that is only a part."""
    if not packet.startswith(_WHOLE):
        return []
    try:
        messages = json.loads(packet[1:].decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return []
    if not isinstance(messages, list):
        return []
    return [message for message in messages if isinstance(message, list) and message and isinstance(message[0], str)]


# --- for who has no event loop ---


def send_packet(sock: socket.socket, messages: Sequence[Message], descriptors: Sequence[int] = ()) -> bool:
    """Send messages that fit into one packet, and copies of descriptors with them. False: there is no room just now.

    Raises:
        ValueError: They don't fit.
        OSError: The other end is gone.
    """
    packets = list(encode(messages))
    if len(packets) != 1 or len(descriptors) > _MOST_DESCRIPTORS:
        raise ValueError(f"{len(packets)} packets and {len(descriptors)} descriptors are not one packet")
    try:
        if descriptors:
            socket.send_fds(sock, packets, list(descriptors), socket.MSG_NOSIGNAL)
        else:
            sock.send(packets[0], socket.MSG_NOSIGNAL)
    except OSError as exc:
        if isinstance(exc, BlockingIOError) or exc.errno in _SHORT_OF_MEMORY:
            return False
        raise
    return True


def receive_packet(sock: socket.socket) -> tuple[list[Message], list[int]] | None:
    """The next packet's messages and descriptors, which are the caller's to close; None: there is none just now.

    Raises:
        EOFError: The other end is gone.
        OSError: The same.
    """
    try:
        packet, descriptors = _receive(sock)
    except BlockingIOError:
        return None
    if not packet:
        raise EOFError
    return decode(packet), descriptors


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    descriptors = array.array("i")
    room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * descriptors.itemsize)
    try:
        packet, ancillary, flags, _ = sock.recvmsg(MOST_BYTES + 64, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # The other end has gone without reading all that we said. This is told once, and before its own last words.
        packet, ancillary, flags, _ = sock.recvmsg(MOST_BYTES + 64, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for descriptor in descriptors:
            os.close(descriptor)
        return b"?", []  # no packet of ours is so large
    return packet, descriptors.tolist()


class Packets:
    """One end, in an event loop. What is posted in one turn of the loop goes out together."""

    def __init__(self, sock: socket.socket) -> None:
        """Args:
        sock: One end of packet_pair(); closed by close().
        """
        self._sock = sock
        # As texts: what cannot be written as JSON is the mistake of whoever posts it, and not of run().
        self._outbox: list[bytes] = []
        self._lazy: list[bytes] = []
        self._ready: deque[bytes] = deque()  # packets
        self._wanted = trio.Event()
        self._lazily_wanted = trio.Event()
        self._assembled: bytearray | None = None  # the parts of a message so far; None: no first one was read
        self._closed = False  # nothing is sent any more
        self._gone = False  # nor received

    @property
    def waiting(self) -> int:
        """How many messages are not sent yet, or packets of them."""
        return len(self._outbox) + len(self._lazy) + len(self._ready)

    def post(self, message: Message) -> None:
        """Send this, after all that was posted before, and soon. Of no effect once it is closed."""
        if self._closed:
            return
        if self._lazy:  # order is kept
            self._outbox += self._lazy
            self._lazy = []
        self._outbox.append(_text(message))
        self._wanted.set()

    def post_lazily(self, message: Message) -> None:
        """As post(), some time soon: there may be company."""
        if self._closed:
            return
        if self._outbox:
            self._outbox.append(_text(message))
            return
        self._lazy.append(_text(message))
        self._lazily_wanted.set()

    async def run(self) -> None:
        """Send until cancelled, or until the other end is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hurry)
            while await self._send_all():
                self._wanted = trio.Event()
                if not self._outbox:
                    await self._wanted.wait()
            nursery.cancel_scope.cancel()

    async def _hurry(self) -> None:
        """See that what can wait does not for ever."""
        while True:
            await self._lazily_wanted.wait()
            await trio.sleep(_LAZY_SECONDS)
            self._lazily_wanted = trio.Event()
            if self._lazy:
                self._outbox += self._lazy
                self._lazy = []
                self._wanted.set()

    async def _send_all(self) -> bool:
        """Whether the other end is there yet, to be sent more."""
        while self._outbox or self._ready:
            if not self._ready:
                texts, self._outbox = self._outbox, []
                self._ready.extend(_pack(texts))
            try:
                self._sock.send(self._ready[0], socket.MSG_NOSIGNAL)
                self._ready.popleft()
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                except trio.ClosedResourceError:
                    return False
            except OSError as exc:
                if exc.errno not in _SHORT_OF_MEMORY:
                    self.close_sending()
                    return False
                await trio.sleep(_SHORT_SECONDS)
        return not self._closed

    async def receive(self) -> list[Message]:
        """The next messages; none at the end."""
        messages, descriptors = await self.receive_with_descriptors()
        for descriptor in descriptors:
            os.close(descriptor)
        return messages

    async def receive_with_descriptors(self) -> tuple[list[Message], list[int]]:
        """The next messages, and the descriptors that came with them, which are the caller's to close."""
        while not self._gone:
            try:
                # In any case: there may be packets without end, and others want their turn.
                await trio.lowlevel.wait_readable(self._sock)
                packet, descriptors = _receive(self._sock)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                return [], []
            if not packet:
                return [], []
            if messages := decode(self._assemble(packet)):
                return messages, descriptors
            for descriptor in descriptors:
                os.close(descriptor)
        return [], []

    def _assemble(self, packet: bytes) -> bytes:
        """What is whole by this packet; b"": nothing yet."""
        mark, part = packet[:1], packet[1:]
        if mark == _FIRST:
            self._assembled = bytearray(_WHOLE + part)
            return b""
        so_far = self._assembled
        if mark in (_FURTHER, _LAST) and so_far is not None and len(so_far) < _MOST_ASSEMBLED:
            so_far += part
            if mark == _FURTHER:
                return b""
            packet = bytes(so_far)
        self._assembled = None
        return packet

    def close_sending(self) -> None:
        """The other end is gone: nothing that is posted will be read."""
        self._closed = True
        self._outbox, self._lazy = [], []
        self._ready.clear()
        self._wanted.set()

    def close(self) -> None:
        """Be gone, for the other end; whoever waits in here hears of the end too."""
        self.close_sending()
        if not self._gone:
            self._gone = True
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
