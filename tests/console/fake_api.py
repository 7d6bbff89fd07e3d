"""The administrators' API with canned answers: a busy day at example.org, the same every time.

`python -m tests.console.fake_api PORT` serves it, to look at the console without a proxy, as OPERATOR or VIEWER.
"""

from __future__ import annotations

import json
import math
import random
import sys
import threading
import time
from collections import Counter, deque
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from proxy.admin.console import console_routes

OPERATOR = "operator-token"
VIEWER = "viewer-token"
EVIL = '<img src=x onerror="window.hurt=1">\u202egpj.exe'
_ROLES = {OPERATOR: "operator", VIEWER: "viewer"}
_STEP_SECONDS = 2.0  # so much later it is at each look at the figures
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, None)
_NAMES = (
    "ada alice anna ben bob carla chris clara daniel david elena emil emma eva felix finn frida george greta hanna "
    "henry ida ines jakob jana jonas julia karl kim lara lea leo lina lisa louis lucas maja marie mark max mia mila "
    "nina noah nora olga oscar paul peter rosa ruth sam sara simon sofia theo tim tom vera will yara zoe"
)
_FIRST_NAMES = tuple(_NAMES.split())
_INITIALS = "bfghklmnrstw"
_BACKENDS = (
    ("dovecot-1", "up", True, 100, "", 421_337.0),
    ("dovecot-2", "up", True, 100, "", 421_337.0),
    ("dovecot-3", "drain", True, 100, "", 421_337.0),
    ("dovecot-4", "up", False, 100, "connect: cannot connect to 192.0.2.14:993: Connection refused", 48.0),
    ("dovecot-5", "up", True, 200, "", 86_112.0),
)


