"""The tree of known keys, read off the models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from proxy.settings.models import Section, Settings
from proxy.settings.values import Spelled

ITEM = "[]"  # the step from a list to its items


@dataclass(frozen=True, slots=True)
class Key:
    """One known key: where it stands and what it is."""

    steps: tuple[str, ...]
    field: FieldInfo

    def __str__(self) -> str:
        return ".".join(self.steps).replace("." + ITEM, ITEM)

    @property
    def takes_hold(self) -> str:
        """live, new sessions or restart."""
        extra = self.field.json_schema_extra
        assert isinstance(extra, dict)
        return str(extra["takes_hold"])


def walk(section: type[Section] = Settings, above: tuple[str, ...] = ()) -> Iterator[Key]:
    """Every known key, in the order of the models, each section before what is in it."""
    for name, field in section.model_fields.items():
        yield Key((*above, name), field)
        inner, many = inner_section(field.annotation)
        if inner is not None:
            yield from walk(inner, (*above, name, ITEM) if many else (*above, name))


def inner_section(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section that a field holds, if it holds one, and whether it is a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    many = get_origin(annotation) is tuple
    for argument in get_args(annotation):
        inner, _ = inner_section(argument)
        if inner is not None:
            return inner, many
    return None, False


def section_at(keys: tuple[str | int, ...]) -> type[Section]:
    """The section that a path of keys and indexes leads to; the path is known to be good."""
    section: type[Section] = Settings
    for key in keys:
        # A key that is none of the section's is one of a mapping that holds such sections.
        if isinstance(key, str) and key in section.model_fields:
            inner, _ = inner_section(section.model_fields[key].annotation)
            assert inner is not None
            section = inner
    return section


def kind(field: FieldInfo) -> str:
    """What kind of value a field takes, for people."""
    inner, many = inner_section(field.annotation)
    if inner is not None:
        return "list of sections" if many else "section"
    spelled = next((item for item in field.metadata if isinstance(item, Spelled)), None)
    return spelled.kind if spelled else _kind(field.annotation)


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next((item.kind for item in arguments if isinstance(item, Spelled)), None) or _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is dict:
        return f"{_kind(arguments[1])} by {_kind(arguments[0])}"
    if origin is tuple:
        return f"list of {_kind(arguments[0])}s"
    if origin in (Union, UnionType):
        return " or ".join(_kind(argument) for argument in arguments)
    return {bool: "`true`, `false`", int: "number", type(None): "null"}[annotation]
