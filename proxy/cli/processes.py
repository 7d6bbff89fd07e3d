"""`imap-porter status` and `reload`: the running proxy's processes, seen and renewed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.text import Text

from proxy.cli.running import ask, conversation, path_of, rough_duration
from proxy.cli.terminal import console, plain, table
from proxy.settings.models import Settings

_RELOAD_SECONDS = 80.0  # the steward gives up before
_UNHEARD = "it may still happen; look with imap-porter status, and at the log"
_NUMBERS = ("generation", "pid", "restarts", "sessions")
_COLOURS = {"accepting": "green", "starting": "yellow", "leaving": "yellow"}


def status(config: Path, json_output: bool) -> int:
    """Show every process.

    Returns:
        As running.conversation().
    """

    def request(path: Path, _settings: Settings) -> dict[str, Any]:
        return ask(path, path_of("v1", "status"))

    return conversation(config, json_output, request, _show_status)


def reload(config: Path, json_output: bool) -> int:
    """Have the settings read anew, and tell what changed.

    Returns:
        As running.conversation(); 2: all goes on as before.
    """

    def request(path: Path, _settings: Settings) -> dict[str, Any]:
        return ask(path, path_of("v1", "reload"), {}, seconds=_RELOAD_SECONDS, unheard=_UNHEARD)

    def show(answer: dict[str, Any]) -> None:
        console().print(plain(answer["reloaded"]), soft_wrap=True)

    return conversation(config, json_output, request, show)


def _show_status(answer: dict[str, Any]) -> None:
    out = console()
    draining = ", draining" if answer["draining"] else ""
    out.print(plain(f"imap-porter {answer['version']}, generation {answer['generation']}{draining}"), soft_wrap=True)
    if last := answer["last_reload"]:
        ago = rough_duration(max(0.0, time.time() - last["at"]))
        out.print(plain(f"last reload: {last['result']}, {ago} ago: {last['text']}"), soft_wrap=True)
    rows = table("process", "role", "generation", "pid", "state", "restarts", "sessions", numbers=_NUMBERS)
    for process in answer["processes"]:
        rows.add_row(
            plain(process["process"]),
            plain(process["role"]),
            Text(f"{process['generation']}"),
            Text(f"{process['pid']}"),
            plain(process["state"], _COLOURS.get(process["state"], "")),
            Text(f"{process['restarts']}"),
            Text(f"{process.get('sessions', '')}"),
        )
    out.print(rows)