class FakeProxy:
    """A proxy as its API shows it; tests may change it from their own thread."""

    def __init__(self) -> None:
        self.tokens = dict(_ROLES)
        self.changes: list[tuple[str, dict[str, Any]]] = []  # what was asked for: verb, body
        self.warning = ""
        self.broken: set[str] = set()  # paths that are answered with 503
        self.readers: list[tuple[set[str], deque[dict[str, Any]]]] = []
        self.fleet: dict[str, Any] | None = dict(_FLEET)
        self.steps = 0
        self._random = random.Random(6)
        self._began = time.time()
        self.backends = [_backend(*each) for each in _BACKENDS]
        self.sessions = [self._session(number) for number in range(1243)]
        self._count()
        self._logins = Counter({"ok": 1_284_031, "authentication_failed": 20_551, "unavailable": 312, "limit": 1204})
        self._durations = {"login_seconds": [0.0] * len(_BOUNDS), "command_seconds": [0.0] * len(_BOUNDS)}
        self._commands = Counter({"FETCH": 9_100_200, "NOOP": 4_000_100, "SELECT": 2_100_000, "IDLE": 1_900_000})
        self._octets = {"up": 8.1e9, "down": 4.2e11}
        self._cpu = {"worker-1": 81_112.0, "worker-2": 80_990.0}

    # --- what it is like ---

    def _session(self, number: int) -> dict[str, Any]:
        """The first is a stranger's, whose name is no good."""
        first = self._random.choice(_FIRST_NAMES)
        user = EVIL if number == 0 else f"{first}.{self._random.choice(_INITIALS)}@example.org"
        if 1 <= number <= 4:
            user = "alice@example.org"
        homes = [each["name"] for each in self.backends if each["up"]]
        seconds = round(self._random.expovariate(1 / 4000), 1)
        return {
            "id": f"{number:012x}",
            "user": user,
            "client": f"198.51.100.{self._random.randrange(1, 250)}",
            "listener": self._random.choice(["[::]:993", "[::]:993", "[::]:143"]),
            "worker": self._random.choice(["worker-1", "worker-2"]),
            "backend": homes[hash_of(user) % len(homes)],
            "state": "open" if number % 97 else "logging_in",
            "why": "hash",
            "since": self._began - seconds,
            "seconds": seconds,
        }

    def _count(self) -> None:
        """Backends count their sessions."""
        for backend in self.backends:
            there = [each for each in self.sessions if each["backend"] == backend["name"]]
            backend |= {"sessions": len(there), "users": len({each["user"] for each in there})}

    def figures(self) -> dict[str, Any]:
        """What is counted; some time later with each look."""
        self.steps += 1
        wave = 1 + 0.35 * math.sin(self.steps / 19) + self._random.uniform(-0.08, 0.08)
        outage = 1.0 if 88 <= self.steps % 150 <= 104 else 0.0  # a backend is lost
        for outcome, rate in {"ok": 42, "authentication_failed": 4, "unavailable": 9 * outage, "limit": 0.5}.items():
            self._logins[outcome] += round(rate * wave * _STEP_SECONDS)
        for command, rate in {"FETCH": 610, "NOOP": 240, "SELECT": 150, "IDLE": 120}.items():
            self._commands[command] += round(rate * wave * _STEP_SECONDS)
        for key, middle, many in (("login_seconds", 0.034 + 0.05 * outage, 46), ("command_seconds", 0.007, 1100)):
            for _ in range(round(many * _STEP_SECONDS / 4)):
                took = self._random.lognormvariate(math.log(middle * wave), 0.6)
                for index, bound in enumerate(_BOUNDS):
                    if bound is None or took <= bound:
                        self._durations[key][index] += 1
        self._octets["up"] += 310_000 * wave * _STEP_SECONDS
        self._octets["down"] += 9_400_000 * wave * _STEP_SECONDS
        for worker in self._cpu:
            self._cpu[worker] += 0.31 * wave * _STEP_SECONDS
        return {
            "time": self._began + self.steps * _STEP_SECONDS,
            "sessions": len(self.sessions) + round(40 * math.sin(self.steps / 31)),
            "idle": round(len(self.sessions) * 0.71 + 25 * math.sin(self.steps / 31)),
            "logins": self._logins,
            **{key: self._histogram(key) for key in self._durations},
            "commands": self._commands,
            "octets": self._octets,
            "limits": {"connections_per_user": 1204.0},
            "backends": {each["name"]: {"sessions": 0, "logins": 0.0, "up": each["up"]} for each in self.backends},
            "workers": [
                {
                    "process": name,
                    "loop_delay_seconds": 0.0011 * wave,
                    "cpu_seconds": self._cpu[name],
                    "resident_bytes": 161.0 * 2**20,
                }
                for name in self._cpu
            ],
        }

    def _histogram(self, key: str) -> dict[str, Any]:
        counts = self._durations[key]
        return {"buckets": [*zip(_BOUNDS, counts, strict=True)], "sum": 0.0, "count": counts[-1]}

    def search(self, asked: dict[str, str]) -> dict[str, Any]:
        """Sessions, page by page."""
        keys = {"user": "user", "backend": "backend", "address": "client", "listener": "listener", "worker": "worker"}
        wanted = {field: asked[key] for key, field in keys.items() if key in asked}
        found = [each for each in self.sessions if all(each[key] == value for key, value in wanted.items())]
        after, limit = asked.get("after", ""), int(asked.get("limit", "100"))
        rest = [each for each in found if each["id"] > after]
        page = rest[:limit]
        return {"sessions": page, "total": len(found), "next": page[-1]["id"] if len(rest) > limit else None}

    def explain(self, name: str) -> dict[str, Any]:
        """A user; nobody knows those whose name begins with "no"."""
        if name.startswith("no"):
            return {**_STRANGER, "problem": "no source knows the name"}
        order = [
            {
                "name": each["name"],
                "weight": each["weight"],
                "state": each["state"],
                "up": each["up"],
                "score": round(11.6 / (place + 1), 4),
                "notes": ["home"] if place == 0 else ["no new homes"] if each["state"] == "drain" else [],
            }
            for place, each in enumerate(self.backends)
        ]
        sessions = [each for each in self.sessions if each["user"] == name]
        route = {
            "name": name, "source": "ldap", "pool": "", "pool_from": "", "override": "", "override_from": "",
            "key": name, "epoch": "3f17b7796023", "order": order, "home": "dovecot-1", "why": "hash",
            "whereabouts": {"backend": "dovecot-1", "sessions": len(sessions), "seconds": 4711.0,
                            "sticky_seconds": None, "sticky_holds": False, "moving": ""},
            "backend": "dovecot-1", "reason": "the highest score of those that take new homes", "running": True,
        }  # fmt: skip
        held = {
            "backend": "dovecot-1", "held": False, "until": None, "by": "ops", "since": self._began - 5400,
            "reason": "mailbox is being repaired, ticket 4711",
        }  # fmt: skip
        return {
            "route": route,
            "problem": "",
            "attributes": {"quota": "5GiB", "department": "research"},
            "source": "ldap",
            "directions": held if name.startswith("alice") else None,
            "limits": [
                {"limit": "connections_per_user", "most": 50, "left": 50 - len(sessions), "per_seconds": None},
                {"limit": "commands_per_user", "most": 2000, "left": 1612.0, "per_seconds": 60},
            ],
            "sessions": sessions,
            "failures": [
                {"time": self._began - 61, "client": "203.0.113.9", "mechanism": "PLAIN",
                 "outcome": "authentication_failed", "detail": "ldap: wrong password"},
                {"time": self._began - 3599, "client": "203.0.113.9", "mechanism": "LOGIN",
                 "outcome": "limit", "detail": "login_failures_per_user"},
            ],
        }  # fmt: skip

    def change(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Do what was asked for, so far as it shows."""
        self.changes.append((verb, body))
        done: dict[str, Any] = {"sessions": 3, "backend": body.get("backend"), "reloaded": "limits.connections: 20000"}
        if verb in ("drain", "undrain", "down", "weight"):
            view = next(each for each in self.backends if each["name"] == body["backend"])
            before = dict(view)
            view |= {"weight": body["weight"]} if verb == "weight" else {"state": "up" if verb == "undrain" else verb}
            done = {"before": before, "after": view}
        if verb == "trace":
            done = {"trace": "t1", "until": time.time() + body["seconds"]}
        if verb == "log-level":
            done = {"level": body["level"], "before": "info"}
        if "user" in body:
            done = {"user": body["user"], **done}
        target = {key: value for key, value in body.items() if key != "reason"}
        self.publish("audit", "admin.changed", caller="ops", verb=verb, **target, reason=body["reason"])
        return {"done": done, "warning": self.warning}

    def publish(self, kind: str, event: str, **values: Any) -> None:
        """Tell whoever reads events of that kind."""
        happened = {"time": time.time(), **values, "kind": kind, "event": event}
        for kinds, queue in self.readers:
            if kind in kinds or kind == "lost":
                queue.append(happened)


def hash_of(text: str) -> int:
    """A number for a text, the same in every run."""
    return sum(index * ord(letter) for index, letter in enumerate(text, 1))


def _backend(name: str, state: str, up: bool, weight: int, reason: str, seconds: float) -> dict[str, Any]:
    return {
        "name": name, "pool": "", "url": f"imaps://{name}.example.org", "discovered": False, "state": state,
        "weight": weight, "up": up, "health_seconds": seconds, "reason": reason, "failed_over": False, "sessions": 0,
        "users": 0, "logins_waiting": 0 if up else 7,
    }  # fmt: skip


_STRANGER = {
    "route": None,
    "attributes": {},
    "source": "",
    "directions": None,
    "limits": [],
    "sessions": [],
    "failures": [],
}
_FLEET = {"name": "porter-1", "up": True, "members": ["porter-1", "porter-2"], "error": None}
_STATUS = {
    "version": "0.6.0", "generation": 3, "draining": False,
    "last_reload": {"at": time.time() - 7260, "result": "ok", "text": ""},
    "processes": [
        {"process": name, "role": role, "pid": pid, "generation": 3, "since": time.time() - 86_400,
         "state": state, "sessions": sessions}
        for name, role, pid, state, sessions in (
            ("steward", "steward", 4102, "accepting", None),
            ("worker-1", "worker", 4103, "accepting", 631),
            ("worker-2", "worker", 4104, "accepting", 612),
        )
    ],
}  # fmt: skip
_LIMITS = {
    "limits": [
        {"limit": "connections", "value": 20000, "reached": {"refuse": 0}},
        {"limit": "connections_per_address", "value": 200, "reached": {"refuse": 31}},
        {"limit": "connections_per_user", "value": 50, "reached": {"refuse": 1204}},
        {"limit": "login_failures_per_address", "value": {"count": 20, "per": "10m", "ipv6_prefix": 64}, "reached": {}},
        {
            "limit": "commands_per_user",
            "value": {"rate": 2000, "per": "1m", "action": "delay"},
            "reached": {"delay": 88},
        },
        {"limit": "bytes_per_user", "value": None, "reached": {}},
    ]
}
_SETTINGS = {
    "settings": {
        "version": 1,
        "workers": 2,
        "listeners": [{"address": "[::]:993", "tls": "implicit"}, {"address": "[::]:143", "tls": "starttls"}],
        "backends": {"login": {"method": "master", "password": "Secret(file /run/secrets/master)"}, "failover": "30s"},
        "limits": {"connections": 20000, "connections_per_user": 50},
    },
    "differs": [
        {"key": "workers", "value": 2, "default": "auto"},
        {"key": "backends.failover", "value": "30s", "default": "never"},
        {"key": "limits.connections_per_user", "value": 50, "default": None},
    ],
}


def fake_app(proxy: FakeProxy) -> Starlette:
    """The API and the console, as the administrators' door has them."""

    async def answer(request: Request) -> Response:
        role = proxy.tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if role is None:
            return JSONResponse({"problem": "a token is needed"}, 401)
        path = request.path_params["path"]
        if path.split("/")[0] in proxy.broken:
            return JSONResponse({"problem": "the steward is busy"}, 503)
        if request.method == "POST":
            return await _post(proxy, role, path, request)
        if path == "status":
            return JSONResponse({**_STATUS, "fleet": proxy.fleet, "caller": {"name": "ops", "role": role}})
        return _get(proxy, path, dict(request.query_params))

    async def events(socket: WebSocket) -> None:
        if not any(each.startswith("bearer.") for each in socket.scope["subprotocols"]):
            await socket.close()
            return
        await socket.accept("porter.events")
        reader = (set(socket.query_params["kinds"].split(",")), deque[dict[str, Any]]())
        proxy.readers.append(reader)
        try:
            while True:
                while reader[1]:
                    await socket.send_text(json.dumps(reader[1].popleft()))
                with trio.move_on_after(0.05):
                    await socket.receive_text()
        except WebSocketDisconnect:
            pass
        finally:
            proxy.readers.remove(reader)

    return Starlette(
        routes=[
            *console_routes(),
            WebSocketRoute("/v1/events", events),
            Route("/v1/{path:path}", answer, methods=["GET", "POST"]),
        ]
    )


async def _post(proxy: FakeProxy, role: str, path: str, request: Request) -> Response:
    if role != "operator":
        return JSONResponse({"problem": "needs the role operator"}, 403)
    body = json.loads(await request.body())
    if not body.get("reason"):
        return JSONResponse({"problem": "reason: missing; say why, for the log"}, 400)
    return JSONResponse(proxy.change(path, body))


def _get(proxy: FakeProxy, path: str, query: dict[str, str]) -> Response:
    head, _, rest = path.partition("/")
    match head:
        case "sessions" if rest:
            found = [each for each in proxy.sessions if each["id"] == rest]
            details = {"mechanism": "PLAIN", "source": "ldap", "secure": True, "commands": 214, "octets_up": 18_212,
                       "octets_down": 4_711_000, "activity": "idle"}  # fmt: skip
            return JSONResponse({**found[0], **details}) if found else JSONResponse({"problem": "no such session"}, 404)
        case "sessions":
            return JSONResponse(proxy.search(query))
        case "explain":
            return JSONResponse(proxy.explain(rest))
    table: dict[str, Any] = {
        "backends": lambda: {"backends": proxy.backends}, "figures": proxy.figures,
        "limits": lambda: _LIMITS, "settings": lambda: _SETTINGS,
    }  # fmt: skip
    return JSONResponse(table[head]()) if head in table else JSONResponse({"problem": "not found"}, 404)


class FakeServer:
    """A fake proxy in a thread of its own, on a port; stop() and start() may be called again and again."""

    def __init__(self, port: int) -> None:
        self.proxy = FakeProxy()
        self.url = f"http://127.0.0.1:{port}"
        self._config = Config()
        self._config.bind = [f"127.0.0.1:{port}"]
        self._config.accesslog = self._config.errorlog = None
        self._config.graceful_timeout = 0.2
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._begun = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._thread.start()
        assert self._begun.wait(10)

    def stop(self) -> None:
        if self._thread is not None:
            self._token.run_sync_soon(self._ending.set)
            self._thread.join()
            self._thread = None

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._ending = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._serve)
            self._begun.set()
            await self._ending.wait()
            nursery.cancel_scope.cancel()

    async def _serve(self, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        await serve(fake_app(self.proxy), self._config, task_status=task_status)  # type: ignore[arg-type]


if __name__ == "__main__":
    server = FakeServer(int(sys.argv[1]))
    server.start()
    print(server.url)
