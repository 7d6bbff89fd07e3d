"""What the house answers administrators: those who look on, and those who change something.

Every change has a reason and leaves three traces: a line in the log, `admin.changed`, a count, and an event for whoever
reads the kind `audit`. What was refused leaves none of them. Changes of backends last until the proxy starts anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from proxy.admin import questions
from proxy.admin.events import Hub, Kind
from proxy.admin.guard import Caller
from proxy.admin.questions import Question
from proxy.admin.verbs import CHANGES, Verb
from proxy.observe import metrics
from proxy.observe.log import Level, get_logger
from proxy.routing.view import of_pool
from proxy.settings.models import State

log = get_logger()

_CHANGES = metrics.counter("porter_admin_changes_total", "Changes that administrators made.", verb=CHANGES)
_STATES: Mapping[str, State] = {"drain": "drain", "undrain": "up", "down": "down"}


class NotThere(Exception):
    """There is nothing of that name. The text is for whoever asked."""


class NotPossible(Exception):
    """It makes sense, and cannot be done as things are. The text is for whoever asked."""


class NotReloaded(NotPossible):
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
    """What the running proxy is to the administrators' doors. A backend is named as `backends` names it.

    Whatever takes somebody's name takes it as he spells it, and raises Refused where it is none.
    """

    hub: Hub

    async def look(self, verb: str, question: Any) -> Mapping[str, Any]:
        """What a verb answers that changes nothing, as `answers` describes it; `question` is of the verb's type.

        Raises:
            NotThere: What is asked for.
            Refused: The name is none, nobody knows it, or a source that would is out.
        """
        ...

    async def find_name(self, spelled: str) -> tuple[str, bool]:
        """The name under which somebody has sessions, however he spells it, and whether a source knows it.

        Raises:
            Refused: It is no name.
        """
        ...

    def backends(self) -> Sequence[BackendView]:
        """Every backend, in the order to be shown."""
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

    def kick(self, whom: questions.Kick) -> tuple[int, int]:
        """End sessions; gives how many, and how many other proxies are told to end theirs.

        Raises:
            NotThere: There is no such session.
        """
        ...

    def move(self, order: questions.Move, by: str) -> int:
        """Have a user live elsewhere; gives how many of his sessions will move."""
        ...

    def hold(self, order: questions.Hold, by: str) -> int:
        """Keep a user out; gives how many of his sessions will end."""
        ...

    def release(self, user: str) -> tuple[bool, str | None]:
        """Undo both; gives whether he was held, and where he was moved to. Raises NotThere: neither."""
        ...

    async def reload(self) -> str:
        """Have the settings read anew; gives what changed. Raises NotReloaded: they are as they were."""
        ...

    def set_log_level(self, level: Level) -> Level:
        """Have all processes log so much; gives the level before."""
        ...

    def trace(self, user: str, seconds: float) -> tuple[str, float]:
        """Have a user's protocol lines published; gives the trace's id and its end, Unix time.

        Raises NotPossible: there are too many traces.
        """
        ...

    def untrace(self, trace: str) -> None:
        """End a trace. Raises NotThere: there is none of that id."""
        ...


# --- changes ---


@dataclass(frozen=True, slots=True)
class Made:
    """A change that was made."""

    done: Mapping[str, Any]  # for whoever asked
    old: State | int | str | None = None  # for the log, where something has another value than before
    new: State | int | str | None = None
    sessions: int | None = None  # that end or move
    warning: str = ""  # what it does to users, where that may not be what is wanted; "": there is nothing to warn of


async def carry_out(house: House, verb: Verb, question: Question, caller: Caller) -> dict[str, Any]:
    """Make a change, and write down who made it and why.

    Returns:
        `done` and `warning`, for whoever asked.
    Raises:
        NotThere, NotPossible, Refused: Nothing is changed, and nothing written down.
    """
    unknown = ""
    if (spelled := getattr(question, "user", None)) is not None:
        name, is_known = await house.find_name(spelled)
        question = question.model_copy(update={"user": name})
        unknown = "" if is_known else f"no source knows {name}, or one that would is out: taken as it is spelled"
    made = await _MAKERS[verb.name](house, question, caller)
    asked = question.model_dump()
    # A warning, so that it is written at every level that anybody serves with; there is a counter beside it.
    log.warning(
        "admin.changed",
        caller=caller.name,
        verb=verb.name,
        user=asked.get("user"),
        backend=asked.get("backend"),
        session=asked.get("session"),
        address=asked.get("address"),
        seconds=_seconds(asked),
        old=made.old,
        new=made.new,
        sessions=made.sessions,
        reason=asked["reason"],
    )
    _CHANGES.labels(verb.name).inc()
    done = {"old": made.old, "new": made.new, "sessions": made.sessions}
    told = {key: value for key, value in (asked | done).items() if value is not None}
    house.hub.publish(Kind.AUDIT, "admin.changed", caller=caller.name, verb=verb.name, **told)
    warning = "; ".join(filter(None, (unknown, made.warning)))
    done = dict(made.done) if spelled is None else {"user": asked["user"], **made.done}
    return {"done": done, "warning": warning}


def _seconds(asked: Mapping[str, Any]) -> float | None:
    """For or over how long, as the verbs call it."""
    return next((asked[key] for key in ("seconds", "for_seconds", "over_seconds") if key in asked), None)


async def _kick(house: House, question: questions.Kick, _caller: Caller) -> Made:
    sessions, proxies = house.kick(question)
    return Made({"sessions": sessions, "proxies": proxies}, sessions=sessions)


async def _set_state(house: House, verb: str, question: questions.OneBackend) -> Made:
    state, backend = _STATES[verb], question.backend
    before = _view(house, backend)
    nowhere = "" if state == "up" else _nowhere_else(house, before)
    over_seconds = question.over_seconds if isinstance(question, questions.Drain) else None
    if nowhere and over_seconds is not None:
        raise NotPossible(f"{nowhere}; its users would be sent away and refused")
    house.set_state(backend, state)
    if over_seconds is not None:
        house.drain(backend, over_seconds)
    return _of_backend(house, before, nowhere, before.state, state)


async def _drain(house: House, question: questions.Drain, _caller: Caller) -> Made:
    return await _set_state(house, "drain", question)


async def _undrain(house: House, question: questions.OneBackend, _caller: Caller) -> Made:
    return await _set_state(house, "undrain", question)


async def _down(house: House, question: questions.OneBackend, _caller: Caller) -> Made:
    return await _set_state(house, "down", question)


async def _weight(house: House, question: questions.Weight, _caller: Caller) -> Made:
    before = _view(house, question.backend)
    nowhere = "" if question.weight else _nowhere_else(house, before)
    house.set_weight(question.backend, question.weight)
    return _of_backend(house, before, nowhere, before.weight, question.weight)


async def _move(house: House, question: questions.Move, caller: Caller) -> Made:
    view = _view(house, question.backend)
    sessions = house.move(question, caller.name)
    closed = view.state == "down" or not view.up
    warning = f"{view.name} is down; the user's logins are refused until it is up" if closed else ""
    return Made({"sessions": sessions, "backend": view.name}, sessions=sessions, warning=warning)


async def _hold(house: House, question: questions.Hold, caller: Caller) -> Made:
    return _of_sessions(house.hold(question, caller.name))


async def _release(house: House, question: questions.Release, _caller: Caller) -> Made:
    held, backend = house.release(question.user)
    return Made({"held": held, "backend": backend}, old=backend or ("held" if held else None))


async def _reload(house: House, question: questions.Change, caller: Caller) -> Made:
    # Before, too: what follows from it is in the log then, in its order, and a reload that fails has its asker.
    log.warning("admin.reload_asked", caller=caller.name, reason=question.reason)
    reloaded = await house.reload()
    return Made({"reloaded": reloaded}, new=reloaded)


async def _log_level(house: House, question: questions.LogLevel, _caller: Caller) -> Made:
    before = house.set_log_level(question.level)
    return Made({"level": question.level, "before": before}, before, question.level)


async def _trace(house: House, question: questions.Trace, _caller: Caller) -> Made:
    trace, until = house.trace(question.user, question.seconds)
    return Made({"trace": trace, "until": until}, new=trace)


async def _untrace(house: House, question: questions.Untrace, _caller: Caller) -> Made:
    house.untrace(question.trace)
    return Made({"trace": question.trace}, old=question.trace)


_MAKERS: Mapping[str, Callable[[House, Any, Caller], Awaitable[Made]]] = {
    "kick": _kick,
    "drain": _drain,
    "undrain": _undrain,
    "down": _down,
    "weight": _weight,
    "move": _move,
    "hold": _hold,
    "release": _release,
    "reload": _reload,
    "log-level": _log_level,
    "trace": _trace,
    "untrace": _untrace,
}


def _of_sessions(sessions: int) -> Made:
    return Made({"sessions": sessions}, sessions=sessions)


def _of_backend(house: House, before: BackendView, nowhere: str, old: State | int, new: State | int) -> Made:
    done = {"before": asdict(before), "after": asdict(_view(house, before.name))}
    return Made(done, old, new, warning=f"{nowhere}; who is placed anew is refused" if nowhere else "")


def _nowhere_else(house: House, backend: BackendView) -> str:
    """That no other backend of the pool takes homes; "": one does."""
    others = (view for view in house.backends() if view.pool == backend.pool and view.name != backend.name)
    return "" if any(view.takes_homes for view in others) else f"no other backend {of_pool(backend.pool)} takes homes"


def _view(house: House, backend: str) -> BackendView:
    for view in house.backends():
        if view.name == backend:
            return view
    raise NotThere(f'no such backend: "{backend}"')
