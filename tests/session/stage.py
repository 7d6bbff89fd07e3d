"""The stage of the stories: a furnished house, a backend that plays parts, and clients that call."""

from __future__ import annotations

import math
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import trio

from proxy.app.house import furnish
from proxy.app.registry import Registry
from proxy.ledger.guests import Guest
from proxy.ledger.host import SessionCloser
from proxy.ledger.session import Session
from proxy.model import Endpoint, Identity
from proxy.observe import metrics
from proxy.session import House, serve_client
from proxy.settings.models import Settings
from proxy.transport.door import Door

PATIENCE_SECONDS = 5
LOOPBACK = "127.0.0.1"
GREETING = b"* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ AUTH=PLAIN] ready\r\n"
LOGGED_IN = b" OK [CAPABILITY IMAP4rev1 IDLE AUTH=PLAIN SASL-IR] Logged in on host-17\r\n"
# What a client sees of it.
WELCOME = b" OK [CAPABILITY IMAP4rev1 IDLE] Logged in.\r\n"
_SERIES = re.compile(r"^(porter_\S+) (\S+)$", re.MULTILINE)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a loopback connection, non-blocking: who connected, who accepted."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def figures() -> dict[str, float]:
    """All our metrics, by name and labels."""
    text, _ = metrics.exposition()
    return {series: float(value) for series, value in _SERIES.findall(text.decode())}


