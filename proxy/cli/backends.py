"""`imap-porter backends`, `drain`, `undrain`, `down`, `weight`: the running proxy's backends, seen and changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from proxy.admin.commands import VERBS, Change
from proxy.cli.running import ask, conversation, path_of, rough_duration
from proxy.cli.terminal import console, plain, table
from proxy.settings.models import Settings
from proxy.settings.units import duration_text

_NUMBERS = ("weight", "sessions", "users", "waiting")
_COLOURS = {"up": "green", "drain": "yellow", "down": "red"}


def backends(config: Path, json_output: bool) -> int:
    """Show every backend.

    Returns:
        0; 1: the settings have mistakes, or no `admin.socket`; 3: the proxy doesn't answer.
    """

    def request(path: Path, _settings: Settings) -> dict[str, Any]:
        return ask(path, path_of("v1", "backends"))

    return conversation(config, json_output, request, _show_backends)


def change(
    backend: str,
    verb: str,
    config: Path,
    *,
    reason: str,
    json_output: bool,
    weight: int | None = None,
    over_seconds: float | None = None,
    over_drain: bool = False,
) -> int:
    """Change one backend.

    Args:
        verb: One of `admin.commands.VERBS`.
        over_drain: Without `over_seconds`, `timeouts.drain` of the settings takes its place.
    Returns:
        0; 1: the settings have mistakes, or no `admin.socket`; 2: it cannot be done; 3: the proxy doesn't answer.
    """

    def request(path: Path, settings: Settings) -> dict[str, Any]:
        over = settings.timeouts.drain if over_drain and over_seconds is None else over_seconds
        wanted = Change.make(verb, reason, weight=weight, over_seconds=over)
        return {**ask(path, path_of("v1", "backends", backend), wanted.as_document()), "over_seconds": over}

    def show(answer: dict[str, Any]) -> None:
        _show_change(answer, VERBS[verb].key)

    return conversation(config, json_output, request, show)


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
    text = f"{after['name']}: {key} {after[key]}, was {before[key]}; {_people(after)}"
    if over_seconds is not None:
        text += f"; those who are not bound to it move within {duration_text(over_seconds)}"
    out = console()
    out.print(plain(text), soft_wrap=True)
    if answer["warning"]:
        out.print(plain(answer["warning"], "yellow"), soft_wrap=True)
    out.print("This lasts until the proxy starts anew; the settings file stays as it is.", soft_wrap=True)


def _people(view: dict[str, Any]) -> str:
    sessions, users = view["sessions"], view["users"]
    return f"{sessions} session{'' if sessions == 1 else 's'} of {users} user{'' if users == 1 else 's'} there"
