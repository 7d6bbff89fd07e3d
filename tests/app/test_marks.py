"""Counts of a while ago: whoever else asks takes nothing away, and what is too fresh or too old is no beginning."""

from __future__ import annotations

from proxy.app.marks import Marks


def ask(marks: Marks[str], now: float) -> tuple[float, str] | None:
    """As whoever wants a rate: gives how long ago it began, and what was put then."""
    begun = marks.since(now)
    marks.put(now, f"at {now:g}")
    return begun


def test_one_who_asks_again_and_again() -> None:
    marks = Marks[str]()
    assert ask(marks, 0) is None
    assert ask(marks, 0.5) is None, "a moment tells nothing"
    assert ask(marks, 1) == (1, "at 0")
    assert ask(marks, 4) == (4, "at 0")
    assert ask(marks, 6) == (6, "at 0")
    assert ask(marks, 10) == (10, "at 0")
    assert ask(marks, 11) == (11, "at 0"), "five seconds later a mark may be made"
    assert ask(marks, 12) == (6, "at 6")


def test_two_who_ask_at_the_same_time() -> None:
    """Either is told of some seconds, as if he were alone."""
    marks, other = Marks[str](), Marks[str]()
    for tenth in range(10, 1000, 20):
        now = tenth / 10
        first, second = ask(marks, now), ask(marks, now + 0.1)
        alone = ask(other, now)
        assert first == alone
        if first is None or second is None:
            continue
        assert 1 <= first[0] <= 12
        assert 1 <= second[0] <= 12
    assert ask(marks, 101) is not None


def test_many_who_ask() -> None:
    """A rate is of five seconds at least, once there have been so many."""
    marks = Marks[str]()
    for hundredth in range(6000):
        begun = ask(marks, hundredth / 100)
        if hundredth < 100:
            assert begun is None
        else:
            assert begun is not None
            assert min(5, hundredth / 100) <= begun[0] <= 10.02


def test_what_nobody_has_asked_for_in_a_minute() -> None:
    marks = Marks[str]()
    ask(marks, 0)
    ask(marks, 6)
    assert ask(marks, 59) == (59, "at 0")
    assert ask(marks, 65) == (59, "at 6")
    assert ask(marks, 200) is None, "it tells nothing of now"
    assert ask(marks, 200.5) is None
    assert ask(marks, 201) == (1, "at 200"), "and it takes no longer than at first"
