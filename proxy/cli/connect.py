"""`imap-porter check --connect`: everything tried that identity sources and backends need from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from proxy.app.sources import sources_for
from proxy.auth.names import NameRules
from proxy.auth.source import IdentitySource, Probe
from proxy.backends.pool import Backend, Pool
from proxy.cli.terminal import log_kept_back, milliseconds, plain, run, table
from proxy.outcome import Refused
from proxy.settings.models import Settings

# Longer than the timeouts that a source or a backend has by default; it bounds those whose settings are generous.
PROBE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Tried:
    """One thing tried, of one source or backend."""

    name: str  # "ldap", "backend dovecot-1"
    probe: Probe


_Ask = Callable[[], Awaitable[Sequence[Probe]]]


def connect(settings: Settings) -> list[Tried]:
    """Try everything at once, each for a bounded time; on a terminal a bar shows how many have answered.

    Raises:
        SettingsError: A users file has mistakes.
        KeyboardInterrupt: It was interrupted.
    """
    rules = NameRules(settings.names)
    backends = Pool(settings.backends, settings.timeouts)
    sources = sources_for(settings, rules)
    asks: list[tuple[str, _Ask]] = [(source.name, partial(_try_source, source)) for source in sources]
    asks += [
        (f"backend {server.name}", partial(_try_backend, backends[server.name])) for server in settings.backends.servers
    ]
    with log_kept_back(), _progress(len(asks)) as step:
        return run(partial(_try_all, asks, step))


def print_tried(tried: Sequence[Tried], console: Console) -> None:
    """The table for people."""
    rows = table("", "tried", "", "ms", "", numbers=("ms",))
    for each in tried:
        probe = each.probe
        verdict = Text("problem", "bold red") if probe.problem else Text("works", "green")
        detail = plain(probe.problem or probe.detail)
        rows.add_row(plain(each.name), plain(probe.what), verdict, milliseconds(probe.seconds), detail)
    console.print(rows)


def as_objects(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """The same for scripts."""
    return [
        {
            "name": each.name,
            "what": each.probe.what,
            "ok": not each.probe.problem,
            "problem": each.probe.problem,
            "detail": each.probe.detail,
            "milliseconds": round(each.probe.seconds * 1000, 1),
        }
        for each in tried
    ]


async def _try_all(asks: Sequence[tuple[str, _Ask]], done: Callable[[], None]) -> list[Tried]:
    found: dict[int, Sequence[Probe]] = {}

    async def try_one(number: int, ask: _Ask) -> None:
        with trio.move_on_after(PROBE_SECONDS):
            found[number] = await ask()
        done()

    async with trio.open_nursery() as nursery:
        for number, (_, ask) in enumerate(asks):
            nursery.start_soon(try_one, number, ask)
    silent = (Probe("", f"no answer within {PROBE_SECONDS:g} s", seconds=PROBE_SECONDS),)
    return [Tried(name, probe) for number, (name, _) in enumerate(asks) for probe in found.get(number, silent)]


async def _try_source(source: IdentitySource) -> Sequence[Probe]:
    return await source.probe()


async def _try_backend(backend: Backend) -> Sequence[Probe]:
    began = trio.current_time()
    try:
        detail, seconds = await backend.probe()
    except Refused as refusal:
        return (Probe(refusal.step or "connect", refusal.detail, seconds=trio.current_time() - began),)
    return (Probe("capability", "", detail, seconds),)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Gives what is called after each step."""
    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield partial(progress.advance, task)
