"""Whom a listener lets in."""

from __future__ import annotations

import ipaddress

import pytest

from proxy.model import Endpoint
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


@pytest.mark.parametrize(("tls", "networks", "client", "in_"), LETS_IN)
def test_lets_in(tls: str, networks: list[str], client: str, in_: bool) -> None:
    door = Door(Endpoint("::", 143), tls, [ipaddress.ip_network(network) for network in networks], None)
    assert door.lets_in(client) is in_
    assert door.name == "[::]:143"
    assert door.trusted is (tls == "none")
