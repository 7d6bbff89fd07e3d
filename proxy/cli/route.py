"""`imap-porter route NAME`: which backend a user is sent to, and why.

The running proxy knows: health, what administrators said, who has sessions where. Where there is none to ask the
settings say what they can; one that does not answer may know otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from proxy.admin.placement import route_document
from proxy.auth.file import read_users
from proxy.auth.names import NameRules
from proxy.cli.doors import NoDoor, NotAnswered, NotAsked, SocketDoor
from proxy.cli.options import Call
from proxy.cli.running import EXIT_REFUSED, EXIT_UNAVAILABLE, Declined, Proxy, fail, find_proxy, rough_duration
from proxy.cli.terminal import EXIT_OK, EXIT_SETTINGS, console, plain, print_json, print_mistakes, table
from proxy.model import Identity
from proxy.outcome import Refused
from proxy.routing.cluster import Cluster
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError
from proxy.settings.models import Settings


def route(name: str, config: Path, json_output: bool) -> int:
    """Explain a name's placement on standard output: of the running proxy's, or by the settings.

    Returns:
        0; 1: the settings have mistakes; 2: a login of that name would be refused; 3: the proxy doesn't answer.
    """
    return route_by(Call(config, json_output), name)


def route_by(call: Call, name: str) -> int:
    """As route(). By a URL the running proxy alone is asked.

    Returns:
        As route().
    """
    unasked = ""
    try:
        if call.url is not None:
            document = find_proxy(call).ask("route", name=name)
        else:
            settings = load(call.config)
            try:
                document = _ask(name, settings)
            except NotAsked as exc:
                unasked = str(exc)
                document = _by_settings(name, settings)
    except SettingsError as exc:
        print_mistakes(exc, call.json_output)
        return EXIT_SETTINGS
    except NoDoor as exc:
        return fail(call.json_output, EXIT_SETTINGS, str(exc))
    except NotAnswered as exc:
        return fail(call.json_output, EXIT_UNAVAILABLE, str(exc))
    except (Declined, Refused) as exc:
        problem = exc.detail if isinstance(exc, Refused) and exc.detail else str(exc)
        return fail(call.json_output, EXIT_REFUSED, f"{problem} ({_alone(unasked)})" if unasked else problem)
    if call.json_output:
        print_json({"ok": bool(document["backend"]), **document, "unasked": unasked})
    else:
        out = console()
        show_route(out, document)
        if unasked:
            out.print(plain(_alone(unasked), "yellow"), soft_wrap=True)
    return EXIT_OK if document["backend"] else EXIT_REFUSED


def _ask(name: str, settings: Settings) -> dict[str, Any]:
    if settings.admin.socket is None:
        raise NotAsked("admin.socket is not set")
    return Proxy(SocketDoor(settings.admin.socket), settings).ask("route", name=name)


def _by_settings(name: str, settings: Settings) -> dict[str, Any]:
    rules = NameRules(settings.names)
    identity = _identity(rules.canonical(name), settings, rules)
    cluster = Cluster(settings.backends, settings.routing, 0.0)
    return route_document(identity, cluster.explain(identity), None, 0.0, running=False)


def _identity(canonical: str, settings: Settings, rules: NameRules) -> Identity:
    """The first file that knows the name may name its backend; of the other sources none is asked here."""
    files = [source.file for source in settings.identity if source.file is not None]
    for number, file in enumerate(files, 1):
        # The name that the source has in service, too.
        identity = read_users(file.path, rules, "file" if number == 1 else f"file-{number}").identity(canonical)
        if identity is not None:
            return identity
    return Identity(canonical, "")


# --- for people ---


def show_route(out: Console, document: dict[str, Any]) -> None:
    """What /v1/route answers."""
    rows = table()
    for label, value in _rows(document):
        rows.add_row(Text(label, "bold"), plain(value))
    out.print(rows)
    out.print()
    if document["order"]:
        candidates = table("backend", "weight", "score", "state", "health", "", numbers=("weight", "score"))
        for each in document["order"]:
            candidates.add_row(*_candidate(each), style="bold" if each["name"] == document["backend"] else None)
        out.print(candidates)
        out.print()
    if document["backend"]:
        out.print(plain(f"{document['backend']}: {document['reason']}"), soft_wrap=True)
    else:
        out.print(plain(f"refused: {document['reason']}", "red"), soft_wrap=True)


def _alone(unasked: str) -> str:
    return f"by the settings and users' files alone, without sessions, health and DNS: {unasked}"


def _rows(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "canonical name", document["name"]
    if document["source"]:
        yield "known to", document["source"]
    yield "pool", f"{document['pool']}, by {document['pool_from']}" if document["pool"] else "without a tag"
    if document["override"]:
        yield "override", f"{document['override']}, by {document['override_from']}"
    yield "hash key", document["key"]
    yield "epoch", document["epoch"]
    if document["running"]:
        yield "sessions", _sessions(document["whereabouts"])


def _sessions(whereabouts: dict[str, Any] | None) -> str:
    if whereabouts is None:
        return "none"
    backend, seconds = whereabouts["backend"], rough_duration(whereabouts["seconds"])
    text = f"{whereabouts['sessions']} at {backend}, for {seconds}"
    if not whereabouts["sessions"]:
        text = f"none; at {backend} until {seconds} ago"
    if whereabouts["sticky_seconds"] is not None:
        text += f", sticky for {rough_duration(whereabouts['sticky_seconds'])}"
        if not whereabouts["sticky_holds"]:
            text += ", which does not hold now"
    if whereabouts["moving"]:
        why, _, phase = whereabouts["moving"].partition(": ")
        text += f"; he moves ({why}: {phase}), and new logins wait"
    return text


def _candidate(candidate: dict[str, Any]) -> Iterator[Text]:
    up = candidate["up"]
    yield plain(candidate["name"])
    yield Text(f"{candidate['weight']}")
    yield Text(f"{candidate['score']:.4f}")
    yield plain(candidate["state"])
    yield Text("" if up is None else "up" if up else "down")
    yield plain(", ".join(candidate["notes"]))
