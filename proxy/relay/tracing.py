"""Looking on at the sessions of one user for a while: their protocol lines, as far as an administrator may see them.

Theory of operation. A session that is looked at has a tap: its reads and writes (`Splice.transfers`) go through it, and
it shows the octets to a Conversation and lets them pass. Other sessions have none, and pay nothing. A tap begins to
show at a safe point, where both directions stand between lines. The client's octets are taken where the backend takes
them, so nothing is shown that was held back or refused; the backend's where they are read, before the observer acts on
them. What the client is sent on top of the backend's octets is an answer of the proxy's own, and shown as a note.

Invariants. A tap changes no octet, and a bug in it ends the tap and not the session. Lines of one second are bounded;
what was left out is counted, and told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proxy.imap.discretion import Line, Shown, Side, note
from proxy.imap.observer import State
from proxy.imap.protocol_lines import Conversation
from proxy.observe.log import get_logger
from proxy.outcome import Outcome
from proxy.relay.engine import Carried
from proxy.relay.splice import Splice, Transfers

log = get_logger()

MOST_TRACES = 8
MOST_SECONDS = 3600.0
MOST_TAPS = 200  # sessions that are looked at at once
LINES_PER_SECOND = 2000
_SECOND = 1.0

# Trace, session, side, text. False: it could not be passed on. Called by callbacks of the engine: see Engine.stir().
Told = Callable[[str, str, str, str], bool]


@dataclass(slots=True)
class _Trace:
    name: str  # canonical
    ends_at: float
    left_out: int = 0


class Tracing:
    """All traces of a worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.on_line: Told = _unheard
        self._clock = clock
        self._traces: dict[str, _Trace] = {}
        self._taps: dict[str, Tap] = {}  # by the session's id
        self._second, self._lines = clock(), 0  # those of the second that began then

    def __len__(self) -> int:
        return len(self._traces)

    @property
    def taps(self) -> int:
        """How many sessions are looked at."""
        return len(self._taps)

    # --- traces ---

    def begin(self, trace_id: str, name: str, seconds: float, sessions: Iterable[Carried]) -> None:
        """Look on at this user's sessions for so long. Where there are too many traces, since another steward has begun
        some, the one that ends first ends now.

        Args:
            sessions: All that are here.
        """
        self.tick()
        if trace_id not in self._traces and len(self._traces) >= MOST_TRACES:
            self.end(min(self._traces, key=lambda each: self._traces[each].ends_at))
        self._traces[trace_id] = _Trace(name, self._clock() + min(seconds, MOST_SECONDS))
        log.info("trace.began", trace=trace_id, name=name, seconds=seconds)
        for session in sessions:
            if isinstance(session, Splice) and session.session.name == name:
                self._tap(session)

    def end(self, trace_id: str) -> None:
        """Look on no more; of no effect where it is over."""
        trace = self._traces.pop(trace_id, None)
        if trace is None:
            return
        self._tell_left_out(trace_id, trace)
        log.info("trace.ended", trace=trace_id, name=trace.name)
        if not self.looks_at(trace.name):
            for tap in [tap for tap in self._taps.values() if tap.name == trace.name]:
                tap.remove()
                del self._taps[tap.session_id]

    def tick(self) -> None:
        """To be called every second: end what is over, and tell what was left out."""
        now = self._clock()
        for trace_id, trace in list(self._traces.items()):
            if now >= trace.ends_at:
                self.end(trace_id)
            elif now - self._second >= _SECOND:
                self._tell_left_out(trace_id, trace)

    def looks_at(self, name: str) -> bool:
        """Whether there is a trace of this user."""
        return any(trace.name == name for trace in self._traces.values())

    # --- sessions ---

    def note(self, name: str, session_id: str, text: str) -> None:
        """Tell something about a session that is logging in; of no effect for users who are not looked at."""
        if self._traces and self.looks_at(name):
            self.say(name, session_id, [note(text)])

    def opened(self, session: Splice, early_backend: bytes) -> None:
        """A session is about to be carried. What its backend has said already is given here: it is not read again."""
        if self._traces and self.looks_at(session.session.name):
            self._tap(session)
            self.note(session.session.name, session.id, f"logged in: backend {session.session.backend}")
            if (tap := self._taps.get(session.id)) is not None:
                tap.take_early(early_backend)

    def closed(self, session: Splice, outcome: Outcome) -> None:
        """A session is over."""
        tap = self._taps.pop(session.id, None) if self._taps else None
        if tap is not None:
            self.say(tap.name, tap.session_id, [note(f"ended: {outcome}")])

    def _tap(self, session: Splice) -> None:
        if session.id in self._taps:
            return
        if len(self._taps) >= MOST_TAPS:
            self.say(session.session.name, session.id, [note("not shown: so many sessions are looked at already")])
            return
        self._taps[session.id] = Tap(session, self)

    # --- lines ---

    def say(self, name: str, session_id: str, lines: Iterable[Line]) -> None:
        """Pass lines on to all traces of this user."""
        now = self._clock()
        if now - self._second >= _SECOND:
            for trace_id, trace in self._traces.items():
                self._tell_left_out(trace_id, trace)
            self._second, self._lines = now, 0
        for line in lines:
            for trace_id, trace in self._traces.items():
                if trace.name == name and now < trace.ends_at:
                    self._lines += 1
                    full = self._lines > LINES_PER_SECOND
                    if full or not self.on_line(trace_id, session_id, line.side, line.text):
                        trace.left_out += 1

    def _tell_left_out(self, trace_id: str, trace: _Trace) -> None:
        if trace.left_out and self.on_line(trace_id, "", Side.NOTE, f"{trace.left_out} lines left out: too many"):
            trace.left_out = 0


