"""The administrator's API on a unix socket, by octets."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.admin import http
from proxy.admin.api import MAX_BODY_BYTES, admin_app
from proxy.admin.http import health_app, serve_http
from proxy.admin.unix_socket import private_listener
from proxy.model import Endpoint
from proxy.transport.listen import bind
from tests.admin.conftest import Lines
from tests.admin.houses import D1, D2, D3, STATUS, FakeHouse, open_house


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


async def send(path: Path, octets: bytes) -> tuple[int, Any]:
    """Send a request and read to the end of the connection."""
    with trio.fail_after(5):
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(octets)
            answer = b"".join([chunk async for chunk in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"cache-control: no-store" in head.lower()
    status = int(head.split(b" ")[1])
    return status, json.loads(body) if b"application/json" in head else body


async def get(path: Path, target: str) -> tuple[int, Any]:
    return await send(path, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("ascii"))


async def post(path: Path, target: str, body: bytes) -> tuple[int, Any]:
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return await send(path, head.encode("ascii") + body)


async def test_backends(path: Path) -> None:
    async with open_house(path, FakeHouse()):
        status, answer = await get(path, "/v1/backends")
    assert (status, answer) == (200, {"backends": [asdict(D1), asdict(D2)]})


async def test_a_change(path: Path, logged: Lines) -> None:
    async with open_house(path, FakeHouse(D3)) as house:
        body = b'{"state": "drain", "over_seconds": 60, "reason": "\\ud800\\u001b"}'
        status, answer = await post(path, "/v1/backends/d1", body)
    assert status == 200
    assert answer == {"before": asdict(D1), "after": asdict(replace(D1, state="drain")), "warning": ""}
    assert house.drains == [("d1", 60)]
    (line,) = logged()
    assert (line["event"], line["reason"]) == ("admin.changed", r"\ud800\x1b")


ROUTES = [
    ("/v1/route/alice%40example.org", 200, {"name": "alice@example.org"}),
    ("/v1/route/a%2Fb", 200, {"name": "a/b"}),
    ("/v1/route/..", 200, {"name": ".."}),
    ("/v1/route/nobody", 422, {"problem": "nobody knows nobody"}),
    ("/v1/route/%ff%1b", 422, {"problem": "nobody knows \ufffd\x1b"}),
    ("/v1/route/", 422, {"problem": "nobody knows "}),
    ("/v1/route/out", 503, {"problem": "the directory is out"}),
]


@pytest.mark.parametrize(("target", "status", "answer"), ROUTES, ids=[row[0] for row in ROUTES])
async def test_route(path: Path, target: str, status: int, answer: dict[str, str]) -> None:
    house = FakeHouse()
    house.routes = {name: {"name": name} for name in ("alice@example.org", "a/b", "..")}
    async with open_house(path, house):
        assert await get(path, target) == (status, answer)


REFUSED = [
    ("unknown backend", "/v1/backends/d9", b'{"state": "down", "reason": "x"}', 404, 'no such backend: "d9"'),
    (
        "nowhere to move",
        "/v1/backends/d1",
        b'{"state": "drain", "over_seconds": 60, "reason": "x"}',
        409,
        "no other backend without a tag takes homes; its users would be sent away and refused",
    ),
    ("no reason", "/v1/backends/d1", b'{"state": "down"}', 400, "reason: missing; say why, for the log"),
    ("no JSON", "/v1/backends/d1", b"state=down", 400, "the body is no JSON"),
    ("no UTF-8", "/v1/backends/d1", b'{"state": "\xff"}', 400, "the body is no JSON"),
    ("too deep", "/v1/backends/d1", b"[" * MAX_BODY_BYTES, 400, "the body is no JSON"),
    ("no object", "/v1/backends/d1", b"[]", 400, "the body is no JSON object"),
    ("too large", "/v1/backends/d1", b" " * (MAX_BODY_BYTES + 1), 413, "the body is larger than 4096 octets"),
]


@pytest.mark.parametrize(("name", "target", "body", "status", "problem"), REFUSED, ids=[row[0] for row in REFUSED])
async def test_refused(
    path: Path, logged: Lines, name: str, target: str, body: bytes, status: int, problem: str
) -> None:
    async with open_house(path, FakeHouse()) as house:
        assert await post(path, target, body) == (status, {"problem": problem})
    assert house.backends() == [D1, D2]
    assert logged() == []


@pytest.mark.parametrize("target", ["/", "/v1/backends/", "/v1/backends/d1/x"])
async def test_other_paths(path: Path, target: str) -> None:
    async with open_house(path, FakeHouse()):
        assert (await get(path, target))[0] in (404, 405)


async def test_another_user_is_refused_whatever_he_asks(path: Path, logged: Lines) -> None:
    async with open_house(path, FakeHouse(), uids={4711}) as house:
        assert (await post(path, "/v1/reload", b"{}"))[0] == 403
        assert house.reloads == 0
        assert (await get(path, "/v1/backends"))[0] == 403
        assert (await post(path, "/v1/backends/d1", b'{"state": "down", "reason": "x"}'))[0] == 403
        assert (await get(path, "/nothing"))[0] == 403
    assert house.backends() == [D1, D2]
    assert {line["event"] for line in logged()} == {"admin.refused"}


async def test_by_network_nobody_may_ask(logged: Lines) -> None:
    app = admin_app(FakeHouse(), {0, os.getuid()})
    with bind(Endpoint("127.0.0.1", 0)) as listening:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, app, listening)
            stream = await trio.open_tcp_stream(*listening.getsockname())
            await stream.send_all(b"GET /v1/backends HTTP/1.1\r\nHost: x\r\n\r\n")
            with trio.fail_after(5):
                assert b" 403 " in await stream.receive_some()
            await stream.aclose()
            nursery.cancel_scope.cancel()
    assert [(line["event"], line["uid"]) for line in logged()] == [("admin.refused", None)]


async def test_a_client_that_leaves_in_the_middle(path: Path, logged: Lines) -> None:
    async with open_house(path, FakeHouse()) as house:
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(b"POST /v1/backends/d1 HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n{")
            await stream.send_eof()
            with trio.fail_after(5):
                async for _ in stream:
                    pass
        assert (await get(path, "/v1/backends"))[0] == 200
    assert house.backends() == [D1, D2]
    assert logged() == []


async def test_other_applications_fit_on_the_socket(path: Path) -> None:
    with private_listener(path) as listening:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, health_app(lambda: (True, {})), listening)
            assert await get(path, "/livez") == (200, {"live": True})
            nursery.cancel_scope.cancel()


async def test_status(path: Path) -> None:
    async with open_house(path, FakeHouse()):
        assert await get(path, "/v1/status") == (200, STATUS)


async def test_reload(path: Path, logged: Lines) -> None:
    async with open_house(path, FakeHouse()) as house:
        assert await post(path, "/v1/reload", b"") == (200, {"reloaded": "generation 4; changed: workers"})
        house.mistakes = "porter.yaml:3: no"
        assert await post(path, "/v1/reload", b"{}") == (409, {"problem": "porter.yaml:3: no"})
        assert (await get(path, "/v1/reload"))[0] == 405
    assert house.reloads == 2
    assert [(line["event"], line["uid"]) for line in logged()] == [("admin.reload_asked", os.getuid())] * 2


async def test_one_connection_too_many_is_closed_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 1)
    async with open_house(path, FakeHouse()), await trio.open_unix_socket(str(path)):
        second = await trio.open_unix_socket(str(path))
        with trio.fail_after(5):
            assert await second.receive_some() == b""
        await second.aclose()
