"""Clusters to try placement with, and what can happen to them."""

from __future__ import annotations

from typing import Any

from proxy.model import Identity, Placement
from proxy.routing.cluster import Cluster
from proxy.settings.models import Backends, Routing

THREE: dict[str, dict[str, Any]] = {"dovecot-1": {}, "dovecot-2": {}, "dovecot-3": {}}
NAMES = [f"person{number}@example.org" for number in range(60)]
HEALTH = {"down_after": 2, "up_after": 2, "hold_down": "60s"}


def server(name: str, **keys: object) -> dict[str, object]:
    return {"name": name, "url": f"imap://{name}.example.org", **keys}


def cluster(
    servers: dict[str, Any] = THREE, *, failover: str = "never", routing: dict[str, Any] | None = None
) -> tuple[Cluster, list[str]]:
    """A cluster at time 0, and a list that its events go to."""
    backends = {"servers": [server(name, **keys) for name, keys in servers.items()], "health": HEALTH}
    if not servers:
        backends["discovery"] = {"dns": "dovecot.example.org"}
    made = Cluster(
        Backends.model_validate(backends | {"failover": failover}), Routing.model_validate(routing or {}), 0.0
    )
    heard: list[str] = []
    made.on_event = lambda event: heard.append(f"{event.kind} {event.backend}")
    return made, heard


def placed(made: Cluster, name: str, backend: str | None = None, **attributes: str) -> Placement:
    return made.place(Identity(name, "file", backend, attributes))


def homes(made: Cluster) -> dict[str, str]:
    return {name: placed(made, name).home for name in NAMES}


def fail(made: Cluster, backend: str, now: float) -> None:
    for _ in range(2):
        made.checked(backend, now, "connection refused")


def recover(made: Cluster, backend: str, now: float) -> None:
    for _ in range(2):
        made.checked(backend, now)
