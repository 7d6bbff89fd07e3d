"""Guessing has an end, and nobody locks the owner out."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.auth.throttle import UNCOUNTED, Attempt, Throttle
from proxy.outcome import Outcome, Refused
from proxy.settings.limit_models import FailuresPerAddress, FailuresPerUser, Limits

ALICE, BOB = "alice@example.org", "bob@example.org"
HOME, NEIGHBOUR, AWAY = "192.0.2.1", "192.0.2.2", "198.51.100.1"
RIGHT, WRONG, PROOF = b"right", b"wrong", b""  # what SCRAM shows is no secret, and nothing that could be compared
ADDRESS, USER = "login_failures_per_address", "login_failures_per_user"
PER = 600.0


def limits(address: int = 1000, user: int = 1000, exempt: tuple[str, ...] = (), connections: int = 50) -> Limits:
    return Limits(
        connections_per_user=connections,
        login_failures_per_address=FailuresPerAddress(count=address, per=PER),
        login_failures_per_user=FailuresPerUser(count=user, per=PER),
        exempt_networks=tuple(map(ipaddress.ip_network, exempt)),
    )


def reached(throttle: Throttle, host: str, name: str, secret: bytes, now: float = 0.0) -> str:
    """The limit that refuses a try; "": none does. Nothing comes of the try."""
    try:
        throttle.begin(host, name, secret, now).void()
    except Refused as refusal:
        return refusal.limit
    return ""


def fail(throttle: Throttle, host: str, name: str, *tried: bytes, now: float = 0.0) -> None:
    for secret in tried:
        throttle.begin(host, name, secret, now).failed(now)


def secrets(many: int) -> list[bytes]:
    return [b"guess %d" % number for number in range(many)]


# What has failed (host, name, secret), and the try after it with the limit that it finds, at 3 per address or per user.
Tried = tuple[str, str, bytes]
BY_USER: list[tuple[str, list[Tried], Tried, str]] = [
    ("nothing yet", [], (HOME, ALICE, WRONG), ""),
    ("below", [(HOME, ALICE, each) for each in secrets(2)], (HOME, ALICE, WRONG), ""),
    ("reached", [(HOME, ALICE, each) for each in secrets(3)], (HOME, ALICE, WRONG), USER),
    ("the right secret tells nothing", [(HOME, ALICE, each) for each in secrets(3)], (HOME, ALICE, RIGHT), USER),
    ("nor does a known one", [(HOME, ALICE, each) for each in secrets(3)], (HOME, ALICE, secrets(1)[0]), USER),
    ("an old password", [(HOME, ALICE, WRONG)] * 50, (HOME, ALICE, RIGHT), ""),
    ("neighbours guess together", [(HOME, ALICE, each) for each in secrets(3)], (NEIGHBOUR, ALICE, RIGHT), USER),
    ("the owner is elsewhere", [(HOME, ALICE, each) for each in secrets(3)], (AWAY, ALICE, RIGHT), ""),
    ("somebody else", [(HOME, ALICE, each) for each in secrets(3)], (HOME, BOB, RIGHT), ""),
    ("an IPv6 /56", [(f"2001:db8:0:{n}::1", ALICE, secrets(3)[n]) for n in range(3)], ("2001:db8::", ALICE, b""), USER),
    ("another /56", [("2001:db8::1", ALICE, each) for each in secrets(3)], ("2001:db8:0:100::1", ALICE, RIGHT), ""),
    ("no secret to compare", [(HOME, ALICE, PROOF)] * 3, (HOME, ALICE, PROOF), USER),
    ("fewer proofs", [(HOME, ALICE, PROOF)] * 2, (HOME, ALICE, PROOF), ""),
    ("proofs, then a password", [(HOME, ALICE, PROOF)] * 3, (HOME, ALICE, RIGHT), USER),
    ("proofs and passwords", [(HOME, ALICE, each) for each in (PROOF, WRONG, PROOF)], (HOME, ALICE, PROOF), USER),
    ("passwords, then a proof", [(HOME, ALICE, each) for each in secrets(3)], (HOME, ALICE, PROOF), USER),
    ("proofs of neighbours", [(HOME, ALICE, PROOF)] * 3, (NEIGHBOUR, ALICE, PROOF), USER),
    ("proofs elsewhere", [(HOME, ALICE, PROOF)] * 3, (AWAY, ALICE, PROOF), ""),
    ("a token names its owner", [(HOME, "", each) for each in secrets(9)], (HOME, "", RIGHT), ""),
    ("no name at all", [(HOME, "\udcff" * 256 + each.decode(), each) for each in secrets(3)],
        (HOME, "\udcff" * 256, RIGHT), USER),
]  # fmt: skip
BY_ADDRESS: list[tuple[str, list[Tried], Tried, str]] = [
    ("below", [(HOME, ALICE, each) for each in secrets(2)], (HOME, BOB, WRONG), ""),
    ("one name", [(HOME, ALICE, each) for each in secrets(3)], (HOME, BOB, RIGHT), ADDRESS),
    ("many names, one secret", [(HOME, name, WRONG) for name in "abc"], (HOME, BOB, RIGHT), ADDRESS),
    ("the same pair again", [(HOME, ALICE, WRONG)] * 50, (HOME, BOB, RIGHT), ""),
    ("a neighbour", [(HOME, ALICE, each) for each in secrets(3)], (NEIGHBOUR, BOB, RIGHT), ""),
    ("tokens", [(HOME, "", each) for each in secrets(3)], (HOME, "", RIGHT), ADDRESS),
    ("proofs", [(HOME, ALICE, PROOF)] * 3, (HOME, BOB, RIGHT), ADDRESS),
    ("an IPv6 /64", [(f"2001:db8::{n}", ALICE, secrets(3)[n]) for n in range(3)], ("2001:db8::9", BOB, b"x"), ADDRESS),
    ("another /64", [("2001:db8::1", ALICE, each) for each in secrets(3)], ("2001:db8:0:1::1", BOB, RIGHT), ""),
]


@pytest.mark.parametrize(("name", "failed", "tried", "limit"), BY_USER, ids=[row[0] for row in BY_USER])
def test_by_user(name: str, failed: list[Tried], tried: Tried, limit: str) -> None:
    throttle = Throttle(limits(user=3))
    for each in failed:
        fail(throttle, *each)
    assert reached(throttle, *tried) == limit


@pytest.mark.parametrize(("name", "failed", "tried", "limit"), BY_ADDRESS, ids=[row[0] for row in BY_ADDRESS])
def test_by_address(name: str, failed: list[Tried], tried: Tried, limit: str) -> None:
    throttle = Throttle(limits(address=3))
    for each in failed:
        fail(throttle, *each)
    assert reached(throttle, *tried) == limit


@pytest.mark.parametrize(("bounds", "limit"), [(limits(address=3), ADDRESS), (limits(user=3), USER)])
def test_a_limit_slides(bounds: Limits, limit: str) -> None:
    throttle = Throttle(bounds)
    for now, secret in enumerate(secrets(3)):
        fail(throttle, HOME, ALICE, secret, now=now * 100.0)
    assert reached(throttle, HOME, ALICE, RIGHT, PER - 0.001) == limit
    assert reached(throttle, HOME, ALICE, RIGHT, PER) == ""
    fail(throttle, HOME, ALICE, b"one more", now=PER)
    assert reached(throttle, HOME, ALICE, RIGHT, PER + 99) == limit
    assert reached(throttle, HOME, ALICE, RIGHT, PER + 100) == ""


@pytest.mark.parametrize(("bounds", "limit"), [(limits(address=3), ADDRESS), (limits(user=3), USER)])
def test_the_log_hears_which_limit_it_was(bounds: Limits, limit: str) -> None:
    throttle = Throttle(bounds)
    fail(throttle, HOME, ALICE, *secrets(3))
    with pytest.raises(Refused) as refusal:
        throttle.begin(HOME, ALICE, RIGHT, 0.0)
    assert refusal.value.outcome is Outcome.LIMIT
    assert (refusal.value.limit, refusal.value.detail) == (limit, f"{limit}: 3 of 3 in 10m")


def test_refused_tries_keep_no_limit_closed() -> None:
    throttle = Throttle(limits(user=3))
    fail(throttle, HOME, ALICE, *secrets(3))
    for now in range(int(PER)):
        assert reached(throttle, HOME, ALICE, secrets(1)[0], float(now)) == USER
    assert reached(throttle, HOME, ALICE, RIGHT, PER) == ""


def test_who_has_logged_in_before_is_not_held_up_by_his_neighbours() -> None:
    throttle = Throttle(limits(address=3, user=5))
    throttle.begin(HOME, ALICE, RIGHT, 0.0).succeeded(0.0)
    fail(throttle, HOME, BOB, *secrets(3))
    assert reached(throttle, HOME, ALICE, RIGHT) == ""
    assert reached(throttle, NEIGHBOUR, ALICE, RIGHT) == ""
    assert reached(throttle, HOME, BOB, RIGHT) == ADDRESS
    fail(throttle, HOME, ALICE, *secrets(5))
    assert reached(throttle, HOME, ALICE, RIGHT) == USER


def test_a_login_long_ago_is_forgotten() -> None:
    throttle = Throttle(limits(address=1))
    throttle.begin(HOME, ALICE, RIGHT, 0.0).succeeded(0.0)
    month = 30 * 24 * 3600.0
    for now, limit in ((month - 1, ""), (month, ADDRESS)):
        fail(throttle, HOME, ALICE, WRONG, now=now - 1)
        assert reached(throttle, HOME, ALICE, RIGHT, now) == limit
        assert reached(throttle, HOME, BOB, RIGHT, now) == ADDRESS


def test_tries_under_way_count_unless_they_are_the_same() -> None:
    throttle = Throttle(limits(user=3))
    fail(throttle, HOME, ALICE, WRONG)
    first = [throttle.begin(HOME, ALICE, RIGHT, 0.0) for _ in range(20)]
    second = throttle.begin(NEIGHBOUR, ALICE, b"second", 0.0)
    with pytest.raises(Refused) as refusal:
        throttle.begin(HOME, ALICE, b"third", 0.0)
    assert refusal.value.detail == "login_failures_per_user: 1 and 2 under way of 3 in 10m"
    assert reached(throttle, HOME, ALICE, WRONG) == ""
    assert reached(throttle, AWAY, ALICE, b"third") == ""
    second.void()
    assert reached(throttle, HOME, ALICE, b"third") == ""
    for attempt in first[1:]:
        attempt.succeeded(0.0)
    assert reached(throttle, HOME, ALICE, b"third") == ""
    fail(throttle, HOME, ALICE, b"third")
    assert reached(throttle, HOME, ALICE, b"fourth") == USER  # the first is still under way
    first[0].void()
    assert reached(throttle, HOME, ALICE, b"fourth") == ""
    assert not throttle._under_way


def test_a_secret_under_way_that_is_known_to_be_wrong_counts_once() -> None:
    throttle = Throttle(limits(user=2))
    first, second = (throttle.begin(HOME, ALICE, WRONG, 0.0) for _ in range(2))
    first.failed(0.0)
    assert reached(throttle, HOME, ALICE, RIGHT) == ""
    second.failed(0.0)
    assert reached(throttle, HOME, ALICE, RIGHT) == ""


def test_a_failure_counts_from_its_last_time() -> None:
    throttle = Throttle(limits(user=3))
    for now, secret in ((0.0, b"1"), (100.0, b"2"), (200.0, b"1"), (300.0, b"3")):
        fail(throttle, HOME, ALICE, secret, now=now)
    assert reached(throttle, HOME, ALICE, RIGHT, 100 + PER - 1) == USER
    assert reached(throttle, HOME, ALICE, RIGHT, 100 + PER) == ""
    fail(throttle, HOME, ALICE, b"4", now=100 + PER)
    assert reached(throttle, HOME, ALICE, RIGHT, 200 + PER - 1) == USER
    assert reached(throttle, HOME, ALICE, RIGHT, 200 + PER) == ""


def test_as_many_proofs_at_once_as_connections() -> None:
    throttle = Throttle(limits(user=3, connections=20))
    under_way = [throttle.begin(HOME, ALICE, PROOF, 0.0) for _ in range(20)]
    with pytest.raises(Refused) as refusal:
        throttle.begin(NEIGHBOUR, ALICE, PROOF, 0.0)
    assert (refusal.value.outcome, refusal.value.limit) == (Outcome.LIMIT, USER)
    assert refusal.value.detail == "login_failures_per_user: 0 and 20 under way of 3 in 10m"
    assert reached(throttle, HOME, BOB, PROOF) == ""
    assert reached(throttle, AWAY, ALICE, PROOF) == ""
    under_way.pop().void()
    assert reached(throttle, HOME, ALICE, PROOF) == ""
    under_way.pop().succeeded(0.0)
    assert reached(throttle, HOME, ALICE, PROOF) == ""
    for attempt in under_way:
        attempt.void()
    assert not throttle._proofs


def test_proofs_under_way_are_bounded_for_those_who_are_known_too() -> None:
    throttle = Throttle(limits(user=3, connections=2))
    throttle.begin(HOME, ALICE, PROOF, 0.0).succeeded(0.0)
    for _ in range(2):
        throttle.begin(HOME, ALICE, PROOF, 0.0)
    assert reached(throttle, HOME, ALICE, PROOF) == USER


def test_proofs_and_secrets_under_way_do_not_hold_up_each_other() -> None:
    """Whoever starts many exchanges and lets them hang keeps nobody from his password, and the other way round."""
    throttle = Throttle(limits(user=2, connections=5))
    for _ in range(5):
        throttle.begin(HOME, ALICE, PROOF, 0.0)
    for secret in secrets(2):
        throttle.begin(HOME, ALICE, secret, 0.0)
    assert (reached(throttle, HOME, ALICE, PROOF), reached(throttle, HOME, ALICE, RIGHT)) == (USER, USER)

    throttle = Throttle(limits(user=2, connections=5))
    for secret in secrets(2):
        throttle.begin(HOME, ALICE, secret, 0.0)
    assert reached(throttle, HOME, ALICE, RIGHT) == USER
    assert reached(throttle, HOME, ALICE, PROOF) == ""


@pytest.mark.parametrize("shown", [RIGHT, PROOF])
def test_who_is_known_may_fail_ten_times_as_many_proofs(shown: bytes) -> None:
    throttle = Throttle(limits(user=3))
    throttle.begin(HOME, ALICE, shown, 0.0).succeeded(0.0)
    fail(throttle, HOME, ALICE, *[PROOF] * 29)
    assert reached(throttle, HOME, ALICE, PROOF) == ""
    fail(throttle, NEIGHBOUR, ALICE, PROOF)
    with pytest.raises(Refused) as refusal:
        throttle.begin(HOME, ALICE, PROOF, 0.0)
    assert (refusal.value.limit, refusal.value.detail) == (USER, "login_failures_per_user: 30 of 30 in 10m")
    assert reached(throttle, HOME, ALICE, PROOF, PER - 0.001) == USER
    assert reached(throttle, HOME, ALICE, PROOF, PER) == ""


def test_proofs_of_the_known_count_in_a_table_of_their_own() -> None:
    """A mail program with an old password leaves the other programs of its owner alone."""
    throttle = Throttle(limits(user=3))
    throttle.begin(HOME, ALICE, PROOF, 0.0).succeeded(0.0)
    fail(throttle, HOME, ALICE, *[PROOF] * 30)
    assert reached(throttle, HOME, ALICE, PROOF) == USER
    assert reached(throttle, HOME, ALICE, RIGHT) == ""
    fail(throttle, HOME, ALICE, *secrets(3))
    assert reached(throttle, HOME, ALICE, RIGHT) == USER

    throttle = Throttle(limits(user=3))
    throttle.begin(HOME, ALICE, PROOF, 0.0).succeeded(0.0)
    fail(throttle, HOME, ALICE, *secrets(3))
    assert reached(throttle, HOME, ALICE, RIGHT) == USER
    assert reached(throttle, HOME, ALICE, PROOF) == ""


def test_a_login_elsewhere_makes_nobody_known_here() -> None:
    throttle = Throttle(limits(user=3))
    throttle.begin(AWAY, ALICE, PROOF, 0.0).succeeded(0.0)
    fail(throttle, HOME, ALICE, *[PROOF] * 3)
    assert reached(throttle, HOME, ALICE, PROOF) == USER
    assert reached(throttle, AWAY, ALICE, PROOF) == ""


def test_whoever_becomes_known_starts_with_proofs_afresh_and_with_secrets_does_not() -> None:
    throttle = Throttle(limits(user=3))
    owner = throttle.begin(HOME, ALICE, PROOF, 0.0)
    fail(throttle, HOME, ALICE, *[PROOF] * 3)
    assert reached(throttle, HOME, ALICE, PROOF) == USER
    owner.succeeded(0.0)
    assert reached(throttle, HOME, ALICE, PROOF) == ""
    assert reached(throttle, HOME, ALICE, RIGHT) == USER


def test_proofs_of_the_known_count_by_address() -> None:
    throttle = Throttle(limits(address=3))
    throttle.begin(HOME, ALICE, PROOF, 0.0).succeeded(0.0)
    fail(throttle, HOME, ALICE, *[PROOF] * 3)
    assert reached(throttle, HOME, BOB, RIGHT) == ADDRESS
    assert reached(throttle, HOME, ALICE, PROOF) == ""


def test_what_cannot_be_guessed_is_not_counted() -> None:
    throttle = Throttle(limits(1, 1))
    for _ in range(3):
        with UNCOUNTED as attempt:
            attempt.failed(0.0)
        UNCOUNTED.succeeded(0.0)
        UNCOUNTED.void()
    assert reached(throttle, HOME, ALICE, RIGHT) == ""
    assert not throttle._known


def test_an_office_may_come_back_all_at_once() -> None:
    throttle = Throttle(limits(address=3))
    for number in range(50):
        throttle.begin(HOME, f"user{number}@example.org", RIGHT, 0.0)
    assert reached(throttle, HOME, ALICE, RIGHT) == ""


def test_of_more_failures_than_the_limit_the_latest_count() -> None:
    throttle = Throttle(limits(address=3))
    under_way = [throttle.begin(HOME, f"user{number}@example.org", WRONG, 0.0) for number in range(10)]
    for now, attempt in enumerate(under_way):
        attempt.failed(float(now))
    assert throttle._by_address._total == 3
    assert reached(throttle, HOME, ALICE, RIGHT, PER + 6.9) == ADDRESS
    assert reached(throttle, HOME, ALICE, RIGHT, PER + 7) == ""


@pytest.mark.parametrize("host", ["10.0.0.8", "2001:db8:8::1"])
def test_exempt_networks_are_neither_counted_nor_refused(host: str) -> None:
    throttle = Throttle(limits(1, 1, exempt=("10.0.0.0/24", "2001:db8:8::/48")))
    fail(throttle, host, ALICE, *secrets(50))
    assert reached(throttle, host, ALICE, WRONG) == ""
    fail(throttle, HOME, ALICE, WRONG)
    assert reached(throttle, HOME, ALICE, RIGHT) == ADDRESS


def test_the_first_word_about_an_end_counts() -> None:
    throttle = Throttle(limits(user=1))
    attempt = throttle.begin(HOME, ALICE, RIGHT, 0.0)
    attempt.succeeded(0.0)
    attempt.failed(0.0)
    assert reached(throttle, HOME, ALICE, WRONG) == ""
    with throttle.begin(HOME, ALICE, WRONG, 0.0) as attempt:
        attempt.failed(0.0)
    attempt.void()
    assert reached(throttle, HOME, ALICE, RIGHT) == USER


def test_a_try_that_was_left_is_void() -> None:
    throttle = Throttle(limits(user=1))
    for shown in (WRONG, PROOF):
        with pytest.raises(KeyError), throttle.begin(HOME, ALICE, shown, 0.0):
            raise KeyError
    assert not throttle._under_way
    assert not throttle._proofs
    assert reached(throttle, HOME, ALICE, RIGHT) == ""


def test_no_name_and_no_secret_is_kept_or_told() -> None:
    throttle = Throttle(limits(user=1))
    secret = b"a secret nobody else has"
    under_way = throttle.begin(HOME, ALICE, secret, 0.0)
    throttle.begin(HOME, ALICE, PROOF, 0.0)
    failures = [each._by_whom for each in (throttle._by_person, throttle._by_known, throttle._by_address)]
    tables = (throttle._under_way, throttle._proofs, failures, throttle._known)
    assert b"alice" not in repr(tables).encode()
    under_way.failed(0.0)
    throttle.begin(AWAY, ALICE, RIGHT, 0.0).succeeded(0.0)
    fail(throttle, AWAY, ALICE, PROOF)
    with pytest.raises(Refused) as refusal:
        throttle.begin(HOME, ALICE, secret, 0.0)
    assert all(failures)
    kept = repr((tables, refusal.value)).encode()
    assert secret not in kept
    assert b"alice" not in kept
    other = Throttle(limits(user=1))
    fail(other, HOME, ALICE, secret)
    assert not other._by_person._by_whom.keys() & throttle._by_person._by_whom.keys()


def test_a_stranger_with_many_names_and_networks_grows_nothing() -> None:
    throttle = Throttle(limits(4, 4), most_failures=700, most_known=20)
    for number in range(2000):
        host, name = f"2001:db8:{number * number % 389:x}::1", f"user{number % 5}@example.org"
        now = float(number)
        with suppress(Refused):
            fail(throttle, host, name, b"%d" % number, now=now)
        with suppress(Refused):
            throttle.begin(host, f"{name}{number}", RIGHT, now).succeeded(now)
            fail(throttle, host, f"{name}{number}", PROOF, now=now)
        for table in (throttle._by_address, throttle._by_person, throttle._by_known):
            assert table._total == sum(map(len, table._by_whom.values())) <= 700
            assert all(1 <= len(failures) <= table.count for failures in table._by_whom.values())
        assert len(throttle._known) <= 20
    assert throttle._by_known._total > 100
    assert not throttle._under_way
    assert not throttle._proofs


def test_a_flood_does_not_open_a_limit_that_is_reached() -> None:
    throttle = Throttle(limits(user=3), most_failures=50)
    fail(throttle, HOME, ALICE, *secrets(3))
    fail(throttle, HOME, BOB, WRONG)
    for number in range(500):
        fail(throttle, f"10.{number}.0.1" if number < 256 else f"11.{number - 256}.0.1", f"{number}", WRONG)
    assert reached(throttle, HOME, ALICE, RIGHT) == USER
    fail(throttle, HOME, BOB, b"2", b"3")
    assert reached(throttle, HOME, BOB, RIGHT) == ""  # his first is forgotten


def test_one_alone_reaches_a_limit_above_the_tables_size() -> None:
    throttle = Throttle(limits(user=200), most_failures=50)
    fail(throttle, HOME, ALICE, *secrets(150))
    fail(throttle, AWAY, BOB, *secrets(10))
    assert reached(throttle, HOME, ALICE, RIGHT) == ""
    fail(throttle, HOME, ALICE, *secrets(200))
    assert reached(throttle, HOME, ALICE, RIGHT) == USER


def test_between_others_at_their_limit_one_still_reaches_his() -> None:
    throttle = Throttle(limits(user=25), most_failures=50)
    for name in (ALICE, BOB, "carol@example.org"):
        fail(throttle, HOME, name, *secrets(25))
        assert reached(throttle, HOME, name, RIGHT) == USER


def test_what_is_over_goes_by_itself() -> None:
    throttle = Throttle(limits())
    for number in range(100):
        fail(throttle, f"10.0.{number}.1", ALICE, WRONG)
    for number in range(100):
        fail(throttle, HOME, ALICE, WRONG, now=PER + number)
    assert throttle._by_address._total == throttle._by_person._total == 1


NAMES = ["a", "a", "b", ""]
HOSTS = {"192.0.2.1": "n", "192.0.2.2": "n", "198.51.100.1": "m"}  # and their networks
BEGIN = (st.sampled_from(NAMES), st.sampled_from(sorted(HOSTS)), st.sampled_from([0, 0, 0, 1, 2, 3]))  # 0: a proof
MOVES = st.one_of(
    st.tuples(st.just("begin"), *BEGIN),
    st.tuples(st.sampled_from(["failed", "succeeded", "void"]), st.integers(0, 20)),
    st.tuples(st.just("begin often"), *BEGIN, st.integers(2, 5)),
    st.tuples(st.just("log in"), *BEGIN),
    st.tuples(st.just("fail often"), *BEGIN, st.sampled_from([2, 5, 11, 25])),
    st.tuples(st.just("wait"), st.integers(1, 4)),
)
Person = tuple[str, str]


@dataclass(frozen=True)
class Try:
    """One that was let in."""

    host: str
    person: Person
    tried: bytes  # the secret; of a proof, which one of the run it is
    proof: bool


@dataclass
class Model:
    """The same rules, slow and obvious."""

    by_address: int
    by_user: int
    connections: int
    per: int
    failures: list[tuple[int, Try, bool]] = field(default_factory=list)  # whether it was a proof of somebody known
    known: set[Person] = field(default_factory=set)
    open: list[tuple[Attempt, Try]] = field(default_factory=list)

    def person(self, name: str, host: str, tried: bytes) -> Person:
        return (name or f"token {tried!r}", HOSTS[host])

    def failed(self, person: Person, now: int, *, proofs_of_known: bool) -> set[bytes]:
        return {
            wrong.tried
            for at, wrong, apart in self.failures
            if wrong.person == person and apart is proofs_of_known and at > now - self.per
        }

    def limit(self, new: Try, now: int) -> str:
        known = new.person in self.known
        pairs = {
            (wrong.person[0], wrong.tried)
            for at, wrong, _ in self.failures
            if wrong.host == new.host and at > now - self.per
        }
        if len(pairs) >= self.by_address and not known:
            return ADDRESS
        under_way = [each.tried for _, each in self.open if each.person == new.person and each.proof is new.proof]
        if new.proof:
            wrong = self.failed(new.person, now, proofs_of_known=known)
            too_many = len(wrong) >= self.by_user * (10 if known else 1) or len(under_way) >= self.connections
        else:
            wrong = self.failed(new.person, now, proofs_of_known=False)
            too_many = len(wrong) >= self.by_user or len(wrong | {*under_way, new.tried}) > self.by_user
        return USER if too_many else ""

    def end(self, attempt: Attempt, ended: Try, how: str, now: int) -> None:
        if how == "failed":
            attempt.failed(float(now))
            self.failures.append((now, ended, ended.proof and ended.person in self.known))
        elif how == "succeeded":
            attempt.succeeded(float(now))
            self.known.add(ended.person)
        else:
            attempt.void()


@settings(max_examples=300)
@given(st.lists(MOVES, max_size=80), st.sampled_from([1, 3, 6, 1000]), st.integers(1, 4), st.integers(1, 4))
def test_whatever_the_interleaving(
    moves: list[tuple],  # type: ignore[type-arg]
    by_address: int,
    by_user: int,
    connections: int,
) -> None:
    model = Model(by_address, by_user, connections, per=10)
    throttle = Throttle(
        Limits(
            connections_per_user=connections,
            login_failures_per_address=FailuresPerAddress(count=by_address, per=10.0),
            login_failures_per_user=FailuresPerUser(count=by_user, per=10.0),
        )
    )
    now = 0
    numbers = count()

    def begin(name: str, host: str, secret: int) -> bool:
        shown = b"%d" % secret if secret else PROOF
        tried = shown or b"try %d" % next(numbers)  # each proof is another
        new = Try(host, model.person(name, host, tried), tried, not shown)
        limit = model.limit(new, now)
        if limit:
            with pytest.raises(Refused) as refusal:
                throttle.begin(host, name, shown, float(now))
            assert refusal.value.limit == limit
        else:
            model.open.append((throttle.begin(host, name, shown, float(now)), new))
        return not limit

    for move, *details in moves:
        if move == "wait":
            now += details[0]
        elif move == "begin":
            begin(*details)
        elif move == "begin often":
            *what, times = details
            for _ in range(times):
                begin(*what)
        elif move == "log in":
            if begin(*details):
                model.end(*model.open.pop(), "succeeded", now)
        elif move == "fail often":
            *what, times = details
            for _ in range(times):
                if begin(*what):
                    model.end(*model.open.pop(), "failed", now)
        elif model.open:
            model.end(*model.open.pop(details[0] % len(model.open)), move, now)
    # No more than so many different secrets were found wrong, or are still being tried, within any `per`.
    for person in {wrong.person for _, wrong, _ in model.failures}:
        shown = [(at, wrong.tried) for at, wrong, _ in model.failures if wrong.person == person and not wrong.proof]
        for end, _ in shown:
            assert len({tried for at, tried in shown if end - 10 < at <= end}) <= by_user
    assert sum(map(len, throttle._under_way.values())) <= len(model.open)
    for attempt, left in model.open:
        model.end(attempt, left, "void", now)
    assert not throttle._under_way
    assert not throttle._proofs
