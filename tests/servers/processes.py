"""Signals to a server that is several processes."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def family(process_id: int) -> list[int]:
    """A process and all its descendants."""
    found = [process_id]
    for member in found:  # grows while it is walked
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended since
                found += [int(child) for child in children.read_text().split()]
    return found


def send(process_id: int, number: signal.Signals) -> None:
    """Send a signal to all of them, the first one first: it starts no more."""
    for member in family(process_id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, number)
