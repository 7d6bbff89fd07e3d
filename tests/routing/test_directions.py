"""What administrators say of single users: kept, told to others, forgotten in time, and obeyed before all else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from proxy.model import Identity
from proxy.outcome import Outcome, Refused
from proxy.routing import directions as room
from proxy.routing.cluster import Cluster
from proxy.routing.directions import MOST, Directions, Said, TooMany
from tests.routing.clusters import NAMES, cluster, fail, homes, placed

THREE: dict[str, dict[str, Any]] = {"dovecot-1": {}, "dovecot-2": {}, "dovecot-3": {}}
ANN = NAMES[0]


def move(said: Directions, name: str = "ann", backend: str = "dovecot-2", *, until: float | None = None) -> None:
    said.put(name, backend, until=until, reason="a full disk", by="ops", since=10.0)


def hold(said: Directions, name: str = "ann", *, until: float | None = None) -> None:
    said.put(name, None, until=until, reason="a copy", by="ops", since=20.0)


def known(said: Directions, name: str = "ann") -> tuple[str | None, bool] | None:
    """Where he lives, and whether he is held; None: nothing is said."""
    found = said.get(name)
    return None if found is None else (found.backend, found.held is not None)


# --- what is kept ---


def test_nothing_is_said() -> None:
    said = Directions()
    assert not said
    assert (said.get("ann"), said.drop("ann"), said.document("ann"), said.memory()) == (None, None, None, [])
    assert not Said()


def test_the_last_word_counts_until_it_is_taken_back() -> None:
    said = Directions()
    move(said, backend="dovecot-1")
    move(said)
    move(said, "bob")
    assert (known(said), len(said), [*said]) == (("dovecot-2", False), 2, ["ann", "bob"])
    hold(said)
    assert known(said) == ("dovecot-2", True), "he is held, and moves all the same"
    move(said, backend="dovecot-3")
    assert known(said) == ("dovecot-3", True), "he moves, and is held all the same"
    found = said.drop("ann")
    assert found is not None
    assert (found.backend, found.held is not None, known(said), len(said)) == ("dovecot-3", True, None, 1)
    said.clear()
    assert len(said) == 0


def test_it_is_told_to_people() -> None:
    said = Directions()
    move(said, until=2e9)
    moved = {"until": 2e9, "reason": "a full disk", "by": "ops", "since": 10.0}
    assert said.document("ann") == {"backend": "dovecot-2", "held": False, **moved}
    hold(said)
    held = {"until": None, "reason": "a copy", "by": "ops", "since": 20.0}
    assert said.document("ann") == {"backend": "dovecot-2", "held": True, **held}
    said.drop("ann")
    hold(said)
    assert said.document("ann") == {"backend": None, "held": True, **held}


EXPIRY = [
    ("neither has an end", None, None, 1e12, False, ("dovecot-2", True)),
    ("not yet", 100.0, 100.0, 99.9, False, ("dovecot-2", True)),
    ("just now", 100.0, 200.0, 100.0, True, (None, True)),
    ("a hold ends and a move stays", None, 100.0, 101.0, True, ("dovecot-2", False)),
    ("a move ends and a hold stays", 100.0, None, 101.0, True, (None, True)),
    ("both", 100.0, 100.0, 101.0, True, None),
]


@pytest.mark.parametrize(
    ("move_until", "hold_until", "now", "over", "left"), [row[1:] for row in EXPIRY], ids=[row[0] for row in EXPIRY]
)
def test_each_has_its_own_end(
    move_until: float | None, hold_until: float | None, now: float, over: bool, left: tuple[str | None, bool] | None
) -> None:
    said = Directions()
    move(said, until=move_until)
    hold(said, until=hold_until)
    move(said, "bob")
    assert said.expire(now) == (["ann"] if over else [])
    assert known(said) == left
    assert said.expire(now) == [], "it is told once"
    assert known(said, "bob") == ("dovecot-2", False)


def test_there_is_an_end_to_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST", 3)
    said = Directions()
    for name in ("a", "b", "c"):
        move(said, name)
    with pytest.raises(TooMany, match="3 users are moved or held already"):
        move(said, "d")
    hold(said, "a")
    news = [["d", "dovecot-1", None, "", "ops", 99.0, 99], ["b", "dovecot-1", None, "", "ops", 99.0, 99]]
    for believe in (said.learn, said.take):
        believe(news)
        assert known(said, "b") == ("dovecot-1", False), "a newcomer has no room; what is said of others counts"
        assert (len(said), known(said, "d")) == (3, None)
    said.drop("a")
    move(said, "d")


def test_so_many_as_the_contract_says() -> None:
    said, other = Directions(), Directions()
    for number in range(MOST):
        move(said, f"u{number}")
    with pytest.raises(TooMany):
        move(said, "one more")
    other.learn(json.loads(json.dumps(said.memory())))
    assert len(other) == MOST
    assert len(said.memory(["u1", "u2", "nobody"])) == 2


def test_reasons_have_an_end() -> None:
    said = Directions()
    said.put("ann", "d1", until=None, reason="x" * 1000, by="y" * 1000, since=1.0)
    (row,) = said.memory()
    assert (row[3], row[4]) == ("x" * 400, "y" * 400)


# --- what others are told ---


@pytest.mark.parametrize("how", ["learn", "take"])
def test_others_know_it_as_it_is(how: str) -> None:
    said, other = Directions(), Directions()
    move(said, until=2e9)
    move(said, "bob")
    hold(said, "bob")
    hold(said, "cid", until=5.5)
    memory = json.loads(json.dumps(said.memory()))
    for _ in range(2):
        getattr(other, how)(memory)
        assert other.memory() == said.memory()


def test_of_two_words_the_later_counts_whatever_the_clock_says() -> None:
    """`since` may go back, where somebody sets the clock; the order in which it was said does not."""
    steward, worker = Directions(), Directions()
    steward.put("ann", "dovecot-1", until=None, reason="", by="", since=1000.0)
    before = steward.memory()
    steward.put("ann", "dovecot-2", until=None, reason="", by="", since=10.0)
    worker.learn(steward.memory())
    worker.learn(before)
    assert known(worker) == ("dovecot-2", False)
    worker.take(before)
    assert known(worker) == ("dovecot-1", False), "whoever has the say is believed"
    worker.learn(steward.memory())
    assert known(worker) == ("dovecot-2", False)


def test_the_next_steward_goes_on_counting() -> None:
    old, worker, new = Directions(), Directions(), Directions()
    for _ in range(5):
        move(old)
    worker.take(old.memory())
    new.learn(worker.memory())
    move(new, backend="dovecot-3")
    worker.learn(new.memory())
    assert known(worker) == ("dovecot-3", False)


SENSE = ["ann", "dovecot-1", None, "why", "ops", 5.0, 1]


def changed(at: int, value: Any) -> list[Any]:
    return [*SENSE[:at], value, *SENSE[at + 1 :]]


JUNK: list[Any] = [
    None,
    {},
    "ann",
    5,
    [None],
    [[]],
    ["ann"],
    [SENSE[:-1]],
    [changed(0, 5)],
    [changed(0, None)],
    [changed(1, 5)],
    [changed(1, ["dovecot-1"])],
    [changed(2, "tomorrow")],
    [changed(2, math.nan)],
    [changed(2, math.inf)],
    [changed(3, None)],
    [changed(4, {})],
    [changed(5, None)],
    [changed(5, "5")],
    [changed(5, math.inf)],
    [changed(5, math.nan)],
    [changed(6, None)],
    [changed(6, 1.5)],
]


@pytest.mark.parametrize("how", ["learn", "take"])
@pytest.mark.parametrize("memory", JUNK, ids=repr)
def test_what_makes_no_sense_is_passed_over(memory: Any, how: str) -> None:
    said = Directions()
    getattr(said, how)(memory)
    assert len(said) == 0
    if isinstance(memory, list):
        getattr(said, how)([*memory, SENSE])
        assert [*said] == ["ann"], "and nothing else with it"


def test_another_version_may_say_more_and_longer() -> None:
    said = Directions()
    said.learn([[*changed(3, "x" * 100_000), "of a later version"]])
    (row,) = said.memory()
    assert (len(row[3]), row[4], len(row)) == (400, "ops", len(SENSE))


# --- who lives where ---


def test_a_move_wins_over_the_hash_and_concerns_nobody_else() -> None:
    made, _ = cluster()
    before = homes(made)
    for backend in THREE:
        move(made.directions, ANN, backend)
        placement = placed(made, ANN)
        assert (placement.home, placement.why, placement.problem) == (backend, "override", "")
        assert placement.joinable == placement.sticky == {backend}, "nor does he stay where he was"
        assert {name: home for name, home in homes(made).items() if name != ANN} == {
            name: home for name, home in before.items() if name != ANN
        }
    made.directions.drop(ANN)
    assert homes(made) == before


OVERRIDES: list[tuple[str, dict[str, Any], str | None, dict[str, str]]] = [
    ("directory", {}, "dovecot-1", {}),
    ("directory, spelled as a host", {}, "dovecot-1.example.org", {}),
    ("a backend that there is not", {}, "dovecot-9", {}),
    ("settings", {"overrides": {ANN: "dovecot-1"}}, None, {}),
    ("both", {"overrides": {ANN: "dovecot-1"}}, "dovecot-3", {}),
    ("a pool", {}, None, {"tag": "gold"}),
    ("a pool that there is not", {}, None, {"tag": "tin"}),
    ("a pool by domain", {"tags": {"domains": {"example.org": "gold"}}}, None, {}),
]


@pytest.mark.parametrize(
    ("routing", "named", "attributes"), [row[1:] for row in OVERRIDES], ids=[row[0] for row in OVERRIDES]
)
def test_a_move_wins_over_whatever_else_is_said(
    routing: dict[str, Any], named: str | None, attributes: dict[str, str]
) -> None:
    made, _ = cluster({**THREE, "gold-1": {"tag": "gold"}}, routing=routing)

    def home() -> str:
        try:
            return placed(made, ANN, named, **attributes).home
        except Refused:
            return "refused"

    before = home()
    move(made.directions, ANN)
    assert home() == "dovecot-2" != before
    made.directions.drop(ANN)
    assert home() == before


@pytest.mark.parametrize("state", ["down", "drain", "up"])
@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("failover", ["never", "30s"])
def test_what_a_backend_is_like_wins_over_a_move(state: Any, works: bool, failover: str) -> None:
    """He is refused rather than led elsewhere: his mail is there. As with other overrides."""
    made, _ = cluster(failover=failover)
    move(made.directions, ANN)
    made.set_state("dovecot-2", state, 1.0)
    if not works:
        fail(made, "dovecot-2", 2.0)
    made.tick(1000.0)
    placement = placed(made, ANN)
    assert placement.home == "dovecot-2"
    assert ("dovecot-2" in placement.closed) is (state == "down" or not works)


def test_the_backend_is_gone() -> None:
    made, _ = cluster()
    move(made.directions, ANN, "dovecot-9")
    with pytest.raises(Refused) as refused:
        placed(made, ANN)
    assert refused.value.outcome is Outcome.UNAVAILABLE
    assert refused.value.detail == 'unknown backend "dovecot-9" given by ops'


@pytest.mark.parametrize("backend", [None, "dovecot-2", "dovecot-9"])
@pytest.mark.parametrize("named", [None, "dovecot-1", "dovecot-9"])
def test_who_is_held_belongs_nowhere(backend: str | None, named: str | None) -> None:
    made, _ = cluster()
    if backend is not None:
        move(made.directions, ANN, backend)
    hold(made.directions, ANN)
    placement = placed(made, ANN, named)
    assert (placement.home, placement.joinable, placement.sticky) == ("", frozenset(), frozenset())
    assert placement.problem == "held by ops: a copy"


def test_what_is_said_stays_whatever_happens_to_backends() -> None:
    made, _ = cluster(failover="30s")
    move(made.directions, ANN)
    fail(made, "dovecot-1", 1.0)
    made.tick(100.0)
    made.set_weight("dovecot-3", 7, 101.0)
    other, _ = cluster(failover="30s")
    made.recall(other.memory(102.0), 102.0)
    assert placed(made, ANN).home == "dovecot-2"


# --- and why, for people ---

EXPLAINED = [
    ("moved", "dovecot-2", False, "dovecot-2", "dovecot-2", "ops: a full disk", "named by ops: a full disk"),
    ("held", None, True, "", "", "", "held by ops: a copy"),
    ("both", "dovecot-2", True, "", "dovecot-2", "ops: a full disk", "held by ops: a copy"),
]


@pytest.mark.parametrize(
    ("backend", "is_held", "home", "override", "override_from", "why"),
    [row[1:] for row in EXPLAINED],
    ids=[row[0] for row in EXPLAINED],
)
def test_it_is_explained(
    backend: str | None, is_held: bool, home: str, override: str, override_from: str, why: str
) -> None:
    made, _ = cluster()
    if backend is not None:
        move(made.directions, ANN, backend)
    if is_held:
        hold(made.directions, ANN)
    told = made.explain(Identity(ANN, "file"))
    assert told.placement == placed(made, ANN)
    assert (told.placement.home, told.override, told.override_from, told.why) == (home, override, override_from, why)
    assert [each.name for each in told.order if "home" in each.notes] == ([home] if home else [])


def test_a_move_is_explained_before_other_overrides() -> None:
    made, _ = cluster(routing={"overrides": {ANN: "dovecot-1"}})
    move(made.directions, ANN)
    told = made.explain(Identity(ANN, "ldap", "dovecot-3"))
    assert (told.override, told.override_from) == ("dovecot-2", "ops: a full disk")
    made.directions.drop(ANN)
    told = made.explain(Identity(ANN, "ldap", "dovecot-3"))
    assert (told.override, told.override_from) == ("dovecot-1", "routing.overrides")


def test_clusters_that_know_the_same_place_alike() -> None:
    one, _ = cluster()
    other: Cluster = cluster()[0]
    for number, name in enumerate(NAMES[:20]):
        move(one.directions, name, f"dovecot-{1 + number % 3}")
        if number % 4 == 0:
            hold(one.directions, name)
    other.directions.learn(json.loads(json.dumps(one.directions.memory())))
    assert homes(other) == homes(one)
    assert list(homes(other).values()).count("") == 5
