"""Clients' addresses held against networks: what several rooms count or exempt by."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from proxy.settings.addresses import Network

# IPv4 addresses on a socket for both families (RFC 4291 §2.5.5.2).
_MAPPED = bytes(10) + b"\xff\xff"


def network_of(host: str, ipv4_prefix: int, ipv6_prefix: int) -> bytes:
    """The network around an address: its first address, 4 or 16 octets.

    Args:
        host: An IP address, without a zone.
        ipv4_prefix: How long its prefix is in IPv4.
        ipv6_prefix: How long its prefix is in IPv6.
    Raises:
        OSError: `host` is no IP address.
    """
    packed = _packed(host)
    return _first(packed, ipv4_prefix if len(packed) == 4 else ipv6_prefix)


class NetworkSet:
    """Networks to look addresses up in; a look-up takes as many steps as there are different prefixes."""

    __slots__ = ("_by_length",)

    def __init__(self, networks: Iterable[Network]) -> None:
        # octets of an address -> bits of the prefix -> the networks' first addresses
        self._by_length: dict[int, dict[int, set[bytes]]] = {}
        for network in networks:
            packed = network.network_address.packed
            by_prefix = self._by_length.setdefault(len(packed), {})
            by_prefix.setdefault(network.prefixlen, set()).add(packed)

    def __contains__(self, host: str) -> bool:
        if not self._by_length:  # the ordinary case: nothing is parsed
            return False
        packed = _packed(host)
        by_prefix = self._by_length.get(len(packed), {})
        return any(_first(packed, prefix) in firsts for prefix, firsts in by_prefix.items())


def _packed(host: str) -> bytes:
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    packed = socket.inet_pton(socket.AF_INET6, host)
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _first(packed: bytes, prefix: int) -> bytes:
    """The address with all bits behind the prefix cleared."""
    size = len(packed)
    rest = 8 * size - prefix
    return (int.from_bytes(packed, "big") >> rest << rest).to_bytes(size, "big")
