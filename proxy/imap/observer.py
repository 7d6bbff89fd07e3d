"""Watches an established session in both directions: which command waits for its answer, and where lines begin.

Theory of operation. Each direction is a stream of lines; a line that ends in `{n}` is followed by n octets of
literal, which are skipped by count, and then by the next part of the same line (RFC 9051 §4.3). Of a line that has
not come whole only its start and its last octets are kept, so memory is constant and every octet is looked at once.

What the client's octets mean hangs on the backend at a few points: behind a synchronizing literal `{n}` (taken with
`+`, or refused by a tagged answer), behind IDLE (likewise), behind a line in IDLE that is not DONE, behind COMPRESS,
behind a tag that is still in use. A client that waits, as it should, never notices. What comes early is held back
there (`waiting`): guessing would let a client hide a command in what this side takes for a literal and the backend
does not. So the client's side is never in doubt, and a line whose command is refused never reaches the backend.

A limit (`permits`) is asked about every command that is about to begin. What it delays is held back like the start of a
line; what it refuses is refused, whatever it is.

Where the client does what no server could read in one way only, the session ends (`violation`). The observer goes
blind where there is nothing left to read (COMPRESS) or where the backend's stream makes no sense.

Quoted strings matter in one place: `"...{n+}` at the end of a client's line that leaves its quoted string open. In the
other direction a line that ends inside a quoted string would be the backend's bug and is not looked for.

This is the hottest code of the program. One whole line in one chunk takes the fast path at the top of `from_client`
and `from_backend`; the rest jumps from literal to literal and from tagged line to tagged line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from proxy.imap.command_stream import (
    BLIND,
    COMMAND,
    ENDED,
    FULL,
    IDLE_ASKED,
    IDLING,
    LINE_START,
    LITERAL_ASKED,
    MAX_PENDING,
    TEXT,
    CommandStream,
    Permit,
    Permits,
    Refusal,
    Tally,
)
from proxy.imap.commands import AFTER_UID, COMPRESS, REFUSED_AFTER_LOGIN, UID, lines_without_arguments
from proxy.imap.literals import NO_LITERAL, TOO_LARGE, literal_size, may_announce_literal

__all__ = ["BLIND_REASONS", "LINE_START", "MAX_PENDING", "Observer", "Permit", "Permits", "Refusal", "State", "Tally"]

_COMPRESSED: Final = "compress"
_BACKEND_LITERAL: Final = "backend_literal"
BLIND_REASONS: Final = (_COMPRESSED, _BACKEND_LITERAL)  # what Tally.blind() is called with

_HEAD: Final = LINE_START + 16  # kept of an unfinished line: a tag, a status word ...
_TAIL: Final = 40  # ... and room for what announces a literal

# A line that is not untagged. bytes.find has no "anything but"; of all ways tried, this is also the fastest.
_NOT_UNTAGGED = re.compile(rb"\n[^*]").search


class State(StrEnum):
    """Whether a session could be closed now without hurting anyone."""

    BETWEEN_COMMANDS = "between commands"
    IN_IDLE = "in IDLE"
    BUSY = "busy"
    BLIND = "blind"


class Observer(CommandStream):
    """One session's observer: both fast paths, and the backend's side.

    `client_skip`, `backend_skip`: octets of a literal still to come. Whoever carries a chunk that is no longer may
    subtract its length instead of calling `from_client` or `from_backend`.
    `refusal`: set while a refused command has to be taken with `swallow`.
    `answered`: how many commands have had their answer.
    `violation`: why the session has to end; nothing more of the client's may reach the backend.
    """

    __slots__ = ("_after_literal", "_alone", "_back", "answered", "backend_skip")

    def __init__(
        self,
        tally: Tally,
        clock: Callable[[], float],
        *,
        refused: frozenset[bytes] = REFUSED_AFTER_LOGIN,
        permits: Permits | None = None,
    ) -> None:
        super().__init__(tally, clock, refused, permits)
        self._alone = lines_without_arguments(refused)
        self.answered = 0
        self.backend_skip = 0
        # None: at the start of a response; else what is kept of the unfinished line.
        self._back: bytes | None = None
        self._after_literal = False

    @property
    def state(self) -> State:
        """What the session is doing, seen from outside."""
        mode = self._mode
        if mode == COMMAND:
            return State.BETWEEN_COMMANDS if self._tag is None and self._more is None else State.BUSY
        if mode == IDLING:
            alone = self._more is None or (self._tag is None and len(self._more) == 1)
            return State.IN_IDLE if alone else State.BUSY
        return State.BLIND if mode == BLIND else State.BUSY

    @property
    def idle_tag(self) -> bytes:
        """Of the IDLE that goes on; b"": there is none."""
        return (self._tag or b"").rstrip(b" ") if self.state is State.IN_IDLE else b""

    @property
    def between_responses(self) -> bool:
        """The backend's stream stands at the start of a response: an untagged BYE may be put in."""
        return self._back is None

    @property
    def logged_out(self) -> bool:
        """The last command was LOGOUT and has its answer: what ends now was asked to."""
        return self._tag is None and self._more is None and self._name == "LOGOUT"

    def says_bye(self, data: bytes) -> bool:
        """Whether a whole line of these octets, which are still to be observed, is an untagged BYE.

        Literals don't count: a mail may hold such a line. Where the octets begin inside a response it is not found.
        """
        at, continued = 0, False
        while self._back is None and (after := data.find(b"\n", at) + 1):
            if not continued and data.startswith(b"* BYE", at):
                return True
            line = data[at:after]
            size = NO_LITERAL
            if line.endswith(b"}\r\n") and (continued or may_announce_literal(line)):
                size = literal_size(line)
            if size == TOO_LARGE:
                return False
            continued = size >= 0
            at = after + max(size, 0)
        return False

    # --- from the client ---

    def from_client(self, data: bytes) -> int:
        """How many octets of `data` may go to the backend now; the rest is to be fed again, with what comes next.

        Nearly always all of them. Fewer when the rest is the start of a command's line (or of DONE), when its meaning
        hangs on the backend's answer (`waiting`), when a limit delays it, or when it is refused (`refusal`) or ends the
        session (`violation`).
        """
        if not self._mode and self._tag is None and self._more is None and len(data) <= LINE_START:
            tag, _, rest = data.partition(b" ")
            if tag.isalnum():
                name = self._alone.get(rest)
                if name is None:
                    words = rest.split(b" ", 2)
                    name = self._names.get(words[0])
                    if name == UID:
                        name = AFTER_UID.get(words[1]) if len(words) > 1 else None
                    if name is not None and (0x7D in rest or rest[-1] != 0x0A or 0x0A in rest[:-1]):
                        name = None
                if name is not None:
                    if self._permits is not None and (permit := self._permits(name)):
                        self._not_granted(permit, tag + b" ", name)
                        return 0
                    self._tag = tag + b" "
                    self._name = name
                    self._since = self._clock()
                    return len(data)
        return self._scan_client(data)

    # --- from the backend ---

    def from_backend(self, data: bytes) -> None:
        """Watch what goes to the client."""
        tag = self._tag
        if (
            tag is not None
            and self._current is None
            and self._back is None
            and data.startswith(tag)
            and data[-1] == 0x0A
            and 0x0A not in data[:-1]
        ):
            self._tag = None
            self.answered += 1
            self._tally.finished(self._name, self._clock() - self._since)
            return
        at, end = 0, len(data)
        while at < end and self._mode != BLIND:
            at = self._responses(data, at) if self._back is None else self._rest_of_line(data, at)

    def _responses(self, data: bytes, at: int) -> int:
        """Take whole lines, up to the first literal; keep what there is of a last one."""
        brace = data.find(b"}", at)  # one octet is searched for much faster than three
        if brace >= 0 and not data.startswith(b"}\r\n", brace):
            brace = data.find(b"}\r\n", brace)
        stop = brace + 3 if brace >= 0 else data.rfind(b"\n", at) + 1
        if stop and (self._tag is not None or self._more is not None):
            self._find_answers(data, at, stop)
            if self._mode == BLIND:
                return stop
        if brace < 0:
            stop = max(stop, at)
            if stop < len(data):
                self._back = _shortened(data[stop:])
            return len(data)
        line = data[data.rfind(b"\n", at, brace) + 1 or at : stop]
        if may_announce_literal(line):
            self._expect_literal(line)
        return stop

    def _find_answers(self, data: bytes, at: int, stop: int) -> None:
        """Go through those of the whole lines in [at, stop) that are not untagged."""
        while True:
            while data[at] != 0x2A:
                self._answer(data, at)
                at = data.find(b"\n", at, stop) + 1
                if at == stop:
                    return
            found = _NOT_UNTAGGED(data, at, stop)
            if found is None:
                return
            at = found.start() + 1

    def _rest_of_line(self, data: bytes, at: int) -> int:
        """Go on with the line that an earlier chunk or a literal left unfinished."""
        skip = self.backend_skip
        if skip:
            if skip >= len(data) - at:
                self.backend_skip = skip - (len(data) - at)
                return len(data)
            self.backend_skip = 0
            at += skip
        line = self._back
        assert line is not None
        after = data.find(b"\n", at) + 1
        if not after:
            self._back = _shortened(line + data[at:])
            return len(data)
        line = line + data[at:after] if line else data[at:after]
        continued = self._after_literal
        self._back = None
        self._after_literal = False
        if 0x7D in line and line.endswith(b"}\r\n") and (continued or may_announce_literal(line)):
            self._expect_literal(line)
        elif not continued and line[0] != 0x2A:
            self._answer(line, 0)
        return after

    def _expect_literal(self, line: bytes) -> None:
        size = literal_size(line)
        if size == TOO_LARGE:
            self._go_blind(_BACKEND_LITERAL)
        elif size >= 0:
            self._back = b""
            self._after_literal = True
            self.backend_skip = size

    def _answer(self, data: bytes, at: int) -> None:
        """Take the tagged line or continuation request that starts at `at`."""
        if data[at] == 0x2B:
            if self._mode == LITERAL_ASKED:
                self._mode = TEXT
                self.client_skip = self._literal
                self._literal = 0
            elif self._mode == IDLE_ASKED:
                self._mode = IDLING
                self._tally.idle(1)
            return
        status = data.find(b" ", at, at + LINE_START) + 1
        tag = data[at:status]
        more = self._more
        if tag == self._tag:
            self._tag = None
            name, since = self._name, self._since
        elif more is not None and tag in more:
            name, since = more.pop(tag)
            if self._tag is None:
                self._name = name  # of the command answered last, for logged_out
            if not more:
                self._more = None
        else:
            return  # not asked for, or an empty tag: status is 0
        self.answered += 1
        self._tally.finished(name, self._clock() - since)
        if tag == self._current:
            self._current_answered(compressed=name == COMPRESS and data[status : status + 2].upper() == b"OK")
        elif self._mode == FULL:
            self._mode = COMMAND
            self._current = None

    def _current_answered(self, *, compressed: bool) -> None:
        self._current = None
        if self._mode == IDLING:
            self._tally.idle(-1)
        if compressed:
            self._go_blind(_COMPRESSED)
        elif self._mode != TEXT:  # inside a line or a literal the client has to reach its end first
            self._mode = COMMAND
            self._literal = 0

    def _go_blind(self, reason: str) -> None:
        if self._mode == IDLING:
            self._tally.idle(-1)
        self._mode = BLIND
        self._tag = self._more = self._current = None
        self._back = b""
        self.client_skip = self.backend_skip = 0
        self._tally.blind(reason)

    def close(self) -> None:
        """The session ended: take it out of the count of sessions in IDLE."""
        if self._mode == IDLING:
            self._tally.idle(-1)
        self._mode = ENDED


def _shortened(line: bytes) -> bytes:
    """What is kept of an unfinished line."""
    return line if len(line) <= _HEAD + _TAIL else line[:_HEAD] + line[-_TAIL:]
