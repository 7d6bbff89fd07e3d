"""A whole steward between a master and workers that are nothing but the far ends of sockets."""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from proxy.admin.unix_socket import private_listener
from proxy.app import steward as steward_module
from proxy.app.plan import Plan, StewardPlace
from proxy.app.steward import Steward
from proxy.auth.passwords import hash_password
from proxy.model import Endpoint
from proxy.observe.metrics import METRICS
from proxy.outcome import Outcome
from proxy.settings.models import Settings
from proxy.transport.door import Door
from proxy.transport.listen import bind
from proxy.transport.packets import Message, Packets, packet_pair, send_packet
from tests.app.fake_workers import PATIENCE_SECONDS, FakeWorker, health_of, lodger, settings_of

LOOPBACK = "127.0.0.1"


class Reign:
    """One steward, and what its master says to it."""

    def __init__(
        self, household: Household, settings: Settings, hand_over: int | None, admin_tls: ssl.SSLContext | None = None
    ) -> None:
        near, self._far = packet_pair()
        self.packets = Packets(self._far)
        self.inbox: deque[Message] = deque()
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self._near = near
        self._ends = {worker.name: worker.near_end() for worker in household.workers}
        inherited = None if hand_over is None else os.dup(hand_over)
        place = StewardPlace(
            near,
            self._ends,
            household.asking,
            household.metrics,
            household.admin,
            household.admin_socket,
            inherited,
            -1,
        )
        self.steward = Steward(Plan(settings, Path("porter.yaml"), (), 1, 2, bytes(32), admin_tls=admin_tls), place)

    async def live(self) -> None:
        with self.scope:
            await self.steward.run()
        self._near.close()
        for link in self.steward.links:
            link.packets.close()
        self.ended.set()

    def say(self, message: Message, *descriptors: int) -> None:
        assert send_packet(self._far, [message], descriptors)

    async def hear(self, kind: str) -> Message:
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                while self.inbox:
                    message = self.inbox.popleft()
                    if message[0] == kind:
                        return message
                self.inbox.extend(await self.packets.receive())

    async def until_ended(self) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            await self.ended.wait()

    async def kill(self) -> None:
        """As SIGKILL does."""
        self.scope.cancel()
        await self.until_ended()

    def close(self) -> None:
        self.packets.close()


class Household:
    """Workers, one steward after the other, and the sockets that outlive them."""

    def __init__(self, nursery: trio.Nursery, folder: Path, stack: ExitStack) -> None:
        self._nursery = nursery
        self.workers = [FakeWorker("w1.0"), FakeWorker("w1.1")]
        self.metrics = stack.enter_context(bind(Endpoint(LOOPBACK, 0)))
        self.admin = stack.enter_context(bind(Endpoint(LOOPBACK, 0)))
        self.path = folder / "admin.sock"
        self.admin_socket = stack.enter_context(private_listener(self.path))
        self.asking: list[tuple[Door, socket.socket]] = []
        self.reigns: list[Reign] = []

    async def begin(
        self,
        settings: Settings | None = None,
        *,
        hand_over: int | None = None,
        admin_tls: ssl.SSLContext | None = None,
    ) -> Reign:
        """A steward begins, and all workers report to it."""
        reign = Reign(self, settings or settings_of(), hand_over, admin_tls)
        self.reigns.append(reign)
        self._nursery.start_soon(reign.live)
        await reign.hear("ready")
        reign.say(["begin"])
        for worker in self.workers:
            worker.inbox.clear()
            await worker.report()
        await trio.testing.wait_all_tasks_blocked()
        assert reign.steward.links.is_open
        for worker in self.workers:
            heard = await worker.overhear()
            worker.inbox.extend(message for message in heard if message[0] != "view")
            worker.view = next(((m[1], m[2]) for m in reversed(heard) if m[0] == "view"), worker.view)
        return reign

    async def hand_over(self, reign: Reign, settings: Settings | None = None) -> Reign:
        """Another steward takes over."""
        descriptor = os.memfd_create("test")
        try:
            reign.say(["hand_over"], descriptor)
            await reign.hear("handed_over")
            await reign.until_ended()
            return await self.begin(settings, hand_over=descriptor)
        finally:
            os.close(descriptor)

    async def ask(self, path: str, document: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """What an administrator asks on the unix socket."""
        stream = await trio.open_unix_socket(str(self.path))
        return await _exchange(stream, path, document)

    async def look(self, sock: socket.socket, path: str) -> tuple[int, Any]:
        """What is served on a TCP socket."""
        return await _exchange(await trio.open_tcp_stream(*sock.getsockname()), path, None)


async def _exchange(stream: trio.SocketStream, path: str, document: Mapping[str, Any] | None) -> tuple[int, Any]:
    body = b"" if document is None else json.dumps(document).encode()
    method = "GET" if document is None else "POST"
    with trio.fail_after(PATIENCE_SECONDS):
        async with stream:
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            await stream.send_all(head.encode() + body)
            answer = b"".join([chunk async for chunk in stream])
    head, _, text = answer.decode().partition("\r\n\r\n")
    status = int(head.split(" ")[1])
    return status, json.loads(text) if "application/json" in head else text


@pytest.fixture
async def household(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Household]:
    with ExitStack() as stack:
        made = Household(nursery, tmp_path, stack)
        yield made
        for reign in made.reigns:
            await reign.kill()
            reign.close()
        for worker in made.workers:
            worker.close()
    METRICS.forget("master")


def sessions_of(reign: Reign) -> int:
    return len(reign.steward.links.registry.ledger)


# --- one after the other ---


async def test_nothing_is_said_before_the_master_says_so(household: Household) -> None:
    reign = Reign(household, settings_of(), None)
    household.reigns.append(reign)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reign.live)
        await reign.hear("ready")
        await reign.hear("alive")
        assert await household.workers[0].overhear() == []
        reign.say(["stop"])
        await reign.until_ended()


