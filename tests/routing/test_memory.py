"""What one process tells the others of the backends: what holds, what does not, and what they are told of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from proxy.routing.cluster import Cluster
from proxy.settings.models import Backends, Routing, Server
from tests.routing.clusters import HEALTH, THREE, cluster, fail, placed, recover

DISCOVERY: dict[str, Any] = {"dns": "mail.example", "scheme": "imap"}


def discovering(failover: str = "30s", tls: dict[str, Any] | None = None, **discovery: Any) -> Cluster:
    return Cluster(
        Backends.model_validate(
            {
                "servers": [{"name": "own", "url": "imap://own.example"}],
                "discovery": DISCOVERY | discovery,
                "health": HEALTH,
                "failover": failover,
                "tls": tls or {},
            }
        ),
        Routing(),
        0.0,
    )


def server(name: str, **keys: Any) -> Server:
    return Server.model_validate({"name": name, "url": f"imap://{name}.mail.example", **keys})


def memory(made: Cluster, now: float = 100.0, **addresses: tuple[str, ...]) -> Any:
    return json.loads(json.dumps(made.memory(now, addresses)))


def told(made: Cluster, memory: Any, now: float = 100.0) -> list[str]:
    return [f"{event.kind} {event.backend}" for event in made.recall(memory, now)]


def test_a_follower_is_told_once() -> None:
    made, _ = cluster(failover="30s")
    other, heard = cluster(failover="30s")
    steps: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: fail(made, "dovecot-1", 1.0), ["went_down dovecot-1"]),
        (lambda: made.tick(31.0), ["failed_over dovecot-1"]),
        (lambda: made.set_state("dovecot-2", "down", 32.0), ["closed dovecot-2"]),
        (lambda: made.set_weight("dovecot-3", 7, 33.0), ["changed dovecot-3"]),
        (lambda: recover(made, "dovecot-1", 34.0), ["came_up dovecot-1"]),
        (lambda: made.tick(95.0), ["returned dovecot-1"]),
        (lambda: made.set_state("dovecot-2", "up", 96.0), ["changed dovecot-2", "returned dovecot-2"]),
    ]
    for happen, events in steps:
        revision = made.revision
        happen()
        assert made.revision > revision
        assert told(other, memory(made)) == events
        assert told(other, memory(made)) == []
        assert other.epoch == made.epoch
    assert heard == []


def test_what_cannot_be_seen_is_passed_on_too() -> None:
    made, other = discovering(), discovering()
    revision = made.revision
    made.discovered([], 1.0)  # the first answer: who comes later has to prove himself
    assert made.revision > revision
    made.set_state("own", "down", 2.0)
    made.discovered([server("d1")], 2.0)
    recover(made, "d1", 2.0)
    fail(made, "own", 3.0)
    revision = made.revision
    made.tick(33.0)  # it has failed over, which shows when it is set up again
    assert made.revision > revision
    other.recall(memory(made), 100.0)
    for each in (made, other):
        each.set_state("own", "up", 100.0)
        assert each.snapshot(100.0)[0].failed_over


def test_ages_go_on() -> None:
    made, _ = cluster()
    other, _ = cluster()
    fail(made, "dovecot-1", 40.0)
    other.recall(memory(made, 100.0), 5.0)
    assert [each.seconds for each in other.snapshot(7.0)] == [102.0 - 40.0, 102.0, 102.0]
    assert other.snapshot(7.0)[0].reason == "connection refused"


def test_the_hold_down_is_not_begun_anew() -> None:
    made, _ = cluster(failover="30s")
    fail(made, "dovecot-1", 1.0)
    made.tick(31.0)
    recover(made, "dovecot-1", 100.0)
    other, heard = cluster(failover="30s")
    other.recall(memory(made, 140.0), 140.0)
    other.tick(159.0)
    assert heard == []
    other.tick(160.0)
    assert heard == ["returned dovecot-1"]


@pytest.mark.parametrize(
    ("set_before", "said", "set_now", "state"),
    [
        ("up", "drain", "up", "drain"),
        ("up", "drain", "down", "down"),  # the settings have changed their word
        ("up", "drain", "drain", "drain"),
        ("drain", "up", "drain", "up"),
        ("drain", "up", "up", "up"),
        ("up", None, "drain", "drain"),
    ],
)
def test_an_administrators_word_holds_until_the_settings_change(
    set_before: Any, said: Any, set_now: Any, state: Any
) -> None:
    made, _ = cluster(THREE | {"dovecot-1": {"state": set_before, "weight": 2}})
    if said:
        made.set_state("dovecot-1", said, 1.0)
        made.set_weight("dovecot-1", 5, 1.0)
    other, _ = cluster(THREE | {"dovecot-1": {"state": set_now, "weight": 2}})
    other.recall(memory(made), 0.0)
    seen = other.snapshot(0.0)[0]
    assert (seen.state, seen.weight) == (state, 5 if said else 2)
    made.set_weight("dovecot-1", 2, 1.0)  # what is said no more is forgotten
    other.recall(memory(made), 0.0)
    assert other.snapshot(0.0)[0].weight == 2


def test_a_server_that_has_moved_is_a_new_one() -> None:
    made, _ = cluster()
    fail(made, "dovecot-1", 1.0)
    other, _ = cluster(THREE | {"dovecot-1": {"url": "imap://10.9.9.9"}})
    assert told(other, memory(made)) == []
    assert other.snapshot(0.0)[0].up


def test_discovered_servers_come_whole() -> None:
    made, other = discovering(), discovering()
    made.discovered([server("d1", weight=3, tag="gold"), server("d2")], 1.0)
    assert told(other, memory(made, d1=("10.0.0.1", "::1"), own=("10.0.0.9",))) == ["added d1", "added d2"]
    assert other.servers() == made.servers()
    assert other.addresses == {"d1": ("10.0.0.1", "::1"), "d2": ()}
    assert other.epoch == made.epoch
    made.discovered([server("d2"), server("d3")], 2.0)  # d3 has to prove itself
    assert told(other, memory(made)) == ["removed d1", "added d3"]
    assert other.epoch == made.epoch
    recover(other, "d3", 3.0)
    assert not other.snapshot(3.0)[-1].failed_over
    made.discovered([server("d2", url="imap://10.0.0.7"), server("d3")], 4.0)
    assert "changed d2" in told(other, memory(made))
    assert other.servers() == made.servers()


def test_who_comes_later_has_to_prove_himself_to_the_next_too() -> None:
    made, other = discovering(), discovering()
    made.discovered([server("d1")], 1.0)
    other.recall(memory(made), 1.0)
    other.discovered([server("d1"), server("d2")], 2.0)
    assert [each.failed_over for each in other.snapshot(2.0)] == [False, False, True]


def test_one_that_fails_after_it_was_found() -> None:
    made, other = discovering(), discovering()
    made.discovered([server("d1")], 1.0)
    fail(made, "d1", 2.0)
    assert told(other, memory(made)) == ["added d1", "went_down d1"]


OTHERS = [
    ("another name", {"dns": "other.example"}),
    ("another scheme: what was found in clear is not for TLS", {"scheme": "imaps"}),
    ("another port", {"port": 1143}),
    ("other names", {"ordinal_names": True}),
]


@pytest.mark.parametrize("discovery", [case[1] for case in OTHERS], ids=[case[0] for case in OTHERS])
def test_servers_that_somebody_else_asked_for_are_his(discovery: dict[str, Any]) -> None:
    made, other = discovering(), discovering(**discovery)
    made.discovered([server("d1")], 1.0)
    assert told(other, memory(made)) == []
    assert [each.name for each in other.servers()] == ["own"]
    other.discovered([server("d9")], 1.0)
    assert told(other, memory(made)) == []  # and his own stay
    assert [each.name for each in other.servers()] == ["own", "d9"]
    assert not other.snapshot(1.0)[-1].failed_over  # the first that he has found


def test_what_was_pinned_by_a_certificate_needs_one() -> None:
    made = discovering(scheme="imaps", tls={"name": "imap.example"})
    made.discovered([server("d1")], 1.0)
    other = discovering(scheme="imaps")
    assert told(other, memory(made)) == []


def test_a_name_in_the_settings_wins() -> None:
    made, other = discovering(), discovering()
    made.discovered([server("d1")], 1.0)
    told_of = memory(made)
    told_of["backends"]["own"] = told_of["backends"]["d1"] | {"server": {"name": "own", "url": "imap://10.6.6.6"}}
    told_of["backends"]["d2"] = told_of["backends"]["d1"]  # called otherwise than it calls itself
    assert told(other, told_of) == ["added d1"]
    assert str(other.servers()[0].url) == "imap://own.example:143"


def test_a_reason_has_an_end() -> None:
    made, _ = cluster()
    for _ in range(2):
        made.checked("dovecot-1", 1.0, "greeting: " + 10_000 * "x")
    assert len(json.dumps(made.memory(1.0))) < 1000


def test_a_cluster_that_nobody_told_anything_changes_nothing() -> None:
    made, _ = cluster()
    other, _ = cluster()
    where = placed(other, "ann")
    view = other._view
    assert told(other, memory(made)) == []
    assert other._view is view
    assert placed(other, "ann") is where
