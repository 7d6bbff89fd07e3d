"""Whom a listener lets in."""

from __future__ import annotations

import ipaddress

import pytest

from proxy.model import Endpoint
from proxy.settings.addresses import Network
from proxy.settings.models import Listener, TrustedPeers
from proxy.transport.door import Door

LETS_IN = [
    ("none", ["127.0.0.0/8"], "127.0.0.1", True),
    ("none", ["127.0.0.0/8"], "127.255.255.255", True),
    ("none", ["127.0.0.0/8"], "128.0.0.1", False),
    ("none", ["127.0.0.0/8"], "::1", False),
    ("none", ["10.0.0.0/8", "192.0.2.7/32"], "192.0.2.7", True),
    ("none", ["10.0.0.0/8", "192.0.2.7/32"], "192.0.2.8", False),
    ("none", ["2001:db8::/32"], "2001:db8:1::1", True),
    ("none", ["2001:db8::/32"], "2001:db9::1", False),
    ("none", ["::/0"], "192.0.2.1", False),
    ("none", ["0.0.0.0/0"], "::1", False),
    ("none", [], "127.0.0.1", False),
    ("starttls", [], "203.0.113.9", True),
    ("implicit", [], "2001:db9::1", True),
]


def read(networks: list[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(network) for network in networks)


@pytest.mark.parametrize(("tls", "networks", "client", "in_"), LETS_IN)
def test_lets_in(tls: str, networks: list[str], client: str, in_: bool) -> None:
    door = Door(Listener.model_construct(address=Endpoint("::", 143), tls=tls, trusted_networks=read(networks)))
    assert door.lets_in(client) is in_
    assert door.name == "[::]:143"
    assert door.trusted is (tls == "none")


@pytest.mark.parametrize(("client", "trusted"), [("10.1.2.3", True), ("192.0.2.1", False), ("2001:db8::1", False)])
def test_whom_it_believes(client: str, trusted: bool) -> None:
    peers = TrustedPeers(trusted_networks=read(["10.0.0.0/8"]))
    address = Endpoint("::", 993)
    behind = Door(Listener(address=address, tls="implicit", proxy_protocol=peers))
    assert (behind.expects_header(client), behind.believes_id(client)) == (trusted, False)
    webmail = Door(Listener(address=address, tls="implicit", id_address=peers))
    assert (webmail.expects_header(client), webmail.believes_id(client)) == (False, trusted)
