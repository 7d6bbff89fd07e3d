"""Backends that a real name server lists: zones as Kubernetes and as an ordinary domain has them, rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import trio
import trio.testing

from proxy.backends.discovered import Found
from proxy.backends.discovery import Discovery
from proxy.model import Endpoint
from proxy.settings.models import Discovery as Settings
from tests.servers.dns_server import Nsd, remove, write_nsd
from tests.servers.ports import Ports

pytestmark = pytest.mark.server

CLUSTER, REVERSE, REVERSE_6, DOMAIN = "cluster.local", "10.in-addr.arpa", "d.f.ip6.arpa", "example.org"
SERVICE = "dovecot.mail.svc"
Shown = dict[str, tuple[str, ...]]


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nsd]:
    ports = Ports()
    server = write_nsd(tmp_path_factory.mktemp("nsd"), ports, [CLUSTER, REVERSE, REVERSE_6, DOMAIN])
    try:
        server.start()
        yield server
    finally:
        remove(server)
        ports.close()


class Looks:
    """What rounds of questions have told."""

    def __init__(self, nsd: Nsd, **given: object) -> None:
        values = {"nameservers": (Endpoint("127.0.0.1", nsd.port),), **given}
        self.found: Sequence[Found] = ()
        self.discovery = Discovery(Settings.model_validate(values), self._report)

    def _report(self, found: Sequence[Found]) -> None:
        self.found = found

    async def __call__(self) -> Shown:
        with trio.fail_after(20):
            await self.discovery.look()
        return {each.server.name: each.addresses for each in self.found}


def pods(addresses: dict[int, str]) -> dict[str, str]:
    """Zones as the DNS of a cluster makes them of a headless service (kubernetes/dns, specification 2.4)."""
    forward, back, back_6 = [], [], []
    for number, address in addresses.items():
        kind = "AAAA" if ":" in address else "A"
        forward += [f"{SERVICE} {kind} {address}", f"dovecot-{number}.{SERVICE} {kind} {address}"]
        forward.append(f"_imaps._tcp.{SERVICE} SRV 0 100 993 dovecot-{number}.{SERVICE}")
        pointer = f"PTR dovecot-{number}.{SERVICE}.{CLUSTER}."
        if kind == "A":
            first, *rest = address.split(".")
            assert first == "10"
            back.append(f"{'.'.join(reversed(rest))} {pointer}")
        else:
            back_6.append(f"{_nibbles(address)} {pointer}")
    return {CLUSTER: "\n".join(forward), REVERSE: "\n".join(back), REVERSE_6: "\n".join(back_6)}


def _nibbles(address: str) -> str:
    """An address below fd00::/8 as its name in the reverse zone."""
    last = address.removeprefix("fd00::")
    digits = "fd" + (30 - len(last)) * "0" + last
    return ".".join(reversed(digits[2:]))


WAYS: dict[str, dict[str, object]] = {
    "pointers": {"dns": f"{SERVICE}.{CLUSTER}"},
    "ordinals": {"dns": f"{SERVICE}.{CLUSTER}", "ordinal_names": True},
    "service": {"dns": f"_imaps._tcp.{SERVICE}.{CLUSTER}"},
}


@pytest.mark.parametrize("way", WAYS)
async def test_life_of_a_stateful_set(nsd: Nsd, way: str) -> None:
    look = Looks(nsd, **WAYS[way])
    nsd.write(pods({0: "10.0.0.5", 1: "10.0.7.6", 2: "fd00::7"}))
    steady = {"dovecot-0": ("10.0.0.5",), "dovecot-1": ("10.0.7.6",), "dovecot-2": ("fd00::7",)}
    assert await look() == steady
    # The one in the middle starts again.
    nsd.write(pods({0: "10.0.0.5", 2: "fd00::7"}))
    assert await look() == steady | {"dovecot-1": ()}
    # It is back elsewhere, where the first was before.
    nsd.write(pods({0: "10.0.9.9", 1: "10.0.0.5", 2: "fd00::7"}))
    moved = {"dovecot-0": ("10.0.9.9",), "dovecot-1": ("10.0.0.5",), "dovecot-2": ("fd00::7",)}
    assert await look() == moved
    # Nobody is ready: not a word about backends.
    nsd.write(pods({}))
    assert await look() == moved
    # One more.
    nsd.write(pods({0: "10.0.9.9", 1: "10.0.0.5", 2: "fd00::7", 3: "10.0.0.8"}))
    assert await look() == moved | {"dovecot-3": ("10.0.0.8",)}
    urls = [str(each.server.url) for each in look.found]
    assert urls == [f"imaps://dovecot-{number}.{SERVICE}.{CLUSTER}:993" for number in range(4)]


async def test_an_outage_moves_nobody(nsd: Nsd, mock_clock: trio.testing.MockClock) -> None:
    look = Looks(nsd, **WAYS["service"], keep=0.0)
    nsd.write(pods({0: "10.0.0.5", 1: "10.0.0.6"}))
    before = await look()
    nsd.stop()
    mock_clock.rate = 20
    assert await look() == before
    mock_clock.rate = 0
    nsd.write(pods({0: "10.0.0.5"}))
    nsd.start()
    assert await look() == {"dovecot-0": ("10.0.0.5",)}


async def test_a_domain_of_hosts(nsd: Nsd) -> None:
    """Hosts go on under their names while a service lists them no more; aliases are followed."""
    hosts = "mail1 A 10.1.0.1\nmail1 AAAA fd00::11\nmail2.dc A 10.1.0.2\nold CNAME mail1\n"
    one, other = "_imap._tcp SRV 10 0 143 mail1\n", "_imap._tcp SRV 20 0 1143 mail2.dc\n"
    look = Looks(nsd, dns=f"_imap._tcp.{DOMAIN}", scheme="imap+starttls")
    nsd.write({DOMAIN: hosts + one + other})
    both = {"mail1": ("10.1.0.1", "fd00::11"), f"mail2.dc.{DOMAIN}": ("10.1.0.2",)}
    assert await look() == both
    assert [str(each.server.url) for each in look.found] == [
        "imap+starttls://mail1.example.org:143", "imap+starttls://mail2.dc.example.org:1143",
    ]  # fmt: skip
    nsd.write({DOMAIN: hosts + one})
    assert await look() == both


async def test_a_hundred_of_them(nsd: Nsd) -> None:
    """Their answer does not fit a datagram."""
    look = Looks(nsd, **WAYS["pointers"])
    nsd.write(pods({number: f"10.2.0.{number + 1}" for number in range(100)}))
    assert await look() == {f"dovecot-{number}": (f"10.2.0.{number + 1}",) for number in range(100)}
