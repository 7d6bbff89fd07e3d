"""IMAP over WebSocket through the whole proxy, to real Dovecots: from programs, through web servers, from Chromium."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio
import trio_websocket
from playwright.sync_api import Browser, Page, Playwright, expect
from trio_websocket import ConnectionClosed, WebSocketConnection

from tests.servers.accounts import USERS
from tests.servers.dovecot import Dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Porter, porter_settings
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.programs import require
from tests.servers.wire import Wire
from tests.transport.websocket_client import request

pytestmark = pytest.mark.server

HERE = {"trusted_networks": ["127.0.0.0/8"]}
FOLDER = Path(__file__).parent
PATIENCE_SECONDS = 30

NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{
}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen {front} ssl;
    ssl_certificate {pki.certificate};
    ssl_certificate_key {pki.private_key};
    location /imap {{
      proxy_pass http://{back};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "upgrade";
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header Forwarded "";
      proxy_read_timeout 35m;
      proxy_send_timeout 35m;
    }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  timeout tunnel 35m
frontend web
  bind {front} ssl crt {folder}/both.pem alpn http/1.1
  default_backend porter
backend porter
  http-request del-header Forwarded
  http-request set-header X-Forwarded-For %[src]
  server porter {back}
"""


@dataclass(frozen=True)
class Site:
    """A proxy with a listener of each kind, and where the test page is."""

    porter: Porter
    plain: int
    tls: int
    page: str


