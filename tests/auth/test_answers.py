"""When identity sources count as out, by the last logins."""

import pytest

from proxy.auth.answers import Answers

CASES = [
    ("nobody came yet", "", True),
    ("two in vain", "xx", True),
    ("three in vain", "xxx", False),
    ("judged between", "xx.x", True),
    ("back again", "xxxxx.", True),
    ("and out again", "xxxxx.xxx", False),
]


@pytest.mark.parametrize(("name", "logins", "usable"), CASES)
def test_who_is_out(name: str, logins: str, usable: bool) -> None:
    told = Answers(["ldap", "oauth"])
    for login in logins:
        told.unjudged() if login == "x" else told.judged()
    assert told.usable is usable


def test_they_get_another_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is sent nobody, since he cannot tell who they are, would never learn that he can again."""
    now = 1000.0
    monkeypatch.setattr("proxy.auth.answers.time.monotonic", lambda: now)
    told = Answers(["ldap"])
    for _ in range(3):
        told.unjudged()
    assert not told.usable
    now += 15.1
    assert told.usable
    told.unjudged()
    assert not told.usable, "the trial was in vain"
