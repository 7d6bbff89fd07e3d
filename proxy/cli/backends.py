"""`imap-porter backends`, `drain`, `undrain`, `down`, `weight`: the running proxy's backends, seen and changed."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from proxy.cli.options import Call
from proxy.cli.running import Proxy, conversation, count, put, rough_duration
from proxy.cli.terminal import console, plain, table
from proxy.settings.units import duration_text, parse_duration

_NUMBERS = ("weight", "sessions", "users", "waiting")
_COLOURS = {"up": "green", "drain": "yellow", "down": "red"}


def backends(call: Call) -> int:
    """Show every backend.

    Returns:
        As running.conversation().
    """
    return put(call, "backends", _show_backends)


def change(
    call: Call,
    verb: str,
    backend: str,
    reason: str,
    *,
    weight: int | None = None,
    over_seconds: float | None = None,
    over_drain: bool = False,
) -> int:
    """Change one backend.

    Args:
        call: Whom to ask.
        verb: One of the table that takes a backend.
        backend: Which.
        reason: Why.
        weight: For `weight`.
        over_seconds: For `drain`: how long those who are there have to leave; None: they stay.
        over_drain: Without `over_seconds`, the settings' `timeouts.drain` takes its place.
    Returns:
        As running.conversation().
    """

    def request(proxy: Proxy) -> dict[str, Any]:
        over = _drain_seconds(proxy) if over_drain and over_seconds is None else over_seconds
        values: dict[str, Any] = {"weight": weight, "over_seconds": over}
        given = {name: value for name, value in values.items() if value is not None}
        return {**proxy.ask(verb, backend=backend, reason=reason, **given), "over_seconds": over}

    return conversation(call, request, lambda answer: _show_change(answer, "weight" if verb == "weight" else "state"))


def _drain_seconds(proxy: Proxy) -> float:
    if proxy.settings is not None:
        return proxy.settings.timeouts.drain
    return parse_duration(proxy.ask("settings")["settings"]["timeouts"]["drain"])


# --- for people ---


def _show_backends(answer: dict[str, Any]) -> None:
    rows = table("backend", "pool", "state", "health", "weight", "sessions", "users", "waiting", "", numbers=_NUMBERS)
    for view in answer["backends"]:
        rows.add_row(
            plain(view["name"]),
            plain(view["pool"]),
            plain(view["state"], _COLOURS.get(view["state"], "")),
            _health(view),
            *(Text(f"{view[key]}") for key in ("weight", "sessions", "users", "logins_waiting")),
            plain(_notes(view)),
        )
    console().print(rows)


def _health(view: dict[str, Any]) -> Text:
    """`up for 3d`, or `down for 12s: connection refused`."""
    word = "up" if view["up"] else "down"
    reason = f": {view['reason']}" if view["reason"] and not view["up"] else ""
    return plain(f"{word} for {rough_duration(view['health_seconds'])}{reason}", _COLOURS[word])


def _notes(view: dict[str, Any]) -> str:
    notes = []
    if view["failed_over"]:
        notes.append("its users go to their next choice")
    if view["discovered"]:
        notes.append("by DNS")
    return ", ".join(notes)


def _show_change(answer: dict[str, Any], key: str) -> None:
    before, after, over_seconds = answer["before"], answer["after"], answer["over_seconds"]
    there = f"{count(after['sessions'], 'session')} of {count(after['users'], 'user')} there"
    text = f"{after['name']}: {key} {after[key]}, was {before[key]}; {there}"
    if over_seconds is not None:
        text += f"; those who are not bound to it move within {duration_text(over_seconds)}"
    out = console()
    out.print(plain(text), soft_wrap=True)
    if answer["warning"]:
        out.print(plain(answer["warning"], "yellow"), soft_wrap=True)
    out.print("This lasts until the proxy starts anew; the settings file stays as it is.", soft_wrap=True)
