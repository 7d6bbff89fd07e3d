"""The way to a backend: names, addresses, connections."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from proxy.backends.connect import Address, connect
from proxy.model import Endpoint
from proxy.outcome import Outcome, Refused
from proxy.transport.stream import PlainStream
from tests.backends.conftest import LOOPBACK, Resolver, Served

NAME = Endpoint("d1.example.org", 143)
V4, V6 = ("192.0.2.7", 143), ("2001:db8::7", 143)


async def quiet(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def connected(address: Address, seconds: float = 5.0) -> PlainStream:
    with trio.fail_after(seconds):
        return await connect(address, trio.current_time() + seconds)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- addresses ---


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("2001:DB8::1", socket.AF_INET6)]
)
async def test_a_literal_address_is_asked_of_nobody(resolver: Resolver, host: str, family: int) -> None:
    address = Address(Endpoint(host, 143))
    assert await address.resolve() == [(family, (host, 143))]
    assert resolver.asked == 0


async def test_a_name_is_looked_up_and_remembered_for_a_while(
    resolver: Resolver, mock_clock: trio.testing.MockClock
) -> None:
    resolver.answer = [V6, V4]
    address = Address(NAME)
    both = [(socket.AF_INET6, V6), (socket.AF_INET, V4)]
    assert await address.resolve() == both
    resolver.answer = [V4]
    mock_clock.jump(5)
    assert await address.resolve() == both
    assert resolver.asked == 1
    mock_clock.jump(300)
    assert await address.resolve() == both[1:]
    assert resolver.asked == 2


async def test_addresses_that_somebody_else_knows(resolver: Resolver) -> None:
    resolver.answer = [V4]
    address = Address(NAME)
    address.tell(["192.0.2.9", "2001:db8::9"])
    assert await address.resolve() == [(socket.AF_INET, ("192.0.2.9", 143)), (socket.AF_INET6, ("2001:db8::9", 143))]
    address.tell([])
    with pytest.raises(Refused, match=r"DNS lists no address for d1\.example\.org") as caught:
        await address.resolve()
    assert (caught.value.outcome, caught.value.step) == (Outcome.UNAVAILABLE, "resolve")
    assert resolver.asked == 0
    address.tell(None)
    assert await address.resolve() == [(socket.AF_INET, V4)]


async def test_the_last_answer_outlives_an_outage_of_dns(
    resolver: Resolver, mock_clock: trio.testing.MockClock
) -> None:
    resolver.answer = [V4]
    address = Address(NAME)
    await address.resolve()
    for outage in (OSError("down"), socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")):
        resolver.answer = outage
        mock_clock.jump(3600)
        assert await address.resolve() == [(socket.AF_INET, V4)]
    resolver.answer = [V6]
    mock_clock.jump(3600)
    assert await address.resolve() == [(socket.AF_INET6, V6)]


async def test_an_outage_of_dns_is_not_asked_about_by_every_login(
    resolver: Resolver, mock_clock: trio.testing.MockClock
) -> None:
    resolver.answer = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    address = Address(NAME)
    for _ in range(10):
        with pytest.raises(Refused) as caught:
            await address.resolve()
        assert (caught.value.outcome, caught.value.step) == (Outcome.UNAVAILABLE, "resolve")
        assert caught.value.detail == "no address for d1.example.org: Temporary failure in name resolution"
    assert resolver.asked == 1
    resolver.answer = [V4]
    mock_clock.jump(10)
    assert await address.resolve() == [(socket.AF_INET, V4)]


async def test_a_silent_resolver_is_not_waited_for_past_an_older_answer(
    resolver: Resolver, autojump_clock: trio.testing.MockClock
) -> None:
    resolver.answer = [V4]
    address = Address(NAME)
    await address.resolve()
    resolver.answer = None
    await trio.sleep(3600)
    with trio.fail_after(3):  # less than a backend has for its connection
        assert await address.resolve() == [(socket.AF_INET, V4)]


async def test_a_resolver_that_was_always_silent_is_left_by_the_caller(
    resolver: Resolver, autojump_clock: trio.testing.MockClock
) -> None:
    resolver.answer = None
    address = Address(NAME)
    with trio.move_on_after(5) as scope:
        await address.resolve()
    assert scope.cancelled_caught
    resolver.answer = [V4]
    await trio.sleep(10)
    with trio.fail_after(1):
        assert await address.resolve() == [(socket.AF_INET, V4)]


async def test_all_who_wait_ask_once(resolver: Resolver) -> None:
    resolver.answer = [V4]
    address = Address(NAME)
    answers = []

    async def ask() -> None:
        answers.append(await address.resolve())

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert answers == [[(socket.AF_INET, V4)]] * 10
    assert resolver.asked == 1


# --- connections ---


async def test_a_connection_to_a_literal_address(serve: Served) -> None:
    server = await serve(quiet)
    stream = await connected(Address(Endpoint(LOOPBACK, server.port)))
    assert not stream.socket.getblocking()
    for level, option in ((socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)):
        assert stream.socket.getsockopt(level, option)
    assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) >= 10_000
    stream.close()
    await server.wait_until_gone()


async def test_a_connection_by_name(serve: Served, resolver: Resolver) -> None:
    server = await serve(quiet)
    resolver.answer = [(LOOPBACK, server.port)]
    stream = await connected(Address(NAME))
    assert stream.socket.getpeername() == (LOOPBACK, server.port)
    stream.close()


async def test_a_refused_connection_says_who_and_why(refusing: int) -> None:
    with pytest.raises(Refused) as caught:
        await connected(Address(Endpoint(LOOPBACK, refusing)))
    assert (caught.value.outcome, caught.value.step) == (Outcome.UNAVAILABLE, "connect")
    assert caught.value.detail == f"cannot connect to 127.0.0.1:{refusing}: Connection refused"


async def test_all_addresses_refuse(refusing: int, resolver: Resolver) -> None:
    resolver.answer = [(LOOPBACK, refusing), ("127.0.0.2", refusing)]
    with pytest.raises(Refused, match=r"cannot connect to d1\.example\.org:143: Connection refused"):
        await connected(Address(NAME))


async def test_a_refused_address_is_passed_over(refusing: int, resolver: Resolver, serve: Served) -> None:
    server = await serve(quiet)
    resolver.answer = [(LOOPBACK, refusing), ("127.0.0.2", refusing), (LOOPBACK, server.port)]
    stream = await connected(Address(NAME))
    assert stream.socket.getpeername() == (LOOPBACK, server.port)
    stream.close()


@pytest.mark.parametrize("first", [["mute"], ["mute", "refusing"], ["refusing", "mute"]])
async def test_a_silent_address_leaves_time_for_the_next(
    mute: int, refusing: int, resolver: Resolver, serve: Served, first: list[str]
) -> None:
    server = await serve(quiet)
    ports = {"mute": mute, "refusing": refusing}
    resolver.answer = [*((LOOPBACK, ports[name]) for name in first), (LOOPBACK, server.port)]
    stream = await connected(Address(NAME), 0.3)
    assert stream.socket.getpeername() == (LOOPBACK, server.port)
    stream.close()


async def test_a_cancelled_connection_leaves_no_socket(mute: int) -> None:
    before = open_descriptors()
    with trio.move_on_after(0.02) as scope:
        await connect(Address(Endpoint(LOOPBACK, mute)), trio.current_time() + 5)
    assert scope.cancelled_caught
    assert open_descriptors() == before


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """No descriptor that is not in use yet. It ends inside the test: pytest itself needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_descriptor_for_a_connection(refusing: int) -> None:
    """That is our own trouble."""
    address = Address(Endpoint(LOOPBACK, refusing))
    with pytest.raises(Refused, match="Too many open files") as caught, no_descriptors():
        await connected(address)
    assert (caught.value.outcome, caught.value.step) == (Outcome.UNAVAILABLE, "local")