async def test_a_killed_steward_is_followed_without_a_trace(household: Household) -> None:
    one, other = household.workers
    settings = settings_of(limits={"connections_per_user": 2})
    reign = await household.begin(settings)
    home = await one.admit("a1", "ann")
    one.confirm("a1")
    await household.ask("/v1/drain", {"backend": home, "reason": "test"})
    await one.overhear()
    for worker in household.workers:
        worker.view = (reign.steward.links.version, reign.steward.links.registry.view())
    await reign.kill()
    one.lodgers, other.lodgers = [lodger("a1", "ann", home)], [lodger("b1", "ann", home)]
    reign = await household.begin(settings)
    assert sessions_of(reign) == 2
    assert await one.admit("a2", "ann") == Outcome.LIMIT
    assert await one.admit("a3", "bob") != home, "an administrator has said so"
    other.release("b1")
    await trio.testing.wait_all_tasks_blocked()
    assert await one.admit("a2", "ann") == home


async def test_hand_over_keeps_what_workers_do_not_know(household: Household) -> None:
    one = household.workers[0]
    reign = await household.begin()
    home = await one.admit("a1", "ann", verified=False)
    away = "d2" if home == "d1" else "d1"
    one.tell(["confirm", ["a1"]], ["release", [["a1", True]]])
    for number in range(3):
        one.tell(["failed", away, f"u{number}", "connect: refused", False])
    one.tell(["metrics", [["porter_moves_total", ["drain"], 5]]], ["wrong", ["61", "62", "63", True, 0.0]])
    await household.ask("/v1/weight", {"backend": home, "weight": 0, "reason": "test"})
    version = reign.steward.links.version

    def counted(text: str) -> float:
        (line,) = [line for line in text.splitlines() if line.startswith('porter_moves_total{reason="drain"}')]
        return float(line.split()[-1])

    before = counted((await household.look(household.metrics, "/metrics"))[1])
    assert before >= 5
    reign = await household.hand_over(reign)
    assert reign.steward.links.version > version
    assert health_of(one.view[1])[away] is False
    answer = (await household.ask("/v1/backends"))[1]
    assert {view["name"]: (view["up"], view["weight"]) for view in answer["backends"]} == {
        home: (True, 0),
        away: (False, 1),
    }
    whereabouts = reign.steward.links.registry.ledger.find("ann")
    assert whereabouts is not None
    assert whereabouts.backend == home
    assert counted((await household.look(household.metrics, "/metrics"))[1]) >= before


async def test_with_new_settings_the_sessions_stay(household: Household) -> None:
    """A backend that the new settings do not know is left to the old generation."""
    one = household.workers[0]
    reign = await household.begin()
    assert await one.admit("a1", "ann", backend="d2") == "d2"
    one.lodgers = [lodger("a1", "ann", "d2")]
    servers = [{"name": "d1", "url": "imap://d1.test.example"}, {"name": "d3", "url": "imap://d3.test.example"}]
    settings = settings_of(backends={"servers": servers, "health": {"interval": 3600.0}})
    reign = await household.hand_over(reign, settings)
    assert sessions_of(reign) == 1
    assert [message for message in await one.overhear() if message[0] == "close"] == []
    one.ask("a2", "ann")
    assert (await one.hear("close"))[1] == ["a1"], "until he logs in anew"


