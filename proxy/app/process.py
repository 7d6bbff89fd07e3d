"""What a process asks of the system before it serves: descriptors, and no core dumps."""

from __future__ import annotations

import resource

from proxy.observe.log import get_logger

log = get_logger()

# For listeners, the log, metrics and whoever asks for them, password threads, name lookups.
_RESERVED_DESCRIPTORS = 128


def prepare(connections: int) -> int:
    """Raise the limit on descriptors as far as allowed, and forbid core dumps, which would hold passwords.

    Args:
        connections: How many clients the settings allow; each may need two descriptors.
    Returns:
        How many clients there is really room for.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = connections if hard == resource.RLIM_INFINITY else max(1, (hard - _RESERVED_DESCRIPTORS) // 2)
    if room < connections:
        log.warning("process.few_descriptors", limit=hard, connections=connections, room=room)
    return min(room, connections)
