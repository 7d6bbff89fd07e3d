"""Proxies of one fleet before three Dovecots: users, and what administrators say of them, are the same at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest

from proxy.outcome import Outcome
from tests.integration.fleet_stage import (
    Fleet,
    Login,
    StartFleet,
    ends,
    idle,
    kill_steward,
    reload,
    write_users,
)
from tests.integration.placement_stage import UNAVAILABLE, Cast, backend_of, order_of, users_of
from tests.servers.accounts import USERS
from tests.servers.crowd import crowd, wait_until
from tests.servers.pki import Pki
from tests.servers.porter import wait_for
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.postfix import Lookup, write_postmap

pytestmark = pytest.mark.server

LIMIT = b"NO [LIMIT]"


# --- connections_per_user ---


def test_sessions_count_at_all_proxies(start_fleet: StartFleet) -> None:
    """Who is known by his backend's word alone counts from then on."""
    fleet = start_fleet(2, limits={"connections_per_user": 3})
    user = users_of("d1")[0]
    one, other = fleet.casts
    for cast in (one, other, one):
        cast.log_in(user)
    fleet.wait_for_shares(user, a=2, b=1)
    assert other.try_to_log_in(user).startswith(LIMIT)
    one.wires.pop().close()
    fleet.wait_for_shares(user, a=1, b=1)
    other.log_in(user)


def storm(fleet: Fleet, pki: Pki, user: str, each: int, *, settled: int) -> int:
    """So many clients of one user come to each proxy at once, and go; gives how many of them were in at last.

    Args:
        settled: As many as may be in.
    """
    one, other = (cast.door.port for cast in fleet.casts)
    context = pki.client_context()
    with crowd(one, context, USERS[user]) as here, crowd(other, context, USERS[user]) as there:
        for clients in (here, there):
            clients.call([user] * each, "idle")
        records = [*here.records, *there.records]
        wait_until(lambda: all(record.logged_in or record.ended for record in records))
        assert [record.trouble for record in records if record.trouble] == []
        assert all(LIMIT in record.refused for record in records if not record.logged_in)
        wait_until(lambda: sum(record.logged_in and not record.ended for record in records) <= settled, 20)
        staying = sum(record.logged_in and not record.ended for record in records)
        farewells = {record.farewell for record in records if record.logged_in and record.ended}
        assert all(farewell.startswith(b"* BYE [LIMIT]") for farewell in farewells), farewells
    fleet.wait_for_shares(user)
    return staying


def test_a_limit_is_strict_for_whom_the_proxy_itself_verifies(
    start_fleet: StartFleet, pki: Pki, short_folder: Path
) -> None:
    user = users_of("d1")[0]
    identity = write_users(short_folder / "users.yaml", [user])
    fleet = start_fleet(2, limits={"connections_per_user": 5}, identity=identity)
    for _ in range(3):
        assert storm(fleet, pki, user, 15, settled=5) == 5
    for cast in fleet.casts:
        closed = cast.porter.log("session.closed")
        assert {line["outcome"] for line in closed} <= {"client_closed"}, "nobody was let in who had to leave"


def test_a_limit_comes_true_for_whom_the_backend_verifies(start_fleet: StartFleet, pki: Pki) -> None:
    """Some get in at both proxies at the same moment; whoever was too many is sent away at once."""
    fleet = start_fleet(2, limits={"connections_per_user": 5})
    for _ in range(3):
        assert 1 <= storm(fleet, pki, users_of("d1")[0], 15, settled=5) <= 5


# --- one user, one backend ---


def test_he_joins_his_sessions_wherever_he_comes_in(start_fleet: StartFleet) -> None:
    """One proxy is told that his backend drains, the other one is not."""
    fleet = start_fleet(2)
    user, newcomer, *_ = users_of("d1")
    one, other = fleet.casts
    assert backend_of(one.log_in(user)) == "d1"
    other.command("drain", "d1", "--reason", "test")
    assert backend_of(other.log_in(user)) == "d1"
    away = order_of(newcomer)[1]
    assert backend_of(other.log_in(newcomer)) == away
    assert backend_of(one.log_in(newcomer)) == away
    # And after his last session, for a while.
    other.command("undrain", "d1", "--reason", "test")
    other.command("weight", "d1", "0", "--reason", "test")
    for cast in fleet.casts:
        cast.close()
    fleet.wait_for_shares(user)
    fleet.wait_for_shares(newcomer)
    assert backend_of(other.log_in(user)) == "d1"
    assert backend_of(one.log_in(newcomer)) == away
    assert backend_of(other.log_in(newcomer)) == away