class Tap:
    """Looks on at one session."""

    __slots__ = ("_conversation", "_owed", "_session", "_shows", "_tracing", "_usual", "name", "session_id")

    def __init__(self, session: Splice, tracing: Tracing) -> None:
        self._session, self._tracing = session, tracing
        self.name, self.session_id = session.session.name, session.id
        self._conversation = Conversation()
        self._shows = False
        self._owed = 0  # octets that were read from the backend and not written to the client yet
        self._usual = session.transfers
        self._look()
        session.transfers = Transfers(
            self._client_recv, self._client_send, self._backend_recv, self._backend_send, backend_is_plain=False
        )
        if session.observer.state is State.BLIND:
            self._say([note("not shown: the session is compressed")])
        elif not self._shows:
            self._say([note("in the middle of a command: shown from its end")])

    def remove(self) -> None:
        """Let the session be."""
        self._session.transfers = self._usual

    def take_early(self, data: bytes) -> None:
        """What the backend has said before."""
        if data and self._shows:
            self._owed += len(data)
            self._show(self._conversation.from_backend, data)

    def _look(self) -> None:
        """Show from a safe point on: the client has said nothing since this became one, or it would be none."""
        if not self._shows and self._session.at_safe_point:
            self._shows = True
            if tag := self._session.observer.idle_tag:
                self._conversation.expect(tag)

    # --- in place of the session's own ---

    def _client_recv(self, count: int) -> bytes:
        self._look()
        return self._usual.client_recv(count)

    def _backend_recv(self, count: int) -> bytes:
        self._look()
        data = self._usual.backend_recv(count)
        if self._shows and data:
            self._owed += len(data)
            self._show(self._conversation.from_backend, data)
        return data

    def _backend_send(self, data: bytes | memoryview) -> int:
        sent = self._usual.backend_send(data)
        if self._shows:
            self._show(self._conversation.from_client, data[:sent])
        return sent

    def _client_send(self, data: bytes | memoryview) -> int:
        sent = self._usual.client_send(data)
        if self._shows:
            if self._owed:
                self._owed -= min(sent, self._owed)
            elif not self._conversation.over:
                self._show(_own_words, data[:sent])
        return sent

    def _show(self, take: Callable[[bytes | memoryview], list[Line]], data: bytes | memoryview) -> None:
        try:
            self._say(take(data))
        except Exception:
            log.exception("trace.failed", session_id=self.session_id)
            self._conversation.over = True

    def _say(self, lines: list[Line]) -> None:
        if lines:
            self._tracing.say(self.name, self.session_id, lines)


def _own_words(data: bytes | memoryview) -> list[Line]:
    """What the proxy itself has told the client. Not the tag: what it refuses may be a secret that lost its way."""
    lines = filter(None, bytes(data[:1000]).split(b"\r\n"))
    return [Line(Side.NOTE, b"answered here: ", _untagged(line), Shown.ALL) for line in lines]


def _untagged(line: bytes) -> bytes:
    tag, _, rest = line.partition(b" ")
    return line if tag in (b"*", b"+") else b"(tag) " + rest


def _unheard(trace_id: str, session_id: str, side: str, text: str) -> bool:
    """Nobody listens."""
    return True
