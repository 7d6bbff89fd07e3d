"""Who belongs where while backends fail, recover, come and go, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.model import Identity
from proxy.outcome import Outcome, Refused
from proxy.routing.cluster import BackendEvent, Cluster
from proxy.routing.rendezvous import Member, epoch
from proxy.settings.models import Server
from tests.routing.clusters import NAMES, THREE, cluster, fail, homes, placed, recover, server

# --- health and failover ------------------------------------------------------------------------------------------


def test_without_failover_health_moves_nobody() -> None:
    made, heard = cluster()
    before, usual = made.epoch, homes(made)
    fail(made, "dovecot-2", 10.0)
    made.tick(1000.0)
    assert (made.epoch, homes(made)) == (before, usual)
    found = placed(made, NAMES[0])
    assert dict(found.closed) == {"dovecot-2": "down: connection refused"}
    assert "dovecot-2" in found.joinable
    made.checked("dovecot-2", 1001.0, "no greeting")
    assert dict(placed(made, NAMES[0]).closed) == {"dovecot-2": "down: no greeting"}
    recover(made, "dovecot-2", 1002.0)
    assert dict(placed(made, NAMES[0]).closed) == {}
    assert heard == ["went_down dovecot-2", "came_up dovecot-2"]


def test_failover_and_return() -> None:
    made, heard = cluster(failover="30s")
    before, usual = made.epoch, homes(made)
    fail(made, "dovecot-2", 10.0)
    made.tick(39.9)
    assert (made.epoch, homes(made)) == (before, usual)
    assert "dovecot-2" in placed(made, NAMES[0]).joinable
    made.tick(40.0)
    assert made.epoch == epoch([Member("dovecot-1"), Member("dovecot-2", state="out"), Member("dovecot-3")])
    for name in NAMES:
        found = placed(made, name)
        moved = usual[name] == "dovecot-2"
        assert (found.home != usual[name], found.why) == (moved, "failover" if moved else "hash")
        assert set(found.joinable) == set(found.sticky) == {"dovecot-1", "dovecot-3"}
    recover(made, "dovecot-2", 100.0)
    made.tick(130.0)
    made.checked("dovecot-2", 131.0, "once")  # once is not down
    made.tick(159.9)
    assert made.epoch != before
    made.tick(160.0)
    assert (made.epoch, homes(made)) == (before, usual)
    assert heard == [f"{kind} dovecot-2" for kind in ("went_down", "failed_over", "came_up", "returned")]


def test_who_fails_again_starts_the_hold_down_anew() -> None:
    made, heard = cluster(failover="30s")
    fail(made, "dovecot-2", 0.0)
    made.tick(30.0)
    recover(made, "dovecot-2", 40.0)
    fail(made, "dovecot-2", 90.0)
    made.tick(100.0)
    recover(made, "dovecot-2", 110.0)
    made.tick(169.0)
    assert "returned dovecot-2" not in heard
    made.tick(170.0)
    assert heard[-1] == "returned dovecot-2"


def test_nobody_fails_over_to_nobody() -> None:
    made, heard = cluster({"a": {}, "b": {}, "c": {"state": "drain"}, "d": {"tag": "gold"}}, failover="30s")
    before, usual = made.epoch, homes(made)
    for backend in ("a", "b", "d"):
        fail(made, backend, 0.0)
    made.tick(100.0)
    assert (made.epoch, homes(made)) == (before, usual)
    recover(made, "b", 200.0)  # now there is somebody; b was never out, and a has been down long enough
    assert heard[-2:] == ["came_up b", "failed_over a"]
    assert set(homes(made).values()) == {"b"}


def test_the_last_one_up_returns_at_once() -> None:
    made, heard = cluster({"a": {}, "b": {}}, failover="30s")
    fail(made, "a", 0.0)
    made.tick(30.0)
    recover(made, "a", 40.0)
    fail(made, "b", 50.0)
    assert heard[-2:] == ["went_down b", "returned a"]
    made.tick(80.0)
    assert heard[-1] == "failed_over b"
    assert set(homes(made).values()) == {"a"}


@pytest.mark.parametrize("names", [["a", "b", "c"], ["c", "b", "a"]])
def test_what_happens_at_once_happens_in_the_order_of_names(names: list[str]) -> None:
    made, heard = cluster({name: {} for name in names}, failover="30s")
    for backend in ("c", "a"):
        fail(made, backend, 0.0)
    made.tick(30.0)
    for backend in ("c", "a"):
        recover(made, backend, 40.0)
    made.tick(100.0)
    assert heard[2:4] == ["failed_over a", "failed_over c"]
    assert heard[6:] == ["returned a", "returned c"]


def test_users_logins_count_and_one_broken_mailbox_does_not() -> None:
    made, heard = cluster()
    for now in range(10):
        made.login_ended("dovecot-1", float(now), name="ann", problem="lost")
    assert heard == []
    made.login_ended("dovecot-1", 11.0, name="bob")
    made.login_ended("dovecot-1", 12.0, name="bob", problem="lost")
    made.login_ended("dovecot-1", 13.0, name="ann", problem="lost")
    made.login_ended("dovecot-2", 14.0, name="ann", problem="refused", reached=False)
    made.login_ended("dovecot-2", 15.0, name="ann", problem="refused", reached=False)
    assert heard == ["went_down dovecot-1", "went_down dovecot-2"]
    made.login_ended("dovecot-1", 16.0, name="ann")
    assert dict(placed(made, "x").closed) == {"dovecot-1": "down: lost", "dovecot-2": "down: refused"}


def test_a_drained_backend_fails_as_well() -> None:
    made, _ = cluster(THREE | {"dovecot-1": {"state": "drain"}}, failover="30s")
    usual = homes(made)
    assert set(placed(made, "x").joinable) == set(THREE)
    fail(made, "dovecot-1", 0.0)
    made.tick(30.0)
    assert set(placed(made, "x").joinable) == {"dovecot-2", "dovecot-3"}
    assert homes(made) == usual
    assert {placed(made, name).why for name in NAMES} == {"hash"}  # nobody's home was there


# --- discovery ----------------------------------------------------------------------------------------------------


def found(*names: str, **keys: object) -> list[Server]:
    return [Server.model_validate(server(name, **keys)) for name in names]


def test_discovery() -> None:
    made, heard = cluster({"dovecot-1": {}})
    made.discovered(found("dovecot-3", "dovecot-2"), 1.0)
    assert homes(made) == homes(cluster()[0])
    assert made.epoch == cluster()[0].epoch
    made.set_state("dovecot-2", "drain", 2.0)
    made.set_weight("dovecot-3", 3, 3.0)
    fail(made, "dovecot-3", 4.0)
    heard.clear()
    made.discovered(found("dovecot-2", "dovecot-3", url="imap://10.0.0.9"), 5.0)
    seen = {each.name: each for each in made.snapshot(6.0)}
    assert (seen["dovecot-2"].state, seen["dovecot-3"].weight, seen["dovecot-3"].up) == ("drain", 3, False)
    assert seen["dovecot-2"].url == "imap://10.0.0.9:143"
    made.discovered(found("dovecot-3", url="imap://10.0.0.9"), 7.0)
    made.discovered(found("dovecot-3", url="imap://10.0.0.9"), 8.0)
    made.discovered(found("dovecot-2"), 9.0)
    assert heard == [
        *("changed dovecot-2", "changed dovecot-3", "removed dovecot-2", "removed dovecot-3", "added dovecot-2"),
    ]
    assert [each.state for each in made.snapshot(9.0) if each.name == "dovecot-2"] == ["up"]


def test_a_name_in_the_settings_wins() -> None:
    made, heard = cluster({"dovecot-1": {"weight": 7}})
    made.discovered(found("dovecot-1"), 1.0)
    made.discovered([], 2.0)
    assert heard == []
    assert [each.weight for each in made.servers()] == [7]


def test_a_weight_that_discovery_changes_until_somebody_says_another() -> None:
    made, _ = cluster({"dovecot-1": {}})
    for weight in (2, 3):
        made.discovered(found("dovecot-2", weight=weight), 1.0)
        assert made.snapshot(1.0)[1].weight == weight
    made.set_weight("dovecot-2", 5, 2.0)
    made.discovered(found("dovecot-2", weight=4), 3.0)
    assert made.snapshot(1.0)[1].weight == 5


def test_before_discovery_has_found_anything() -> None:
    made, _ = cluster({})
    with pytest.raises(Refused, match="there is no backend") as refusal:
        placed(made, "ann@example.org")
    assert refusal.value.outcome is Outcome.UNAVAILABLE
    made.discovered(found("dovecot-1"), 1.0)
    assert placed(made, "ann@example.org").home == "dovecot-1"


def test_a_new_one_proves_itself_first() -> None:
    made, heard = cluster({}, failover="30s")
    made.discovered(found("dovecot-1", "dovecot-2"), 1.0)  # the first round: nobody knows more
    assert set(homes(made).values()) == {"dovecot-1", "dovecot-2"}
    made.discovered(found(*THREE), 2.0)
    made.tick(200.0)
    assert "dovecot-3" not in homes(made).values()
    assert placed(made, "x", "dovecot-3").home == "dovecot-3"  # whom an override names may try it
    assert dict(placed(made, "x", "dovecot-3").closed) == {}
    seen = made.snapshot(200.0)[2]
    assert (seen.up, seen.failed_over, seen.reason) == (True, True, "new: not checked yet")
    notes = {each.name: each.notes for each in made.explain(Identity("x", "file")).order}
    assert notes["dovecot-3"] == ("new: not checked yet",)
    for reason in ("", "no greeting", ""):  # twice, but not in a row
        made.checked("dovecot-3", 201.0, reason)
    assert heard == [f"added {name}" for name in THREE]
    made.checked("dovecot-3", 202.0)
    assert heard[3:] == ["returned dovecot-3"]
    assert homes(made) == homes(cluster()[0])
    assert made.snapshot(203.0)[2].reason == ""
    fail(made, "dovecot-3", 300.0)
    made.tick(330.0)
    recover(made, "dovecot-3", 340.0)  # from now on like any other
    assert heard[-1] == "came_up dovecot-3"
    made.discovered(found("dovecot-1", "dovecot-2"), 400.0)
    made.discovered(found(*THREE), 401.0)
    assert "dovecot-3" not in homes(made).values()  # who comes back is new


def test_a_new_one_that_does_not_work_yet() -> None:
    made, heard = cluster({"dovecot-1": {}}, failover="30s")
    made.discovered([], 1.0)
    made.discovered(found("dovecot-2"), 2.0)
    fail(made, "dovecot-2", 3.0)
    assert made.snapshot(3.0)[1].reason == "connection refused"
    made.tick(100.0)
    recover(made, "dovecot-2", 101.0)
    assert heard == [f"{kind} dovecot-2" for kind in ("added", "went_down", "came_up", "returned")]


def test_a_new_one_is_in_at_once_where_nobody_else_is() -> None:
    made, heard = cluster({"dovecot-1": {}}, failover="30s")
    made.discovered([], 1.0)
    made.discovered(found("gold-1", tag="gold"), 2.0)
    assert heard == ["added gold-1", "returned gold-1"]
    assert placed(made, "x", tag="gold").home == "gold-1"


def test_a_new_one_is_in_at_once_where_mail_is_local() -> None:
    made, heard = cluster({"dovecot-1": {}})
    made.discovered([], 1.0)
    made.discovered(found("dovecot-2", "dovecot-3"), 2.0)
    assert homes(made) == homes(cluster()[0])
    assert heard == ["added dovecot-2", "added dovecot-3"]


# --- what is told -------------------------------------------------------------------------------------------------


def test_a_snapshot() -> None:
    made, _ = cluster({"dovecot-1": {"tag": "gold", "weight": 3}, "dovecot-2": {}, "dovecot-3": {}}, failover="30s")
    made.discovered(found("dovecot-0"), 1.0)
    made.set_state("dovecot-0", "drain", 1.0)
    fail(made, "dovecot-2", 5.0)
    made.tick(35.0)
    rows = [
        (each.name, each.tag, each.weight, each.state, each.up, each.since, each.seconds, each.reason)
        for each in made.snapshot(50.0)
    ]
    assert rows == [
        ("dovecot-1", "gold", 3, "up", True, 0.0, 50.0, ""),
        ("dovecot-2", "", 1, "up", False, 5.0, 45.0, "connection refused"),
        ("dovecot-3", "", 1, "up", True, 0.0, 50.0, ""),
        ("dovecot-0", "", 1, "drain", True, 1.0, 49.0, ""),
    ]
    others = [(each.failed_over, each.url, each.discovered) for each in made.snapshot(50.0)]
    assert [each[0] for each in others] == [False, True, False, False]
    assert others[3] == (False, "imap://dovecot-0.example.org:143", True)
    assert [each.name for each in made.servers()] == [row[0] for row in rows]


SAID: list[tuple[str, Callable[[Cluster], None], BackendEvent]] = [
    ("down", lambda made: made.set_state("dovecot-1", "down", 1.0), BackendEvent("dovecot-1", "closed")),
    ("drain", lambda made: made.set_state("dovecot-1", "drain", 1.0), BackendEvent("dovecot-1", "changed")),
    ("weight", lambda made: made.set_weight("dovecot-1", 4, 1.0), BackendEvent("dovecot-1", "changed")),
    ("failure", lambda made: fail(made, "dovecot-1", 1.0), BackendEvent("dovecot-1", "went_down")),
    ("found", lambda made: made.discovered(found("dovecot-4"), 1.0), BackendEvent("dovecot-4", "added")),
]
REASONS = {
    "down": "set down by an administrator",
    "drain": "state drain",
    "weight": "weight 4",
    "failure": "connection refused",
    "found": "imap://dovecot-4.example.org:143",
}


@pytest.mark.parametrize(("what", "say", "event"), SAID, ids=[row[0] for row in SAID])
def test_who_listens_sees_what_has_become_of_it(what: str, say: Callable[[Cluster], None], event: BackendEvent) -> None:
    made, _ = cluster()
    heard: list[tuple[BackendEvent, str, bool]] = []
    made.on_event = lambda event: heard.append((event, made.epoch, "dovecot-1" in placed(made, "ann").closed))
    say(made)
    say(made)  # said twice it is no news
    assert heard == [
        (BackendEvent(event.backend, event.kind, REASONS[what]), made.epoch, event.kind in ("closed", "went_down"))
    ]
