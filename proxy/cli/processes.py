"""`imap-porter status`, `reload`, `log-level`: the running proxy's processes, seen and steered."""

from __future__ import annotations

import time
from typing import Any

from rich.text import Text

from proxy.cli.options import Call
from proxy.cli.running import Proxy, conversation, put, rough_duration
from proxy.cli.terminal import console, plain, table

_RELOAD_SECONDS = 80.0  # the steward gives up before
_UNHEARD = "it may still happen; look with imap-porter status, and at the log"
_NUMBERS = ("generation", "pid", "restarts", "workers", "sessions")
_COLOURS = {"accepting": "green", "starting": "yellow", "leaving": "yellow", "current": "green"}


def status(call: Call) -> int:
    """Show every process, and every generation of workers.

    Returns:
        As running.conversation().
    """

    def request(proxy: Proxy) -> dict[str, Any]:
        return {**proxy.ask("status"), **proxy.ask("generations")}

    return conversation(call, request, _show_status)


def reload(call: Call, reason: str) -> int:
    """Have the settings read anew, and tell what changed.

    Returns:
        As running.conversation(); 2: all goes on as before.
    """

    def request(proxy: Proxy) -> dict[str, Any]:
        return proxy.ask("reload", reason=reason, patience_seconds=_RELOAD_SECONDS, unheard=_UNHEARD)

    def show(answer: dict[str, Any]) -> None:
        console().print(plain(answer["reloaded"]), soft_wrap=True)

    return conversation(call, request, show)


def log_level(call: Call, level: str, reason: str) -> int:
    """Have all processes log more or less.

    Returns:
        As running.conversation().
    """

    def show(answer: dict[str, Any]) -> None:
        text = f"all processes log at {answer['level']}, was {answer['before']}, until the next reload"
        console().print(plain(text), soft_wrap=True)

    return put(call, "log-level", show, level=level, reason=reason)


def _fleet(fleet: dict[str, Any]) -> str:
    if not fleet["up"]:
        return f"{fleet['name']} goes on alone: {fleet['error']}"
    return f"{fleet['name']} is one of {len(fleet['members'])} proxies: {', '.join(fleet['members'])}"


def _show_status(answer: dict[str, Any]) -> None:
    out = console()
    draining = ", draining" if answer["draining"] else ""
    out.print(plain(f"imap-porter {answer['version']}, generation {answer['generation']}{draining}"), soft_wrap=True)
    if fleet := answer.get("fleet"):
        out.print(plain(f"fleet: {_fleet(fleet)}"), soft_wrap=True)
    if last := answer["last_reload"]:
        text = f"last reload: {last['result']}, {_ago(last['at'])} ago: {last['text']}"
        out.print(plain(text), soft_wrap=True)
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
    if answer["generations"]:
        out.print()
        out.print(_generations(answer["generations"]))


def _generations(generations: list[dict[str, Any]]) -> Any:
    rows = table("generation", "state", "since", "workers", "sessions", numbers=_NUMBERS)
    for each in generations:
        rows.add_row(
            Text(f"{each['generation']}"),
            plain(each["state"], _COLOURS.get(each["state"], "yellow")),
            Text("" if each["since"] is None else f"{_ago(each['since'])} ago"),
            Text(f"{each['workers']}"),
            Text(f"{each['sessions']}"),
        )
    return rows


def _ago(point: float) -> str:
    return rough_duration(max(0.0, time.time() - point))
