"""A login, the backend it is sent to, and what becomes of both where things change meanwhile."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from proxy.app.desk import Desk
from proxy.app.links import Links
from proxy.app.overseer import Overseer
from proxy.backends.discovered import Found
from proxy.model import Identity
from proxy.outcome import Outcome
from proxy.settings.addresses import parse_backend_url
from proxy.settings.models import Server
from tests.session.stage import GREETING, LOGGED_IN, WELCOME, Scene, Wire, dovecot, figures, mailbox

Stage = Callable[..., Awaitable[Scene]]

UNAVAILABLE = b"a NO [UNAVAILABLE] Account is temporarily unavailable.\r\n"


def held(release: trio.Event) -> Callable[[Wire], Awaitable[None]]:
    """A backend that takes its time over the login."""

    async def play(peer: Wire) -> None:
        await peer.send(GREETING)
        tag = (await peer.line()).split()[0]
        await release.wait()
        await peer.send(tag + LOGGED_IN)
        await mailbox(peer)

    return play


async def silent(peer: Wire) -> None:
    """A backend that cuts off who comes with a wrong password."""
    await peer.send(GREETING)
    if (await peer.line()).split()[-1] == b'"right"':
        raise AssertionError("nobody here has it")


def overseer_of(scene: Scene) -> Overseer:
    return Overseer(scene.house.settings, scene.registry, scene.house.backends)


def desk_of(scene: Scene) -> Desk:
    async def reload() -> str:
        raise AssertionError("nobody asks for it")

    house = scene.house
    links = Links(house.settings, house.throttle)
    links.registry = scene.registry
    hub = links.onlookers.hub
    return Desk(
        house.settings, links, house.authenticator, hub, status=dict, reload=reload, set_log_level=lambda level: level
    )


def is_up(scene: Scene) -> bool:
    (seen,) = scene.cluster.snapshot(time.monotonic())
    return seen.up


async def test_strangers_cannot_shut_a_backend(stage: Stage) -> None:
    """Whoever knows no password may be cut off or kept waiting; that says nothing about the backend."""
    scene = await stage(silent, silent, silent, silent, dovecot)
    for number in range(4):
        client = await scene.call_and_be_greeted()
        assert await client.log_in(b"a", b"stranger%d" % number, b"wrong") == UNAVAILABLE
        client.close()
    assert is_up(scene)
    owner = await scene.call_and_be_greeted()
    assert await owner.log_in(b"a", b"ann") == b"a" + WELCOME
    owner.close()
    await scene.until_closed(5)


async def test_a_backend_that_cannot_be_reached_is_down(stage: Stage) -> None:
    scene = await stage(listening=False)
    for number in range(3):
        client = await scene.call_and_be_greeted()
        assert await client.log_in(b"a", b"u%d" % number) == UNAVAILABLE
        client.close()
    assert not is_up(scene)
    asked = scene.counted_in_all("porter_backend_failures_total")
    client = await scene.call_and_be_greeted()
    assert await client.log_in(b"a", b"ann") == UNAVAILABLE
    client.close()
    assert scene.counted_in_all("porter_backend_failures_total") == asked, "refused at once, without asking"
    last = scene.logged("login.refused")[-1]
    assert last["backend"] == "d1"
    assert last["detail"].startswith("d1: down: connect: ")
    await scene.until_closed(4)


async def test_who_has_to_leave_during_the_login_may_come_back_by_the_same_connection(
    stage: Stage, nursery: trio.Nursery
) -> None:
    release = trio.Event()
    scene = await stage(held(release), dovecot, routing={"move_delay": 0.01})
    nursery.start_soon(scene.ledger.run)
    nursery.start_soon(scene.house.closer.run)
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann right\r\n")
    await scene.until_asked(1)
    scene.ledger.evict("d1", Outcome.DRAINED, spread=0.0, patience=0.0)
    release.set()
    assert await client.answer(b"a") == UNAVAILABLE
    (refused,) = scene.logged("login.refused")
    assert refused["detail"] == "has to live elsewhere since the login began"
    assert await client.log_in(b"b", b"ann") == b"b" + WELCOME
    client.close()
    await scene.until_closed(1)


async def test_going_down_does_not_wait_for_a_move(stage: Stage, nursery: trio.Nursery) -> None:
    """A login waits for the end of a move; when the proxy stops it is told so."""
    scene = await stage(dovecot, routing={"move_delay": 60.0})
    nursery.start_soon(scene.ledger.run)
    nursery.start_soon(scene.house.closer.run)
    first = await scene.call_and_be_greeted()
    assert await first.log_in(b"a", b"ann") == b"a" + WELCOME
    scene.ledger.move("ann")
    assert (await first.rest()).startswith(b"* BYE Your mailbox is being moved")
    async with trio.open_nursery() as logins:
        second = await scene.call_and_be_greeted(nursery=logins)
        await second.send(b"a LOGIN ann right\r\n")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert scene.counted("porter_moves_waiting_logins") == 1
        logins.cancel_scope.cancel()
    assert (await second.rest()).startswith(b"* BYE ")
    assert scene.counted("porter_moves_waiting_logins") == 0
    assert len(scene.ledger) == 0
    await scene.until_closed(2)


@pytest.mark.parametrize("addresses", [("203.0.113.66",), ()])
async def test_dns_does_not_move_a_server_of_the_settings(stage: Stage, addresses: tuple[str, ...]) -> None:
    scene = await stage(dovecot)
    overseer = overseer_of(scene)
    foreign = Server(name="d1", url=parse_backend_url("imap://d1.test.example"))
    other = Server(name="d2", url=parse_backend_url("imap://d2.test.example"))
    overseer._found([Found(foreign, addresses), Found(other, ("192.0.2.2",))])
    assert [server.name for server in scene.cluster.servers()] == ["d1", "d2"]
    assert overseer.lmtp("d1").host == "127.0.0.1"
    assert overseer.lmtp("d2").host == "192.0.2.2"
    scene.cluster.set_state("d2", "drain", time.monotonic())
    client = await scene.call_and_be_greeted()
    assert await client.log_in(b"a", b"ann") == b"a" + WELCOME
    client.close()
    await scene.until_closed(1)


async def test_one_that_dns_names_may_be_the_only_one_at_once(stage: Stage) -> None:
    """It takes homes in the very moment that it is named, where nobody else does."""
    scene = await stage(dovecot, backends={"failover": 30.0})
    overseer = overseer_of(scene)
    overseer._found([])
    scene.cluster.set_state("d1", "drain", time.monotonic())
    url = parse_backend_url("imap://d2.test.example")
    overseer._found([Found(Server(name="d2", url=url), ("192.0.2.2",))])
    assert [view.name for view in desk_of(scene).backends()] == ["d1", "d2"]
    assert scene.cluster.place(Identity("ann", "backend")).home == "d2"
    overseer._found([])
    assert [view.name for view in desk_of(scene).backends()] == ["d1"]
    assert "d2" not in {backend.name for backend in scene.house.backends}


async def test_down_said_twice_is_down(stage: Stage, nursery: trio.Nursery) -> None:
    scene = await stage(dovecot, backends={"disconnect_spread": 0.3}, routing={"move_delay": 0.01})
    overseer_of(scene)
    nursery.start_soon(scene.ledger.run)
    nursery.start_soon(scene.house.closer.run)
    clients = [await scene.call_and_be_greeted() for _ in range(5)]
    for number, client in enumerate(clients):
        assert await client.log_in(b"a", b"u%d" % number) == b"a" + WELCOME
    desk = desk_of(scene)
    desk.set_state("d1", "down")
    desk.set_state("d1", "down")
    for client in clients:
        assert (await client.rest()).startswith(b"* BYE ")
    await scene.until_closed(5)


async def test_what_is_counted_of_a_backend_ends_with_its_last_session(stage: Stage) -> None:
    scene = await stage(dovecot)
    metrics = scene.house.metrics
    series = 'porter_backend_sessions{backend="gone"}'
    metrics.know_backend("gone")
    for _ in range(3):
        metrics.logged_in("gone")
    metrics.forget_backend("gone")
    metrics.logged_in("gone")  # a login that was under way
    assert figures()[series] == 4
    for _ in range(4):
        metrics.left_backend("gone")
    assert series not in figures()
    metrics.backend_failed("gone", "connect")
    assert not [name for name in figures() if 'backend="gone"' in name and name.startswith("porter_backend_failures")]
