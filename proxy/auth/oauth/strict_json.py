"""JSON from strangers: one object, in UTF-8, not deep, and no key twice.

A key given twice means one thing to one parser and another to the next (RFC 8725 §2.4, RFC 7519 §4), and NaN is no
JSON. Depth is counted before anything is parsed, since the parser recurses.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

MAX_DEPTH = 20
_SHOWN_CHARACTERS = 100

# The end is optional: each quote of an endless string would else be tried as a beginning, and read to the end.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ALIKE = bytes.maketrans(b"{}", b"[]")


class NotAnObject(Exception):
    """It is no JSON object that we read. The text says why and repeats nothing of it."""


def read_object(data: bytes) -> dict[str, Any]:
    """The JSON object that the octets spell; the caller has bounded their number.

    Raises:
        NotAnObject: It is none, or not one that we read.
    """
    try:
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deep(data):
            raise NotAnObject(f"nested deeper than {MAX_DEPTH}")
        found = _DECODER.decode(data.decode("utf-8"))  # json.loads() would guess UTF-16 too
    except (ValueError, RecursionError) as exc:
        raise NotAnObject(str(exc) if isinstance(exc, _KeyTwice) else "not valid JSON") from None
    if not isinstance(found, dict):
        raise NotAnObject("not a JSON object")
    return found


def shown(value: object) -> str:
    """A value of somebody else's as the log may repeat it: printable and short."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


class _KeyTwice(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _KeyTwice("a key is given twice")
    return found


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are no JSON (RFC 8259 §6)")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _is_deep(data: bytes) -> bool:
    """Whether brackets nest deeper than allowed, or are not closed: they vanish pair by pair, from the inside."""
    brackets = _STRING.sub(b"", data).translate(_ALIKE, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)
