"""Watches an established session in both directions: which command waits for its answer, and where lines begin.

Theory of operation. Each direction is a stream of lines; a line that ends in `{n}` is followed by n octets of
literal, which are skipped by count, and then by the next part of the same line (RFC 9051 §4.3). Of a line that has
not come whole only its start and its last octets are kept, so memory is constant and every octet is looked at once.

What the client's octets mean hangs on the backend at a few points: behind a synchronizing literal `{n}` (taken with
`+`, or refused by a tagged answer), behind IDLE (likewise), behind a line in IDLE that is not DONE, behind COMPRESS,
behind a tag that is still in use. A client that waits, as it should, never notices. What comes early is held back
there (`waiting`): guessing would let a client hide a command in what this side takes for a literal and the backend
does not. So the client's side is never in doubt, and a line whose command is refused never reaches the backend.

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
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from proxy.imap.commands import (
    AFTER_UID,
    COMPRESS,
    IDLE,
    REFUSED_AFTER_LOGIN,
    UID,
    command_name,
    lines_without_arguments,
    plain_names,
    valid_tag,
)
from proxy.imap.literals import NO_LITERAL, TOO_LARGE, LineEnd, literal_size, may_announce_literal

LINE_START: Final = 256  # within so many octets a line has to show its tag and its command
MAX_PENDING: Final = 1000  # commands without an answer; what comes on top of them is held back
_HEAD: Final = LINE_START + 16  # kept of an unfinished line: a tag, a status word ...
_TAIL: Final = 40  # ... and room for what announces a literal

# Where the client's stream stands. From _LITERAL_ASKED on, what comes next is held until the backend has spoken.
_COMMAND: Final = 0  # at the start of a command line
_TEXT: Final = 1  # inside a command: in a literal (client_skip) or in a line
_IDLING: Final = 2
_REFUSED: Final = 3
_ENDED: Final = 4
_BLIND: Final = 5
_LITERAL_ASKED: Final = 6
_IDLE_ASKED: Final = 7
_ANSWER_ASKED: Final = 8  # only the tagged answer to _current can tell
_FULL: Final = 9  # MAX_PENDING reached: any tagged answer makes room

# A line that is not untagged. bytes.find has no "anything but"; of all ways tried, this is also the fastest.
_NOT_UNTAGGED = re.compile(rb"\n[^*]").search


class State(StrEnum):
    """Whether a session could be closed now without hurting anyone."""

    BETWEEN_COMMANDS = "between commands"
    IN_IDLE = "in IDLE"
    BUSY = "busy"
    BLIND = "blind"


class Tally(Protocol):
    """Where an observer reports to; one serves all sessions."""

    def finished(self, command: str, seconds: float) -> None:
        """A command got its tagged answer. `command` is one of `commands.COMMANDS`; IDLE lasts until its answer."""

    def idle(self, change: int) -> None:
        """+1 when the backend begins IDLE, -1 when the client ends it, or the backend, or the session."""

    def blind(self, reason: str) -> None:
        """Once per session at most: `compress` or `backend_literal`."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A command, or a line that is none, which must not reach the backend. Without a usable tag, `tag` is `*`."""

    tag: bytes
    command: str


