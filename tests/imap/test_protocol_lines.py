"""What an administrator sees of a session: its lines, and nothing that is a secret or anybody's mail."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.imap.discretion import MOST_CHARACTERS, MOST_KEPT
from proxy.imap.observer import Observer, State
from proxy.imap.protocol_lines import Conversation

C, B = "client", "backend"
Script = list[tuple[str, bytes]]

# Name, what is said in turn, and what is shown: of the client, of the backend (`<`), and told besides (`!`).
CASES: list[tuple[str, Script, list[str]]] = [
    ("a command", [(C, b"a NOOP\r\n"), (B, b"* 3 EXISTS\r\na OK done\r\n")], ["a NOOP", "<* 3 EXISTS", "<a OK done"]),
    ("bare line ends", [(C, b"a NOOP\n"), (B, b"a OK done\n")], ["a NOOP", "<a OK done"]),
    (
        "a mailbox, its flags, and what it holds",
        [
            (C, b'a SELECT "Sent Items"\r\n'),
            (B, b'* FLAGS (\\Seen)\r\n* OK [UIDVALIDITY 7] ok\r\n* LIST () "/" "a \\"b"\r\n'),
        ],
        ['a SELECT "Sent Items"', "<* FLAGS (\\Seen)", "<* OK [UIDVALIDITY 7] ok", '<* LIST () "/" "a \\"b"'],
    ),
    (
        "APPEND, literal asked for",
        [(C, b"a APPEND INBOX (\\Seen) {6}\r\n"), (B, b"+ OK\r\n"), (C, b"secret\r\n"), (B, b"a OK done\r\n")],
        ["a APPEND INBOX (\\Seen) {6} …6 octets left out", "<+ OK", "<a OK done"],
    ),
    (
        "APPEND, literal refused: what follows is a command",
        [(C, b"a APPEND INBOX {6}\r\n"), (B, b"a NO [TRYCREATE] no\r\n"), (C, b"b NOOP\r\nc CHECK\r\n")],
        ["a APPEND INBOX {6} …6 octets left out", "<a NO [TRYCREATE] no", "b NOOP", "c CHECK"],
    ),
    (
        "literals that nobody asks for",
        [(C, b"a RENAME {6+}\r\nsecret {6+}\r\nsecret\r\nb NOOP\r\n")],
        ["a RENAME {6+} …6 octets left out", "{6+} …6 octets left out", "b NOOP"],
    ),
    (
        "a literal of nothing, and a line that goes on",
        [(C, b"a COPY 1 {0+}\r\n\r\nb STATUS {1+}\r\nx (MESSAGES)\r\n")],
        ["a COPY 1 {0+} …0 octets left out", "b STATUS {1+} …1 octets left out", " (MESSAGES)"],
    ),
    (
        "mail",
        [
            (C, b"a UID FETCH 1 (BODY[] ENVELOPE)\r\n"),
            (B, b"* 1 FETCH (UID 7 BODY[] {9}\r\na OK \r\n\r\n"),
            (B, b' ENVELOPE ("date" "secret \\" secret" NIL))\r\na OK done\r\n'),
        ],
        [
            "a UID FETCH 1 (BODY[] ENVELOPE)",
            "<* 1 FETCH (UID 7 BODY[] {9} …9 octets left out",
            '< ENVELOPE ("…" "…" NIL))',
            "<a OK done",
        ],
    ),
    (
        "text that looks like a literal is none",
        [(C, b"a NOOP\r\n"), (B, b"* OK see {100}\r\na NO {5}\r\n* 2 EXISTS\r\n")],
        ["a NOOP", "<* OK see {100}", "<a NO {5}", "<* 2 EXISTS"],
    ),
    (
        "search",
        [
            (C, b'a UID SEARCH RETURN (ALL) CHARSET UTF-8 UNSEEN SUBJECT secret (TEXT "secret" UID 1:*)\r\n'),
            (C, b"b SEARCH HEADER Message-ID 4711 LARGER 5 NOT SINCE 1-Feb-2024 SECRET 4711 FROM 1\r\n"),
        ],
        [
            'a UID SEARCH RETURN (ALL) CHARSET … UNSEEN SUBJECT … (TEXT "…" UID 1:*)',
            "b SEARCH HEADER … … LARGER 5 NOT SINCE 1-Feb-2024 … … … …",
        ],
    ),
    (
        "search, and what the backend makes of it",
        [
            (C, b"a SEARCH HEADER {6+}\r\nsecret 4711 {3+}\r\nabc\r\n"),
            (B, b"a BAD [BADCHARSET (UTF-8)] unknown argument: secret\r\n* NO secret\r\n"),
        ],
        [
            "a SEARCH HEADER {6+} …6 octets left out",
            " … {3+} …3 octets left out",
            "<a BAD [BADCHARSET (UTF-8)] …25 octets left out",
            "<* NO secret",
        ],
    ),
    (
        "what a user writes for himself, and what opens a mail",
        [
            (C, b'a STORE 1 ANNOTATION (/comment (value.priv "secret"))\r\nb STORE 1 +FLAGS (\\Seen)\r\n'),
            (C, b'c APPEND "IN BOX" CATENATE (URL "/x;URLAUTH=secret" TEXT {6+}\r\nsecret URL "secret")\r\n'),
            (B, b'c NO [BADURL "secret"] secret\r\nb OK done\r\na OK secret\r\n'),
        ],
        [
            'a STORE 1 ANNOTATION (/comment (value.priv "…"))',
            "b STORE 1 +FLAGS (\\Seen)",
            'c APPEND "IN BOX" CATENATE (URL "…" TEXT {6+} …6 octets left out',
            ' URL "…")',
            "<c NO …25 octets left out",
            "<b OK done",
            "<a OK …7 octets left out",
        ],
    ),
    (
        "a secret that lost its way",
        [
            (C, b"a NOOP\r\nAHNlY3JldA==\r\nb hunter2\r\n"),
            (B, b"AHNlY3JldA== BAD secret\r\nb BAD unknown command hunter2\r\na OK done\r\n"),
        ],
        [
            "a NOOP",
            "…12 octets left out",
            "…9 octets left out",
            "<…23 octets left out",
            "<…29 octets left out",
            "<a OK done",
        ],
    ),
    (
        "behind a key that is not known anything may be its own",
        [(C, b"a SEARCH X-GM-RAW from seen\r\nb SEARCH HEADER {3+}\r\nold FROM\r\n")],
        ["a SEARCH … … …", "b SEARCH HEADER {3+} …3 octets left out", " …"],
    ),
    (
        "LOGIN and AUTHENTICATE, which should not occur",
        [
            (C, b'a LOGIN ann secret\r\nb login "ann" {6}\r\n'),
            (B, b"a NO secret\r\n+ OK\r\n"),
            (C, b"secret\r\nc AUTHENTICATE PLAIN\r\n"),
            (B, b"b OK in\r\n+ c2VjcmV0\r\n"),
            (C, b"AHNlY3JldA== {5+}\r\nd NOOP secret\r\n"),
            (B, b"c NO no\r\n"),
            (C, b"e NOOP\r\n"),
        ],
        [
            "a LOGIN …11 octets left out",
            "b login …7 octets left out {6} …6 octets left out",
            "<a NO …7 octets left out",
            "<+ …3 octets left out",
            "c AUTHENTICATE …6 octets left out",
            "<b OK …3 octets left out",
            "<+ …9 octets left out",
            "…17 octets left out",
            "…13 octets left out",
            "<c NO …3 octets left out",
            "e NOOP",
        ],
    ),
    (
        "what is not known is left out",
        [
            (
                C,
                b"a XAPPLEPUSHSERVICE secret\r\nsecret\r\n\r\na+b secret {2+}\r\nab secret\r\n"
                + b"s" * 65
                + b" NOOP\r\n",
            ),
            (B, b"* XSECRET secret\r\n* 5 SECRET secret\r\nsecret\r\nsecret secret\r\na YES secret\r\n* \r\n\r\n"),
        ],
        [
            "…26 octets left out",
            "…6 octets left out",
            "…11 octets left out {2+} …2 octets left out",
            "…7 octets left out",
            "…70 octets left out",
            "<* …15 octets left out",
            "<* …16 octets left out",
            "<…6 octets left out",
            "<…13 octets left out",
            "<…12 octets left out",
            "<* …1 octets left out",
        ],
    ),
    (
        "octets that are not printable, and what looks like ours",
        [(C, b'a CREATE "\x1b[2J\xc3\xa4\0\x7f"\r\n'), (B, b"* OK \xe2\x80\xa6 \\x41 \t\r\n")],
        ['a CREATE "‹1b›[2J‹c3a4007f›"', "<* OK ‹e280a6› \\x41 ‹09›"],
    ),
    (
        "IDLE",
        [(C, b"a IDLE\r\n"), (B, b"+ idling\r\n* 1 EXPUNGE\r\n"), (C, b"done\r\n"), (B, b"a OK\r\n")],
        ["a IDLE", "<+ idling", "<* 1 EXPUNGE", "done", "<a OK"],
    ),
    (
        "COMPRESS",
        [(C, b"a COMPRESS DEFLATE\r\n"), (B, b"a OK now\r\na OK\r\n"), (C, b"b NOOP\r\n"), (B, b"b OK\r\n")],
        ["a COMPRESS DEFLATE", "<a OK now", "!COMPRESS has begun: nothing more is shown of this session"],
    ),
    (
        "COMPRESS refused",
        [(C, b"a COMPRESS DEFLATE\r\n"), (B, b"a NO no\r\n"), (C, b"b NOOP\r\n")],
        ["a COMPRESS DEFLATE", "<a NO no", "b NOOP"],
    ),
    (
        "COMPRESS in an odd spelling",
        [(C, b"a  compress\tDEFLATE\r\n"), (B, b"a ok now\r\n"), (C, b"b NOOP\r\n")],
        ["a compress DEFLATE", "<a ok now", "!COMPRESS has begun: nothing more is shown of this session"],
    ),
    (
        "a literal that was not waited for",
        [(C, b"a APPEND INBOX {6}\r\nsecret\r\n"), (B, b"+ OK\r\n"), (C, b"b NOOP\r\n")],
        [
            "a APPEND INBOX {6} …6 octets left out",
            "!the client has not waited for the backend: nothing more is shown of this session",
        ],
    ),
    (
        "a literal that may be none",
        [(C, b'a CREATE "x {5+}\r\nsecret\r\n')],
        ["!what the client means is in doubt: nothing more is shown of this session"],
    ),
    (
        "a literal beyond all bounds",
        [(B, b"* 1 FETCH (BODY[] {99999999999999999999}\r\nsecret\r\n")],
        [
            "<* 1 FETCH (BODY[] {99999999999999999999}",
            "!a literal of the backend is too large: nothing more is shown of this session",
        ],
    ),
    (
        "mail that is not where it belongs",
        [(B, b'* 1 FETCH (ENVELOPE ("secret\r\na OK secret\r\n')],
        [
            '<* 1 FETCH (ENVELOPE ("…"',
            "!a line of the backend ends inside a quoted string: nothing more is shown of this session",
        ],
    ),
    (
        "a command that is answered before its end",
        [(C, b"a COPY 1 {1+}\r\n"), (B, b"a NO no\r\n"), (C, b"x {7}\r\nb NOOP\r\n")],
        ["a COPY 1 {1+} …1 octets left out", "<a NO no", "{7} …7 octets left out", "b NOOP"],
    ),
    (
        "a long line",
        [(C, b"a LIST " + b"x" * 5000 + b" {3+}\r\nabc\r\nb NOOP\r\n")],
        [
            "a LIST " + "x" * (MOST_KEPT - 7) + f" …{5012 - MOST_KEPT} octets left out {{3+}} …3 octets left out",
            "b NOOP",
        ],
    ),
]


def shown(script: Script) -> list[str]:
    conversation = Conversation()
    signs = {"client": "", "backend": "<", "note": "!"}
    lines = []
    for side, data in script:
        take = conversation.from_client if side == C else conversation.from_backend
        lines += [signs[line.side] + line.text for line in take(data)]
    return lines


@pytest.mark.parametrize(("name", "script", "lines"), CASES, ids=[case[0] for case in CASES])
def test_lines(name: str, script: Script, lines: list[str]) -> None:
    assert shown(script) == lines
    assert shown([(side, bytes([octet])) for side, data in script for octet in data]) == lines
    views: Script = [(side, memoryview(data)) for side, data in script]  # type: ignore[misc]
    assert shown(views) == lines


def test_no_secret_is_shown() -> None:
    for _, script, _ in CASES:
        for line in shown(script):
            assert "secret" not in line.lower() or line in ("<* NO secret",), line


STARTS = [b"a ", b"b ", b"a NOOP\r\n", b"a OK ", b"* ", b"1 FETCH (", b"SEARCH ", b"LOGIN ", b"UID ", b"COMPRESS x\r\n"]
MIDDLES = [
    b"AUTHENTICATE PLAIN\r\n",
    b"+ x\r\n",
    b"APPEND ",
    b"DONE\r\n",
    b"IDLE\r\n",
    b" NO ",
    b"OK",
    b"\\",
    b'"',
    b")",
]
ENDS = [b"{3}\r\n", b"{3+}\r\n", b"{700}\r\n", b"{", b"\r\n", b"\n", b"\r", b"x" * 300, b"\xff" * 400]
PIECES = st.sampled_from([*STARTS, *MIDDLES, *ENDS])
OCTETS = st.lists(st.one_of(PIECES, st.binary(max_size=3)), max_size=12).map(b"".join)
SCRIPTS = st.lists(st.tuples(st.sampled_from([C, B]), OCTETS), max_size=8)


@given(SCRIPTS, st.lists(st.integers(1, 40), min_size=1, max_size=20))
@settings(max_examples=400, deadline=None)
def test_any_cut_gives_the_same_lines(script: Script, cuts: list[int]) -> None:
    sizes = itertools.cycle(cuts)
    pieces: Script = []
    for side, data in script:
        while data:
            size = next(sizes)
            pieces.append((side, data[:size]))
            data = data[size:]
    lines = shown(script)
    assert shown(pieces) == lines
    for line in lines:
        assert len(line) <= MOST_CHARACTERS
        assert line.isprintable()


@pytest.mark.parametrize("octets", [b"x", b'"', b"\xff", b"a SEARCH ", b"\\", b"* 1 FETCH ", b"{5}", b" ", b"(", b"\r"])
def test_memory_is_bounded(octets: bytes) -> None:
    conversation = Conversation()
    for _ in range(100):
        assert conversation.from_client(octets * 100_000) == []
        assert conversation.from_backend(octets * 100_000) == []
    for direction in (conversation._client, conversation._backend):
        assert len(direction.kept) <= MOST_KEPT
        assert len(direction.tail) <= MOST_KEPT


def test_many_commands_without_an_answer() -> None:
    conversation = Conversation()
    for number in range(10_000):
        conversation.from_client(b"t%d SEARCH secret\r\n" % number)
    (line,) = conversation.from_backend(b"t9999 NO secret\r\n")
    assert line.text == "…15 octets left out", "whose answer it is nobody remembers"
    (line,) = conversation.from_backend(b"t1 NO secret\r\n")
    assert line.text == "t1 NO …7 octets left out"
    assert (len(conversation._discreet), len(conversation._tags)) <= (100, 500)


class Relayed:
    """An observer, and a conversation that is fed as a tap feeds it."""

    def __init__(self) -> None:
        self.observer = Observer(NoTally(), lambda: 0.0)
        self.conversation = Conversation()
        self.held = b""

    def say(self, side: str, data: bytes) -> None:
        if side == B:
            self.conversation.from_backend(data)
            self.observer.from_backend(data)
            data = b""
        self.held += data
        observer = self.observer
        while self.held and not observer.waiting and observer.violation is None:
            cleared = observer.from_client(self.held)
            self.conversation.from_client(self.held[:cleared])
            self.held = self.held[cleared:]
            if observer.refusal is None:
                return
            swallowed = observer.swallow(self.held)
            self.held = b"" if swallowed is None else self.held[swallowed:]

    def agree(self) -> None:
        """Where the observer stands between commands and responses, the conversation does."""
        observer, conversation = self.observer, self.conversation
        if conversation.over or observer.state is not State.BETWEEN_COMMANDS or not observer.between_responses:
            return
        for direction in (conversation._client, conversation._backend):
            assert (direction.kept, direction.skip, direction.shown) == (b"", 0, None)
        assert conversation._waits == ""


class NoTally:
    def finished(self, command: str, seconds: float) -> None:
        pass

    def idle(self, change: int) -> None:
        pass

    def blind(self, reason: str) -> None:
        pass


def follow(script: Script) -> None:
    relayed = Relayed()
    for side, data in script:
        relayed.say(side, data)
        relayed.agree()


@given(SCRIPTS)
@example([("client", b"a {3}\r\n"), ("backend", b"a COMPRESS x\r\n")])
@settings(max_examples=1000, deadline=None)
def test_it_reads_as_the_observer_does(script: Script) -> None:
    follow(script)


WHOLE = [
    b"a NOOP\r\n",
    b"b SELECT x\r\n",
    b"a IDLE\r\n",
    b"DONE\r\n",
    b"a APPEND x {3}\r\n",
    b"abc\r\n",
    b"abc {2}\r\n",
]
MORE = [
    b"b APPEND x {3+}\r\nabc\r\n",
    b"xy\r\n",
    b"a COMPRESS DEFLATE\r\n",
    b"c LOGIN x {3}\r\n",
    b"c SEARCH x {1}\r\n",
]
ANSWERS = [b"+ ok\r\n", b"a OK x\r\n", b"a NO x\r\n", b"b OK x\r\n", b"c BAD x\r\n", b"* 1 FETCH (X {4}\r\na OK)\r\n"]
TALKS = st.lists(
    st.one_of(st.tuples(st.just(C), st.sampled_from([*WHOLE, *MORE])), st.tuples(st.just(B), st.sampled_from(ANSWERS))),
    max_size=16,
)


@given(TALKS)
@settings(max_examples=2000, deadline=None)
def test_it_reads_whole_talks_as_the_observer_does(script: Script) -> None:
    follow(script)
