"""Which ends of lines announce a literal."""

from __future__ import annotations

import pytest

from proxy.imap.literals import NO_LITERAL, QUOTED, TOO_LARGE, LineEnd, literal_size, may_announce_literal

SIZES = [
    (b"a APPEND x {5}\r\n", 5),
    (b"a APPEND x {5}\n", 5),
    (b"{5+}\r\n", 5),
    (b" UTF8 (~{5+}\r\n", 5),
    (b"* 1 FETCH (BINARY[1] ~{5}\r\n", 5),
    (b"x {0}\r\n", 0),
    (b"x {0007}\r\n", 7),
    (b"x {9223372036854775807}\r\n", 2**63 - 1),
    (b"x {9223372036854775808}\r\n", TOO_LARGE),
    (b"x {%s}\r\n" % (b"9" * 29), TOO_LARGE),
    (b"x {%s+}\r\n" % (b"1" * 5000), TOO_LARGE),
    (b"x }\r\n", NO_LITERAL),
    (b"12345}\r\n", NO_LITERAL),
    (b"x {}\r\n", NO_LITERAL),
    (b"x {+}\r\n", NO_LITERAL),
    (b"x {-5}\r\n", NO_LITERAL),
    (b"x {5 }\r\n", NO_LITERAL),
    (b"x {5++}\r\n", NO_LITERAL),
    (b"x {+5}\r\n", NO_LITERAL),
    (b"x {1_0}\r\n", NO_LITERAL),
    (b"x {\xd9\xa3}\r\n", NO_LITERAL),
    (b"x {5} \r\n", NO_LITERAL),
    (b"x {5}\r\r\n", NO_LITERAL),
    (b"x {5}}\r\n", NO_LITERAL),
    (b"x {{5}\r\n", 5),
    (b"\r\n", NO_LITERAL),
]


@pytest.mark.parametrize(("line", "size"), SIZES)
def test_literal_size(line: bytes, size: int) -> None:
    assert literal_size(line) == size
    assert literal_size(b"x " * 100 + line) == size


@pytest.mark.parametrize(
    "line", [b"* 1 FETCH {3}\r\n", b"* LIST {3}\r\n", b"* OKAY {3}\r\n", b"* NOTE {3}\r\n", b"* PREAUTHS {3}\r\n"]
)
def test_responses_with_literals(line: bytes) -> None:
    assert may_announce_literal(line)


@pytest.mark.parametrize(
    "line",
    [
        b"* OK {3}\r\n",
        b"* no {3}\r\n",
        b"* Bad {3}\r\n",
        b"* BYE {3}\r\n",
        b"* PREAUTH {3}\r\n",
        b"a OK {3}\r\n",
        b"+ {3}\r\n",
        b"*x {3}\r\n",
    ],
)
def test_responses_without_literals(line: bytes) -> None:
    assert not may_announce_literal(line)


QUOTES = [
    (b'x "a" {3+}\r\n', (3, False)),
    (b'x "a {3+}\r\n', (QUOTED, False)),
    (b'x "a {3}\r\n', (3, True)),  # the backend will say what it takes it for
    (b'x "a\\" {3+}\r\n', (QUOTED, False)),
    (b'x "a\\\\" {3+}\r\n', (3, False)),
    (b'x \\"a" {3+}\r\n', (3, False)),  # outside, a backslash is nothing special
    (b'x "" "\\"" "" {3+}\r\n', (3, False)),
    (b'x "" "\\"" " {3+}\r\n', (QUOTED, False)),
    (b'x "\xff\\\xff" {3+}\r\n', (3, False)),
    (b'x "a\r\n', (NO_LITERAL, True)),
]


@pytest.mark.parametrize(("line", "announced"), QUOTES)
def test_ends_of_lines_that_come_in_pieces(line: bytes, announced: tuple[int, bool]) -> None:
    assert LineEnd().literal(line, 0, len(line)) == announced
    for first in range(len(line)):
        for second in range(first, len(line)):
            pieces = LineEnd()
            pieces.keep(line[:first], 0)
            pieces.keep(b"..." + line[first:second], 3)
            assert pieces.literal(line + b"...", second, len(line)) == announced
