"""The process as its operator meets it: limits, the ways it starts and ends, a log that nobody reads, slow clients."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import IO, Any

import pytest
import yaml
from argon2 import PasswordHasher
from OpenSSL import SSL

from tests.integration import fake_backend
from tests.integration.fake_backend import FakeBackend, Part
from tests.servers.pki import Pki
from tests.servers.porter import STOP_SECONDS, Porter, porter_settings, serve_in_vain, wait_for, wait_until_still
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.programs import require
from tests.servers.wire import Wire

pytestmark = pytest.mark.server
StartPorter = Callable[..., Porter]
PASSWORD = "any-pass-will-do-8k"
DRAINED = b"* BYE Server is going down for maintenance; please reconnect.\r\n"
FULL = b"* BYE [LIMIT] A limit is reached; try again later.\r\n"
DRAIN_SECONDS = 2
MEMORY_BOUND = 20 * 2**20


@pytest.fixture
def start(start_porter: StartPorter, ports: Ports) -> Iterator[Callable[..., tuple[Porter, FakeBackend]]]:
    """Start a proxy in front of one fake backend, which lets everybody in and then plays a part."""
    with ExitStack() as stack:

        def start(part: Part = fake_backend.serve, **changes: Any) -> tuple[Porter, FakeBackend]:
            backend = stack.enter_context(FakeBackend(ports.take(), part))
            urls = {"fake": f"imap://{LOOPBACK}:{backend.port}"}
            return start_porter(backends_url=urls, **changes), backend

        yield start


@pytest.fixture
def context(pki: Pki) -> ssl.SSLContext:
    return pki.client_context()


def session(porter: Porter, name: str) -> Wire:
    """A session of this user over TLS."""
    wire = Wire.connect(porter.imaps_port, porter.pki.client_context())
    answer = wire.login(name, PASSWORD)
    assert answer.startswith(b"OK"), answer
    return wire


# --- limits ---


def test_connections_per_address(start: Callable[..., tuple[Porter, FakeBackend]], context: ssl.SSLContext) -> None:
    porter, _ = start(limits={"connections_per_address": 3})
    with ExitStack() as stack:
        held = [stack.enter_context(Wire.connect(porter.starttls_port)) for _ in range(3)]
        with Wire.connect(porter.starttls_port, greeting=False) as wire:
            assert wire.rest() == FULL
        # Before a handshake nothing could be understood.
        with Wire.connect(porter.imaps_port, greeting=False) as wire:
            assert wire.rest() == b""
        lines = porter.wait_for_log("connection.refused", 2, limit="connections_per_address", value=3)
        refused_at = {line["listener"].rpartition(":")[2] for line in lines}
        assert refused_at == {str(porter.starttls_port), str(porter.imaps_port)}
        assert porter.metrics().total("porter_connections_refused_total", limit="connections_per_address") == 2
        assert held[0].command(b"NOOP")[-1].split()[1] == b"OK", "who is inside stays there"
        gone = held[0].address
        held[0].close()
        porter.wait_for_log("session.closed", client=gone)
        with Wire.connect(porter.imaps_port, context) as wire:
            assert wire.greeting.startswith(b"* OK")


def test_connections_per_user(start: Callable[..., tuple[Porter, FakeBackend]], context: ssl.SSLContext) -> None:
    porter, _ = start(limits={"connections_per_user": 2})
    with (
        session(porter, "u01") as first,
        session(porter, "U01"),
        session(porter, "u02"),
        Wire.connect(porter.imaps_port, context) as third,
    ):
        assert third.login("u01", PASSWORD).startswith(b"NO [LIMIT]")
        first.command(b"LOGOUT")
        porter.wait_for_log("session.closed", name="u01", outcome="logged_out")
        assert third.login("u01", PASSWORD).startswith(b"OK"), "room again, on the same connection"
        assert third.command(b"NOOP")[-1].split()[1] == b"OK"
    refused = porter.wait_for_log("login.refused")
    assert [line["outcome"] for line in refused] == ["limit"]


# --- the end ---


def test_sigterm_ends_sessions_where_it_hurts_nobody(start: Callable[..., tuple[Porter, FakeBackend]]) -> None:
    porter, _ = start(timeouts={"drain": f"{DRAIN_SECONDS}s"})
    with (
        Wire.connect(porter.starttls_port) as stranger,
        session(porter, "u01") as quiet,
        session(porter, "u02") as idler,
        session(porter, "u03") as busy,
    ):
        assert quiet.command(b"NOOP")[-1].split()[1] == b"OK"
        idler.send(b"i IDLE\r\n")
        assert idler.line() == b"+ idling"
        busy.send(b"f FETCH 2 BODY[]\r\n")
        assert busy.line() + b"\r\n" == fake_backend.LITERAL_HEAD
        porter.terminate()
        assert [wire.rest() for wire in (stranger, quiet, idler)] == [DRAINED] * 3
        assert wait_for(lambda: refuses(porter.starttls_port))
        # Nothing may be put into a message.
        assert busy.rest() == fake_backend.LITERAL_START.removeprefix(fake_backend.LITERAL_HEAD)
    porter.stop()
    closed = {line["name"]: line for line in porter.log("session.closed")}
    assert {name: line["outcome"] for name, line in closed.items()} == dict.fromkeys(
        ("", "u01", "u02", "u03"), "drained"
    )
    began = moment(porter.log("worker.draining")[0])
    assert moment(closed["u03"]) - began >= DRAIN_SECONDS - 0.01, "it had all the time there is"
    assert max(moment(closed[name]) for name in ("u01", "u02")) - began < DRAIN_SECONDS


def test_a_second_sigterm_ends_it_at_once(start: Callable[..., tuple[Porter, FakeBackend]]) -> None:
    porter, _ = start(timeouts={"drain": "10m"})
    with session(porter, "u01") as busy:
        busy.send(b"f FETCH 2 BODY[]\r\n")
        assert busy.line() + b"\r\n" == fake_backend.LITERAL_HEAD
        porter.terminate()
        porter.wait_for_log("worker.draining", sessions=1)
        porter.terminate()
        assert busy.rest() == fake_backend.LITERAL_START.removeprefix(fake_backend.LITERAL_HEAD)
    porter.stop()
    assert [line["outcome"] for line in porter.log("session.closed")] == ["drained"]
    ends = [line["event"] for line in porter.log() if line["event"].startswith("master.")]
    assert ends == ["master.started", "master.draining", "master.stopping_at_once", "master.stopped"]


def moment(line: dict[str, Any]) -> float:
    """When a line was written."""
    return datetime.fromisoformat(line["time"]).timestamp()


def refuses(port: int) -> bool:
    """Whether nobody accepts any more."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


