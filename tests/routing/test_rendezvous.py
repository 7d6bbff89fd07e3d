"""Golden vectors: placement is a promise to every other proxy and to the next version of this one."""

from __future__ import annotations

import hashlib
import math
from decimal import Decimal, localcontext

import pytest

from proxy.routing.rendezvous import Member, Rendezvous, epoch

EVEN = {"dovecot-1": 1, "dovecot-2": 1, "dovecot-3": 1}
UNEVEN = {"dovecot-1": 1, "dovecot-2": 2, "dovecot-3": 5, "cyrus.example.org": 10}
SETS = {"one": {"only": 7}, "even": EVEN, "heavy": dict.fromkeys(EVEN, 1000), "uneven": UNEVEN}
KEYS = ["alice@example.org", "bob@example.org", "carol", "example.org", "jürgen@bücher.example", "李@例子.example"]


def plain_scores(weights: dict[str, int], key: str) -> dict[str, Decimal]:
    """The definition once more, with fifty decimal digits and without any cleverness."""
    with localcontext() as context:
        context.prec = 50
        scores = {}
        for name, weight in weights.items():
            digest = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=8).hexdigest()
            h = (Decimal(int(digest[:13], 16)) + Decimal("0.5")) / Decimal(2**52)
            scores[name] = -weight / h.ln()
        return scores


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("weights", SETS.values(), ids=SETS)
def test_the_definition(weights: dict[str, int], key: str) -> None:
    expected = plain_scores(weights, key)
    ring = Rendezvous(Member(name, weight) for name, weight in weights.items())
    assert ring.order(key) == tuple(sorted(expected, key=expected.__getitem__, reverse=True))
    for score in ring.scores(key):
        assert score.score == pytest.approx(float(expected[score.name]), rel=1e-15)


GOLDEN_ORDERS = [
    ("even", "alice@example.org", ["dovecot-1", "dovecot-3", "dovecot-2"]),
    ("even", "bob@example.org", ["dovecot-1", "dovecot-2", "dovecot-3"]),
    ("even", "carol", ["dovecot-3", "dovecot-1", "dovecot-2"]),
    ("even", "example.org", ["dovecot-1", "dovecot-3", "dovecot-2"]),
    ("even", "jürgen@bücher.example", ["dovecot-1", "dovecot-3", "dovecot-2"]),
    ("even", "李@例子.example", ["dovecot-2", "dovecot-1", "dovecot-3"]),
    ("uneven", "alice@example.org", ["dovecot-3", "cyrus.example.org", "dovecot-1", "dovecot-2"]),
    ("uneven", "bob@example.org", ["dovecot-1", "dovecot-2", "cyrus.example.org", "dovecot-3"]),
    ("uneven", "carol", ["cyrus.example.org", "dovecot-3", "dovecot-2", "dovecot-1"]),
    ("uneven", "example.org", ["cyrus.example.org", "dovecot-3", "dovecot-1", "dovecot-2"]),
    ("uneven", "jürgen@bücher.example", ["dovecot-1", "dovecot-3", "cyrus.example.org", "dovecot-2"]),
    ("uneven", "李@例子.example", ["cyrus.example.org", "dovecot-2", "dovecot-3", "dovecot-1"]),
]


@pytest.mark.parametrize(("weights", "key", "order"), GOLDEN_ORDERS)
def test_golden_orders(weights: str, key: str, order: list[str]) -> None:
    ring = Rendezvous(Member(name, weight) for name, weight in SETS[weights].items())
    assert ring.order(key) == tuple(order)
    assert ring.first(key) == order[0]


GOLDEN_SCORES = [
    (
        "alice@example.org",
        [
            ("dovecot-3", 29.128442836701563),
            ("cyrus.example.org", 25.53019007347161),
            ("dovecot-1", 10.020443127774744),
            ("dovecot-2", 2.754485208520404),
        ],
    ),
    (
        "carol",
        [
            ("cyrus.example.org", 136.97766840299298),
            ("dovecot-3", 32.22081935625969),
            ("dovecot-2", 2.97048455036401),
            ("dovecot-1", 2.5037986606548586),
        ],
    ),
]


@pytest.mark.parametrize(("key", "scores"), GOLDEN_SCORES)
def test_golden_scores(key: str, scores: list[tuple[str, float]]) -> None:
    ring = Rendezvous(Member(name, weight) for name, weight in UNEVEN.items())
    assert [score.name for score in ring.scores(key)] == [name for name, _ in scores]
    assert [score.score for score in ring.scores(key)] == pytest.approx([value for _, value in scores], rel=1e-14)


def test_golden_epochs() -> None:
    assert epoch([Member("a"), Member("b", 2)]) == epoch([Member("b", 2.0), Member("a", 1)]) == "a30ec4f395e5"
    assert epoch([Member("b", 2, "drain"), Member("a", tag="gold")]) == "0ac960089583"
    different = {
        epoch([Member("a"), Member("b", 2)]),
        epoch([Member("a"), Member("b")]),
        epoch([Member("a"), Member("c", 2)]),
        epoch([Member("a"), Member("b", 2, "drain")]),
        epoch([Member("a"), Member("b", 2, tag="drain")]),
        epoch([Member("a"), Member("b", 2), Member("c", 0)]),
        epoch([]),
    }
    assert len(different) == 7


def test_the_hash_is_the_one_of_b2sum() -> None:
    # printf 'dovecot-1\0alice@example.org' | b2sum -l 64
    upper = 0xE7AF86312CBFBCFF >> 12
    (score,) = Rendezvous([Member("dovecot-1", 3)]).scores("alice@example.org")
    assert score.score == -3 / math.log((upper + 0.5) / 2**52)


def test_weight_0_gets_no_homes_and_changes_nobody_elses() -> None:
    with_it = Rendezvous([Member("a", 1), Member("b", 0), Member("c", 1)])
    without = Rendezvous([Member("a", 1), Member("c", 1)])
    for number in range(200):
        assert with_it.order(f"{number}") == without.order(f"{number}")
        assert with_it.first(f"{number}") == without.first(f"{number}")
    assert [score.name for score in with_it.scores("x")][-1] == "b"


@pytest.mark.parametrize("members", [[], [Member("a", 0)]])
def test_nobody_to_place_with(members: list[Member]) -> None:
    assert Rendezvous(members).order("alice") == ()
    assert Rendezvous(members).first("alice") == ""


def test_equal_scores_go_to_the_name_that_sorts_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class SameForAll:
        def copy(self) -> SameForAll:
            return self

        def update(self, data: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return b"\x80" * 8

    monkeypatch.setattr("proxy.routing.rendezvous.blake2b", lambda *args, **kwargs: SameForAll())
    for members, order in (
        ([Member("c"), Member("a"), Member("b")], ("a", "b", "c")),
        ([Member("c", 2), Member("a"), Member("b", 2)], ("b", "c", "a")),
    ):
        ring = Rendezvous(members)
        assert ring.order("x") == order
        assert ring.first("x") == order[0]


@pytest.mark.parametrize("digest", [b"\x00" * 8, b"\xff" * 8])
def test_the_ends_of_the_hash_have_finite_scores(digest: bytes) -> None:
    point = (int.from_bytes(digest) >> 12) + 0.5
    assert 0 < point * 2.0**-52 < 1
    assert 0 < -1 / math.log(point * 2.0**-52) < math.inf


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_a_weight_that_is_none(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        Rendezvous([Member("a", weight)])


def test_a_name_twice() -> None:
    with pytest.raises(ValueError, match="same name"):
        Rendezvous([Member("a", 1), Member("a", 2)])
