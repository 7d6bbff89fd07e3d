"""Workers that are nothing but the far end of a link, and a steward's rooms around the near one."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import trio
import trio.testing

from proxy.settings.models import Settings
from proxy.transport.packets import Message, Packets, packet_pair, send_packet

PATIENCE_SECONDS = 5
# What every worker is told in greeting, and is of no matter for mail; tests that want it hear() it.
_OF_ONLOOKERS = frozenset({"watch", "log_level", "undirected"})

SERVERS = [{"name": name, "url": f"imap://{name}.test.example"} for name in ("d1", "d2")]


def settings_of(**changes: Any) -> Settings:
    """Two backends; their checks are far away."""
    plain: dict[str, Any] = {
        "version": 1,
        "listeners": [{"address": "127.0.0.1:1143", "tls": "none", "trusted_networks": ["127.0.0.0/8"]}],
        "identity": [{"backend": {}}],
        "backends": {"servers": SERVERS, "health": {"interval": 3600.0}},
        "routing": {"move_delay": 0.01},
    }
    for section, values in changes.items():
        plain[section] = {**plain.get(section, {}), **values} if isinstance(values, dict) else values
    return Settings.model_validate(plain)


class FakeWorker:
    """What a worker says and hears."""

    def __init__(self, name: str = "w1.0", *, lodgers: Sequence[list[Any]] = (), accepting: bool = True) -> None:
        """There is a link, and nobody at its other end yet."""
        self.name = name
        self.near, self.far = packet_pair()
        self.packets = Packets(self.far)
        self.inbox: deque[Message] = deque()
        self.lodgers = list(lodgers)
        self.accepting = accepting
        self.view: tuple[int, dict[str, Any] | None] = (0, None)
        self._questions = iter(range(1, 1000))

    def near_end(self) -> socket.socket:
        """The steward's end, for one of several stewards."""
        return self.near.dup()

    def tell(self, *messages: Message) -> None:
        assert send_packet(self.far, messages)

    async def hear(self, kind: str) -> Message:
        """The next message of a kind; whatever comes before is dropped."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                while self.inbox:
                    message = self.inbox.popleft()
                    if message[0] == "view":
                        self.view = (message[1], message[2])
                    if message[0] == kind:
                        return message
                messages = await self.packets.receive()
                if not messages:
                    raise EOFError
                self.inbox.extend(messages)

    async def overhear(self) -> list[Message]:
        """All that has been said by now."""
        await self.take_in()
        heard = [message for message in self.inbox if message[0] not in _OF_ONLOOKERS]
        self.inbox.clear()
        return heard

    async def take_in(self) -> None:
        """Have all that has been said by now in the inbox."""
        await trio.testing.wait_all_tasks_blocked(0.001)
        while True:
            messages: Sequence[Message] = []
            with trio.move_on_after(0.005):  # for each packet anew: a machine that is busy loses none
                messages = await self.packets.receive()
            if not messages:
                return
            self.inbox.extend(messages)

    async def report(self) -> None:
        """Answer a hello."""
        nonce = (await self.hear("hello"))[1]
        about = {"index": 0, "generation": 1, "pid": 1, "accepting": self.accepting}
        self.tell(["report", nonce, *self.view, about])
        if self.lodgers:
            self.tell(["lodgers", nonce, self.lodgers])
        self.tell(["reported", nonce])

    def ask(
        self, session_id: str, name: str, *, backend: str | None = None, verified: bool = True, source: str = "file"
    ) -> int:
        """Ask to admit a session; gives the question."""
        question = next(self._questions)
        self.tell(["admit", question, session_id, name, backend, None, source, verified, "192.0.2.7", 4711, "imaps"])
        return question

    async def answer(self, question: int) -> Message:
        """The answer to that question."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                while self.inbox:
                    message = self.inbox.popleft()
                    if message[0] in ("admitted", "refused") and message[1] == question:
                        return message
                messages = await self.packets.receive()
                assert messages
                self.inbox.extend(messages)

    async def admit(self, session_id: str, name: str, **values: Any) -> str:
        """Have a session admitted; gives the backend, or the outcome of a refusal."""
        return str((await self.answer(self.ask(session_id, name, **values)))[2])

    def confirm(self, *session_ids: str) -> None:
        self.tell(["confirm", [*session_ids]])

    def release(self, *session_ids: str, opened: bool = True) -> None:
        self.tell(["release", [[session_id, opened] for session_id in session_ids]])

    def die(self) -> None:
        """As if killed."""
        self.packets.close()

    def close(self) -> None:
        self.die()
        self.near.close()


def lodger(session_id: str, name: str, backend: str, *, stage: int = 2, age: float = 10.0) -> list[Any]:
    """A session as it is reported."""
    return [session_id, name, "192.0.2.7:4711", "imaps", backend, "hash", stage, age]


def health_of(memory: Mapping[str, Any] | None) -> dict[str, bool]:
    """Who is up, by what a view says."""
    assert memory is not None
    return {name: backend["health"][0] for name, backend in memory["backends"].items()}
