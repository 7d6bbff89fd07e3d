"""The first door: how many connections there may be, in all and from one address, over all workers.

Whose connection it is may be told by a PROXY header, later than its place has to be taken: it is let in by
admit_unknown(), counts in all, and by its address from identify() on.

A worker counts his own connections exactly, and finds on the board (`board`) how many the others have.
"""

from __future__ import annotations

import trio

from proxy.limits.board import Row
from proxy.limits.reached import reached
from proxy.settings.limit_models import Limits
from proxy.settings.networks import NetworkSet, network_of

_IPV4_PREFIX = 32


class Admission:
    """Counts open connections. Synchronous, so that nothing happens between the check and the change."""

    def __init__(self, limits: Limits, row: Row | None = None) -> None:
        """Args:
        row: Where this worker counts for all to see; None: there is no other worker.
        """
        self._connections = limits.connections
        self._connections_per_address = limits.connections_per_address
        self._ipv6_prefix = limits.ipv6_prefix
        self._exempt = NetworkSet(limits.exempt_networks)
        self._row = row
        self._by_address: dict[bytes, int] = {}
        self._freed: trio.Event | None = None  # while somebody waits for it
        self.open = 0  # here

    def admit(self, address: str) -> str | None:
        """Take a place. Gives None, or the name of the limit that is reached (and no place is taken)."""
        if self._full():
            return "connections"
        if (limit := self.identify(address)) is not None:
            return limit
        self._change(1)
        return None

    def admit_unknown(self) -> str | None:
        """Take a place for a connection that will say whose it is. Gives as admit() does."""
        if self._full():
            return "connections"
        self._change(1)
        return None

    def identify(self, address: str) -> str | None:
        """Count a connection that has a place by its address too.

        Gives None, or the name of the limit that is reached: it is still of no known address then.
        """
        if address in self._exempt:
            return None
        household = network_of(address, _IPV4_PREFIX, self._ipv6_prefix)
        count, row = self._by_address.get(household, 0), self._row
        if row is None:
            elsewhere = 0
        else:
            slot = row.slot(household)
            elsewhere = row.elsewhere_from(slot)
        if count + elsewhere >= self._connections_per_address:
            reached("connections_per_address", client=address)
            return "connections_per_address"
        self._by_address[household] = count + 1
        if row is not None:
            row.add_from(slot, 1)
        return None

    def release(self, address: str | None) -> None:
        """Give a place back.

        Args:
            address: Which it was admitted with, or identified; None: neither.
        """
        self._change(-1)
        if address is None or address in self._exempt:
            return
        household = network_of(address, _IPV4_PREFIX, self._ipv6_prefix)
        count = self._by_address[household] - 1
        if count:
            self._by_address[household] = count
        else:
            del self._by_address[household]
        if self._row is not None:
            self._row.add_from(self._row.slot(household), -1)

    def room(self, clients: int) -> Room:
        """Whether there is room for a further client, where there are descriptors for so many in this worker."""
        return Room(self, clients)

    async def freed(self) -> None:
        """Wait until a place is given back."""
        if self._freed is None:
            self._freed = trio.Event()
        await self._freed.wait()

    def _full(self) -> bool:
        elsewhere = 0 if self._row is None else self._row.elsewhere()
        full = self.open + elsewhere >= self._connections
        if full:
            reached("connections")
        return full

    def _change(self, change: int) -> None:
        self.open += change
        if self._row is not None:
            self._row.add(change)
        if change < 0 and self._freed is not None:
            self._freed.set()
            self._freed = None


class Room:
    """The places that this worker has descriptors for."""

    __slots__ = ("_admission", "clients")

    def __init__(self, admission: Admission, clients: int) -> None:
        self._admission = admission
        self.clients = clients

    def is_free(self) -> bool:
        """Whether there is room for one more."""
        return self._admission.open < self.clients

    async def wait(self) -> None:
        """Until there may be room again."""
        if not self.is_free():
            await self._admission.freed()
