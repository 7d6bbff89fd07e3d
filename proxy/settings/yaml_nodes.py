"""Read YAML into plain objects and remember on which line everything stands.

What is read is the JSON-like part of YAML 1.2: mappings, sequences and scalars by the core schema, so that
`no` is a name and not false. Keys are always strings. Anchors, aliases, merge keys and tags are refused: none is
needed in a settings file, and each lets a small file grow or mean something else than it shows. The parser's events
are taken one by one, without recursion; size and depth are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_DEPTH = 40

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_BASED_INTEGER = re.compile(r"0x[0-9a-fA-F]{1,16}|0o[0-7]{1,20}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]{0,30})?)([eE][-+]?[0-9]{1,3})?")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {word: value for value in (True, False) for word in (str(value), str(value).lower(), str(value).upper())}

# libyaml's parser is some twenty times faster, which a users file of a whole site needs.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(Exception):
    """A file that cannot be read as YAML. Line 0 speaks of the file as a whole."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(path, line, problem)
        self.path = path
        self.line = line
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}" if self.line else f"{self.path}: {self.problem}"


@dataclass(slots=True)
class _Place:
    """Where a value stands: its line (its key's, where it has one) and the places inside it."""

    line: int
    inside: dict[str | int, _Place] | None = None


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something the reader refuses but can read past."""

    line: int
    keys: tuple[str | int, ...]
    problem: str


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML document as plain Python objects, with the line of every key and item."""

    path: Path
    value: Any
    flaws: tuple[Flaw, ...]
    _root: _Place = field(repr=False)

    def line(self, path: tuple[str | int, ...]) -> int:
        """The line of a key or item; where there is none, the line of the nearest thing around it."""
        place = self._root
        for step in path:
            inner = place.inside.get(step) if place.inside else None
            if inner is None:
                break
            place = inner
        return place.line


def read_yaml(path: Path, max_bytes: int) -> Document:
    """Read a YAML file that has no flaws.

    Args:
        path: The file.
        max_bytes: A file that is longer is refused unread.
    Raises:
        YamlError: It cannot be read, is too large, is not YAML, or has a flaw; the first one is told.
    """
    document = read_flawed_yaml(path, max_bytes)
    if document.flaws:
        flaw = document.flaws[0]
        raise YamlError(path, flaw.line, f"{key_text(flaw.keys)}: {flaw.problem}" if flaw.keys else flaw.problem)
    return document


def key_text(keys: tuple[str | int, ...]) -> str:
    """A path of keys and indexes as people write it: `tls.certificates[1].private_key`."""
    steps = (f"[{key}]" if isinstance(key, int) else f".{key if key.isprintable() else ascii(key)}" for key in keys)
    return "".join(steps).removeprefix(".")


def read_flawed_yaml(path: Path, max_bytes: int, content: bytes | None = None) -> Document:
    """Read a YAML file and collect its flaws (duplicate keys, aliases, tags) instead of stopping at the first.

    Of two equal keys the first counts; an alias reads as null.

    Args:
        content: What the file holds, where somebody else has read it.
    Raises:
        YamlError: It cannot be read, is too large, or is not YAML.
    """
    text = _read_text(path, max_bytes, content)
    builder = _Builder()
    try:
        for event in _events(text):
            builder.take(event)
    except _Unreadable as exc:
        raise YamlError(path, exc.line, exc.problem) from None
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark if exc.problem_mark is not None else exc.context_mark
        raise YamlError(path, 0 if mark is None else mark.line + 1, f"not valid YAML: {_explain(exc)}") from None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise YamlError(path, line, "not valid YAML: a control character that is not allowed here") from None
    return Document(path, builder.value, tuple(builder.flaws), builder.root)


