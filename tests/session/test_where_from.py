"""Where a client came from: by a PROXY header, by ID, or as it is seen; and what the backend is told of it."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.session.stage import GREETING, LOGGED_IN, LOOPBACK, WELCOME, Client, Scene, Wire, dovecot, mailbox

Stage = Callable[..., Awaitable[Scene]]

HERE = ["127.0.0.0/8"]
HEADER = b"PROXY TCP4 203.0.113.7 192.0.2.1 40001 993\r\n"
ID = b'x ID ("x-originating-ip" "203.0.113.9" "x-originating-port" "40009" "x-proxy-ttl" "%d")\r\n'


def listener(**more: Any) -> list[dict[str, Any]]:
    return [{"address": f"{LOOPBACK}:1143", "tls": "none", "trusted_networks": HERE, **more}]


@pytest.fixture
def behind_a_balancer() -> list[dict[str, Any]]:
    return listener(proxy_protocol={"trusted_networks": HERE})


async def hang_up(client: Client) -> None:
    """The proxy ends the connection without a word; unread octets make a reset of it."""
    with contextlib.suppress(trio.BrokenResourceError):
        await client.rest()
    assert client.received == b""
    client.close()


async def test_the_header_says_who_it_is(stage: Stage, behind_a_balancer: list[dict[str, Any]]) -> None:
    scene = await stage(listeners=behind_a_balancer, limits={"connections_per_address": 1})
    client = await scene.call()
    await client.send(HEADER[:9])
    await client.send(HEADER[9:] + b"a LOGIN ann right\r\n")
    assert (await client.line()).startswith(b"* OK ")
    answer = await client.answer(b"a")
    assert answer == b"a" + WELCOME
    assert list(scene.house.admission._by_address.values()) == [1], "it counts by its own address, not the balancer's"
    await client.send(b"b LOGOUT\r\n")
    await client.rest()
    line = await scene.closing()
    assert line["client"] == "203.0.113.7:40001"
    assert line["via"].startswith(f"{LOOPBACK}:")


async def test_limits_by_address_count_whom_the_header_names(
    stage: Stage, behind_a_balancer: list[dict[str, Any]]
) -> None:
    scene = await stage(listeners=behind_a_balancer, limits={"connections_per_address": 1})
    first, second, other = [await scene.call() for _ in range(3)]
    await first.send(HEADER)
    assert (await first.line()).startswith(b"* OK ")
    await second.send(HEADER)
    assert (await second.rest()).startswith(b"* BYE [LIMIT] ")
    await other.send(HEADER.replace(b"113.7", b"113.8"))
    assert (await other.line()).startswith(b"* OK ")
    (refused,) = scene.logged("connection.refused")
    assert (refused["client"], refused["limit"], refused["value"]) == (
        "203.0.113.7:40001",
        "connections_per_address",
        1,
    )
    for client in (first, other):
        client.close()
    await scene.until_closed(3)


@pytest.mark.parametrize(
    "said",
    [
        b"a NOOP\r\n",
        b"PROXY TCP4 spam\r\n",
        b"PROXY " + b"x" * 200,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 5,
    ],
    ids=["none", "malformed", "too long", "a TLS handshake"],
)
async def test_without_a_header_nothing_is_said(
    stage: Stage, behind_a_balancer: list[dict[str, Any]], said: bytes
) -> None:
    scene = await stage(listeners=behind_a_balancer)
    client = await scene.call()
    await client.send(said)
    await hang_up(client)
    assert (await scene.closing())["outcome"] == "protocol_violation"
    (refused,) = scene.logged("proxy_header.refused")
    assert refused["peer"].startswith(LOOPBACK)
    assert scene.counted('porter_connections_refused_total{limit="proxy_header"}') == 1


async def test_a_header_that_does_not_come(
    stage: Stage, behind_a_balancer: list[dict[str, Any]], autojump_clock: trio.testing.MockClock
) -> None:
    scene = await stage(listeners=behind_a_balancer, timeouts={"handshake": 1.0})
    client = await scene.call()
    await hang_up(client)
    (refused,) = scene.logged("proxy_header.refused")
    assert refused["detail"] == "no PROXY header came in time"
    assert (await scene.closing())["session_seconds"] < 60


async def test_a_balancers_own_check_is_no_trouble(stage: Stage, behind_a_balancer: list[dict[str, Any]]) -> None:
    scene = await stage(listeners=behind_a_balancer)
    connecting = await scene.call()
    connecting.close()
    await scene.until_closed(1)
    unknown = await scene.call()
    await unknown.send(b"PROXY UNKNOWN\r\n")
    assert (await unknown.line()).startswith(b"* OK ")
    unknown.close()
    await scene.until_closed(2)
    assert not scene.logged("proxy_header.refused")
    last = scene.logged("session.closed")[-1]
    assert (last["client"].partition(":")[0], last["via"]) == (LOOPBACK, "")


async def test_elsewhere_a_header_is_a_bad_command(stage: Stage) -> None:
    scene = await stage(listeners=listener(proxy_protocol={"trusted_networks": ["10.0.0.0/8"]}))
    client = await scene.call_and_be_greeted()
    await client.send(HEADER)
    assert (await client.line()).split()[1] == b"BAD"
    assert await client.log_in(b"a", b"ann") == b"a" + WELCOME
    client.close()
    line = await scene.closing()
    assert (line["client"].partition(":")[0], line["via"]) == (LOOPBACK, "")


# --- ID ---


async def told(peer: Wire) -> None:
    """A backend that reads ID and lets everybody in."""
    await peer.send(GREETING)
    tag, command, *_ = (await peer.line()).split()
    if command == b"ID":
        await peer.send(b"* ID NIL\r\n" + tag + b" OK ID completed.\r\n")
        tag = (await peer.line()).split()[0]
    await peer.send(tag + LOGGED_IN)
    await mailbox(peer)


def fields_of(received: bytes) -> dict[str, str]:
    line = next(line for line in received.splitlines() if b" ID (" in line).decode()
    words = line.partition("(")[2].rstrip(")").replace('"', "").split()
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("believed", [True, False])
async def test_id_is_believed_of_whom_it_may_be(stage: Stage, believed: bool) -> None:
    networks = HERE if believed else ["10.0.0.0/8"]
    scene = await stage(
        told, listeners=listener(id_address={"trusted_networks": networks}), backends={"client_address": "id"}
    )
    client = await scene.call_and_be_greeted()
    await client.send(ID % 3)
    await client.answer(b"x")
    assert await client.log_in(b"a", b"ann") == b"a" + WELCOME
    client.close()
    line = await scene.closing()
    fields = fields_of(scene.backend.peers[0].received)
    assert (line["client"] == "203.0.113.9:40009") is believed
    assert (fields["x-originating-ip"], fields["x-originating-port"]) == tuple(line["client"].split(":"))
    assert fields["x-connected-ip"] == LOOPBACK
    assert fields["x-session-id"] == line["session_id"]
    assert fields["x-proxy-ttl"] == "2", "whoever says it: one less than what was told"
    assert "x-multiplex" not in fields


async def test_an_id_counts_as_long_as_it_stands(stage: Stage) -> None:
    scene = await stage(dovecot, listeners=listener(id_address={"trusted_networks": HERE}))
    client = await scene.call_and_be_greeted()
    await client.send(ID % 3)
    await client.answer(b"x")
    assert (await client.log_in(b"a", b"ann", b"wrong")).startswith(b"a NO ")
    await client.send(b'y ID ("name" "webmail")\r\n')
    await client.answer(b"y")
    assert await client.log_in(b"b", b"ann") == b"b" + WELCOME
    client.close()
    line = await scene.closing()
    assert scene.logged("login.refused")[0]["client"] == "203.0.113.9:40009"
    assert (line["client"].partition(":")[0], line["via"]) == (LOOPBACK, "")


async def test_a_second_id_takes_nothing_over(stage: Stage) -> None:
    scene = await stage(
        told, told, listeners=listener(id_address={"trusted_networks": HERE}), backends={"client_address": "id"}
    )
    client = await scene.call_and_be_greeted()
    await client.send(b'x ID ("x-originating-ip" "203.0.113.9" "x-connected-ip" "198.51.100.1" "x-proxy-ttl" "1")\r\n')
    await client.answer(b"x")
    assert (await client.log_in(b"a", b"ann")).startswith(b"a NO ")
    await client.send(b'y ID ("x-originating-ip" "203.0.113.10")\r\n')
    await client.answer(b"y")
    assert await client.log_in(b"b", b"ann") == b"b" + WELCOME
    client.close()
    await scene.closing()
    fields = fields_of(scene.backend.peers[0].received)
    assert (fields["x-originating-ip"], fields["x-connected-ip"]) == ("203.0.113.10", LOOPBACK)


async def test_a_balancer_that_names_nobody_cannot_speak_for_one(stage: Stage) -> None:
    both = listener(proxy_protocol={"trusted_networks": HERE}, id_address={"trusted_networks": HERE})
    scene = await stage(dovecot, listeners=both)
    client = await scene.call()
    await client.send(b"PROXY UNKNOWN\r\n")
    assert (await client.line()).startswith(b"* OK ")
    await client.send(ID % 3)
    await client.answer(b"x")
    assert await client.log_in(b"b", b"ann") == b"b" + WELCOME
    client.close()
    line = await scene.closing()
    assert (line["client"].partition(":")[0], line["via"]) == (LOOPBACK, "")


async def test_a_ring_of_proxies_comes_to_an_end(stage: Stage) -> None:
    scene = await stage(told, backends={"client_address": "id"})
    client = await scene.call_and_be_greeted()
    await client.send(ID % 1)
    await client.answer(b"x")
    assert (await client.log_in(b"a", b"ann")).startswith(b"a NO [UNAVAILABLE] ")
    assert not scene.backend.peers
    (refused,) = scene.logged("login.refused")
    assert refused["detail"] == "proxies in a ring: x-proxy-ttl has run out"
    client.close()
    await scene.until_closed(1)


async def test_attributes_are_forwarded_that_the_settings_name(stage: Stage) -> None:
    scene = await stage(told, backends={"client_address": "id", "forward_attributes": ["nobody-has-this"]})
    client = await scene.call_and_be_greeted()
    assert await client.log_in(b"a", b"ann") == b"a" + WELCOME
    client.close()
    await scene.until_closed(1)
    assert not [name for name in fields_of(scene.backend.peers[0].received) if name.startswith("x-forward")]
