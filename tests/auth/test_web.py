"""The door to httpx: what it sends, what it takes, and what it never does."""

from __future__ import annotations

import base64
import gzip
import logging
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from proxy.auth import web as web_module
from proxy.auth.web import Web, WebAnswer, WebFailed
from tests.servers.pki import Pki, write_pki

SECRET = "very-secret-7f3a"


@dataclass
class Server:
    """Answers every request on loopback with the same octets, and keeps the requests."""

    reply: bytes | None = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"  # None: never
    requests: list[bytes] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def serve(self, stream: trio.abc.Stream) -> None:
        async with stream:
            try:
                await self._answer(stream)
            except trio.BrokenResourceError:  # the client has had enough
                return

    async def _answer(self, stream: trio.abc.Stream) -> None:
        received = b""
        async for chunk in stream:
            received += chunk
            head, end, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"\ncontent-length: (\d+)", head.lower())
            if not end or (length and len(body) < int(length[1])):
                continue
            self.requests.append(received)
            received = b""
            if self.reply is not None:
                await stream.send_all(self.reply)


@pytest.fixture
async def nursery_of_servers() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


@pytest.fixture
async def server(nursery_of_servers: trio.Nursery) -> Server:
    return await start(nursery_of_servers, Server())


async def start(nursery: trio.Nursery, server: Server, tls: ssl.SSLContext | None = None) -> Server:
    serve = trio.serve_tcp if tls is None else partial(trio.serve_ssl_over_tcp, ssl_context=tls)
    listeners = await nursery.start(partial(serve, server.serve, 0, host="127.0.0.1"))
    listener = listeners[0] if tls is None else listeners[0].transport_listener
    server.port = listener.socket.getsockname()[1]
    return server


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    client = Web(None, 5.0)
    yield client
    await client.close()


def http(status: str, body: bytes = b"", **fields: str) -> bytes:
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body


async def test_get(server: Server, web: Web) -> None:
    server.reply = http("200 OK", b"hello", X_Some="thing")
    answer = await web.get(server.url, max_bytes=5, headers={"X-Key": SECRET})
    assert answer == WebAnswer(200, ((b"content-length", b"5"), (b"x-some", b"thing")), b"hello")
    (request,) = server.requests
    assert request.startswith(b"GET / HTTP/1.1\r\n")
    lines = request.lower().split(b"\r\n")
    assert b"user-agent: imap-porter" in lines
    assert b"accept-encoding: identity" in lines
    assert f"x-key: {SECRET}".encode() in lines


async def test_fields_are_the_octets_that_came(server: Server, web: Web) -> None:
    sent = (b"content-length", b"0"), (b"x-one", b"p\xe4ss"), (b"x-two", "päss".encode()), (b"x-one", b"again")
    server.reply = b"".join([b"HTTP/1.1 200 OK\r\n", *(b"%b: %b\r\n" % field for field in sent), b"\r\n"])
    assert (await web.get(server.url, max_bytes=100)).headers == sent


async def test_post_form(server: Server, web: Web) -> None:
    await web.post_form(server.url, {"token": "a b&c=ü"}, max_bytes=100, basic=("name", "secret%3A"))
    (request,) = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert body == b"token=a+b%26c%3D%C3%BC"
    assert b"authorization: basic " + base64.b64encode(b"name:secret%3A").lower() in head.lower()
    assert b"content-type: application/x-www-form-urlencoded" in head.lower()
    await web.post_form(server.url, {"token": "x"}, max_bytes=100)
    assert b"authorization" not in server.requests[1].lower()


