"""What a relayed session holds, how it writes, and how it ends.

What one side cannot take at once is kept (`_to_client`, `_to_backend`), and while something is kept the other side is
not read: back-pressure costs at most one chunk per direction.

Ends. A client that ends properly has its half closed towards the backend, and pending answers still reach it; one
that vanished takes its backend connection with it. A backend that ends between two responses is announced with
BYE; inside one, nothing is invented. Where many clients lose their backend at once, most of them linger for a while
without it until they are told (`partings`). Every way out goes through end().
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from proxy.imap.observer import Observer, State
from proxy.ledger.session import Session
from proxy.outcome import FAREWELLS, Outcome
from proxy.relay.engine import IN, OUT, UNWATCHED, Engine
from proxy.relay.partings import Partings
from proxy.transport.stream import RECORD_BYTES, Stream
from proxy.transport.tls import Broken, WouldRead, WouldWrite

# Answers owed to a client that has closed its half may take this long.
HALF_CLOSED_SECONDS = 60.0
# A session whose token has expired ends at a safe point. One that never comes to one ends after this much more time.
_LONGEST_EXPIRED_SECONDS = 300.0
_BLIND_SILENCE_SECONDS = 5.0

# Who is not read while a limit makes the session wait (`metered`).
NOBODY, CLIENT, BOTH = 0, 1, 2


class Traffic(Protocol):
    """Where octets are counted for the whole worker."""

    bytes_from_client: int
    bytes_from_backend: int


@dataclass(frozen=True, slots=True)
class Carriage:
    """What all sessions of a worker have in common."""

    traffic: Traffic
    idle_seconds: float
    on_end: Callable[[Splice, Outcome], None]  # called once per session, both sides closed
    on_parted: Callable[[Splice], None]  # called when the backend is closed and the client lingers
    partings: Partings


class Transfers(NamedTuple):
    """How a session reads and writes."""

    client_recv: Callable[[int], bytes]
    client_send: Callable[[bytes | memoryview], int]
    backend_recv: Callable[[int], bytes]
    backend_send: Callable[[bytes | memoryview], int]
    backend_is_plain: bool  # then what is faster than these may be used


class Splice(ABC):
    """Both sides of one session: its state, its writes, its ends. No method awaits."""

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
        "_farewell",
        "_goodbye",
        "_held",
        "_last_active",
        "_observer",
        "_paused",
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
        to_client, to_backend = client.transport, backend.transport
        self._client_recv, self._client_send = to_client.recv, to_client.send
        self._backend_recv, self._backend_send = to_backend.recv, to_backend.send
        self._backend_is_plain = not backend.secure
        self._client_descriptor, self._backend_descriptor = client.socket.fileno(), backend.socket.fileno()
        self._client_mask = self._backend_mask = UNWATCHED
        self._to_backend: memoryview | None = None
        self._to_client: memoryview | None = None
        self._held = b""  # what the client said and the observer did not clear yet
        self._refusals = 0
        self._reply: bytes | None = None  # an answer of ours that waits for those of the backend
        self._blocked = False  # the client is not read until the backend has spoken, or a pause is over
        self._paused = NOBODY
        self._goodbye = False  # the backend's last word was a BYE of its own
        self._farewell: bytes | None = None  # lingering: what the client will be told
        self._client_wants_write = self._backend_wants_write = False  # TLS has to send before it can read on
        self._client_ended = False
        self._last_active = engine.now
        self.bytes_from_client = self.bytes_from_backend = 0

    @property
    def id(self) -> str:
        return self.session.id

    @property
    def observer(self) -> Observer:
        return self._observer

    @property
    def transfers(self) -> Transfers:
        """How it reads and writes just now. Whoever looks on (`tracing`) puts himself in between, and leaves again."""
        return Transfers(
            self._client_recv, self._client_send, self._backend_recv, self._backend_send, self._backend_is_plain
        )

    @transfers.setter
    def transfers(self, transfers: Transfers) -> None:
        self._client_recv, self._client_send, self._backend_recv, self._backend_send, self._backend_is_plain = transfers

    @abstractmethod
    def on_client(self, events: int) -> None:
        """The client's descriptor is ready."""

    @abstractmethod
    def on_backend(self, events: int) -> None:
        """The backend's descriptor is ready."""

    # --- writing ---

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

    def _write_backend_records(self, records: list[bytes], count: int) -> None:
        """Write all of several chunks, in one call and without putting them together where that can be."""
        sent = 0
        if self._backend_is_plain:
            try:
                sent = self._backend.socket.sendmsg(records)
            except BlockingIOError:
                pass
            except OSError:
                sent = count  # as in _write_backend
        if sent < count:
            self._write_backend(memoryview(b"".join(records))[sent:])

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
        if self._client is None or self._farewell is not None:
            return
        reads = self._to_backend is None and not self._blocked and not self._client_ended
        writes = self._to_client is not None or self._client_wants_write
        client = (IN if reads else 0) | (OUT if writes else 0)
        flushes = self._to_backend is not None or self._backend_wants_write
        answers = self._to_client is None and self._paused != BOTH
        backend = (IN if answers else 0) | (OUT if flushes else 0)
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
        elif self._observer.between_responses and self._carriage.partings.postpone(self, self.session.backend):
            self._linger(FAREWELLS[Outcome.BACKEND_CLOSED])
        else:
            self.say_goodbye(Outcome.BACKEND_CLOSED)

    def _linger(self, farewell: bytes) -> None:
        """Go on without the backend until it is time to tell the client; what it says meanwhile goes nowhere."""
        self._farewell = farewell
        self._engine.forget(self._backend_descriptor)
        self._backend_descriptor = UNWATCHED  # the number may be another session's soon
        self._backend.close()
        self._to_backend = None
        self._blocked = self._client_wants_write = False
        self._client_mask = self._engine.watch(self._client_descriptor, self._client_mask, IN)
        self._engine.redirect(self._client_descriptor, self._disregard)
        self._carriage.on_parted(self)

    def _disregard(self, _events: int) -> None:
        """Lingering: the client said something, or left."""
        try:
            data = self._client_recv(RECORD_BYTES)
        except (*WouldRead, *WouldWrite):
            return
        except Broken:
            data = b""
        if not data:
            self.end(Outcome.BACKEND_CLOSED)  # it was over already

    def part(self) -> None:
        """Lingering: it is time to tell the client. Never raises."""
        self._engine.say_goodbye(self, Outcome.BACKEND_CLOSED)

    @property
    def at_safe_point(self) -> bool:
        """Whether the session can be closed without hurting anyone: between commands or in IDLE."""
        return (
            self._to_client is None
            and self._farewell is None
            and self._to_backend is None
            and (not self._held or bool(self._paused))  # the backend has not seen it, and would not for a while
            and self._observer.between_responses
            and self._observer.state in (State.BETWEEN_COMMANDS, State.IN_IDLE)
        )

    @property
    def between_responses(self) -> bool:
        """Whether a farewell would be understood, and the client can take it."""
        return self._to_client is None and self._observer.between_responses

    def say_goodbye(self, outcome: Outcome) -> None:
        """End the session with the farewell of `outcome`, where the protocol allows one just now."""
        if self._client is not None and self.between_responses:
            try:
                self._client_send(self._farewell or FAREWELLS[outcome])
            except Broken:
                pass
        self.end(outcome)

    def say_goodbye_soon(self, outcome: Outcome) -> None:
        """End with a farewell as soon as one can be understood: when no response is being sent."""
        if self.between_responses or self._farewell is not None:
            self.say_goodbye(outcome)
            return
        self._engine.redirect(self._client_descriptor, partial(self._then_leave, self.on_client, outcome))
        self._engine.redirect(self._backend_descriptor, partial(self._then_leave, self.on_backend, outcome))

    def _then_leave(self, react: Callable[[int], None], outcome: Outcome, events: int) -> None:
        react(events)
        if self._client is not None and self.between_responses:
            self.say_goodbye(outcome)

    def sweep(self, now: float) -> None:
        """End a session that was silent too long, in both directions (RFC 9051 §5.4)."""
        silent = now - self._last_active
        if self._client_ended and silent > HALF_CLOSED_SECONDS:
            self.end(Outcome.CLIENT_CLOSED)
        elif silent > self._carriage.idle_seconds:
            self.say_goodbye(Outcome.IDLE_TIMEOUT)
        elif now > self.session.ends_at and self._may_expire(now, silent):
            self.say_goodbye(Outcome.EXPIRED)

    def _may_expire(self, now: float, silent: float) -> bool:
        """Whether a session that is not entitled to go on can end just now, hurting nobody; and some day it must."""
        if self.at_safe_point or now > self.session.ends_at + _LONGEST_EXPIRED_SECONDS:
            return True
        # Nobody knows what goes on inside COMPRESS: a silence is the best moment there is.
        return self._observer.state is State.BLIND and silent > _BLIND_SILENCE_SECONDS

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
