"""`imap-porter check`: read the settings as `serve` does, tell every mistake or what they amount to, start nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.app.preflight import preflight
from proxy.settings.certificates import facts
from proxy.settings.loader import load
from proxy.settings.mistakes import Mistake, SettingsError, printable
from proxy.settings.models import IdentitySource, Settings
from proxy.settings.reference import differences, flow_text

DAYS_TO_WORRY = 21  # automatic renewal happens 30 days before the end; by now it has failed for a while


def check(config: Path, json_output: bool) -> int:
    """Check a settings file and give the exit status: 0, or 1 when there are mistakes.

    Args:
        config: The settings file.
        json_output: Print JSON for scripts instead of tables, mistakes too.
    """
    try:
        settings = load(config)
        preflight(settings)
    except SettingsError as exc:
        if json_output:
            _print_json({"ok": False, "mistakes": [_mistake(mistake) for mistake in exc.mistakes]})
        else:
            print(exc, file=sys.stderr)
        return 1
    if json_output:
        _print_json({"ok": True, **summary(settings)})
    else:
        _print_tables(settings, config)
    return 0


def summary(settings: Settings) -> dict[str, Any]:
    """What the settings amount to, as plain objects."""
    plain = settings.model_dump(mode="json")
    certificates = [(pair.certificate, facts(pair.certificate)) for pair in settings.tls.certificates]
    return {
        "listeners": plain["listeners"],
        "certificates": [
            {"file": str(path), "names": list(known.names), "not_after": known.not_after.isoformat()}
            for path, known in certificates
        ],
        "identity": [_source(source) for source in settings.identity],
        "backends": plain["backends"]["servers"],
        "login": settings.backends.login.method,
        "admin": plain["admin"]["address"],
        "metrics": plain["metrics"]["address"],
        "differs": [{"key": each.key, "value": each.value, "default": each.default} for each in differences(settings)],
    }


def _print_tables(settings: Settings, config: Path) -> None:
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in _rows(settings):
        table.add_row(Text(label, "bold"), value)
    console.print(table)
    changed = Table("differs from the default", "value", "default", box=None, pad_edge=False, header_style="bold")
    for each in differences(settings):
        changed.add_row(each.key, printable(flow_text(each.value)), Text(flow_text(each.default), "dim"))
    if changed.row_count:
        console.print()
        console.print(changed)
    console.print(f"\n{printable(str(config))}: no mistakes", soft_wrap=True)


def _rows(settings: Settings) -> Iterator[tuple[str, Text]]:
    for listener in settings.listeners:
        trusted = ", ".join(map(str, listener.trusted_networks))
        yield (
            "listener",
            Text(f"{listener.address}  tls {listener.tls}" + (f", only from {trusted}" if trusted else "")),
        )
    for pair in settings.tls.certificates:
        known = facts(pair.certificate)
        yield "certificate", Text.assemble(printable(", ".join(known.names)), "  ", _end(known.not_after))
    for source in settings.identity:
        yield "identity", Text(printable(_source(source)))
    for server in settings.backends.servers:
        yield "backend", Text(f"{server.name}  {server.url}  weight {server.weight}")
    yield "login", Text(settings.backends.login.method)
    yield "admin", Text(str(settings.admin.address or "off"))
    yield "metrics", Text(str(settings.metrics.address or "off"))


def _end(not_after: datetime) -> Text:
    days = (not_after - datetime.now(UTC)).days
    if days < 0:
        return Text(f"ended {not_after:%Y-%m-%d}", "bold red")
    return Text(f"ends {not_after:%Y-%m-%d}, in {days} days", "yellow" if days < DAYS_TO_WORRY else "")


def _source(source: IdentitySource) -> str:
    return f"file {source.file.path}" if source.file else "backend"


def _mistake(mistake: Mistake) -> dict[str, Any]:
    return {"file": str(mistake.path), "line": mistake.line, "key": mistake.key, "problem": mistake.problem}


def _print_json(document: dict[str, Any]) -> None:
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
