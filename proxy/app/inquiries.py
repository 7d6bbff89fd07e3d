"""Questions of the steward's to workers, for administrators who look on: asked of all at once, answered soon or not."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Collection, Mapping
from typing import Any

import trio

from proxy.app.worker_link import FEW_WAITING, WorkerLink
from proxy.transport.packets import Message

_MOST_AT_ONCE = 100


class _Inquiry:
    """One question, and what there is of its answers."""

    def __init__(self, asked: set[str]) -> None:
        self.missing = asked
        self.answers: dict[str, Any] = {}
        self.answered = trio.Event()

    def settle(self, worker: str) -> None:
        self.missing.discard(worker)
        if not self.missing:
            self.answered.set()


class Inquiries:
    """All questions that wait for answers."""

    def __init__(self, links: Mapping[str, WorkerLink]) -> None:
        """Args:
        links: Those of all workers, by name; read whenever there is a question.
        """
        self._links = links
        self._numbers = itertools.count(secrets.randbelow(1 << 30))  # none that an earlier steward has asked under
        self._open: dict[int, _Inquiry] = {}

    async def ask(
        self, what: str, *arguments: Any, workers: Collection[str] | None = None, seconds: float = 1.0
    ) -> dict[str, Any]:
        """What workers answer, by their names. Who is late, or does not know, is not among them.

        Args:
            what: As `app.informant` knows it.
            workers: Whom to ask; None: all.
            seconds: How long to wait.
        """
        asked = {name for name in self._links if workers is None or name in workers}
        if not asked or len(self._open) >= _MOST_AT_ONCE:
            return {}
        number = next(self._numbers)
        inquiry = self._open[number] = _Inquiry({*asked})
        try:
            for name in asked:
                link = self._links[name]
                if link.packets.waiting < FEW_WAITING:
                    link.post(["ask", number, what, list(arguments)])
                else:  # he is behind, and has to do with more important things
                    inquiry.settle(name)
            with trio.move_on_after(seconds):
                await inquiry.answered.wait()
        finally:
            del self._open[number]
        return inquiry.answers

    def told(self, link: WorkerLink, message: Message) -> None:
        """A worker has answered."""
        match message:
            case [_, int(number), answer, *_] if (inquiry := self._open.get(number)) is not None:
                if answer is not None and link.name in inquiry.missing:
                    inquiry.answers[link.name] = answer
                inquiry.settle(link.name)

    def gone(self, worker: str) -> None:
        """A worker answers no more."""
        for inquiry in self._open.values():
            inquiry.settle(worker)
