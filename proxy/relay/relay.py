"""One established session: a client and a backend spliced together, byte for byte.

Theory of operation. Two callbacks, one per descriptor, that never wait. The observer is shown every chunk; it holds
back only what it must not guess at: the start of a command line that is not complete, what comes before its meaning is
known, and commands that must not reach the backend, which are answered here. How things are kept, written and ended
stands in `splice`.
"""

from __future__ import annotations

from proxy.imap.observer import Refusal, State
from proxy.outcome import Outcome
from proxy.relay.engine import LOST, OUT
from proxy.relay.splice import Splice
from proxy.transport.stream import RECORD_BYTES
from proxy.transport.tls import Broken, Ended, WouldRead, WouldWrite

# One for all sessions of the process: the loop is single-threaded, and what stays is copied out.
_CHUNK = bytearray(256 * 1024)
_VIEW = memoryview(_CHUNK)
_RECORDS_AT_ONCE = 8
# Commands that are answered here instead of by the backend; no client sends even one by itself.
_MOST_REFUSALS = 50
# A backend's BYE comes alone or with little else.
_SHORT = 1024


def _refusal_reply(refusal: Refusal) -> bytes:
    if refusal.limited:
        return refusal.tag + b" NO [LIMIT] Too many commands; try again later.\r\n"
    if refusal.command == "COMPRESS":
        return refusal.tag + b" NO [CANNOT] Compression is not offered here.\r\n"
    if refusal.command == "OTHER":
        return refusal.tag + b" BAD Invalid command.\r\n"
    return refusal.tag + b" BAD Command not allowed after login.\r\n"


class Relay(Splice):
    """What to do when a side of a session has something to say, or room."""

    __slots__ = ()

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
            self._goodbye = count < _SHORT and b"* BYE" in data and observer.says_bye(data)
            observer.from_backend(data)
            if self._goodbye and self._takes_leave_later(data):
                return
        if self._write_client(data) and self._blocked:
            self._pump()

    def _takes_leave_later(self, farewell: bytes) -> bool:
        """Whether the backend's own BYE is kept back for a while: it closes on many clients at once."""
        observer = self._observer
        if observer.logged_out or self._client_ended or not observer.between_responses:
            return False
        if not self._carriage.partings.postpone(self, self.session.backend):
            return False
        self._linger(farewell)
        return True

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
        if len(records) == 1:
            self._write_backend(records[0])
        else:
            self._write_backend_records(records, count)
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
            if swallowed is not None and not refusal.limited and self._refusals == _MOST_REFUSALS:
                self.say_goodbye(Outcome.PROTOCOL_VIOLATION)
            elif swallowed is not None:
                self._refusals += not refusal.limited
                self._held = data[swallowed:]
                self._reply = _refusal_reply(refusal)
                self._blocked = True
        else:
            self._held = data
            self._blocked = observer.waiting
        if observer.violation is not None:
            self.say_goodbye(Outcome.PROTOCOL_VIOLATION)

    @property
    def _may_be_answered(self) -> bool:
        """Whether an answer of ours would stand between two responses of the backend, as far as can be told."""
        return self._observer.between_responses or self._observer.state is State.BLIND

    def _pump(self) -> None:
        """Go on with what was held, as far as that goes.

        A command that is refused here is answered in its turn, after all that the backend still owes. A loop, since
        what was held may be refused commands by the hundred.
        """
        observer = self._observer
        while self._blocked and self._client is not None:
            if self._paused or self._to_client is not None or self._to_backend is not None or observer.waiting:
                break
            reply = self._reply
            if reply is not None and (observer.state is State.BUSY or not self._may_be_answered):
                break
            self._blocked, self._reply = False, None
            if reply is not None:
                self._write_client(reply)
            held, self._held = self._held, b""
            if held and self._client is not None:
                self._take(held)
        self._interest()
