"""The administrators' API on a unix socket, by octets."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio
import trio.testing

from proxy.admin import http
from proxy.admin.api import local_app
from proxy.admin.events import Kind
from proxy.admin.guard import MAX_BODY_BYTES
from proxy.admin.http import health_app, serve_http
from proxy.admin.unix_socket import private_listener
from proxy.admin.verbs import CHANGES, VERBS, Verb
from proxy.model import Endpoint
from proxy.transport.listen import bind
from tests.admin.conftest import Lines
from tests.admin.houses import D1, D2, D3, LOOKS, ROUTE, STATUS, FakeHouse, exchange, open_house, request


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


async def send(path: Path, octets: bytes) -> tuple[int, Any]:
    async with await trio.open_unix_socket(str(path)) as stream:
        status, headers, answer = await exchange(stream, octets)
    assert headers["cache-control"] == "no-store"
    return status, answer


async def get(path: Path, target: str) -> tuple[int, Any]:
    return await send(path, request("GET", target, host="x"))


async def post(path: Path, target: str, body: bytes) -> tuple[int, Any]:
    return await send(path, request("POST", target, body, host="x"))


# Every verb, and a question that it answers.
ASKED: dict[str, dict[str, Any]] = {
    "status": {},
    "generations": {},
    "backends": {},
    "sessions": {"user": "ü/?&", "limit": 3, "after": "s0"},
    "session": {"session": "s1"},
    "users": {"limit": 5},
    "top": {},
    "route": {"name": "alice@example.org"},
    "explain": {"name": "a/b c"},
    "limits": {},
    "settings": {},
    "figures": {},
    "openapi": {},
    "kick": {"user": "alice", "reason": "x"},
    "drain": {"backend": "d1", "reason": "x"},
    "undrain": {"backend": "d1", "reason": "x"},
    "down": {"backend": "d2", "reason": "x"},
    "weight": {"backend": "d1", "weight": 0, "reason": "x"},
    "move": {"user": "alice", "backend": "d1", "for_seconds": 60.0, "reason": "x"},
    "hold": {"user": "alice", "reason": "x"},
    "release": {"user": "alice", "reason": "x"},
    "reload": {"reason": "x"},
    "log-level": {"level": "debug", "reason": "x"},
    "trace": {"user": "alice", "seconds": 5.0, "reason": "x"},
    "untrace": {"trace": "t1", "reason": "x"},
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_every_verb(path: Path, logged: Lines, verb: Verb) -> None:
    """As it is asked from Python, and answered as its type says."""
    question = verb.ask(**ASKED[verb.name])
    async with open_house(path, FakeHouse()) as house:
        with house.hub.subscribe([Kind.AUDIT]) as reader:
            status, answer = await send(
                path, request(verb.method, verb.target(question), verb.body(question) or b"", host="x")
            )
            assert status == 200, answer
            verb.answer.model_validate(answer)
            lines = [line for line in logged() if line["event"] == "admin.changed"]
            if verb.method == "GET":
                assert house.looks == ([] if verb.name == "openapi" else [(verb.name, question)])
                assert lines == []
                return
            (line,) = lines
            assert (line["verb"], line["caller"], line["reason"]) == (verb.name, f"uid {os.getuid()}", "x")
            with trio.fail_after(5):
                event = await anext(reader)
            assert (event["event"], event["verb"], event["reason"]) == ("admin.changed", verb.name, "x")


def test_every_verb_is_asked() -> None:
    assert ASKED.keys() == VERBS.keys()
    assert set(CHANGES) == {name for name, values in ASKED.items() if "reason" in values}
    assert set(LOOKS) == set(VERBS) - set(CHANGES) - {"openapi", "route"}


async def test_a_change(path: Path, logged: Lines) -> None:
    async with open_house(path, FakeHouse(D3)) as house:
        body = b'{"backend": "d1", "over_seconds": 60, "reason": "new \\u001b"}'
        status, answer = await post(path, "/v1/drain", body)
    assert status == 200
    assert answer == {"done": {"before": asdict(D1), "after": asdict(replace(D1, state="drain"))}, "warning": ""}
    assert house.drains == [("d1", 60)]
    (line,) = logged()
    assert (line["event"], line["backend"], line["reason"]) == ("admin.changed", "d1", r"new \x1b")


ROUTES = [
    ("/v1/route/alice%40example.org", 200, ROUTE),
    ("/v1/route/a%2Fb", 200, {"name": "a/b"}),
    ("/v1/route/..", 200, {"name": ".."}),
    ("/v1/route/nobody", 422, {"problem": "nobody knows nobody"}),
    ("/v1/route/%ff%1b", 422, {"problem": "nobody knows \ufffd\x1b"}),
    ("/v1/route/", 400, {"problem": "name: String should have at least 1 character"}),
    ("/v1/route/out", 503, {"problem": "the directory is out"}),
]


@pytest.mark.parametrize(("target", "status", "answer"), ROUTES, ids=[row[0] for row in ROUTES])
async def test_route(path: Path, target: str, status: int, answer: dict[str, str]) -> None:
    house = FakeHouse()
    house.routes |= {name: {"name": name} for name in ("a/b", "..")}
    async with open_house(path, house):
        assert await get(path, target) == (status, answer)


NOWHERE = "no other backend without a tag takes homes; its users would be sent away and refused"
REFUSED = [
    ("unknown backend", "down", b'{"backend": "d9", "reason": "x"}', 404, 'no such backend: "d9"'),
    ("nowhere to move", "drain", b'{"backend": "d1", "over_seconds": 60, "reason": "x"}', 409, NOWHERE),
    ("unknown session", "kick", b'{"session": "gone", "reason": "x"}', 404, "there is no such session any more"),
    ("two to kick", "kick", b'{"session": "a", "user": "b", "reason": "x"}', 400, "expected exactly one of session"),
    ("nobody to kick", "kick", b'{"reason": "x"}', 400, "expected exactly one of session, user, address and backend"),
    ("nothing to release", "release", b'{"user": "nobody", "reason": "x"}', 404, "the user is neither moved nor held"),
    ("too many traces", "trace", b'{"user": "ninth", "reason": "x"}', 409, "there are too many traces already"),
    ("unknown trace", "untrace", b'{"trace": "t9", "reason": "x"}', 404, "there is no such trace any more"),
    ("no name", "hold", b'{"user": "a\\nb", "reason": "x"}', 422, "it is no name"),
    ("moved to nowhere", "move", b'{"user": "a", "backend": "d9", "reason": "x"}', 404, 'no such backend: "d9"'),
    ("no reason", "down", b'{"backend": "d1"}', 400, "reason: missing; say why, for the log"),
    ("an empty reason", "reload", b'{"reason": " "}', 400, "reason: String should have at least 1 character"),
    ("a long reason", "reload", b'{"reason": "%s"}' % (b"x" * 201), 400, "reason: String should have at most 200"),
    ("unknown key", "reload", b'{"reason": "x", "force": 1}', 400, "force: unknown; known: reason"),
    ("not in bounds", "weight", b'{"backend": "d1", "weight": 1001, "reason": "x"}', 400, "weight: Input should be"),
    ("no number", "weight", b'{"backend": "d1", "weight": "1", "reason": "x"}', 400, "weight: Input should be a valid"),
    ("not finite", "drain", b'{"backend": "d1", "over_seconds": NaN, "reason": "x"}', 400, "over_seconds: Input"),
    ("another level", "log-level", b'{"level": "all", "reason": "x"}', 400, "level: Input should be 'debug'"),
    ("no JSON", "down", b"state=down", 400, "the body is no JSON"),
    ("no UTF-8", "down", b'{"backend": "\xff"}', 400, "the body is no JSON"),
    ("no characters", "down", b'{"backend": "\\ud800"}', 400, "the body is no JSON"),
    ("too deep", "down", b"[" * MAX_BODY_BYTES, 400, "the body is no JSON"),
    ("no object", "down", b"[]", 400, "the body is no JSON object"),
    ("nothing", "down", b"", 400, "the body is no JSON"),
    ("too large", "down", b" " * (MAX_BODY_BYTES + 1), 413, "the body is larger than 4096 octets"),
]


@pytest.mark.parametrize(("name", "verb", "body", "status", "text"), REFUSED, ids=[row[0] for row in REFUSED])
async def test_refused(path: Path, logged: Lines, name: str, verb: str, body: bytes, status: int, text: str) -> None:
    async with open_house(path, FakeHouse()) as house:
        answered, answer = await post(path, f"/v1/{verb}", body)
    assert (answered, answer["problem"][: len(text)]) == (status, text)
    assert house.backends() == [D1, D2]
    assert logged() == []


QUERIES = [
    ("/v1/sessions?limit=0", "limit: Input should be greater than or equal to 1"),
    ("/v1/sessions?limit=1001", "limit: Input should be less than or equal to 1000"),
    ("/v1/sessions?limit=x", "limit: Input should be a valid integer"),
    ("/v1/sessions?who=x", "who: unknown; known: user, backend, address"),
    ("/v1/status?x=y", "x: unknown; known: nothing"),
    (f"/v1/sessions?user={'x' * 513}", "user: String should have at most 512"),
]


@pytest.mark.parametrize(("target", "text"), QUERIES, ids=[row[1] for row in QUERIES])
async def test_a_query_with_a_mistake(path: Path, target: str, text: str) -> None:
    async with open_house(path, FakeHouse()) as house:
        status, answer = await get(path, target)
    assert (status, answer["problem"][: len(text)]) == (400, text)
    assert house.looks == []


@pytest.mark.parametrize(("target", "status"), [("/", 404), ("/v1/backends/d1", 404), ("/v1/drain", 405)])
async def test_other_paths(path: Path, target: str, status: int) -> None:
    async with open_house(path, FakeHouse()):
        answered, answer = await get(path, target)
    assert answered == status
    assert answer.keys() == {"problem"}


async def test_another_user_is_refused_whatever_he_asks(path: Path, logged: Lines) -> None:
    async with open_house(path, FakeHouse(), uids={4711}) as house:
        assert (await post(path, "/v1/reload", b'{"reason": "x"}'))[0] == 403
        assert house.reloads == 0
        assert (await get(path, "/v1/backends"))[0] == 403
        assert (await post(path, "/v1/down", b'{"backend": "d1", "reason": "x"}'))[0] == 403
        assert (await get(path, "/nothing"))[0] == 403
    assert house.backends() == [D1, D2]
    (line,) = logged()  # once a minute
    assert (line["event"], line["why"], line["uid"]) == ("admin.refused", "user", os.getuid())


async def test_by_network_nobody_may_ask(logged: Lines) -> None:
    """What is meant for the socket lets nobody in elsewhere."""
    app = local_app(FakeHouse(), {0, os.getuid()})
    with bind(Endpoint("127.0.0.1", 0)) as listening:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, app, listening)
            async with await trio.open_tcp_stream(*listening.getsockname()) as stream:
                assert (await exchange(stream, request("GET", "/v1/backends", host="x")))[0] == 403
            nursery.cancel_scope.cancel()
    assert [(line["event"], line["uid"]) for line in logged()] == [("admin.refused", None)]


async def test_a_client_that_leaves_in_the_middle(path: Path, logged: Lines) -> None:
    async with open_house(path, FakeHouse()) as house:
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(b"POST /v1/down HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n{")
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
        asker = {"name": f"uid {os.getuid()}", "role": "operator"}
        assert await get(path, "/v1/status") == (200, {**STATUS, "caller": asker})


async def test_reload(path: Path, logged: Lines) -> None:
    body = json.dumps({"reason": "x"}).encode()
    done = {"done": {"reloaded": "generation 4; changed: workers"}, "warning": ""}
    async with open_house(path, FakeHouse()) as house:
        assert await post(path, "/v1/reload", body) == (200, done)
        house.mistakes = "porter.yaml:3: no"
        assert await post(path, "/v1/reload", body) == (409, {"problem": "porter.yaml:3: no"})
        assert (await get(path, "/v1/reload"))[0] == 405
    assert house.reloads == 2
    assert [line["event"] for line in logged()] == ["admin.reload_asked", "admin.changed", "admin.reload_asked"]


async def test_one_connection_too_many(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the place of one that asks nothing; where there is none it is closed at once."""
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 1)
    async with open_house(path, FakeHouse()), await trio.open_unix_socket(str(path)) as first:
        assert (await get(path, "/v1/backends"))[0] == 200
        with trio.fail_after(5):
            assert await first.receive_some() == b""
        async with await trio.open_unix_socket(str(path)) as asking:
            await asking.send_all(b"POST /v1/down HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n{")
            await trio.testing.wait_all_tasks_blocked(0.05)
            with trio.fail_after(5):
                async with await trio.open_unix_socket(str(path)) as third:
                    assert await third.receive_some() == b""


