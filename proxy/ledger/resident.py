"""A user who lives at a backend, and how he leaves it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Literal

from proxy.outcome import Outcome

Why = Literal["override", "hash", "failover"]  # as in Placement: why somebody is where he is


class MoveReason(StrEnum):
    """Why a user has to leave the backend where he is."""

    HOME_CHANGED = "home_changed"  # he logs in, and belongs elsewhere by now
    DRAIN = "drain"
    EVICTION = "eviction"
    REQUEST = "request"


class Phase(Enum):
    """How far a move has come. The values are for people."""

    SCHEDULED = "waits for its turn"
    QUEUED = "waiting for its turn"
    CLOSING = "sessions are being closed"
    DELAYED = "the last session has just ended"


class Stage(Enum):
    """How far a session has come."""

    TRYING = "nobody has verified who it is"
    COUNTED = "counts in connections_per_user"
    OPENED = "counts, and its backend has let it in"


@dataclass(slots=True, eq=False)
class Move:
    """A user on his way from a backend. While there is one nobody logs in under his name."""

    reason: MoveReason | None  # None: he left by himself, and only routing.move_delay is waited for
    outcome: Outcome  # of the sessions that are closed
    patience: float  # how many seconds a session may take until it is at a safe point
    phase: Phase
    since: float
    in_flight: bool = False  # begun and not over: it takes one of routing.moves_in_flight


@dataclass(slots=True, eq=False)
class Resident:
    """A user with sessions, or on the move. Sessions that the backend has not let in yet are among them."""

    name: str
    backend: str
    why: Why
    since: float
    sessions: dict[str, Stage] = field(default_factory=dict)  # by id
    counted: int = 0  # in connections_per_user
    left_at: float | None = None  # when the last session ended that the backend had let in
    move: Move | None = None


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What is known of a user, for people."""

    backend: str
    sessions: int
    since: float  # with sessions: of the first of them; else when the last one ended
    sticky_until: float | None = None  # without sessions: so long he goes back there, where routing allows it
    moving: str = ""  # why and how far, if he is on the move


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How many there are at a backend."""

    users: int
    sessions: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a proxy has of a user, as it tells the others."""

    backend: str  # where his sessions are, or where the last one was
    sessions: int  # those that his backend has not let in yet included
    counted: int = 0  # of them in connections_per_user
    left_seconds: float | None = None  # without sessions: how long ago the last one ended; None: nothing is remembered
    sticky: bool = False  # whether he may go back there


NOTHING = Share("", 0)
