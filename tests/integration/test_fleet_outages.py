"""A fleet that loses its server, its members or its way: mail goes on, and all is as it was when they are back."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration.fleet_stage import (
    Fleet,
    Login,
    StartFleet,
    ends,
    idle,
    is_up,
    kill_steward,
    reload,
    write_users,
)
from tests.integration.placement_stage import UNAVAILABLE, Cast, backend_of, order_of, users_of
from tests.servers.pki import Pki
from tests.servers.porter import wait_for
from tests.servers.valkey import PASSWORD

pytestmark = pytest.mark.server

LIMIT = b"NO [LIMIT]"


def lost(cast: Cast) -> list[str]:
    """What the log says of each time that the fleet was lost."""
    return [line["error"] for line in cast.porter.log("fleet.lost")]


def lost_once(cast: Cast) -> str:
    """What the log says of the one time that it was, or soon says."""
    cast.porter.wait_for_log("fleet.lost")
    (error,) = lost(cast)
    return error


def total(fleet: Fleet, name: str) -> float:
    """What all proxies have counted together."""
    return sum(cast.porter.metrics().total(name) for cast in fleet.casts)


# --- the server ---


def test_the_server_dies_and_comes_back_without_its_data(start_fleet: StartFleet) -> None:
    fleet = start_fleet(2, limits={"connections_per_user": 3})
    user, moved, held, *_ = users_of("d1")
    one, other = fleet.casts
    one.command("move", moved, "d3", "--reason", "test")
    other.command("hold", held, "--reason", "test")
    wires = [one.log_in(user), one.log_in(user), other.log_in(user)]
    fleet.wait_for_shares(user, a=2, b=1)
    fleet.valkey.stop()
    # Alone, each lets in as many as it has room for by itself.
    wires += [one.log_in(user), other.log_in(user), other.log_in(user)]
    fleet.until_up(up=False)
    for cast in fleet.casts:
        with cast.log_in(moved) as wire:
            assert backend_of(wire) == "d3"
        assert cast.try_to_log_in(held) == UNAVAILABLE
    other.command("move", held, "d2", "--reason", "said while it was away")
    time.sleep(2)  # it is tried again and again
    fleet.valkey.start()
    fleet.until_up()
    for cast in fleet.casts:
        assert lost_once(cast)
        assert cast.porter.metrics().total("porter_fleet_lost_total") == 1
    fleet.wait_for_shares(user, a=3, b=3)
    assert {backend_of(wire) for wire in wires} == {"d1"}, "who was let in stays"
    for cast in fleet.casts:
        assert cast.try_to_log_in(user).startswith(LIMIT)
        assert backend_of(cast.log_in(moved)) == "d3"
        assert cast.try_to_log_in(held) == UNAVAILABLE
    third = fleet.start("c")
    assert third.try_to_log_in(user).startswith(LIMIT)
    assert backend_of(third.log_in(moved)) == "d3"
    assert third.try_to_log_in(held) == UNAVAILABLE
    third.command("release", held, "--reason", "test")
    for cast in (third, one, other):
        assert wait_for(lambda cast=cast: cast.try_to_log_in(held) != UNAVAILABLE, 20)  # type: ignore[misc]


def test_the_data_are_lost_while_the_server_lives(start_fleet: StartFleet) -> None:
    fleet = start_fleet(2, limits={"connections_per_user": 2})
    user, held, *_ = users_of("d1")
    fleet.casts[0].command("hold", held, "--reason", "test")
    for cast in fleet.casts:
        cast.log_in(user)
    fleet.wait_for_shares(user, a=1, b=1)
    fleet.valkey.ask("FLUSHALL")
    fleet.wait_for_shares(user, a=1, b=1)
    fleet.until_up()
    for cast in fleet.casts:
        assert cast.try_to_log_in(user).startswith(LIMIT)
        assert cast.try_to_log_in(held) == UNAVAILABLE
    assert fleet.valkey.ask("HKEYS", "imap-porter:said") == held


def test_a_frozen_server_keeps_nobody_waiting_twice(start_fleet: StartFleet) -> None:
    fleet = start_fleet(2, limits={"connections_per_user": 2})
    user, stranger, *strangers = users_of("d1")
    one, other = fleet.casts
    one.log_in(user)
    other.log_in(user)
    fleet.wait_for_shares(user, a=1, b=1)
    fleet.valkey.send(signal.SIGSTOP)
    one.log_in(stranger)  # this one may have waited for it
    assert not is_up(one)
    asked = one.porter.metrics().total("porter_fleet_request_duration_seconds_count")
    for each in strangers:
        one.log_in(each)
    assert one.porter.metrics().total("porter_fleet_request_duration_seconds_count") == asked, "nobody asks it"
    fleet.until_up(up=False)
    fleet.valkey.send(signal.SIGCONT)
    fleet.until_up()
    fleet.wait_for_shares(user, a=1, b=1)
    fleet.wait_for_shares(stranger, a=1)
    assert other.try_to_log_in(user).startswith(LIMIT)
    for cast in fleet.casts:
        assert "no answer in time" in lost_once(cast)


def test_who_was_divided_meanwhile_is_brought_together(start_fleet: StartFleet) -> None:
    """Some of his sessions are inside a command, and leave later than the others: he counts once."""
    fleet = start_fleet(2, routing={"move_patience": "15s"})
    user = users_of("d1")[0]
    fleet.valkey.stop()
    fleet.until_up(up=False)
    fleet.casts[1].command("weight", "d1", "0", "--reason", "test")
    sessions = {cast: [cast.log_in(user) for _ in range(3)] for cast in fleet.casts}
    assert [{backend_of(wire) for wire in wires} for wires in sessions.values()] == [{"d1"}, {order_of(user)[1]}]
    for idling, _, busy in sessions.values():
        idle(idling)
        busy.send(b"x APPEND INBOX {10+}\r\n12345")
    fleet.valkey.start()
    fleet.until_up()
    assert wait_for(lambda: any(cast.porter.log("fleet.divided") for cast in fleet.casts), 20)
    (later,) = [cast for cast in fleet.casts if cast.porter.log("fleet.divided")]
    (staying,) = [cast for cast in fleet.casts if cast is not later]
    idling, between, busy = sessions[later]
    assert ends(idling)
    assert ends(between)
    login = Login(later, user)
    assert busy.silent_for(1)
    assert login.waits
    busy.send(b"67890\r\n")
    assert ends(busy)
    home = backend_of(sessions[staying][1])
    assert backend_of(login.let_in()) == home
    assert backend_of(staying.log_in(user)) == home
    busy = sessions[staying][2]
    busy.send(b"67890\r\n")
    assert busy.until(b"x")[-1].startswith(b"x OK")
    assert len(later.porter.log("fleet.divided")) == 1
    assert total(fleet, "porter_users_divided_total") == 1


# --- members ---


def test_members_that_die_or_hang(start_fleet: StartFleet, short_folder: Path) -> None:
    """What a dead proxy had counts for 15 s more. One whose worker hangs lives, and so do its sessions."""
    limited, called, stuck, *_ = users_of("d1")
    names = [limited, called, stuck]
    fleet = start_fleet(0, limits={"connections_per_user": 2}, routing={"move_patience": "1s", "move_delay": "200ms"})
    one = fleet.start("a", identity=write_users(short_folder / "a.yaml", names, {called: "d3", stuck: "d3"}))
    identity = write_users(short_folder / "others.yaml", names)
    dying, hanging = fleet.start("b", identity=identity), fleet.start("c", identity=identity, workers=1)
    for user in (limited, limited, called):
        dying.log_in(user)
    hanging_wire = hanging.log_in(stuck)
    fleet.wait_for_shares(limited, b=2)
    fleet.wait_for_shares(stuck, c=1)
    dying.kill()
    (worker,) = hanging.porter.pids("worker")
    os.kill(worker, signal.SIGSTOP)
    try:
        waiting, in_vain = Login(one, called), Login(one, stuck)
        assert one.try_to_log_in(limited).startswith(LIMIT)
        assert waiting.waits
        assert wait_for(lambda: one.try_to_log_in(limited).startswith(b"OK"), 40)
        assert backend_of(waiting.let_in()) == "d3"
        in_vain.join(60)
        assert in_vain.answer == UNAVAILABLE, "never at two backends at once"
        (line,) = one.porter.wait_for_log("login.refused", authentication_identity=stuck)
        assert "have not ended" in line["detail"]
    finally:
        os.kill(worker, signal.SIGCONT)
    assert ends(hanging_wire), "he was told"
    assert backend_of(one.log_in_at_last(stuck)) == "d3"
    assert wait_for(lambda: one.porter.metrics().total("porter_fleet_members") == 2, 20)


def test_who_is_stopped_does_not_count_at_once(start_fleet: StartFleet) -> None:
    fleet = start_fleet(2, limits={"connections_per_user": 2})
    user = users_of("d1")[0]
    one, other = fleet.casts
    for _ in range(2):
        other.log_in(user)
    fleet.wait_for_shares(user, b=2)
    assert one.try_to_log_in(user).startswith(LIMIT)
    other.porter.stop()
    assert fleet.members() == {"a"}
    assert fleet.shares(user) == {}
    assert one.try_to_log_in(user).startswith(b"OK")


def test_two_of_one_name(start_fleet: StartFleet) -> None:
    fleet = start_fleet(1, limits={"connections_per_user": 1})
    user = users_of("d1")[0]
    (first,) = fleet.casts
    second = fleet.start("a", joins=False)
    second.porter.wait_for_log("fleet.name_taken", fleet_name="a")
    status = second.porter.status()["fleet"]
    assert (status["name"], status["up"], status["members"]) == ("a", False, [])
    assert 'another proxy is called "a"' in status["error"]
    first.log_in(user)
    fleet.wait_for_shares(user, a=1)
    assert second.try_to_log_in(user).startswith(b"OK"), "it goes on alone"
    fleet.wait_for_shares(user, a=1)
    assert is_up(first)
    first.porter.stop()
    fleet.until_up(second)
    status = second.porter.status()["fleet"]
    assert status == {"name": "a", "up": True, "members": ["a"], "error": None}
    assert len(second.porter.log("fleet.name_taken")) == 1
    second.log_in(user)
    fleet.wait_for_shares(user, a=1)


def test_a_member_outlives_its_processes(start_fleet: StartFleet) -> None:
    """A reload, and the death of a steward or a worker: what is there counts once, and what has gone does not."""
    fleet = start_fleet(2, limits={"connections_per_user": 3})
    user = users_of("d1")[0]
    one, other = fleet.casts
    first, *_ = wires = [one.log_in(user) for _ in range(3)]
    for renew in (reload, kill_steward):
        fleet.wait_for_shares(user, a=3)
        renew(one)
        assert fleet.members() == {"a", "b"}
        assert fleet.shares(user) == {"a": "3 3"}
        for cast in fleet.casts:
            assert cast.try_to_log_in(user).startswith(LIMIT)
        for wire in wires:
            assert wire.command(b"NOOP")[-1].split()[1] == b"OK"
    first.close()
    fleet.wait_for_shares(user, a=2)
    other.log_in(user)
    fleet.wait_for_shares(user, a=2, b=1)
    for cast in fleet.casts:
        assert cast.try_to_log_in(user).startswith(LIMIT)
    one.porter.kill_one("worker")
    one.porter.wait_for_log("process.restarted", role="worker", seconds=20)
    one.porter.kill_one("worker")
    one.porter.wait_for_log("process.restarted", 2, role="worker", seconds=20)
    for cast in fleet.casts:
        cast.close()
    fleet.wait_for_shares(user)
    assert lost(one) == lost(other) == []
    assert one.porter.log("fleet.name_taken") == []


# --- the way there ---


def test_the_way_to_the_server(start_fleet: StartFleet, pki: Pki, short_folder: Path) -> None:
    """With TLS; and where its certificate or our password is wrong, the log says so, and mail goes on."""
    fleet = start_fleet(0, limits={"connections_per_user": 1})
    user = users_of("d1")[0]
    tls = {"valkey": fleet.valkey.tls_url}
    wrong_password = "wrong-valkey-pw-8s"
    (short_folder / "wrong").write_text(wrong_password + "\n")
    one = fleet.start("a", fleet={**tls, "ca": str(pki.ca)})
    other = fleet.start("b")
    wrong_ca = fleet.start("c", joins=False, fleet={**tls, "ca": str(pki.wrong_ca)})
    stranger = fleet.start("d", joins=False, fleet={"password": {"file": str(short_folder / "wrong")}})
    one.log_in(user)
    fleet.wait_for_shares(user, a=1)
    assert other.try_to_log_in(user).startswith(LIMIT)
    for cast, error in ((wrong_ca, "certificate verify failed"), (stranger, "invalid username-password pair")):
        assert error in lost_once(cast)
        cast.log_in(user)
        assert cast.porter.status()["fleet"]["error"] == lost_once(cast)
    for cast in fleet.casts:
        assert PASSWORD not in cast.porter.output()
        assert wrong_password not in cast.porter.output()
