"""Where a line says that octets follow it which are no line: literals, and the quoted strings that could feign them."""

from __future__ import annotations

import re
from typing import Final

NO_LITERAL: Final = -1
TOO_LARGE: Final = -2
QUOTED: Final = -3  # `"...{n+}`: whether n octets of literal follow is anybody's guess

HEADER: Final = 34  # octets at a line's end that are looked at; the largest number64 has 19 digits
_MAX_SIZE: Final = 2**63 - 1  # number64, RFC 9051 §9
_STATUS = frozenset({b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH"})

# How a point of a line stands to quoted strings: outside, inside, inside and right behind a backslash.
_OUTSIDE: Final = 0
_INSIDE: Final = 1
_ESCAPED: Final = 2

# Both never give back what they took, so they are linear; octet by octet in Python it would be a way to burn our time.
_INSIDE_ONE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL).match
_UNTIL_UNCLOSED = re.compile(rb'(?:[^"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL).match


def literal_size(line: bytes) -> int:
    """How many octets of literal a line announces with its last octets: `{n}` or `{n+}`, be it behind a `~`.

    Args:
        line: With its CRLF or LF; all of it or at least its last HEADER octets.
    Returns: NO_LITERAL if it announces none; TOO_LARGE if the number is no number64.
    Source: RFC 9051 §4.3, RFC 7888, RFC 3516 §4.1.
    """
    brace = line.rfind(b"{", -HEADER)
    if brace < 0:
        # Digits as far back as one looks are a number too, only not one to count with.
        end = line[-HEADER:].removesuffix(b"\n").removesuffix(b"\r")
        all_digits = len(line) >= HEADER and end.endswith(b"}") and end[:-1].removesuffix(b"+").isdigit()
        return TOO_LARGE if all_digits else NO_LITERAL
    digits, _, end = line[brace + 1 :].partition(b"}")
    if end not in (b"\r\n", b"\n") or not (digits.isdigit() or digits.removesuffix(b"+").isdigit()):
        return NO_LITERAL
    size = int(digits.removesuffix(b"+"))
    return size if size <= _MAX_SIZE else TOO_LARGE


def may_announce_literal(line: bytes) -> bool:
    """Whether `{n}` at the end of a response's line is a literal, rather than human-readable text (RFC 9051 §7.1).

    Args:
        line: All of it, or at least its first ten octets.
    """
    if not line.startswith(b"* "):
        return False
    if line[2] < 0x3A:  # a number: by far the most are FETCH
        return True
    return line[2:10].split(None, 1)[0].upper() not in _STATUS


class LineEnd:
    """A client's line, or the part of one behind a literal, of which no more is kept than its end will ask for."""

    __slots__ = ("_quoting", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._quoting: int = _OUTSIDE

    def keep(self, data: bytes, at: int) -> None:
        """Take all of `data` from `at`; the line goes on behind it."""
        self._quoting = _follow(data, at, len(data), self._quoting)
        self._tail = (self._tail + data[max(at, len(data) - HEADER) :])[-HEADER:]

    def literal(self, data: bytes, at: int, end: int) -> tuple[int, bool]:
        """What the line announces that ends with data[at:end]: a literal's size, and whether the client waits for `+`.

        Instead of a size: NO_LITERAL, TOO_LARGE, QUOTED.
        """
        tail = self._tail + data[max(at, end - HEADER) : end]
        size = literal_size(tail)
        waits = not tail.rstrip(b"\r\n").endswith(b"+}")
        if size >= 0 and not waits and _follow(data, at, end, self._quoting) != _OUTSIDE:
            size = QUOTED
        return size, waits


def _follow(line: bytes, at: int, end: int, state: int) -> int:
    """Follow the quoted strings of a line through [at, end), from one state to the next (RFC 9051 §4.3)."""
    if at >= end:
        return state
    if state != _OUTSIDE:
        at = _end(_INSIDE_ONE(line, at + (state == _ESCAPED), end))
        if at == end:
            return _INSIDE
        if line[at] == 0x5C:
            return _ESCAPED
        at += 1
    at = _end(_UNTIL_UNCLOSED(line, at, end))
    return _OUTSIDE if at == end else _follow(line, at + 1, end, _INSIDE) if at + 1 < end else _INSIDE


def _end(match: re.Match[bytes] | None) -> int:
    assert match is not None  # both patterns match the empty string
    return match.end()
