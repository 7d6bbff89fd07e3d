"""`imap-porter test-login NAME`: one login as a client would try it, with every source's answer on the way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

from proxy.app.preflight import preflight
from proxy.app.sources import sources_for
from proxy.auth.names import NameRules
from proxy.auth.source import TOKEN_MECHANISMS
from proxy.cli.secret_input import MAX_PASSWORD_OCTETS, MAX_TOKEN_OCTETS, UnusableSecret, read_secret
from proxy.cli.terminal import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SETTINGS,
    console,
    log_kept_back,
    milliseconds,
    plain,
    print_json,
    print_mistakes,
    run,
    table,
)
from proxy.cli.trial import NO_SECRET_MECHANISMS, Asked, Attempt, BackendReply, Said, Trial, Trier
from proxy.model import Identity, Placement
from proxy.outcome import FAREWELLS, REPLIES, Outcome, Refused
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError, printable
from proxy.settings.models import Settings

EXIT_REFUSED = 2
EXIT_UNAVAILABLE = 3

_OUTAGES = frozenset({Outcome.UNAVAILABLE, Outcome.LOGIN_TIMEOUT})
_COLOURS = {Said.YES: "green", Said.NO: "red", Said.NOT_MINE: "dim", Said.UNAVAILABLE: "yellow", Said.NOT_ASKED: "dim"}


def try_login(name: str, mechanism: str, client_address: str, config: Path, *, ask_all: bool, json_output: bool) -> int:
    """Try a login and show how it goes; the secret is asked for, or read from standard input.

    Args:
        name: The authentication identity, as the client would spell it.
        mechanism: LOGIN (the command) or a SASL mechanism.
        client_address: Where the client is, for sources that want to know.
        ask_all: Ask the sources too that a login doesn't come to.
    Returns:
        0; 1: the settings have mistakes; 2: the login is refused; 3: something that it needs is out.
    """
    try:
        settings = load(config)
        preflight(settings, config)
        trier = Trier(settings, sources_for(settings, NameRules(settings.names)))
    except SettingsError as exc:
        print_mistakes(exc, json_output)
        return EXIT_SETTINGS
    if problem := trier.why_not_offered(mechanism):
        print(f"{config}: {mechanism} is not offered to clients: {problem}", file=sys.stderr)
        return EXIT_REFUSED
    try:
        attempt = Attempt(name, mechanism, _secret(mechanism), client_address, ask_all)
        with log_kept_back():
            trial = run(partial(trier.log_in, attempt))
    except UnusableSecret as exc:
        print(exc, file=sys.stderr)
        return EXIT_REFUSED
    except (KeyboardInterrupt, EOFError):
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    if json_output:
        print_json(_as_object(trial))
    else:
        _show(trial, settings)
    return _exit_status(trial.outcome)


def _secret(mechanism: str) -> bytes:
    if mechanism in NO_SECRET_MECHANISMS:
        return b""
    if mechanism in TOKEN_MECHANISMS:
        return read_secret("token", max_octets=MAX_TOKEN_OCTETS)
    return read_secret("password", max_octets=MAX_PASSWORD_OCTETS)


def _exit_status(outcome: Outcome) -> int:
    if outcome is Outcome.OK:
        return EXIT_OK
    return EXIT_UNAVAILABLE if outcome in _OUTAGES else EXIT_REFUSED


def _reply(outcome: Outcome) -> str:
    """What a client reads, without its tag."""
    if outcome is Outcome.OK:
        return "OK Logged in."
    return (bytes(REPLIES[outcome]) if outcome in REPLIES else FAREWELLS[outcome]).decode("ascii").rstrip()


# --- for people ---


def _show(trial: Trial, settings: Settings) -> None:
    out = console()
    asked, rows = table("source", "answer", "ms", "", numbers=("ms",)), table()
    for each in trial.asked:
        why = each.why if each.counts else f"{each.why} (a login would not come here)"
        asked.add_row(plain(each.source), Text(each.said, _COLOURS[each.said]), milliseconds(each.seconds), plain(why))
    for label, value in _rows(trial, settings):
        rows.add_row(Text(label, "bold"), value)
    out.print(Text("canonical name  ", "bold") + plain(trial.canonical or "none"), soft_wrap=True)
    out.print()
    out.print(asked)
    out.print()
    out.print(rows)


def _rows(trial: Trial, settings: Settings) -> Iterator[tuple[str, Text]]:
    if trial.identity is None:
        assert trial.refusal is not None
        yield "identity", plain(f"none: {trial.refusal}", "red")
    else:
        yield from _identity_rows(trial.identity)
    if trial.placement is not None:
        yield "backend", plain(f"{trial.placement.home}, {_why(trial, settings)}")
    elif trial.identity is not None:
        yield "backend", plain(f"none: {trial.refusal}", "red")
    if trial.reply is not None:
        yield from _reply_rows(trial.reply)
    elif trial.placement is not None:
        yield "its reply", plain(f"none: {trial.refusal}", "red")
    yield "client gets", Text(_reply(trial.outcome), "green" if trial.refusal is None else "red")
    if trial.refusal is not None and trial.refusal.wait_seconds:
        yield "", Text(f"not before {trial.refusal.wait_seconds:g} s")


def _identity_rows(identity: Identity) -> Iterator[tuple[str, Text]]:
    yield "identity", plain(f"{identity.name}, from {identity.source}")
    for key, value in identity.attributes.items():
        yield "attribute", plain(f"{key}: {value}")
    if identity.expires_at is not None:
        yield "expires", Text(_when(identity.expires_at))
    if identity.backend_secret is not None:
        yield "password", Text("the backend's own, given by the source")


def _why(trial: Trial, settings: Settings) -> str:
    assert trial.placement is not None
    assert trial.identity is not None
    if trial.identity.name in settings.routing.overrides:
        return "named by routing.overrides"
    if trial.placement.why == "override":
        return f'named by source {trial.identity.source} ("{trial.identity.backend}")'
    return f"by the hash of its {settings.routing.hash}"


def _reply_rows(reply: BackendReply) -> Iterator[tuple[str, Text]]:
    if reply.refusal is not None:
        yield "its reply", plain(_told(reply.refusal), "red")
    else:
        method = f"logged in, {len(reply.capability)} capabilities, {reply.seconds * 1000:.0f} ms"
        yield "its reply", Text(method, "green")
    for note in reply.notes:
        yield "it says", plain(_text(note))


def _told(refusal: Refused) -> str:
    """A backend's refusal with the step where it stuck."""
    step = f"at {refusal.step}: " if refusal.step else ""
    return f"{refusal.outcome}, {step}{refusal.detail}"


