"""`imap-porter backends`, `drain`, `undrain`, `down`, `weight`: the running proxy's backends, seen and changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.text import Text

from proxy.admin.commands import VERBS, Change, UnusableChange
from proxy.cli.running import (
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
    Declined,
    NotAnswered,
    ask,
    fail,
    path_of,
    rough_duration,
)
from proxy.cli.terminal import EXIT_OK, EXIT_SETTINGS, console, plain, print_json, print_mistakes, table
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError
from proxy.settings.units import duration_text

NO_SOCKET = "admin.socket is not set; add e.g. admin: {socket: /run/imap-porter/admin.sock} and start the proxy anew"
_NUMBERS = ("weight", "sessions", "users", "waiting")
_COLOURS = {"up": "green", "drain": "yellow", "down": "red"}


def backends(config: Path, json_output: bool) -> int:
    """Show every backend.

    Returns:
        0; 1: the settings have mistakes, or no `admin.socket`; 3: the proxy doesn't answer.
    """
    return _conversation(config, json_output, lambda path: ask(path, path_of("v1", "backends")), _show_backends)


def change(
    backend: str,
    verb: str,
    config: Path,
    *,
    reason: str,
    json_output: bool,
    weight: int | None = None,
    over_seconds: float | None = None,
) -> int:
    """Change one backend.

    Args:
        verb: One of `admin.commands.VERBS`.
    Returns:
        0; 1: the settings have mistakes, or no `admin.socket`; 2: it cannot be done; 3: the proxy doesn't answer.
    """

    def request(path: Path) -> dict[str, Any]:
        wanted = Change.make(verb, reason, weight=weight, over_seconds=over_seconds)
        return ask(path, path_of("v1", "backends", backend), wanted.as_document())

    def show(answer: dict[str, Any]) -> None:
        _show_change(answer, VERBS[verb].key, over_seconds)

    return _conversation(config, json_output, request, show)


def _conversation(
    config: Path,
    json_output: bool,
    request: Callable[[Path], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
) -> int:
    """Find the socket, ask, and show the answer; whatever goes wrong is told."""
    try:
        path = load(config).admin.socket
    except SettingsError as exc:
        print_mistakes(exc, json_output)
        return EXIT_SETTINGS
    if path is None:
        return fail(json_output, EXIT_SETTINGS, f"{config}: {NO_SOCKET}")
    try:
        answer = request(path)
    except (Declined, UnusableChange) as exc:
        return fail(json_output, EXIT_REFUSED, str(exc))
    except NotAnswered as exc:
        return fail(json_output, EXIT_UNAVAILABLE, str(exc))
    if json_output:
        print_json({"ok": True, **answer})
    else:
        show(answer)
    return EXIT_OK


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


def _show_change(answer: dict[str, Any], key: str, over_seconds: float | None) -> None:
    before, after = answer["before"], answer["after"]
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
