"""The octets of an established session, both directions, as lines that an administrator may see.

Theory of operation. Each direction is cut into lines and literals as the observer cuts them (RFC 9051 §4.3), and by the
same functions; of a line only its start is kept, of a literal nothing. A client's synchronizing literal waits for the
backend: `+` begins it, the tagged answer says that none will come. What follows LOGIN, AUTHENTICATE and the keys of a
search is left out, and so is every command that is not known to be harmless; `discretion` tells what is shown of which.

It is fed with what has passed the observer: the client's octets as they go on to the backend, and not earlier. Where
the two would part all the same, and behind COMPRESS, it says so in one line and shows no more: a line out of place
could be anybody's mail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.imap.commands import COMMANDS, COMPRESS, IDLE, OTHER, UID, command_name, valid_tag
from proxy.imap.discretion import MOST_KEPT, Line, Shown, Side, ends_in_quotes, hides, note
from proxy.imap.literals import HEADER, NO_LITERAL, LineEnd, literal_size, may_announce_literal

__all__ = ["Conversation", "Line", "Side"]

_LONGEST_TAG: Final = 64  # that is shown: a secret that lost its way may look like one
_MOST_DISCREET: Final = 100
_MOST_TAGS: Final = 500  # of commands that wait for their answers; of more these are not shown

_SEARCHES = frozenset({"SEARCH", "UID SEARCH", "ESEARCH", "SORT", "UID SORT", "THREAD", "UID THREAD"})
_NOT_SHOWN = frozenset(
    # Secrets, and what a user writes for himself; and those that have no arguments.
    {"LOGIN", "AUTHENTICATE", "SETMETADATA", OTHER}
    | {"CAPABILITY", "NOOP", "LOGOUT", "STARTTLS", "IDLE", "CHECK", "CLOSE", "UNSELECT", "UNAUTHENTICATE"}
)
_SHOWN_OF_COMMANDS: Mapping[str, Shown] = {
    **dict.fromkeys(COMMANDS, Shown.ALL),
    **dict.fromkeys(_SEARCHES, Shown.SEARCH),
    **dict.fromkeys(_NOT_SHOWN, Shown.NOTHING),
    # Annotations are what a user writes for himself (RFC 5257), and a URL may open somebody's mail (RFC 4467, 4469).
    **{name: Shown.NO_STRINGS for name in ("STORE", "UID STORE") if name in COMMANDS},
    **{name: Shown.MAILBOX for name in ("APPEND", "MULTIAPPEND") if name in COMMANDS},
    **{name: Shown.NO_STRINGS for name in ("REPLACE", "UID REPLACE") if name in COMMANDS},
}
_GOES_ON = {Shown.SEARCH: Shown.SEARCH_GOES_ON, Shown.MAILBOX: Shown.NO_STRINGS}  # of a line, behind a literal
_STATUS = frozenset({b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH"})
_ANSWERS = frozenset({b"OK", b"NO", b"BAD"})
_SHOWN_OF_RESPONSES = {
    **dict.fromkeys((b"CAPABILITY", b"ENABLED", b"FLAGS", b"LIST", b"LSUB", b"XLIST", b"STATUS", b"SEARCH"), Shown.ALL),
    **dict.fromkeys((b"ESEARCH", b"SORT", b"THREAD", b"NAMESPACE", b"QUOTA", b"QUOTAROOT", b"VANISHED"), Shown.ALL),
    **dict.fromkeys((b"ACL", b"MYRIGHTS", b"LISTRIGHTS", b"ID"), Shown.ALL),
    b"METADATA": Shown.NO_STRINGS,
}
_SHOWN_OF_NUMBERED = {
    **dict.fromkeys((b"EXISTS", b"RECENT", b"EXPUNGE"), Shown.ALL),
    b"FETCH": Shown.NO_STRINGS,
}


class _Direction:
    """One direction, cut into lines and literals."""

    __slots__ = ("_tail", "beyond", "kept", "literal", "shown", "skip")

    def __init__(self) -> None:
        self.skip = 0  # octets of a literal still to come
        self.shown: Shown | None = None  # of the line that goes on behind a literal; None: a new one begins
        self.literal = ""  # what the line announces that is whole
        self.kept = self._tail = b""
        self.beyond = 0

    def carries(self, count: int) -> bool:
        """Whether so many octets are nothing but a literal's; then they are taken."""
        if self.skip < count:
            return False
        self.skip -= count
        return True

    def take(self, data: bytes, at: int) -> tuple[int, bool]:
        """Go on from `at`: where that leads, and whether a line is whole now."""
        if self.skip:
            passed = min(self.skip, len(data) - at)
            self.skip -= passed
            return at + passed, False
        after = data.find(b"\n", at) + 1
        end = after or len(data)
        kept = min(end - at, MOST_KEPT - len(self.kept))
        self.kept += data[at : at + kept]
        self.beyond += end - at - kept
        self._tail = (self._tail + data[max(at, end - HEADER) : end])[-HEADER:]
        return end, bool(after)

    @property
    def tail(self) -> bytes:
        """The last octets of the line."""
        return self._tail

    def finish(self, literal: int, *, asks: bool = True) -> tuple[bytes, int]:
        """The line is whole: what was kept of it, without its end, and how many octets are beyond that."""
        end = 2 if self._tail.endswith(b"\r\n") else 1
        total = len(self.kept) + self.beyond - end
        line = self.kept[:total]
        if literal >= 0 and total <= MOST_KEPT:
            line = line[: line.rfind(b"{")]
            total = len(line)
        self.literal = "" if literal < 0 else f"{{{literal}}}" if asks else f"{{{literal}+}}"
        self.kept = self._tail = b""
        self.beyond = 0
        return line, total - len(line)


