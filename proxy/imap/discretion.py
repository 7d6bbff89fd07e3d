"""How much of a protocol line an administrator may see who looks on: not a secret, not a word of anybody's mail.

What is not known to be harmless is left out. What is shown is printable ASCII; all that is ours in it, the ellipsis of
what was left out and `‹c3a4›` for octets that are not printable, is not: so no stranger's octets can pass for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final

MOST_CHARACTERS: Final = 1000  # of a line as it is shown
MOST_KEPT: Final = 700  # octets of a line, of which so much is shown
_ROOM: Final = MOST_CHARACTERS - 100  # for what stands behind it: counts

_UNPRINTABLE = re.compile(rb"[^ -~]+")
# A quoted string, be it without its end. Never gives back what it took, so it is linear.
_QUOTED = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_CLOSED = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL).fullmatch
_WORDS = re.compile(_QUOTED.pattern + rb'|[()]|[^ ()"]++| ++', re.DOTALL)
_HARMLESS = re.compile(rb"[0-9*:,$]++|[0-9]{1,2}-[A-Za-z]{3}-[0-9]{4}").fullmatch
_MANY: Final = 1 << 30
# A string or an atom, with the space before it.
_MAILBOX = re.compile(rb' *+(?:"(?:[^"\\\\]++|\\\\.)*+"|[^ ()"{]++)', re.DOTALL).match
_CODE = re.compile(rb" \[[^\]\"]*+\]").match

# Keys by how many of the words behind them are the user's own (RFC 9051 §6.4.4, RFC 5256, RFC 6851, and Gmail's).
_KEYS: Mapping[bytes, int] = {
    **dict.fromkeys(b"BCC BODY CC CHARSET FROM KEYWORD SUBJECT TEXT TO UNKEYWORD".split(), 1),
    **dict.fromkeys(b"FILTER EMAILID THREADID ANNOTATION".split(), 2),
    b"HEADER": 2,
    **dict.fromkeys(b"ALL ANSWERED BEFORE DELETED DRAFT FLAGGED LARGER NEW NOT OLD ON OR RECENT SEEN".split(), 0),
    **dict.fromkeys(b"SENTBEFORE SENTON SENTSINCE SINCE SMALLER UID UNANSWERED UNDELETED UNDRAFT".split(), 0),
    **dict.fromkeys(b"UNFLAGGED UNSEEN YOUNGER OLDER MODSEQ FUZZY SAVEDBEFORE SAVEDON SAVEDSINCE".split(), 0),
    **dict.fromkeys(b"RETURN MIN MAX COUNT SAVE PARTIAL CONTEXT UPDATE RELEVANCY IN".split(), 0),
    **dict.fromkeys(b"ARRIVAL DATE REVERSE SIZE DISPLAYFROM DISPLAYTO REFERENCES REFS ORDEREDSUBJECT".split(), 0),
    **dict.fromkeys(b"UTF-8 US-ASCII".split(), 0),
}


class Side(StrEnum):
    """Who has said a line."""

    CLIENT = "client"
    BACKEND = "backend"
    NOTE = "note"  # nobody: it is told about the session


class Shown(Enum):
    """What is shown of the arguments of a line."""

    ALL = auto()
    NO_STRINGS = auto()  # all but what stands in quotes
    MAILBOX = auto()  # one word, which names a mailbox; behind it as NO_STRINGS
    SEARCH = auto()  # what is searched for is left out
    SEARCH_GOES_ON = auto()  # behind a literal, where even a number may be what is searched for
    CODE = auto()  # of a status response: its text may quote what the client said
    NOTHING = auto()


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the protocol, of which no more was kept than may be shown; to be rendered only if it is."""

    side: Side
    start: bytes  # shown in any case: tag, command
    arguments: bytes
    shown: Shown
    beyond: int = 0  # octets that were not kept
    literal: str = ""  # what it announces at its end: `{123}`
    literal_octets: int = 0

    @property
    def text(self) -> str:
        """At most MOST_CHARACTERS."""
        left_out = self.beyond
        text = escaped(self.start)
        if self.shown is Shown.NOTHING:
            left_out += len(self.arguments)
        else:
            text += _RENDER[self.shown](self.arguments)
        if len(text) > _ROOM:
            text = f"{text[:_ROOM]}…"
        if left_out or self.literal:
            text = text.rstrip(" ")
        parts = [text, f"…{left_out} octets left out" if left_out else ""]
        if self.literal:
            parts.append(f"{self.literal} …{self.literal_octets} octets left out")
        return " ".join(filter(None, parts))