def _read_text(path: Path, max_bytes: int, content: bytes | None) -> str:
    data = _read_octets(path, max_bytes) if content is None else content
    if len(data) > max_bytes:
        raise YamlError(path, 0, f"larger than {max_bytes} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise YamlError(path, data.count(b"\n", 0, exc.start) + 1, "not UTF-8") from None


def _read_octets(path: Path, max_bytes: int) -> bytes:
    """The file, or so much of it that it is seen to be too large."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError:
        raise YamlError(path, 0, "no such file") from None
    except OSError as exc:
        raise YamlError(path, 0, f"cannot be read: {exc.strerror}") from None


def _events(text: str) -> Iterator[yaml.Event]:
    loader = _Loader(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


def _explain(exc: yaml.MarkedYAMLError) -> str:
    problem = exc.problem or "malformed"
    start, here = exc.context_mark, exc.problem_mark
    if exc.context and start is not None and here is not None and start.line != here.line:
        return f"{problem} ({exc.context} that starts on line {start.line + 1})"
    return f"{problem} ({exc.context})" if exc.context else problem


class _Unreadable(Exception):
    def __init__(self, line: int, problem: str) -> None:
        super().__init__(line, problem)
        self.line = line
        self.problem = problem


@dataclass(slots=True)
class _Container:
    """A mapping or sequence that is still being filled."""

    value: dict[str, Any] | list[Any]
    place: _Place
    keys: tuple[str | int, ...]  # the way from the root
    key: str | None = None  # of a mapping: the key whose value comes next
    key_line: int = 0
    duplicate: bool = False  # the value that comes next is dropped


class _Builder:
    """Takes parser events and builds the value, its places and the flaws."""

    def __init__(self) -> None:
        self.value: Any = None
        self.root = _Place(1)
        self.flaws: list[Flaw] = []
        self._open: list[_Container] = []
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise _Unreadable(line, "a second document starts here; one file holds one document")
            case yaml.AliasEvent():
                self._flaw(line, "aliases (*name) are not supported; write the value out")
                self._add(None, line, None)
            case yaml.ScalarEvent():
                self._refuse_properties(event, line)
                self._scalar(event, line)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._refuse_properties(event, line)
                self._start({} if isinstance(event, yaml.MappingStartEvent) else [], line)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._open.pop()
            case _:
                pass  # the stream's start and end, the document's end

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        plain = event.style is None or event.style == ""
        if self._open and isinstance(self._open[-1].value, dict) and self._open[-1].key is None:
            self._key(event.value, line, plain)
        else:
            self._add(_resolve(event.value) if plain else event.value, line, None)

    def _key(self, key: str, line: int, plain: bool) -> None:
        container = self._open[-1]
        assert isinstance(container.value, dict)
        container.key, container.key_line = key, line
        container.duplicate = key in container.value
        if container.duplicate:
            assert container.place.inside is not None
            first = container.place.inside[key].line
            self._flaw(line, f"given twice; the first is on line {first}")
        elif plain and key == "<<":
            self._flaw(line, "merge keys (<<) are not supported; write the keys out")
            container.duplicate = True

    def _start(self, value: dict[str, Any] | list[Any], line: int) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise _Unreadable(line, f"nested deeper than {MAX_DEPTH} levels")
        if self._open and isinstance(self._open[-1].value, dict) and self._open[-1].key is None:
            raise _Unreadable(line, "a key must be a plain word, not a list or mapping")
        keys = self._keys()
        place = self._add(value, line, {})
        self._open.append(_Container(value, place, keys))

    def _add(self, value: Any, line: int, inside: dict[str | int, _Place] | None) -> _Place:
        """Put a finished or just opened value where it belongs and return its place."""
        if not self._open:
            self.value, self.root = value, _Place(line, inside)
            return self.root
        container = self._open[-1]
        place = _Place(line, inside)
        assert container.place.inside is not None
        if isinstance(container.value, list):
            container.place.inside[len(container.value)] = place
            container.value.append(value)
        elif container.key is None:
            container.key, container.key_line = "", line  # an alias as a key: told already
            container.duplicate = True
        else:
            if not container.duplicate:
                place.line = container.key_line
                container.place.inside[container.key] = place
                container.value[container.key] = value
            container.key = None
        return place

    def _refuse_properties(self, event: Any, line: int) -> None:
        if event.tag is not None and event.tag != "!":
            self._flaw(line, f"tags ({event.tag}) are not supported")
        if event.anchor is not None:
            self._flaw(line, f"anchors (&{event.anchor}) are not supported; write the value out where it is needed")

    def _flaw(self, line: int, problem: str) -> None:
        self.flaws.append(Flaw(line, self._keys(), problem))

    def _keys(self) -> tuple[str | int, ...]:
        """The way from the root to the value that comes next."""
        if not self._open:
            return ()
        container = self._open[-1]
        if isinstance(container.value, list):
            return (*container.keys, len(container.value))
        return container.keys if container.key is None else (*container.keys, container.key)


def _resolve(text: str) -> Any:
    """The value of a plain scalar by the core schema. Source: YAML 1.2.2 §10.3.2."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED_INTEGER.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
