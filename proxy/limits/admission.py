"""The first door: how many connections there may be, in all and from one address.

Whose connection it is may be told by a PROXY header, later than its place has to be taken: it is let in by
admit_unknown(), counts in all, and by its address from identify() on.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.settings.addresses import Network
from proxy.settings.networks import NetworkSet, network_of

# What counts as one address: an IPv4 address, or an IPv6 /64, of which every customer has at least one.
_IPV4_PREFIX, _IPV6_PREFIX = 32, 64


class Admission:
    """Counts open connections. Synchronous, so that nothing happens between the check and the change."""

    def __init__(self, connections: int, connections_per_address: int, exempt_networks: Iterable[Network] = ()) -> None:
        """Args:
        connections: How many there may be in all.
        connections_per_address: How many there may be from one address.
        exempt_networks: Where addresses are not counted; their connections count in all.
        """
        self._connections = connections
        self._connections_per_address = connections_per_address
        self._exempt = NetworkSet(exempt_networks)
        self._by_address: dict[bytes, int] = {}
        self.open = 0

    def admit(self, address: str) -> str | None:
        """Take a place. Gives None, or the name of the limit that is reached (and no place is taken)."""
        if self.open >= self._connections:
            return "connections"
        if (limit := self.identify(address)) is not None:
            return limit
        self.open += 1
        return None

    def admit_unknown(self) -> str | None:
        """Take a place for a connection that will say whose it is. Gives as admit() does."""
        if self.open >= self._connections:
            return "connections"
        self.open += 1
        return None

    def identify(self, address: str) -> str | None:
        """Count a connection that has a place by its address too.

        Gives None, or the name of the limit that is reached: it is still of no known address then.
        """
        if address in self._exempt:
            return None
        household = network_of(address, _IPV4_PREFIX, _IPV6_PREFIX)
        count = self._by_address.get(household, 0)
        if count >= self._connections_per_address:
            return "connections_per_address"
        self._by_address[household] = count + 1
        return None

    def release(self, address: str | None) -> None:
        """Give a place back.

        Args:
            address: Which it was admitted with, or identified; None: neither.
        """
        self.open -= 1
        if address is None or address in self._exempt:
            return
        household = network_of(address, _IPV4_PREFIX, _IPV6_PREFIX)
        count = self._by_address[household] - 1
        if count:
            self._by_address[household] = count
        else:
            del self._by_address[household]