def note(text: str) -> Line:
    """Something that is told about a session; of ASCII or ours."""
    return Line(Side.NOTE, text.encode("ascii", "replace"), b"", Shown.ALL)


def hides(shown: Shown, arguments: bytes) -> bool:
    """Whether something of these is left out, that a backend's answer may quote."""
    if shown is Shown.MAILBOX:
        mailbox = _MAILBOX(arguments)
        return b'"' in arguments[mailbox.end() if mailbox is not None else 0 :]
    if shown is Shown.NO_STRINGS:
        return b'"' in arguments
    return shown is not Shown.ALL


def escaped(octets: bytes) -> str:
    """Printable ASCII as it is, and all else in such a way that it is nothing."""
    if octets.isascii() and (text := octets.decode("ascii")).isprintable():
        return text
    return (
        _UNPRINTABLE.sub(lambda found: b"\0" + found[0].hex().encode() + b"\1", octets)
        .decode("ascii")
        .translate({0: "‹", 1: "›"})
    )


def without_strings(octets: bytes) -> str:
    """Nothing of what stands in quotes."""
    return '"…"'.join(map(escaped, _QUOTED.split(octets)))


def _after_mailbox(octets: bytes) -> str:
    """The mailbox's name, and nothing else of what stands in quotes; of words neither what may be a URL."""
    mailbox = _MAILBOX(octets)
    end = mailbox.end() if mailbox is not None else 0
    return escaped(octets[:end]) + without_strings(octets[end:])


def _search(octets: bytes, *, numbers: bool = True, hidden: int = 0) -> str:
    """The keys of a search, and no word that is not one of them.

    Args:
        hidden: How many of the next words belong to a key before them.
    """
    shown: list[str] = []
    for found in _WORDS.finditer(octets):
        word = found[0]
        if word[0] in b" (":
            shown.append(word.decode("ascii"))
        elif word == b")":
            shown.append(")")
            hidden = hidden if hidden >= _MANY else 0
        elif word[0] == 0x22:
            shown.append('"…"')
            hidden = max(hidden - 1, 0)
        elif hidden:
            shown.append("…")
            hidden -= 1
        elif (own := _KEYS.get(word.upper())) is not None:
            shown.append(escaped(word))
            hidden = own
        elif numbers and _HARMLESS(word):
            shown.append(escaped(word))
        else:  # a key that is not known here, perhaps, with any number of words of its own
            shown.append("…")
            hidden = _MANY
    return "".join(shown)


def _search_goes_on(octets: bytes) -> str:
    # What belongs to a key before the literal is not known any more: nothing but the next key's place is sure.
    return _search(octets, numbers=False, hidden=_MANY)


def _code(octets: bytes) -> str:
    """The response code."""
    code = _CODE(octets)
    end = code.end() if code is not None else 0
    rest = len(octets) - end
    return escaped(octets[:end]) + (f" …{rest} octets left out" if rest else "")


_RENDER: Mapping[Shown, Callable[[bytes], str]] = {
    Shown.ALL: escaped,
    Shown.NO_STRINGS: without_strings,
    Shown.MAILBOX: _after_mailbox,
    Shown.SEARCH: _search,
    Shown.SEARCH_GOES_ON: _search_goes_on,
    Shown.CODE: _code,
}


def ends_in_quotes(octets: bytes) -> bool:
    """Whether a whole line leaves a quoted string open."""
    strings = _QUOTED.findall(octets)
    return bool(strings) and octets.endswith(strings[-1]) and _CLOSED(strings[-1]) is None
