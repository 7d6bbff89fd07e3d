"""When a backend last failed and where: what an operator looks at first, by steps that are known beforehand."""

from __future__ import annotations

import time

from proxy.observe import metrics

# At these steps a backend has not looked at a user yet: what fails there is the backend's own fault.
REACHING_STEPS = ("resolve", "connect", "tls", "greeting", "starttls", "capability")
STEPS = ("local", "queue", *REACHING_STEPS, "id", "login")

_LAST = metrics.gauge(
    "porter_backend_last_failure_timestamp_seconds",
    "When a login or a check of the backend last failed at this step, Unix time; 0: it has not.",
    merge="max",
    backend=None,
    step=STEPS,
)


def know(backend: str) -> None:
    """Make zero visible."""
    for step in STEPS:
        _LAST.labels(backend, step)


def failed(backend: str, step: str) -> None:
    """It has failed now."""
    _LAST.labels(backend, step if step in STEPS else "login").set(time.time())


def forget(backend: str) -> None:
    """There is no such backend any more."""
    for step in STEPS:
        _LAST.remove(backend, step)