# --- a start that fails ---


@pytest.fixture
def settings(pki: Pki, ports: Ports) -> tuple[dict[str, Any], dict[str, int]]:
    return porter_settings(pki, {"nowhere": f"imap://{LOOPBACK}:{ports.take()}"}, ports)


@pytest.mark.parametrize("which", ["imaps", "starttls", "metrics"])
def test_an_address_in_use(short_folder: Path, settings: tuple[dict[str, Any], dict[str, int]], which: str) -> None:
    values, taken = settings
    with socket.create_server((LOOPBACK, taken[which])):
        ended = serve_in_vain(short_folder, values)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert f"{LOOPBACK}:{taken[which]}" in last
    assert "already in use" in last
    assert "Traceback" not in ended.stderr


def test_a_mistake_in_the_users_file(short_folder: Path, settings: tuple[dict[str, Any], dict[str, int]]) -> None:
    values, _ = settings
    good = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    users = short_folder / "users.yaml"
    users.write_text(yaml.safe_dump({"u01": {"hash": good}}) + "u02: {hash: nonsense}\nu03: {hush: x}\n")
    users.chmod(0o600)
    lines = users.read_text().splitlines()
    ended = serve_in_vain(short_folder, {**values, "identity": [{"file": {"path": "users.yaml"}}]})
    assert ended.returncode == 1
    for mistake in ("u02: {hash: nonsense}", "u03: {hush: x}"):
        assert f"{users}:{lines.index(mistake) + 1}: " in ended.stderr
    assert "Traceback" not in ended.stderr


# --- a log that nobody reads ---


def test_mail_flows_while_standard_error_blocks(
    short_folder: Path, pki: Pki, ports: Ports, context: ssl.SSLContext
) -> None:
    reader, writer = os.pipe()
    with (
        FakeBackend(ports.take(), fake_backend.serve) as backend,
        os.fdopen(reader, "rb", 0),
        os.fdopen(writer, "wb", 0),
    ):
        fill(writer)
        values, taken = porter_settings(pki, {"fake": f"imap://{LOOPBACK}:{backend.port}"}, ports)
        values["log"]["level"] = "debug"
        porter = Porter(short_folder, values, pki, taken, log_descriptor=writer)
        try:
            with session(porter, "u01") as wire:
                for number in range(50):
                    with session(porter, f"u{number}") as other:
                        assert other.command(b"FETCH 1 BODY[]")[-1].split()[1] == b"OK"
                        other.command(b"LOGOUT")
                    assert wire.command(b"NOOP")[-1].split()[1] == b"OK"
            assert wait_for(lambda: porter.metrics().total("porter_sessions_ended_total") == 51)
            porter.terminate()
            assert porter.process.wait(STOP_SECONDS) == 0
        finally:
            porter.kill()


