"""`imap-porter route NAME`: which backend a user is sent to, and why."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from proxy.auth.file import read_users
from proxy.auth.names import NameRules
from proxy.cli.terminal import console
from proxy.model import Identity
from proxy.outcome import Refused
from proxy.routing.router import Choice, Explanation, Router
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError, printable
from proxy.settings.models import Settings

EXIT_SETTINGS = 1
EXIT_REFUSED = 2


@dataclass(frozen=True, slots=True)
class _Answer:
    """What there is to say about one name."""

    identity: Identity
    explanation: Explanation
    choice: Choice


def route(name: str, config: Path, json_output: bool) -> int:
    """Explain a name's placement on standard output.

    Returns:
        0; 1: the settings have mistakes; 2: nobody of that name could be placed.
    """
    try:
        answer = _answer(name, load(config))
    except SettingsError as exc:
        print(exc, file=sys.stderr)
        return EXIT_SETTINGS
    except Refused as refusal:
        print(printable(str(refusal)), file=sys.stderr)
        return EXIT_REFUSED
    if json_output:
        print(json.dumps(_as_object(answer), ensure_ascii=False, indent=2))
    else:
        _show(answer)
    return 0


def _answer(name: str, settings: Settings) -> _Answer:
    rules = NameRules(settings.names)
    canonical = rules.canonical(name)
    router = Router(settings.backends.servers, settings.routing.hash)
    identity = _identity(canonical, settings, rules)
    return _Answer(identity, router.explain(canonical), router.route(identity))


def _identity(canonical: str, settings: Settings, rules: NameRules) -> Identity:
    """The first file that knows the name may name its backend; of the other sources none is asked here."""
    files = [source.file for source in settings.identity if source.file is not None]
    for number, file in enumerate(files, 1):
        # The name that the source has in service, too.
        identity = read_users(file.path, rules, "file" if number == 1 else f"file-{number}").identity(canonical)
        if identity is not None:
            return identity
    return Identity(canonical, "")


def _why(answer: _Answer) -> str:
    if answer.choice.why == "override":
        return f"named by source {answer.identity.source}"
    return "the highest score"


def _as_object(answer: _Answer) -> dict[str, object]:
    explanation, choice = answer.explanation, answer.choice
    return {
        "name": explanation.name,
        "key": explanation.key,
        "epoch": explanation.epoch,
        "backend": choice.backend,
        "why": choice.why,
        "order": list(choice.order),
        "scores": [{"name": each.name, "weight": each.weight, "score": each.score} for each in explanation.scores],
    }


def _show(answer: _Answer) -> None:
    explanation, choice = answer.explanation, answer.choice
    out = console()
    out.print(f"canonical name  {explanation.name}", soft_wrap=True)
    out.print(f"hash key        {explanation.key}", soft_wrap=True)
    out.print(f"epoch           {explanation.epoch}")
    table = Table("backend", "weight", "score", "")
    for column in table.columns[1:3]:
        column.justify = "right"
    for each in explanation.scores:
        chosen = each.name == choice.backend
        notes = ["chosen"] * chosen + ["no one by hash"] * (not each.weight)
        row = (each.name, f"{each.weight:g}", f"{each.score:.4f}", ", ".join(notes))
        table.add_row(*row, style="bold" if chosen else None)
    out.print(table)
    out.print(f"{choice.backend}: {_why(answer)}", soft_wrap=True)
