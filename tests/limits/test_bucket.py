"""Token buckets: what they give, how fast, and how they forget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.limits.bucket import NEVER_USED, Rate

RATES = [(1, 1.0), (3, 1.0), (7, 60.0), (10, 60.0), (2000, 60.0), (500 * 2**20, 3600.0), (1_000_000_000, 1.0)]


def taken(rate: Rate, full_at: float, now: float, most: int) -> tuple[int, float]:
    """How many can be taken one by one, and what is left."""
    count = 0
    while count < most and rate.wait(full_at, now) <= 0:
        full_at = rate.take(full_at, now)
        count += 1
    return count, full_at


@pytest.mark.parametrize(("count", "per"), RATES[:5])
@pytest.mark.parametrize("now", [0.0, 12.34, 1e7])
def test_a_full_bucket_gives_all_of_it_and_not_one_more(count: int, per: float, now: float) -> None:
    rate = Rate(count, per)
    given, full_at = taken(rate, NEVER_USED, now, count + 10)
    assert given == count
    assert rate.wait(full_at, now) == pytest.approx(per / count, rel=0.02)
    assert taken(rate, full_at, now + per / count, 10)[0] == 1
    assert taken(rate, full_at, now + per, count + 10)[0] == count
    assert taken(rate, full_at, now + 100 * per, count + 10)[0] == count  # it does not overflow


@pytest.mark.parametrize(("count", "per"), RATES[:5])
@pytest.mark.parametrize("now", [0.0, 12.34, 1e7])
def test_what_is_left_is_what_can_be_taken(count: int, per: float, now: float) -> None:
    rate, full_at = Rate(count, per), NEVER_USED
    for left in range(count, 0, -1):
        assert rate.left(full_at, now) == left
        full_at = rate.take(full_at, now)
    assert rate.left(full_at, now) == 0
    assert rate.left(rate.take(full_at, now, 3 * count), now) == 0, "who owes has no less than nothing"
    assert rate.left(full_at, now + per / count) == 1
    assert rate.left(full_at, now + 1000 * per) == count


@pytest.mark.parametrize(("count", "per"), RATES)
def test_debt_is_what_was_taken_beyond_the_last(count: int, per: float) -> None:
    rate = Rate(count, per)
    full_at = rate.take(NEVER_USED, 5.0, count)
    assert rate.debt(full_at, 5.0) == pytest.approx(0.0, abs=1e-6)
    assert rate.debt(rate.take(full_at, 5.0, count), 5.0) == pytest.approx(per)
    assert rate.debt(rate.take(full_at, 5.0, count), 5.0 + per) == pytest.approx(0.0, abs=1e-6)


@given(
    st.sampled_from(RATES[:4]),
    st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 30)), max_size=30),
)
def test_in_no_while_more_is_given_than_the_bucket_holds_and_what_flows_in(
    given: tuple[int, float], steps: list[tuple[float, int]]
) -> None:
    rate, now, full_at = Rate(*given), 100.0, NEVER_USED
    taken_at: list[float] = []
    for pause, tries in steps:
        now += pause
        count, full_at = taken(rate, full_at, now, tries)
        taken_at += [now] * count
    for first, since in enumerate(taken_at):
        within = taken_at[first:]
        for number, until in enumerate(within, start=1):
            assert number <= rate.count + (until - since) / rate.seconds_each + 0.02
