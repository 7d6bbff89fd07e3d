"""What placement promises, for any backends, weights and names."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.rendezvous import Member, Rendezvous, epoch

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
BACKEND_NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,11}", fullmatch=True)
WEIGHTS = st.integers(1, 1000)


@st.composite
def memberships(draw: st.DrawFn, least: int = 1) -> list[Member]:
    """Backends with weights from 1 up; half of the time all weights are equal."""
    names = draw(st.lists(BACKEND_NAMES, unique=True, min_size=least, max_size=12))
    weights = draw(
        st.one_of(
            WEIGHTS.map(lambda weight: [weight] * len(names)),
            st.lists(WEIGHTS, min_size=len(names), max_size=len(names)),
        )
    )
    return [Member(name, weight) for name, weight in zip(names, weights, strict=True)]


def order(members: list[Member], key: str) -> tuple[str, ...]:
    return Rendezvous(members).order(key)


@given(memberships(least=2), NAMES, st.data())
def test_a_backend_that_leaves_moves_its_own_names_only(members: list[Member], key: str, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(members))
    before = order(members, key)
    after = order([member for member in members if member != gone], key)
    assert after == tuple(name for name in before if name != gone.name)


@given(memberships(), WEIGHTS, NAMES)
def test_a_backend_that_comes_is_the_only_one_names_move_to(members: list[Member], weight: int, key: str) -> None:
    before = order(members, key)
    after = order([*members, Member("_new", weight)], key)
    assert tuple(name for name in after if name != "_new") == before
    assert after[0] in (before[0], "_new")


@given(memberships(), st.integers(0, 1000), NAMES, st.data())
def test_a_changed_weight_moves_the_difference(
    members: list[Member], weight: int, key: str, data: st.DataObject
) -> None:
    changed = data.draw(st.sampled_from(members))
    before = order(members, key)
    after = order([Member(changed.name, weight) if member == changed else member for member in members], key)
    others = [name for name in before if name != changed.name]
    assert [name for name in after if name != changed.name] == others
    if weight == 0:
        assert changed.name not in after
    elif weight >= changed.weight:
        assert after.index(changed.name) <= before.index(changed.name)
    else:
        assert after.index(changed.name) >= before.index(changed.name)


@given(memberships(), NAMES, st.randoms(use_true_random=False))
def test_the_order_of_the_file_never_matters(members: list[Member], key: str, source: random.Random) -> None:
    shuffled = source.sample(members, len(members))
    assert order(shuffled, key) == order(members, key)
    assert epoch(shuffled) == epoch(members)


@given(memberships(), NAMES)
def test_scores_tell_the_same_order(members: list[Member], key: str) -> None:
    ring = Rendezvous([*members, Member("_draining", 0)])
    scores = ring.scores(key)
    assert tuple(score.name for score in scores[:-1]) == ring.order(key)
    assert [score.score for score in scores] == sorted((score.score for score in scores), reverse=True)
    assert (scores[-1].name, scores[-1].score) == ("_draining", 0.0)
    assert {score.name: score.weight for score in scores[:-1]} == {member.name: member.weight for member in members}


@given(memberships(), NAMES, NAMES)
def test_the_cache_changes_no_answer(members: list[Member], first: str, second: str) -> None:
    ring = Rendezvous(members, cached_keys=1)
    for key in (first, second, first, first):
        assert ring.first(key) == order(members, key)[0]


@given(memberships(), NAMES)
def test_the_first_is_the_first_of_the_order(members: list[Member], key: str) -> None:
    assert Rendezvous(members).first(key) == order(members, key)[0]


SCRIPT = """
import hashlib
from proxy.model import Identity
from proxy.routing.cluster import Cluster
from proxy.settings.models import Backends, Routing
servers = {f"dovecot-{number}": {"url": f"imap://10.0.0.{number}", "weight": 1 + number % 3} for number in range(8)}
# In the order of the set, which is another with every seed.
backends = Backends.model_validate({"servers": [{"name": name, **servers[name]} for name in set(servers)]})
cluster = Cluster(backends, Routing(), 0.0)
hasher = hashlib.sha256(cluster.epoch.encode())
for number in range(100_000):
    hasher.update(cluster.place(Identity(f"person{number}@example.org", "file")).home.encode() + b" ")
print(hasher.hexdigest())
"""


def test_processes_agree_whatever_their_hash_seed() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env=os.environ | {"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("0", "1", "4294967295", "random")
    ]
    printed = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(set(printed)) == 1
    assert len(printed[0]) == 64


def test_the_users_of_a_backend_that_leaves_are_spread_over_all_others() -> None:
    members = [Member(f"dovecot-{number}") for number in range(20)]
    names = [f"person{number}@example.org" for number in range(40_000)]
    before, after = Rendezvous(members), Rendezvous(members[1:])
    moved = Counter(after.first(name) for name in names if before.first(name) == "dovecot-0")
    assert set(moved) == {member.name for member in members[1:]}
    average = moved.total() / 19
    # Chi-square with 18 degrees of freedom: outside of these less than once in five hundred, were the hash fair.
    assert 5 < sum((count - average) ** 2 / average for count in moved.values()) < 42


def test_homes_are_spread_evenly() -> None:
    people, backends = 200_000, 100
    ring = Rendezvous([Member(f"dovecot-{number}") for number in range(backends)], cached_keys=1)
    homes = Counter(ring.first(f"person{number}@example.org") for number in range(people))
    average = people / backends
    assert len(homes) == backends
    # Chance allows for 1.056, the highest of 100 standing 2.5 standard deviations up; these names come to 1.048, and
    # a million of them to 1.023.
    assert max(homes.values()) / average <= 1.05
    # Chi-square with 99 degrees of freedom: outside of these less than once in a thousand, were the hash fair.
    assert 61 < sum((count - average) ** 2 / average for count in homes.values()) < 149


@pytest.mark.parametrize("gone", [None, "big"])
def test_homes_follow_the_weights(gone: str | None) -> None:
    weights = {"small": 1, "middle": 2, "large": 3, "big": 4}
    ring = Rendezvous([Member(name, weight) for name, weight in weights.items() if name != gone])
    people = 20_000
    homes = Counter(ring.first(f"person{number}@example.org") for number in range(people))
    total = sum(weight for name, weight in weights.items() if name != gone)
    assert set(homes) == set(weights) - {gone}
    for name, count in homes.items():
        assert count / people == pytest.approx(weights[name] / total, abs=0.012)
