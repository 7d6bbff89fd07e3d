"""What each verb answers, as types: for the OpenAPI document, for the tests, and for whoever asks from Python.

Answers are made as plain objects and sent as they are; nothing is converted on the way.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["up", "drain", "down"]
SessionState = Literal["logging_in", "open"]


class Answer(BaseModel):
    """What a verb answers, or a part of it; later versions may say more."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)


class Problem(Answer):
    """Why not."""

    problem: str


# --- processes ---


class Process(Answer):
    """A process of the proxy's."""

    process: str
    role: str
    pid: int
    generation: int
    since: float | None = None
    state: str
    sessions: int | None = None


class Asker(Answer):
    """Who asks."""

    name: str
    role: Literal["viewer", "operator"]


class FleetStatus(Answer):
    """This proxy as a member of its fleet."""

    name: str
    up: bool = Field(description="Whether logins ask the others; else this proxy goes on alone.")
    members: list[str] = Field(description="Those that live, this one included.")
    error: str | None = Field(description="Why it is alone.")


class Status(Answer):
    """The proxy, and who asks."""

    version: str
    generation: int
    draining: bool
    last_reload: dict[str, Any]
    fleet: FleetStatus | None
    processes: list[Process]
    caller: Asker


class Generation(Answer):
    """The processes that began together."""

    generation: int
    since: float | None
    state: Literal["current", "old"]
    workers: int
    sessions: int


class Generations(Answer):
    """All that have sessions."""

    generations: list[Generation]


# --- backends ---


class Backend(Answer):
    """A backend just now."""

    name: str
    pool: str = Field(description='Its tag; "": the pool of users without one.')
    url: str
    discovered: bool = Field(description="DNS named it, not the settings.")
    state: State = Field(description="The administrator's word.")
    weight: int
    up: bool = Field(description="What checks and logins say.")
    health_seconds: float
    reason: str
    failed_over: bool = Field(description="Its users live elsewhere meanwhile.")
    sessions: int
    users: int
    logins_waiting: int


class Backends(Answer):
    """All of them."""

    backends: list[Backend]


# --- sessions and users ---


class Session(Answer):
    """A session."""

    id: str
    user: str
    client: str
    listener: str
    worker: str
    backend: str
    state: SessionState
    why: str = Field(description="Of its placement.")
    since: float
    seconds: float


class SessionList(Answer):
    """Some of those that were asked for."""

    sessions: list[Session]
    total: int = Field(description="How many there are.")
    next: str | None = Field(description="For `after`, where there are more; null: there are none.")


class SessionDetails(Session):
    """A session, and what its worker tells of it, if it answers within a second."""

    mechanism: str | None = None
    source: str | None = None
    secure: bool | None = None
    commands: int | None = None
    octets_up: int | None = None
    octets_down: int | None = None
    activity: Literal["idle", "between", "busy", "blind"] | None = None


class User(Answer):
    """A user who is there."""

    user: str
    sessions: int
    backends: list[str]


class UserList(Answer):
    """Those with the most sessions."""

    users: list[User]
    total: int


class TopRates(Answer):
    """How busy somebody is."""

    sessions: int
    commands_per_second: float
    octets_per_second_up: float
    octets_per_second_down: float


class TopUser(TopRates):
    """How busy a user is."""

    user: str


class TopBackend(TopRates):
    """How busy a backend is."""

    backend: str


class TopCommand(Answer):
    """How often a command is given."""

    command: str
    per_second: float


class TopList(Answer):
    """The busiest of the last seconds."""

    seconds: float
    users: list[TopUser]
    backends: list[TopBackend]
    commands: list[TopCommand]


class Route(Answer):
    """Where a user goes at his next login, and why."""

    name: str
    source: str
    pool: str
    pool_from: str
    override: str
    override_from: str
    key: str
    epoch: str
    order: list[dict[str, Any]]
    home: str
    why: str
    whereabouts: dict[str, Any] | None
    backend: str = Field(description='"": the login would be refused.')
    reason: str
    running: bool


class Directions(Answer):
    """What an administrator has ordered for a user."""

    backend: str | None = Field(description="Where he was moved to; null: nowhere.")
    held: bool
    until: float | None
    reason: str
    by: str
    since: float


class LimitLeft(Answer):
    """How much a user has left of something."""

    limit: str
    most: float
    left: float
    per_seconds: float | None


