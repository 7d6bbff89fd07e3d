"""What placement promises whatever happens to the backends, and in whatever order they were written down."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.model import Identity, Placement
from proxy.outcome import Refused
from proxy.routing.cluster import BackendEvent, Cluster, Seen
from proxy.routing.rendezvous import Member, Rendezvous
from proxy.settings.models import Backends, Routing, Server

Failover = Literal["never"] | float
Happening = Callable[[Cluster, float], None]
Story = list[tuple[float, Happening]]
Moment = dict[str, Placement | str]

FIXED: dict[str, dict[str, Any]] = {"a": {"weight": 1}, "b": {"weight": 3}, "g": {"tag": "gold"}, "h": {"tag": "gold"}}
PEOPLE = [Identity(f"person{number}@example.org", "file") for number in range(24)]
RICH = [Identity(f"person{number}@rich.example", "file") for number in range(12)]
ROUTING = Routing.model_validate({"tags": {"domains": {"rich.example": "gold"}}})
HEALTH = {"down_after": 2, "up_after": 2, "hold_down": "60s"}


def server(name: str, **keys: Any) -> Server:
    return Server.model_validate({"name": name, "url": "imap://10.0.0.1", **keys})


SERVERS = [server(name, **keys) for name, keys in FIXED.items()]
BASE = Backends.model_validate(
    {"servers": [{"name": "x", "url": "imap://x"}], "discovery": {"dns": "mail.example"}, "health": HEALTH}
)


def cluster(failover: Failover, servers: Sequence[Server] = SERVERS) -> Cluster:
    return Cluster(BASE.model_copy(update={"servers": tuple(servers), "failover": failover}), ROUTING, 0.0)


def check(backend: str, reason: str) -> Happening:
    return lambda made, now: made.checked(backend, now, reason)


def login(backend: str, name: str, problem: str, reached: bool) -> Happening:
    return lambda made, now: made.login_ended(backend, now, name=name, problem=problem, reached=reached)


def state(backend: str, word: Any) -> Happening:
    def happen(made: Cluster, now: float) -> None:
        with suppress(KeyError):  # one that is not discovered just now
            made.set_state(backend, word, now)

    return happen


def weight(backend: str, number: int) -> Happening:
    def happen(made: Cluster, now: float) -> None:
        with suppress(KeyError):
            made.set_weight(backend, number, now)

    return happen


def discovery(tags: dict[str, str | None]) -> Happening:
    servers = [server(name, tag=tag) for name, tag in tags.items()]
    return lambda made, now: made.discovered(servers, now)


def turn(backend: str, reason: str) -> Happening:
    """Two checks that end alike turn a backend's health."""

    def happen(made: Cluster, now: float) -> None:
        for _ in range(2):
            made.checked(backend, now, reason)

    return happen


BACKENDS = st.sampled_from(["a", "b", "d", "g"])  # few, so that several things happen to the same one
REASONS = st.sampled_from(["", "refused"])
OF_HEALTH = st.one_of(
    st.builds(turn, BACKENDS, REASONS),
    st.builds(turn, BACKENDS, REASONS),
    st.builds(check, BACKENDS, REASONS),
    st.builds(login, BACKENDS, st.sampled_from(["ann", "bob"]), REASONS, st.booleans()),
)
OF_PEOPLE = st.one_of(
    st.builds(state, BACKENDS, st.sampled_from(["up", "drain", "down"])),
    st.builds(weight, BACKENDS, st.integers(0, 3)),
    st.builds(discovery, st.dictionaries(st.sampled_from(["d", "e"]), st.sampled_from([None, "gold"]))),
)
WAITS = st.sampled_from([0.0, 1.0, 30.0, 60.0])
FAILOVERS: st.SearchStrategy[Failover] = st.sampled_from(["never", 1.0, 30.0])


