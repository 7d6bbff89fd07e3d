"""What differs between two settings, by key: values may be secrets, keys are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proxy.settings.models import Section, Settings


def changed_keys(before: Settings, after: Settings) -> list[str]:
    """The keys that have other values now, as `listeners[1].address`; a list whose length differs counts as one."""
    return list(_changed(before, after, ""))


def _changed(before: Any, after: Any, key: str) -> Iterator[str]:
    if isinstance(before, Section) and isinstance(after, Section):
        for name in type(after).model_fields:
            yield from _changed(getattr(before, name), getattr(after, name), f"{key}.{name}" if key else name)
    elif isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        if after and isinstance(after[0], Section):
            for index, (old, new) in enumerate(zip(before, after, strict=True)):
                yield from _changed(old, new, f"{key}[{index}]")
        elif before != after:
            yield key
    elif before != after:
        yield key
