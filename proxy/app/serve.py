"""`imap-porter serve`: a master whose children are workers and a steward."""

from __future__ import annotations

from pathlib import Path

from proxy.app.plan import Roles
from proxy.app.start import serve_with
from proxy.app.steward import run_steward
from proxy.app.worker import run_worker


def serve(config: Path) -> int:
    """Run until a signal ends it. Gives the exit status."""
    return serve_with(config, Roles(run_worker, run_steward))