def stories(of_what: st.SearchStrategy[Happening], least: int = 12) -> st.SearchStrategy[Story]:
    """What happens, and how long after what happened before."""
    return st.lists(st.tuples(WAITS, of_what), min_size=least, max_size=30)


STORIES = stories(st.one_of(OF_HEALTH, OF_HEALTH, OF_PEOPLE))


def tell(story: Story, *clusters: Cluster) -> Iterator[float]:
    """Let a story happen, and a tick before each of its steps. Yields the time after every change."""
    now = 0.0
    for wait, happen in story:
        now += wait
        for act in (Cluster.tick, happen):
            for made in clusters:
                act(made, now)
            yield now


def place(made: Cluster, identity: Identity) -> Placement | str:
    try:
        return made.place(identity)
    except Refused as refusal:
        return refusal.detail


def moment(made: Cluster) -> Moment:
    return {identity.name: place(made, identity) for identity in (*PEOPLE, *RICH)}


def homes(made: Cluster) -> dict[str, str]:
    """Where everybody without a tag belongs."""
    return {identity.name: made.place(identity).home for identity in PEOPLE}


def first(seen: Sequence[Seen], key: str) -> str:
    """The home among these by a hash made for them alone."""
    return Rendezvous(Member(each.name, each.weight) for each in seen).first(key)


@settings(max_examples=200)
@given(FAILOVERS, STORIES)
def test_everybody_is_where_a_hash_of_those_who_take_homes_has_him(failover: Failover, story: Story) -> None:
    made = cluster(failover)
    for now in tell(story, made):
        seen = made.snapshot(now)
        closed = {each.name for each in seen if each.state == "down" or not each.up}
        for people, tag in ((PEOPLE[:6], ""), (RICH[:3], "gold")):
            pool = [each for each in seen if each.tag == tag]
            inside = [each for each in pool if not each.failed_over]
            sticky = [each for each in inside if each.state != "drain"]
            meant = [each for each in pool if each.state != "drain"]
            for identity in people:
                placement = made.place(identity)
                assert placement.home == first(sticky, identity.name)
                assert bool(placement.problem) == (not placement.home)
                by_settings = first(meant, identity.name)
                if placement.home:
                    assert placement.why == ("hash" if placement.home == by_settings else "failover")
                assert set(placement.joinable) == {each.name for each in inside}
                assert set(placement.sticky) == {each.name for each in sticky}
                assert set(placement.closed) == closed
        if failover == "never":
            assert not any(each.failed_over for each in seen)


@settings(max_examples=200)
@given(FAILOVERS, STORIES, st.randoms(use_true_random=False))
def test_the_order_of_the_file_never_matters(failover: Failover, story: Story, source: random.Random) -> None:
    first, second = cluster(failover), cluster(failover, source.sample(SERVERS, len(SERVERS)))
    told: tuple[list[BackendEvent], list[BackendEvent]] = [], []
    first.on_event, second.on_event = told[0].append, told[1].append
    for now in tell(story, first, second):
        assert first.epoch == second.epoch
        assert set(first.snapshot(now)) == set(second.snapshot(now))
    assert told[0] == told[1]
    assert moment(first) == moment(second)


@settings(max_examples=200)
@given(FAILOVERS, STORIES)
def test_what_is_remembered_changes_no_answer(failover: Failover, story: Story) -> None:
    asked, fresh = cluster(failover), cluster(failover)
    for _ in tell(story, asked, fresh):
        moment(asked)
    assert moment(asked) == moment(fresh)


@settings(max_examples=200)
@given(FAILOVERS, STORIES, STORIES)
def test_the_epoch_is_the_same_where_the_view_is_and_nowhere_else(
    failover: Failover, story: Story, another: Story
) -> None:
    views: dict[str, tuple[object, ...]] = {}
    epochs: dict[tuple[object, ...], str] = {}
    for each in (story, another):
        made = cluster(failover)
        for now in tell(each, made):
            view = what_places(made, now)
            assert views.setdefault(made.epoch, view) == view
            assert epochs.setdefault(view, made.epoch) == made.epoch
            assert made.epoch_number == int(made.epoch, 16)


