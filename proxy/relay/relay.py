"""One established session: a client and a backend spliced together, byte for byte.

Theory of operation. Two callbacks, one per descriptor, that never wait. What one side cannot take at once is kept
(`_to_client`, `_to_backend`), and while something is kept the other side is not read: back-pressure costs at most one
chunk per direction. The observer is shown every chunk; it only ever holds back the start of a command line that
is not complete, and commands that must not reach the backend.

Ends. A client that ends properly has its half closed towards the backend, and pending answers still reach it; one
that vanished takes its backend connection with it. A backend that ends between two responses is announced with
BYE; inside one, nothing is invented. Every way out goes through end().
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from proxy.imap.observer import Observer, Refusal, State
from proxy.ledger.session import Session
from proxy.outcome import FAREWELLS, Outcome
from proxy.relay.engine import IN, LOST, OUT, UNWATCHED, Engine
from proxy.transport.stream import RECORD_BYTES, Stream
from proxy.transport.tls import Broken, Ended, WouldRead, WouldWrite

# One for all sessions of the process: the loop is single-threaded, and what stays is copied out.
_CHUNK = bytearray(256 * 1024)
_VIEW = memoryview(_CHUNK)
_RECORDS_AT_ONCE = 8
# Commands that are answered here instead of by the backend; no client sends even one by itself.
_MOST_REFUSALS = 50
# A backend's BYE comes alone or with little else.
_SHORT = 1024
# Answers owed to a client that has closed its half may take this long.
_HALF_CLOSED_SECONDS = 60.0


class Traffic(Protocol):
    """Where octets are counted for the whole worker."""

    bytes_from_client: int
    bytes_from_backend: int


@dataclass(frozen=True, slots=True)
class Carriage:
    """What all sessions of a worker have in common."""

    traffic: Traffic
    idle_seconds: float
    on_end: Callable[[Relay, Outcome], None]  # called once per session, both sides closed


def _refusal_reply(refusal: Refusal) -> bytes:
    if refusal.command == "COMPRESS":
        return refusal.tag + b" NO [CANNOT] Compression is not offered here.\r\n"
    if refusal.command == "OTHER":
        return refusal.tag + b" BAD Invalid command.\r\n"
    return refusal.tag + b" BAD Command not allowed after login.\r\n"


def _says_bye(data: bytes, observer: Observer) -> bool:
    """Whether a line of these responses, which are still to be observed, is an untagged BYE."""
    return observer.between_responses and (data.startswith(b"* BYE") or b"\n* BYE" in data)


class Relay:
    """The splice of one session. No method awaits."""

    __slots__ = (
        "_backend",
        "_backend_descriptor",
        "_backend_is_plain",
        "_backend_mask",
        "_backend_recv",
        "_backend_send",
        "_backend_wants_write",
        "_blocked",
        "_carriage",
        "_client",
        "_client_descriptor",
        "_client_ended",
        "_client_mask",
        "_client_recv",
        "_client_send",
        "_client_wants_write",
        "_engine",
        "_goodbye",
        "_held",
        "_last_active",
        "_observer",
        "_refusals",
        "_reply",
        "_to_backend",
        "_to_client",
        "_traffic",
        "bytes_from_backend",
        "bytes_from_client",
        "session",
    )

    def __init__(
        self,
        engine: Engine,
        session: Session,
        client: Stream,
        backend: Stream,
        observer: Observer,
        carriage: Carriage,
    ) -> None:
        self._engine, self.session, self._observer = engine, session, observer
        self._carriage, self._traffic = carriage, carriage.traffic
        self._client: Stream | None = client
        self._backend = backend
        self._client_recv, self._client_send = client.transport.recv, client.transport.send
        self._backend_recv, self._backend_send = backend.transport.recv, backend.transport.send
        self._backend_is_plain = not backend.secure
        self._client_descriptor, self._backend_descriptor = client.socket.fileno(), backend.socket.fileno()
        self._client_mask = self._backend_mask = UNWATCHED
        self._to_backend: memoryview | None = None
        self._to_client: memoryview | None = None
        self._held = b""  # what the client said and the observer did not clear yet
        self._refusals = 0
        self._reply: bytes | None = None  # an answer of ours that waits for those of the backend
        self._blocked = False  # the client is not read until the backend has spoken
        self._goodbye = False  # the backend's last word was a BYE of its own
        self._client_wants_write = self._backend_wants_write = False  # TLS has to send before it can read on
        self._client_ended = False
        self._last_active = engine.now
        self.bytes_from_client = self.bytes_from_backend = 0

    def start(self, early_client: bytes, early_backend: bytes) -> None:
        """Begin: first what either side said before its login was answered."""
        self._engine.add(
            self,
            {self._client_descriptor: self.on_client, self._backend_descriptor: self.on_backend},
        )
        if early_backend:
            self._observer.from_backend(early_backend)
            self._write_client(early_backend)
        if early_client and self._client is not None:
            self.bytes_from_client += len(early_client)
            self._traffic.bytes_from_client += len(early_client)
            self._take(early_client)
        self._pump()

    @property
    def id(self) -> str:
        return self.session.id

    @property
    def observer(self) -> Observer:
        return self._observer

    # --- what epoll reports ---

    def on_client(self, events: int) -> None:
        """The client's descriptor is ready."""
        if self._to_client is not None and events & OUT:
            if not self._write_client(self._to_client):
                return
            self._pump()
        if self._client_wants_write:
            self._client_wants_write = False
            self._interest()
        if self._client is None or self._to_backend is not None or self._blocked or self._client_ended:
            if events & LOST:  # nobody is left to wait for an answer
                self.end(Outcome.CLIENT_CLOSED)
            return
        try:
            data = self._client_recv(RECORD_BYTES)
        except WouldRead:
            return
        except Broken as exc:
            self._client_failed(exc)
            return
        if not data:
            self._client_end()
            return
        observer = self._observer
        if observer.client_skip >= len(data):  # inside a literal
            self._carry_literal(data)
            return
        count = len(data)
        self.bytes_from_client += count
        self._traffic.bytes_from_client += count
        self._last_active = self._engine.now
        if self._held:
            data, self._held = self._held + data, b""
        cleared = observer.from_client(data)
        if cleared == len(data):
            self._write_backend(data)
            return
        self._hold(data, cleared)
        if self._blocked:
            self._pump()

    def on_backend(self, events: int) -> None:
        """The backend's descriptor is ready."""
        if self._to_backend is not None and events & OUT:
            if not self._write_backend(self._to_backend):
                return
            self._pump()
        retry, self._backend_wants_write = self._backend_wants_write, False
        if retry:
            self._interest()
        if self._client is None or self._to_client is not None or not (retry or events & ~OUT):
            return
        observer = self._observer
        data: bytes | memoryview
        try:
            if self._backend_is_plain:
                count = self._backend.socket.recv_into(_CHUNK)
                data = _VIEW[:count]
            else:
                data = self._backend_recv(RECORD_BYTES)
                count = len(data)
        except WouldRead:
            return
        except WouldWrite:  # a KeyUpdate has to be answered and the socket is full
            self._backend_wants_write = True
            self._interest()
            return
        except Broken:  # Ended among them
            count = 0
        if not count:
            self._backend_end()
            return
        self.bytes_from_backend += count
        self._traffic.bytes_from_backend += count
        self._last_active = self._engine.now
        if observer.backend_skip >= count:  # inside a literal: not even a copy
            observer.backend_skip -= count
        else:
            data = bytes(data)
            self._goodbye = count < _SHORT and b"* BYE" in data and _says_bye(data, observer)
            observer.from_backend(data)
        if self._write_client(data) and self._blocked:
            self._pump()

    def _client_failed(self, exc: Exception) -> None:
        """Reading from the client raised something else than "nothing there"."""
        if isinstance(exc, WouldWrite):  # a KeyUpdate has to be answered and the socket is full
            self._client_wants_write = True
            self._interest()
        elif isinstance(exc, Ended):
            self._client_end()
        else:
            self.end(Outcome.CLIENT_CLOSED)

    # --- client to backend ---

    def _carry_literal(self, data: bytes) -> None:
        """Pass on a literal's octets: several full TLS records in one write, where they are there already."""
        observer = self._observer
        left = observer.client_skip - len(data)
        records = [data]
        failure: Exception | None = None
        while len(data) == RECORD_BYTES <= left and len(records) < _RECORDS_AT_ONCE:
            try:
                data = self._client_recv(RECORD_BYTES)
            except WouldRead:
                break
            except Broken as exc:  # what came before it still goes its way
                failure = exc
                break
            if not data:
                failure = Ended()
                break
            records.append(data)
            left -= len(data)
        count = observer.client_skip - left
        observer.client_skip = left
        self.bytes_from_client += count
        self._traffic.bytes_from_client += count
        self._last_active = self._engine.now
        self._write_backend(records[0] if len(records) == 1 else b"".join(records))
        if failure is not None and self._client is not None:
            self._client_failed(failure)

    def _take(self, data: bytes) -> None:
        """Show the client's octets to the observer and pass on what it clears."""
        cleared = self._observer.from_client(data)
        if cleared == len(data):
            self._write_backend(data)
        else:
            self._hold(data, cleared)

    def _hold(self, data: bytes, cleared: int) -> None:
        """Pass on the cleared octets; keep the others, or answer the command that they are."""
        observer = self._observer
        if cleared:
            self._write_backend(data[:cleared])
            data = data[cleared:]
        if observer.violation is None and (refusal := observer.refusal) is not None:
            swallowed = observer.swallow(data)
            if swallowed is not None and self._refusals == _MOST_REFUSALS:
                self.say_goodbye(Outcome.PROTOCOL_VIOLATION)
            elif swallowed is not None:
                self._refusals += 1
                self._held = data[swallowed:]
                self._reply = _refusal_reply(refusal)
                self._blocked = True
        else:
            self._held = data
            self._blocked = observer.waiting
        if observer.violation is not None:
            self.say_goodbye(Outcome.PROTOCOL_VIOLATION)

    def _pump(self) -> None:
        """Go on with what was held, as far as that goes.

        A command that is refused here is answered in its turn, after all that the backend still owes. A loop, since
        what was held may be refused commands by the hundred.
        """
        observer = self._observer
        while self._blocked and self._client is not None:
            if self._to_client is not None or self._to_backend is not None or observer.waiting:
                break
            reply = self._reply
            if reply is not None and observer.state is State.BUSY:
                break
            self._blocked, self._reply = False, None
            if reply is not None:
                self._write_client(reply)
            held, self._held = self._held, b""
            if held and self._client is not None:
                self._take(held)
        self._interest()

    def _write_backend(self, data: bytes | memoryview) -> bool:
        """Write all, or keep the rest and stop reading the client. False: kept."""
        try:
            sent = self._backend_send(data)
        except (*WouldWrite, *WouldRead):
            sent = 0
        except Broken:
            # It will not read any more, but may have said why: reading goes on and meets its end.
            sent = len(data)
        if sent == len(data):
            if self._to_backend is not None:
                self._to_backend = None
                if self._client_ended:
                    self._backend.end_sending()
                self._interest()
            return True
        self._to_backend = memoryview(data)[sent:]
        self._interest()
        return False

    # --- backend to client ---

    def _write_client(self, data: bytes | memoryview) -> bool:
        """Write all, or keep the rest and stop reading the backend. False: kept, or the session ended."""
        view: bytes | memoryview = data
        try:
            while True:
                sent = self._client_send(view)
                if sent == len(view):
                    break
                view = memoryview(view)[sent:]
        except (*WouldWrite, *WouldRead):
            # TLS: the retry must carry these octets or more of them, never fewer. The chunk is shared: copy out.
            self._to_client = view if view is self._to_client else memoryview(bytes(view))
            self._interest()
            return False
        except Broken:
            self.end(Outcome.CLIENT_CLOSED)
            return False
        if self._to_client is not None:
            self._to_client = None
            self._interest()
        return True

    # --- interest, ends ---

    def _interest(self) -> None:
        """Back-pressure: read a side only while the other takes what it says."""
        if self._client is None:
            return
        reads = self._to_backend is None and not self._blocked and not self._client_ended
        writes = self._to_client is not None or self._client_wants_write
        client = (IN if reads else 0) | (OUT if writes else 0)
        flushes = self._to_backend is not None or self._backend_wants_write
        backend = (IN if self._to_client is None else 0) | (OUT if flushes else 0)
        if client != self._client_mask:
            self._client_mask = self._engine.watch(self._client_descriptor, self._client_mask, client)
        if backend != self._backend_mask:
            self._backend_mask = self._engine.watch(self._backend_descriptor, self._backend_mask, backend)

    def _client_end(self) -> None:
        """The client said that it has no more to say; answers on their way still reach it."""
        self._client_ended = True
        self._last_active = self._engine.now
        if self._to_backend is None:
            self._backend.end_sending()
        self._interest()

    def _backend_end(self) -> None:
        """The backend closed, or broke. Nothing of it is left: it is not read while something is kept."""
        if self._observer.logged_out:
            self.end(Outcome.LOGGED_OUT)
        elif self._goodbye:
            self.end(Outcome.BACKEND_CLOSED)
        elif self._client_ended:
            self.end(Outcome.CLIENT_CLOSED)
        else:
            self.say_goodbye(Outcome.BACKEND_CLOSED)

    @property
    def at_safe_point(self) -> bool:
        """Whether the session can be closed without hurting anyone: between commands or in IDLE."""
        return (
            self._to_client is None
            and self._to_backend is None
            and not self._held
            and self._observer.between_responses
            and self._observer.state in (State.BETWEEN_COMMANDS, State.IN_IDLE)
        )

    def say_goodbye(self, outcome: Outcome) -> None:
        """End the session with the farewell of `outcome`, where the protocol allows one just now."""
        if self._client is not None and self._to_client is None and self._observer.between_responses:
            try:
                self._client_send(FAREWELLS[outcome])
            except Broken:
                pass
        self.end(outcome)

    def sweep(self, now: float) -> None:
        """End a session that was silent too long, in both directions (RFC 9051 §5.4)."""
        silent = now - self._last_active
        if self._client_ended and silent > _HALF_CLOSED_SECONDS:
            self.end(Outcome.CLIENT_CLOSED)
        elif silent > self._carriage.idle_seconds:
            self.say_goodbye(Outcome.IDLE_TIMEOUT)

    def fail(self) -> None:
        """A bug was met in this session."""
        self.end(Outcome.SERVER_BUG)

    def end(self, outcome: Outcome) -> None:
        """The one way out: both sides closed, the session accounted for."""
        client, self._client = self._client, None
        if client is None:
            return
        self._engine.remove(self, (self._client_descriptor, self._backend_descriptor))
        self._observer.close()
        client.close()
        self._backend.close()
        self._to_client = self._to_backend = None
        self._carriage.on_end(self, outcome)
