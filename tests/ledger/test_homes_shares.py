"""What other proxies are told of users, and what they tell: shares, who is there, whose sessions have changed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.ledger.guests import Guest
from proxy.ledger.homes import Homes
from proxy.ledger.resident import NOTHING, Share, Stage
from proxy.model import Placement
from proxy.outcome import Outcome, Refused
from proxy.settings.backend_models import Routing
from tests.ledger.test_homes import placed

NOW = 1000.0


def furnished(*, sticky: float = 900.0, delay: float = 2.0) -> Homes:
    """Homes that note whose sessions change."""
    homes = Homes(3, Routing(sticky=sticky, move_delay=delay), lambda: 0.0)
    homes.touched = set()
    return homes


def let_in(
    homes: Homes, *session_ids: str, placement: Placement | None = None, now: float = NOW, verified: bool = True
) -> None:
    """Sessions of ann that their backend lets in."""
    for session_id in session_ids:
        assert homes.admit(session_id, "ann", placement or placed("a"), now, verified=verified) is not None
        homes.confirm(session_id)


def taken(homes: Homes) -> set[str]:
    """Whose sessions are not what they were at the last call."""
    assert homes.touched is not None
    touched, homes.touched = homes.touched, set()
    return touched


def test_the_share_of_a_user() -> None:
    homes = furnished()
    assert homes.share("ann", NOW) == NOTHING
    homes.admit("s1", "ann", placed("a"), NOW, verified=False)
    assert homes.share("ann", NOW) == Share("a", 1, 0)
    homes.confirm("s1")
    let_in(homes, "s2")
    homes.admit("s3", "ann", placed("a"), NOW, verified=False)
    assert homes.share("ann", NOW) == Share("a", 3, 2)
    homes.release("s3", NOW, opened=False)
    homes.release("s1", NOW, opened=True)
    assert homes.share("ann", NOW + 1) == Share("a", 1, 1)
    homes.release("s2", NOW + 5, opened=True)
    assert homes.share("ann", NOW + 8) == Share("a", 0, 0, 3.0, True)
    assert homes.share("ann", NOW + 8000) == NOTHING
    assert homes.share("bob", NOW) == NOTHING


def test_who_was_never_let_in_has_no_share() -> None:
    homes = furnished()
    homes.admit("s1", "ann", placed("a"), NOW, verified=False)
    homes.release("s1", NOW, opened=False)
    assert homes.share("ann", NOW) == NOTHING


def test_who_was_at_a_substitute_need_not_go_back_there() -> None:
    homes = furnished()
    let_in(homes, "s1", placement=placed("b", "failover"))
    homes.release("s1", NOW, opened=True)
    assert homes.share("ann", NOW + 1) == Share("b", 0, 0, 1.0, sticky=False)


def test_the_share_of_somebody_on_the_move() -> None:
    homes = furnished()
    let_in(homes, "s1", "s2")
    homes.move("ann", NOW)
    assert homes.share("ann", NOW) == Share("a", 2, 2)
    homes.release("s1", NOW, opened=True)
    assert homes.share("ann", NOW) == Share("a", 1, 1)
    homes.release("s2", NOW, opened=True)
    assert homes.share("ann", NOW + 1) == Share("a", 0, 0, 1.0, sticky=False)
    homes.advance(NOW + 3)
    assert homes.share("ann", NOW + 3) == NOTHING, "the delay is over, and he goes where placement says"


def test_whose_sessions_are_not_what_they_were() -> None:
    homes = furnished()
    homes.admit("s1", "ann", placed("a"), NOW, verified=False)
    assert taken(homes) == {"ann"}
    homes.confirm("s1")
    assert taken(homes) == {"ann"}, "it counts"
    homes.confirm("s1")
    assert taken(homes) == set()
    let_in(homes, "s2", "s3")
    assert taken(homes) == {"ann"}
    with pytest.raises(Refused):
        homes.admit("s4", "ann", placed("a"), NOW, verified=True)
    assert taken(homes) == set(), "nothing has changed"
    homes.move("ann", NOW)
    homes.advance(NOW)
    assert homes.admit("s5", "ann", placed("b"), NOW, verified=True) is None
    assert taken(homes) == set()
    homes.release("s1", NOW, opened=True)
    homes.release("s1", NOW, opened=True)
    homes.release("nobody's", NOW, opened=True)
    assert taken(homes) == {"ann"}
    homes.restore([Guest("s9", "bob", "c", "l", "w", NOW, "b", Stage.OPENED)], NOW)
    assert taken(homes) == {"bob"}


def test_nobody_wants_to_know() -> None:
    homes = Homes(3, Routing(), lambda: 0.0)
    let_in(homes, "s1")
    homes.release("s1", NOW, opened=True)
    assert homes.touched is None


def test_who_is_there() -> None:
    homes = furnished()
    let_in(homes, "s1", "s2")
    homes.admit("s3", "bob", placed("b"), NOW, verified=False)
    assert sorted(homes.occupants()) == ["ann", "bob"]
    homes.move("ann", NOW)
    assert sorted(homes.occupants()) == ["ann", "bob"]
    for session_id in ("s1", "s2", "s3"):
        homes.release(session_id, NOW, opened=True)
    assert homes.occupants() == []
    assert homes.find("ann", NOW) is not None, "he is on the move still"


REMEMBERED = [
    ("he goes back", placed("b"), True, 100.0, "a"),
    ("he need not go back, and the delay is over", placed("b"), False, 100.0, "b"),
    ("he need not go back, and the delay is not over", placed("b"), False, 1.0, None),
    ("he may not go back", placed("b", "override"), True, 1.0, None),
    ("that was long ago", placed("b"), True, 901.0, "b"),
    ("it is his home", placed("a"), False, 0.0, "a"),
]


@pytest.mark.parametrize(
    ("placement", "sticky", "seconds", "goes"), [row[1:] for row in REMEMBERED], ids=[row[0] for row in REMEMBERED]
)
def test_where_others_know_that_he_was(placement: Placement, sticky: bool, seconds: float, goes: str | None) -> None:
    homes = furnished()
    homes.remember("ann", "a", NOW - seconds, sticky=sticky)
    assert homes.admit("s1", "ann", placement, NOW, verified=True) == goes
    if goes is not None:
        homes.release("s1", NOW, opened=False)
        kept = NOTHING if seconds > 900 else Share("a", 0, 0, seconds, sticky)
        assert homes.share("ann", NOW) == kept, "a login that fails changes nothing of it"
        homes.admit("s2", "ann", placement, NOW, verified=True)
        homes.confirm("s2")
        homes.release("s2", NOW + 5, opened=True)
        assert homes.share("ann", NOW + 5) == Share(goes, 0, 0, 0.0, True)


def test_what_others_know_is_without_effect_while_he_has_sessions() -> None:
    homes = furnished()
    let_in(homes, "s1")
    homes.remember("ann", "b", NOW, sticky=True)
    assert homes.admit("s2", "ann", placed("a"), NOW, verified=True) == "a"
    assert homes.share("ann", NOW) == Share("a", 2, 2)


def test_others_may_not_fill_the_memory() -> None:
    homes = Homes(3, Routing(), lambda: 0.0, most_pins=5)
    for number in range(20):
        homes.remember(f"u{number}", "a", NOW, sticky=True)
    assert (len(homes._pins), homes.pins_dropped) == (5, 15)


@given(st.integers(), st.lists(st.integers(0, 5), max_size=60))
def test_whatever_changes_is_noted(seed: int, steps: list[int]) -> None:
    """A share that is not what it was is that of somebody who is noted, but for time that passes."""
    chance, homes, live, now = random.Random(seed), furnished(), [], NOW
    before = {name: homes.share(name, now) for name in ("ann", "bob")}
    for number, step in enumerate(steps):
        name = chance.choice(("ann", "bob"))
        if step <= 2:
            try:
                placement = placed(chance.choice("ab"), chance.choice(("hash", "override", "failover")))
                if homes.admit(str(number), name, placement, now, verified=step != 2) is not None:
                    live.append(str(number))
            except Refused:
                pass
        elif step == 3 and live:
            try:
                homes.confirm(chance.choice(live))
            except Refused:
                pass
        elif step == 4 and live:
            session_id = live.pop(chance.randrange(len(live)))
            homes.release(session_id, now, opened=chance.random() < 0.5)
        else:
            now += chance.random() * 3
            homes.move(name, now)
            homes.evict("a", Outcome.DRAINED, now, spread=0.0, patience=0.0)
            homes.advance(now)
        touched = taken(homes)
        for who, share in before.items():
            found = homes.share(who, now)
            if (found.sessions, found.counted) != (share.sessions, share.counted):
                assert who in touched
            if found.sessions and share.sessions:
                assert found.backend == share.backend or who in touched
            before[who] = found
        assert {who for who in before if before[who].sessions} == {*homes.occupants()}
