"""`imap-porter limits`, `settings`, `figures`, `openapi`: what is set, and what is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from proxy.cli.options import Call
from proxy.cli.running import put
from proxy.cli.terminal import console, plain, print_json, table


def limits(call: Call) -> int:
    """Show the limits, and how often each was reached.

    Returns:
        As running.conversation().
    """

    def show(answer: dict[str, Any]) -> None:
        rows = table("limit", "value", "reached")
        for each in answer["limits"]:
            reached = {action: times for action, times in each["reached"].items() if times}
            text = ", ".join(f"{action} {times:,.0f}" for action, times in reached.items())
            value = "" if each["value"] is None else _flow(each["value"])
            rows.add_row(plain(each["limit"]), plain(value), plain(text, "yellow"))
        console().print(rows)

    return put(call, "limits", show)


def settings(call: Call, everything: bool) -> int:
    """Show the settings in effect.

    Args:
        call: Whom to ask.
        everything: Not only what is not the default.
    Returns:
        As running.conversation().
    """

    def show(answer: dict[str, Any]) -> None:
        if everything:
            rows = table("setting", "value")
            for key, value in _leaves(answer["settings"], ""):
                rows.add_row(plain(key), plain(_flow(value)))
        else:
            rows = table("setting", "value", "default")
            for each in answer["differs"]:
                rows.add_row(plain(each["key"]), plain(_flow(each["value"])), plain(_flow(each["default"])))
        console().print(rows)

    return put(call, "settings", show)


def figures(call: Call) -> int:
    """Print what is counted.

    Returns:
        As running.conversation().
    """
    return put(call, "figures", print_json)


def openapi(call: Call) -> int:
    """Print the API's document, as it is.

    Returns:
        As running.conversation().
    """
    return put(call, "openapi", print_json)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """What is no section any more, by its whole key."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{key}[{index}]")
    else:
        yield key, value


def _flow(value: Any) -> str:
    """A value in one line."""
    return value if isinstance(value, str) else json.dumps(value)
