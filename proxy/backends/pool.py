"""The backends by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import trio

from proxy.backends.backend import Backend
from proxy.backends.way import Contexts
from proxy.settings.limit_models import LoginsPerBackend
from proxy.settings.models import Backends, Server, Timeouts
from proxy.transport.tls import no_other_work

_NO_ADDRESSES: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Pool:
    """All backends that there are just now: those of the settings, until update() says otherwise."""

    def __init__(
        self,
        backends: Backends,
        timeouts: Timeouts,
        before_work: Callable[[], None] = no_other_work,
        limits: LoginsPerBackend | None = None,
    ) -> None:
        """Args:
        before_work: Called before each step of a login that keeps the processor busy.
        """
        self._backends = backends
        self._timeouts = timeouts
        self._limits = limits or LoginsPerBackend()
        self._before_work = before_work
        self._contexts = Contexts()
        self._by_name: dict[str, tuple[object, Backend]] = {}
        self._changed = trio.Event()
        self.update(backends.servers)

    def __getitem__(self, name: str) -> Backend:
        return self._by_name[name][1]

    def __iter__(self) -> Iterator[Backend]:
        return iter([backend for _, backend in self._by_name.values()])

    def update(self, servers: Sequence[Server], addresses: Mapping[str, tuple[str, ...]] = _NO_ADDRESSES) -> None:
        """These are the backends from now on. Those that stay as they are keep what they know; logins under way at
        others go on to their end.

        Args:
            addresses: By name, where those are that are not to be looked up.
        """
        before, self._by_name = self._by_name, {}
        for server in servers:
            way = (server.url, server.tls, server.client_address)
            known, backend = before.get(server.name, (None, None))
            if backend is None or known != way:
                backend = Backend(
                    server, self._backends, self._timeouts, self._limits, self._contexts, self._before_work
                )
            backend.tell(addresses.get(server.name))
            self._by_name[server.name] = (way, backend)
        for name in before.keys() - self._by_name.keys():
            before[name][1].forget()
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self) -> None:
        """Wait for the next update()."""
        await self._changed.wait()
