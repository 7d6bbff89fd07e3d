"""Limits by time: how they are spelled, and what is said of those that are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.settings.limit_models import ByteRate, CommandRate, LoginRate
from proxy.settings.models import Settings
from proxy.settings.reference import differences

Loaded = Callable[[str], Settings]
Mistakes = Callable[[str], list[str]]


def test_without_a_word_none_is_set(loaded: Loaded, minimal: str) -> None:
    limits = loaded(minimal).limits
    assert limits.connections_per_backend is None
    assert limits.logins_per_user is limits.logins_per_address is None
    assert limits.commands_per_user is limits.commands_per_session is None
    assert limits.bytes_per_user is None
    assert (limits.handshakes_at_once, limits.logins_at_once, limits.ipv6_prefix) == (500, 500, 64)


COMMANDS = [
    ("{rate: 9}", {"all": CommandRate(rate=9)}),
    ("{rate: 9, per: 1h, action: refuse}", {"all": CommandRate(rate=9, per=3600.0, action="refuse")}),
    ("{all: {rate: 9}}", {"all": CommandRate(rate=9)}),
    ("{UID FETCH: {rate: 9, action: disconnect}, SEARCH: {rate: 1}}",
        {"UID FETCH": CommandRate(rate=9, action="disconnect"), "SEARCH": CommandRate(rate=1)}),
    ("null", None),
]  # fmt: skip


@pytest.mark.parametrize("key", ["commands_per_user", "commands_per_session"])
@pytest.mark.parametrize(("text", "rates"), COMMANDS)
def test_commands(loaded: Loaded, minimal: str, key: str, text: str, rates: dict[str, CommandRate] | None) -> None:
    limits = loaded(f"{minimal}limits:\n  {key}: {text}\n").limits
    assert getattr(limits, key) == rates


def test_other_rates(loaded: Loaded, minimal: str) -> None:
    text = "limits: {logins_per_user: {rate: 5}, logins_per_address: {rate: 6, per: 1d}, bytes_per_user: {rate: 1GiB}}"
    limits = loaded(f"{minimal}{text}\n").limits
    assert limits.logins_per_user == LoginRate(rate=5, per=60.0)
    assert limits.logins_per_address == LoginRate(rate=6, per=86400.0)
    assert limits.bytes_per_user == ByteRate(rate=2**30, per=3600.0, action="delay")


WRONG = [
    ("commands_per_user: {}", "11: limits.commands_per_user.all.rate: missing; e.g. rate: 2000"),
    ("commands_per_user: {per: 1m}", "11: limits.commands_per_user.all.rate: missing; e.g. rate: 2000"),
    ("commands_per_user: {rate: 0}", "11: limits.commands_per_user.all.rate: 0 is too small; 1 is the least"),
    ("commands_per_user: {rate: 5, pre: 1m}",
        '11: limits.commands_per_user.all.pre: unknown setting; did you mean "per"?'),
    ("commands_per_user: 5", "11: limits.commands_per_user: expected a section of keys, not a single value"),
    ("commands_per_user:\n    SEARCH: {rate: 5}\n    FETCH: {rate: x}",
        '13: limits.commands_per_user.FETCH.rate: expected a whole number, not "x"'),
    ("commands_per_user:\n    SEARCH: {rate: 5}\n    SERCH: {rate: 5}",
        '13: limits.commands_per_user.SERCH: no command that is told apart; did you mean "SEARCH"?'),
    ("commands_per_user: {search: {rate: 5}}",
        '11: limits.commands_per_user.search: no command that is told apart; did you mean "SEARCH"?'),
    ("commands_per_user: {XYZZY: {rate: 5}}",
        "11: limits.commands_per_user.XYZZY: no command that is told apart; all is one, and SEARCH, APPEND, UID FETCH "
        "are"),
    ("commands_per_user: {SEARCH: 5}",
        "11: limits.commands_per_user.SEARCH: expected a section of keys, not a single value"),
    ("commands_per_session: {rate: 5, action: slow}",
        '11: limits.commands_per_session.all.action: expected delay, refuse or disconnect, not "slow"'),
    ("bytes_per_user: {rate: 500}", "11: limits.bytes_per_user.rate: say the unit, e.g. 500MiB"),
    ("bytes_per_user: {rate: 1KiB}", "11: limits.bytes_per_user.rate: 1KiB is too small; 64KiB is the least"),
    ("bytes_per_user: {rate: 1MiB, action: refuse}",
        '11: limits.bytes_per_user.action: expected delay or disconnect, not "refuse"'),
    ("logins_per_user: {per: 1m}", "11: limits.logins_per_user.rate: missing; e.g. rate: 60"),
    ("logins_per_user: {rate: 1, per: 10ms}", "11: limits.logins_per_user.per: 10ms is too short; 1s is the least"),
    ("connections_per_backend: 0", "11: limits.connections_per_backend: 0 is too small; 1 is the least"),
    ("ipv6_prefix: 129", "11: limits.ipv6_prefix: 129 is too large; 128 is the most"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "mistake"), WRONG)
def test_a_mistake_is_told_where_it_is(mistakes: Mistakes, minimal: str, text: str, mistake: str) -> None:
    assert minimal.count("\n") == 9
    assert mistakes(f"{minimal}limits:\n  {text}\n") == [mistake]


def test_what_differs_is_shown_as_it_is_written(loaded: Loaded, minimal: str) -> None:
    text = "limits: {commands_per_user: {rate: 5, per: 60s}, bytes_per_user: {rate: 1024KiB}}\n"
    found = {each.key: (each.value, each.default) for each in differences(loaded(minimal + text))}
    assert found == {
        "limits.commands_per_user": ({"all": {"rate": 5, "per": "1m", "action": "delay"}}, None),
    }
