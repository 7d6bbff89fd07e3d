"""How many logins there may be by time, for each user and from each address. Pure: the time is an argument.

Each has a bucket of tokens (`bucket`), and a login that succeeds takes one out. Tables are bounded: a bucket that is
full again is forgotten, and where there are too many the one that was used longest ago.
"""

from __future__ import annotations

from collections import OrderedDict

from proxy.limits.bucket import NEVER_USED, Rate
from proxy.outcome import Outcome, Refused
from proxy.settings.limit_models import Limits, LoginRate
from proxy.settings.networks import NetworkSet, network_of
from proxy.settings.units import duration_text

_MOST_BUCKETS = 100_000  # of each table, some 200 octets a bucket


class LoginRates:
    """The buckets of all users and addresses."""

    def __init__(self, limits: Limits, *, most_buckets: int = _MOST_BUCKETS) -> None:
        self._by_user = _table("logins_per_user", limits.logins_per_user, most_buckets)
        self._by_address = _table("logins_per_address", limits.logins_per_address, most_buckets)
        self._exempt = NetworkSet(limits.exempt_networks)
        self._ipv6_prefix = limits.ipv6_prefix

    def check(self, name: str, address: str, now: float) -> None:
        """Whether there may be a login. It takes nothing.

        Args:
            name: The canonical name.
            address: The client's IP address.
            now: Seconds of any clock, the same for all calls.
        Raises:
            Refused: LIMIT.
        """
        for table, whom in self._counted(name, address):
            if not table.has(whom, now):
                raise Refused(Outcome.LIMIT, table.detail, limit=table.limit)

    def take(self, name: str, address: str, now: float) -> None:
        """Count a login that there was, whether there might be one or not."""
        for table, whom in self._counted(name, address):
            table.take(whom, now)

    def left(self, name: str, now: float) -> int:
        """How many logins a user has left just now."""
        return 0 if self._by_user is None else self._by_user.left(name, now)

    def _counted(self, name: str, address: str) -> list[tuple[_Table, str | bytes]]:
        counted: list[tuple[_Table, str | bytes]] = []
        if self._by_user is not None:
            counted.append((self._by_user, name))
        if self._by_address is not None and address not in self._exempt:
            counted.append((self._by_address, network_of(address, 32, self._ipv6_prefix)))
        return counted


class _Table:
    """The buckets of one limit, the one used longest ago first."""

    __slots__ = ("_buckets", "_most", "_rate", "detail", "limit")

    def __init__(self, limit: str, settings: LoginRate, most: int) -> None:
        self.limit = limit
        self.detail = f"{limit}: {settings.rate} in {duration_text(settings.per)}"
        self._rate = Rate(settings.rate, settings.per)
        self._most = most
        self._buckets: OrderedDict[str | bytes, float] = OrderedDict()

    def has(self, whom: str | bytes, now: float) -> bool:
        """Whether there is a token left."""
        return self._rate.wait(self._buckets.get(whom, NEVER_USED), now) <= 0

    def left(self, whom: str | bytes, now: float) -> int:
        """How many tokens there are."""
        return self._rate.left(self._buckets.get(whom, NEVER_USED), now)

    def take(self, whom: str | bytes, now: float) -> None:
        """Take one out, be it there or not."""
        buckets = self._buckets
        buckets[whom] = self._rate.take(buckets.get(whom, NEVER_USED), now)
        buckets.move_to_end(whom)
        for _ in range(2):  # two for each that comes: so full ones go, little by little
            first, full_at = next(iter(buckets.items()))
            if full_at > now and len(buckets) <= self._most:
                break
            del buckets[first]
            if not buckets:
                break


def _table(limit: str, settings: LoginRate | None, most: int) -> _Table | None:
    return None if settings is None else _Table(limit, settings, most)
