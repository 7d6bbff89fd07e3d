"""Real Dovecots that a real name server lists; their names count, wherever they are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.placement_stage import NAMES, Cast, backend_of, order_of, users_of
from tests.servers.accounts import USERS
from tests.servers.dns_server import Nsd, remove, write_nsd
from tests.servers.dovecot import Dovecot, write_dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Porter, porter_settings
from tests.servers.ports import Ports
from tests.servers.programs import require

pytestmark = pytest.mark.server

ZONE = "mail.test.example"


def listing(ports: dict[str, int]) -> dict[str, str]:
    """The zone: a service whose servers are d1, d2, ... at these ports."""
    lines = [f"_imap._tcp SRV 0 0 {port} {name}\n{name} A 127.0.0.1" for name, port in ports.items()]
    return {ZONE: "\n".join(lines)}


@pytest.fixture
def nsd(folder: Path, ports: Ports) -> Iterator[Nsd]:
    server = write_nsd(Path(tempfile.mkdtemp(prefix="nsd-", dir=folder)), ports, [ZONE])
    try:
        server.start()
        yield server
    finally:
        remove(server)


@pytest.fixture
def cast(folder: Path, pki: Pki, ports: Ports, nsd: Nsd) -> Iterator[Cast]:
    require("dovecot")
    place = Path(tempfile.mkdtemp(prefix="found-", dir=folder))
    place.chmod(0o755)
    servers = [write_dovecot(name, place / name, pki, ports) for name in NAMES]
    settings, taken = porter_settings(pki, {}, ports)
    settings["admin"] = {"socket": str(place / "admin.sock")}
    settings["backends"] |= {
        "health": {"interval": "200ms", "timeout": "1s", "down_after": 2, "up_after": 2},
        "disconnect_spread": "500ms",
        "discovery": {
            "dns": f"_imap._tcp.{ZONE}", "scheme": "imap", "keep": "1s", "nameservers": [f"127.0.0.1:{nsd.port}"],
        },
    }  # fmt: skip
    settings["routing"] = {"move_delay": "500ms", "sticky": "0s"}
    del settings["backends"]["servers"]
    running = cast = None
    try:
        for server in servers:
            server.start()
        nsd.write(listing({server.name: server.imap_port for server in servers}), ttl=1)
        running = Porter(place, settings, pki, taken)
        running.wait_for_log("discovery.changed")
        cast = Cast(running, servers)
        yield cast
        running.stop()
    finally:
        if running is not None:
            running.kill()
        if cast is not None:
            cast.close()
        for server in [*servers, *(cast.dovecots.values() if cast is not None else [])]:
            server.stop()


def ports_of(servers: dict[str, Dovecot]) -> dict[str, int]:
    return {name: server.imap_port for name, server in servers.items()}


def test_names_count_wherever_they_are(cast: Cast, nsd: Nsd, pki: Pki, folder: Path, ports: Ports) -> None:
    for user in USERS:
        wire = cast.log_in_at_last(user)
        assert backend_of(wire) == order_of(user)[0]
        wire.close()
    # The pod comes back with another address: nobody moves.
    away, stays = users_of("d2")[0], cast.log_in(users_of("d1")[0])
    cast.dovecots["d2"].stop()
    again = write_dovecot("d2", cast.porter.folder / "d2-again", pki, ports)
    cast.dovecots["d2"] = again
    again.start()
    nsd.write(listing(ports_of(cast.dovecots)), ttl=1)
    cast.porter.wait_for_log("backend.changed", backend="d2", seconds=30)
    assert backend_of(cast.log_in_at_last(away)) == "d2"
    # DNS is gone: all goes on.
    nsd.stop()
    cast.porter.wait_for_log("discovery.failed", seconds=30)
    assert backend_of(cast.log_in(away)) == "d2"
    assert stays.command(b"NOOP")[-1].split()[1] == b"OK"
    # It is back, and lists d3 no more: those at home there move once `keep` is over, and nobody else.
    nsd.start()
    resident = cast.log_in(users_of("d3")[0])
    left = {name: server for name, server in cast.dovecots.items() if name != "d3"}
    nsd.write(listing(ports_of(left)), ttl=1)
    cast.porter.wait_for_log("backend.removed", backend="d3", seconds=30)
    assert resident.rest().startswith(b"* BYE ")
    for user in USERS:
        wire = cast.log_in_at_last(user)
        assert backend_of(wire) == next(name for name in order_of(user) if name != "d3")
        wire.close()
    assert cast.backends().keys() == {"d1", "d2"}
    # What would be found is shown beforehand, too.
    checked = json.loads(cast.command("check", "--connect", "--json"))["connect"]
    assert checked[0]["name"] == "discovery"
    assert checked[0]["detail"].startswith("d1 127.0.0.1; d2 127.0.0.1")
    assert {row["name"] for row in checked} >= {"backend d1", "backend d2"}
