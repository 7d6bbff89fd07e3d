"""The settings described: JSON Schema for editors, the reference page for people, and what differs from the defaults.

`python -m proxy.settings.reference > docs/settings.md` writes the page anew; a test keeps the two equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, Final

from pydantic.fields import FieldInfo

from proxy.settings.keys import ITEM, Key, inner_section, kind, section_at, walk
from proxy.settings.models import Section, Settings
from proxy.settings.values import Spelled

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

INTRODUCTION: Final = """\
# Settings

imap-porter reads one YAML file (`-c FILE`). `config/porter.yaml` is the smallest useful one,
`config/porter.reference.yaml` shows every key. `imap-porter check -c FILE` reports every mistake with file, line and
key and starts nothing; `imap-porter schema` prints a JSON Schema for editors. This page is written from the program
itself.

- Unknown keys and keys given twice are mistakes. YAML 1.2 counts: only `true` and `false` are truth values.
- Values carry their unit: durations `250ms`, `15s`, `2m`, `24h`, `7d`; sizes `64KiB`, `500MiB`, `2GiB`.
- A secret is `{file: PATH}` or `{env: NAME}`, never the secret itself. The first line counts, without its end.
- Relative paths are relative to the settings file.
- Anchors, aliases, merge keys and tags are refused; the file is at most 1 MiB of UTF-8.

*Takes hold* says what a changed value needs. All but live ones need a reload (`imap-porter reload`, SIGHUP), which is
all or nothing: **live**, the files that it names are watched, and used from the next handshake or login on; **new
sessions**, sessions that are open keep the value they started with; **reload**, it is the processes' own, and theirs at
once.
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose value is not the default; both as they are written in the file."""

    key: str
    value: Any
    default: Any


def schema_json() -> str:
    """The JSON Schema (draft 2020-12) of the settings file in its YAML spelling."""
    schema = Settings.model_json_schema(mode="serialization")
    definitions = {name: _tidied(definition) for name, definition in schema.pop("$defs").items()}
    source = definitions["IdentitySource"]["properties"]
    for name in source:
        # One of the sources is named and the others are absent, never null.
        source[name] = {**source[name].pop("anyOf")[0], **source[name]}
        del source[name]["default"]
    document = {"$schema": DIALECT, **_tidied(schema), "title": "imap-porter settings", "$defs": definitions}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _tidied(schema: dict[str, Any]) -> dict[str, Any]:
    """A section's schema without machine-made titles, and without the defaults of whole sections."""
    schema.pop("title", None)
    for property_ in schema["properties"].values():
        property_.pop("title", None)
        if "$ref" in property_:
            property_.pop("default", None)
    return schema


def settings_markdown() -> str:
    """The reference page: a table for each section."""
    tables: dict[str, list[Key]] = {}
    for key in walk():
        tables.setdefault(_section_name(key.steps[:-1]), []).append(key)
    pages = [INTRODUCTION]
    for name, keys in tables.items():
        pages.append(f"\n## {name}\n\n{_docstring(keys[0])}\n\n{_table(keys)}")
    return "".join(pages)


def differences(settings: Settings) -> Iterator[Difference]:
    """What was set to something else than its default. Keys without a default are not compared."""
    yield from _differences(settings, "")


def spelled(field: FieldInfo, value: Any) -> Any:
    """A value as it is written in the file."""
    if value is None:
        return None
    form = next((item for item in _metadata(field.annotation, field.metadata) if isinstance(item, Spelled)), None)
    if isinstance(value, tuple):
        return [form.show(item) if form else item for item in value]
    return form.show(value) if form else value


def flow_text(value: Any) -> str:
    """A plain value as YAML in one line."""
    return str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _differences(section: Section, above: str) -> Iterator[Difference]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        inner, _ = inner_section(field.annotation)
        if isinstance(value, Section):
            yield from _differences(value, f"{above}{name}.")
        elif isinstance(value, dict) and inner is not None:
            yield Difference(above + name, section.model_dump(mode="json")[name], spelled(field, field.default))
        elif inner is not None:
            for index, item in enumerate(value or ()):
                yield from _differences(item, f"{above}{name}[{index}].")
        elif not field.is_required() and value != field.default:
            yield Difference(above + name, spelled(field, value), spelled(field, field.default))


def _metadata(annotation: Any, metadata: list[Any]) -> Iterator[Any]:
    """A field's metadata, and that of the types inside its type."""
    yield from metadata
    yield from getattr(annotation, "__metadata__", ())
    for argument in getattr(annotation, "__args__", ()):
        yield from _metadata(argument, [])


def _section_name(steps: tuple[str, ...]) -> str:
    return ".".join(steps).replace("." + ITEM, ITEM) or "The top level"


def _docstring(key: Key) -> str:
    section = section_at(tuple(step for step in key.steps[:-1] if step != ITEM))
    assert section.__doc__
    return cleandoc(section.__doc__)


def _table(keys: list[Key]) -> str:
    lines = ["| key | type | default | meaning | takes hold |", "|---|---|---|---|---|"]
    for key in keys:
        cells = (f"`{key.steps[-1]}`", kind(key.field), default_text(key.field), key.field.description, key.takes_hold)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def default_text(field: FieldInfo) -> str:
    """A field's default for the table: in code, or "required"; a section's defaults stand in its own table."""
    inner, many = inner_section(field.annotation)
    if field.is_required():
        return "required"
    if inner is not None and not many:
        return "" if field.default is not None else "absent"
    return f"`{flow_text(spelled(field, field.default))}`"


if __name__ == "__main__":
    print(settings_markdown(), end="")
