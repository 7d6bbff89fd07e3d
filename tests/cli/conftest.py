"""Commands run in this process, on settings whose servers nobody needs; and real servers for those run as processes."""

from __future__ import annotations

import io
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.dovecot import Dovecot, write_dovecot
from tests.servers.pki import Pki, write_pki
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.programs import require
from tests.servers.slapd import Slapd, write_slapd

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that Dovecot's mail user may enter, which pytest's own are not; short, for Unix sockets are in it."""
    path = Path(tempfile.mkdtemp(prefix="imap-porter-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def ports() -> Iterator[Ports]:
    taken = Ports()
    yield taken
    taken.close()


@pytest.fixture(scope="session")
def pki(folder: Path) -> Pki:
    return write_pki(folder / "pki")


@pytest.fixture(scope="session")
def dovecot(folder: Path, pki: Pki, ports: Ports) -> Iterator[Dovecot]:
    require("dovecot")
    server = write_dovecot("d1", folder / "d1", pki, ports)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def slapd(folder: Path, pki: Pki, ports: Ports) -> Iterator[Slapd]:
    require("slapd")
    server = write_slapd(folder / "slapd", ports, pki)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def dead_port(ports: Ports) -> int:
    """Nobody listens there."""
    return ports.take()


@pytest.fixture
def write(tmp_path: Path, dead_port: int) -> Write:
    """Write a settings file; its one backend is dead unless `servers` says otherwise."""

    def write_settings(identity: list[dict[str, Any]], **changes: Any) -> Path:
        settings: dict[str, Any] = {
            "version": 1,
            "listeners": [{"address": f"{LOOPBACK}:1143", "tls": "none", "trusted_networks": ["127.0.0.0/8"]}],
            "identity": identity,
            "backends": {"servers": [{"name": "d1", "url": f"imap://{LOOPBACK}:{dead_port}"}]},
        }
        for key, value in changes.items():
            settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
        path = tmp_path / "porter.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write_settings


@pytest.fixture
def config(write: Write, tmp_path: Path) -> Path:
    """Settings that name a socket, `admin.sock` beside them."""
    return write([{"backend": {}}], admin={"socket": str(tmp_path / "admin.sock")})


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put octets on standard input."""

    def pipe(octets: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(octets)))

    return pipe


@pytest.fixture
def mute_port() -> Iterator[int]:
    """The kernel takes connections there, and nobody says anything."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def hostile_backend() -> Iterator[int]:
    """A server that greets, and refuses every command, with a text that no terminal should get."""
    text = "[red]\x1b]0;owned\x07\x1b[31m\u202e\x9b2J[/red]".encode()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b"* OK [CAPABILITY IMAP4rev1] %b\r\n" % text)
            for line in lines:
                connection.sendall(b"* OK [ALERT] %b\r\n%b NO %b\r\n" % (text, line.split()[0], text))

    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


@pytest.fixture
def slow_login() -> Iterator[int]:
    """A server that says what it can do, and nothing more once somebody wants to log in."""

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                connection.sendall(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] ready\r\n")
                for _line in lines:
                    pass

    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)
