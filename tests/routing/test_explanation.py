"""A placement told to people."""

from __future__ import annotations

import pytest

from proxy.model import Identity
from proxy.outcome import Refused
from proxy.routing.cluster import Cluster
from proxy.routing.rendezvous import Member, Rendezvous
from proxy.settings.models import Backends, Routing

SERVERS = [
    {"name": "dovecot-1", "url": "imap://10.0.0.1"},
    {"name": "dovecot-2", "url": "imap://10.0.0.2", "weight": 2},
    {"name": "dovecot-3", "url": "imap://10.0.0.3", "weight": 0},
    {"name": "gold-1", "url": "imap://10.0.1.1", "tag": "gold"},
]
RING = Rendezvous([Member("dovecot-1"), Member("dovecot-2", 2), Member("dovecot-3", 0)])
ROUTING = {"overrides": {"carol@example.org": "DOVECOT-3"}, "tags": {"domains": {"rich.example": "gold"}}}
ALICE = Identity("alice@example.org", "file")


def cluster(failover: str = "never") -> Cluster:
    backends = {"servers": SERVERS, "health": {"down_after": 1, "up_after": 1}, "failover": failover}
    return Cluster(Backends.model_validate(backends), Routing.model_validate(ROUTING), 0.0)


def test_by_hash() -> None:
    made = cluster()
    told = made.explain(ALICE)
    assert (told.name, told.key, told.epoch) == (ALICE.name, ALICE.name, made.epoch)
    assert (told.tag, told.tag_from, told.override, told.override_from) == ("", "", "", "")
    assert [(each.name, each.score) for each in told.order] == [
        (each.name, each.score) for each in RING.scores(ALICE.name)
    ]
    assert [each.weight for each in told.order][-1] == 0
    assert [each.notes for each in told.order] == [("home",), (), ("no one by hash",)]
    assert told.placement == made.place(ALICE)
    assert told.why == "the highest score of those that take new homes"


FROM = [
    (Identity("bob@example.org", "ldap", "10.0.0.1"), "10.0.0.1", "source ldap", "dovecot-1"),
    (Identity("carol@example.org", "ldap", "10.0.0.1"), "DOVECOT-3", "routing.overrides", "dovecot-3"),
]


@pytest.mark.parametrize(("identity", "override", "override_from", "home"), FROM)
def test_an_override(identity: Identity, override: str, override_from: str, home: str) -> None:
    told = cluster().explain(identity)
    assert (told.override, told.override_from) == (override, override_from)
    assert (told.placement.home, told.why) == (home, f"named by {override_from}")
    assert [each.name for each in told.order if "home" in each.notes] == [home]


TAGS = [
    (Identity("ann@rich.example", "file"), "gold", "routing.tags.domains"),
    (Identity("ann@rich.example", "file", attributes={"tag": "gold"}), "gold", "attribute tag"),
]


@pytest.mark.parametrize(("identity", "tag", "tag_from"), TAGS)
def test_a_tag(identity: Identity, tag: str, tag_from: str) -> None:
    told = cluster().explain(identity)
    assert (told.tag, told.tag_from) == (tag, tag_from)
    assert [each.name for each in told.order] == ["gold-1"]


def test_states_and_health() -> None:
    made = cluster("30s")
    first, second = RING.order(ALICE.name)
    made.checked(first, 1.0, "connection refused")
    assert notes(made) == {
        first: ("home", "down: connection refused"), second: (), "dovecot-3": ("no one by hash",)
    }  # fmt: skip
    made.tick(31.0)
    assert notes(made)[first] == ("down: connection refused", "its users go to their next choice")
    assert notes(made)[second] == ("home",)
    assert made.explain(ALICE).why == f"stands in for {first}"
    assert [each.up for each in made.explain(ALICE).order] == [False, True, True]
    made.checked(first, 40.0)
    assert notes(made)[first] == ("up again, its users return later",)
    made.set_state(first, "down", 41.0)
    assert notes(made)[first] == ("set down by an administrator", "its users go to their next choice")
    made.set_state(first, "drain", 42.0)
    assert notes(made)[first] == ("no new homes", "up again, its users return later")
    assert made.explain(ALICE).why == "the highest score of those that take new homes"
    made.set_state(second, "drain", 43.0)
    told = made.explain(ALICE)
    assert told.why == told.placement.problem == "every backend without a tag drains, is down or has weight 0"


def notes(made: Cluster) -> dict[str, tuple[str, ...]]:
    return {each.name: each.notes for each in made.explain(ALICE).order}


def test_who_cannot_be_placed() -> None:
    with pytest.raises(Refused, match='unknown backend "x" given by source file'):
        cluster().explain(Identity("ann@example.org", "file", "x"))
    with pytest.raises(Refused, match='no backend of the pool "silver"'):
        cluster().explain(Identity("ann@example.org", "file", attributes={"tag": "silver"}))
    told = cluster().explain(Identity("ann@example.org", "file", "gold-1", {"tag": "silver"}))
    assert (told.order, told.placement.home) == ((), "gold-1")