@pytest.fixture(scope="module")
def page_address(ports: Ports) -> Iterator[str]:
    """The test page's own web server; gives the page's origin."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(FOLDER))
    with ThreadingHTTPServer((LOOPBACK, ports.take()), handler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()
        serving.join()


@pytest.fixture
def site(short_folder: Path, pki: Pki, ports: Ports, dovecots: list[Dovecot], page_address: str) -> Iterator[Site]:
    urls = {server.name: f"imap://{LOOPBACK}:{server.imap_port}" for server in dovecots}
    settings, taken = porter_settings(pki, urls, ports)
    taken |= {"plain": ports.take(), "tls": ports.take()}
    for kind, more in (("plain", {"tls": "none", **HERE}), ("tls", {"tls": "implicit"})):
        listener = {"address": f"{LOOPBACK}:{taken[kind]}", "protocol": "websocket", **more}
        settings["listeners"].append(listener | {"websocket": {"origins": [page_address]}})
    porter = Porter(short_folder, settings, pki, taken)
    try:
        yield Site(porter, taken["plain"], taken["tls"], page_address)
        porter.stop()
    finally:
        porter.kill()


class Mail:
    """A client that speaks IMAP in messages of any size."""

    def __init__(self, websocket: WebSocketConnection) -> None:
        self.websocket = websocket
        self._buffer = bytearray()

    async def send(self, data: bytes | str) -> None:
        await self.websocket.send_message(data)

    async def exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._receive()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            await self._receive()
        return (await self.exactly(end + 2))[:-2]

    async def command(self, data: bytes | str) -> list[bytes]:
        """Gives the lines of the answer, the tagged one last; there may be no literals in it."""
        await self.send(data)
        tag = (data.encode() if isinstance(data, str) else data).split()[0]
        lines = [await self.line()]
        while not lines[-1].startswith(tag + b" "):
            lines.append(await self.line())
        assert lines[-1].startswith(tag + b" OK"), lines
        return lines

    async def log_in(self, name: str) -> None:
        assert (await self.line()).startswith(b"* OK ")
        await self.command(f"a LOGIN {name} {USERS[name]}\r\n".encode())

    async def fetch(self, number: int) -> bytes:
        await self.send(b"f FETCH %d BODY.PEEK[]\r\n" % number)
        line = await self.line()
        data = await self.exactly(int(line[line.rindex(b"{") + 1 : -1]))
        assert await self.line() == b")"
        assert (await self.line()).startswith(b"f OK ")
        return data

    async def _receive(self) -> None:
        message = await self.websocket.get_message()
        self._buffer += message.encode() if isinstance(message, str) else message


@asynccontextmanager
async def connected(port: int, trust: ssl.SSLContext | None = None, **headers: str) -> AsyncIterator[Mail]:
    """A WebSocket on a connection that is closed at the end in any case, which trio-websocket leaves to its server."""
    told = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    with trio.fail_after(PATIENCE_SECONDS):
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = await trio.open_tcp_stream(LOOPBACK, port)
        if trust is not None:
            assert isinstance(stream, trio.SocketStream)
            stream = trio.SSLStream(stream, trust, server_hostname="localhost")
        try:
            async with trio.open_nursery() as nursery:
                websocket = await trio_websocket.wrap_client_stream(
                    nursery,
                    stream,
                    "localhost",
                    "/imap",
                    subprotocols=["imap"],
                    extra_headers=told,
                    message_queue_size=0,
                    max_message_size=2**26,
                )
                yield Mail(websocket)
                await websocket.aclose()
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(stream)


def trusting(pki: Pki) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(pki.ca))


async def test_a_mailbox_is_read_whole(site: Site, pki: Pki, inboxes: dict[str, list[bytes]]) -> None:
    async with connected(site.tls, trusting(pki)) as mail:
        await mail.log_in("alice")
        listed = await mail.command(b'b LIST "" *\r\n')
        home = next(name for name in inboxes if any(line.endswith(f" On-{name}".encode()) for line in listed))
        await mail.command(b"c SELECT INBOX\r\n")
        assert [await mail.fetch(number) for number in range(1, 101)] == inboxes[home]
        await mail.send(b"d LOGOUT\r\n")
        with pytest.raises(ConnectionClosed):
            await mail.exactly(10_000)
        assert mail.websocket.closed is not None
        assert mail.websocket.closed.code == 1000
    (line,) = site.porter.wait_for_log("session.closed", outcome="logged_out")
    assert (line["name"], line["secure"], line["listener"]) == ("alice", True, f"{LOOPBACK}:{site.tls}")
    assert site.porter.metrics().total("porter_websocket_openings_total", result="accepted") == 1
    assert site.porter.metrics().total("porter_websocket_ends_total", cause="session") == 1


@pytest.mark.parametrize("kind", ["binary", "text"])
async def test_a_large_body_there_and_back(site: Site, kind: str) -> None:
    """In messages that end where they will, the last of them within a character."""
    body = ("Subject: large\r\n\r\n" + "Grüße aus Köln, 猫\r\n" * 200_000).encode()
    async with connected(site.plain) as mail:
        assert (await mail.line()).startswith(b"* OK ")
        await mail.command(said(f"a LOGIN u01 {USERS['u01']}\r\n".encode(), kind))
        await mail.send(said(f"b APPEND INBOX {{{len(body)}}}\r\n".encode(), kind))
        assert (await mail.line()).startswith(b"+ ")
        if kind == "text":
            await mail.send(body.decode())
        else:
            for start in range(0, len(body), 1_000_001):
                await mail.send(body[start : start + 1_000_001])
        await mail.send(said(b"\r\n", kind))
        while not (await mail.line()).startswith(b"b OK "):
            pass
        (count,) = [
            int(line.split()[1]) for line in await mail.command(b"c SELECT INBOX\r\n") if line.endswith(b" EXISTS")
        ]
        assert await mail.fetch(count) == body


def said(data: bytes, kind: str) -> bytes | str:
    return data.decode() if kind == "text" else data


async def test_a_client_that_reads_slowly_gets_all(site: Site) -> None:
    body = b"Subject: slow\r\n\r\n" + b"0123456789abcdef\r\n" * 100_000
    async with connected(site.plain) as mail:
        await mail.log_in("u02")
        await mail.send(b"b APPEND INBOX {%d+}\r\n" % len(body) + body + b"\r\n")
        while not (await mail.line()).startswith(b"b OK "):
            pass
        await mail.command(b"c SELECT INBOX\r\n")
        await mail.send(b"f FETCH * BODY.PEEK[]\r\n")
        got = 0
        while got < len(body):
            got += len(await mail.exactly(min(200_000, len(body) - got)))
            await trio.sleep(0.05)


REFUSED = [
    ("origin", [b"Origin: https://evil.example"], 403),
    ("forwarded", [b"X-Forwarded-For: 192.0.2.1", b"Forwarded: for=192.0.2.2"], 400),
]


@pytest.mark.parametrize(("reason", "headers", "status"), REFUSED)
def test_who_is_refused(site: Site, reason: str, headers: list[bytes], status: int) -> None:
    with Wire.connect(site.plain, greeting=False) as wire:
        wire.send(request(*headers))
        assert wire.rest().startswith(b"HTTP/1.1 %d " % status)
    site.porter.wait_for_log("websocket.refused", reason=reason)


async def test_a_drain(site: Site) -> None:
    async with (
        connected(site.plain) as idle,
        connected(site.plain) as outside,
    ):
        await idle.log_in("alice")
        await idle.send(b"b IDLE\r\n")
        assert (await idle.line()).startswith(b"+ ")
        assert (await outside.line()).startswith(b"* OK ")
        site.porter.terminate()
        for client in (idle, outside):
            assert await client.line() == b"* BYE Server is going down for maintenance; please reconnect."
            with pytest.raises(ConnectionClosed) as closed:
                await client.exactly(1)
            assert closed.value.reason is not None
            assert closed.value.reason.code == 1000


def write_nginx(folder: Path, front: str, back: str, pki: Pki) -> list[str]:
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, front=front, back=back, pki=pki))
    return [require("nginx"), "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]


def write_haproxy(folder: Path, front: str, back: str, pki: Pki) -> list[str]:
    configuration = folder / "haproxy.cfg"
    (folder / "both.pem").write_bytes(pki.certificate.read_bytes() + pki.private_key.read_bytes())
    configuration.write_text(HAPROXY.format(folder=folder, front=front, back=back))
    return [require("haproxy"), "-db", "-f", str(configuration)]


@pytest.fixture(params=[write_nginx, write_haproxy])
def front(request: pytest.FixtureRequest, site: Site, pki: Pki, ports: Ports, folder: Path) -> Iterator[int]:
    """A web server that ends TLS in front of the proxy; gives its port."""
    port = ports.take()
    place = Path(tempfile.mkdtemp(prefix="web-", dir=folder))
    command = request.param(place, f"{LOOPBACK}:{port}", f"{LOOPBACK}:{site.plain}", pki)
    with (place / "out").open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            wait_until_listening({port}, 10, lambda: None)
            yield port
        finally:
            server.terminate()


async def test_behind_a_web_server(site: Site, pki: Pki, front: int) -> None:
    liar = {"X_Forwarded_For": "198.51.100.1", "Forwarded": "for=198.51.100.1"}
    async with connected(front, trusting(pki), **liar) as mail:
        await mail.log_in("bob")
        await mail.command(b"b NOOP\r\n")
    (line,) = site.porter.wait_for_log("session.closed", name="bob")
    assert line["client"] == f"{LOOPBACK}:0", "whom the web server has seen, whatever the client says of itself"
    assert line["via"].startswith(f"{LOOPBACK}:")


@pytest.fixture(scope="module")
def browser(folder: Path, pki: Pki, playwright: Playwright) -> Iterator[Browser]:
    """Chromium, which trusts the tests' authority."""
    chromium, certutil = require("chromium"), require("certutil")
    home = folder / "chromium"
    database = home / ".pki" / "nssdb"
    database.mkdir(parents=True)
    for arguments in (["-N", "--empty-password"], ["-A", "-n", "tests", "-t", "C,,", "-i", str(pki.ca)]):
        subprocess.run([certutil, "-d", f"sql:{database}", *arguments], check=True, capture_output=True)
    browser = playwright.chromium.launch(
        executable_path=chromium, args=["--no-sandbox"], env={**os.environ, "HOME": str(home)}
    )
    yield browser
    browser.close()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def log_in(page: Page, site: Site, server: str, password: str = USERS["alice"], *, text: bool = False) -> None:
    page.goto(f"{site.page}/websocket_page.html")
    page.get_by_label("Server").fill(server)
    page.get_by_label("Name").fill("alice")
    page.get_by_label("Password").fill(password)
    page.get_by_label("send text").set_checked(text)
    page.get_by_role("button").click()


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_chromium(page: Page, site: Site, dovecots: list[Dovecot], scheme: str, text: bool) -> None:
    port = site.plain if scheme == "ws" else site.tls
    log_in(page, site, f"{scheme}://localhost:{port}/imap", text=text)
    expect(page.get_by_role("status")).to_have_text("done, closed with 1000")
    names = page.get_by_role("listitem").all_text_contents()
    assert "INBOX" in names
    assert any(f"On-{dovecot.name}" in names for dovecot in dovecots)
    (line,) = site.porter.wait_for_log("session.closed", outcome="logged_out")
    assert (line["name"], line["secure"]) == ("alice", scheme == "wss")


def test_chromium_with_a_wrong_password(page: Page, site: Site) -> None:
    log_in(page, site, f"ws://localhost:{site.plain}/imap", "wrong-4k2m")
    expect(page.get_by_role("status")).to_have_text("failed: NO [AUTHENTICATIONFAILED] Authentication failed.")


def test_chromium_with_another_page(page: Page, site: Site) -> None:
    other = Site(site.porter, site.plain, site.tls, site.page.replace("localhost", LOOPBACK))
    log_in(page, other, f"ws://localhost:{site.plain}/imap")
    expect(page.get_by_role("status")).to_have_text("failed: closed")
    (line,) = site.porter.wait_for_log("websocket.refused")
    assert (line["reason"], line["detail"]) == ("origin", other.page)