class Conversation:
    """Both directions of one session. Memory is bounded, whatever comes.

    `over`: nothing more will be shown.
    """

    def __init__(self) -> None:
        """Both sides stand between two commands."""
        self.over = False
        self._tags: set[bytes] = set()  # of commands that were shown and not answered
        self._client, self._backend = _Direction(), _Direction()
        self._line_end = LineEnd()  # of the client's unfinished line
        self._tag = b""  # of the client's command that goes on, or is waited for
        self._answered = False  # before it came to its end
        self._asked = 0  # the literal that waits for the backend
        self._waits = ""  # for the answer to _tag: "literal", "AUTHENTICATE", COMPRESS, IDLE
        # Commands without an answer of which something was left out: a backend's NO may quote them.
        self._discreet: set[bytes] = set()
        self._too_many = False

    # --- from the client ---

    def expect(self, tag: bytes) -> None:
        """A command with this tag, of which nothing was heard, is to be answered still."""
        self._tags.add(tag)

    def from_client(self, data: bytes | memoryview) -> list[Line]:
        """Octets that go on to the backend."""
        lines: list[Line] = []
        if self.over or not data or (not self._waits and self._client.carries(len(data))):
            return lines
        data = bytes(data)
        client, at = self._client, 0
        while at < len(data) and not self.over:
            if self._waits in ("literal", COMPRESS):
                lines.append(self._lose("the client has not waited for the backend"))
                break
            skipped = client.skip
            before, (at, whole) = at, client.take(data, at)
            if whole:
                size, asks = self._line_end.literal(data, before, at)
                self._line_end = LineEnd()
                if size < NO_LITERAL:
                    lines.append(self._lose("what the client means is in doubt"))
                    break
                self._client_line(size, asks, lines)
            elif not skipped:
                self._line_end.keep(data, before)
        return lines

    def _client_line(self, size: int, asks: bool, lines: list[Line]) -> None:
        client = self._client
        goes_on = client.shown
        if self._waits and goes_on is None:  # whatever a SASL response, or a line in IDLE, may look like
            size = NO_LITERAL
        content, beyond = client.finish(size, asks=asks)
        name = ""
        if goes_on is not None:
            line = Line(Side.CLIENT, b"", content, goes_on, beyond, client.literal, max(size, 0))
            if hides(goes_on, content):
                self._be_discreet(self._tag)
        elif self._waits:
            done = self._waits == IDLE and content.upper() == b"DONE" and not beyond
            line = Line(Side.CLIENT, b"", content, Shown.ALL if done else Shown.NOTHING, beyond)
            if self._waits == IDLE:  # any line ends it (RFC 9051 §6.3.13)
                self._waits = ""
        else:
            line, name = self._command(content, beyond, size)
        if content or beyond or line.literal:
            lines.append(line)
        if size < 0 or (asks and self._answered):  # in the second case nobody is going to ask for it any more
            client.shown = None
            answered, self._answered = self._answered, False
            if name in ("AUTHENTICATE", COMPRESS, IDLE) and not answered:
                self._waits = name
            elif not self._waits:
                self._tag = b""
            return
        client.shown = _GOES_ON.get(line.shown, line.shown)
        if asks:
            self._asked, self._waits = size, "literal"
        else:
            client.skip = size

    def _command(self, content: bytes, beyond: int, size: int) -> tuple[Line, str]:
        """The first line of a command, and its name."""
        literal = (self._client.literal, max(size, 0))
        if content.upper() == b"DONE" and not beyond:
            return Line(Side.CLIENT, content, b"", Shown.ALL), ""
        words = content.split(None, 3)
        if words and valid_tag(words[0]) and content.startswith(words[0] + b" "):
            self._tag = words[0]  # be it all that stands before a literal: a tagged answer still ends that
        if len(words) < 2 or not valid_tag(words[0]):
            return Line(Side.CLIENT, b"", content, Shown.NOTHING, beyond, *literal), ""
        name = command_name(words)
        shown = _SHOWN_OF_COMMANDS[name]
        if name != OTHER and len(words[0]) <= _LONGEST_TAG and len(self._tags) < _MOST_TAGS:
            self._tags.add(words[0])
        if name == OTHER:
            self._be_discreet(words[0])
        if name == OTHER or len(words[0]) > _LONGEST_TAG:
            return Line(Side.CLIENT, b"", content, Shown.NOTHING, beyond, *literal), name
        named = 3 if name.startswith(f"{UID} ") else 2
        start = b" ".join(words[:named])
        rest = content.split(None, named)[named:]
        arguments = b" " + rest[0] if rest else b""
        if hides(shown, arguments) and (arguments or size >= 0):
            self._be_discreet(words[0])
        return Line(Side.CLIENT, start, arguments, shown, beyond, *literal), name

    def _be_discreet(self, tag: bytes) -> None:
        if len(self._discreet) < _MOST_DISCREET:
            self._discreet.add(tag)
        else:
            self._too_many = True

    # --- from the backend ---

    def from_backend(self, data: bytes | memoryview) -> list[Line]:
        """Octets that go on to the client."""
        lines: list[Line] = []
        backend = self._backend
        if self.over or backend.carries(len(data)):
            return lines
        data, at = bytes(data), 0
        while at < len(data) and not self.over:
            at, whole = backend.take(data, at)
            if whole:
                self._backend_line(lines)
        return lines

    def _backend_line(self, lines: list[Line]) -> None:
        backend = self._backend
        goes_on, tail = backend.shown, backend.tail
        bare = not tail.endswith(b"\r\n")
        size = NO_LITERAL
        if tail.endswith(b"}\r\n") and (goes_on is not None or may_announce_literal(backend.kept)):
            size = literal_size(tail)
        content, beyond = backend.finish(size)
        literal = (backend.literal, max(size, 0))
        if goes_on is not None:
            line = Line(Side.BACKEND, b"", content, goes_on, beyond, *literal)
        else:
            start, shown = self._response(content)
            line = Line(Side.BACKEND, content[:start], content[start:], shown, beyond, *literal)
        if content or beyond or line.literal:
            lines.append(line)
        backend.shown = line.shown if size >= 0 else None
        backend.skip = max(size, 0)
        if size < NO_LITERAL:
            lines.append(self._lose("a literal of the backend is too large"))
        elif line.shown is Shown.NO_STRINGS and size < 0 and (ends_in_quotes(content) or (beyond and bare)):
            lines.append(self._lose("a line of the backend ends inside a quoted string"))
        elif goes_on is None and content[:1] != b"*":
            self._take_answer(content, lines)

    def _response(self, content: bytes) -> tuple[int, Shown]:
        """How many octets of a response's first line are shown in any case, and what of the rest."""
        if content[:1] == b"+":
            secret = self._waits == "AUTHENTICATE" or self._discreet or self._too_many
            return 1, Shown.NOTHING if secret else Shown.ALL
        words = [word.upper() for word in content.split(b" ", 3)]
        if words[0] != b"*":
            tag = content[: len(words[0])]
            if len(words) < 2 or words[1] not in _ANSWERS or tag not in self._tags:
                return 0, Shown.NOTHING
            discreet = tag in self._discreet or self._too_many
            return len(words[0]) + 1 + len(words[1]), Shown.CODE if discreet else Shown.ALL
        if len(words) > 2 and words[1].isdigit():
            shown = _SHOWN_OF_NUMBERED.get(words[2], Shown.NOTHING)
            return 1 if shown is Shown.NOTHING else 3 + len(words[1]) + len(words[2]), shown
        if len(words) > 1 and words[1] in _STATUS:
            discreet = bool(self._discreet) or self._too_many
            return 2 + len(words[1]), Shown.CODE if discreet else Shown.ALL
        shown = _SHOWN_OF_RESPONSES.get(words[1], Shown.NOTHING) if len(words) > 1 else Shown.NOTHING
        return 1 if shown is Shown.NOTHING else 2 + len(words[1]), shown

    def _take_answer(self, content: bytes, lines: list[Line]) -> None:
        """A tagged line or a continuation request: what the client's octets mean may hang on it."""
        if content[:1] == b"+":
            if self._waits == "literal":
                self._client.skip, self._asked, self._waits = self._asked, 0, ""
            return
        tag, _, rest = content.partition(b" ")
        self._discreet.discard(tag)
        self._tags.discard(tag)
        if not tag or tag != self._current_tag:
            return
        waited, self._waits = self._waits, ""
        if waited == COMPRESS and rest[:2].upper() == b"OK":
            lines.append(self._lose("COMPRESS has begun"))
        elif waited:
            self._client.shown = None
            self._tag, self._asked = b"", 0
        else:
            self._answered = True

    @property
    def _current_tag(self) -> bytes:
        """Of the command that the client has begun and not ended, or that is waited for."""
        client = self._client
        if self._waits or client.shown is not None:
            return self._tag
        tag, space, _ = client.kept.partition(b" ")
        return tag if space else b""

    def _lose(self, why: str) -> Line:
        self.over = True
        self._client, self._backend = _Direction(), _Direction()
        self._discreet.clear()
        return note(f"{why}: nothing more is shown of this session")
