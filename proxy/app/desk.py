"""What the administrators' door and Postfix are answered by the steward."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio

from proxy.admin.commands import BackendView
from proxy.admin.placement import next_login, route_document
from proxy.app.registry import Registry
from proxy.auth.authenticator import Authenticator
from proxy.auth.names import NameRules
from proxy.outcome import Outcome, Refused
from proxy.routing.cluster import Seen
from proxy.settings.models import Settings, State


class Desk:
    """A running proxy as `admin.commands.House` has it, and Postfix's question."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        authenticator: Authenticator,
        *,
        logins_waiting: Callable[[str], int],
        status: Callable[[], Mapping[str, Any]],
        reload: Callable[[], Awaitable[str]],
    ) -> None:
        """Args:
        logins_waiting: How many wait for their turn at a backend.
        status: As `admin.commands.House` has it.
        reload: Likewise.
        """
        self._rules = NameRules(settings.names)
        self._registry = registry
        self._authenticator = authenticator
        self._logins_waiting = logins_waiting
        self._status = status
        self._reload = reload

    # --- for administrators ---

    def backends(self) -> Sequence[BackendView]:
        """Every backend, in the order of the settings."""
        return [self._view(seen) for seen in self._registry.cluster.snapshot(time.monotonic())]

    async def route(self, name: str) -> Mapping[str, Any]:
        """Where a user goes, as somebody spelled his name.

        Raises:
            Refused: The name is none, nobody knows it, or a source that would is out.
        """
        registry = self._registry
        self._rules.canonical(name)  # raises what is wrong with it, if it is no name
        identity = await self._authenticator.find(name)
        if identity is None:
            raise Refused(Outcome.AUTHENTICATION_FAILED, "no source knows the name")
        explanation = registry.cluster.explain(identity)
        return route_document(identity, explanation, registry.ledger.find(identity.name), trio.current_time())

    def set_state(self, backend: str, state: State) -> None:
        """Change a backend's state; what is under way there for the sake of another ends."""
        registry = self._registry
        before = next(seen.state for seen in registry.cluster.snapshot(time.monotonic()) if seen.name == backend)
        if before == state == "down":  # what it began goes on
            return
        registry.undrain(backend)
        registry.cluster.set_state(backend, state, time.monotonic())

    def set_weight(self, backend: str, weight: int) -> None:
        """Change a backend's weight."""
        self._registry.cluster.set_weight(backend, weight, time.monotonic())

    def drain(self, backend: str, seconds: float) -> None:
        """Begin to move the users who have sessions there."""
        self._registry.drain(backend, seconds)

    def status(self) -> Mapping[str, Any]:
        """The proxy's processes."""
        return self._status()

    async def reload(self) -> str:
        """Have the settings read anew; gives what changed.

        Raises:
            NotReloaded: They are as they were.
        """
        return await self._reload()

    def _view(self, seen: Seen) -> BackendView:
        there = self._registry.ledger.residents_of(seen.name)
        return BackendView(
            name=seen.name,
            pool=seen.tag,
            url=seen.url,
            discovered=seen.discovered,
            state=seen.state,
            weight=seen.weight,
            up=seen.up,
            health_seconds=seen.seconds,
            reason=seen.reason,
            failed_over=seen.failed_over,
            sessions=there.sessions,
            users=there.users,
            logins_waiting=self._logins_waiting(seen.name),
        )

    # --- for Postfix ---

    async def backend_of(self, name: str) -> str:
        """The backend that a user's next login would go to.

        Raises:
            LookupError: Nobody has the name.
            Refused: It can't be said now.
        """
        registry = self._registry
        identity = await self._authenticator.find(name)
        if identity is None:
            raise LookupError
        whereabouts = registry.ledger.find(identity.name)
        if whereabouts is not None and whereabouts.moving:
            raise Refused(Outcome.UNAVAILABLE, f"on the way from {whereabouts.backend}: {whereabouts.moving}")
        backend, reason = next_login(registry.cluster.place(identity), whereabouts)
        if not backend:
            raise Refused(Outcome.UNAVAILABLE, reason)
        return backend