ADDRESSES = [
    ("192.0.2.7", "192.0.2.7"),
    ("2001:DB8:0:0::A", "2001:db8::a"),
    ("::ffff:192.0.2.7", "192.0.2.7"),
    ("::FFFF:c000:207", "192.0.2.7"),
    ("192.0.2", None),
    ("192.0.2.0/24", None),
    ("[2001:db8::a]", None),
    ("mail.example.org", None),
    ("", None),
]


@pytest.mark.parametrize(("spelled", "address"), ADDRESSES, ids=[row[0] for row in ADDRESSES])
async def test_addresses_are_had_as_sessions_have_them(
    path: Path, logged: Lines, spelled: str, address: str | None
) -> None:
    async with open_house(path, FakeHouse()) as house:
        body = json.dumps({"address": spelled, "reason": "x"}).encode()
        answers = [await get(path, f"/v1/sessions?address={quote(spelled)}"), await post(path, "/v1/kick", body)]
    if address is None:
        problem = "address: expected an IP address, e.g. 192.0.2.7"
        assert answers == [(400, {"problem": problem})] * 2
        assert (house.looks, house.asked) == ([], [])
        return
    assert [status for status, _ in answers] == [200, 200]
    ((_, looked),), ((_, kicked),) = house.looks, house.asked
    assert (looked.address, kicked.address) == (address, address)