class Wire:
    """One end of a connection, read line by line."""

    def __init__(self, base: trio.SocketStream) -> None:
        self._base = base
        self._stream: trio.abc.Stream = base
        self._buffer = b""
        self.received = b""  # everything so far

    async def send(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def line(self) -> bytes:
        """The next line with its CRLF. Raises EOFError where the connection ends before it."""
        while b"\r\n" not in self._buffer:
            if not await self._receive():
                raise EOFError(self._buffer)
        line, end, self._buffer = self._buffer.partition(b"\r\n")
        return line + end

    async def answer(self, tag: bytes) -> bytes:
        """Everything up to the end of the line that `tag` begins."""
        said = b""
        while not (line := await self.line()).startswith(tag + b" "):
            said += line
        return said + line

    async def rest(self) -> bytes:
        """Everything up to the proper end of the connection."""
        while await self._receive():
            pass
        rest, self._buffer = self._buffer, b""
        return rest

    async def start_tls(self, context: ssl.SSLContext) -> None:
        assert not self._buffer
        stream = trio.SSLStream(self._base, context, server_hostname="localhost")
        with trio.fail_after(PATIENCE_SECONDS):
            await stream.do_handshake()
        self._stream = stream

    async def end(self) -> None:
        """Nothing more to say."""
        await self._base.send_eof()

    def close(self) -> None:
        self._base.socket.close()

    def reset(self) -> None:
        """Be gone as a machine is that has lost the connection: RST in place of FIN."""
        linger = (1).to_bytes(4, "little") + bytes(4)
        self._base.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._base.socket.close()

    async def _receive(self) -> bool:
        with trio.fail_after(PATIENCE_SECONDS):
            data = await self._stream.receive_some()
        self._buffer += data
        self.received += data
        return bool(data)


class Client(Wire):
    """A mail client that has called."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        super().__init__(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        self.proxy_end = theirs
        self.last_words: bytes | None = None  # once the proxy has ended: what came since the last line that was read

    async def rest(self) -> bytes:
        """Everything up to the end, where a client ends too."""
        self.last_words = await super().rest()
        self.close()
        return self.last_words

    async def log_in(self, tag: bytes, name: bytes, password: bytes = b"right") -> bytes:
        await self.send(b"%b LOGIN %b %b\r\n" % (tag, name, password))
        return await self.answer(tag)


Part = Callable[[Wire], Awaitable[None]]


async def mailbox(peer: Wire) -> None:
    """What a backend does for whom it has let in."""
    while True:
        tag, command, *_ = (await peer.line()).split()
        if command.upper() == b"LOGOUT":
            await peer.send(b"* BYE Logging out\r\n" + tag + b" OK Logout completed.\r\n")
            return
        await peer.send(tag + b" OK " + command + b" completed.\r\n")


async def dovecot(peer: Wire) -> None:
    """A whole session, for whoever knows the password `right`."""
    await peer.send(GREETING)
    tag, *arguments = (await peer.line()).split()
    if arguments[-1] != b'"right"':
        await peer.send(tag + b" NO [AUTHENTICATIONFAILED] no such user on host-17\r\n")
        return
    await peer.send(tag + LOGGED_IN)
    await mailbox(peer)


def answering(reply: bytes) -> Part:
    """A part that answers every login with `reply`."""

    async def answer(peer: Wire) -> None:
        await peer.send(GREETING)
        tag = (await peer.line()).split()[0]
        await peer.send(tag + b" " + reply + b"\r\n")

    return answer


def greeting_with(line: bytes) -> Part:
    async def greet(peer: Wire) -> None:
        await peer.send(line)

    return greet


class Backend:
    """A server on loopback. It plays its parts one connection after the other, and the last one to all that follow.

    It never closes first but only says that it has ended: so `open` falls back to zero when the proxy has let go.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._sock = trio.socket.socket()
        self._serving = trio.CancelScope()
        self._started = False
        self.peers: list[Wire] = []
        self.open = 0

    async def bind(self) -> int:
        """Take a port, on which connections are refused until serve() runs."""
        await self._sock.bind((LOOPBACK, 0))
        return int(self._sock.getsockname()[1])

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._started = True
        self._sock.listen()
        task_status.started()
        with self._sock, self._serving:
            async with trio.open_nursery() as nursery:
                while True:
                    accepted, _ = await self._sock.accept()
                    part = self._parts[min(len(self.peers), len(self._parts) - 1)]
                    peer = Wire(trio.SocketStream(accepted))
                    self.peers.append(peer)
                    nursery.start_soon(self._play, peer, part)

    async def _play(self, peer: Wire, part: Part) -> None:
        self.open += 1
        try:
            try:
                await part(peer)
                await peer.end()
                await peer.rest()
            except (EOFError, trio.BrokenResourceError):  # the proxy may leave at any moment
                await peer.end()
        except trio.BrokenResourceError:
            pass
        finally:
            self.open -= 1
            peer.close()

    def close(self) -> None:
        self._serving.cancel()
        if not self._started:
            self._sock.close()


class Reception:
    """A registrar for a house that stands alone: what a worker and the steward do with a link between them."""

    def __init__(self, settings: Settings, closer: SessionCloser) -> None:
        self.registry = Registry(settings, closer)

    async def admit(self, session: Session, identity: Identity) -> str:
        guest = Guest(
            session.id,
            identity.name,
            session.client.host,
            session.listener,
            "w",
            session.started,
            verified=identity.verified,
        )
        cluster = self.registry.cluster
        session.epoch, session.backend = cluster.epoch, cluster.place(identity).home
        admitted = self.registry.admit_now(guest, identity) or await self.registry.admit(guest, identity)
        session.epoch, session.backend = admitted.epoch, admitted.backend
        return admitted.backend

    def confirm(self, session: Session) -> None:
        self.registry.confirm(session.id)

    def release(self, session: Session, *, opened: bool) -> None:
        self.registry.release(session.id, opened=opened)

    def failed(self, session: Session, problem: str, *, reached: bool) -> None:
        self.registry.failed(session.backend, session.name, problem, reached=reached)


class Scene:
    """One house with its door and its backend, and a record of what it said and counted."""

    def __init__(
        self,
        nursery: trio.Nursery,
        settings: Settings,
        door: Door,
        backend: Backend,
        events: Sequence[MutableMapping[str, Any]],
    ) -> None:
        self._nursery, self._events, self._door, self._settings = nursery, events, door, settings
        self._before = figures()
        self.backend = backend
        self.house: House = furnish(settings, [door.name], self._receive)
        self.clients: list[Client] = []
        nursery.start_soon(self.house.engine.run)

    def _receive(self, closer: SessionCloser) -> Reception:
        reception = Reception(self._settings, closer)
        self.registry = reception.registry
        self.cluster, self.ledger = self.registry.cluster, self.registry.ledger
        return reception

    async def call(self, *, nursery: trio.Nursery | None = None) -> Client:
        """A client connects, and is admitted."""
        ours, theirs = tcp_pair()
        host, port = theirs.getpeername()
        admission = self.house.admission
        assert (admission.admit_unknown() if self._door.expects_header(host) else admission.admit(host)) is None
        (nursery or self._nursery).start_soon(serve_client, theirs, Endpoint(host, port), self._door, self.house)
        self.clients.append(Client(ours, theirs))
        return self.clients[-1]

    async def call_and_be_greeted(self, *, nursery: trio.Nursery | None = None) -> Client:
        client = await self.call(nursery=nursery)
        assert (await client.line()).startswith(b"* OK [CAPABILITY IMAP4rev1 ")
        return client

    def listen_on(self, client: Client) -> None:
        """Let a client read to the end while the story goes on."""
        self._nursery.start_soon(client.rest)

    def logged(self, event: str) -> list[MutableMapping[str, Any]]:
        """The events of this name, in their order."""
        return [each for each in self._events if each["event"] == event]

    def counted(self, series: str) -> float:
        """How far a metric has moved."""
        return figures().get(series, 0) - self._before.get(series, 0)

    def counted_in_all(self, metric: str) -> float:
        """How far all series of a metric have moved together."""
        return _total(figures(), metric) - _total(self._before, metric)

    async def until_closed(self, count: int) -> None:
        """So many sessions have had their line."""
        await until(lambda: len(self.logged("session.closed")) >= count)

    async def until_asked(self, count: int = 1) -> None:
        """So many logins have reached the backend."""
        await until(lambda: sum(b"LOGIN" in peer.received for peer in self.backend.peers) >= count)

    async def closing(self) -> MutableMapping[str, Any]:
        """The line of the one session that there was."""
        await self.until_closed(1)
        (line,) = self.logged("session.closed")
        return line

    async def over(self) -> None:
        """When all have gone, each was told of once and nothing of them is left."""
        house = self.house
        await until(lambda: not (house.admission.open or house.visits or self.backend.open))
        assert len(self.ledger) == 0
        assert not house.admission._by_address
        assert not house.engine.sessions
        closed = [line["session_id"] for line in self.logged("session.closed")]
        assert len(closed) == len(set(closed)) == len(self.clients)
        assert self.counted_in_all("porter_sessions_ended_total") == len(self.clients)
        for gauge in ("porter_sessions", "porter_backend_sessions"):
            assert self.counted_in_all(gauge) == 0
        for client in self.clients:
            client.close()
        self.backend.close()


def _total(series: Mapping[str, float], name: str) -> float:
    return math.fsum(value for each, value in series.items() if each.partition("{")[0] == name)


async def until(claim: Callable[[], bool]) -> None:
    """Return when the claim has come true."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not claim():  # noqa: ASYNC110 - whatever makes it true has no event
            await trio.sleep(0.001)
