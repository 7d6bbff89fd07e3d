"""The hub, and events over a WebSocket: many readers, one of them frozen, and whoever may not read."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection
from trio_websocket import wrap_client_stream as wrap

from proxy.admin import events, http
from proxy.admin.events import Event, Hub, Kind, Reader, TooManyReaders
from proxy.model import Endpoint
from tests.admin.houses import OPERATOR, VIEWER, FakeHouse, exchange, open_address, open_house, request

# --- the hub ---


async def take(reader: Reader, number: int) -> list[Event]:
    with trio.fail_after(5):
        return [await anext(reader) for _ in range(number)]


async def test_readers_have_what_they_want() -> None:
    hub, wanted = Hub(), []
    hub.on_wanted = lambda: wanted.append(hub.wanted)
    hub.publish(Kind.SESSION, "session.opened", id="s0")
    with hub.subscribe([Kind.SESSION, Kind.LIMIT]) as first, hub.subscribe([Kind.LIMIT]) as second:
        for kind in Kind:
            hub.publish(kind, f"{kind}.happened", of="x")
        assert [event["event"] for event in await take(first, 2)] == ["session.happened", "limit.happened"]
        (event,) = await take(second, 1)
        assert {**event, "time": 0} == {"time": 0, "kind": "limit", "event": "limit.happened", "of": "x"}
        assert json.loads(event.text) == event
    both = frozenset({Kind.SESSION, Kind.LIMIT})
    assert wanted == [both, frozenset()]


async def test_one_that_is_slow_is_told_of_its_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_QUEUED", 3)
    hub = Hub()
    with hub.subscribe([Kind.AUDIT]) as slow, hub.subscribe([Kind.AUDIT]) as quick:
        seen = []
        for number in range(7):
            hub.publish(Kind.AUDIT, "admin.changed", number=number)
            seen += await take(quick, 1)
        assert [event["number"] for event in seen] == [*range(7)]
        lost, *rest = await take(slow, 4)
        assert (lost["kind"], lost["events"]) == ("lost", 4)
        assert [event["number"] for event in rest] == [4, 5, 6]


async def test_readers_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_READERS", 2)
    hub = Hub()
    with hub.subscribe([Kind.AUDIT], "ops"), hub.subscribe([Kind.AUDIT], "office"):
        with pytest.raises(TooManyReaders), hub.subscribe([Kind.AUDIT], "third"):
            pass
        assert len(hub) == 2
    with hub.subscribe([Kind.AUDIT], "third"):
        assert len(hub) == 1


async def test_nobody_has_more_than_half_of_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_READERS", 4)
    hub = Hub()
    with hub.subscribe([Kind.AUDIT], "ops"):
        with hub.subscribe([Kind.LIMIT], "ops"):
            with pytest.raises(TooManyReaders, match="2 of them for ops"), hub.subscribe([Kind.AUDIT], "ops"):
                pass
            with hub.subscribe([Kind.AUDIT], "office"), hub.subscribe([Kind.AUDIT], "office"):
                assert len(hub) == 4
        with hub.subscribe([Kind.AUDIT], "ops"):  # in the place of the one that has left
            assert len(hub) == 2


async def test_who_waits_is_woken() -> None:
    hub = Hub()
    with hub.subscribe([Kind.AUDIT]) as reader:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, reader, 1)
            await trio.testing.wait_all_tasks_blocked()
            hub.publish(Kind.AUDIT, "admin.changed")


# --- over WebSockets ---


@asynccontextmanager
async def reading(
    endpoint: Endpoint, query: str = "", *, token: str = OPERATOR, host: str = "localhost", origin: str = ""
) -> AsyncIterator[WebSocketConnection]:
    headers = [(b"authorization", f"Bearer {token}".encode())]
    headers += [(b"origin", origin.encode())] if origin else []
    async with trio.open_nursery() as nursery:
        stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
        with trio.fail_after(5):
            websocket = await wrap(
                nursery, stream, host, f"/v1/events{query}", subprotocols=["porter.events"], extra_headers=headers
            )
        try:
            yield websocket
        finally:
            nursery.cancel_scope.cancel()
            await trio.aclose_forcefully(stream)


async def next_of(websocket: WebSocketConnection) -> Mapping[str, Any]:
    with trio.fail_after(5):
        document: Mapping[str, Any] = json.loads(await websocket.get_message())
    return document


async def test_events_arrive() -> None:
    house = FakeHouse()
    async with open_address(house) as endpoint, reading(endpoint, "?kinds=session,backend") as websocket:
        assert websocket.subprotocol == "porter.events"
        house.hub.publish(Kind.AUDIT, "admin.changed")
        house.hub.publish(Kind.SESSION, "session.opened", user="\udcffé")
        event = await next_of(websocket)
        assert (event["kind"], event["event"], event["user"]) == ("session", "session.opened", "\udcffé")
        assert event["time"] > 0


async def test_on_the_socket_too(tmp_path: Path) -> None:
    async with open_house(tmp_path / "admin.sock", FakeHouse(), {os.getuid()}) as house:
        async with trio.open_nursery() as nursery:
            stream = await trio.open_unix_socket(str(tmp_path / "admin.sock"))
            websocket = await wrap(nursery, stream, "localhost", "/v1/events")
            house.hub.publish(Kind.TRACE, "trace.line", text="a NOOP")
            assert (await next_of(websocket))["text"] == "a NOOP"
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)


def upgrade(query: str = "", **headers: str) -> bytes:
    """A WebSocket's first octets, by hand."""
    told = {
        "host": "localhost",
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec_websocket_version": "13",
        "sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    return request("GET", f"/v1/events{query}", **{**told, **headers})


def shown(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def offered(token: bytes) -> dict[str, str]:
    """As browsers can."""
    encoded = base64.urlsafe_b64encode(token).rstrip(b"=").decode()
    return {"sec_websocket_protocol": f"porter.events, bearer.{encoded}"}


async def test_browsers_show_their_token_as_a_subprotocol() -> None:
    async with open_address(FakeHouse()) as endpoint:
        async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
            await stream.send_all(upgrade(**offered(OPERATOR.encode())))
            with trio.fail_after(5):
                answer = (await stream.receive_some()).lower()
        assert answer.startswith(b"http/1.1 101 ")
        assert b"\r\nsec-websocket-protocol: porter.events\r\n" in answer
        assert OPERATOR.encode() not in answer


REJECTED: list[tuple[str, int, str, dict[str, str], str]] = [
    ("no token", 401, "", {}, "a token is needed"),
    ("a wrong token", 401, "", shown("wrong"), "nobody has this token"),
    ("a wrong token as a subprotocol", 401, "", offered(b"wrong"), "nobody has this token"),
    ("a subprotocol that is none", 401, "", {"sec_websocket_protocol": "bearer.%"}, "nobody has this token"),
    ("a token that is no text", 401, "", offered(b"\xff"), "nobody has this token"),
    ("another host", 403, "", {**shown(OPERATOR), "host": "evil.example.org"}, "this Host is not answered"),
    ("another origin", 403, "", {**shown(OPERATOR), "origin": "http://evil.example.org"}, "pages of this Origin"),
    ("no such kind", 400, "?kinds=session,weather", shown(OPERATOR), "kinds: expected some of session,backend"),
    ("no kind", 400, "?kinds=", shown(OPERATOR), "kinds: expected some of"),
    ("a viewer and traces", 403, "?kinds=audit,trace", shown(VIEWER), "office is a viewer, and traces are for an"),
]


@pytest.mark.parametrize(("name", "status", "query", "headers", "text"), REJECTED, ids=[row[0] for row in REJECTED])
async def test_rejected(name: str, status: int, query: str, headers: dict[str, str], text: str) -> None:
    house = FakeHouse()
    async with open_address(house) as endpoint, await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
        answered, told, answer = await exchange(stream, upgrade(query, **headers))
    assert (answered, answer["problem"][: len(text)]) == (status, text)
    assert told["x-content-type-options"] == "nosniff"
    assert len(house.hub) == 0


async def test_a_viewer_reads_all_but_traces() -> None:
    house = FakeHouse()
    async with open_address(house) as endpoint, reading(endpoint, token=VIEWER) as websocket:
        house.hub.publish(Kind.TRACE, "trace.line")
        house.hub.publish(Kind.AUDIT, "admin.changed")
        assert (await next_of(websocket))["kind"] == "audit"


async def test_a_reader_stays_longer_than_other_connections_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.1)
    house = FakeHouse()
    async with open_address(house, connection_seconds=0.2) as endpoint, reading(endpoint) as websocket:
        async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as other:
            with trio.fail_after(5):
                assert await other.receive_some() == b""  # whose time is over
        house.hub.publish(Kind.AUDIT, "admin.changed")
        assert (await next_of(websocket))["kind"] == "audit"


async def test_readers_take_no_room_from_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 1)
    house = FakeHouse()
    async with open_address(house) as endpoint, reading(endpoint), reading(endpoint):
        assert len(house.hub) == 2
        async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
            octets = request("GET", "/v1/status", host="localhost", authorization=f"Bearer {OPERATOR}")
            assert (await exchange(stream, octets))[0] == 200


