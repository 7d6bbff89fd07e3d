"""A house of two backends, each alone in its pool, that remembers what it was asked, behind the real API and doors."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import trio

from proxy.admin import questions
from proxy.admin.api import address_app, local_app
from proxy.admin.commands import BackendView, NotPossible, NotReloaded, NotThere
from proxy.admin.events import Hub
from proxy.admin.http import serve_http
from proxy.admin.tokens import Tokens
from proxy.admin.unix_socket import private_listener
from proxy.auth.passwords import Parameters, hash_password
from proxy.model import Endpoint
from proxy.observe.log import Level
from proxy.outcome import Outcome, Refused
from proxy.settings.models import AdminToken, State
from proxy.transport.listen import bind

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
    "fleet": {"name": "a", "up": False, "members": [], "error": "redis://\x1b[31m: no answer in time"},
    "last_reload": {"at": 0.0, "result": "rejected", "text": "porter.yaml:3: \x1b[31m"},
    "processes": [
        {
            "process": "w3.1",
            "role": "worker",
            "generation": 3,
            "pid": 102,
            "since": 900.5,
            "state": "accepting",
            "restarts": 1,
            "sessions": 7,
        },
        {
            "process": "s3",
            "role": "steward",
            "generation": 3,
            "pid": 101,
            "since": 900.0,
            "state": "accepting",
            "restarts": 0,
        },
    ],
}

ROUTE = {
    "name": "alice@example.org",
    "source": "users.yaml",
    "pool": "",
    "pool_from": "",
    "override": "",
    "override_from": "",
    "key": "alice@example.org",
    "epoch": "e1",
    "order": [],
    "home": "d1",
    "why": "hash",
    "whereabouts": None,
    "backend": "d1",
    "reason": "",
    "running": True,
}
SESSION = {
    "id": "s1",
    "user": "alice@example.org",
    "client": "10.1.2.3:4567",
    "listener": "[::]:993",
    "worker": "w3.1",
    "backend": "d1",
    "state": "open",
    "why": "hash",
    "since": 1000.0,
    "seconds": 5.0,
}
_RATES = {"sessions": 1, "commands_per_second": 2.0, "octets_per_second_up": 3.0, "octets_per_second_down": 4.0}
_DURATIONS = {"buckets": [[0.1, 1], [None, 2]], "sum": 0.5, "count": 2}

# What each verb that changes nothing is answered.
LOOKS: dict[str, dict[str, Any]] = {
    "status": STATUS,
    "generations": {
        "generations": [{"generation": 3, "since": 1.0, "state": "current", "workers": 1, "sessions": 7}],
    },
    "backends": {"backends": [asdict(D1), asdict(D2)]},
    "sessions": {"sessions": [SESSION], "total": 1, "next": None},
    "session": {**SESSION, "mechanism": "PLAIN", "commands": 3, "activity": "idle"},
    "users": {"users": [{"user": "alice@example.org", "sessions": 1, "backends": ["d1"]}], "total": 1},
    "top": {
        "seconds": 10.0,
        "users": [{"user": "alice@example.org", **_RATES}],
        "backends": [{"backend": "d1", **_RATES}],
        "commands": [{"command": "NOOP", "per_second": 1.0}],
    },
    "explain": {
        "route": ROUTE,
        "problem": "",
        "attributes": {},
        "source": "users.yaml",
        "directions": {"backend": "d1", "held": False, "until": None, "reason": "x", "by": "ops", "since": 1.0},
        "limits": [{"limit": "logins_per_user", "most": 60, "left": 59.5, "per_seconds": 60.0}],
        "sessions": [SESSION],
        "failures": [
            {"time": 1.0, "client": "10.1.2.3:1", "mechanism": "PLAIN", "outcome": "unavailable", "detail": ""}
        ],
    },
    "limits": {"limits": [{"limit": "connections", "value": 1000, "reached": {"refuse": 2.0}}]},
    "settings": {"settings": {"version": 1}, "differs": [{"key": "workers", "value": 2, "default": "auto"}]},
    "figures": {
        "time": 1.0,
        "sessions": 3,
        "idle": 2,
        "logins": {"ok": 5},
        "login_seconds": _DURATIONS,
        "commands": {"NOOP": 5},
        "command_seconds": _DURATIONS,
        "octets": {"up": 1, "down": 2},
        "limits": {"connections": 0},
        "backends": {"d1": {"sessions": 3, "logins": 5, "up": True}},
        "workers": [{"process": "w3.1", "loop_delay_seconds": None, "cpu_seconds": 1.5, "resident_bytes": 1e8}],
    },
}


class FakeHouse:
    """What the running proxy would be."""

    def __init__(self, *others: BackendView) -> None:
        self.hub = Hub()
        self.views = {view.name: view for view in (D1, D2, *others)}
        self.drains: list[tuple[str, float]] = []
        self.looks: list[tuple[str, Any]] = []
        self.asked: list[tuple[Any, ...]] = []  # of changes
        self.routes: dict[str, Mapping[str, Any]] = {"alice@example.org": ROUTE}
        self.reloads = 0
        self.mistakes = ""
        self.aliases: dict[str, str] = {}  # other spellings of users
        self.strangers: set[str] = set()  # whom no source knows

    async def look(self, verb: str, question: Any) -> Mapping[str, Any]:
        self.looks.append((verb, question))
        if verb == "session" and question.session != "s1":
            raise NotThere("there is no such session any more")
        return self._route(question.name) if verb == "route" else LOOKS[verb]

    def _route(self, name: str) -> Mapping[str, Any]:
        if name == "out":
            raise Refused(Outcome.UNAVAILABLE, "the directory is out")
        if name not in self.routes:
            raise Refused(Outcome.AUTHENTICATION_FAILED, f"nobody knows {name}")
        return self.routes[name]

    async def find_name(self, spelled: str) -> tuple[str, bool]:
        if "\n" in spelled:
            raise Refused(Outcome.AUTHENTICATION_FAILED, "it is no name")
        return self.aliases.get(spelled, spelled), spelled not in self.strangers

    def backends(self) -> list[BackendView]:
        return list(self.views.values())

    def set_state(self, backend: str, state: State) -> None:
        self.views[backend] = replace(self.views[backend], state=state)

    def set_weight(self, backend: str, weight: int) -> None:
        self.views[backend] = replace(self.views[backend], weight=weight)

    def drain(self, backend: str, seconds: float) -> None:
        self.drains.append((backend, seconds))

    def kick(self, whom: questions.Kick) -> tuple[int, int]:
        self.asked.append(("kick", whom))
        if whom.session == "gone":
            raise NotThere("there is no such session any more")
        return 2, 1

    def move(self, order: questions.Move, by: str) -> int:
        self.asked.append(("move", order, by))
        return 1

    def hold(self, order: questions.Hold, by: str) -> int:
        self.asked.append(("hold", order, by))
        return 3

    def release(self, user: str) -> tuple[bool, str | None]:
        self.asked.append(("release", user))
        if user == "nobody":
            raise NotThere("the user is neither moved nor held")
        return False, "d2"

    async def reload(self) -> str:
        self.reloads += 1
        if self.mistakes:
            raise NotReloaded(self.mistakes)
        return "generation 4; changed: workers"

    def set_log_level(self, level: Level) -> Level:
        self.asked.append(("log-level", level))
        return "info"

    def trace(self, user: str, seconds: float) -> tuple[str, float]:
        self.asked.append(("trace", user, seconds))
        if user == "ninth":
            raise NotPossible("there are too many traces already")
        return "t1", 1000.0

    def untrace(self, trace: str) -> None:
        self.asked.append(("untrace", trace))
        if trace != "t1":
            raise NotThere("there is no such trace any more")


@asynccontextmanager
async def open_house(path: Path, house: FakeHouse, uids: Collection[int] | None = None) -> AsyncIterator[FakeHouse]:
    """The API of a house on a socket; by default this user may ask."""
    app = local_app(house, {os.getuid()} if uids is None else uids)
    with private_listener(path) as listening:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, app, listening)
            yield house
            nursery.cancel_scope.cancel()


# --- by network ---

OPERATOR, VIEWER = "token-of-ops", "token-of-the-office"
CHEAP = Parameters(memory_kib=8, time=1, parallelism=1)
TOKENS = (
    AdminToken(name="ops", role="operator", hash=hash_password(OPERATOR.encode(), CHEAP)),
    AdminToken(name="office", role="viewer", hash=hash_password(VIEWER.encode(), CHEAP)),
)


@asynccontextmanager
async def open_address(
    house: FakeHouse, *, hosts: Collection[str] = (), origins: Collection[str] = (), **serving: Any
) -> AsyncIterator[Endpoint]:
    """The API of a house on a loopback address."""
    app = address_app(house, lambda: (True, {"ready": True}), Tokens(TOKENS), hosts=hosts, origins=origins)
    with bind(Endpoint("127.0.0.1", 0)) as listening:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda **kw: serve_http(app, listening, **serving, **kw))
            yield Endpoint("127.0.0.1", listening.getsockname()[1])
            nursery.cancel_scope.cancel()


async def exchange(stream: trio.abc.Stream, octets: bytes) -> tuple[int, dict[str, str], Any]:
    """Send a request and read to the end of the connection: status, headers, and JSON or octets."""
    with trio.fail_after(5):
        await stream.send_all(octets)
        answer = b"".join([chunk async for chunk in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    is_json = headers.get("content-type") == "application/json"
    return int(status.split(" ")[1]), headers, json.loads(body) if is_json else body


def request(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    """A request; headers are given as Python spells names."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