async def test_what_was_asked_during_a_hand_over_is_answered_by_the_next(household: Household) -> None:
    one = household.workers[0]
    reign = await household.begin()
    assert await one.admit("a1", "ann", backend="d1") == "d1"
    question = one.ask("a2", "ann", backend="d2")
    await one.hear("close")
    one.lodgers = [lodger("a1", "ann", "d1", stage=1)]
    reign = await household.hand_over(reign)
    one.tell(["admit", question, "a2", "ann", "d2", None, "file", True, "192.0.2.7", 4711, "imaps"])
    await one.hear("close")
    one.release("a1")
    assert (await one.answer(question))[2] == "d2"


async def test_an_unfinished_hand_over_is_made_up_for_by_workers(household: Household) -> None:
    one = household.workers[0]
    reign = await household.begin()
    await household.ask("/v1/drain", {"backend": "d1", "reason": "test"})
    one.view = (reign.steward.links.version, reign.steward.links.registry.view())
    one.lodgers = [lodger("a1", "ann", "d1")]
    await reign.kill()
    descriptor = os.memfd_create("test")
    os.write(descriptor, b'{"version": 99, "regi')
    reign = await household.begin(hand_over=descriptor)
    os.close(descriptor)
    states = {view["name"]: view["state"] for view in (await household.ask("/v1/backends"))[1]["backends"]}
    assert states == {"d1": "drain", "d2": "up"}
    assert sessions_of(reign) == 1


async def test_another_worker_joins(household: Household) -> None:
    reign = await household.begin()
    worker = FakeWorker("w1.0.2")
    household.workers.append(worker)
    with worker.near_end() as end:
        reign.say(["worker", worker.name], end.fileno())
    reign.say(["worker_gone", "w1.0"])
    await worker.report()
    assert (await worker.hear("view"))[1] == reign.steward.links.version
    assert await worker.admit("s1", "ann") in ("d1", "d2")


# --- what it serves ---


async def test_readiness(household: Household) -> None:
    for worker in household.workers:
        worker.accepting = False
    reign = await household.begin()
    one, other = household.workers
    assert (await household.look(household.admin, "/readyz"))[0] == 503
    one.tell(["accepting", True])
    other.tell(["accepting", True])
    await trio.testing.wait_all_tasks_blocked()
    one.die()
    await trio.testing.wait_all_tasks_blocked()
    assert await household.look(household.admin, "/readyz") == (
        200,
        {"ready": True, "reasons": [], "draining": False, "workers": 1, "sessions": 0},
    )

    async def why_not() -> list[str]:
        await trio.testing.wait_all_tasks_blocked()
        status, told = await household.look(household.admin, "/readyz")
        assert (status, told["ready"]) == (503, False)
        return list(told["reasons"])

    other.tell(["accepting", False])
    assert await why_not() == ["no worker lets clients in"]
    other.tell(["accepting", True], ["usable", False])
    assert await why_not() == ["no identity source answers"]
    other.tell(["usable", True])
    for name in ("d1", "d2"):
        reign.steward.links.registry.cluster.set_state(name, "down", time.monotonic())
    assert await why_not() == ["no backend is up"]
    reign.steward.links.registry.cluster.set_state("d1", "drain", time.monotonic())
    await trio.testing.wait_all_tasks_blocked()
    assert (await household.look(household.admin, "/readyz"))[0] == 200
    reign.say(["draining"])
    await trio.testing.wait_all_tasks_blocked()
    assert (await household.look(household.admin, "/readyz"))[0] == 503
    assert (await household.look(household.admin, "/livez"))[0] == 200


async def test_status(household: Household) -> None:
    reign = await household.begin()
    await household.workers[0].admit("s1", "ann")
    processes = [{"process": "w1.0", "role": "worker"}, {"process": "s1", "role": "steward"}]
    reign.say(["status", {"version": "9", "generation": 3, "last_reload": {}, "processes": processes}])
    await trio.testing.wait_all_tasks_blocked()
    assert await household.ask("/v1/status") == (
        200,
        {
            "version": "9",
            "generation": 3,
            "last_reload": {},
            "fleet": None,
            "draining": False,
            "processes": [{**processes[0], "sessions": 1}, processes[1]],
            "caller": {"name": f"uid {os.getuid()}", "role": "operator"},
        },
    )


