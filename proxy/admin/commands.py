"""What administrators may ask of a running proxy: one table of verbs for every door, and what the house answers.

A change is something of one backend, with a reason. It leaves one line in the log, `admin.changed`, and lasts until the
proxy starts again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.routing.view import of_pool
from proxy.settings.models import State

log = get_logger()

MAX_WEIGHT = 1000
MAX_OVER_SECONDS = 86400.0
MAX_REASON_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Verb:
    """A change that may be asked for."""

    key: Literal["state", "weight"]  # what of a backend it changes
    state: State | None = None  # to what; None: whoever asks says it


VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "drain": Verb("state", "drain"),
        "undrain": Verb("state", "up"),
        "down": Verb("state", "down"),
        "weight": Verb("weight"),
    }
)
_VERB_OF_STATE = {verb.state: name for name, verb in VERBS.items() if verb.state is not None}

_CHANGES = metrics.counter("porter_admin_changes_total", "Changes that administrators made.", verb=VERBS)


class UnusableChange(ValueError):
    """What was asked for is none of the table, or lacks its reason. The text is for whoever asked."""


class NoSuchBackend(Exception):
    """There is no backend of that name. The text is for whoever asked."""


class NowhereToMove(Exception):
    """Users would have to leave a backend, and no other takes them. The text is for whoever asked."""


class NotReloaded(Exception):
    """The settings were not taken over: mistakes, one a line, or what else went wrong. All goes on as before."""


# --- what the house is asked ---


@dataclass(frozen=True, slots=True)
class BackendView:
    """A backend just now."""

    name: str
    pool: str  # its tag; "": the pool of users without one
    url: str
    discovered: bool  # DNS named it, not the settings
    state: State  # the administrator's word
    weight: int
    up: bool  # what checks and logins say
    health_seconds: float  # for how long they have
    reason: str  # the last failure; "": there is none to tell
    failed_over: bool  # its users live elsewhere meanwhile
    sessions: int
    users: int
    logins_waiting: int

    @property
    def takes_homes(self) -> bool:
        """Whether users who are placed anew may come there, and are let in."""
        return self.state == "up" and self.weight > 0 and self.up and not self.failed_over


class House(Protocol):
    """What the running proxy is to the administrator's door. A backend is named as `backends` names it."""

    def backends(self) -> Sequence[BackendView]:
        """Every backend, in the order to be shown."""
        ...

    async def route(self, name: str) -> Mapping[str, Any]:
        """What `placement.route_document` makes of a name, as somebody spelled it.

        Raises:
            Refused: The name is none, nobody knows it, or a source that would is out.
        """
        ...

    def set_state(self, backend: str, state: State) -> None:
        """Change a backend's state; a drain that is under way there ends."""
        ...

    def set_weight(self, backend: str, weight: int) -> None:
        """Change a backend's weight."""
        ...

    def drain(self, backend: str, seconds: float) -> None:
        """Begin to move the users who have sessions there, one after the other within so long."""
        ...

    def status(self) -> Mapping[str, Any]:
        """The proxy's processes: `version`, `generation`, `last_reload` and `processes`, so far as they are known."""
        ...

    async def reload(self) -> str:
        """Have the settings read anew; gives what changed.

        Raises:
            NotReloaded: They are as they were.
        """
        ...