def test_an_override_at_one_proxy_calls_him_home(start_fleet: StartFleet) -> None:
    """Settings that differ: what he has elsewhere ends first, each session where it does no harm."""
    user = users_of("d1")[0]
    fleet = start_fleet(0, routing={"move_delay": "200ms", "move_patience": "15s"})
    one, other = fleet.start("a"), fleet.start("b", routing={"overrides": {user: "d3"}})
    idling, between, busy = (one.log_in(user) for _ in range(3))
    idle(idling)
    busy.send(b"x APPEND INBOX {10+}\r\n12345")
    login = Login(other, user)
    assert ends(idling)
    assert ends(between)
    assert busy.silent_for(1)
    assert login.waits
    busy.send(b"67890\r\n")
    assert busy.until(b"x")[-1].startswith(b"x OK")
    assert ends(busy)
    assert backend_of(login.let_in()) == "d3"
    assert other.porter.metrics().total("porter_fleet_waits_total") == 1
    (waits,) = other.porter.wait_for_log("fleet.waits")
    assert (waits["name"], waits["backend"], waits["home"], waits["others"]) == (user, "d1", "d3", 3)
    one.porter.wait_for_log("fleet.order", kind="close", member="b", sessions=3)
    assert backend_of(one.log_in(user)) == "d3", "there he joins them"


def test_a_users_file_that_names_his_backend_at_one_proxy(start_fleet: StartFleet, short_folder: Path) -> None:
    """Who does not come to a safe point is ended where he is when patience is over."""
    user = users_of("d1")[0]
    fleet = start_fleet(0, routing={"move_delay": "200ms", "move_patience": "1s"})
    one = fleet.start("a", identity=write_users(short_folder / "a.yaml", [user]))
    other = fleet.start("b", identity=write_users(short_folder / "b.yaml", [user], {user: "d2"}))
    busy = one.log_in(user)
    busy.send(b"x APPEND INBOX {10+}\r\n12345")
    login = Login(other, user)
    one.porter.wait_for_log("session.closed", outcome="moved", seconds=20)
    busy.rest()
    assert backend_of(login.let_in()) == "d2"
    fleet.wait_for_shares(user, b=1)


def test_a_backend_that_is_down_at_one_proxy(start_fleet: StartFleet) -> None:
    """With failover he goes to his next choice there, and leaves where only the other proxy can reach."""
    fleet = start_fleet(2, backends={"failover": "500ms"})
    user = users_of("d1")[0]
    one, other = fleet.casts
    wire = idle(one.log_in(user))
    other.command("down", "d1", "--reason", "test")
    away = order_of(user)[1]
    login = Login(other, user)
    assert ends(wire)
    assert backend_of(login.let_in()) == away
    assert backend_of(one.log_in(user)) == away, "where he lives, though his home is up here"


def test_what_ends_while_a_login_waits_is_told(start_fleet: StartFleet) -> None:
    """Else others believe that he is still there, for as long as the login waits."""
    fleet = start_fleet(2, routing={"move_delay": "6s", "move_patience": "15s"})
    user = users_of("d1")[0]
    one, other = fleet.casts
    busy = one.log_in(user)
    fleet.wait_for_shares(user, a=1)
    busy.send(b"x APPEND INBOX {10+}\r\n12345")
    one.command("move", user, "d3", "--reason", "test")
    login, elsewhere = Login(one, user), Login(other, user)
    busy.send(b"67890\r\n")
    assert ends(busy)
    fleet.wait_for_shares(user)
    assert login.waits
    assert elsewhere.waits, "for routing.move_delay, too"
    assert backend_of(login.let_in()) == "d3"
    assert backend_of(elsewhere.let_in()) == "d3"


def test_mail_follows_its_reader_to_other_proxies(start_fleet: StartFleet, ports: Ports, tmp_path: Path) -> None:
    port = ports.take()
    fleet = start_fleet(0)
    common = {"tls": "none", "trusted_networks": ["127.0.0.0/8"], "protocol": "socketmap"}
    one, other = fleet.start("a"), fleet.start("b", listeners=[{**common, "address": f"{LOOPBACK}:{port}"}])
    user, stranger, *_ = users_of("d1")
    postmap = write_postmap(tmp_path / "postfix")

    def at(_backend: str) -> Lookup:
        return Lookup(f"lmtp:inet:{LOOPBACK}:24")  # all three have this address

    one.log_in(user)
    other.command("weight", "d1", "0", "--reason", "test")
    assert postmap.look_up(user, port) == at("d1")

    def route(name: str) -> str:
        shown: str = json.loads(other.command("route", name, "--json"))["backend"]
        return shown

    assert route(user) == "d1"
    assert route(stranger) == order_of(stranger)[1]
    one.close()
    fleet.wait_for_shares(user)
    assert route(user) == "d1", "where he was a moment ago"


# --- what administrators say ---


