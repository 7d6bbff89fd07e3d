"""The first door: how many connections there may be, in all and from one address."""

from __future__ import annotations

import ipaddress


class Admission:
    """Counts open connections. Synchronous, so that nothing happens between the check and the change."""

    def __init__(self, connections: int, connections_per_address: int) -> None:
        self._connections = connections
        self._connections_per_address = connections_per_address
        self._by_address: dict[str, int] = {}
        self.open = 0

    def admit(self, address: str) -> str | None:
        """Take a place. Gives None, or the name of the limit that is reached (and no place is taken)."""
        if self.open >= self._connections:
            return "connections"
        address = _household(address)
        count = self._by_address.get(address, 0)
        if count >= self._connections_per_address:
            return "connections_per_address"
        self._by_address[address] = count + 1
        self.open += 1
        return None

    def release(self, address: str) -> None:
        """Give a place back."""
        address = _household(address)
        count = self._by_address[address] - 1
        self.open -= 1
        if count:
            self._by_address[address] = count
        else:
            del self._by_address[address]


def _household(address: str) -> str:
    """What counts as one address: an IPv4 address, or an IPv6 /64, of which every customer has at least one."""
    if ":" not in address:
        return address
    return str(int(ipaddress.IPv6Address(address)) >> 64)