def what_places(made: Cluster, now: float) -> tuple[object, ...]:
    """All that has a say in where anybody belongs, and where everybody does. Who is asked just now has none."""
    rows = set()
    for each in made.snapshot(now):
        effective = "out" if each.failed_over and each.state != "drain" else each.state
        rows.add((each.name, each.tag, each.weight, effective, each.failed_over))
    people = [place(made, identity) for identity in (*PEOPLE, *RICH)]
    ends = [answer if isinstance(answer, str) else (answer.home, answer.why) for answer in people]
    return (frozenset(rows), *ends)


@given(stories(OF_PEOPLE, least=0), stories(OF_HEALTH))
def test_without_failover_health_never_changes_the_epoch(before: Story, story: Story) -> None:
    made = cluster("never")
    for _ in tell(before, made):
        pass
    epoch, where = made.epoch, homes(made)
    for _ in tell(story, made):
        assert (made.epoch, homes(made)) == (epoch, where)


# --- what other processes recall ---


def remembered(made: Cluster, now: float) -> Any:
    return json.loads(json.dumps(made.memory(now, {"d": ("10.0.0.4",), "a": ("10.9.9.9",)})))


@settings(max_examples=100)
@given(FAILOVERS, STORIES)
def test_another_process_places_alike(failover: Failover, story: Story) -> None:
    made, other = cluster(failover), cluster(failover)
    told: list[BackendEvent] = []
    other.on_event = told.append
    now = list(tell(story, made))[-1]
    other.recall(remembered(made, now), now + 1e6)  # whatever its clock says
    assert told == []
    assert (other.epoch, moment(other)) == (made.epoch, moment(made))
    assert {each.name for each in other.snapshot(now)} == {each.name for each in made.snapshot(now)}
    assert other.addresses == {each.name: ("10.0.0.4",) if each.name == "d" else () for each in found(made)}
    third = cluster(failover)
    third.recall(json.loads(json.dumps(other.memory(now + 1e6))), now)  # as it was told itself
    assert third.addresses == other.addresses
    for wait in (0.0, 1.0, 29.0, 30.0, 60.0):  # and it goes on alike
        for each, began in ((made, now), (other, now + 1e6), (third, now)):
            each.tick(began + wait)
        assert made.epoch == other.epoch == third.epoch
    assert moment(made) == moment(other) == moment(third)


def found(made: Cluster) -> list[Seen]:
    return [each for each in made.snapshot(0.0) if each.discovered]


@settings(max_examples=100)
@given(FAILOVERS, STORIES)
def test_a_follower_is_told_of_all_that_changes(failover: Failover, story: Story) -> None:
    made, follower = cluster(failover), cluster(failover)
    up = {each.name: each.up for each in follower.snapshot(0.0)}
    revision = made.revision
    for now in tell(story, made):
        view = follower._view
        events = follower.recall(remembered(made, now), now)
        if made.revision == revision:
            assert not events
        if not events:
            assert follower._view is view  # what it has found out stays
        revision = made.revision
        for event in events:
            match event.kind:
                case "added":
                    up[event.backend] = True
                case "removed":
                    del up[event.backend]
                case "went_down" | "came_up":
                    assert up[event.backend] == (event.kind == "went_down")
                    up[event.backend] = event.kind == "came_up"
        assert up == {each.name: each.up for each in made.snapshot(now)}
        assert follower.epoch == made.epoch
        assert follower.recall(remembered(made, now), now) == ()
    assert moment(follower) == moment(made)


OTHER_SETTINGS = st.builds(
    lambda kept, more: [*kept, *more],
    st.lists(st.sampled_from(SERVERS), unique_by=lambda each: each.name),
    st.sampled_from([[], [server("d", url="imap://10.9.9.9", tag="gold")], [server("z", weight=5)]]),
)


