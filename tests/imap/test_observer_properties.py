"""The observer against its oracle, and against a backend that reads what it is given."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from proxy.imap import command_stream as room
from proxy.imap.commands import COMMANDS
from proxy.imap.observer import Observer, Permit, Permits, State
from tests.imap.oracle import Carrier, Oracle, ends_in_quoted_string, without_end

Chunk = tuple[str, bytes]  # "C" or "B": who sent it
MAX_PENDING = 4

# Octets that mean something, in a mixture in which they often meet.
TELLING = (
    *(
        b"a",
        b"b",
        b" ",
        b" ",
        b"*",
        b"+",
        b"{",
        b"}",
        b"{3}",
        b"{4+}",
        b"~{2}",
        b"5",
        b'"',
        b"\\",
        b"\r\n",
        b"\r\n",
        b"\n",
    ),
    *(b"\r", b"\0", b"\xff", b"* ", b"OK", b"a OK\r\n", b"a NOOP\r\n", b"b LOGIN x y", b"IDLE", b"DONE\r\n", b"+ \r\n"),
    *(b"UID ", b"UNAUTHENTICATE\r\n", b"COMPRESS DEFLATE\r\n", b"{99999999999999999999}\r\n", b"x" * 130),
)
telling = st.lists(st.sampled_from(TELLING), max_size=25).map(b"".join)
tags = st.sampled_from([b"a", b"b", b"a1", b"1", b"x.9", b"A" * 40])
names = st.sampled_from(
    [b"NOOP", b"noop", b"NoOp", b"SELECT", b"UID FETCH", b"uid store", b"UID", b"Uid Frobnicate", b"X-NEW", b"LOGOUT"]
)
texts = st.sampled_from([b"", b" done", b" [READ-WRITE] ok {5}", b" {7+}", b' "unclosed', b" x" * 200])
data = st.binary(max_size=40) | telling
headers = st.sampled_from([b"{%d}", b"{%d+}", b"~{%d}", b"~{%d+}", b"{0%d+}"])


@st.composite
def with_literals(draw: st.DrawFn) -> list[Chunk]:
    """A command with literals; the backend takes them or not, the client waits or not."""
    tag = draw(tags)
    chunks = []
    line = tag + b" " + draw(st.sampled_from([b"APPEND x", b"SEARCH TEXT", b'ID ("a"', b"X-NEW" + b" y" * 150])) + b" "
    for _ in range(draw(st.integers(1, 3))):
        header, octets = draw(headers), draw(data)
        chunks.append(("C", line + header % len(octets) + b"\r\n"))
        if b"+" not in header:
            taken = draw(
                st.sampled_from([b"+ OK\r\n", b"+\r\n", b"", tag + b" NO [TOOBIG] no\r\n", b"* 1 EXISTS\r\n+ go\r\n"])
            )
            chunks.append(("B", taken))
            if b" NO " in taken and draw(st.booleans()):
                return chunks
        chunks.append(("C", octets))
        line = draw(st.sampled_from([b" ", b" FROM ", b' "a b" ', b""]))
    return [
        *chunks,
        ("C", b"\r\n"),
        ("B", tag + draw(st.sampled_from([b" OK", b" NO", b" BAD"])) + draw(texts) + b"\r\n"),
    ]


@st.composite
def in_idle(draw: st.DrawFn) -> list[Chunk]:
    tag = draw(tags)
    answers = st.sampled_from(
        [b"+ idling\r\n", b"+\r\n", tag + b" BAD no\r\n", b"* 2 EXISTS\r\n", b"", tag + b" OK\r\n"]
    )
    lines = st.sampled_from(
        [b"DONE\r\n", b"done\n", b"b NOOP\r\n", b"DO", b"", b"c LOGIN x y\r\n", b"DONE\r\nb NOOP\r\n"]
    )
    chunks = [("C", tag + draw(st.sampled_from([b" IDLE\r\n", b" idle\n", b" IDLE {3}\r\n"])))]
    for _ in range(draw(st.integers(1, 4))):
        chunks.append(("B", draw(answers)) if draw(st.booleans()) else ("C", draw(lines)))
    return [*chunks, ("C", b"DONE\r\n"), ("B", tag + b" OK Idle completed.\r\n")]


@st.composite
def fetched(draw: st.DrawFn) -> list[Chunk]:
    tag = draw(tags)
    chunks = [("C", tag + b" UID FETCH 1:* (FLAGS BODY.PEEK[])\r\n")]
    for _ in range(draw(st.integers(0, 3))):
        octets = draw(data)
        start = draw(
            st.sampled_from([b"* 1 FETCH (", b'* 2 FETCH (ENVELOPE ("a{3}" NIL) ', b"* OK x ", b"* LIST " + b"y" * 300])
        )
        chunks.append(("B", start + draw(headers) % len(octets) + b"\r\n" + octets + b" FLAGS (\\Seen))\r\n"))
    return [*chunks, ("B", tag + b" OK" + draw(texts) + b"\r\n")]


@st.composite
def plain(draw: st.DrawFn) -> list[Chunk]:
    tag, end = draw(tags), draw(st.sampled_from([b"\r\n", b"\r\n", b"\n"]))
    command = ("C", tag + b" " + draw(names) + draw(texts) + end)
    answer = ("B", tag + draw(st.sampled_from([b" OK", b" no", b" BAD"])) + draw(texts) + b"\r\n")
    return draw(st.sampled_from([[command, answer], [command], [command, ("B", b"* 3 EXISTS\r\n" + answer[1])]]))


@st.composite
def others(draw: st.DrawFn) -> list[Chunk]:
    tag = draw(tags)
    answer = tag + draw(st.sampled_from([b" OK", b" NO", b" OKAY", b" BAD"])) + b" x\r\n"
    return draw(
        st.sampled_from(
            [
                [("C", tag + b" COMPRESS DEFLATE\r\n"), ("B", answer)],
                [("C", tag + b" compress {3}\r\n"), ("B", answer)],
                [("C", tag + b" LOGIN {2+}\r\nab {3}\r\n"), ("C", b"b NOOP\r\n")],
                [("C", tag + b' Authenticate PLAIN "{3+}\r\nabc\r\n')],
                [("C", tag + b" STARTTLS\r\n"), ("B", b"* BYE {3}\r\n")],
                [("C", tag + b" X {99999999999999999999+}\r\n")],
                [("C", tag + b' X "\\"{3+}\r\nabc\r\n')],
                [("B", b"* X {99999999999999999999}\r\n")],
                [("B", b"* X " + b"9" * 40 + b"}\r\n")],
                [("C", tag), ("C", b"\r\n"), ("C", b"\r\n \r\n")],
                [("C", tag + b" " * 254), ("C", b"NOOP\r\n")],
                [("C", tag + b"a" * 254)],
                [("C", tag + b"\tNOOP\r\n " + tag + b" NOOP\r\n")],
                [("B", b"\r\n\n" + tag + b"\r\n" + b"* ok {3}\r\n* okay {0}\r\n\r\n")],
            ]
        )
    )


garbage = st.tuples(st.sampled_from("CB"), data).map(lambda chunk: [chunk])
pieces = st.one_of(plain(), plain(), with_literals(), with_literals(), in_idle(), fetched(), others(), garbage)


@st.composite
def sessions(draw: st.DrawFn) -> list[Chunk]:
    """What two peers say, more or less in order, some of it damaged, cut anywhere."""
    chunks = [chunk for piece in draw(st.lists(pieces, max_size=7)) for chunk in piece]
    for _ in range(draw(st.integers(0, 2))):  # the directions overtake each other
        if len(chunks) > 1:
            at = draw(st.integers(0, len(chunks) - 2))
            if chunks[at][0] != chunks[at + 1][0]:
                chunks[at : at + 2] = reversed(chunks[at : at + 2])
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        if chunks:
            at = draw(st.integers(0, len(chunks) - 1))
            side, octets = chunks[at]
            where = draw(st.integers(0, len(octets)))
            chunks[at] = (side, octets[:where] + draw(telling) + octets[where + draw(st.integers(0, 3)) :])
    chunks = [chunk for chunk in chunks if chunk[1]]
    return joined(chunks) if draw(st.booleans()) else chunks


def joined(chunks: list[Chunk]) -> list[Chunk]:
    """Neighbours of one side as one chunk."""
    result: list[Chunk] = []
    for side, octets in chunks:
        if result and result[-1][0] == side:
            result[-1] = (side, result[-1][1] + octets)
        else:
            result.append((side, octets))
    return result


def cut(chunks: list[Chunk], chance: random.Random) -> Iterator[tuple[float, str, bytes]]:
    """(when, who, octets): pieces of one chunk come at one time."""
    longest = chance.choice([1, 2, 5, 40, 400, 100_000])
    for when, (side, octets) in enumerate(chunks):
        while octets:
            length = chance.randint(1, longest)
            yield float(when), side, octets[:length]
            octets = octets[length:]


def carry(carrier: Carrier, pieces: Iterator[tuple[float, str, bytes]], *, skip: bool = False) -> Carrier:
    for when, side, octets in pieces:
        carrier.now = when
        (carrier.client if side == "C" else carrier.backend)(octets, skip=skip)
    return carrier


@pytest.fixture(autouse=True)
def small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_PENDING", MAX_PENDING)


many = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


GRANTED, REFUSED, DELAYED = Permit.GRANTED, Permit.REFUSED, Permit.DELAYED
# What a limit says, over and over; None: there is none.
verdicts = st.none() | st.lists(st.sampled_from([GRANTED, GRANTED, REFUSED, DELAYED]), min_size=1, max_size=5)


class Asked:
    """A limit that says what it was told to say, and remembers what it was asked about."""

    def __init__(self, verdicts: list[Permit] | None) -> None:
        self.verdicts = verdicts
        self.commands: list[str] = []

    @property
    def permits(self) -> Permits | None:
        return self._permits if self.verdicts else None

    def _permits(self, command: str) -> Permit:
        assert self.verdicts
        self.commands.append(command)
        return self.verdicts[len(self.commands) % len(self.verdicts)]


@many
@given(sessions(), st.integers(), st.booleans(), verdicts)
def test_observer_does_what_the_oracle_does(
    chunks: list[Chunk], seed: int, skip: bool, verdicts: list[Permit] | None
) -> None:
    asked_fast, asked_slow = Asked(verdicts), Asked(verdicts)
    fast = carry(Carrier(Observer, permits=asked_fast.permits), cut(chunks, random.Random(seed)), skip=skip)
    slow = Carrier(Oracle, max_pending=MAX_PENDING, permits=asked_slow.permits)
    carry(slow, cut(chunks, random.Random(seed)))
    assert asked_fast.commands == asked_slow.commands
    assert fast.seen == slow.seen
    assert fast.tally.told == slow.tally.told
    assert fast.refused == slow.refused
    assert fast.forwarded == slow.forwarded
    fast.observer.close()
    slow.observer.close()
    assert fast.tally.told == slow.tally.told


@many
@given(sessions(), st.integers(), st.none() | st.lists(st.sampled_from([GRANTED, REFUSED]), min_size=1, max_size=5))
def test_where_the_octets_are_cut_does_not_matter(
    chunks: list[Chunk], seed: int, verdicts: list[Permit] | None
) -> None:
    whole = Carrier(Observer, permits=Asked(verdicts).permits)
    carry(whole, ((float(when), *chunk) for when, chunk in enumerate(chunks)))
    cut_up = carry(Carrier(Observer, permits=Asked(verdicts).permits), cut(chunks, random.Random(seed)))
    # What was held for the backend's word cannot have been answered yet: such sessions are not of this world.
    assume(not any(waiting and held for _, held, _, _, _, _, waiting, *_ in whole.seen + cut_up.seen))
    assert whole.tally.told == cut_up.tally.told
    assert whole.refused == cut_up.refused
    assert whole.observer.violation == cut_up.observer.violation
    if whole.observer.violation is None:
        assert whole.seen[-1:] == cut_up.seen[-1:]
        assert whole.forwarded == cut_up.forwarded


@many
@given(sessions(), st.integers(), verdicts)
def test_nothing_is_lost_doubled_or_kept(chunks: list[Chunk], seed: int, verdicts: list[Permit] | None) -> None:
    carrier = carry(Carrier(Observer, permits=Asked(verdicts).permits), cut(chunks, random.Random(seed)))
    observer = carrier.observer
    sent = b"".join(octets for side, octets in chunks if side == "C")
    if not carrier.refused and observer.refusal is None:
        assert carrier.forwarded + carrier.held == sent
    assert observer._line is None or len(observer._line._tail) <= 34
    assert observer._back is None or len(observer._back) <= 312
    assert len(observer._more or ()) < MAX_PENDING
    observer.close()
    assert carrier.tally.told.count(("idle", 1)) == carrier.tally.told.count(("idle", -1))
    assert sys.getsizeof(observer) < 300


class Backend:
    """A server that reads commands one after the other, and refuses literals and IDLE as it likes."""

    LITERAL = re.compile(rb"\{([0-9]+)(\+?)\}\r?\n\Z")

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.executed: list[bytes] = []
        self.answered = 0
        self.received = b""
        self.to_send = b""
        self.reading = self.session()
        next(self.reading)

    def receive_data(self, octets: bytes) -> None:
        self.received += octets
        next(self.reading)

    def line(self) -> Generator[None, None, bytes]:
        while b"\n" not in self.received:
            yield
        line, _, self.received = self.received.partition(b"\n")
        return line + b"\n"

    def octets(self, count: int) -> Generator[None, None, None]:
        while len(self.received) < count:
            yield
        self.received = self.received[count:]

    def session(self) -> Generator[None, None, None]:
        while True:
            line = yield from self.line()
            words = line.split()
            if len(words) > 1:
                tag = words[0]
                status = yield from self.command(tag, words[1].upper(), line)
                if status:
                    self.answer(tag, status)
            elif words:
                self.to_send += b"* BAD Error in IMAP command\r\n"

    def answer(self, tag: bytes, status: bytes) -> None:
        self.answered += 1
        self.to_send += tag + b" " + status + self.chance.choice([b" x\r\n", b" [X] {3}\r\n"])

    def command(self, tag: bytes, name: bytes, line: bytes) -> Generator[None, None, bytes]:
        self.executed.append(name)
        answered = False
        while header := self.LITERAL.search(line):
            if ends_in_quoted_string(without_end(line)):
                return b"" if answered else b"BAD"
            if not header[2]:
                if answered:
                    return b""
                if self.chance.random() < 0.4:
                    return b"NO [TOOBIG]"
                self.to_send += b"+ OK\r\n"
            elif not answered and self.chance.random() < 0.2:
                self.answer(tag, b"NO")  # early; what belongs to the command is still to be taken
                answered = True
            yield from self.octets(int(header[1]))
            line = yield from self.line()
        if name == b"IDLE" and self.chance.random() < 0.7:
            self.to_send += b"+ idling\r\n* 1 EXISTS\r\n"
            done = yield from self.line()
            return b"OK" if done.strip().upper() == b"DONE" else b"BAD Expected DONE."
        if self.chance.random() < 0.3:
            octets = self.chance.choice([b"abc", b"a1 OK\r\n", b"+ \r\n", b"{5}\r\n", b""])
            self.to_send += b"* 1 FETCH (BODY[] {%d}\r\n%s)\r\n" % (len(octets), octets)
        return b"" if answered else b"NO" if name == b"COMPRESS" else self.chance.choice([b"OK", b"NO", b"BAD"])


@many
@given(
    st.lists(telling | pieces.map(lambda piece: b"".join(o for side, o in piece if side == "C"))),
    st.integers(),
    st.none() | st.sets(st.sampled_from(["APPEND", "IDLE", "SEARCH", "SELECT", "NOOP"])),
)
def test_no_refused_command_is_ever_executed(sent: list[bytes], seed: int, limited: set[str] | None) -> None:
    """Whatever a client sends, without waiting for anything, and whatever a backend takes or refuses."""

    def permits(command: str) -> Permit:
        return REFUSED if command in (limited or ()) else GRANTED

    chance = random.Random(seed)
    carrier, backend = Carrier(Observer, permits=None if limited is None else permits), Backend(chance)
    stream = b"".join(sent)
    passed = 0
    while stream or backend.to_send:
        if stream and (not backend.to_send or chance.random() < 0.5):
            length = chance.choice([1, 7, 50, 10_000])
            carrier.client(stream[:length])
            stream = stream[length:]
        else:
            length = chance.choice([1, 7, 50, 10_000])
            answer, backend.to_send = backend.to_send[:length], backend.to_send[length:]
            carrier.backend(answer)
        if len(carrier.forwarded) > passed:
            backend.receive_data(carrier.forwarded[passed:])
            passed = len(carrier.forwarded)
    assert not {b"LOGIN", b"AUTHENTICATE", b"STARTTLS", b"UNAUTHENTICATE"} & set(backend.executed)
    assert not {name.encode() for name in limited or ()} & set(backend.executed)
    observer = carrier.observer
    assert observer.state is not State.BLIND
    assert observer.between_responses
    assert sum(what in COMMANDS for what, _ in carrier.tally.told) == backend.answered
    assert observer.violation is not None or not observer.waiting
