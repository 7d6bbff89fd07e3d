"""Listening sockets, and an accept loop that nothing ends which a network or an empty table of descriptors may do."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, cast

import pytest
import structlog
import trio
import trio.testing

from proxy.model import Endpoint
from proxy.observe import metrics
from proxy.transport.listen import BindFailed, accept_forever, bind

LOOPBACK = "127.0.0.1"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with bind(Endpoint(LOOPBACK, 0)) as sock:
        yield sock


@pytest.fixture
def events() -> Iterator[Sequence[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


class Comers:
    """Takes what the loop accepts."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.addresses: list[Any] = []

    def __call__(self, sock: socket.socket, address: Any) -> None:
        self.sockets.append(sock)
        self.addresses.append(address)

    async def wait_for(self, count: int) -> None:
        with trio.fail_after(5):
            while len(self.sockets) < count:  # noqa: ASYNC110 - the callback must not know who waits
                await trio.sleep(0.001)


@pytest.fixture
def comers() -> Iterator[Comers]:
    come = Comers()
    yield come
    for sock in come.sockets:
        sock.close()


class Flawed:
    """A listener whose accept() fails in given ways before it works."""

    def __init__(self, sock: socket.socket, errors: Sequence[int]) -> None:
        self._sock = sock
        self.errors = list(errors)

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self._sock.accept()


def pauses() -> float:
    text, _ = metrics.exposition()
    lines = (line.split() for line in text.decode().splitlines() if line.startswith("porter_accept_pauses_total "))
    return float(next(lines)[1])


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname())


# errors, how many of them make the loop pause, how many lines tell of it
FLAWS = [
    ("a client that has gone already", [errno.ECONNABORTED], 0, 0),
    ("many of them", [errno.ECONNABORTED, errno.EPROTO, errno.ETIMEDOUT] * 40, 0, 0),
    ("no descriptors", [errno.EMFILE], 1, 1),
    ("no descriptors for long", [errno.EMFILE] * 7, 7, 1),
    ("no memory anywhere", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM], 3, 1),
    ("a number nobody expected", [errno.ENETDOWN, errno.EIO], 2, 1),
]


@pytest.mark.parametrize(("name", "errors", "paused", "told"), FLAWS)
async def test_accepting_goes_on(
    listener: socket.socket,
    comers: Comers,
    events: Sequence[MutableMapping[str, Any]],
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    name: str,
    errors: list[int],
    paused: int,
    told: int,
) -> None:
    flawed = Flawed(listener, errors)
    before, began = pauses(), trio.current_time()
    with connect(listener) as client:
        nursery.start_soon(accept_forever, cast(socket.socket, flawed), comers)
        await comers.wait_for(1)
        assert flawed.errors == []
        assert comers.addresses == [client.getsockname()]
    assert pauses() - before == paused
    assert trio.current_time() - began >= paused * 0.05  # it never spins
    assert [event["event"] for event in events] == ["listener.exhausted"] * told


