"""One user, one backend, whatever happens to three real Dovecots."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from tests.integration.placement_stage import UNAVAILABLE, Cast, StartCast, backend_of, order_of, users_of
from tests.servers.accounts import USERS
from tests.servers.dovecot import Dovecot
from tests.servers.porter import wait_for
from tests.servers.wire import Wire

pytestmark = pytest.mark.server


def test_everybody_is_at_home(start_cast: StartCast) -> None:
    cast = start_cast()
    for user in USERS:
        wire = cast.log_in(user)
        assert backend_of(wire) == order_of(user)[0]
        wire.close()


# --- losing a backend ---


def test_a_killed_backend_is_told_of_within_the_spread(start_cast: StartCast, three: list[Dovecot]) -> None:
    cast = start_cast()
    lost_users, kept_users = users_of("d1"), [*users_of("d2"), *users_of("d3")]
    lost = [cast.log_in(lost_users[number % len(lost_users)]) for number in range(200)]
    kept = [cast.log_in(user) for user in kept_users]
    three[0].kill()
    killed = time.monotonic()
    told: list[bytes] = [b""] * len(lost)
    at = [0.0] * len(lost)

    def hear(number: int, wire: Wire) -> None:
        told[number] = wire.rest()
        at[number] = time.monotonic() - killed

    hearing = [threading.Thread(target=hear, args=pair) for pair in enumerate(lost)]
    for thread in hearing:
        thread.start()
    for thread in hearing:
        thread.join()
    assert set(told) == {b"* BYE [UNAVAILABLE] Mail server connection lost; please reconnect.\r\n"}
    # Neither all at once nor later than the spread of a second; the slack is for a machine that is busy.
    assert 0.3 < max(at) < 4
    closed = cast.porter.wait_for_log("session.closed", len(lost), outcome="backend_closed", backend="d1")
    assert len(closed) == len(lost)
    # Of each worker's the first eight hear of it at once.
    assert cast.porter.metrics().total("porter_partings_postponed_total") == len(lost) - 2 * 8
    for wire in kept:
        assert wire.command(b"NOOP")[-1].split()[1] == b"OK"
    cast.until_up("d1", False)
    assert cast.try_to_log_in(lost_users[0]) == UNAVAILABLE
    (refused, *_) = cast.porter.wait_for_log("login.refused", backend="d1")
    assert refused["outcome"] == "unavailable"
    three[0].start()
    cast.until_up("d1")
    cast.log_in_at_last(lost_users[0])


def test_a_frozen_backend_costs_no_session(start_cast: StartCast, three: list[Dovecot]) -> None:
    cast = start_cast()
    user, *_ = users_of("d2")
    sessions = [cast.log_in(user) for _ in range(20)]
    others = [cast.log_in(other) for other in users_of("d3")]
    three[1].send(signal.SIGSTOP)
    with cast.enter() as wire:
        wire.socket.settimeout(8)  # the deadlines of one login make three seconds
        assert wire.login(user, USERS[user]) == UNAVAILABLE
    cast.until_up("d2", False)
    assert cast.try_to_log_in(user) == UNAVAILABLE
    refused = cast.porter.wait_for_log("login.refused", 2)
    assert refused[-1]["step"] == "", "refused at once: the backend was not even asked"
    for wire in others:
        assert wire.command(b"NOOP")[-1].split()[1] == b"OK"
    three[1].send(signal.SIGCONT)
    for wire in sessions:
        assert wire.command(b"NOOP")[-1].split()[1] == b"OK"
    cast.until_up("d2")
    assert backend_of(cast.log_in_at_last(user)) == "d2"
    assert [line for line in cast.porter.log("session.closed") if line["outcome"] == "backend_closed"] == []


# --- failover ---


def test_users_go_to_their_next_choice_and_return(start_cast: StartCast, three: list[Dovecot]) -> None:
    cast = start_cast(backends={"failover": "500ms"}, routing={"move_delay": "500ms"})
    away, *rest = users_of("d3")
    homes = {user: order_of(user)[0] for user in USERS}
    three[2].kill()
    cast.porter.wait_for_log("backend.failed_over", backend="d3")
    epoch = cast.porter.log("backend.failed_over")[0]["epoch"]
    guest = cast.log_in_at_last(away)
    assert backend_of(guest) == order_of(away)[1]
    for user in [*rest, *users_of("d1"), *users_of("d2")]:
        wire = cast.log_in_at_last(user)
        expected = order_of(user)[1] if homes[user] == "d3" else homes[user]
        assert backend_of(wire) == expected, "exactly the users of the lost one"
        wire.command(b"LOGOUT")
    three[2].start()
    cast.porter.wait_for_log("backend.returned", backend="d3", seconds=20)
    assert cast.porter.log("backend.returned")[0]["epoch"] != epoch
    second = cast.log_in_at_last(away)
    assert backend_of(second) == order_of(away)[1], "as long as he has a session there"
    for user in rest:
        wire = cast.log_in_at_last(user)
        assert backend_of(wire) == "d3"
        wire.command(b"LOGOUT")
    for wire in (guest, second):
        wire.command(b"LOGOUT")
        wire.close()
    assert wait_for(lambda: cast.backends()[order_of(away)[1]]["sessions"] == 0)
    assert backend_of(cast.log_in_at_last(away)) == "d3"


def test_a_frozen_backend_is_left_for_good(start_cast: StartCast, three: list[Dovecot]) -> None:
    """It may live on unseen: the sessions there are given up, told so, and counted."""
    cast = start_cast(backends={"failover": "500ms"}, routing={"move_delay": "500ms"})
    user, *_ = users_of("d1")
    sessions = [cast.log_in(user) for _ in range(3)]
    three[0].send(signal.SIGSTOP)
    cast.porter.wait_for_log("backend.failed_over", backend="d1", seconds=20)
    for wire in sessions:
        assert wire.rest() == b"* BYE [UNAVAILABLE] Mail server connection lost; please reconnect.\r\n"
    assert backend_of(cast.log_in_at_last(user)) == order_of(user)[1]
    assert cast.porter.metrics().total("porter_sessions_abandoned_total", backend="d1") == 3


# --- what administrators say ---


class Worker(threading.Thread):
    """A client that gives commands without a pause, comes back when it is sent away, and misses no answer."""

    def __init__(self, cast: Cast, user: str) -> None:
        super().__init__()
        self.cast, self.user = cast, user
        self.stopping = threading.Event()
        self.answered = 0
        self.places: list[str] = []
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self._live()
        except BaseException as exc:
            self.problem = exc

    def _live(self) -> None:
        wire = self.cast.log_in_at_last(self.user, 60)
        self.places.append(backend_of(wire))
        command = b"SELECT INBOX"
        while not self.stopping.is_set():
            # A BYE may meet a command half way: then it was never begun. Within an answer there is none.
            wire.send(b"n " + command + b"\r\n")
            line = b""
            try:
                while not line.startswith(b"n "):
                    line = wire.line()
                    if line.startswith(b"* BYE"):
                        assert wire.rest() == b""
                        wire.close()
                        return
            except EOFError:
                raise AssertionError(f"cut off without a BYE after {self.answered} answers") from None
            self.answered += 1
            assert line.startswith(b"n OK"), line
            command = b"NOOP"
            time.sleep(0.005)
        wire.command(b"LOGOUT")
        wire.close()

    def finish(self) -> None:
        self.stopping.set()
        self.join(60)
        assert not self.is_alive()
        if self.problem is not None:
            raise self.problem
        assert self.answered


def test_a_drain_empties_without_a_lost_command(start_cast: StartCast) -> None:
    cast = start_cast(routing={"move_delay": "300ms"})
    users = users_of("d1")
    busy = [Worker(cast, user) for user in users]
    for worker in busy:
        worker.start()
    idling = [cast.log_in(user) for user in users]
    for wire in idling:
        wire.command(b"SELECT INBOX")
        wire.send(b"i IDLE\r\n")
        assert wire.line().startswith(b"+")
    assert cast.backends()["d1"]["sessions"] == 2 * len(users)
    cast.command("drain", "d1", "--over", "2s", "--reason", "new kernel")
    for wire in idling:
        assert wire.rest().endswith(b"* BYE Your mailbox is being moved to another server; please reconnect.\r\n")
    assert wait_for(lambda: cast.backends()["d1"]["sessions"] == 0, 30), cast.backends()
    assert wait_for(lambda: all(len(worker.places) == 2 for worker in busy), 30)
    for worker in busy:
        worker.finish()
        assert worker.places == list(order_of(worker.user)[:2])
    (line,) = [line for line in cast.porter.log("admin.changed") if line["backend"] == "d1"]
    assert (line["verb"], line["reason"]) == ("drain", "new kernel")
    assert cast.porter.log("ledger.move_stuck") == []
    cast.command("undrain", "d1", "--reason", "done")
    assert cast.backends()["d1"]["state"] == "up"


def test_a_drain_leaves_users_together(start_cast: StartCast) -> None:
    cast = start_cast()
    resident, newcomer, *_ = users_of("d2")
    first = cast.log_in(resident)
    cast.command("drain", "d2", "--reason", "new disks")
    assert backend_of(cast.log_in(resident)) == "d2", "where he has a session"
    assert backend_of(cast.log_in(newcomer)) == order_of(newcomer)[1], "no new homes"
    assert first.command(b"NOOP")[-1].split()[1] == b"OK"


def test_down_without_failover_refuses(start_cast: StartCast) -> None:
    cast = start_cast()
    user, *_ = users_of("d3")
    wire = cast.log_in(user)
    cast.command("down", "d3", "--reason", "moving house")
    assert wire.rest() == b"* BYE Server is going down for maintenance; please reconnect.\r\n"
    assert cast.try_to_log_in(user) == UNAVAILABLE
    cast.command("undrain", "d3", "--reason", "back")
    assert backend_of(cast.log_in(user)) == "d3"


def test_an_override_of_the_settings(start_cast: StartCast) -> None:
    user = users_of("d1")[0]
    cast = start_cast(routing={"overrides": {user: "d3"}})
    assert backend_of(cast.log_in(user)) == "d3"
    shown = cast.command("route", user)
    assert "d3" in shown
    assert "routing.overrides" in shown