def fill(pipe: int) -> None:
    """Write until there is no room left, and leave the pipe such that the next writer blocks."""
    os.set_blocking(pipe, False)
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x" * 4096)
    os.set_blocking(pipe, True)


# --- clients at their own pace ---


def test_half_close_over_tls(start: Callable[..., tuple[Porter, FakeBackend]]) -> None:
    """RFC 8446 §6.1: close_notify ends one direction. What the client still waits for reaches it."""
    porter, backend = start(fake_backend.answer_after_the_end)
    with socket.create_connection((LOOPBACK, porter.imaps_port)) as sock:
        # A limit that the kernel keeps: to OpenSSL the socket is a blocking one.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 20, 0))
        client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), sock)
        client.set_connect_state()
        client.do_handshake()
        assert client.recv(16384).startswith(b"* OK")
        client.sendall(f'a LOGIN "u01" "{PASSWORD}"\r\n'.encode())
        assert client.recv(16384).startswith(b"a OK")
        client.sendall(b"n NOOP\r\n")
        assert not client.shutdown(), "the proxy has not said close_notify yet"
        received = b""
        with contextlib.suppress(SSL.ZeroReturnError):  # close_notify; a reset would be another error
            while True:
                received += client.recv(16384)
    assert received == b"* 1 EXISTS\r\nn OK NOOP done\r\n"
    porter.wait_for_log("session.closed", name="u01", outcome="client_closed")
    assert backend.received.endswith(b"n NOOP\r\n")


def test_a_client_that_never_reads(start: Callable[..., tuple[Porter, FakeBackend]]) -> None:
    """A huge message waits at the backend: not in the proxy's memory, and nobody else waits for it."""
    porter, backend = start()
    with session(porter, "u01") as sleeper, session(porter, "u02") as other:
        before = porter.resident_bytes()
        sleeper.send(b"f FETCH 3 BODY[]\r\n")
        sender = backend.peers[0]

        def sent_bytes() -> int:
            assert other.command(b"NOOP")[-1].split()[1] == b"OK"
            assert porter.resident_bytes() - before < MEMORY_BOUND
            return sender.sent_bytes

        wait_until_still(sent_bytes)
        assert sender.sent_bytes < fake_backend.HUGE_SIZE // 4
        # It has only been slow: every octet is there.
        assert sleeper.line() == b"* 3 FETCH (BODY[] {%d}" % fake_backend.HUGE_SIZE
        piece = fake_backend.HUGE_PIECE
        for _ in range(fake_backend.HUGE_SIZE // len(piece)):
            assert sleeper.exactly(len(piece)) == piece
        assert sleeper.until(b"f") == [b")", b"f OK done"]
    assert porter.peak_bytes() - before < MEMORY_BOUND


def test_key_updates_by_the_hundred(start: Callable[..., tuple[Porter, FakeBackend]]) -> None:
    """RFC 8446 §4.6.3: each asks for one in return. Nothing is lost, and nobody else waits."""
    openssl = require("openssl")
    porter, _ = start()
    command = [openssl, "s_client", "-connect", f"{LOOPBACK}:{porter.imaps_port}", "-tls1_3"]
    client = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, bufsize=0)
    assert client.stdin is not None
    assert client.stdout is not None
    patience = threading.Timer(20, client.kill)
    patience.start()
    try:
        read_until(client.stdout, b"* OK")
        client.stdin.write(f'a LOGIN "u01" "{PASSWORD}"\r\n'.encode())
        read_until(client.stdout, b"a OK")
        with session(porter, "u02") as other:
            for _ in range(300):
                client.stdin.write(b"K\n")  # its command for a KeyUpdate, where it is read by itself
                read_until(client.stdout, b"KEYUPDATE")
            assert other.command(b"NOOP")[-1].split()[1] == b"OK"
        for _ in range(3):
            client.stdin.write(b"n NOOP\r\n")
            read_until(client.stdout, b"n OK done")
        client.stdin.write(b"z LOGOUT\r\n")
        read_until(client.stdout, b"z OK done")
    finally:
        patience.cancel()
        client.kill()
        client.communicate()


def read_until(stream: IO[bytes], text: bytes) -> None:
    """Read up to some text. A program that ends instead is an error."""
    heard = b""
    while text not in heard:
        data = stream.read(65536)
        assert data, heard[-1000:]
        heard += data