async def test_metrics_of_the_master_are_shown(household: Household) -> None:
    reign = await household.begin()
    reign.say(["metrics", [["porter_moves_in_flight", [], 41]]])
    await trio.testing.wait_all_tasks_blocked()
    assert "\nporter_moves_in_flight 41" in (await household.look(household.metrics, "/metrics"))[1]


ANSWERS = [
    (["answer", None, True, "changed: workers"], (200, {"done": {"reloaded": "changed: workers"}, "warning": ""})),
    (["answer", None, False, "porter.yaml:3: no"], (409, {"problem": "porter.yaml:3: no"})),
]


@pytest.mark.parametrize(("said", "expected"), ANSWERS, ids=["taken over", "mistakes"])
async def test_reload(household: Household, said: Message, expected: tuple[int, Any]) -> None:
    reign = await household.begin()
    got: list[tuple[int, Any]] = []

    async def administrator() -> None:
        got.append(await household.ask("/v1/reload", {"reason": "test"}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(administrator)
        _, question, what = await reign.hear("ask")
        reign.say([said[0], question + 1, False, "to another question"])
        reign.say([said[0], question, *said[2:]])
    assert what == "reload"
    assert got == [expected]


async def test_the_answer_to_a_reload_gets_out_before_the_steward_leaves(household: Household) -> None:
    reign = await household.begin()
    got: list[tuple[int, Any]] = []

    async def administrator() -> None:
        got.append(await household.ask("/v1/reload", {"reason": "test"}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(administrator)
        question = (await reign.hear("ask"))[1]
        reign.say(["answer", question, True, "changed: workers"])
        await household.hand_over(reign)
    assert got == [(200, {"done": {"reloaded": "changed: workers"}, "warning": ""})]


async def test_a_master_that_does_not_answer(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward_module, "RELOAD_SECONDS", 0.01)
    await household.begin()
    status, answer = await household.ask("/v1/reload", {"reason": "test"})
    assert (status, answer["problem"][:25]) == (409, "no answer from the master")


async def test_an_administrators_word_reaches_the_workers(household: Household) -> None:
    await household.begin()
    one = household.workers[0]
    await one.admit("s1", "ann", backend="d1")
    one.confirm("s1")
    await household.ask("/v1/drain", {"backend": "d1", "over_seconds": 0, "reason": "test"})
    await household.ask("/v1/down", {"backend": "d1", "reason": "test"})
    said = [message async for message in _views(one, 2)]
    assert [memory["backends"]["d1"]["said"][0] for memory in said] == ["drain", "down"]
    assert await one.admit("s2", "bob", backend="d1") == Outcome.UNAVAILABLE


async def _views(worker: FakeWorker, count: int) -> AsyncIterator[dict[str, Any]]:
    for _ in range(count):
        yield (await worker.hear("view"))[2]


async def test_postfix_is_answered(household: Household, tmp_path: Path) -> None:
    users = tmp_path / "users.yaml"
    users.write_text(f"ann: {{backend: d2, hash: '{hash_password(b'secret')}'}}\n")
    listener = {
        "address": f"{LOOPBACK}:10023",
        "protocol": "socketmap",
        "tls": "none",
        "trusted_networks": ["127.0.0.1/32"],
    }
    settings = settings_of(
        identity=[{"file": {"path": str(users)}}],
        listeners=[{"address": f"{LOOPBACK}:1143", "tls": "none", "trusted_networks": ["127.0.0.0/8"]}, listener],
    )
    with bind(Endpoint(LOOPBACK, 0)) as sock:
        household.asking.append((Door(settings.listeners[1], None), sock))
        await household.begin(settings)
        async with await trio.open_tcp_stream(*sock.getsockname()) as stream:
            await stream.send_all(b"9:route ann,")
            with trio.fail_after(PATIENCE_SECONDS):
                assert await stream.receive_some() == b"31:OK lmtp:inet:d2.test.example:24,"


# --- the end ---


async def test_without_a_master_it_stays_until_the_workers_have_gone(household: Household) -> None:
    reign = await household.begin()
    reign.close()
    await trio.testing.wait_all_tasks_blocked()
    assert (await household.look(household.admin, "/readyz"))[0] == 503
    assert await household.workers[0].admit("s1", "ann") in ("d1", "d2")
    for worker in household.workers:
        worker.die()
    await reign.until_ended()


async def test_stop_is_at_once(household: Household) -> None:
    reign = await household.begin()
    reign.say(["stop"])
    await reign.until_ended()