@settings(max_examples=100)
@given(FAILOVERS, FAILOVERS, OTHER_SETTINGS, st.booleans(), STORIES)
def test_other_settings_win(
    failover: Failover, another: Failover, servers: list[Server], asks_alike: bool, story: Story
) -> None:
    made = cluster(failover)
    now = list(tell(story, made))[-1]
    asked = BASE.discovery if asks_alike else None
    other = Cluster(
        BASE.model_copy(update={"servers": tuple(servers), "failover": another, "discovery": asked}), ROUTING, 0.0
    )
    other.recall(remembered(made, now), now)
    own = {each.name: each for each in servers}
    there = {each.name: each for each in other.servers()}
    assert {name: there[name] for name in own} == own
    theirs = {each.name for each in found(made)} - own.keys()
    assert there.keys() - own.keys() == (theirs if asks_alike else set())
    before = {each.name: each for each in made.snapshot(now)}
    for each in other.snapshot(now):
        was = before.get(each.name)
        if was is None or was.url != each.url:
            assert each.up
            assert each.failed_over == (each.state == "down" and another != "never")
        else:
            assert (each.up, each.state, each.weight) == (was.up, was.state, was.weight)
            if another == "never":
                assert not each.failed_over
    moment(other)


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=3), st.just("down")
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=100)
@given(FAILOVERS, STORIES, st.data())
def test_nonsense_does_no_harm(failover: Failover, story: Story, data: st.DataObject) -> None:
    made, other = cluster(failover), cluster(failover)
    now = list(tell(story, made))[-1]
    memory = remembered(made, now)
    for _ in range(data.draw(st.integers(1, 3))):
        place_in: Any = memory
        while True:
            keys = list(place_in) if isinstance(place_in, dict) else list(range(len(place_in)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place_in[key], (dict, list)) or data.draw(st.booleans()):
                place_in[key] = data.draw(JSON)
                break
            place_in = place_in[key]
    other.recall(memory, now)
    other.tick(now + 100.0)
    json.dumps(other.memory(now))
    moment(other)
    assert {each.name for each in SERVERS} <= {each.name for each in other.servers()}


# --- who moves ---

NAMES_AND_WEIGHTS = st.dictionaries(
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,11}", fullmatch=True), st.integers(1, 50), min_size=2, max_size=8
)


@given(NAMES_AND_WEIGHTS, st.data())
def test_only_the_users_of_a_failed_backend_move_and_they_return(weights: dict[str, int], data: st.DataObject) -> None:
    made = cluster(30.0, [server(name, weight=weight) for name, weight in weights.items()])
    lost = data.draw(st.sampled_from(sorted(weights)))
    usual, epoch = homes(made), made.epoch
    for now in (1.0, 2.0):
        made.checked(lost, now, "refused")
    assert homes(made) == usual
    made.tick(32.0)
    for name, home in homes(made).items():
        if usual[name] == lost:
            assert home != lost
        else:
            assert home == usual[name]
    for now in (40.0, 41.0):
        made.checked(lost, now)
    made.tick(100.0)
    assert lost not in homes(made).values()
    made.tick(101.0)
    assert (homes(made), made.epoch) == (usual, epoch)


@given(NAMES_AND_WEIGHTS, NAMES_AND_WEIGHTS)
def test_discovery_moves_only_to_who_came_and_from_who_went(before: dict[str, int], after: dict[str, int]) -> None:
    made = cluster("never", SERVERS[:1])
    taken = {each.name for each in SERVERS}

    def find(weights: dict[str, int]) -> dict[str, str]:
        made.discovered([server(name, weight=2) for name in weights if name not in taken], 1.0)
        return homes(made)

    first, second = find(before), find(after)
    for name in first:
        if first[name] != second[name]:
            assert first[name] not in after or second[name] not in before