class Observer:
    """One session's observer.

    `client_skip`, `backend_skip`: octets of a literal still to come. Whoever carries a chunk that is no longer may
    subtract its length instead of calling `from_client` or `from_backend`.
    `refusal`: set while a refused command has to be taken with `swallow`.
    `violation`: why the session has to end; nothing more of the client's may reach the backend.
    `commands`: how many got their answer.
    """

    __slots__ = (
        "_after_literal",
        "_alone",
        "_back",
        "_clock",
        "_current",
        "_line",
        "_literal",
        "_mode",
        "_more",
        "_name",
        "_names",
        "_refused",
        "_since",
        "_tag",
        "_tally",
        "backend_skip",
        "client_skip",
        "commands",
        "refusal",
        "violation",
    )

    def __init__(
        self, tally: Tally, clock: Callable[[], float], *, refused: frozenset[bytes] = REFUSED_AFTER_LOGIN
    ) -> None:
        self._tally = tally
        self._clock = clock
        self._refused = refused
        self._names = plain_names(refused)
        self._alone = lines_without_arguments(refused)
        self.client_skip = 0
        self.backend_skip = 0
        self.refusal: Refusal | None = None
        self.violation: str | None = None
        self.commands = 0
        # What is unanswered: one command in slots, any others in a dict that exists only then. All tags with their SP.
        self._tag: bytes | None = None
        self._name = ""
        self._since = 0.0
        self._more: dict[bytes, tuple[str, float]] | None = None
        # The client's side.
        self._mode: int = _COMMAND
        self._current: bytes | None = None  # the command whose answer changes _mode
        self._literal = 0  # size of the literal that was asked for, or that is being swallowed
        self._line: LineEnd | None = None  # what is kept of an unfinished line
        # The backend's side. None: at the start of a response; else what is kept of the unfinished line.
        self._back: bytes | None = None
        self._after_literal = False

    @property
    def state(self) -> State:
        """What the session is doing, seen from outside."""
        mode = self._mode
        if mode == _COMMAND:
            return State.BETWEEN_COMMANDS if self._tag is None and self._more is None else State.BUSY
        if mode == _IDLING:
            alone = self._more is None or (self._tag is None and len(self._more) == 1)
            return State.IN_IDLE if alone else State.BUSY
        return State.BLIND if mode == _BLIND else State.BUSY

    @property
    def between_responses(self) -> bool:
        """The backend's stream stands at the start of a response: an untagged BYE may be put in."""
        return self._back is None

    @property
    def waiting(self) -> bool:
        """What `from_client` held back waits for the backend: stop reading, feed it again after `from_backend`."""
        return self._mode >= _LITERAL_ASKED

    # --- from the client ---

    def from_client(self, data: bytes) -> int:
        """How many octets of `data` may go to the backend now; the rest is to be fed again, with what comes next.

        Nearly always all of them. Fewer when the rest is the start of a command's line (or of DONE), when its meaning
        hangs on the backend's answer (`waiting`), or when it is refused (`refusal`) or ends the session
        (`violation`).
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
                    self._tag = tag + b" "
                    self._name = name
                    self._since = self._clock()
                    return len(data)
        return self._scan_client(data)

    def _scan_client(self, data: bytes) -> int:
        at, end = 0, len(data)
        while at < end:
            mode = self._mode
            if mode == _COMMAND:
                after = self._command(data, at)
            elif mode == _TEXT:
                after = self._text(data, at)
            elif mode == _IDLING:
                after = self._line_in_idle(data, at)
            else:
                return end if mode == _BLIND and self.refusal is None and self.violation is None else at
            if after == at:
                return at
            at = after
        return at

    def _command(self, data: bytes, at: int) -> int:
        """Take the line that starts at `at`. Returning `at` itself says that it has to stay there."""
        after = data.find(b"\n", at, at + LINE_START) + 1
        whole = after > 0
        if not whole:
            after = at + LINE_START
            if after > len(data):
                return at
        line = data[at:after]
        words = line.split(None, 3)
        if whole and not words:
            return after
        tag = words[0] + b" " if words else b""
        valid = len(words) > 1 and line.startswith(tag) and (words[0].isalnum() or valid_tag(words[0]))
        if not whole and not (valid and (len(words) > 2 or line[-1:].isspace())):
            return self._violated("line start too long", at)
        name = self._names.get(words[1]) if valid else None
        if name == UID:
            name = AFTER_UID.get(words[2]) if len(words) > 2 else None
        goes_on = not whole or (0x7D in line and literal_size(line) != NO_LITERAL)
        special = False
        if name is None:  # refused, special, or in a rare spelling
            name = command_name(words)
            special = name in (IDLE, COMPRESS)
            # Malformed lines are refused too: servers differ in what they make of them, and an answer that this side
            # did not expect could pass for that of the next command.
            if not valid or words[1].upper() in self._refused or (special and goes_on):
                self.refusal = Refusal(words[0] if valid_tag(words[0]) else b"*", name)
                self._mode = _REFUSED
                return at
        if not self._begin(tag, name):
            return at
        if goes_on:
            self._current = tag
            self._mode = _TEXT
            return self._text(data, at)
        if special:
            self._current = tag
            self._mode = _IDLE_ASKED if name == IDLE else _ANSWER_ASKED
        return after

    def _begin(self, tag: bytes, name: str) -> bool:
        """Note a command that waits for its answer. False: it has to wait for another's first."""
        more = self._more
        if tag == self._tag or (more is not None and tag in more):
            # RFC 9051 §2.2.1 wants tags to be unique. One after the other they are, and no answer is ambiguous.
            self._current = tag
            self._mode = _ANSWER_ASKED
            return False
        if self._tag is None:
            self._tag = tag
            self._name = name
            self._since = self._clock()
        elif more is None:
            self._more = {tag: (name, self._clock())}
        elif len(more) + 1 < MAX_PENDING:
            more[tag] = (name, self._clock())
        else:
            self._current = b""
            self._mode = _FULL
            return False
        return True

    def _text(self, data: bytes, at: int) -> int:
        """Pass what belongs to the command, up to the end of a line or of a literal."""
        if self.client_skip:
            passed = min(self.client_skip, len(data) - at)
            self.client_skip -= passed
            return at + passed
        after = data.find(b"\n", at) + 1
        if not after:
            self._keep(data, at)
            return len(data)
        size, asks = self._end_of_line(data, at, after)
        if size < NO_LITERAL:
            return at
        if size == NO_LITERAL or (asks and self._current is None):
            # In the second case the command was answered already: nobody is going to ask for this literal.
            self._mode = _COMMAND
            self._current = None
        elif asks:
            self._literal = size
            self._mode = _LITERAL_ASKED
        else:
            self.client_skip = size
        return after

    def _keep(self, data: bytes, at: int) -> None:
        """Remember an unfinished line that goes on from `at`."""
        if self._line is None:
            self._line = LineEnd()
        self._line.keep(data, at)

    def _end_of_line(self, data: bytes, at: int, after: int) -> tuple[int, bool]:
        """What literal the line [at, after) announces; less than NO_LITERAL: it is a violation."""
        line = self._line or LineEnd()
        self._line = None
        size, asks = line.literal(data, at, after)
        if size < NO_LITERAL:
            self._violated("literal too large" if size == TOO_LARGE else "literal in a quoted string", at)
        return size, asks

    def _line_in_idle(self, data: bytes, at: int) -> int:
        """DONE, or a line that a server answers with BAD; either ends IDLE (RFC 9051 §6.3.13)."""
        after = data.find(b"\n", at, at + LINE_START) + 1
        if not after:
            return at if len(data) - at < LINE_START else self._violated("line start too long", at)
        self._tally.idle(-1)
        if data[at:after].rstrip(b"\r\n").upper() == b"DONE":
            self._mode = _COMMAND
            self._current = None
        else:
            self._mode = _ANSWER_ASKED
        return after

    def _violated(self, violation: str, at: int) -> int:
        if self._mode == _IDLING:
            self._tally.idle(-1)
        self._mode = _ENDED
        self._current = None
        self.violation = violation
        return at

    def swallow(self, data: bytes) -> int | None:
        """Take the refused command itself, with its literals, so that none of it is read as a command.

        Args:
            data: Starts at the refused line at first, goes on behind the octets of the last call later.
        Returns: How many octets the command ends after; `refusal` is None again, and a BAD is due. None: it took all of
            them and is not complete, or there is a `violation`.
        """
        at, end = 0, len(data)
        while at < end:
            if self._literal:
                passed = min(self._literal, end - at)
                self._literal -= passed
                at += passed
                continue
            after = data.find(b"\n", at) + 1
            if not after:
                self._keep(data, at)
                return None
            size, asks = self._end_of_line(data, at, after)
            if size < NO_LITERAL:
                return None
            if size == NO_LITERAL or asks:  # who asks waits for the answer, which is BAD
                self.refusal = None
                if self._mode == _REFUSED:
                    self._mode = _COMMAND
                return after
            self._literal = size
            at = after
        return None

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
            self.commands += 1
            self._tally.finished(self._name, self._clock() - self._since)
            return
        at, end = 0, len(data)
        while at < end and self._mode != _BLIND:
            at = self._responses(data, at) if self._back is None else self._rest_of_line(data, at)

    def _responses(self, data: bytes, at: int) -> int:
        """Take whole lines, up to the first literal; keep what there is of a last one."""
        brace = data.find(b"}", at)  # one octet is searched for much faster than three
        if brace >= 0 and not data.startswith(b"}\r\n", brace):
            brace = data.find(b"}\r\n", brace)
        stop = brace + 3 if brace >= 0 else data.rfind(b"\n", at) + 1
        if stop and (self._tag is not None or self._more is not None):
            self._find_answers(data, at, stop)
            if self._mode == _BLIND:
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
            self._go_blind("backend_literal")
        elif size >= 0:
            self._back = b""
            self._after_literal = True
            self.backend_skip = size

    def _answer(self, data: bytes, at: int) -> None:
        """Take the tagged line or continuation request that starts at `at`."""
        if data[at] == 0x2B:
            if self._mode == _LITERAL_ASKED:
                self._mode = _TEXT
                self.client_skip = self._literal
                self._literal = 0
            elif self._mode == _IDLE_ASKED:
                self._mode = _IDLING
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
            if not more:
                self._more = None
        else:
            return  # not asked for, or an empty tag: status is 0
        self.commands += 1
        self._tally.finished(name, self._clock() - since)
        if tag == self._current:
            self._current_answered(compressed=name == COMPRESS and data[status : status + 2].upper() == b"OK")
        elif self._mode == _FULL:
            self._mode = _COMMAND
            self._current = None

    def _current_answered(self, *, compressed: bool) -> None:
        self._current = None
        if self._mode == _IDLING:
            self._tally.idle(-1)
        if compressed:
            self._go_blind("compress")
        elif self._mode != _TEXT:  # inside a line or a literal the client has to reach its end first
            self._mode = _COMMAND
            self._literal = 0

    def _go_blind(self, reason: str) -> None:
        if self._mode == _IDLING:
            self._tally.idle(-1)
        self._mode = _BLIND
        self._tag = self._more = self._current = None
        self._back = b""
        self.client_skip = self.backend_skip = 0
        self._tally.blind(reason)

    def close(self) -> None:
        """The session ended: take it out of the count of sessions in IDLE."""
        if self._mode == _IDLING:
            self._tally.idle(-1)
        self._mode = _ENDED


def _shortened(line: bytes) -> bytes:
    """What is kept of an unfinished line."""
    return line if len(line) <= _HEAD + _TAIL else line[:_HEAD] + line[-_TAIL:]
