"""The side door over real loopback sockets, on whatever port is free."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.admin import http
from proxy.admin.http import health_app, metrics_app, serve_http
from proxy.model import Endpoint
from proxy.observe import metrics
from proxy.transport.listen import bind
from tests.admin.conftest import Lines

LOOPBACK = Endpoint("127.0.0.1", 0)


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[Endpoint]:
    with bind(LOOPBACK) as listening:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, app, listening)
            yield Endpoint(LOOPBACK.host, listening.getsockname()[1])
            nursery.cancel_scope.cancel()


async def ask(endpoint: Endpoint, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send the octets and read to the end of the connection."""
    with trio.fail_after(5):
        async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
            await stream.send_all(request)
            answer = b"".join([chunk async for chunk in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(status.split(" ")[1]), headers, body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("ascii")


async def test_metrics_are_what_prometheus_reads() -> None:
    async with serving(metrics_app()) as endpoint:
        status, headers, body = await ask(endpoint, get("/metrics"))
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"porter_log_lines_dropped", "porter_process_cpu_seconds"} <= names


async def test_health_follows_readiness() -> None:
    state = {"ready": False, "sessions": 3}
    async with serving(health_app(lambda: (bool(state["ready"]), state))) as endpoint:
        assert (await ask(endpoint, get("/livez")))[0] == 200
        status, _, body = await ask(endpoint, get("/readyz"))
        assert (status, json.loads(body)) == (503, {"ready": False, "sessions": 3})
        state["ready"] = True
        assert (await ask(endpoint, get("/readyz")))[0] == 200


REFUSED = [
    ("another path", get("/nothing"), 404),
    ("another method", b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nab", 405),
    ("not HTTP", b"a LOGIN ann pw\r\n\r\n", 400),
    ("endless headers", b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (http.MAX_HEADER_BYTES + 100), 431),
]


@pytest.mark.parametrize(("name", "request_", "expected"), REFUSED, ids=[row[0] for row in REFUSED])
async def test_refused(name: str, request_: bytes, expected: int) -> None:
    async with serving(metrics_app()) as endpoint:
        status, headers, _ = await ask(endpoint, request_)
    assert status == expected
    assert "server" not in headers
    assert headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/metrics", "/nothing"])
async def test_every_answer_has_safe_headers(path: str) -> None:
    async with serving(metrics_app()) as endpoint:
        _, headers, _ = await ask(endpoint, get(path))
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


async def test_whoever_opened_the_socket_still_has_it() -> None:
    with bind(LOOPBACK) as listening:
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_http, metrics_app(), listening)
                endpoint = Endpoint(LOOPBACK.host, listening.getsockname()[1])
                assert (await ask(endpoint, get("/metrics")))[0] == 200
                nursery.cancel_scope.cancel()


async def test_an_answer_under_way_gets_out_when_the_server_stops() -> None:
    asked, stopped = trio.Event(), trio.Event()

    async def answer(_request: Request) -> Response:
        asked.set()
        await stopped.wait()
        return Response("fine")

    async def ask_slowly() -> None:
        assert (await ask(endpoint, get("/")))[::2] == (200, b"fine")

    with bind(LOOPBACK) as listening:
        endpoint = Endpoint(LOOPBACK.host, listening.getsockname()[1])
        async with trio.open_nursery() as clients, trio.open_nursery() as nursery:
            await nursery.start(serve_http, Starlette(routes=[Route("/", answer)]), listening)
            clients.start_soon(ask_slowly)
            await asked.wait()
            nursery.cancel_scope.cancel()
            stopped.set()


async def test_a_client_that_asks_nothing_cannot_hold_up_the_end(autojump_clock: trio.testing.MockClock) -> None:
    with bind(LOOPBACK) as listening:
        endpoint = Endpoint(LOOPBACK.host, listening.getsockname()[1])
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, metrics_app(), listening)
            stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began <= http._STOPPING_SECONDS
        await stream.aclose()


async def test_a_handlers_bug_ends_in_500_and_the_next_request_is_served() -> None:
    async def fail(_request: Request) -> Response:
        raise RuntimeError("broken")

    async def work(_request: Request) -> Response:
        return Response("fine")

    async with serving(Starlette(routes=[Route("/fail", fail), Route("/work", work)])) as endpoint:
        status, _, body = await ask(endpoint, get("/fail"))
        assert status == 500
        assert b"broken" not in body
        assert (await ask(endpoint, get("/work")))[0] == 200


async def connect(endpoint: Endpoint, stack: AsyncExitStack, own: str = "127.0.0.1") -> trio.SocketStream:
    """A client, by an address of its own."""
    return await stack.enter_async_context(
        await trio.open_tcp_stream(endpoint.host, endpoint.port, local_address=own)  # all of 127.0.0.0/8 is ours
    )


async def answered(stream: trio.SocketStream, octets: bytes) -> bytes:
    """What is said until the end of the connection."""
    with trio.fail_after(5):
        await stream.send_all(octets)
        return b"".join([chunk async for chunk in stream])


