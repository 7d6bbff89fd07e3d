"""What the commands share: foreign text made safe, JSON, the log's lines kept out of tables, a clean Ctrl-C.

Whatever comes from a server, a file or a token may hold terminal escapes or rich's own markup: it passes through
plain(), and nothing is printed as markup.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Container, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.observe import log
from proxy.settings.mistakes import Mistake, SettingsError, printable
from proxy.settings.units import OCTETS

EXIT_OK = 0
EXIT_SETTINGS = 1
EXIT_INTERRUPTED = 130  # as shells count a SIGINT

_UNFOLDED = 100_000  # columns

_Result = TypeVar("_Result")


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is, and folds it for a terminal alone: elsewhere a line is a line, for grep."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _UNFOLDED
    return made


def plain(text: str, style: str = "") -> Text:
    """Text from anywhere, for a table."""
    return Text(printable(text), style)


def table(*titles: str, numbers: Container[str] = ()) -> Table:
    """A table without lines that folds what is too wide, and leaves nothing out.

    Args:
        titles: Of the columns; none at all: a table of labels and values.
        numbers: Those of columns that are aligned to the right.
    """
    made = Table(box=None, show_header=bool(titles), pad_edge=False, header_style="bold")
    for title in titles or ("", ""):
        made.add_column(title, overflow="fold", justify="right" if title in numbers else "left")
    return made


def milliseconds(seconds: float | None) -> Text:
    """A duration for a table; None: there was nothing to measure."""
    return Text("" if seconds is None else f"{seconds * 1000:.0f}")


def print_json(document: dict[str, Any]) -> None:
    """Print JSON for scripts, all of it printable ASCII: no character in it means anything to a terminal."""
    print(_json(document, indent=2))


def print_json_line(document: dict[str, Any]) -> None:
    """Print JSON for scripts that read line by line, at once."""
    print(_json(document), flush=True)


def _json(document: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(document, indent=indent).replace("\x7f", "\\u007f")  # the one control that json leaves


def print_mistakes(error: SettingsError, json_output: bool) -> None:
    """Tell every mistake of the settings: on standard error, or as JSON."""
    if json_output:
        print_json({"ok": False, "mistakes": [_mistake(mistake) for mistake in error.mistakes]})
    else:
        print(error, file=sys.stderr)


def _mistake(mistake: Mistake) -> dict[str, Any]:
    return {"file": str(mistake.path), "line": mistake.line, "key": mistake.key, "problem": mistake.problem}


@contextmanager
def log_kept_back() -> Iterator[None]:
    """Errors in the log wait for the end of the block and then go to standard error; other lines are dropped.

    So none gets into a progress bar or a table, and none repeats one: what sources warn of, the table tells.
    """
    with tempfile.TemporaryFile() as kept:
        log.configure("console", "error", descriptor=kept.fileno())
        try:
            yield
        finally:
            log.restore()
            kept.seek(0)
            sys.stderr.flush()
            shutil.copyfileobj(kept, sys.stderr.buffer)
            sys.stderr.flush()


def run(main: Callable[[], Awaitable[_Result]]) -> _Result:
    """trio.run(), from which a Ctrl-C comes out alone, however deep in nurseries it struck.

    Raises:
        KeyboardInterrupt: It was interrupted.
    """
    try:
        return trio.run(main)
    except* KeyboardInterrupt:
        pass
    raise KeyboardInterrupt


def clock(point: float, *, milliseconds: bool = False) -> str:
    """A point in time (Unix time) as the clock on the wall has it; with the day, where that is not today."""
    when = datetime.fromtimestamp(point).astimezone()
    text = when.isoformat(" ", "milliseconds" if milliseconds else "seconds")[: 23 if milliseconds else 19]
    return text.partition(" ")[2] if when.date() == datetime.now().astimezone().date() else text


def size(octets: float) -> str:
    """Octets as people say it: in the largest unit of which there is one."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if octets >= OCTETS[unit]:
            return f"{octets / OCTETS[unit]:.1f} {unit}"
    return f"{octets:.0f} B"