def test_what_is_said_at_one_proxy_holds_at_all(start_fleet: StartFleet) -> None:
    fleet = start_fleet(2)
    moved, held, *_ = users_of("d1")
    one, other = fleet.casts
    wires = [idle(cast.log_in(user)) for cast in (one, other) for user in (moved, held)]
    other.command("move", moved, "d3", "--reason", "test")
    one.command("hold", held, "--reason", "test")
    assert all(map(ends, wires))

    def holds(*casts: Cast) -> None:
        for cast in casts:
            with cast.log_in(moved) as wire:
                assert backend_of(wire) == "d3"
            assert cast.try_to_log_in(held) == UNAVAILABLE

    holds(one, other)
    third = fleet.start("c")
    holds(third)
    reload(other)
    kill_steward(third)
    holds(*fleet.casts)

    third.command("release", held, "--reason", "test")
    for cast in fleet.casts:
        assert wait_for(lambda cast=cast: cast.try_to_log_in(held) != UNAVAILABLE, 20)  # type: ignore[misc]
    one.command("release", moved, "--reason", "test")
    assert wait_for(lambda: "released" in fleet.valkey.ask("HGET", "imap-porter:said", moved), 20)
    reload(other)
    kill_steward(third)
    for cast in fleet.casts:
        cast.log_in(held)
        explained = json.loads(cast.command("explain", moved, "--json"))
        assert explained["directions"] is None, "what was taken back stays so"


def test_a_kick_ends_sessions_at_all_proxies(start_fleet: StartFleet) -> None:
    fleet = start_fleet(3)
    user, stranger, *_ = users_of("d1")
    one, other, third = fleet.casts
    wires = [idle(cast.log_in(user)) for cast in fleet.casts]
    untouched = third.log_in(stranger)
    assert wait_for(lambda: one.porter.metrics().total("porter_fleet_members") == 3, 20)
    one.command("kick", "--user", user, "--reason", "test")
    assert all(ends(wire, Outcome.KICKED) for wire in wires)
    other.porter.wait_for_log("fleet.order", kind="kick", member="a", sessions=1)
    # One session, by its id, from a proxy that does not know it.
    wire = idle(other.log_in(user))
    (session,) = json.loads(other.command("who", "--user", user, "--json"))["sessions"]
    one.command("kick", "--session", session["id"], "--reason", "test")
    assert ends(wire, Outcome.KICKED)
    assert untouched.command(b"NOOP")[-1].split()[1] == b"OK"
    metrics = one.porter.metrics()
    assert metrics.total("porter_fleet_orders_total", kind="kick", way="said") == 2
    assert metrics.total("porter_fleet_orders_total", kind="kick", way="heard") == 0


# --- failed logins ---


LIMITS = {
    "failed_login_delay": "0s",
    "login_failures_per_user": {"count": 4},
    "login_failures_per_address": {"count": 8},
}


def fail(cast: Cast, user: str, *secrets: str) -> None:
    for secret in secrets:
        with cast.enter() as wire:
            assert wire.login(user, secret).startswith(b"NO [AUTHENTICATIONFAILED]")


def refuses(cast: Cast, users: Iterator[str]) -> bool:
    """Whether the right password comes to the limit soon: others tell what they know with a moment's delay.

    Args:
        users: Another one for each try, where it is of matter who has logged in before.
    """
    return wait_for(lambda: cast.try_to_log_in(next(users)).startswith(LIMIT), 10)


def test_failures_count_together(start_fleet: StartFleet, short_folder: Path) -> None:
    secret = short_folder / "fleet.secret"
    secret.write_text("a-secret-of-the-fleet-4w\n")
    fleet = start_fleet(2, limits=LIMITS, fleet={"secret": {"file": str(secret)}})
    guessed, known, other_user, *strangers = (name for name in USERS if name.startswith("u"))
    one, other = fleet.casts
    fail(one, guessed, "wrong-1j", "wrong-2j")
    fail(other, guessed, "wrong-3j")
    fail(other, guessed, "wrong-3j", "wrong-1j")  # the same again is no guess, wherever it was tried
    fail(one, guessed, "wrong-4j")
    assert refuses(one, repeat(guessed))
    assert refuses(other, repeat(guessed))
    one.log_in(known)
    fail(one, other_user, "wrong-5j", "wrong-6j")
    fail(other, other_user, "wrong-7j")
    fail(other, "nobody-7", "wrong-8j")
    assert refuses(one, iter(strangers))
    assert refuses(other, reversed(strangers))
    assert other.try_to_log_in(known).startswith(b"OK"), "he has logged in from there before, by another proxy"
    third = fleet.start("c")
    assert third.try_to_log_in(guessed).startswith(LIMIT)
    assert third.try_to_log_in(other_user).startswith(LIMIT)
    assert third.try_to_log_in(known).startswith(b"OK")


def test_without_a_secret_each_proxy_counts_for_itself(start_fleet: StartFleet) -> None:
    fleet = start_fleet(2, limits=LIMITS)
    one, other = fleet.casts
    guessed = users_of("d1")[0]
    fail(one, guessed, "wrong-1j", "wrong-2j", "wrong-3j", "wrong-4j")
    assert refuses(one, repeat(guessed))
    fail(other, guessed, "wrong-5j")
    other.log_in(guessed)
