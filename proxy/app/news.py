"""What one worker says that others have to know: figures for whoever looks, failures, and what users have used up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import trio

from proxy.app.worker_link import WorkerLink
from proxy.auth.throttle import Throttle
from proxy.ledger.guests import Guests
from proxy.observe.metrics import METRICS
from proxy.transport.packets import Message

SCRAPE_SECONDS = 0.2  # for the figures of all workers
_MOST_NEWS = 1_000  # where more waits for a worker already, he is told no news of others
_MOST_GUESTS = 1_000  # of one user, that are looked at
_NEWS_AT_ONCE = 200


class News:
    """Passes news on to the workers that there are."""

    def __init__(self, links: Mapping[str, WorkerLink], guests: Guests, throttle: Throttle) -> None:
        """Args:
        links: Those of all workers, by name; read whenever there is news.
        throttle: Learns what failed at any worker, for those that come later.
        """
        self._links, self._guests, self._throttle = links, guests, throttle
        self._scraping: set[str] = set()  # workers that are asked for their figures
        self._scraped = trio.Event()
        self.on_tried: Callable[[Message], None] = lambda message: None  # for other proxies

    # --- figures ---

    async def refresh(self) -> None:
        """Have the workers tell what they have counted until now; who does not soon is not waited for."""
        if not self._scraping:
            self._scraping, self._scraped = set(self._links), trio.Event()
            for link in self._links.values():
                link.post(["scrape"], _MOST_NEWS)
        if self._scraping:
            with trio.move_on_after(SCRAPE_SECONDS):
                await self._scraped.wait()
            self._scraping.clear()

    def scraped(self, link: WorkerLink, message: Message) -> None:
        """He has told all that he had."""
        self._scraping.discard(link.name)
        if not self._scraping:
            self._scraped.set()

    def counted(self, link: WorkerLink, message: Message) -> None:
        """What has moved of his metrics."""
        changes = message[1]
        METRICS.merge(link.name, changes)
        for change in changes:
            match change:
                case ["porter_backend_logins_waiting", [str(backend)], waiting, *_]:
                    link.logins_waiting[backend] = waiting or 0

    # --- failures ---

    def tried(self, link: WorkerLink | None, message: Message) -> None:
        """Somebody failed to log in, or did: all workers count alike.

        Args:
            link: Whose word it is; None: another proxy's.
        """
        if link is not None:
            self.on_tried(message)
        for other in self._links.values():
            if other is not link:
                other.post(message, _MOST_NEWS)
        learn = self._throttle.learn_wrong if message[0] == "wrong" else self._throttle.learn_known
        learn(message[1:])

    def tell_failures(self, link: WorkerLink) -> None:
        """He is new, and nobody must have more tries for that."""
        wrong, known = self._throttle.failures()
        for kind, news in (("wrong", wrong), ("known", known)):
            for start in range(0, len(news), _NEWS_AT_ONCE):
                link.post([kind, *news[start : start + _NEWS_AT_ONCE]], _MOST_NEWS)

    # --- limits ---

    def used(self, link: WorkerLink, message: Message) -> None:
        """What users have used of what is limited, for those who have sessions of theirs too."""
        shares: dict[str, dict[str, Any]] = {}
        for name, used in message[1].items():
            workers = {guest.worker for guest in self._guests.named(name, _MOST_GUESTS)}
            for worker in workers - {link.name}:
                shares.setdefault(worker, {})[name] = used
        for worker, share in shares.items():
            if (other := self._links.get(worker)) is not None:
                other.post(["used", share], _MOST_NEWS)
