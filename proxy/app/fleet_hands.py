"""What this proxy does because another member of its fleet wants it, and how it becomes a member."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from proxy.admin.questions import Kick
from proxy.admin.verbs import VERBS, Unusable
from proxy.app.desk import Desk
from proxy.app.fleet import Member
from proxy.app.fleet_orders import Orders
from proxy.app.links import Links
from proxy.observe.log import get_logger
from proxy.outcome import Outcome, Refused
from proxy.settings.models import Settings

log = get_logger()

_REASON = "said at another proxy"


def member_for(settings: Settings, instance: str, links: Links, desk: Desk) -> Member:
    """This proxy as a member; nothing is connected to.

    Args:
        instance: What tells this proxy from another one of its name, in all its generations.
    """
    fleet = settings.fleet
    assert fleet is not None
    registry, name = links.registry, fleet.name or socket.gethostname()
    orders = Orders(name, _Hands(links, desk), shares_failures=fleet.secret is not None)
    links.news.on_tried = orders.say_failure

    def close(session_id: str, why: str) -> None:
        log.info("fleet.session_closed", session_id=session_id, detail=why)
        links.close([session_id], Outcome.LIMIT, patience=0.0)

    member = Member(settings, name, instance, registry.ledger, registry.directions, orders, registry.adopt, close)
    registry.fleet = member
    return member


def shared_key(settings: Settings) -> bytes | None:
    """What failures are told by at all proxies of the fleet; None: each has a key of its own."""
    if settings.fleet is None or settings.fleet.secret is None:
        return None
    return blake2b(settings.fleet.secret.value, digest_size=32, person=b"porter throttle").digest()


class _Hands:
    """As `fleet_orders.Hands` has it."""

    def __init__(self, links: Links, desk: Desk) -> None:
        self._links, self._desk = links, desk

    def close(self, name: str, backend: str) -> int:
        """He logs in elsewhere. If he is elsewhere by now, the order comes late."""
        ledger = self._links.registry.ledger
        there = ledger.find(name)
        return ledger.move(name) if there is not None and there.sessions and there.backend == backend else 0

    def kick(self, whom: Mapping[str, Any]) -> int:
        """As an administrator here would have done it."""
        try:
            question = VERBS["kick"].ask(**{str(key): value for key, value in whom.items()} | {"reason": _REASON})
            assert isinstance(question, Kick)
            return self._desk.kick_here(question)
        except (Unusable, Refused, TypeError) as exc:
            raise ValueError(f"a kick that makes no sense: {exc}") from None

    def failed(self, message: list[Any]) -> None:
        """All workers hear of it as if it had been one of them."""
        self._links.news.tried(None, message)
