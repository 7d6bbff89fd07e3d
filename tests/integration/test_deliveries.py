"""Postfix asks the running proxy: mail goes where its reader's sessions are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.placement_stage import Cast, StartCast, backend_of, order_of, users_of
from tests.servers.dovecot import Dovecot
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.postfix import Lookup, Postmap, write_postmap

pytestmark = pytest.mark.server

LMTP = {"d1": 24001, "d2": 24002, "d3": 24003}
NOT_FOUND = Lookup(None)


@pytest.fixture
def postmap(tmp_path: Path) -> Postmap:
    return write_postmap(tmp_path / "postfix")


@pytest.fixture
def start(start_cast: StartCast, three: list[Dovecot]) -> Callable[..., Cast]:
    """A proxy that knows where its backends take deliveries, and that Postfix may ask at some ports."""

    def start(*listeners: dict[str, object]) -> Cast:
        common = {"tls": "none", "trusted_networks": ["127.0.0.0/8"], "protocol": "socketmap"}
        servers = [
            {
                "name": server.name,
                "url": f"imap://{LOOPBACK}:{server.imap_port}",
                "lmtp": f"{LOOPBACK}:{LMTP[server.name]}",
            }
            for server in three
        ]
        return start_cast(
            listeners=[{**common, **listener} for listener in listeners],
            routing={"move_delay": "500ms"},
            backends={"failover": "500ms", "servers": servers},
        )

    return start


def at(backend: str) -> Lookup:
    return Lookup(f"lmtp:inet:{LOOPBACK}:{LMTP[backend]}")


def test_mail_follows_its_reader(
    start: Callable[..., Cast], postmap: Postmap, ports: Ports, three: list[Dovecot]
) -> None:
    port = ports.take()
    cast = start({"address": f"{LOOPBACK}:{port}"})
    resident, absent, *_ = users_of("d2")
    assert postmap.look_up(resident, port) == at("d2")
    assert postmap.look_up(f"{resident}+lists", port) == at("d2"), "an address extension is no other person"
    wire = cast.log_in(resident)
    cast.command("drain", "d2", "--reason", "new disks")
    assert postmap.look_up(resident, port) == at("d2"), "where he has a session"
    assert postmap.look_up(absent, port) == at(order_of(absent)[1]), "no new homes there"
    wire.close()
    cast.command("undrain", "d2", "--reason", "done")
    three[1].kill()
    cast.until_up("d2", False)
    cast.porter.wait_for_log("backend.failed_over", backend="d2")
    there = cast.log_in_at_last(absent)
    assert postmap.look_up(absent, port) == at(backend_of(there)) == at(order_of(absent)[1])


def test_what_cannot_be_said_now_makes_mail_wait(
    start: Callable[..., Cast], postmap: Postmap, ports: Ports, three: list[Dovecot]
) -> None:
    port = ports.take()
    cast = start({"address": f"{LOOPBACK}:{port}"})
    for backend in LMTP:
        cast.command("down", backend, "--reason", "moving house")
    lookup = postmap.look_up(users_of("d1")[0], port)
    assert lookup.value is None
    assert "temporarily unavailable" in lookup.problem


def test_other_domains_are_not_known_here(start: Callable[..., Cast], postmap: Postmap, ports: Ports) -> None:
    port = ports.take()
    start({"address": f"{LOOPBACK}:{port}", "domains": ["test.example"]})
    assert postmap.look_up("somebody@elsewhere.example", port) == NOT_FOUND
    assert postmap.look_up("u01", port) == NOT_FOUND
    assert postmap.look_up("u01@TEST.example", port).value is not None
