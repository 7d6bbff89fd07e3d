"""`imap-porter top`: who and what keeps the running proxy busy, anew every two seconds."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from proxy.cli.doors import NotAnswered
from proxy.cli.options import Call
from proxy.cli.running import Proxy, attempt, conversation
from proxy.cli.terminal import EXIT_OK, clock, console, plain, size, table

EVERY_SECONDS = 2.0
ONCE_SECONDS = 1.0
_NUMBERS = ("sessions", "commands/s", "up/s", "down/s", "per second")
_END_KEYS = (b"q", b"Q", b"\x03", b"\x04")


def top(call: Call, limit: int, once: bool) -> int:
    """Show the busiest until somebody presses q or Ctrl-C; for scripts, and where there is no terminal, once.

    Args:
        call: Whom to ask.
        limit: So many of each kind.
        once: Not again: what happens within a second.
    Returns:
        As running.conversation().
    """
    out = console()
    if once or call.json_output or not out.is_terminal:
        return conversation(call, lambda proxy: _once(proxy, limit), lambda answer: out.print(_view(answer)))
    return attempt(call, lambda proxy: _keep_showing(proxy, limit))


def _once(proxy: Proxy, limit: int) -> dict[str, Any]:
    """The proxy counts from one question to the next, so it takes two."""
    proxy.ask("top", limit=1)
    time.sleep(ONCE_SECONDS)
    return proxy.ask("top", limit=limit)


def _keep_showing(proxy: Proxy, limit: int) -> int:
    answer = proxy.ask("top", limit=limit)
    with _keys() as keys, Live(console=console(), screen=True, auto_refresh=False) as live:
        problem = ""
        try:
            while True:
                live.update(_view(answer, problem), refresh=True)
                if _ends(keys):
                    break
                try:
                    answer, problem = proxy.ask("top", limit=limit), ""
                except NotAnswered as exc:
                    problem = str(exc)  # a reload takes a moment: what was known stays
        except KeyboardInterrupt:
            pass
    return EXIT_OK


@contextmanager
def _keys() -> Iterator[int | None]:
    """Standard input, key by key; None: it is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _ends(keys: int | None) -> bool:
    """Wait for the next time; True: somebody wants it to be the last."""
    if keys is None:
        time.sleep(EVERY_SECONDS)
        return False
    ready, _, _ = select.select([keys], [], [], EVERY_SECONDS)
    return bool(ready) and os.read(keys, 1) in (b"", *_END_KEYS)


def _view(answer: dict[str, Any], problem: str = "") -> Group:
    head = f"{clock(time.time())}, of the last {answer['seconds']:.1f} s"
    parts: list[Any] = [plain(f"{head}: {problem}" if problem else head, "red" if problem else "dim"), Text()]
    commands = table("command", "per second", numbers=_NUMBERS)
    for each in answer["commands"]:
        commands.add_row(plain(each["command"]), Text(f"{each['per_second']:,.1f}"))
    tables = [_rates("backend", answer["backends"]), commands, _rates("user", answer["users"])]
    for rows in tables:
        if rows.row_count:
            parts += [rows, Text()]
    return Group(*parts[:-1])


def _rates(what: str, busy: list[dict[str, Any]]) -> Table:
    rows = table(what, *_NUMBERS[:4], numbers=_NUMBERS)
    for each in busy:
        rows.add_row(
            plain(each[what]),
            Text(f"{each['sessions']:,}"),
            Text(f"{each['commands_per_second']:,.1f}"),
            Text(size(each["octets_per_second_up"])),
            Text(size(each["octets_per_second_down"])),
        )
    return rows
