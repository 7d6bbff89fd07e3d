"""When a backend counts as down, and when as up again."""

from __future__ import annotations

import pytest

from proxy.routing.health import Health
from proxy.settings.models import Health as HealthSettings

# + good check, - bad check, g good login; a login that failed: c before the greeting, A B C after it, by whom.
# Expected after each: U up, D down.
CASES = [
    ("checks down and up", "--- -++ +-", "UUD DDU UU"),
    ("not in a row", "--+--+--", "UUUUUUUU"),
    ("a good login is as good as a check", "--g--g-", "UUUUUUU"),
    ("up only by checks in a row", "---+-++", "UUDDDDU"),
    ("no login brings it up", "---gggg+g+", "UUDDDDDDDU"),
    ("logins alone", "ccc++", "UUDDU"),
    ("logins and checks together", "-c-", "UUD"),
    ("one broken mailbox", "AAAAAAAA", "UUUUUUUU"),
    ("three of them", "ABC", "UUD"),
    ("two are enough if they take turns", "ABA", "UUD"),
    ("one broken mailbox and two bad checks", "AA-A-", "UUUUD"),
    ("a broken mailbox that never counted twice", "AgAgAgA--", "UUUUUUUUU"),
    ("before the greeting everybody counts", "AcAc", "UUUD"),
    ("a login that had begun before spoils no check", "---+cA+", "UUDDDDU"),
    ("a fresh start after each turn", "---++--+---", "UUDDUUUUUUD"),
]


@pytest.mark.parametrize(("events", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_turns(events: str, expected: str) -> None:
    health = Health(HealthSettings(down_after=3, up_after=2), 0.0)
    states = []
    since = 0.0
    for now, event in enumerate(events.replace(" ", ""), 1):
        before = health.up
        turned = happen(health, float(now), event)
        states.append("U" if health.up else "D")
        assert turned == (health.up != before)
        since = now if turned else since
        assert health.since == since
    assert "".join(states) == expected.replace(" ", "")


def happen(health: Health, now: float, event: str) -> bool:
    match event:
        case "+" | "g":
            return health.succeeded(now, checked=event == "+")
        case "-":
            return health.failed(now, "no greeting", checked=True, reached=False)
        case "c":
            return health.failed(now, "connection refused", checked=False, name="ann", reached=False)
        case _:
            return health.failed(now, "lost", checked=False, name=event, reached=True)


def test_the_last_reason_stays() -> None:
    health = Health(HealthSettings(down_after=2, up_after=1), 0.0)
    assert health.reason == ""
    health.failed(1.0, "refused", checked=True, reached=False)
    assert health.reason == "refused"
    health.failed(2.0, "no greeting", checked=True, reached=False)
    health.failed(3.0, "lost", checked=False, name="ann", reached=True)
    assert (health.up, health.reason) == (False, "lost")
    health.failed(4.0, "that of a failure which did not count", checked=False, name="ann", reached=True)
    assert health.reason == "lost"


def test_one_is_enough() -> None:
    health = Health(HealthSettings(down_after=1, up_after=1), 0.0)
    for now in (1.0, 3.0):
        assert health.failed(now, "refused", checked=True, reached=False)
        assert health.succeeded(now + 1, checked=True)
