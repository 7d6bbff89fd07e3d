"""What the administrators' doors and Postfix are answered by the steward."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from proxy.admin import questions
from proxy.admin.commands import BackendView, NotPossible, NotThere
from proxy.admin.events import Hub
from proxy.admin.placement import next_login
from proxy.app.links import Links
from proxy.app.looks import Looks
from proxy.auth.authenticator import Authenticator
from proxy.auth.names import NameRules
from proxy.observe.log import Level
from proxy.outcome import Outcome, Refused
from proxy.routing.cluster import Seen
from proxy.routing.directions import TooMany
from proxy.settings.models import Settings, State


class Desk:
    """A running proxy as `admin.commands.House` has it, and Postfix's question."""

    def __init__(
        self,
        settings: Settings,
        links: Links,
        authenticator: Authenticator,
        hub: Hub,
        *,
        status: Callable[[], Mapping[str, Any]],
        reload: Callable[[], Awaitable[str]],
        set_log_level: Callable[[Level], Level],
    ) -> None:
        """Args:
        links: To the workers, with the registry of who is where.
        hub: Where events are read.
        status: The proxy's processes.
        reload: As `admin.commands.House` has it.
        set_log_level: Likewise.
        """
        self.hub = hub
        self._rules = NameRules(settings.names)
        self._links, self._registry = links, links.registry
        self._authenticator = authenticator
        self._looks = Looks(settings, links, authenticator, status)
        self._reload, self._set_log_level = reload, set_log_level

    # --- to see ---

    async def look(self, verb: str, question: Any) -> Mapping[str, Any]:
        """As `admin.commands.House` has it."""
        if verb == "backends":
            return {"backends": [asdict(view) for view in self.backends()]}
        return await self._looks.look(verb, question)

    async def find_name(self, spelled: str) -> tuple[str, bool]:
        """As `admin.commands.House` has it: a directory may know somebody by more names than one."""
        return await self._looks.find_name(spelled)

    def backends(self) -> Sequence[BackendView]:
        """Every backend, in the order of the settings."""
        return [self._view(seen) for seen in self._registry.cluster.snapshot(time.monotonic())]

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
            logins_waiting=self._links.logins_waiting(seen.name),
        )

    # --- to steer backends ---

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

    # --- to steer users ---

    def kick(self, whom: questions.Kick) -> tuple[int, int]:
        """End sessions; gives how many there are here, and how many other proxies are told to end theirs.

        Raises:
            NotThere: There is no such session, or no such backend.
            Refused: The name is none.
        """
        guests, fleet = self._registry.guests, self._registry.fleet
        in_fleet = fleet is not None and fleet.is_up  # where others may have it, whoever they are by now
        if whom.session is not None and guests.get(whom.session) is None and not in_fleet:
            raise NotThere("there is no such session any more")
        if whom.backend is not None and all(view.name != whom.backend for view in self.backends()):
            raise NotThere(f'no such backend: "{whom.backend}"')
        sessions = self.kick_here(whom)
        others = 0 if fleet is None else fleet.kick(whom.model_dump(exclude_none=True, exclude={"reason"}))
        return sessions, others

    def kick_here(self, whom: questions.Kick) -> int:
        """End sessions of this proxy; gives how many.

        Raises:
            Refused: The name is none.
        """
        guests = self._registry.guests
        if whom.session is not None:
            ids = [whom.session] if guests.get(whom.session) is not None else []
        else:
            found, _ = guests.search(
                user=None if whom.user is None else self._rules.canonical(whom.user),
                address=whom.address,
                backend=whom.backend,
                most=len(guests),
            )
            ids = [guest.id for guest in found]
        self._links.kick(ids)
        return len(ids)

    def move(self, order: questions.Move, by: str) -> int:
        """Have a user live elsewhere; gives how many of his sessions will move."""
        name, until = self._rules.canonical(order.user), _until(order.for_seconds)
        with _room_for_one_more():
            return self._registry.move(name, order.backend, until=until, reason=order.reason, by=by)

    def hold(self, order: questions.Hold, by: str) -> int:
        """Keep a user out; gives how many of his sessions will end."""
        name, until = self._rules.canonical(order.user), _until(order.for_seconds)
        with _room_for_one_more():
            return self._registry.hold(name, until=until, reason=order.reason, by=by)

    def release(self, user: str) -> tuple[bool, str | None]:
        """Undo both; gives whether he was held, and where he was moved to.

        Raises:
            NotThere: Neither.
            Refused: The name is none.
        """
        was = self._registry.release_user(self._rules.canonical(user))
        if was is None:
            raise NotThere("the user is neither moved nor held")
        return was.held is not None, was.backend

    # --- to steer processes ---

    async def reload(self) -> str:
        """Have the settings read anew; gives what changed.

        Raises:
            NotReloaded: They are as they were.
        """
        return await self._reload()

    def set_log_level(self, level: Level) -> Level:
        """Have all processes log so much; gives the level before."""
        return self._set_log_level(level)

    def trace(self, user: str, seconds: float) -> tuple[str, float]:
        """Have a user's protocol lines published; gives the trace's id and its end.

        Raises:
            NotPossible: There are too many traces.
            Refused: The name is none.
        """
        trace = self._links.onlookers.traces.begin(self._rules.canonical(user), seconds)
        if trace is None:
            raise NotPossible("there are too many traces already; end one with untrace")
        return trace, time.time() + seconds

    def untrace(self, trace: str) -> None:
        """End a trace.

        Raises:
            NotThere: There is none of that id.
        """
        if not self._links.onlookers.traces.end(trace):
            raise NotThere("there is no such trace any more")

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
        whereabouts = await registry.whereabouts(identity.name)
        if whereabouts is not None and whereabouts.moving:
            raise Refused(Outcome.UNAVAILABLE, f"on the way from {whereabouts.backend}: {whereabouts.moving}")
        backend, reason = next_login(registry.cluster.place(identity), whereabouts)
        if not backend:
            raise Refused(Outcome.UNAVAILABLE, reason)
        return backend


@contextmanager
def _room_for_one_more() -> Iterator[None]:
    """Raises NotPossible: too many users are moved or held."""
    try:
        yield
    except TooMany as exc:
        raise NotPossible(str(exc)) from None


def _until(for_seconds: float | None) -> float | None:
    """Unix time; None: for ever."""
    return None if for_seconds is None else time.time() + for_seconds
