"""Real Dovecots, and real proxies in front of them."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet_stage import Fleet, StartFleet
from tests.integration.placement_stage import NAMES, Cast, StartCast
from tests.servers.dovecot import Dovecot, write_dovecot
from tests.servers.pki import Pki, write_pki
from tests.servers.porter import Door, Porter, porter_settings
from tests.servers.ports import Ports
from tests.servers.programs import require
from tests.servers.valkey import Valkey, write_valkey

INBOX_COUNT = 100
StartPorter = Callable[..., Porter]


def message(backend: str, number: int) -> bytes:
    """A message that differs from every other, in its size too."""
    head = f"From: sender@test.example\r\nTo: reader@test.example\r\nSubject: message {number} on {backend}\r\n"
    identity = (
        f"Message-ID: <{number}.{backend}@test.example>\r\nDate: Mon, 6 May 2024 10:00:{number % 60:02} +0000\r\n"
    )
    body = "".join(f"line {line} of message {number} on {backend}\r\n" for line in range(1 + number * 3))
    return f"{head}{identity}\r\n{body}".encode()


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
def inboxes() -> dict[str, list[bytes]]:
    """What alice and bob have in their INBOX, by the backend's name."""
    return {name: [message(name, number) for number in range(1, INBOX_COUNT + 1)] for name in ("d1", "d2")}


@pytest.fixture(scope="session")
def dovecots(folder: Path, pki: Pki, ports: Ports, inboxes: dict[str, list[bytes]]) -> Iterator[list[Dovecot]]:
    """Two backends that share no mail, so that it shows which of them answered."""
    require("dovecot")
    servers = [write_dovecot(name, folder / name, pki, ports) for name in inboxes]
    try:
        for server in servers:
            for user in ("alice", "bob"):
                server.fill(user, inboxes[server.name])
            server.start()
        yield servers
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def own_ports() -> Iterator[Ports]:
    """For what one test starts: each port that is taken is a descriptor until it is given back."""
    ports = Ports()
    yield ports
    ports.close()


@pytest.fixture
def start_porter(folder: Path, pki: Pki, own_ports: Ports, request: pytest.FixtureRequest) -> Iterator[StartPorter]:
    """Start a proxy with some settings of its own; it is stopped, and looked over, when the test ends.

    Keyword arguments are top-level settings, or some keys of those that are mappings; `backends_url` gives the backends
    by name and URL, and without it they are the Dovecots.
    """
    started: list[Porter] = []

    def start(*, backends_url: dict[str, str] | None = None, **changes: Any) -> Porter:
        urls = backends_url
        if urls is None:
            dovecots: list[Dovecot] = request.getfixturevalue("dovecots")
            urls = {server.name: f"imap://127.0.0.1:{server.imap_port}" for server in dovecots}
        settings, taken = porter_settings(pki, urls, own_ports)
        for key, value in changes.items():
            settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
        porter = Porter(Path(tempfile.mkdtemp(prefix="porter-", dir=folder)), settings, pki, taken)
        started.append(porter)
        return porter

    try:
        yield start
        for porter in started:
            porter.stop()
    finally:
        for porter in started:
            porter.kill()


@pytest.fixture(scope="session")
def porter(folder: Path, pki: Pki, ports: Ports, dovecots: list[Dovecot]) -> Iterator[Porter]:
    """The proxy that most tests share: the backends decide on passwords."""
    urls = {server.name: f"imap://127.0.0.1:{server.imap_port}" for server in dovecots}
    settings, taken = porter_settings(pki, urls, ports)
    (folder / "porter").mkdir()
    running = Porter(folder / "porter", settings, pki, taken)
    try:
        yield running
        running.stop()
    finally:
        running.kill()


@pytest.fixture(params=["imaps", "starttls"])
def door(request: pytest.FixtureRequest, dovecots: list[Dovecot], pki: Pki) -> Door:
    """Each way in: through the proxy, or with --bare straight into the first Dovecot."""
    if request.config.getoption("--bare"):
        ways = {
            "imaps": Door(dovecots[0].imaps_port, False, pki),
            "starttls": Door(dovecots[0].imap_port, True, pki),
        }
    else:
        ways = request.getfixturevalue("porter").doors
    return ways[request.param]


@pytest.fixture
def short_folder(folder: Path) -> Path:
    """A folder for one test, with a path that fits into clients' settings and Unix sockets."""
    return Path(tempfile.mkdtemp(prefix="t-", dir=folder))


QUICK = {"interval": "200ms", "timeout": "1s", "down_after": 2, "up_after": 2, "hold_down": "1s"}


@pytest.fixture(scope="session")
def three(folder: Path, pki: Pki, ports: Ports) -> Iterator[list[Dovecot]]:
    require("dovecot")
    servers = [write_dovecot(name, folder / f"placed-{name}", pki, ports) for name in NAMES]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def start_cast(folder: Path, pki: Pki, own_ports: Ports, three: list[Dovecot]) -> Iterator[StartCast]:
    casts: list[Cast] = []

    def start(**changes: Any) -> Cast:
        urls = {server.name: f"imap://127.0.0.1:{server.imap_port}" for server in three}
        settings, taken = porter_settings(pki, urls, own_ports)
        place = Path(tempfile.mkdtemp(prefix="placed-", dir=folder))
        settings["admin"] = {"socket": str(place / "admin.sock")}
        settings["timeouts"] |= {"backend_connect": "1s", "backend_login": "2s"}
        settings["limits"] |= {"connections_per_address": 2000}
        settings["backends"] |= {"health": QUICK, "disconnect_spread": "1s"}
        for section, values in changes.items():
            if section == "listeners":
                settings[section] = [*settings[section], *values]
            else:
                settings[section] = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
        casts.append(Cast(Porter(place, settings, pki, taken), three))
        return casts[-1]

    try:
        yield start
        for cast in casts:
            cast.close()
            if not cast.killed:
                cast.porter.stop()
    finally:
        for cast in casts:
            cast.close()
            cast.porter.kill()
        for server in three:
            server.send(signal.SIGCONT)
            if not server.running:
                server.start()


@pytest.fixture
def valkey(pki: Pki, own_ports: Ports) -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        server = write_valkey(Path(folder) / "server", pki, own_ports)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def start_fleet(start_cast: StartCast, valkey: Valkey) -> StartFleet:
    def start(proxies: int, **changes: Any) -> Fleet:
        fleet = Fleet(valkey, start_cast, changes)
        for name in "abcdef"[:proxies]:
            fleet.start(name)
        return fleet

    return start
