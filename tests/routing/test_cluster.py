"""Who belongs where: by hash, by override, by pool and by what administrators say."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.outcome import Outcome, Refused
from proxy.routing.rendezvous import Member, Rendezvous, epoch
from tests.routing.clusters import NAMES, THREE, cluster, fail, homes, placed, recover

# --- the hash -----------------------------------------------------------------------------------------------------


def test_by_name() -> None:
    made, _ = cluster({"dovecot-1": {}, "dovecot-2": {"weight": 2}, "nobody": {"weight": 0}})
    ring = Rendezvous([Member("dovecot-1"), Member("dovecot-2", 2)])
    assert homes(made) == {name: ring.first(name) for name in NAMES}
    everywhere = {"dovecot-1", "dovecot-2", "nobody"}
    for name in NAMES:
        found = placed(made, name)
        assert (found.why, set(found.joinable), set(found.sticky)) == ("hash", everywhere, everywhere)
        assert (dict(found.closed), found.problem) == ({}, "")
    assert made.epoch == epoch([*ring.members, Member("nobody", 0)])
    assert made.epoch_number == int(made.epoch, 16) < 2**53


def test_by_domain() -> None:
    made, _ = cluster(routing={"hash": "domain"})
    ring = Rendezvous(map(Member, THREE))
    assert set(homes(made).values()) == {ring.first("example.org")}
    assert placed(made, "alice").home == ring.first("alice")


# --- overrides ----------------------------------------------------------------------------------------------------

SERVERS = [
    ("one", "imap://10.0.0.1"),
    ("two", "imaps://mail2.example.org:1993"),
    ("three", "imap://10.0.0.3:1143"),
    ("four", "imap://10.0.0.3:2143"),
    ("five", "imap://10.0.0.5:1143"),
    ("six", "imap://10.0.0.5:1143"),
    ("10.0.0.1", "imap://[2001:db8::7]"),
]
SPELLINGS = [
    ("one", "one"),
    ("ONE", "one"),
    ("10.0.0.1:143", "one"),
    ("10.0.0.1", "10.0.0.1"),  # a name comes before an address
    ("mail2.example.org", "two"),
    ("MAIL2.example.org:1993", "two"),
    ("10.0.0.3:2143", "four"),
    ("[2001:db8::7]:143", "10.0.0.1"),
    ("2001:db8::7", "10.0.0.1"),
    # nobody's alone, or nobody's
    ("10.0.0.3", None),
    ("10.0.0.5:1143", None),
    ("mail2.example.org:993", None),
    ("four ", None),
    ("", None),
]


@pytest.mark.parametrize(("spelled", "backend"), SPELLINGS)
def test_a_source_may_give_an_address(spelled: str, backend: str | None) -> None:
    made, _ = cluster({name: {"url": url} for name, url in SERVERS})
    if backend is None:
        with pytest.raises(Refused, match="unknown backend") as refusal:
            placed(made, "alice@example.org", spelled)
        assert refusal.value.outcome is Outcome.UNAVAILABLE
        assert "by source file" in refusal.value.detail
    else:
        found = placed(made, "alice@example.org", spelled)
        assert (found.home, found.why) == (backend, "override")
        assert set(found.joinable) == set(found.sticky) == {backend}


def test_the_settings_win_over_the_source_and_that_over_the_hash() -> None:
    made, _ = cluster(routing={"overrides": {NAMES[0]: "dovecot-3", NAMES[1]: "dovecot-9"}})
    for backend in (None, "dovecot-1", "dovecot-9"):
        assert placed(made, NAMES[0], backend).home == "dovecot-3"
    with pytest.raises(Refused, match=r'"dovecot-9" given in routing\.overrides'):
        placed(made, NAMES[1], "dovecot-1")
    for backend in THREE:
        assert {placed(made, name, backend).home for name in NAMES[2:]} == {backend}


@pytest.mark.parametrize("failover", ["never", "30s"])
def test_an_override_is_never_failed_over(failover: str) -> None:
    made, _ = cluster(failover=failover)
    made.set_state("dovecot-1", "drain", 1.0)
    assert (placed(made, "ann", "dovecot-1").home, dict(placed(made, "ann", "dovecot-1").closed)) == ("dovecot-1", {})
    made.set_state("dovecot-1", "down", 2.0)
    assert placed(made, "ann", "dovecot-1").home == "dovecot-1"
    assert "dovecot-1" in placed(made, "ann", "dovecot-1").closed
    fail(made, "dovecot-2", 3.0)
    made.tick(100.0)
    assert placed(made, "ann", "dovecot-2").home == "dovecot-2"
    assert "connection refused" in placed(made, "ann", "dovecot-2").closed["dovecot-2"]
    recover(made, "dovecot-2", 101.0)
    assert "dovecot-2" not in placed(made, "ann", "dovecot-2").closed  # his mail is there, whoever else returns later


# --- pools --------------------------------------------------------------------------------------------------------

POOLS = {"gold-1": {"tag": "gold"}, "gold-2": {"tag": "gold"}, "dovecot-1": {}, "dovecot-2": {}}
TAGS = {"tags": {"attribute": "class", "domains": {"rich.example": "gold", "lost.example": "platinum"}}}
BELONGING = [
    ("ann@example.org", {}, ""),
    ("ann@rich.example", {}, "gold"),
    ("ann@RICH.example", {}, "gold"),
    ("rich.example", {}, ""),
    ("ann@example.org", {"class": "gold"}, "gold"),
    ("ann@example.org", {"tag": "gold"}, ""),
    ("ann@lost.example", {"class": "gold"}, "gold"),
    ("ann@rich.example", {"class": ""}, "gold"),
]


@pytest.mark.parametrize(("name", "attributes", "tag"), BELONGING)
def test_pools(name: str, attributes: dict[str, str], tag: str) -> None:
    made, _ = cluster(POOLS, routing=TAGS)
    pool = {backend for backend, keys in POOLS.items() if keys.get("tag", "") == tag}
    found = placed(made, name, **attributes)
    assert found.home == Rendezvous(map(Member, pool)).first(name)
    assert set(found.joinable) == set(found.sticky) == pool


def test_a_pool_that_there_is_not() -> None:
    made, _ = cluster(POOLS, routing=TAGS)
    for name, attributes in (("ann@lost.example", {}), ("ann@example.org", {"class": "platinum"})):
        with pytest.raises(Refused, match='no backend of the pool "platinum"') as refusal:
            placed(made, name, **attributes)
        assert refusal.value.outcome is Outcome.UNAVAILABLE
        assert placed(made, name, "gold-1", **attributes).home == "gold-1"
    only_gold, _ = cluster({"gold-1": {"tag": "gold"}})
    with pytest.raises(Refused, match="no backend without a tag"):
        placed(only_gold, "ann@example.org")


def test_the_tag_counts_in_the_epoch() -> None:
    tagged, _ = cluster(THREE | {"dovecot-1": {"tag": "gold"}})
    assert tagged.epoch != cluster()[0].epoch


# --- states -------------------------------------------------------------------------------------------------------

# state, failover -> in the hash, joinable, sticky, closed, told in the epoch
STATES = [
    ("up", "never", True, True, True, False, "active"),
    ("up", "30s", True, True, True, False, "active"),
    ("drain", "never", False, True, False, False, "drain"),
    ("drain", "30s", False, True, False, False, "drain"),
    ("down", "never", True, True, True, True, "down"),
    ("down", "30s", False, False, False, True, "out"),
]


@pytest.mark.parametrize(("state", "failover", "home", "joinable", "sticky", "closed", "told"), STATES)
def test_states(state: Any, failover: str, home: bool, joinable: bool, sticky: bool, closed: bool, told: str) -> None:
    by_settings, _ = cluster(THREE | {"dovecot-2": {"state": state}}, failover=failover)
    by_word, _ = cluster(failover=failover)
    by_word.set_state("dovecot-2", state, 1.0)
    usual = homes(cluster()[0])
    for made in (by_settings, by_word):
        assert made.epoch == epoch([Member("dovecot-1"), Member("dovecot-2", state=told), Member("dovecot-3")])
        for name in NAMES:
            found = placed(made, name)
            assert ("dovecot-2" in found.joinable, "dovecot-2" in found.sticky) == (joinable, sticky)
            assert ("dovecot-2" in found.closed) == closed
            if usual[name] != "dovecot-2" or home:
                assert (found.home, found.why) == (usual[name], "hash")
            else:
                assert found.home in ("dovecot-1", "dovecot-3")
                assert found.why == ("failover" if state == "down" else "hash")
        made.set_state("dovecot-2", "up", 2.0)
        assert homes(made) == usual


def test_nobody_takes_new_homes() -> None:
    made, _ = cluster({"a": {"state": "drain"}, "b": {"weight": 0}, "c": {"tag": "gold"}})
    found = placed(made, "ann@example.org")
    assert found.home == ""
    assert found.problem == "every backend without a tag drains, is down or has weight 0"
    assert set(found.joinable) == {"a", "b"}
    made.set_state("c", "drain", 1.0)
    assert placed(made, "ann@example.org", tag="gold").problem.startswith('every backend of the pool "gold" drains')


def test_weights() -> None:
    made, heard = cluster()
    made.set_weight("dovecot-2", 0, 1.0)
    assert set(homes(made).values()) == {"dovecot-1", "dovecot-3"}
    made.set_weight("dovecot-2", 5, 2.0)
    ring = Rendezvous([Member("dovecot-1"), Member("dovecot-2", 5), Member("dovecot-3")])
    assert homes(made) == {name: ring.first(name) for name in NAMES}
    assert made.epoch == epoch(ring.members)
    made.set_weight("dovecot-2", 5, 3.0)
    with pytest.raises(ValueError, match="below 0"):
        made.set_weight("dovecot-2", -1, 4.0)
    assert heard == ["changed dovecot-2"] * 2


def test_a_backend_that_nobody_knows() -> None:
    made, heard = cluster()
    with pytest.raises(KeyError):
        made.set_state("x", "up", 1.0)
    with pytest.raises(KeyError):
        made.set_weight("x", 1, 1.0)
    made.checked("x", 1.0, "late")
    made.login_ended("x", 1.0, name="ann", problem="late")
    assert heard == []
