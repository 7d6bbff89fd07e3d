"""Tokens: each is verified once, whether somebody has it or nobody, few at a time."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from proxy.admin import tokens
from proxy.admin.tokens import Tokens
from proxy.outcome import Outcome, Refused
from tests.admin.houses import OPERATOR, TOKENS, VIEWER


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """What was verified."""
    seen: list[tuple[str, bytes]] = []
    verify = tokens.verify

    def watched(kept: str, secret: bytes) -> bool:
        seen.append((kept, secret))
        return verify(kept, secret)

    monkeypatch.setattr(tokens, "verify", watched)
    return seen


async def test_each_is_verified_once(verified: list[tuple[str, bytes]]) -> None:
    table = Tokens(TOKENS)
    for _ in range(3):
        assert await table.find(OPERATOR) is TOKENS[0]
        assert await table.find(VIEWER) is TOKENS[1]
        assert await table.find("wrong") is None
        assert await table.find("") is None
        assert await table.find("x" * 600) is None
        assert await table.find("\udcff") is None
    assert len(verified) == 1 + 2 + 2 + 2


async def test_where_nobody_has_one_none_is_verified(verified: list[tuple[str, bytes]]) -> None:
    assert await Tokens(()).find(OPERATOR) is None
    assert verified == []


async def test_the_same_one_at_the_same_time(verified: list[tuple[str, bytes]]) -> None:
    table = Tokens(TOKENS)
    found = []

    async def ask() -> None:
        found.append(await table.find(OPERATOR))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert found == [TOKENS[0]] * 20
    assert len(verified) <= 2


async def test_wrong_ones_are_forgotten_in_time(
    verified: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_KNOWN_WRONG", 2)
    table = Tokens(TOKENS[:1])
    for wrong in ("a", "b", "a", "c", "a", "b"):  # c pushes b out
        assert await table.find(wrong) is None
    assert [secret for _, secret in verified] == [b"a", b"b", b"c", b"b"]
    assert await table.find(OPERATOR) is TOKENS[0]


async def test_too_many_wrong_ones_of_one_address(
    verified: list[tuple[str, bytes]], mock_clock: trio.testing.MockClock
) -> None:
    """What is not known yet is verified no more; what is known, and other addresses, are told as ever."""
    table = Tokens(TOKENS)
    assert await table.find(VIEWER, "192.0.2.1") is TOKENS[1]
    for number in range(tokens.MAX_WRONG):
        for _ in range(2):  # the same one again is none more
            assert await table.find(f"wrong {number}", "192.0.2.1") is None
    seen = len(verified)
    for unknown in ("wrong", OPERATOR):
        with pytest.raises(Refused) as raised:
            await table.find(unknown, "192.0.2.1")
        assert raised.value.outcome is Outcome.LIMIT
    assert await table.find("wrong 0", "192.0.2.1") is None
    assert await table.find(VIEWER, "192.0.2.1") is TOKENS[1]
    assert len(verified) == seen
    assert await table.find("wrong", "192.0.2.2") is None
    mock_clock.jump(61)
    assert await table.find(OPERATOR, "192.0.2.1") is TOKENS[0]
    assert await table.find("wrong after all", "192.0.2.1") is None


async def test_addresses_are_counted_up_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MOST_ADDRESSES", 2)
    minute = tokens._LastMinute()
    for address in "abcab":
        minute.add(address)
    assert [minute.count(address) for address in "abc"] == [2, 2, 0]
    assert set(minute._counts) == {"a", "b"}


async def test_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    began, going_on = threading.Semaphore(0), threading.Event()

    def wait(_kept: str, _secret: bytes) -> bool:
        began.release()
        assert going_on.wait(5)
        return False

    monkeypatch.setattr(tokens, "verify", wait)
    monkeypatch.setattr(tokens, "_MOST_WAITING", 3)
    table = Tokens(TOKENS[:1])
    async with trio.open_nursery() as nursery:
        for wrong in "abcde":
            nursery.start_soon(table.find, wrong)
        for _ in range(2):
            assert await trio.to_thread.run_sync(began.acquire, True, 5)
        with pytest.raises(Refused) as raised:
            await table.find("f")
        assert not began.acquire(blocking=False), "two at once"
        going_on.set()
    assert raised.value.outcome is Outcome.UNAVAILABLE
