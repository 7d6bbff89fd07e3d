"""What a steward leaves to the next one: JSON in a memory file that the master hands to both.

They may be of different versions: what makes no sense to the reader is left out, and what is missing the workers
report.
"""

from __future__ import annotations

import json
import os
from typing import Any

from proxy.observe.log import get_logger

log = get_logger()


def write(descriptor: int, state: dict[str, Any]) -> None:
    """Leave a state behind. The descriptor stays the caller's.

    Raises:
        OSError: There is no memory for it.
    """
    octets = memoryview(json.dumps(state, separators=(",", ":")).encode("ascii"))
    position = 0
    while position < len(octets):
        position += os.pwrite(descriptor, octets[position:], position)


def read(descriptor: int) -> dict[str, Any]:
    """What was left; {}: nothing, or not all of it, for whoever wrote it has died over it."""
    octets = _octets(descriptor)
    if not octets:
        return {}
    try:
        state = json.loads(octets)
    except (ValueError, RecursionError) as exc:
        log.warning("steward.hand_over_unreadable", error=str(exc))
        return {}
    return state if isinstance(state, dict) else {}


def _octets(descriptor: int) -> bytes:
    # By position: the offset is shared with the writer.
    parts, position = [], 0
    while part := os.pread(descriptor, 1 << 20, position):
        parts.append(part)
        position += len(part)
    return b"".join(parts)
