"""What the observer makes of sessions: tables of what client (C) and backend (B) say. The oracle has to agree."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.imap.commands import OTHER, REFUSED_AFTER_LOGIN
from proxy.imap.observer import BLIND_REASONS, MAX_PENDING, Observer, Permit, Refusal, State
from tests.imap.oracle import Carrier, Oracle, Recorder

Script = list[tuple[str, bytes]]

BETWEEN, IDLE, BUSY, BLIND = State.BETWEEN_COMMANDS, State.IN_IDLE, State.BUSY, State.BLIND

both = pytest.mark.parametrize("make", [Observer, Oracle])


def play(make: Any, script: Script, **settings: object) -> Carrier:
    """Time goes one second ahead with each chunk."""
    carrier = Carrier(make, **settings)
    for side, octets in script:
        (carrier.client if side == "C" else carrier.backend)(octets)
        carrier.now += 1
    return carrier


NAMES = [
    (b"a NOOP\r\n", "NOOP"),
    (b"a noop\r\n", "NOOP"),
    (b"a nOOP\n", "NOOP"),
    (b"a  NOOP \r\n", "NOOP"),
    (b"A.1-x SELECT INBOX\r\n", "SELECT"),
    (b"a UID FETCH 1:* (FLAGS)\r\n", "UID FETCH"),
    (b"a uid fetch 1 FLAGS\r\n", "UID FETCH"),
    (b"a Uid Expunge 1\r\n", "UID EXPUNGE"),
    (b"a UID EXPUNGE\r\n", "UID EXPUNGE"),
    (b"a UID\r\n", OTHER),
    (b"a UID NOOP\r\n", OTHER),
    (b"a X-FROBNICATE {4}x\r\n", OTHER),
    (b"a \xff\xfe\r\n", OTHER),
    (b"a SEARCH TEXT }\r\n", "SEARCH"),
    (b"a FETCH " + b"1," * 500 + b"1 FLAGS\r\n", "FETCH"),
]


@both
@pytest.mark.parametrize(("line", "name"), NAMES)
def test_names_of_commands(make: Any, line: bytes, name: str) -> None:
    carrier = play(make, [("C", line)])
    assert (carrier.forwarded, carrier.observer.state, carrier.tally.told) == (line, BUSY, [])
    carrier.backend(line.split()[0] + b" OK done\r\n")
    assert (carrier.observer.state, carrier.tally.told) == (BETWEEN, [(name, 1.0)])


SESSIONS: list[tuple[str, Script, list[tuple[object, ...]], State]] = [
    ("no answer", [("C", b"a NOOP\r\n"), ("B", b"* a OK x\r\na\r\n")], [], BUSY),
    ("answered", [("C", b"a NOOP\r\n"), ("B", b"* 1 EXISTS\r\na OK x\r\n")], [("NOOP", 1.0)], BETWEEN),
    ("in two pieces", [("C", b"a NOOP\r\n"), ("B", b"* 1 EXISTS\r\na O"), ("B", b"K x\r\n")], [("NOOP", 2.0)], BETWEEN),
    ("another's tag", [("C", b"a NOOP\r\n"), ("B", b"b OK x\r\naa OK x\r\nA OK x\r\n")], [], BUSY),
    (
        "pipelined, answered in any order",
        [("C", b"a NOOP\r\nb CHECK\r\nc UID COPY 1 x\r\n"), ("B", b"c OK\r\n* x\r\na OK\r\n"), ("B", b"b NO\r\n")],
        [("UID COPY", 1.0), ("NOOP", 1.0), ("CHECK", 2.0)],
        BETWEEN,
    ),
    (
        "a literal that looks like answers",
        [("C", b"a FETCH 1 RFC822\r\n"), ("B", b"* 1 FETCH (RFC822 {10}\r\na OK x\r\n+ "), ("B", b")\r\na OK x\r\n")],
        [("FETCH", 2.0)],
        BETWEEN,
    ),
    (
        "a literal that looks like one answer",
        [("C", b"a FETCH 1 X\r\n"), ("B", b"* 1 FETCH (X {9}\r\n"), ("B", b"a OK xx\r\n"), ("B", b")\r\n")],
        [],
        BUSY,
    ),
    (
        "one response behind another's literal",
        [
            ("C", b"a FETCH 1 X\r\n"),
            ("B", b"* 1 FETCH (X {1}\r\n"),
            ("B", b"x)\r\n* 2 FETCH (X {8}\r\n"),
            ("B", b"a OK x\r\n)\r\n"),
        ],
        [],
        BUSY,
    ),
    (
        "several literals, one empty, one binary",
        [("C", b"a FETCH 1 X\r\n"), ("B", b"* 1 FETCH (X {0}\r\n Y ~{6}\r\na OK\r\n Z {2+}\r\n\r\n)\r\na OK x\r\n")],
        [("FETCH", 1.0)],
        BETWEEN,
    ),
    (
        "status text is no literal",
        [("C", b"a NOOP\r\n"), ("B", b"* OK x {9}\r\n* bye {9}\r\nb NO {9}\r\n+ {9}\r\na BAD {9}\r\n")],
        [("NOOP", 1.0)],
        BETWEEN,
    ),
    (
        "a literal beyond 32 bits",
        [("C", b"a FETCH 1 X\r\n"), ("B", b"* 1 FETCH (X {5000000000}\r\n"), ("B", b"a OK x\r\n" * 3)],
        [],
        BUSY,
    ),
    (
        "literals of a client",
        [
            ("C", b"a APPEND x {9}\r\n"),
            ("B", b"+ OK\r\n"),
            ("C", b"b NOOP\r\n\n (\\Seen) ~{3+}\r\n\r\n.\r\n"),
            ("B", b"a OK x\r\n"),
        ],
        [("APPEND", 3.0)],
        BETWEEN,
    ),
    (
        "a literal refused, then the next command",
        [("C", b"a APPEND x {9}\r\n"), ("B", b"a NO [TOOBIG] x\r\n"), ("C", b"b NOOP\r\n"), ("B", b"b OK x\r\n")],
        [("APPEND", 1.0), ("NOOP", 1.0)],
        BETWEEN,
    ),
    (
        "another command's answer decides nothing",
        [("C", b"b NOOP\r\na APPEND x {3}\r\n"), ("B", b"b NO x\r\n"), ("B", b"+\r\n"), ("C", b"b \n"), ("C", b"\r\n")],
        [("NOOP", 1.0)],
        BUSY,
    ),
    (
        "answered before its literal has come",
        [
            ("C", b"a APPEND x {9+}\r\n12"),
            ("B", b"a NO x\r\n"),
            ("C", b"3456789 {5+}\r\nb NOO"),
            ("C", b" {7}\r\nc NOOP\r\n"),
        ],
        [("APPEND", 1.0)],
        BUSY,
    ),
    ("IDLE asked for", [("C", b"a IDLE\r\n")], [], BUSY),
    ("IDLE", [("C", b"a IDLE\r\n"), ("B", b"+ idling\r\n* 4 EXISTS\r\n")], [("idle", 1)], IDLE),
    ("IDLE refused", [("C", b"a IDLE\r\n"), ("B", b"a BAD x\r\n")], [("IDLE", 1.0)], BETWEEN),
    ("DONE", [("C", b"a idle\r\n"), ("B", b"+\r\n"), ("C", b"done\r\n")], [("idle", 1), ("idle", -1)], BUSY),
    (
        "IDLE ended by the client",
        [("C", b"a IDLE\r\n"), ("B", b"+\r\n"), ("C", b"DO"), ("C", b"NE\r\nb NOOP\r\n"), ("B", b"a OK\r\nb OK\r\n")],
        [("idle", 1), ("idle", -1), ("IDLE", 4.0), ("NOOP", 1.0)],
        BETWEEN,
    ),
    (
        "IDLE ended by the backend",
        [("C", b"a IDLE\r\n"), ("B", b"+ \r\n"), ("B", b"a NO tired\r\n")],
        [("idle", 1), ("IDLE", 2.0), ("idle", -1)],
        BETWEEN,
    ),
    (
        "IDLE ended by a mistake",
        [
            ("C", b"a IDLE\r\n"),
            ("B", b"+ \r\n"),
            ("C", b"b NOOP\r\nb NOOP\r\n"),
            ("B", b"a BAD Expected DONE.\r\n"),
            ("B", b"b OK x\r\n"),
        ],
        [("idle", 1), ("idle", -1), ("IDLE", 3.0), ("NOOP", 1.0)],
        BETWEEN,
    ),
    ("IDLE behind another command", [("C", b"b NOOP\r\na IDLE\r\n"), ("B", b"+ \r\n")], [("idle", 1)], BUSY),
    ("a stray continuation request", [("C", b"a NOOP\r\n"), ("B", b"+ what\r\n+\r\n")], [], BUSY),
    ("COMPRESS refused", [("C", b"a COMPRESS DEFLATE\r\n"), ("B", b"a NO x\r\n")], [("COMPRESS", 1.0)], BETWEEN),
    (
        "COMPRESS",
        [
            ("C", b"b NOOP\r\na COMPRESS DEFLATE\r\n"),
            ("B", b"a OK x\r\nb OK x\r\n"),
            ("C", b"\0\1\2 {"),
            ("B", b"\r\nb OK x\r\n"),
        ],
        [("COMPRESS", 1.0), ("blind", "compress")],
        BLIND,
    ),
    ("a backend's literal too large", [("B", b"* X {9223372036854775808}\r\n")], [("blind", "backend_literal")], BLIND),
    (
        "a literal announced in pieces",
        [
            ("C", b"a SEARCH" + b" x" * 200 + b" {0000000"),
            ("C", b"00009"),
            ("C", b"+}\r"),
            ("C", b"\nb LOGIN\r\n"),
            ("C", b"\n"),
        ],
        [],
        BUSY,
    ),
    ("empty lines", [("C", b"\r\n\n  \r\n"), ("B", b"\r\n\n \r\n")], [], BETWEEN),
]


@both
@pytest.mark.parametrize(("script", "told", "state"), [row[1:] for row in SESSIONS], ids=[row[0] for row in SESSIONS])
def test_sessions(make: Any, script: Script, told: list[tuple[object, ...]], state: State) -> None:
    carrier = play(make, script)
    assert carrier.tally.told == told
    assert carrier.observer.state is state
    assert carrier.forwarded == b"".join(octets for side, octets in script if side == "C")
    assert carrier.observer.violation is None


def test_every_reason_to_go_blind_is_known_beforehand() -> None:
    assert {row[2][-1][1] for row in SESSIONS if row[3] is BLIND} == set(BLIND_REASONS)


HELD: list[tuple[str, Script, bytes, bool]] = [
    ("an incomplete line", [("C", b"a NOOP\r\nb LOG")], b"b LOG", False),
    ("a bare tag", [("C", b"a")], b"a", False),
    ("a literal that comes early", [("C", b"a APPEND x {3}\r\nabc\r\n")], b"abc\r\n", True),
    ("the same, refused", [("C", b"a APPEND x {3}\r\nabc"), ("B", b"a NO x\r\n")], b"abc", False),
    ("the same, taken", [("C", b"a APPEND x {3}\r\nabc\r\n"), ("B", b"+ OK\r\n")], b"", False),
    ("a second literal", [("C", b"a APPEND x {1+}\r\na {3}\r\nabc")], b"abc", True),
    ("an early DONE", [("C", b"a IDLE\r\nDONE\r\n")], b"DONE\r\n", True),
    ("the same, with IDLE begun", [("C", b"a IDLE\r\nDONE\r\n"), ("B", b"+ x\r\n")], b"", False),
    (
        "behind a mistake in IDLE",
        [("C", b"a IDLE\r\n"), ("B", b"+ \r\n"), ("C", b"x\r\ny NOOP\r\n")],
        b"y NOOP\r\n",
        True,
    ),
    ("behind COMPRESS", [("C", b"a COMPRESS DEFLATE\r\nb NOOP\r\n")], b"b NOOP\r\n", True),
    ("the same, refused", [("C", b"a COMPRESS DEFLATE\r\nb NOOP\r\n"), ("B", b"a NO x\r\n")], b"", False),
    ("a tag in use", [("C", b"a NOOP\r\na CHECK\r\nb NOOP\r\n")], b"a CHECK\r\nb NOOP\r\n", True),
    ("a tag free again", [("C", b"a NOOP\r\na CHECK\r\nb NOOP\r\n"), ("B", b"a OK x\r\n")], b"", False),
    (
        "a tag in use among others",
        [("C", b"a NOOP\r\nb NOOP\r\nb CHECK\r\n"), ("B", b"a OK x\r\n")],
        b"b CHECK\r\n",
        True,
    ),
]


@both
@pytest.mark.parametrize(("script", "held", "waiting"), [row[1:] for row in HELD], ids=[row[0] for row in HELD])
def test_what_is_held_back(make: Any, script: Script, held: bytes, waiting: bool) -> None:
    carrier = play(make, script)
    assert carrier.held == held
    assert carrier.observer.waiting is waiting
    assert carrier.forwarded + held == b"".join(octets for side, octets in script if side == "C")


@both
def test_commands_without_an_answer_are_bounded(make: Any) -> None:
    carrier = play(make, [("C", b"".join(b"a%d NOOP\r\n" % n for n in range(MAX_PENDING + 2)))])
    assert carrier.held == b"a%d NOOP\r\na%d NOOP\r\n" % (MAX_PENDING, MAX_PENDING + 1)
    assert carrier.observer.waiting
    carrier.backend(b"a500 OK x\r\n")
    assert carrier.held == b"a%d NOOP\r\n" % (MAX_PENDING + 1)
    carrier.backend(b"a0 OK x\r\n")
    assert (carrier.held, carrier.observer.waiting) == (b"", False)


REFUSED: list[tuple[bytes, list[Refusal], bytes]] = [
    (b"a LOGIN x y\r\n", [Refusal(b"a", "LOGIN")], b""),
    (b"a login x y\r\nb NOOP\r\n", [Refusal(b"a", "LOGIN")], b"b NOOP\r\n"),
    (b"b NOOP\r\na AUTHENTICATE PLAIN\r\n", [Refusal(b"a", "AUTHENTICATE")], b"b NOOP\r\n"),
    (b"a SELECT x\r\nb LOGIN x y\r\n", [Refusal(b"b", "LOGIN")], b"a SELECT x\r\n"),
    (b"a StartTLS\r\nb UNAUTHENTICATE\n", [Refusal(b"a", "STARTTLS"), Refusal(b"b", "UNAUTHENTICATE")], b""),
    (b"a LOGIN {3+}\r\nb x {5+}\r\nNOOP\n\r\nc NOOP\r\n", [Refusal(b"a", "LOGIN")], b"c NOOP\r\n"),
    (b"a LOGIN {3}\r\nc NOOP\r\n", [Refusal(b"a", "LOGIN")], b"c NOOP\r\n"),  # who waits for + gets BAD
    (b"a LOGIN" + b" x" * 400 + b" {3+}\r\nabc\r\nc NOOP\r\n", [Refusal(b"a", "LOGIN")], b"c NOOP\r\n"),
    (b"a\tLOGIN x y\r\n", [Refusal(b"a", "LOGIN")], b""),
    (b" a  LOGIN\tx y\r\n", [Refusal(b"a", "LOGIN")], b""),
    (b'"a" LOGIN x y\r\n', [Refusal(b"*", "LOGIN")], b""),
    # Lines that are no commands, so that no answer to them can pass for that of the command behind them.
    (b"a\r\n", [Refusal(b"a", OTHER)], b""),
    (b"a \r\nDONE\r\n", [Refusal(b"a", OTHER), Refusal(b"DONE", OTHER)], b""),
    (b"+ NOOP\r\n* NOOP\r\n", [Refusal(b"*", "NOOP"), Refusal(b"*", "NOOP")], b""),
    (b"\xc3\xa4 NOOP {3+}\r\nabc\r\n", [Refusal(b"*", "NOOP")], b""),
    (b"a IDLE {3+}\r\nabc\r\n", [Refusal(b"a", "IDLE")], b""),
    (b"a COMPRESS " + b"x" * 300 + b"\r\n", [Refusal(b"a", "COMPRESS")], b""),
]


@both
@pytest.mark.parametrize(("sent", "refusals", "forwarded"), REFUSED)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_refused_commands(make: Any, step: int, sent: bytes, refusals: list[Refusal], forwarded: bytes) -> None:
    carrier = play(make, [("C", sent[at : at + step]) for at in range(0, len(sent), step)])
    assert carrier.refused == refusals
    assert carrier.forwarded == forwarded
    assert carrier.held == b""
    assert carrier.observer.refusal is None


def test_a_refusal_waits_to_be_taken() -> None:
    observer = Observer(Recorder(), lambda: 0.0)
    assert observer.from_client(b"a NOOP\r\nb LOGIN {5+}\r\nxy") == 8
    assert observer.refusal == Refusal(b"b", "LOGIN")
    assert observer.from_client(b"b LOGIN {5+}\r\nxy") == 0
    assert observer.swallow(b"b LOGIN {5+}\r\nxy") is None
    assert observer.client_skip == 0  # nobody may forward these by count
    assert observer.swallow(b"xyz pass") is None
    assert observer.swallow(b"word\r\nc NOOP\r\n") == 6
    assert observer.refusal is None
    assert observer.from_client(b"c NOOP\r\n") == 8


def test_compress_may_be_refused() -> None:
    carrier = play(Observer, [("C", b"a COMPRESS DEFLATE\r\n")], refused=REFUSED_AFTER_LOGIN | {b"COMPRESS"})
    assert (carrier.refused, carrier.forwarded) == ([Refusal(b"a", "COMPRESS")], b"")


class Limits:
    """Refuses some commands, and delays others until told otherwise."""

    def __init__(self, *, refused: tuple[str, ...] = (), delayed: tuple[str, ...] = ()) -> None:
        self.refused, self.delayed = refused, delayed
        self.granted: list[str] = []

    def permits(self, command: str) -> Permit:
        if command in self.delayed:
            return Permit.DELAYED
        if command in self.refused:
            return Permit.REFUSED
        self.granted.append(command)
        return Permit.GRANTED


def limited(tag: bytes, command: str) -> Refusal:
    return Refusal(tag, command, limited=True)


LIMITED: list[tuple[bytes, list[Refusal], bytes]] = [
    (b"a SEARCH ALL\r\nb NOOP\r\n", [limited(b"a", "SEARCH")], b"b NOOP\r\n"),
    (b"a search ALL\r\n", [limited(b"a", "SEARCH")], b""),
    (b"a sEARCH ALL\r\n", [limited(b"a", "SEARCH")], b""),
    (b"a  SEARCH ALL\nb NOOP\r\n", [limited(b"a", "SEARCH")], b"b NOOP\r\n"),
    (b"a UID SEARCH ALL\r\n", [limited(b"a", "UID SEARCH")], b""),
    (b"b NOOP\r\na SEARCH ALL\r\nc NOOP\r\n", [limited(b"a", "SEARCH")], b"b NOOP\r\nc NOOP\r\n"),
    (b"a APPEND x {3}\r\nb NOOP\r\n", [limited(b"a", "APPEND")], b"b NOOP\r\n"),  # who waits for + gets NO
    (b"a APPEND x {9+}\r\nb NOOP\r\n\n\r\nc NOOP\r\n", [limited(b"a", "APPEND")], b"c NOOP\r\n"),
    (b"a APPEND x ~{3+}\r\nabc {4+}\r\n\r\n\r\n\r\nc NOOP\r\n", [limited(b"a", "APPEND")], b"c NOOP\r\n"),
    (b"a APPEND" + b" x" * 400 + b" {3+}\r\nabc\r\nc NOOP\r\n", [limited(b"a", "APPEND")], b"c NOOP\r\n"),
    (b"a IDLE\r\nb NOOP\r\n", [limited(b"a", "IDLE")], b"b NOOP\r\n"),
    (b"a COMPRESS DEFLATE\r\nb NOOP\r\n", [limited(b"a", "COMPRESS")], b"b NOOP\r\n"),
    (b"a X-NEW y\r\nb NOOP\r\n", [limited(b"a", OTHER)], b"b NOOP\r\n"),
    (b"a SEARCH 1\r\na SEARCH 2\r\n", [limited(b"a", "SEARCH")] * 2, b""),  # its tag is free again at once
]


@both
@pytest.mark.parametrize(("sent", "refusals", "forwarded"), LIMITED)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_commands_that_a_limit_refuses(
    make: Any, step: int, sent: bytes, refusals: list[Refusal], forwarded: bytes
) -> None:
    limits = Limits(refused=("SEARCH", "UID SEARCH", "APPEND", "IDLE", "COMPRESS", OTHER))
    script = [("C", sent[at : at + step]) for at in range(0, len(sent), step)]
    carrier = play(make, script, permits=limits.permits)
    assert carrier.refused == refusals
    assert carrier.forwarded == forwarded
    assert (carrier.held, carrier.observer.refusal) == (b"", None)
    assert limits.granted == ["NOOP"] * forwarded.count(b"NOOP")


@both
@pytest.mark.parametrize("line", [b"a SEARCH ALL\r\n", b"a sEARCH {2+}\r\nab\r\n"])
def test_a_command_that_a_limit_delays_stays_where_it_is(make: Any, line: bytes) -> None:
    limits = Limits(delayed=("SEARCH",))
    carrier = play(make, [("C", b"x NOOP\r\n" + line + b"c NOOP\r\n")], permits=limits.permits)
    assert (carrier.forwarded, carrier.held) == (b"x NOOP\r\n", line + b"c NOOP\r\n")
    assert (carrier.observer.waiting, carrier.observer.refusal) == (False, None)
    carrier.backend(b"x OK\r\n")
    assert carrier.observer.state is BETWEEN
    limits.delayed = ()
    carrier.feed()
    assert carrier.forwarded == b"x NOOP\r\n" + line + b"c NOOP\r\n"
    assert limits.granted == ["NOOP", "SEARCH", "NOOP"]


@both
def test_a_limit_counts_what_can_begin_and_nothing_else(make: Any) -> None:
    limits = Limits()
    sent = b"a NOOP\r\na CHECK\r\n"  # the tag is in use
    carrier = play(make, [("C", b"b LOGIN x y\r\n\r\nc\r\n"), ("C", sent), ("C", b"d NOO")], permits=limits.permits)
    assert limits.granted == ["NOOP"]
    carrier.backend(b"a OK\r\n")
    carrier.client(b"P\r\ne IDLE\r\n")
    carrier.backend(b"a OK\r\nd OK\r\n+ \r\n")
    carrier.client(b"DONE\r\n")
    assert limits.granted == ["NOOP", "CHECK", "NOOP", "IDLE"]
    assert carrier.forwarded.endswith(b"DONE\r\n")


VIOLATIONS: list[tuple[bytes, bytes, str]] = [
    (b"x" * 256, b"", "line start too long"),
    (
        b"a NOOP\r\n" + b"GET / HTTP/1.1".replace(b" ", b"_") + b"x" * 256 + b"\r\n",
        b"a NOOP\r\n",
        "line start too long",
    ),
    (b"a " + b"N" * 254, b"", "line start too long"),
    (b" " * 256, b"", "line start too long"),
    (b"a APPEND x {9223372036854775808+}\r\n", b"", "literal too large"),
    (b"a APPEND x {%s}\r\n" % (b"0" * 40), b"", "literal too large"),
    (b'a SEARCH TEXT "{5+}\r\nabcde\r\n', b"", "literal in a quoted string"),
    (b"a X" + b" x" * 200 + b" {5+}\r\nabcde\r\n", b"", "literal of an unknown command"),
    (b'a SEARCH TEXT "a\\"{5+}\r\nabcde\r\n', b"", "literal in a quoted string"),
    (b'a SEARCH TEXT {1+}\r\n" "{5+}\r\nabcde\r\n', b'a SEARCH TEXT {1+}\r\n"', "literal in a quoted string"),
]


@both
@pytest.mark.parametrize(("sent", "forwarded", "violation"), VIOLATIONS)
def test_violations(make: Any, sent: bytes, forwarded: bytes, violation: str) -> None:
    carrier = play(make, [("C", sent)])
    assert carrier.observer.violation == violation
    assert carrier.forwarded == forwarded
    assert carrier.observer.from_client(b"b NOOP\r\n") == 0
    assert carrier.observer.state is BUSY


@both
def test_a_violation_in_idle_ends_idle(make: Any) -> None:
    carrier = play(make, [("C", b"a IDLE\r\n"), ("B", b"+ \r\n"), ("C", b"x" * 256)])
    assert carrier.observer.violation == "line start too long"
    assert carrier.tally.told == [("idle", 1), ("idle", -1)]


@both
def test_close_gives_back_what_is_in_idle(make: Any) -> None:
    carrier = play(make, [("C", b"a IDLE\r\n"), ("B", b"+ \r\n")])
    carrier.observer.close()
    carrier.observer.close()
    assert carrier.tally.told == [("idle", 1), ("idle", -1)]


@both
def test_quoted_braces_are_no_literals(make: Any) -> None:
    script = [
        ("C", b'a SEARCH TEXT "{5}"\r\n'),
        ("C", b'b SEARCH TEXT "{5+}" "\\\\" {2+}\r\nok\r\n'),
        ("C", b"c NOOP\r\n"),
    ]
    carrier = play(make, script)
    assert carrier.forwarded == b"".join(octets for _, octets in script)
    carrier.backend(b"c OK x\r\nb OK x\r\na OK x\r\n")
    assert [name for name, _ in carrier.tally.told] == ["NOOP", "SEARCH", "SEARCH"]


@both
def test_an_unclosed_quoted_string_waits_for_the_backends_word(make: Any) -> None:
    carrier = play(make, [("C", b'a SEARCH TEXT "{5}\r\n'), ("B", b"a BAD x\r\n"), ("C", b"b NOOP\r\n")])
    assert (carrier.held, carrier.observer.state) == (b"", BUSY)


BETWEEN_RESPONSES = [
    (b"", True),
    (b"*", False),
    (b"* 1 EXISTS\r", False),
    (b"* 1 EXISTS\r\n", True),
    (b"* 1 FETCH (X {2}\r\n", False),
    (b"* 1 FETCH (X {2}\r\nab", False),
    (b"* 1 FETCH (X {2}\r\nab)", False),
    (b"* 1 FETCH (X {2}\r\nab)\r\n", True),
    (b"* 1 FETCH (X {0}\r\n", False),
    (b"* 1 FETCH (X {2}\r\nab Y {1}\r\nc", False),
    (b"* OK {2}\r\n", True),
    (b"* 1 EXISTS\r\na O", False),
    (b"* LIST () NIL " + b"x" * 1000 + b" {2}\r\n", False),
    (b"* NO " + b"x" * 1000 + b" {2}\r\n", True),
]


@both
@pytest.mark.parametrize(("sent", "between"), BETWEEN_RESPONSES)
@pytest.mark.parametrize("step", [1, 3, 10_000])
def test_between_responses(make: Any, step: int, sent: bytes, between: bool) -> None:
    carrier = play(make, [("B", sent[at : at + step]) for at in range(0, len(sent), step)])
    assert carrier.observer.between_responses is between


MAIL = b"Subject: x\r\n\r\n* BYE for now\r\n* BYE\r\n"
FETCHED = b"* 1 FETCH (BODY[] {%d}\r\n%s)\r\n" % (len(MAIL), MAIL)
BYES = [
    ("alone", b"", b"* BYE Shutting down.\r\n", True),
    ("first", b"", b"* BYE Shutting down.\r\na OK\r\n", True),
    ("last", b"", b"* 1 EXISTS\r\na OK done\r\n* BYE x\r\n", True),
    ("in a mail", b"", FETCHED, False),
    ("behind a mail", b"", FETCHED + b"a OK done\r\n* BYE x\r\n", True),
    ("in the second literal", b"", b"* 1 FETCH (X {1}\r\nx Y {8}\r\n\r\n* BYE ", False),
    ("behind two literals", b"", b"* 1 FETCH (X {1}\r\nx Y {8}\r\n\r\n* BYE )\r\n* BYE\r\n", True),
    ("on a line behind a literal", b"", b"* 1 FETCH (X {2}\r\n\r\n* BYE\r\n", False),
    ("a literal that has not come whole", b"", b"* 1 FETCH (X {99}\r\n\r\n* BYE x\r\n", False),
    ("the rest of a literal", b"* 1 FETCH (X {99}\r\n", b"* BYE x\r\n", False),
    ("the rest of a literal, and its line", b"* 1 FETCH (X {9}\r\n", b"* BYE x\r\n)\r\n", False),
    ("the rest of a line", b"* OK x\r", b"\n* BYE x\r\n", False),
    ("behind what is only a text", b"", b"* OK {20}\r\n* BYE x\r\n", True),
    ("not whole", b"", b"* BYE Shutt", False),
    ("within a line", b"", b"* OK x * BYE x\r\n", False),
    ("too large to count with", b"", b"* 1 FETCH (X {%d}\r\n* BYE x\r\n" % 2**64, False),
    ("nothing", b"", b"", False),
]


@pytest.mark.parametrize(("before", "data", "said"), [row[1:] for row in BYES], ids=[row[0] for row in BYES])
def test_byes(before: bytes, data: bytes, said: bool) -> None:
    observer = Observer(Recorder(), lambda: 0.0)
    observer.from_backend(before)
    assert observer.says_bye(data) is said


@given(st.lists(st.sampled_from([b"* BYE x\r\n", b"* 1 X {7}\r\n", b" {11}\r\n", b"\r\n", b"x", b"* OK {5}\r\n"])))
def test_a_bye_is_found_where_a_response_begins(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    byes = []
    for at in range(len(data)):
        observer = Observer(Recorder(), lambda: 0.0)
        observer.from_backend(data[:at])
        byes.append(observer.between_responses and data.startswith(b"* BYE", at) and b"\n" in data[at:])
    assert Observer(Recorder(), lambda: 0.0).says_bye(data) is any(byes)


def test_whoever_carries_literals_may_count_for_himself() -> None:
    carrier = play(Observer, [("C", b"a APPEND x {100000}\r\n"), ("B", b"+ \r\n")])
    observer = carrier.observer
    assert observer.client_skip == 100_000
    observer.client_skip -= 99_999
    carrier.client(b"x\r\nb FETCH 1 X\r\n")
    carrier.backend(b"a OK x\r\n* 1 FETCH (X {1000}\r\n")
    assert observer.backend_skip == 1000
    observer.backend_skip -= 1000
    assert not observer.between_responses
    carrier.backend(b")\r\nb OK x\r\n")
    assert carrier.tally.told == [("APPEND", 2.0), ("FETCH", 0.0)]
    assert (observer.state, observer.between_responses) == (BETWEEN, True)


def test_blindness_keeps_what_is_refused_refused() -> None:
    observer = Observer(Recorder(), lambda: 0.0)
    assert observer.from_client(b"a LOGIN {5+}\r\n") == 0
    assert observer.swallow(b"a LOGIN {5+}\r\n") is None
    observer.from_backend(b"* X {9223372036854775808}\r\n")
    assert observer.state is BLIND
    assert observer.from_client(b"b NOOP\r\n") == 0
    assert observer.swallow(b"xxxxx\r\nb LOGIN\r\n") == 7
    assert observer.from_client(b"b LOGIN\r\n") == 9
    assert not observer.between_responses


def test_an_idle_session_is_small() -> None:
    carrier = play(Observer, [("C", b"a IDLE\r\n"), ("B", b"+ \r\n")])
    observer = carrier.observer
    kept = [observer._tag, observer._since, observer._more, observer._line, observer._back]
    assert sys.getsizeof(observer) + sum(sys.getsizeof(thing) for thing in kept) < 400
    assert not hasattr(observer, "__dict__")