async def test_each_spell_of_exhaustion_is_told_once(
    listener: socket.socket,
    comers: Comers,
    events: Sequence[MutableMapping[str, Any]],
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    flawed = Flawed(listener, [errno.EMFILE, errno.EMFILE])
    nursery.start_soon(accept_forever, cast(socket.socket, flawed), comers)
    with connect(listener):
        await comers.wait_for(1)
        flawed.errors += [errno.EMFILE, errno.EMFILE]
        with connect(listener):
            await comers.wait_for(2)
    assert [(event["event"], event["error"]) for event in events] == [
        ("listener.exhausted", "Too many open files"),
        ("listener.exhausted", "Too many open files"),
    ]


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """No descriptor that is not in use yet. It ends inside the test: pytest itself needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_real_want_of_descriptors_passes(
    listener: socket.socket, comers: Comers, events: Sequence[MutableMapping[str, Any]], nursery: trio.Nursery
) -> None:
    with connect(listener), connect(listener):
        with no_descriptors():
            nursery.start_soon(accept_forever, listener, comers)
            with trio.fail_after(5):
                while not events:  # noqa: ASYNC110 - a captured log has no event
                    await trio.sleep(0.001)
            assert comers.sockets == []
        await comers.wait_for(2)
    assert [event["error"] for event in events] == ["Too many open files"]


class Places:
    """Room for so many clients, each of whom somebody takes in."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.taken = 0
        self.waits = 0
        self._freed = trio.Event()

    def is_free(self) -> bool:
        return self.taken < self.clients

    async def wait(self) -> None:
        self.waits += 1
        await self._freed.wait()

    def leave(self) -> None:
        self.taken -= 1
        self._freed.set()
        self._freed = trio.Event()


async def test_without_room_clients_wait_until_somebody_leaves(
    listener: socket.socket,
    comers: Comers,
    events: Sequence[MutableMapping[str, Any]],
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nothing is polled: no time has to go by. All who wait, on two listeners, hear of the place."""
    places, before, began = Places(2), pauses(), trio.current_time()

    def accepted(sock: socket.socket, address: Any) -> None:
        places.taken += 1
        assert places.taken <= 2
        comers(sock, address)

    with contextlib.ExitStack() as clients, bind(Endpoint(LOOPBACK, 0)) as second:
        for target in (listener, listener, listener, second):
            clients.enter_context(connect(target))
        nursery.start_soon(accept_forever, listener, accepted, places)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(accept_forever, second, accepted, places)
        await trio.testing.wait_all_tasks_blocked()
        assert (len(comers.sockets), places.waits) == (2, 2)
        for come in (3, 4):
            places.leave()
            await trio.testing.wait_all_tasks_blocked()
            assert len(comers.sockets) == come
        waits = places.waits
        places.leave()
        await trio.testing.wait_all_tasks_blocked()
        assert places.waits == waits  # there is room, and nobody who wants it
    assert pauses() - before == places.waits
    assert trio.current_time() == began
    assert [(event["event"], event["clients"]) for event in events] == [("listener.full", 2)] * 2  # for each listener
    nursery.cancel_scope.cancel()


async def test_room_for_all_is_no_news(
    listener: socket.socket, comers: Comers, events: Sequence[MutableMapping[str, Any]], nursery: trio.Nursery
) -> None:
    places, before = Places(1), pauses()

    def accepted(sock: socket.socket, address: Any) -> None:
        places.taken += 1
        comers(sock, address)

    with connect(listener):
        nursery.start_soon(accept_forever, listener, accepted, places)
        await comers.wait_for(1)
        await trio.testing.wait_all_tasks_blocked()
    assert (places.waits, pauses() - before, list(events)) == (0, 0, [])


async def test_want_of_room_is_told_once_a_minute(
    listener: socket.socket,
    comers: Comers,
    events: Sequence[MutableMapping[str, Any]],
    nursery: trio.Nursery,
    mock_clock: trio.testing.MockClock,
) -> None:
    places = Places(1)

    def accepted(sock: socket.socket, address: Any) -> None:
        places.taken += 1
        comers(sock, address)

    with contextlib.ExitStack() as clients:
        for _ in range(10):
            clients.enter_context(connect(listener))
        nursery.start_soon(accept_forever, listener, accepted, places)
        for _ in range(9):
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(10.0)
            places.leave()
        await trio.testing.wait_all_tasks_blocked()
    assert len(comers.sockets) == 10
    assert len(events) == 2
    nursery.cancel_scope.cancel()


async def test_what_is_accepted_waits_for_nothing_and_notices_lost_peers(
    listener: socket.socket, comers: Comers, nursery: trio.Nursery
) -> None:
    nursery.start_soon(accept_forever, listener, comers)
    with connect(listener):
        await comers.wait_for(1)
    (sock,) = comers.sockets
    assert not sock.getblocking()
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert 120 <= sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 300
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) <= 1 << 20


async def test_a_crowd_leaves_others_their_turn(listener: socket.socket, comers: Comers, nursery: trio.Nursery) -> None:
    """The loop is cancelled in the middle of a crowd: not all of it was taken in one go."""
    crowd = [connect(listener) for _ in range(200)]
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(accept_forever, listener, comers)
            while not comers.sockets:
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert 0 < len(comers.sockets) < 200
    for sock in crowd:
        sock.close()


# --- bind ---


def test_an_address_that_is_taken(listener: socket.socket) -> None:
    host, port = listener.getsockname()
    with pytest.raises(BindFailed) as caught:
        bind(Endpoint(host, port))
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: Address already in use"


FOREIGN = [("192.0.2.1", "192.0.2.1:1143"), ("2001:db8::1", "[2001:db8::1]:1143")]


@pytest.mark.parametrize(("host", "shown"), FOREIGN)
def test_an_address_of_another_machine(host: str, shown: str) -> None:
    with pytest.raises(BindFailed) as caught:
        bind(Endpoint(host, 1143))
    text = str(caught.value)
    assert text.startswith(f"cannot listen on {shown}: ")
    assert "Cannot assign" in text or "not supported" in text  # a machine without IPv6


def test_a_family_that_this_machine_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_of_it(*arguments: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr("proxy.transport.listen.socket.socket", none_of_it)
    with pytest.raises(BindFailed, match=r"cannot listen on \[::\]:993: Address family not supported"):
        bind(Endpoint("::", 993))


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
@pytest.mark.parametrize(("host", "takes_ipv4"), [("::", True), ("::1", False)])
def test_ipv4_comes_in_by_the_address_for_all(host: str, takes_ipv4: bool) -> None:
    with bind(Endpoint(host, 0)) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("::1", port)).close()
        if takes_ipv4:
            socket.create_connection((LOOPBACK, port)).close()
        else:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((LOOPBACK, port))