async def until(hub: Hub, readers: int) -> None:
    with trio.fail_after(5):
        while True:
            if len(hub) == readers:
                return
            await trio.sleep(0.01)


async def test_one_that_leaves_is_forgotten() -> None:
    house = FakeHouse()
    async with open_address(house) as endpoint:
        async with reading(endpoint) as websocket:
            house.hub.publish(Kind.AUDIT, "admin.changed")
            await next_of(websocket)  # and with it the first ping
            with trio.fail_after(5):
                await websocket.aclose()
            await until(house.hub, 0)
        async with reading(endpoint):
            assert len(house.hub) == 1
        await until(house.hub, 0)
        assert house.hub.wanted == frozenset()


async def test_readers_have_nothing_to_say() -> None:
    house = FakeHouse()
    async with open_address(house) as endpoint, reading(endpoint) as websocket:
        await websocket.send_message("hello")
        with trio.fail_after(5), pytest.raises(ConnectionClosed) as raised:
            await websocket.get_message()
        assert raised.value.reason is not None
        assert raised.value.reason.code == 1003
        await until(house.hub, 0)


async def test_too_many_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token has half of the places."""
    monkeypatch.setattr(events, "MAX_READERS", 2)
    async with open_address(FakeHouse()) as endpoint, reading(endpoint):
        async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
            status, _, answer = await exchange(stream, upgrade(**shown(OPERATOR)))
        assert (status, answer) == (503, {"problem": "1 read events already, 1 of them for ops"})
        async with reading(endpoint, token=VIEWER) as websocket:
            assert websocket.subprotocol == "porter.events"


READERS, EVENTS = 100, 30


async def test_a_hundred_readers_and_a_frozen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others have everything, while one reads nothing until it is dropped."""
    monkeypatch.setattr(http, "WRITE_SECONDS", 0.5)
    house, seen = FakeHouse(), []
    text = "x" * 2000

    async def read(endpoint: Endpoint, ready: trio.Event, number: int) -> None:
        async with reading(endpoint) as websocket:
            if len(house.hub) >= READERS + 1:
                ready.set()
            for _ in range(EVENTS):
                event = await next_of(websocket)
                assert event["kind"] == "audit"
            seen.append(number)

    async with open_address(house) as endpoint:
        frozen = await trio.open_tcp_stream(endpoint.host, endpoint.port)
        await frozen.send_all(upgrade(**shown(OPERATOR)))
        await until(house.hub, 1)
        async with trio.open_nursery() as nursery:
            ready = trio.Event()
            for number in range(READERS):
                nursery.start_soon(read, endpoint, ready, number)
            with trio.fail_after(30):
                await ready.wait()
            for _ in range(EVENTS):
                house.hub.publish(Kind.AUDIT, "admin.changed", text=text)
        assert sorted(seen) == [*range(READERS)]
        with trio.fail_after(30):  # what the kernel takes for the frozen one comes to an end
            while True:
                house.hub.publish(Kind.AUDIT, "admin.changed", text=text * 100)
                await trio.sleep(0.005)
                if not len(house.hub):
                    break
            while await frozen.receive_some():
                pass
        await frozen.aclose()
