"""What a client of an established session sends, read as commands: the slow and complete way.

The observer's theory of operation stands in `observer.py`; here is its client's side: which octets go on to the
backend, which are held back until the backend has spoken, which are refused, and which end the session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from proxy.imap.commands import AFTER_UID, COMPRESS, IDLE, OTHER, UID, command_name, plain_names, valid_tag
from proxy.imap.literals import NO_LITERAL, TOO_LARGE, LineEnd, literal_size

LINE_START: Final = 256  # within so many octets a line has to show its tag and its command
MAX_PENDING: Final = 1000  # commands without an answer; what comes on top of them is held back

# Where the client's stream stands. From LITERAL_ASKED on, what comes next is held until the backend has spoken.
COMMAND: Final = 0  # at the start of a command line
TEXT: Final = 1  # inside a command: in a literal (client_skip) or in a line
IDLING: Final = 2
REFUSED: Final = 3
ENDED: Final = 4
BLIND: Final = 5
LITERAL_ASKED: Final = 6
IDLE_ASKED: Final = 7
ANSWER_ASKED: Final = 8  # only the tagged answer to _current can tell
FULL: Final = 9  # MAX_PENDING reached: any tagged answer makes room


class Tally(Protocol):
    """Where an observer reports to; one serves all sessions."""

    def finished(self, command: str, seconds: float) -> None:
        """A command got its tagged answer. `command` is one of `commands.COMMANDS`; IDLE lasts until its answer."""

    def idle(self, change: int) -> None:
        """+1 when the backend begins IDLE, -1 when the client ends it, or the backend, or the session."""

    def blind(self, reason: str) -> None:
        """Once per session at most; `reason` is one of `observer.BLIND_REASONS`."""


class Permit(IntEnum):
    """What a limit says to a command that is about to begin."""

    GRANTED = 0
    REFUSED = 1  # to be swallowed whole, and answered
    DELAYED = 2  # stays where it is, with all behind it, until it is fed again


# Asked about every command that could begin, again about one that it delayed; given one of `commands.COMMANDS`.
Permits = Callable[[str], Permit]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A command, or a line that is none, which must not reach the backend. Without a usable tag, `tag` is `*`."""

    tag: bytes
    command: str
    limited: bool = False  # by a limit; else for what it is


class CommandStream:
    """The client's side of an observer. `_answer` and `_go_blind`, the backend's, change what it waits for."""

    __slots__ = (
        "_clock",
        "_current",
        "_line",
        "_literal",
        "_mode",
        "_more",
        "_name",
        "_names",
        "_permits",
        "_refused",
        "_since",
        "_tag",
        "_tally",
        "_unknown",
        "client_skip",
        "refusal",
        "violation",
    )

    def __init__(
        self, tally: Tally, clock: Callable[[], float], refused: frozenset[bytes], permits: Permits | None
    ) -> None:
        self._tally = tally
        self._clock = clock
        self._refused = refused
        self._permits = permits
        self._names = plain_names(refused)
        self.client_skip = 0
        self.refusal: Refusal | None = None
        self.violation: str | None = None
        # What is unanswered: one command in slots, any others in a dict that exists only then. All tags with their SP.
        self._tag: bytes | None = None
        self._name = ""
        self._since = 0.0
        self._more: dict[bytes, tuple[str, float]] | None = None
        self._mode: int = COMMAND
        self._current: bytes | None = None  # the command whose answer changes _mode
        self._unknown = False  # the command that is in its text is none of the table's
        self._literal = 0  # size of the literal that was asked for, or that is being swallowed
        self._line: LineEnd | None = None  # what is kept of an unfinished line

    @property
    def waiting(self) -> bool:
        """What was held back waits for the backend: stop reading, feed it again after `from_backend`."""
        return self._mode >= LITERAL_ASKED

    def _scan_client(self, data: bytes) -> int:
        at, end = 0, len(data)
        while at < end:
            mode = self._mode
            if mode == COMMAND:
                after = self._command(data, at)
            elif mode == TEXT:
                after = self._text(data, at)
            elif mode == IDLING:
                after = self._line_in_idle(data, at)
            else:
                return end if mode == BLIND and self.refusal is None and self.violation is None else at
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
            # did not expect could pass for that of the next command. And literals that nobody asked for, of commands
            # that a server may not know: Dovecot answers BAD at once and reads on in the literal.
            unasked = name == OTHER and goes_on and whole and line.rstrip(b"\r\n").endswith(b"+}")
            if not valid or words[1].upper() in self._refused or (special and goes_on) or unasked:
                self.refusal = Refusal(words[0] if valid_tag(words[0]) else b"*", name)
                self._mode = REFUSED
                return at
        if not self._begin(tag, name):
            return at
        if goes_on:
            self._current = tag
            self._unknown = name == OTHER
            self._mode = TEXT
            return self._text(data, at)
        if special:
            self._current = tag
            self._mode = IDLE_ASKED if name == IDLE else ANSWER_ASKED
        return after

    def _begin(self, tag: bytes, name: str) -> bool:
        """Note a command that waits for its answer. False: it must not begin, now or at all."""
        more = self._more
        if tag == self._tag or (more is not None and tag in more):
            # RFC 9051 §2.2.1 wants tags to be unique. One after the other they are, and no answer is ambiguous.
            self._current = tag
            self._mode = ANSWER_ASKED
            return False
        if more is not None and self._tag is not None and len(more) + 1 >= MAX_PENDING:
            self._current = b""
            self._mode = FULL
            return False
        if self._permits is not None and (permit := self._permits(name)):
            self._not_granted(permit, tag, name)
            return False
        if self._tag is None:
            self._tag = tag
            self._name = name
            self._since = self._clock()
        elif more is None:
            self._more = {tag: (name, self._clock())}
        else:
            more[tag] = (name, self._clock())
        return True

    def _not_granted(self, permit: Permit, tag: bytes, name: str) -> None:
        """A limit stands in the way of a command that could begin."""
        if permit is Permit.REFUSED:
            self.refusal = Refusal(tag[:-1], name, limited=True)
            self._mode = REFUSED

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
            self._mode = COMMAND
            self._current = None
        elif asks:
            self._literal = size
            self._mode = LITERAL_ASKED
        elif self._unknown:  # too late to refuse it
            return self._violated("literal of an unknown command", at)
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
            self._mode = COMMAND
            self._current = None
        else:
            self._mode = ANSWER_ASKED
        return after

    def _violated(self, violation: str, at: int) -> int:
        if self._mode == IDLING:
            self._tally.idle(-1)
        self._mode = ENDED
        self._current = None
        self.violation = violation
        return at

    def swallow(self, data: bytes) -> int | None:
        """Take the refused command itself, with its literals, so that none of it is read as a command.

        Args:
            data: Starts at the refused line at first, goes on behind the octets of the last call later.
        Returns: How many octets the command ends after; `refusal` is None again, and an answer is due. None: it took
            all of them and is not complete, or there is a `violation`.
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
            if size == NO_LITERAL or asks:  # who asks waits for the answer
                self.refusal = None
                if self._mode == REFUSED:
                    self._mode = COMMAND
                return after
            self._literal = size
            at = after
        return None