async def test_where_all_ask_one_connection_too_many_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 1)
    asked, going_on = trio.Event(), trio.Event()

    async def answer(_request: Request) -> Response:
        asked.set()
        await going_on.wait()
        return Response("fine")

    async with serving(Starlette(routes=[Route("/", answer)])) as endpoint, AsyncExitStack() as stack:
        first = await connect(endpoint, stack)
        await first.send_all(get("/"))
        with trio.fail_after(5):
            await asked.wait()
            assert await (await connect(endpoint, stack)).receive_some() == b""
        going_on.set()
        assert (await answered(first, b"")).endswith(b"fine")


SILENT = [("nothing at all", b""), ("half a header", b"GET /livez HTTP/1.1\r\nHost: x\r\n")]


@pytest.mark.parametrize(("name", "sent"), SILENT, ids=[row[0] for row in SILENT])
async def test_those_who_ask_nothing_keep_nobody_out(name: str, sent: bytes) -> None:
    """As many as there may be are there already: the oldest makes room for each newcomer, and only that one."""
    async with serving(health_app(lambda: (True, {}))) as endpoint, AsyncExitStack() as stack:
        silent = [await connect(endpoint, stack) for _ in range(http.MAX_CONNECTIONS)]
        for stream in silent if sent else ():
            await stream.send_all(sent)
        assert (await ask(endpoint, get("/livez")))[0] == 200
        assert await answered(silent[0], b"") == b""
        assert (await answered(silent[1], b"\r\n" if sent else get("/livez"))).startswith(b"HTTP/1.1 200 ")


async def test_room_is_made_where_most_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)
    async with serving(health_app(lambda: (True, {}))) as endpoint, AsyncExitStack() as stack:
        alone = await connect(endpoint, stack, "127.0.0.2")  # the oldest, and not one of many
        crowd = [await connect(endpoint, stack) for _ in range(2)]
        newcomer = await connect(endpoint, stack, "127.0.0.3")
        with trio.fail_after(5):
            assert await crowd[0].receive_some() == b""
        for stream in (alone, crowd[1], newcomer):
            assert (await answered(stream, get("/livez"))).startswith(b"HTTP/1.1 200 ")


def failures() -> float:
    text, _ = metrics.exposition()
    line = next(line for line in text.decode().splitlines() if line.startswith("porter_admin_connections_failed_total"))
    return float(line.rpartition(" ")[2])


async def test_what_a_stranger_brings_about_is_logged_once_a_minute(
    logged: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_told", OrderedDict())
    octets = get("/livez").removesuffix(b"\r\n") + (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: \xff\r\n\r\n"
    )
    before = failures()
    async with serving(health_app(lambda: (True, {}))) as endpoint, AsyncExitStack() as stack:
        for _ in range(3):
            await answered(await connect(endpoint, stack), octets)
        assert (await ask(endpoint, get("/livez")))[0] == 200
    assert failures() == before + 3
    assert [line["event"] for line in logged()] == ["admin.connection_failed"]


async def test_messages_of_the_library_are_logged_once_a_minute(logged: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_told", OrderedDict())
    for message in ("Error in ASGI Framework", "Error in ASGI Framework", "another"):
        logging.getLogger("hypercorn.error").error(message)
    assert [line["message"] for line in logged()] == ["Error in ASGI Framework", "another"]


def test_kinds_of_failures_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_told", OrderedDict())
    monkeypatch.setattr(http, "_MOST_TOLD", 2)
    assert [http._seldom(what) for what in "aabbcab"] == [True, False, True, False, True, True, True]
    assert len(http._told) == 2


SLOW = [
    ("says nothing", b""),
    ("never ends its headers", b"GET /metrics HTTP/1.1\r\nHost: x\r\n"),
]


@pytest.mark.parametrize(("name", "sent"), SLOW, ids=[row[0] for row in SLOW])
async def test_a_slow_client_is_cut_off(monkeypatch: pytest.MonkeyPatch, name: str, sent: bytes) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.05)
    async with serving(metrics_app()) as endpoint, await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
        with trio.fail_after(5):
            await stream.send_all(sent)
            assert await stream.receive_some() == b""


async def send_for_ever(stream: trio.SocketStream, head: bytes) -> None:
    await stream.send_all(head)
    while True:
        await stream.send_all(bytes(65536))


async def test_a_body_that_its_handler_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTION_SECONDS", 0.05)

    async def hang(_request: Request) -> Response:
        await trio.sleep_forever()
        raise AssertionError

    app = Starlette(routes=[Route("/hang", hang, methods=["POST"])])
    async with serving(app) as endpoint, await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await send_for_ever(stream, b"POST /hang HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")


async def test_a_client_that_does_not_read_cannot_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_STOPPING_SECONDS", 0.05)
    asked = trio.Event()

    def exposition() -> tuple[bytes, str]:
        asked.set()
        return bytes(64 * 1024 * 1024), "text/plain"

    with trio.fail_after(5):
        async with serving(metrics_app(exposition)) as endpoint:
            stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
            await stream.send_all(get("/metrics"))
            await asked.wait()
    await stream.aclose()
