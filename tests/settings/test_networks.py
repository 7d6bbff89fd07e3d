"""Addresses held against networks."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.settings.networks import NetworkSet, network_of

SAME = [
    ("192.0.2.1", "192.0.2.254", 24, 64, True),
    ("192.0.2.1", "192.0.3.1", 24, 64, False),
    ("192.0.2.1", "192.0.2.2", 32, 64, False),
    ("192.0.2.1", "::ffff:192.0.2.1", 32, 64, True),
    ("192.0.2.129", "192.0.2.1", 25, 64, False),
    ("2001:db8::1", "2001:DB8:0::2", 32, 64, True),
    ("2001:db8::1", "2001:db8:0:1::1", 32, 64, False),
    ("2001:db8::1", "2001:db8:0:ff::1", 32, 56, True),
    ("2001:db8::1", "2001:db8::2", 32, 128, False),
    ("::1", "0.0.0.1", 32, 128, False),
]


@pytest.mark.parametrize(("first", "second", "ipv4_prefix", "ipv6_prefix", "same"), SAME)
def test_the_same_network(first: str, second: str, ipv4_prefix: int, ipv6_prefix: int, same: bool) -> None:
    assert (network_of(first, ipv4_prefix, ipv6_prefix) == network_of(second, ipv4_prefix, ipv6_prefix)) is same


MEMBERS = [
    ((), "192.0.2.1", False),
    (("192.0.2.0/24",), "192.0.2.1", True),
    (("192.0.2.0/24",), "192.0.3.1", False),
    (("192.0.2.0/24",), "2001:db8::1", False),
    (("192.0.2.0/24",), "::ffff:192.0.2.1", True),
    (("198.51.100.0/24", "192.0.2.1/32"), "192.0.2.1", True),
    (("198.51.100.0/24", "192.0.2.1/32"), "192.0.2.2", False),
    (("2001:db8::/32", "192.0.2.0/24"), "2001:db8:ffff::1", True),
    (("2001:db8::/32",), "2001:db9::1", False),
    (("0.0.0.0/0",), "192.0.2.1", True),
    (("0.0.0.0/0",), "::1", False),
]


@pytest.mark.parametrize(("networks", "host", "inside"), MEMBERS)
def test_members(networks: tuple[str, ...], host: str, inside: bool) -> None:
    assert (host in NetworkSet(map(ipaddress.ip_network, networks))) is inside


@pytest.mark.parametrize("host", ["", "localhost", "127.1", "fe80::1%eth0", "192.0.2.1:993"])
def test_what_is_no_address_is_never_taken_for_one(host: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - its text is the system's
        network_of(host, 32, 64)


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def unmapped(address: Address) -> Address:
    """An IPv4 address as such (RFC 4291 §2.5.5.2)."""
    return getattr(address, "ipv4_mapped", None) or address


ADDRESSES = st.ip_addresses().map(unmapped)


@given(ADDRESSES, ADDRESSES, st.integers(0, 32), st.integers(0, 128))
def test_as_the_standard_library_has_it(one: Address, other: Address, ipv4_prefix: int, ipv6_prefix: int) -> None:
    network = ipaddress.ip_network((one, ipv4_prefix if one.version == 4 else ipv6_prefix), strict=False)
    assert network_of(str(one), ipv4_prefix, ipv6_prefix) == network.network_address.packed
    assert str(one) in NetworkSet([network])
    if other.version == one.version:
        assert (str(other) in NetworkSet([network])) is (other in network)