def _when(seconds: float) -> str:
    """A time of somebody else's making, which may lie anywhere."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g} s after 1970"


def _text(line: bytes) -> str:
    return printable(line.decode("utf-8", "replace").rstrip("\r\n"))


# --- for scripts ---


def _as_object(trial: Trial) -> dict[str, Any]:
    refusal = trial.refusal
    return {
        "ok": refusal is None,
        "name": trial.canonical or None,
        "mechanism": trial.attempt.mechanism,
        "client_address": trial.attempt.client_address,
        "outcome": trial.outcome.value,
        "reply": _reply(trial.outcome),
        "detail": "" if refusal is None else refusal.detail,
        "wait_seconds": 0.0 if refusal is None else refusal.wait_seconds,
        "sources": [_asked_object(each) for each in trial.asked],
        "identity": _identity_object(trial.identity),
        "route": _placement_object(trial.placement),
        "backend": _reply_object(trial.reply),
    }


def _asked_object(asked: Asked) -> dict[str, Any]:
    return {
        "source": asked.source,
        "answer": asked.said.value,
        "why": asked.why,
        "milliseconds": _rounded(asked.seconds),
        "counts": asked.counts and asked.said is not Said.NOT_ASKED,
        "identity": _identity_object(asked.identity),
    }


def _identity_object(identity: Identity | None) -> dict[str, Any] | None:
    if identity is None:
        return None
    return {
        "name": identity.name,
        "source": identity.source,
        "backend": identity.backend,
        "attributes": dict(identity.attributes),
        "verified": identity.verified,
        "expires": None if identity.expires_at is None else _when(identity.expires_at),
        "backend_password": identity.backend_secret is not None,
    }


def _placement_object(placement: Placement | None) -> dict[str, Any] | None:
    return None if placement is None else {"backend": placement.home, "why": placement.why}


def _reply_object(reply: BackendReply | None) -> dict[str, Any] | None:
    if reply is None:
        return None
    refusal = reply.refusal
    return {
        "name": reply.backend,
        "ok": refusal is None,
        "outcome": (Outcome.OK if refusal is None else refusal.outcome).value,
        "step": "" if refusal is None else refusal.step,
        "detail": "" if refusal is None else refusal.detail,
        "capability": [_text(each) for each in reply.capability],
        "notes": [_text(note) for note in reply.notes],
        "milliseconds": _rounded(reply.seconds),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
