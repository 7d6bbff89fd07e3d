"""What a proxy does because another one wants it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from proxy.admin.questions import Kick
from proxy.app.fleet_hands import _Hands, member_for, shared_key
from proxy.app.registry import Registry
from proxy.outcome import Outcome, Refused
from tests.app.fake_workers import settings_of
from tests.app.test_registry import Closer, guest, identity

FLEET = {"valkey": "redis://127.0.0.1"}


class Desk:
    """Notes whom it kicks."""

    def __init__(self) -> None:
        self.kicked: list[dict[str, Any]] = []

    def kick_here(self, whom: Kick) -> int:
        if whom.user == "no name":
            raise Refused(Outcome.AUTHENTICATION_FAILED, "it is none")
        self.kicked.append(whom.model_dump(exclude_none=True))
        return 2


def hands(registry: Registry) -> tuple[_Hands, Desk, list[Any]]:
    tried: list[Any] = []
    news = SimpleNamespace(tried=lambda link, message: tried.append((link, message)))
    desk = Desk()
    return _Hands(SimpleNamespace(registry=registry, news=news), desk), desk, tried  # type: ignore[arg-type]


async def test_sessions_end_where_they_are_said_to_be(nursery: trio.Nursery) -> None:
    closer = Closer()
    registry = Registry(settings_of(), closer)
    mine, _, _ = hands(registry)
    for session_id in ("s1", "s2"):
        registry.admit_now(guest(session_id, "ann"), identity("ann", "d1"))
        registry.confirm(session_id)
    nursery.start_soon(registry.ledger.run)
    assert mine.close("ann", "d2") == mine.close("bob", "d1") == 0, "that comes late"
    assert closer.closed == []
    assert mine.close("ann", "d1") == 2
    assert closer.ids == ["s1", "s2"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "whom",
    [
        {},
        {"user": "ann", "session": "s1"},
        {"user": 5},
        {"user": ""},
        {"user": "no name"},
        {"address": "nowhere"},
        {"everybody": True},
        {"user": "ann", "and": "more"},
        {"user": "x" * 100_000},
        {"user": None, "backend": None},
        {"self": "x"},
        {"self": "x", "user": "ann"},
    ],
)
async def test_a_kick_that_makes_no_sense(whom: dict[str, Any]) -> None:
    mine, desk, _ = hands(Registry(settings_of(), Closer()))
    with pytest.raises(ValueError, match="a kick that makes no sense"):
        mine.kick(whom)
    assert desk.kicked == [], "above all not everybody"


@pytest.mark.parametrize("key", ["user", "session", "backend"])
async def test_a_kick(key: str) -> None:
    mine, desk, _ = hands(Registry(settings_of(), Closer()))
    assert mine.kick({key: "x"}) == 2
    assert mine.kick({"address": "192.0.2.7"}) == 2
    assert desk.kicked[0] == {key: "x", "reason": "said at another proxy"}


async def test_failures_are_for_all_workers() -> None:
    mine, _, tried = hands(Registry(settings_of(), Closer()))
    mine.failed(["wrong", ["a", "b", "c", True, 0.0]])
    assert tried == [(None, ["wrong", ["a", "b", "c", True, 0.0]])]


def test_a_key_for_all_proxies(tmp_path: Path) -> None:
    for name, secret in (("one", "together"), ("two", "together"), ("three", "alone")):
        (tmp_path / name).write_text(secret + "\n")

    def key(name: str | None) -> bytes | None:
        secret = {} if name is None else {"secret": {"file": str(tmp_path / name)}}
        return shared_key(settings_of(fleet={**FLEET, **secret}))

    assert shared_key(settings_of()) is key(None) is None
    found = key("one")
    assert found is not None
    assert found == key("two") != key("three")
    assert len(found) == 32
    assert b"together" not in found


async def test_a_member_by_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    registry = Registry(settings_of(), Closer())
    news = SimpleNamespace(on_tried=None)
    links: Any = SimpleNamespace(
        registry=registry, news=news, close=lambda ids, outcome, patience: closed.append((ids, outcome, patience))
    )
    member = member_for(settings_of(fleet={**FLEET, "name": "porter-1"}), "i", links, Desk())  # type: ignore[arg-type]
    assert registry.fleet is member
    assert (member.name, member.is_up, member.others) == ("porter-1", False, 0)
    assert member.status() == {"name": "porter-1", "up": False, "members": [], "error": "not asked yet"}
    assert news.on_tried == member._orders.say_failure
    with capture_logs() as logged:
        member._logins._close("s1", "why")
    assert logged == [{"event": "fleet.session_closed", "log_level": "info", "session_id": "s1", "detail": "why"}]
    assert closed == [(["s1"], Outcome.LIMIT, 0.0)]
    monkeypatch.setattr("socket.gethostname", lambda: "pod-7")
    assert member_for(settings_of(fleet=FLEET), "i", links, Desk()).name == "pod-7"  # type: ignore[arg-type]
