"""The reference of all metrics, made from their declarations: `python -m proxy.observe.reference > docs/metrics.md`."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterable

import proxy
from proxy.observe.metrics import METRICS, Declaration

_HEAD = """\
# Metrics

Served as text for Prometheus at `/metrics` on `metrics.address`. This page is made from the program's own
declarations by `python -m proxy.observe.reference > docs/metrics.md`; a test keeps the two equal.

Every series with labels known beforehand exists from the start, so zero is visible. A label's values come from the
program or from the settings: users, addresses of clients and session ids are in the log (`logs.md`), never here.
"""


def import_all_rooms() -> None:
    """Metrics are declared where they are moved, so all modules have to be imported before the list is whole."""
    for module in pkgutil.walk_packages(proxy.__path__, "proxy."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def metrics_page(declarations: Iterable[Declaration]) -> str:
    """The text of `docs/metrics.md`."""
    ordered = sorted(declarations, key=lambda declaration: declaration.name)
    return "".join([_HEAD, *map(_entry, ordered)])


def _entry(declaration: Declaration) -> str:
    lines = [f"\n### `{declaration.name}`\n{declaration.kind.capitalize()}. {declaration.description}\n"]
    for label, values in declaration.labels.items():
        known = "known at start" if values is None else " ".join(f"`{value}`" for value in values)
        lines.append(f"- `{label}`: {known}\n")
    if declaration.buckets:
        lines.append("- buckets: " + " ".join(f"{bound:g}" for bound in declaration.buckets) + "\n")
    if len(lines) > 1:
        lines[0] += "\n"
    return "".join(lines)


if __name__ == "__main__":
    import_all_rooms()
    sys.stdout.write(metrics_page(METRICS.declarations))
