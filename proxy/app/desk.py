"""What the administrators' door and Postfix are answered, out of the rooms of one worker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from proxy.admin.commands import BackendView
from proxy.admin.placement import next_login, route_document
from proxy.auth.names import NameRules
from proxy.outcome import Outcome, Refused
from proxy.routing.cluster import Seen
from proxy.session import House
from proxy.settings.models import State


class Desk:
    """A running proxy as `admin.commands.House` has it, and Postfix's question."""

    def __init__(self, house: House) -> None:
        self._house = house

    # --- for administrators ---

    def backends(self) -> Sequence[BackendView]:
        """Every backend, in the order of the settings."""
        return [self._view(seen) for seen in self._house.cluster.snapshot(time.monotonic())]

    async def route(self, name: str) -> Mapping[str, Any]:
        """Where a user goes, as somebody spelled his name.

        Raises:
            Refused: The name is none, nobody knows it, or a source that would is out.
        """
        house = self._house
        NameRules(house.settings.names).canonical(name)  # raises what is wrong with it, if it is no name
        identity = await house.authenticator.find(name)
        if identity is None:
            raise Refused(Outcome.AUTHENTICATION_FAILED, "no source knows the name")
        explanation = house.cluster.explain(identity)
        return route_document(identity, explanation, house.ledger.find(identity.name), trio.current_time())

    def set_state(self, backend: str, state: State) -> None:
        """Change a backend's state; what is under way there for the sake of another ends."""
        before = next(seen.state for seen in self._house.cluster.snapshot(time.monotonic()) if seen.name == backend)
        if before == state == "down":  # what it began goes on
            return
        self._house.ledger.undrain(backend)
        self._house.cluster.set_state(backend, state, time.monotonic())
        if before == "down":
            self._house.backends[backend].recovered(trio.current_time())

    def set_weight(self, backend: str, weight: int) -> None:
        """Change a backend's weight."""
        self._house.cluster.set_weight(backend, weight, time.monotonic())

    def drain(self, backend: str, seconds: float) -> None:
        """Begin to move the users who have sessions there."""
        self._house.ledger.drain(backend, seconds)

    def _view(self, seen: Seen) -> BackendView:
        there = self._house.ledger.residents_of(seen.name)
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
            logins_waiting=self._house.backends[seen.name].logins_waiting,
        )

    # --- for Postfix ---

    async def backend_of(self, name: str) -> str:
        """The backend that a user's next login would go to.

        Raises:
            LookupError: Nobody has the name.
            Refused: It can't be said now.
        """
        house = self._house
        identity = await house.authenticator.find(name)
        if identity is None:
            raise LookupError
        whereabouts = house.ledger.find(identity.name)
        if whereabouts is not None and whereabouts.moving:
            raise Refused(Outcome.UNAVAILABLE, f"on the way from {whereabouts.backend}: {whereabouts.moving}")
        backend, reason = next_login(house.cluster.place(identity), whereabouts)
        if not backend:
            raise Refused(Outcome.UNAVAILABLE, reason)
        return backend
