"""One event as one line of text, whatever its values hold.

Foreign text (names, addresses, a backend's words) reaches logs, and from there terminals and parsers. So whatever
is not printable comes out as its escape in both formats: controls, line and paragraph separators, ANSI sequences,
bidirectional controls, lone surrogates. The result is UTF-8 without a control character but the LF at its end, and
what JSON decodes to is just as harmless.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable, Mapping
from enum import Enum
from json.encoder import encode_basestring as quote
from math import isfinite
from time import gmtime, strftime, time
from typing import Protocol

MAX_VALUE_CHARACTERS = 1024
MAX_TRACEBACK_CHARACTERS = 16 * 1024
_MAX_ITEMS = 32
_MAX_DEPTH = 3
_MAX_CACHED_KEYS = 1024
_REDACTED = "***"
_SECRET_WORDS = frozenset(
    {"password", "passwords", "secret", "secrets", "token", "tokens", "credential", "credentials"}
)
_RESERVED = frozenset({"time", "level", "event"})

Values = Mapping[str, object]


class Renderer(Protocol):
    """One event → one line of UTF-8 with its LF."""

    def __call__(self, level: str, event: str, values: Values) -> bytes: ...


class _Clock:
    """The time as ISO 8601 in UTC with milliseconds; the part down to seconds is made once a second."""

    def __init__(self) -> None:
        self._made = (-1, "")  # one object, so that threads see both or neither

    def __call__(self) -> str:
        now = time()
        second, prefix = self._made
        if int(now) != second:
            second = int(now)
            prefix = strftime("%Y-%m-%dT%H:%M:%S.", gmtime(second))
            self._made = (second, prefix)
        return f"{prefix}{int((now - second) * 1000):03d}Z"


_now = _Clock()


def visible(text: str, limit: int = MAX_VALUE_CHARACTERS) -> str:
    """The text with everything unprintable escaped as Python writes it (`\\x1b`, `\\u202e`, `\\ud800`), and bounded."""
    whole = len(text) <= limit
    if not whole:
        text = text[:limit]
    if not text.isprintable():
        text = "".join([c if c.isprintable() else repr(c)[1:-1] for c in text])
        if len(text) > limit:
            text, whole = text[:limit], False
    return text if whole else text + "…"


class Visible(str):
    """A text that went through visible() with a bound of its own."""

    __slots__ = ()


def one_line_traceback(error: BaseException) -> Visible:
    """A traceback whose line ends are written `\\n`, without local variables; of a long one the end, it says most."""
    # capture_locals would print passwords.
    text = "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format()).rstrip("\n")
    if len(text) > MAX_TRACEBACK_CHARACTERS:
        text = "…" + text[-MAX_TRACEBACK_CHARACTERS:]
    return Visible(visible(text, 2 * MAX_TRACEBACK_CHARACTERS))


def is_secret(key: str) -> bool:
    """Whether a key names what no log may hold. Defence in depth: callers don't pass secrets at all."""
    return not _SECRET_WORDS.isdisjoint(key.lower().split("_"))


class _Keys(dict[str, tuple[str, bool]]):
    """Key → its text in the line, and whether its value is a secret; made once per key."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def __missing__(self, key: str) -> tuple[str, bool]:
        name = visible(str(key), 64)
        name = name + "_" if name in _RESERVED else name
        made = (self._form % name.replace("\\", "\\\\").replace('"', '\\"'), is_secret(name))
        if len(self) < _MAX_CACHED_KEYS:
            self[key] = made
        return made


def _clean(value: object, depth: int = 0) -> object:
    """The value as what JSON knows, with its texts visible, its secrets out and its size bounded."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _clean(value.value, depth)
    if isinstance(value, str):
        return str(value) if isinstance(value, Visible) else visible(str(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return round(float(value), 6) if isfinite(value) else str(float(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return visible(bytes(value[: 4 * MAX_VALUE_CHARACTERS]).decode("utf-8", "backslashreplace"))
    if isinstance(value, BaseException):
        return visible(f"{type(value).__name__}: {value}")
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return _clean_mapping(value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            return _clean_items(value, depth)
    return visible(str(value))


def _clean_mapping(mapping: Mapping[object, object], depth: int) -> dict[str, object]:
    cleaned: dict[str, object] = {}
    for key, value in mapping.items():
        if len(cleaned) == _MAX_ITEMS:
            cleaned["…"] = len(mapping) - _MAX_ITEMS
            break
        name = visible(str(key), 64)
        cleaned[name] = _REDACTED if is_secret(name) else _clean(value, depth + 1)
    return cleaned


def _clean_items(items: Iterable[object], depth: int) -> list[object]:
    cleaned: list[object] = []
    for item in items:
        if len(cleaned) == _MAX_ITEMS:
            cleaned.append("…")
            break
        cleaned.append(_clean(item, depth + 1))
    return cleaned


class JsonRenderer:
    """`{"time": …, "level": …, "event": …, …}`, put together by hand: a JSONEncoder takes twice as long."""

    def __init__(self) -> None:
        self._keys = _Keys(',"%s":')
        self._dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

    def __call__(self, level: str, event: str, values: Values) -> bytes:
        parts = [f'{{"time":"{_now()}","level":"{level}","event":{quote(visible(event))}']
        keys = self._keys
        for key, value in values.items():
            name, secret = keys[key]
            kind = type(value)
            if secret:
                text = quote(_REDACTED)
            elif kind is str:
                # Plain text, which nearly all values are, costs two looks and no copy.
                if len(value) > MAX_VALUE_CHARACTERS or not value.isprintable():  # type: ignore[arg-type,attr-defined]
                    value = visible(value)  # type: ignore[arg-type]
                text = quote(value)  # type: ignore[arg-type]
            elif kind is int:
                text = repr(value)
            elif kind is float and isfinite(value):  # type: ignore[arg-type]
                # Microseconds are as fine as any clock that we report. (JSON has no NaN and no infinity.)
                text = repr(round(value, 6))  # type: ignore[call-overload]
            elif kind is bool:
                text = "true" if value else "false"
            elif value is None:
                text = "null"
            else:
                text = self._dump(_clean(value))
            parts.append(name + text)
        parts.append("}\n")
        return "".join(parts).encode()


_COLOURS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_DIM, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


class ConsoleRenderer:
    """`TIME LEVEL EVENT key=value …` for people; coloured only where a terminal shows it."""

    def __init__(self, *, coloured: bool) -> None:
        self._coloured = coloured
        self._keys = _Keys(f" {_DIM}%s={_PLAIN}" if coloured else " %s=")

    def __call__(self, level: str, event: str, values: Values) -> bytes:
        event = visible(event)
        if self._coloured:
            head = f"{_DIM}{_now()}{_PLAIN} {_COLOURS[level]}{level:<7}{_PLAIN} {_BOLD}{event}{_PLAIN}"
        else:
            head = f"{_now()} {level:<7} {event}"
        parts = [head]
        for key, value in values.items():
            name, secret = self._keys[key]
            parts.append(name + (_REDACTED if secret else self._text(_clean(value))))
        parts.append("\n")
        return "".join(parts).encode()

    @staticmethod
    def _text(value: object) -> str:
        if not isinstance(value, str):
            return repr(value) if type(value) in (int, float) else json.dumps(value, ensure_ascii=False)
        if value and " " not in value and '"' not in value and "=" not in value:
            return value
        return '"' + value.replace('"', '\\"') + '"'
