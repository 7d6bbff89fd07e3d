"""How long the answers to failed tries wait, on a clock that jumps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from proxy.auth.throttle import Throttle
from proxy.ledger.session import Session
from proxy.limits.turnstile import Turnstile
from proxy.model import Credentials, Endpoint
from proxy.outcome import Outcome, Refused
from proxy.relay.tracing import Tracing
from proxy.session.house import House
from proxy.session.refusals import Refusals
from proxy.session.tries import Tries
from proxy.settings.models import Limits

OFFER = Credentials("LOGIN", "ann", "", b"wrong")


class Refusing:
    """Sources that refuse everybody in one way."""

    def __init__(self, refusal: Refused) -> None:
        self.refusal = refusal

    def known_as(self, spelled: str) -> str:
        return spelled

    async def authenticate(self, *offer: Any) -> Any:
        raise self.refusal


def house(refusal: Refused, delay: float) -> House:
    limits = Limits(failed_login_delay=delay, login_tries=100)
    metrics = SimpleNamespace(attempt=lambda *_: None, phase=lambda *_: None)
    rooms = {
        "settings": SimpleNamespace(limits=limits),
        "throttle": Throttle(limits),
        "logins": Turnstile("logins_at_once", 100),
        "authenticator": Refusing(refusal),
        "metrics": metrics,
        "tracing": Tracing(),
        "refusals": Refusals(),
    }
    return cast("House", SimpleNamespace(**rooms))


NO = Outcome.AUTHENTICATION_FAILED
WAITS: list[tuple[Refused, float, list[float]]] = [
    (Refused(NO), 2.0, [2, 4, 6, 8, 10, 12, 14, 15, 15]),
    (Refused(NO, wait_seconds=40.0), 2.0, [40, 40]),
    (Refused(NO, wait_seconds=3.0), 2.0, [3, 4, 6]),
    (Refused(Outcome.EXPIRED), 2.0, [2, 4]),
    (Refused(Outcome.UNAVAILABLE), 2.0, [0, 0.1, 0.2]),
    (Refused(Outcome.UNAVAILABLE, wait_seconds=5.0), 2.0, [5, 5]),
]


@pytest.mark.parametrize(("refusal", "delay", "waits"), WAITS)
async def test_waits(
    refusal: Refused, delay: float, waits: list[float], autojump_clock: trio.testing.MockClock
) -> None:
    tries = Tries(Session(Endpoint("192.0.2.1", 40000), "test"), house(refusal, delay))
    waited = []
    for _ in waits:
        began = trio.current_time()
        assert await tries.offer(OFFER) is refusal.outcome
        waited.append(trio.current_time() - began)
    assert waited == pytest.approx(waits)
