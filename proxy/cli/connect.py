"""`imap-porter check --connect`: everything tried that identity sources and backends need from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from proxy.app.sources import sources_for
from proxy.auth.names import NameRules
from proxy.auth.source import IdentitySource, Probe
from proxy.backends.backend import SAMPLE_VISITOR, Backend
from proxy.backends.check import Told
from proxy.backends.discovery import look_once
from proxy.backends.pool import Pool
from proxy.backends.way import Way
from proxy.cli.terminal import log_kept_back, milliseconds, plain, run, table
from proxy.outcome import Refused
from proxy.settings.backend_models import ClientAddress
from proxy.settings.models import Backends, Discovery, Fleet, Health, ProbeLogin, Settings
from proxy.transport.tls_client import ServerCertificate

# For a source, or for DNS. It is longer than the timeouts that they have by default, and bounds generous ones.
PROBE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Tried:
    """One thing tried, of one source or backend."""

    name: str  # "ldap", "backend dovecot-1"
    probe: Probe


@dataclass(frozen=True, slots=True)
class _Ask:
    """One source or backend to be tried."""

    name: str
    ask: Callable[[], Awaitable[Sequence[Probe]]]
    seconds: float


def connect(settings: Settings) -> list[Tried]:
    """Try everything at once, each for a bounded time; on a terminal a bar shows how many have answered.

    Raises:
        SettingsError: A users file has mistakes.
        KeyboardInterrupt: It was interrupted.
    """
    rules = NameRules(settings.names)
    backends = Pool(settings.backends, settings.timeouts)
    sources = sources_for(settings, rules)
    with log_kept_back():
        return run(partial(_connect, settings, sources, backends))


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


async def _connect(settings: Settings, sources: Sequence[IdentitySource], backends: Pool) -> list[Tried]:
    tried = []
    if settings.backends.discovery is not None:
        tried.append(Tried("discovery", await _discover(settings.backends, settings.backends.discovery, backends)))
    asks = [_Ask(source.name, source.probe, PROBE_SECONDS) for source in sources]
    health, timeouts = settings.backends.health, settings.timeouts
    # Longer than all its steps may take: who knows the step that got stuck tells it.
    seconds = timeouts.backend_connect + timeouts.backend_login + health.timeout + 1
    asks += [_Ask(f"backend {each.name}", partial(_try_backend, each, health), seconds) for each in backends]
    if settings.fleet is not None:
        asks.append(_Ask("fleet", partial(_try_fleet, settings.fleet), PROBE_SECONDS))
    with _progress(len(asks)) as step:
        return tried + await _try_all(asks, step)


async def _discover(settings: Backends, discovery: Discovery, backends: Pool) -> Probe:
    """Ask DNS, and take in what it names."""
    began = trio.current_time()
    with trio.move_on_after(PROBE_SECONDS):
        found = await look_once(discovery, pinned=settings.pins_names)
        seconds = trio.current_time() - began
        if not found:
            return Probe("DNS", f"{discovery.dns} names no backend that could be used", seconds=seconds)
        own = {server.name for server in settings.servers}
        found = [each for each in found if each.server.name not in own]
        servers = [*settings.servers, *(each.server for each in found)]
        backends.update(servers, {each.server.name: each.addresses for each in found})
        named = "; ".join(f"{each.server.name} {', '.join(each.addresses) or 'without address'}" for each in found)
        return Probe("DNS", "", named, seconds)
    return Probe("DNS", f"no answer within {PROBE_SECONDS:g} s", seconds=PROBE_SECONDS)


async def _try_all(asks: Sequence[_Ask], done: Callable[[], None]) -> list[Tried]:
    found: dict[int, Sequence[Probe]] = {}

    async def try_one(number: int, each: _Ask) -> None:
        found[number] = (Probe("", f"no answer within {each.seconds:g} s", seconds=each.seconds),)
        with trio.move_on_after(each.seconds):
            found[number] = await each.ask()
        done()

    async with trio.open_nursery() as nursery:
        for number, each in enumerate(asks):
            nursery.start_soon(try_one, number, each)
    return [Tried(each.name, probe) for number, each in enumerate(asks) for probe in found[number]]


async def _try_fleet(settings: Fleet) -> Sequence[Probe]:
    """Whether the server lets us in; nobody is told of us."""
    from proxy.ledger import fleet  # app/sources.py says why here

    began = trio.current_time()
    try:
        async with fleet.connect(settings, "", "", 0.0) as server:
            members = await server.known_members()
    except fleet.FleetLost as exc:
        return [Probe("Valkey", str(exc), seconds=trio.current_time() - began)]
    detail = f"{settings.valkey}; " + (
        f"proxies known there: {', '.join(members)}" if members else "no proxy is there yet"
    )
    return [Probe("Valkey", "", detail, trio.current_time() - began)]


async def _try_backend(backend: Backend, health: Health) -> Sequence[Probe]:
    began = trio.current_time()
    try:
        told = await backend.probe()
    except Refused as refusal:
        return (Probe(refusal.step or "connect", refusal.detail, seconds=trio.current_time() - began),)
    probes = [*_what_it_told(told, backend.way)]
    if health.login is not None:
        probes.append(await _log_in(backend, health.login, health.timeout))
    return probes


async def _log_in(backend: Backend, login: ProbeLogin, timeout_seconds: float) -> Probe:
    """As each check of a running proxy does it."""
    began = trio.current_time()
    check, problem = backend.check(login), ""
    with trio.move_on_after(timeout_seconds) as scope:
        try:
            await check.run()
        except Refused as refusal:
            problem = f"{refusal.step or check.step}: {refusal.detail or refusal.outcome}"
    if scope.cancelled_caught:
        problem = f"{check.step}: no answer within health.timeout, {timeout_seconds:g} s"
    seconds = trio.current_time() - began
    if problem:
        return Probe("probe login", f"health.login, {login.name}: {problem}", seconds=seconds)
    return Probe("probe login", "", f"{login.name} is let in", seconds)


def _what_it_told(told: Told, way: Way) -> Iterator[Probe]:
    yield Probe("capability", "", told.capability, told.seconds)
    yield Probe("greeting", "", told.greeting)
    if told.certificate is not None:
        yield Probe("certificate", "", _certificate(told.certificate, verified=way.verifies))
    if way.client_address == "id" and "ID" not in told.capability.upper().split():
        yield Probe("client address", "client_address is id, and this backend does not offer ID")
    else:
        yield Probe("client address", "", _client_address(told, way.client_address))


def _certificate(shown: ServerCertificate, *, verified: bool) -> str:
    if shown.not_after is None:
        return "cannot be read, not verified"
    days = (shown.not_after - datetime.now(UTC)).days
    end = f"ended {shown.not_after:%Y-%m-%d}" if days < 0 else f"ends {shown.not_after:%Y-%m-%d}, in {days} days"
    names = shown.name_problem or f"names {', '.join(shown.names) or 'no host'}"
    return f"{end}; {names}" if verified else f"{end}; not verified; {names}"


def _client_address(told: Told, client_address: ClientAddress) -> str:
    """What was sent in the place of a client's address, and what the backend lets see of it."""
    if client_address == "none":
        return "none is sent"
    sample, untold = SAMPLE_VISITOR.client.host, "what it saw, this backend does not tell"
    if client_address == "id":
        # Only what it says after ID can be an effect of it.
        told, untold = replace(told, greeting=""), f"{untold} (its greeting comes before the ID)"
    saw = told.named((sample, told.own_address))
    return f"{sample} sent by {client_address}; " + (f"it saw {saw}" if saw else untold)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Gives what is called after each step."""
    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield partial(progress.advance, task)
