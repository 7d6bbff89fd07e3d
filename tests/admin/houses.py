"""A house of two backends, each alone in its pool, that remembers what it was asked, behind the real API and socket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from proxy.admin.api import admin_app
from proxy.admin.commands import BackendView, NotReloaded
from proxy.admin.http import serve_http
from proxy.admin.unix_socket import private_listener
from proxy.outcome import Outcome, Refused
from proxy.settings.models import State

D1 = BackendView(
    name="d1",
    pool="",
    url="imaps://10.0.0.11:993",
    discovered=False,
    state="up",
    weight=1,
    up=True,
    health_seconds=200.5,
    reason="",
    failed_over=False,
    sessions=3,
    users=2,
    logins_waiting=1,
)
D2 = replace(
    D1,
    name="d2",
    pool="gold",
    discovered=True,
    weight=2,
    up=False,
    health_seconds=12,
    reason="connect: Connection refused \x1b[31m",
    failed_over=True,
    sessions=1,
    users=1,
    logins_waiting=0,
)
D3 = replace(D1, name="d3", sessions=0, users=0, logins_waiting=0)


STATUS = {
    "version": "1.2.3",
    "pid": 100,
    "generation": 3,
    "draining": False,
    "last_reload": {"at": 0.0, "result": "rejected", "text": "porter.yaml:3: \x1b[31m"},
    "processes": [
        {
            "process": "w3.1",
            "role": "worker",
            "generation": 3,
            "pid": 102,
            "state": "accepting",
            "restarts": 1,
            "sessions": 7,
        },
        {"process": "s3", "role": "steward", "generation": 3, "pid": 101, "state": "accepting", "restarts": 0},
    ],
}


class FakeHouse:
    """What the running proxy would be."""

    def __init__(self, *others: BackendView) -> None:
        self.views = {view.name: view for view in (D1, D2, *others)}
        self.drains: list[tuple[str, float]] = []
        self.routes: dict[str, Mapping[str, Any]] = {}
        self.reloads = 0
        self.mistakes = ""

    def backends(self) -> list[BackendView]:
        return list(self.views.values())

    async def route(self, name: str) -> Mapping[str, Any]:
        if name == "out":
            raise Refused(Outcome.UNAVAILABLE, "the directory is out")
        if name not in self.routes:
            raise Refused(Outcome.AUTHENTICATION_FAILED, f"nobody knows {name}")
        return self.routes[name]

    def set_state(self, backend: str, state: State) -> None:
        self.views[backend] = replace(self.views[backend], state=state)

    def set_weight(self, backend: str, weight: int) -> None:
        self.views[backend] = replace(self.views[backend], weight=weight)

    def drain(self, backend: str, seconds: float) -> None:
        self.drains.append((backend, seconds))

    def status(self) -> Mapping[str, Any]:
        return STATUS

    async def reload(self) -> str:
        self.reloads += 1
        if self.mistakes:
            raise NotReloaded(self.mistakes)
        return "generation 4; changed: workers"


@asynccontextmanager
async def open_house(path: Path, house: FakeHouse, uids: Collection[int] | None = None) -> AsyncIterator[FakeHouse]:
    """The API of a house on a socket; by default this user may ask."""
    app = admin_app(house, {os.getuid()} if uids is None else uids)
    with private_listener(path) as listening:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, app, listening)
            yield house
            nursery.cancel_scope.cancel()
