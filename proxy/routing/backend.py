"""One backend of a cluster: what is said of it, and how it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proxy.routing.health import Health
from proxy.routing.memory import Memo
from proxy.routing.view import NOT_CHECKED, Standing
from proxy.settings.models import Server, State


class Backend:
    """It changes; a Standing is how it is at one moment."""

    __slots__ = (
        "_document", "discovered", "failed_over", "health", "said_state", "said_weight", "server", "unproved",
    )  # fmt: skip

    def __init__(self, server: Server, health: Health, *, discovered: bool) -> None:
        self.server = server
        self.health = health
        self.discovered = discovered
        self.said_state: State | None = None  # by an administrator; None: nothing
        self.said_weight: int | None = None
        self.failed_over = False
        self.unproved: int | None = None  # new: so many good checks in a row are still wanted of it
        self._document: tuple[Server, Mapping[str, Any]] | None = None  # a server, and how it stands in settings

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def state(self) -> State:
        return self.said_state or self.server.state

    @property
    def weight(self) -> int:
        return self.server.weight if self.said_weight is None else self.said_weight

    @property
    def reason(self) -> str:
        """Why it is not up; of a new one, why it is out all the same."""
        if not self.health.up:
            return self.health.reason
        return "" if self.unproved is None else NOT_CHECKED

    @property
    def takes_homes(self) -> bool:
        return self.state == "up" and self.weight > 0 and self.health.up and not self.failed_over

    @property
    def document(self) -> Mapping[str, Any]:
        """The server as it stands in settings."""
        if self._document is None or self._document[0] is not self.server:
            self._document = self.server, self.server.model_dump(mode="json", exclude_unset=True)
        return self._document[1]

    def standing(self, *, failover: bool) -> Standing:
        """How it stands now.

        Args:
            failover: Whether others take its users when it is down.
        """
        out = self.failed_over or (self.state == "down" and failover)
        return Standing(self.server, self.weight, self.state, self.health.up, self.reason, out)

    def memo(self, now: float, addresses: Sequence[str]) -> Memo:
        """What there is to remember."""
        health = self.health
        return Memo(
            str(self.server.url),
            self.server.state,
            self.server.weight,
            self.said_state,
            self.said_weight,
            health.up,
            now - health.since,
            health.reason,
            self.failed_over,
            self.unproved,
            self.document if self.discovered else None,
            tuple(addresses) if self.discovered else (),
        )

    def recall(self, memo: Memo, now: float, *, failover: bool) -> None:
        """Be as another process has it.

        An administrator's word holds until the settings of this backend say something else than they did then. How it
        is says nothing about a server at another place, nor who fails over where nobody does.
        """
        server = self.server
        self.said_state = memo.said_state if memo.set_state == server.state else None
        self.said_weight = memo.said_weight if memo.set_weight == server.weight else None
        if memo.url == str(server.url):
            self.health.recall(now - memo.age, memo.reason, up=memo.up)
            self.failed_over = memo.failed_over and failover
            self.unproved = memo.unproved if failover else None
