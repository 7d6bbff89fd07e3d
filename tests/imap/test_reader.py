"""The reader: lines and counted octets, however they arrive."""

from __future__ import annotations

import pytest

from proxy.imap.events import ProtocolViolation
from proxy.imap.reader import EndOfData, LineTooLong, Reader


def take(generator, reader, pieces):
    """Run one read to its end, a piece at each pause; return its value and the pieces that it did not need."""
    rest = list(pieces)
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value, rest
        reader.receive_data(rest.pop(0))


LINES = [
    ("CRLF", b"abc\r\n", b"abc", b""),
    ("lone LF", b"abc\n", b"abc", b""),
    ("empty", b"\r\n", b"", b""),
    ("empty, lone LF", b"\n", b"", b""),
    ("only the last CR belongs to the end", b"abc\r\r\n", b"abc\r", b""),
    ("a CR inside stays", b"a\rbc\r\n", b"a\rbc", b""),
    ("what follows waits", b"abc\r\ndef\r\n", b"abc", b"def\r\n"),
]


@pytest.mark.parametrize(("name", "received", "line", "held"), LINES, ids=[row[0] for row in LINES])
def test_line(name, received, line, held):
    reader = Reader(received)
    assert take(reader.line(100), reader, [])[0] == line
    assert reader.held() == held

    reader = Reader()
    value, rest = take(reader.line(100), reader, [bytes([octet]) for octet in received])
    assert (value, b"".join(rest)) == (line, held)


def test_a_line_that_comes_in_pieces_is_searched_once():
    searched = []

    class Counting(bytearray):
        def find(self, sub, start=0, *end):
            searched.append(len(self) - start)
            return super().find(sub, start, *end)

    reader = Reader()
    reader._buffer = Counting()
    value, _ = take(reader.line(5000), reader, [b"x"] * 4000 + [b"\r\n"])
    assert value == b"x" * 4000
    assert sum(searched) <= 4002 + len(searched)


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_the_limit_of_a_line_does_not_depend_on_the_pieces(limit):
    for length in range(limit + 3):
        outcomes = set()
        for pieces in ([b"x" * length + b"\n"], [b"x"] * length + [b"\n"]):
            reader = Reader()
            try:
                outcomes.add(take(reader.line(limit), reader, pieces)[0])
            except LineTooLong:
                outcomes.add(None)
        assert outcomes == {b"x" * length if length <= limit else None}


def test_a_line_too_long_stays_for_a_second_try():
    reader = Reader(b"0123456789\r\n")
    with pytest.raises(ProtocolViolation, match=r"^line too long$"):
        take(reader.line(5), reader, [])
    assert take(reader.line(20), reader, [])[0] == b"0123456789"

    reader = Reader(b"0123456789")
    with pytest.raises(LineTooLong):
        take(reader.line(5), reader, [])
    assert take(reader.line(20), reader, [b"abc", b"\r\n"])[0] == b"0123456789abc"


def test_octets_and_the_line_behind_them():
    reader = Reader()
    assert take(reader.octets(5), reader, [b"a\r", b"\nb", b"cde\r\n"])[0] == b"a\r\nbc"
    assert take(reader.line(10), reader, [])[0] == b"de"
    assert take(reader.octets(0), reader, [])[0] == b""


def test_octets_after_a_search_that_found_nothing_leave_no_gap():
    reader = Reader()
    line = reader.line(10)
    next(line)
    reader.receive_data(b"abc")
    next(line)
    assert take(reader.octets(3), reader, [])[0] == b"abc"
    assert take(reader.line(10), reader, [b"\r\n"])[0] == b""


def test_peek_takes_nothing():
    reader = Reader()
    assert take(reader.peek(2), reader, [b"a", b"bc"])[0] == b"ab"
    assert reader.held() == b"abc"
    assert len(reader) == 3


def test_skip_never_holds_what_it_throws_away():
    reader = Reader()
    skip = reader.skip(10_000)
    for _ in range(10):
        next(skip)
        assert len(reader) == 0
        reader.receive_data(b"x" * 1000)
    with pytest.raises(StopIteration):
        next(skip)
    assert len(reader) == 0


def test_skip_leaves_what_follows():
    reader = Reader(b"abcdef")
    take(reader.skip(4), reader, [])
    assert reader.rest() == b"ef"


def test_rest_empties_the_buffer():
    reader = Reader(b"abc")
    assert reader.rest() == b"abc"
    assert reader.rest() == b""


@pytest.mark.parametrize("read", ["line", "octets", "skip", "peek"])
def test_the_end_of_data_ends_every_read_that_needs_more(read):
    reader = Reader(b"abc")
    with pytest.raises(EndOfData):
        take(getattr(reader, read)(10), reader, [b""])


def test_what_came_before_the_end_of_data_can_still_be_read():
    reader = Reader(b"abc\r\ndef")
    reader.receive_data(b"")
    assert take(reader.line(10), reader, [])[0] == b"abc"
    assert take(reader.octets(3), reader, [])[0] == b"def"