@pytest.mark.parametrize(
    "status", ["302 Found", "307 Temporary Redirect", "401 Unauthorized", "404 Not Found", "500 Oh"]
)
async def test_a_status_is_an_answer(server: Server, web: Web, status: str) -> None:
    server.reply = http(status, location=f"{server.url}elsewhere", www_authenticate="Basic realm=x")
    assert (await web.get(server.url, max_bytes=100)).status == int(status[:3])
    assert len(server.requests) == 1, "it went elsewhere, or came again"


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
FAILURES = [
    ("too large", http("200 OK", b"x" * 101), "the answer is larger than 100 octets"),
    ("too large, in chunks", CHUNKED + b"10\r\n0123456789abcdef\r\n" * 9, "the answer is larger than 100 octets"),
    ("compressed", http("200 OK", gzip.compress(b"x" * 50), content_encoding="gzip"), "the answer is compressed"),
    ("no HTTP", b"* OK IMAP4rev1\r\n\r\n", "RemoteProtocolError"),
    ("cut off", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf", "no answer within"),
    ("never", None, "no answer within"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "reply", "problem"), FAILURES, ids=[row[0] for row in FAILURES])
async def test_failures(server: Server, name: str, reply: bytes | None, problem: str) -> None:
    web = Web(None, 0.2)
    server.reply = reply
    with pytest.raises(WebFailed, match=problem):
        await web.get(server.url, max_bytes=100)
    server.reply = http("200 OK", b"{}")
    assert (await web.get(server.url, max_bytes=100)).body == b"{}", "the next request fails too"
    await web.close()


async def test_nobody_there(server: Server, web: Web) -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        with pytest.raises(WebFailed, match=r"^ConnectError: all attempts .* failed: Connection refused$"):
            await web.get(f"http://127.0.0.1:{unused.getsockname()[1]}/", max_bytes=100)


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {"x-key": f"{SECRET}\r\nx-other: 1"}),
        ("", {"x-key": f"{SECRET}\0"}),
        ("", {"x-key": f"{SECRET}\udcff"}),
        (f"?{SECRET}\n", {}),
    ],
)
async def test_what_cannot_be_sent_is_not_repeated(
    server: Server, web: Web, query: str, headers: dict[str, str]
) -> None:
    with pytest.raises(WebFailed, match="cannot be put into a request") as caught:
        await web.get(f"{server.url}{query}", max_bytes=100, headers=headers)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("host", ["id..example.org", f"{'x' * 64}.example.org"])
async def test_a_host_that_is_none(web: Web, host: str) -> None:
    with pytest.raises(WebFailed, match="cannot be put into a request"):
        await web.get(f"http://{host}/", max_bytes=100)


async def test_no_cookies(server: Server, web: Web) -> None:
    server.reply = http("200 OK", set_cookie="session=alice; Path=/")
    for _ in range(2):
        await web.get(server.url, max_bytes=100)
    assert b"cookie" not in server.requests[1].lower()


async def test_nothing_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    web = Web(None, 5.0)
    assert (await web.get(server.url, max_bytes=100)).status == 200
    await web.close()


async def test_a_request_that_is_given_up_harms_no_other(server: Server, web: Web) -> None:
    server.reply = None
    for _ in range(60):  # more than there are connections
        with trio.move_on_after(0.01):
            await web.get(server.url, max_bytes=100)
    server.reply = http("200 OK", b"{}")
    assert (await web.get(server.url, max_bytes=100)).status == 200


async def test_bursts_at_a_service_that_hangs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module, "_MAX_CONNECTIONS", 4)
    web = Web(None, 0.2)
    server.reply = None

    async def log_in() -> None:
        with pytest.raises(WebFailed, match="no answer within"):
            await web.get(server.url, max_bytes=100)

    for _ in range(6):
        async with trio.open_nursery() as burst:
            for _ in range(40):  # more than may be under way: those that wait expire together with those that don't
                burst.start_soon(log_in)
    server.reply = http("200 OK", b"{}")
    async with trio.open_nursery() as healthy:
        for _ in range(4):  # every place is free again
            healthy.start_soon(partial(web.get, server.url, max_bytes=100))
    await web.close()


async def test_requests_under_way_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_module, "_MAX_CONNECTIONS", 3)
    web = Web(None, 5.0)
    arrived = trio.Semaphore(0)

    class Arrivals(list[bytes]):
        def append(self, request: bytes) -> None:
            super().append(request)
            arrived.release()

    server.reply, server.requests = None, Arrivals()
    async with trio.open_nursery() as burst:
        for _ in range(10):
            burst.start_soon(partial(web.get, server.url, max_bytes=100))
        for _ in range(3):
            await arrived.acquire()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert len(server.requests) == 3
        burst.cancel_scope.cancel()
    await web.close()


async def test_requests_are_not_logged(server: Server, web: Web, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await web.get(f"{server.url}?{SECRET}", max_bytes=100, headers={"x-key": SECRET})
    assert [record for record in caplog.records if record.name.startswith("http")] == []


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return write_pki(tmp_path_factory.mktemp("web") / "pki")


async def test_tls(nursery_of_servers: trio.Nursery, pki: Pki) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki.certificate, pki.private_key)
    server = await start(nursery_of_servers, Server(), context)
    trusted: list[tuple[Path | None, bool]] = [(pki.ca, True), (pki.wrong_ca, False), (None, False)]
    for ca, good in trusted:
        web = Web(ca, 5.0)
        if good:
            assert (await web.get(f"https://localhost:{server.port}/", max_bytes=100)).status == 200
        else:
            with pytest.raises(WebFailed, match="CERTIFICATE_VERIFY_FAILED"):
                await web.get(f"https://localhost:{server.port}/", max_bytes=100)
        await web.close()
