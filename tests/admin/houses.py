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
from proxy.admin.commands import BackendView
from proxy.admin.http import serve_unix
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


class FakeHouse:
    """What the running proxy would be."""

    def __init__(self, *others: BackendView) -> None:
        self.views = {view.name: view for view in (D1, D2, *others)}
        self.drains: list[tuple[str, float]] = []
        self.routes: dict[str, Mapping[str, Any]] = {}

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


@asynccontextmanager
async def open_house(path: Path, house: FakeHouse, uids: Collection[int] | None = None) -> AsyncIterator[FakeHouse]:
    """The API of a house on a socket; by default this user may ask."""
    app = admin_app(house, {os.getuid()} if uids is None else uids)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_unix, app, path)
        yield house
        nursery.cancel_scope.cancel()
