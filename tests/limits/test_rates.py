"""Logins by time: what is allowed, and that the tables have an end."""

from __future__ import annotations

import ipaddress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.limits.rates import LoginRates
from proxy.limits.reached import ACTIONS
from proxy.outcome import Outcome, Refused
from proxy.settings.limit_models import Limits, LoginRate

ALICE, BOB = "alice@example.org", "bob@example.org"
HOME, AWAY = "192.0.2.1", "198.51.100.1"
USER, ADDRESS = "logins_per_user", "logins_per_address"


def rates(
    *, user: int | None = None, address: int | None = None, exempt: tuple[str, ...] = (), prefix: int = 64
) -> LoginRates:
    """So many in a minute."""
    limits = Limits(
        logins_per_user=None if user is None else LoginRate(rate=user),
        logins_per_address=None if address is None else LoginRate(rate=address),
        exempt_networks=tuple(map(ipaddress.ip_network, exempt)),
        ipv6_prefix=prefix,
    )
    return LoginRates(limits, most_buckets=50)


def admit(some: LoginRates, name: str, address: str, now: float) -> str | None:
    """Log in, if that may be; gives the limit that is reached otherwise."""
    try:
        some.check(name, address, now)
    except Refused as refusal:
        return refusal.limit
    some.take(name, address, now)
    return None


def test_without_limits_everybody_may_log_in() -> None:
    free = rates()
    assert {admit(free, ALICE, HOME, 0.0) for _ in range(1000)} == {None}


CASES = [
    ("by user", {"user": 2}, [(ALICE, HOME), (ALICE, AWAY), (BOB, HOME), (ALICE, HOME)], [None, None, None, USER]),
    ("by address", {"address": 2}, [(ALICE, HOME), (BOB, HOME), (ALICE, AWAY), (ALICE, HOME)],
        [None, None, None, ADDRESS]),
    ("the user's first", {"user": 1, "address": 1}, [(ALICE, HOME), (ALICE, HOME), (BOB, HOME)],
        [None, USER, ADDRESS]),
    ("who is refused takes nothing", {"user": 1, "address": 2}, [(ALICE, HOME), (ALICE, HOME), (BOB, HOME)],
        [None, USER, None]),
    ("an IPv6 /64", {"address": 1}, [(ALICE, "2001:db8::1"), (BOB, "2001:db8::2"), (BOB, "2001:db8:0:1::")],
        [None, ADDRESS, None]),
    ("another prefix", {"address": 1, "prefix": 48}, [(ALICE, "2001:db8::1"), (BOB, "2001:db8:0:1::")],
        [None, ADDRESS]),
    ("exempt by address", {"user": 2, "address": 1, "exempt": ("192.0.2.0/24",)},
        [(ALICE, HOME), (ALICE, HOME), (ALICE, HOME), (BOB, HOME), (BOB, AWAY)], [None, None, USER, None, None]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "logins", "limits"), CASES, ids=[row[0] for row in CASES])
def test_which_limit_is_reached(
    name: str, given: dict[str, object], logins: list[tuple[str, str]], limits: list[str | None]
) -> None:
    some = rates(**given)  # type: ignore[arg-type]
    assert [admit(some, *login, 0.0) for login in logins] == limits
    assert {limit for limit in limits if limit} <= ACTIONS.keys()


def test_the_refusal_says_which_limit_and_how_many() -> None:
    some = rates(user=1)
    some.check(ALICE, HOME, 0.0)
    some.check(ALICE, HOME, 0.0)  # looking takes nothing
    some.take(ALICE, HOME, 0.0)
    with pytest.raises(Refused) as refusal:
        some.check(ALICE, HOME, 59.0)
    assert (refusal.value.outcome, refusal.value.limit) == (Outcome.LIMIT, USER)
    assert refusal.value.detail == "logins_per_user: 1 in 1m"
    some.check(ALICE, HOME, 60.0)


def test_logins_that_nobody_could_refuse_count_all_the_same() -> None:
    """Whom only a backend can verify is counted when it has: more than one may have been on the way."""
    some = rates(user=1)
    for _ in range(3):
        some.take(ALICE, HOME, 0.0)
    assert [admit(some, ALICE, HOME, now) for now in (60.0, 179.0, 180.0)] == [USER, USER, None]


class Model:
    """The same rule, slow and obvious: tokens that flow in, by fractions."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._tokens: dict[str, Fraction] = {}
        self._last = 0

    def admit(self, *keys: str, half_tokens: int) -> bool:
        """Time is told in halves of what a token takes to flow in."""
        for key in self._tokens:
            self._tokens[key] = min(Fraction(self._rate), self._tokens[key] + Fraction(half_tokens - self._last, 2))
        self._last = half_tokens
        tokens = [self._tokens.setdefault(key, Fraction(self._rate)) for key in keys]
        if min(tokens) < 1:
            return False
        for key in keys:
            self._tokens[key] -= 1
        return True


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([ALICE, BOB]), st.sampled_from([HOME, AWAY])), max_size=60),
)
def test_any_history_is_that_of_the_model(rate: int, logins: list[tuple[int, str, str]]) -> None:
    some, model, now = rates(user=rate, address=rate), Model(rate), 0
    for after, name, address in logins:
        now += after
        admitted = admit(some, name, address, now * 60.0 / rate / 2) is None
        assert admitted == model.admit(name, address, half_tokens=now)


def test_many_users_grow_nothing_and_those_who_rest_are_forgotten_first() -> None:
    some = rates(user=2)
    table = some._by_user
    assert table is not None
    for number in range(500):
        admit(some, f"user{number}", HOME, number * 0.1)
        assert len(table._buckets) <= 50
    admit(some, ALICE, HOME, 1000.0)
    admit(some, BOB, HOME, 1000.0)
    for _ in range(30):
        admit(some, ALICE, HOME, 1000.0)
        some.take(ALICE, HOME, 1000.0)
    assert list(table._buckets) == [BOB, ALICE]


def test_what_a_user_has_left() -> None:
    some = rates(user=3, address=1)
    assert [some.left(ALICE, 0.0), some.left(BOB, 0.0)] == [3, 3]
    for address in (HOME, AWAY):
        some.take(ALICE, address, 0.0)
    assert [some.left(ALICE, 0.0), some.left(BOB, 0.0)] == [1, 3]
    some.take(ALICE, "203.0.113.1", 0.0)
    assert [some.left(ALICE, 0.0), some.left(ALICE, 20.0), some.left(ALICE, 1e6)] == [0, 1, 3]
    assert rates(address=1).left(ALICE, 0.0) == 0, "there is no such limit; nobody asks"