class Failure(Answer):
    """A login that was refused."""

    time: float
    client: str
    mechanism: str
    outcome: str
    detail: str


class Explanation(Answer):
    """All that is known of a user."""

    route: Route | None
    problem: str = Field(description='Why there is no route; "": there is one.')
    attributes: dict[str, Any]
    source: str
    directions: Directions | None
    limits: list[LimitLeft]
    sessions: list[Session]
    failures: list[Failure]


# --- what is set, and what is counted ---


class Limit(Answer):
    """A limit of the settings."""

    limit: str
    value: Any
    reached: dict[str, float] = Field(description="How often, by what was done.")


class Limits(Answer):
    """All of them."""

    limits: list[Limit]


class Difference(Answer):
    """A setting that is not the default."""

    key: str
    value: Any
    default: Any


class Settings(Answer):
    """The settings in effect; of secrets only where they come from."""

    settings: dict[str, Any]
    differs: list[Difference]


class Durations(Answer):
    """How long things took, since the proxy began."""

    buckets: list[tuple[float | None, float]] = Field(description="Upper bound (null: none), and how many up to it.")
    sum: float
    count: float


class Octets(Answer):
    """What was carried."""

    up: float
    down: float


class BackendFigures(Answer):
    """A backend's."""

    sessions: int
    logins: float
    up: bool


class WorkerFigures(Answer):
    """A worker's."""

    process: str
    loop_delay_seconds: float | None
    cpu_seconds: float
    resident_bytes: float


class Figures(Answer):
    """What is counted, since the proxy began; for live charts."""

    time: float
    sessions: int
    idle: float
    logins: dict[str, float]
    login_seconds: Durations
    commands: dict[str, float]
    command_seconds: Durations
    octets: Octets
    limits: dict[str, float]
    backends: dict[str, BackendFigures]
    workers: list[WorkerFigures]


# --- what was done ---


class Done(Answer):
    """What was changed."""

    done: dict[str, Any]
    warning: str = Field(description='What it does to users, where that may not be wanted; "": nothing to warn of.')


class SessionsDone(Answer):
    """How many sessions it concerns."""

    sessions: int


class KickedDone(SessionsDone):
    """Whose."""

    user: str | None = Field(default=None, description="The canonical name, where a user was named.")
    proxies: int = Field(default=0, description="Other proxies of the fleet that are asked to end theirs.")


class Kicked(Done):
    """Sessions end."""

    done: KickedDone  # type: ignore[assignment]


class Changed(Answer):
    """The backend before and after."""

    before: Backend
    after: Backend


class BackendChanged(Done):
    """A backend is not what it was."""

    done: Changed  # type: ignore[assignment]


class UserDone(Answer):
    """Whom it concerns."""

    user: str = Field(description="His canonical name; as he was spelled where no source knows him.")


class MovedDone(UserDone, SessionsDone):
    """Where to."""

    backend: str


class Moved(Done):
    """A user lives elsewhere."""

    done: MovedDone  # type: ignore[assignment]


class HeldDone(UserDone, SessionsDone):
    """Whose logins."""


class Held(Done):
    """A user is kept out."""

    done: HeldDone  # type: ignore[assignment]


class ReleasedDone(UserDone):
    """What was undone."""

    held: bool
    backend: str | None


class Released(Done):
    """A user goes where he would."""

    done: ReleasedDone  # type: ignore[assignment]


class ReloadedDone(Answer):
    """What changed."""

    reloaded: str


class Reloaded(Done):
    """The settings were read anew."""

    done: ReloadedDone  # type: ignore[assignment]


class LevelDone(Answer):
    """The level, and the one before."""

    level: str
    before: str


class LevelSet(Done):
    """More or less is logged."""

    done: LevelDone  # type: ignore[assignment]


class TracedDone(UserDone):
    """The trace."""

    trace: str
    until: float


class Traced(Done):
    """A user's protocol lines are shown."""

    done: TracedDone  # type: ignore[assignment]


class UntracedDone(Answer):
    """The trace."""

    trace: str


class Untraced(Done):
    """They are not shown any more."""

    done: UntracedDone  # type: ignore[assignment]


class Document(Answer):
    """An OpenAPI document."""

    openapi: str
    paths: dict[str, Any]
