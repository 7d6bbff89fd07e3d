"""What a shell is told when somebody presses Tab: quick, or nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from proxy.cli.options import Call

PATIENCE_SECONDS = 0.5


def backends(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of the running proxy's backends that begin so."""
    from proxy.cli.options import DEFAULT_CONFIG, Call

    options = ctx.params
    named = options.get("config") or os.environ.get("IMAP_PORTER_CONFIG") or DEFAULT_CONFIG
    url, ca = (options.get(name) or os.environ.get(f"IMAP_PORTER_{name.upper()}") for name in ("url", "ca"))
    call = Call(Path(named), url=url, token_file=options.get("token_file"), ca=Path(ca) if ca else None)
    return [name for name in _names(call) if name.startswith(incomplete)]


def _names(call: Call) -> list[str]:
    """Whatever goes wrong, somebody is in the middle of a line: he is told nothing."""
    from proxy.cli.running import find_proxy

    found: list[str] = []

    def ask() -> None:
        try:
            answer = proxy.ask("backends", patience_seconds=PATIENCE_SECONDS)
            found.extend(view["name"] for view in answer["backends"] if view["name"].isprintable())
        except Exception:  # noqa: S110
            pass

    try:
        proxy = find_proxy(call)
    except Exception:
        return []
    # A thread: a proxy that answers octet by octet would outlast every timeout of a socket.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return list(found)
