"""Several workers hear of each other's failures and logins, and then they refuse alike."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.auth.throttle import Throttle
from proxy.outcome import Refused
from proxy.settings.limit_models import FailuresPerAddress, FailuresPerUser, Limits

ALICE, BOB = "alice@example.org", "bob@example.org"
HOME, AWAY = "192.0.2.1", "198.51.100.1"
RIGHT, WRONG, PROOF = b"right", b"wrong", b""
ADDRESS, USER = "login_failures_per_address", "login_failures_per_user"
PER = 600.0
MONTH = 30 * 24 * 3600.0


class Worker:
    """A throttle on a clock of its own: how far it is ahead nobody knows."""

    def __init__(self, bounds: Limits, key: bytes, ahead: float = 0.0, **sizes: int) -> None:
        self.now = self.ahead = ahead
        self.throttle = Throttle(bounds, key=key, clock=lambda: self.now, **sizes)
        self.said: list[tuple[str, Any]] = []
        self.throttle.on_wrong = lambda item: self.said.append(("wrong", item))
        self.throttle.on_known = lambda item: self.said.append(("known", item))

    def hear(self, said: list[tuple[str, Any]]) -> None:
        for kind, item in json.loads(json.dumps(said)):
            learn = self.throttle.learn_wrong if kind == "wrong" else self.throttle.learn_known
            learn([item])

    def hear_all(self, other: Worker) -> None:
        """As one who comes new does, in the order that it is told."""
        wrong, known = json.loads(json.dumps(other.throttle.failures()))
        self.throttle.learn_wrong(wrong)
        self.throttle.learn_known(known)

    def fail(self, host: str, name: str, *tried: bytes) -> None:
        for secret in tried:
            self.throttle.begin(host, name, secret, self.now).failed(self.now)

    def succeed(self, host: str, name: str, shown: bytes = RIGHT) -> None:
        self.throttle.begin(host, name, shown, self.now).succeeded(self.now)

    def reached(self, host: str, name: str, secret: bytes) -> str:
        try:
            self.throttle.begin(host, name, secret, self.now).void()
        except Refused as refusal:
            return refusal.limit
        return ""


def limits(address: int = 1000, user: int = 1000) -> Limits:
    return Limits(
        login_failures_per_address=FailuresPerAddress(count=address, per=PER),
        login_failures_per_user=FailuresPerUser(count=user, per=PER),
    )


def two(address: int = 1000, user: int = 1000) -> tuple[Worker, Worker]:
    return Worker(limits(address, user), b"key"), Worker(limits(address, user), b"key", ahead=12345.0)


def tell(one: Worker, other: Worker) -> None:
    said, one.said = one.said, []
    other.hear(said)


def secrets(many: int) -> list[bytes]:
    return [b"guess %d" % number for number in range(many)]


@pytest.mark.parametrize(("bounds", "limit"), [({"address": 3}, ADDRESS), ({"user": 3}, USER)])
def test_guesses_at_several_workers_are_counted_together(bounds: dict[str, int], limit: str) -> None:
    one, other = two(**bounds)
    one.fail(HOME, ALICE, *secrets(2))
    tell(one, other)
    assert other.reached(HOME, ALICE, RIGHT) == ""
    other.fail(HOME, ALICE, b"another")
    tell(other, one)
    assert one.reached(HOME, ALICE, RIGHT) == other.reached(HOME, ALICE, RIGHT) == limit
    assert one.said == other.said == []  # what was heard is not told on


def test_the_same_wrong_secret_is_the_same_everywhere() -> None:
    one, other = two(user=3)
    for worker in (one, other):
        worker.fail(HOME, ALICE, *[WRONG] * 10)
    tell(one, other)
    assert other.reached(HOME, ALICE, RIGHT) == ""


def test_no_two_proofs_are_the_same() -> None:
    one, other = two(user=4)
    for worker in (one, other):
        worker.fail(HOME, ALICE, PROOF, PROOF)
    tell(one, other)
    tell(other, one)
    assert one.reached(HOME, ALICE, RIGHT) == other.reached(HOME, ALICE, RIGHT) == USER


def test_who_has_logged_in_elsewhere_is_known() -> None:
    one, other = two(address=3)
    one.succeed(HOME, ALICE)
    tell(one, other)
    other.fail(HOME, BOB, *secrets(3))
    assert other.reached(HOME, ALICE, RIGHT) == ""
    assert other.reached(HOME, BOB, RIGHT) == ADDRESS


def test_proofs_of_the_known_count_as_such_even_where_he_is_not_known_yet() -> None:
    one, other = two(user=3)
    one.succeed(HOME, ALICE, PROOF)
    one.fail(HOME, ALICE, *[PROOF] * 29)
    other.hear([item for item in one.said if item[0] == "wrong"])
    assert other.reached(HOME, ALICE, RIGHT) == ""
    other.hear([item for item in one.said if item[0] == "known"])
    assert other.reached(HOME, ALICE, PROOF) == ""
    other.fail(HOME, ALICE, PROOF)
    assert other.reached(HOME, ALICE, PROOF) == USER
    assert other.reached(HOME, ALICE, RIGHT) == ""


def test_a_login_is_told_once_an_hour() -> None:
    one, other = two()
    for minute in range(0, 180, 10):
        one.now = 60.0 * minute
        one.succeed(HOME, ALICE)
    assert [kind for kind, _ in one.said] == ["known"] * 3
    tell(one, other)
    other.succeed(HOME, ALICE)
    assert other.said == []
    one.succeed(AWAY, ALICE)
    assert len(one.said) == 1


def test_who_logs_in_again_and_again_stays_known_everywhere() -> None:
    one, other = two(address=1)
    for hour in range(40 * 24):
        one.now, other.now = 3600.0 * hour, other.ahead + 3600.0 * hour
        one.succeed(HOME, ALICE)
        tell(one, other)
    other.fail(HOME, BOB, WRONG)
    assert other.reached(HOME, ALICE, RIGHT) == ""


def test_what_is_told_shows_nothing() -> None:
    one, _ = two()
    one.fail(HOME, ALICE, b"a secret nobody else has", PROOF)
    one.succeed(HOME, ALICE)
    told = json.dumps([one.said, one.throttle.failures()])
    for text in ("alice", "a secret nobody", b"alice".hex(), b"a secret nobody".hex()):
        assert text not in told


def test_keys_must_be_the_same() -> None:
    """And without one nobody has the same."""
    one = Worker(limits(user=1), b"key")
    one.fail(HOME, ALICE, WRONG)
    stranger = Worker(limits(user=1), b"another key")
    stranger.hear_all(one)
    assert stranger.reached(HOME, ALICE, RIGHT) == ""
    persons = []
    for _ in range(2):
        throttle, heard = Throttle(limits()), list[list[Any]]()
        throttle.on_wrong = heard.append
        throttle.begin(HOME, ALICE, WRONG, 0.0).failed(0.0)
        persons.append(heard[0][1:3])
    assert persons[0] != persons[1]


# --- for somebody who comes new ---


def test_whoever_comes_new_hears_all_of_it() -> None:
    one, other = two(address=8, user=5)
    one.succeed(HOME, ALICE, PROOF)
    one.fail(HOME, ALICE, *[PROOF] * 3)
    one.fail(HOME, BOB, *secrets(5))
    other.hear_all(one)
    assert other.reached(HOME, BOB, RIGHT) == ADDRESS
    assert other.reached("192.0.2.99", BOB, RIGHT) == USER
    assert other.reached(HOME, ALICE, RIGHT) == ""
    assert sorted(map(str, round_ages(other))) == sorted(map(str, round_ages(one)))


def round_ages(worker: Worker) -> list[list[Any]]:
    wrong, known = worker.throttle.failures()
    return [[*item[:-1], round(item[-1], 6)] for item in (*wrong, *known)]


def test_failures_are_as_old_as_they_are() -> None:
    one, other = two(user=3)
    for number, secret in enumerate(secrets(3)):
        one.now = 100.0 * number
        one.fail(HOME, ALICE, secret)
    one.now, other.now = 300.0, other.ahead + 300.0
    other.hear_all(one)
    for since, limit in ((PER - 1, USER), (PER, "")):
        one.now, other.now = since, other.ahead + since
        assert one.reached(HOME, ALICE, RIGHT) == other.reached(HOME, ALICE, RIGHT) == limit


def test_old_failures_are_put_among_newer_ones() -> None:
    one, other = two(user=3)
    one.fail(HOME, ALICE, b"1", b"2")
    other.now += 300.0
    other.fail(HOME, ALICE, b"3")
    one.now = 300.0
    other.hear_all(one)
    assert other.reached(HOME, ALICE, RIGHT) == USER
    other.now = other.ahead + PER
    assert other.reached(HOME, ALICE, RIGHT) == ""
    assert other.throttle._by_person._total == 1


def test_of_more_than_the_limit_the_latest_stay() -> None:
    one, other = two(user=3)
    one.fail(HOME, ALICE, b"1", b"2", b"3")
    one.now, other.now = 100.0, other.ahead + 100.0
    other.fail(HOME, ALICE, b"4", b"5")
    other.hear_all(one)
    assert other.throttle._by_person._total == 3
    other.now = other.ahead + PER
    assert len(other.throttle._by_person.of(bytes.fromhex(other.said[0][1][1]), other.now)) == 2


def test_what_is_over_is_neither_told_nor_learned() -> None:
    one, other = two(user=1)
    one.fail(HOME, ALICE, WRONG)
    one.succeed(AWAY, BOB)
    one.now = PER
    assert one.throttle.failures() == ([], [[one.said[-1][1][0], PER]])
    one.now = MONTH
    assert one.throttle.failures() == ([], [])
    (_, (*item, _age)) = one.said[0]
    other.throttle.learn_wrong([[*item, PER]])
    other.throttle.learn_known([[one.said[-1][1][0], MONTH]])
    assert other.throttle.failures() == ([], [])
    assert other.throttle._by_person._total == other.throttle._by_address._total == 0


def test_a_newer_failure_is_not_made_older() -> None:
    one, other = two(user=1)
    one.fail(HOME, ALICE, WRONG)
    other.now += 100.0
    other.fail(HOME, ALICE, WRONG)
    one.now = 100.0
    other.hear_all(one)
    other.now = other.ahead + PER + 50
    assert other.reached(HOME, ALICE, RIGHT) == USER


def test_a_newer_login_is_not_made_older() -> None:
    one, other = two()
    one.succeed(HOME, ALICE)
    one.now, other.now = 7200.0, other.ahead + 7200.0
    other.succeed(HOME, ALICE)
    other.hear_all(one)
    assert other.throttle.failures()[1] == [[one.said[0][1][0], 0.0]]


def test_tables_stay_bounded() -> None:
    one = Worker(limits(4, 4), b"key")
    other = Worker(limits(4, 4), b"key", 5.0, most_failures=50, most_known=20)
    for number in range(300):
        one.fail(f"10.{number % 250}.0.{number // 250}", f"user{number}", WRONG)
        one.succeed(f"11.{number % 250}.0.1", f"user{number}")
    other.fail(HOME, ALICE, WRONG)
    for at_once in (False, True):
        if at_once:
            other.hear_all(one)
        else:
            other.hear(one.said)
        for table in (other.throttle._by_address, other.throttle._by_person):
            assert table._total == sum(map(len, table._by_whom.values())) <= 50
        assert len(other.throttle._known) <= 20


NONSENSE: list[Any] = [
    None, 5, "", "wrong", [], [1], ["61"], ["61", "62", "63", True], ["61", "62", "63", 1, 0.0], [b"a"] * 5,
    ["xy", "62", "63", True, 0.0], ["61", "62", "63", True, -1.0], ["61", "62", "63", True, math.nan],
    ["61", "62", "63", True, math.inf], ["61", "62", "63", True, 10**400], ["61" * 33, "62", "63", True, 0.0],
    ["61", "62" * 33, "63", True, 0.0], ["61", "62", "63" * 33, True, 0.0], ["", "", "63", True, 0.0],
    ["61", "62", "63", True, "0"], {"61": "62"},
]  # fmt: skip


@pytest.mark.parametrize("item", NONSENSE, ids=repr)
def test_nonsense_is_passed_over(item: Any) -> None:
    worker = Worker(limits(), b"key")
    worker.throttle.learn_wrong([item, ["61", "62", "63", True, 0.0, "of a newer version"]])
    assert len(worker.throttle.failures()[0]) == 2


@pytest.mark.parametrize("item", [None, "61", [], [1], [""], ["xy"], ["61" * 33], ["61", -1.0], ["61", math.nan]])
def test_nonsense_about_who_is_known_is_passed_over(item: Any) -> None:
    worker = Worker(limits(), b"key")
    worker.throttle.learn_known([item, ["62"], ["63", 60.0, "of a newer version"]])
    assert worker.throttle.failures() == ([], [["62", 0.0], ["63", 60.0]])


# --- any history ---

HOSTS = ["192.0.2.1", "192.0.2.2", "198.51.100.1"]
MOVES = st.lists(
    st.tuples(
        st.integers(0, 2),  # which worker
        st.sampled_from(["fail", "fail", "fail", "succeed"]),
        st.sampled_from(HOSTS),
        st.sampled_from([ALICE, BOB]),
        st.sampled_from([b"1", b"2", b"3", b"4", PROOF]),
        st.sampled_from([0.0, 1.0, 100.0, 400.0, 4000.0]),  # and after that time goes by
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(MOVES, st.booleans())
def test_workers_who_hear_each_other_agree_with_one_who_did_all(moves: list[Any], late: bool) -> None:
    """And with one who comes at the end and hears from one of them."""
    bounds = limits(address=4, user=3)
    alone = Worker(bounds, b"key")
    workers = [Worker(bounds, b"key", ahead) for ahead in (0.0, 777.0, 1e6)]
    everybody = [alone, *workers]
    for which, move, host, name, secret, after in moves:
        worker = workers[which]
        expected = alone.reached(host, name, secret)
        assert worker.reached(host, name, secret) == expected
        if not expected:
            for each in (alone, worker):
                if move == "fail":
                    each.fail(host, name, secret)
                else:
                    each.succeed(host, name, secret)
            for other in workers:
                if other is not worker:
                    other.hear(worker.said)
            worker.said = []
        for each in everybody:
            each.now += after
    newcomer = Worker(bounds, b"key", ahead=5e5)
    newcomer.hear_all(workers[-1])
    for host in HOSTS:
        for name in (ALICE, BOB):
            for secret in (b"1", b"5", PROOF):
                expected = alone.reached(host, name, secret)
                assert [each.reached(host, name, secret) for each in (*workers, newcomer)] == [expected] * 4
