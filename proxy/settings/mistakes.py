"""Mistakes in a settings file, and how pydantic's errors become sentences an administrator can act on."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxy.settings.keys import section_at, walk
from proxy.settings.yaml_nodes import Document, YamlError, key_text, read_flawed_yaml

Keys = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong, and where. Line 0 speaks of the file as a whole."""

    path: Path
    line: int
    key: str
    problem: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else str(self.path)
        return printable(f"{where}: {self.key}: {self.problem}" if self.key else f"{where}: {self.problem}")


class SettingsError(Exception):
    """Settings that cannot be used; `mistakes` holds everything that is wrong with them, in the file's order."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__(mistakes)
        self.mistakes = tuple(mistakes)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.mistakes), count_text(len(self.mistakes))])


def read_with_mistakes(path: Path, max_bytes: int, content: bytes | None = None) -> tuple[Document, list[Mistake]]:
    """A YAML file, and what is wrong with it already.

    Args:
        content: What the file holds, where somebody else has read it.
    Raises:
        SettingsError: It cannot be read at all.
    """
    try:
        document = read_flawed_yaml(path, max_bytes, content)
    except YamlError as exc:
        raise SettingsError([Mistake(path, exc.line, "", exc.problem)]) from None
    return document, [Mistake(path, flaw.line, key_text(flaw.keys), flaw.problem) for flaw in document.flaws]


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake that doesn't know its line yet."""

    keys: Keys
    problem: str


def count_text(number: int) -> str:
    return f"{number} mistake{'' if number == 1 else 's'}"


def findings(error: ValidationError) -> Iterator[Finding]:
    """Translate what pydantic found."""
    for details in error.errors(include_url=False):
        keys: Keys = details["loc"]
        kind = details["type"]
        if kind == "too_short" and details["input"]:
            continue  # items were given and each has a mistake of its own
        if kind == "misplaced":
            yield Finding((*keys, details["ctx"]["key"]), details["ctx"]["problem"])
        elif kind == "missing":
            yield Finding(keys, _missing(keys))
        elif kind == "extra_forbidden":
            yield Finding(keys, _unknown(keys))
        elif details["input"] is None and kind != "value_error":
            yield Finding(keys, "empty; give it a value or remove the key")
        else:
            yield Finding(keys, TRANSLATIONS[kind](details))


def _missing(keys: Keys) -> str:
    name = str(keys[-1])
    example = section_at(keys[:-1]).model_fields[name].examples
    assert example, f"the required key {name} has no example"
    return f"missing; e.g. {name}: {_flow(example[0])}"


def _unknown(keys: Keys) -> str:
    name = str(keys[-1])
    known = list(section_at(keys[:-1]).model_fields)
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f'unknown setting; did you mean "{near[0]}"?'
    elsewhere = [str(key).rpartition(".")[0] or "the top level" for key in walk() if key.steps[-1] == name]
    if len(elsewhere) == 1:
        return f"unknown setting here; it belongs in {elsewhere[0]}"
    return f"unknown setting; known here: {', '.join(known)}" if known else "unknown setting; nothing may stand here"


def _literal(details: ErrorDetails) -> str:
    expected, given = details["ctx"]["expected"].replace("'", ""), details["input"]
    if not isinstance(given, (str, list, dict)) and _shown(given) in expected:
        return f'put it in quotes: "{given}"'
    return f"expected {expected}, not {_shown(given)}"


TRANSLATIONS: dict[str, Callable[[ErrorDetails], str]] = {
    "value_error": lambda details: str(details["ctx"]["error"]),
    "literal_error": _literal,
    "model_type": lambda details: f"expected a section of keys, not {_shape(details['input'])}",
    "dict_type": lambda details: f"expected a section of keys, not {_shape(details['input'])}",
    "tuple_type": lambda details: f"expected a list, not {_shape(details['input'])}",
    "bool_type": lambda details: f"expected true or false, not {_shown(details['input'])}",
    "int_type": lambda details: f"expected a whole number, not {_shown(details['input'])}",
    "greater_than_equal": lambda details: f"{details['input']} is too small; {details['ctx']['ge']} is the least",
    "less_than_equal": lambda details: f"{details['input']} is too large; {details['ctx']['le']} is the most",
    "too_short": lambda details: "expected at least one entry",
}


def _shape(value: object) -> str:
    """What a value is, without showing it."""
    if isinstance(value, dict):
        return "a section of keys"
    return "a list" if isinstance(value, (list, tuple)) else "a single value"


def _shown(value: object) -> str:
    if isinstance(value, (dict, list, tuple)):
        return _shape(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _flow(value: Any) -> str:
    """YAML in one line, as people write it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return f'"{value}"' if isinstance(value, str) and ":" in value else str(value)


def printable(text: str) -> str:
    """What came from the file may hold terminal escapes; they are shown, not obeyed."""
    return text if text.isprintable() else "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)