# --- changes ---


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one backend."""

    verb: str  # of VERBS
    value: State | int
    reason: str
    over_seconds: float | None = None  # drain: users with sessions move within so long; None: they stay

    @classmethod
    def make(cls, verb: str, reason: str, *, weight: int | None = None, over_seconds: float | None = None) -> Change:
        """A change by its verb.

        Raises:
            UnusableChange: It is out of bounds, or nobody says why.
        """
        value: State | int | None = VERBS[verb].state if VERBS[verb].state is not None else weight
        if isinstance(value, int) and not 0 <= value <= MAX_WEIGHT:
            raise UnusableChange(f"weight: expected a number between 0 and {MAX_WEIGHT}")
        if over_seconds is not None and verb != "drain":
            raise UnusableChange("over_seconds: belongs to the state drain")
        if over_seconds is not None and not 0 <= over_seconds <= MAX_OVER_SECONDS:
            raise UnusableChange(f"over_seconds: expected a number between 0 and {MAX_OVER_SECONDS:g}")
        if not reason.strip() or len(reason) > MAX_REASON_CHARACTERS:
            raise UnusableChange(f"reason: expected 1 to {MAX_REASON_CHARACTERS} characters that say why")
        assert value is not None
        return cls(verb, value, reason.strip(), over_seconds)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Change:
        """The change that as_document() spelled, from whoever.

        Raises:
            UnusableChange: There is a mistake in it.
        """
        if unknown := document.keys() - {"state", "weight", "over_seconds", "reason"}:
            raise UnusableChange(f"unknown: {', '.join(sorted(unknown))}; known: state, weight, over_seconds, reason")
        state, weight = document.get("state"), document.get("weight")
        over_seconds, reason = document.get("over_seconds"), document.get("reason")
        if (state is None) == (weight is None):
            raise UnusableChange("expected either state or weight")
        if state is not None and (not isinstance(state, str) or state not in _VERB_OF_STATE):
            raise UnusableChange(f"state: expected one of {', '.join(sorted(map(str, _VERB_OF_STATE)))}")
        if weight is not None and type(weight) is not int:
            raise UnusableChange("weight: expected a whole number")
        if over_seconds is not None and type(over_seconds) not in (int, float):
            raise UnusableChange("over_seconds: expected a number of seconds, or null")
        if not isinstance(reason, str):
            raise UnusableChange("reason: missing; say why, for the log")
        verb = "weight" if state is None else _VERB_OF_STATE[state]
        return cls.make(verb, reason, weight=weight, over_seconds=over_seconds)

    def as_document(self) -> dict[str, Any]:
        """As it is sent."""
        return {VERBS[self.verb].key: self.value, "over_seconds": self.over_seconds, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Made:
    """A change that was made: the backend before and after."""

    before: BackendView
    after: BackendView
    warning: str  # what it does to users, where that may not be what is wanted; "": there is nothing to warn of


def carry_out(house: House, backend: str, change: Change, uid: int) -> Made:
    """Make a change and write down who made it.

    Args:
        uid: The user of this machine who asks.
    Raises:
        NoSuchBackend: There is none of that name.
        NowhereToMove: Its users should move, and no other backend takes them. Nothing is changed.
    """
    before = _view(house, backend)
    nowhere = _nowhere_else(house, before) if change.value in ("drain", "down", 0) else ""
    if nowhere and change.over_seconds is not None:
        raise NowhereToMove(f"{nowhere}; its users would be sent away and refused")
    if isinstance(change.value, int):
        house.set_weight(backend, change.value)
        old: State | int = before.weight
    else:
        house.set_state(backend, change.value)
        old = before.state
    if change.over_seconds is not None:
        house.drain(backend, change.over_seconds)
    # A warning, so that it is written at every level that anybody serves with; there is a counter beside it.
    log.warning(
        "admin.changed",
        uid=uid,
        verb=change.verb,
        backend=backend,
        old=old,
        new=change.value,
        over_seconds=change.over_seconds,
        reason=change.reason,
    )
    _CHANGES.labels(change.verb).inc()
    return Made(before, _view(house, backend), f"{nowhere}; who is placed anew is refused" if nowhere else "")


async def reload(house: House, uid: int) -> str:
    """Have the settings read anew, and write down who wanted it; gives what changed.

    Raises:
        NotReloaded: They are as they were.
    """
    log.warning("admin.reload_asked", uid=uid)
    return await house.reload()


def _nowhere_else(house: House, backend: BackendView) -> str:
    """That no other backend of the pool takes homes; "": one does."""
    others = (view for view in house.backends() if view.pool == backend.pool and view.name != backend.name)
    return "" if any(view.takes_homes for view in others) else f"no other backend {of_pool(backend.pool)} takes homes"


def _view(house: House, backend: str) -> BackendView:
    for view in house.backends():
        if view.name == backend:
            return view
    raise NoSuchBackend(f'no such backend: "{backend}"')