class Short(socket.socket):
    """Connects to nobody, for want of something."""

    number = 0

    def connect_ex(self, address: object) -> int:
        return self.number


SHORTAGES = [
    (errno.EADDRNOTAVAIL, "local"),
    (errno.ENOBUFS, "local"),
    (errno.ENOMEM, "local"),
    (errno.ENFILE, "local"),
    (errno.ENETUNREACH, "connect"),
    (errno.ECONNREFUSED, "connect"),
]


@pytest.mark.parametrize(("number", "step"), SHORTAGES)
async def test_whose_trouble_it_is(monkeypatch: pytest.MonkeyPatch, number: int, step: str) -> None:
    monkeypatch.setattr(Short, "number", number)
    monkeypatch.setattr(socket, "socket", Short)
    with pytest.raises(Refused, match=os.strerror(number)) as caught:
        await connected(Address(Endpoint(LOOPBACK, 143)))
    assert caught.value.step == step


async def test_of_several_reasons_our_own_is_told(
    monkeypatch: pytest.MonkeyPatch, resolver: Resolver, refusing: int
) -> None:
    """An address that could not be tried may be the one that works."""

    class ShortForOne(socket.socket):
        def connect_ex(self, address: tuple[str, int]) -> int:  # type: ignore[override]
            return errno.EADDRNOTAVAIL if address[0] == "127.0.0.2" else super().connect_ex(address)

    monkeypatch.setattr(socket, "socket", ShortForOne)
    resolver.answer = [("127.0.0.2", refusing), (LOOPBACK, refusing)]
    with pytest.raises(Refused, match=os.strerror(errno.EADDRNOTAVAIL)) as caught:
        await connected(Address(NAME))
    assert caught.value.step == "local"


async def test_without_ipv6_its_addresses_are_no_shortage(
    monkeypatch: pytest.MonkeyPatch, resolver: Resolver, refusing: int
) -> None:
    """Where IPv6 is switched off, as in many containers, connect(2) has no address for it. The backend is down."""

    class Ipv4Only(socket.socket):
        def connect_ex(self, address: tuple[str, int]) -> int:  # type: ignore[override]
            return errno.EADDRNOTAVAIL if self.family == socket.AF_INET6 else super().connect_ex(address)

    monkeypatch.setattr(socket, "socket", Ipv4Only)
    resolver.answer = [(LOOPBACK, refusing), ("2001:db8::1", refusing)]
    with pytest.raises(Refused) as caught:
        await connected(Address(NAME))
    assert caught.value.step == "connect"
