"""Stories that end in another way than the client meant: deadlines, vanished clients, cancellation, broken rules."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from proxy.outcome import FAREWELLS, REPLIES, Outcome
from tests.session.conftest import Stage
from tests.session.stage import GREETING, LOGGED_IN, WELCOME, Client, Wire, dovecot, mailbox, until

LOGGED_OUT = b"* BYE Logging out\r\nz OK Logout completed.\r\n"


async def silent(peer: Wire) -> None:
    """Greet, hear the login, say nothing."""
    await peer.send(GREETING)
    await peer.line()
    await peer.line()


class Hesitant:
    """Logs everybody in, but only when told to."""

    def __init__(self) -> None:
        self.now = trio.Event()

    async def __call__(self, peer: Wire) -> None:
        await peer.send(GREETING)
        tag = (await peer.line()).split()[0]
        await self.now.wait()
        await peer.send(tag + LOGGED_IN)
        await mailbox(peer)


def client_hello(trust: ssl.SSLContext) -> bytes:
    """How a client begins a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


async def ask_for_tls(client: Client) -> None:
    assert b" STARTTLS " in await client.line()
    await client.send(b"a STARTTLS\r\n")
    assert (await client.line()).startswith(b"a OK ")


# --- deadlines ---


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
async def test_half_a_handshake(stage: Stage, trust: ssl.SSLContext, tls: str) -> None:
    scene = await stage(tls=tls, timeouts={"handshake": 0.05})
    client = await scene.call()
    if tls == "starttls":
        await ask_for_tls(client)
    hello = client_hello(trust)
    await client.send(hello[: len(hello) // 2])
    assert await client.rest() == b""
    line = await scene.closing()
    assert (line["outcome"], line["secure"]) == ("tls_failed", False)
    assert scene.counted('porter_tls_handshake_failures_total{reason="timeout"}') == 1
    (failure,) = scene.logged("tls.failed")
    assert failure["session_id"] == line["session_id"]


async def test_no_handshake_after_starttls_in_spite_of_the_login_deadline(stage: Stage) -> None:
    """The deadline of the login comes first; nothing in clear is put where a handshake was agreed."""
    scene = await stage(tls="starttls", timeouts={"login": 0.1, "handshake": 15.0})
    client = await scene.call()
    await ask_for_tls(client)
    assert await client.rest() == b""
    assert (await scene.closing())["outcome"] == "tls_failed"


@pytest.mark.parametrize("part", [b"", b"a LOGIN ann", b"a LOGIN ann {5+}\r\nri", b"a AUTHENTICATE PLAIN\r\n"])
async def test_half_a_command(stage: Stage, part: bytes) -> None:
    scene = await stage(timeouts={"login": 0.05})
    client = await scene.call_and_be_greeted()
    await client.send(part)
    assert (await client.rest()).removeprefix(b"+ \r\n") == FAREWELLS[Outcome.LOGIN_TIMEOUT]
    line = await scene.closing()
    assert (line["outcome"], line["mechanism"]) == ("login_timeout", "")


async def test_commands_do_not_extend_the_time_for_a_login(stage: Stage) -> None:
    scene = await stage(timeouts={"login": 0.1})
    client = await scene.call_and_be_greeted()
    said = b""
    with contextlib.suppress(EOFError), trio.fail_after(5):
        while not said.startswith(b"* BYE"):
            await client.send(b"a NOOP\r\n")
            said = await client.line()
            await trio.sleep(0.001)  # fewer than the commands that end the connection by themselves
    assert said == FAREWELLS[Outcome.LOGIN_TIMEOUT]
    client.close()
    assert (await scene.closing())["outcome"] == "login_timeout"


@pytest.mark.parametrize("identity", ["backend", "file"])
async def test_the_login_deadline_while_the_backend_is_silent(stage: Stage, users: Path, identity: str) -> None:
    source: dict[str, Any] = {"backend": {}} if identity == "backend" else {"file": {"path": str(users)}}
    scene = await stage(silent, identity=[source], timeouts={"login": 0.1})
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann right\r\n")
    assert await client.rest() == FAREWELLS[Outcome.LOGIN_TIMEOUT]
    line = await scene.closing()
    assert (line["outcome"], line["name"], line["backend"]) == ("login_timeout", "ann", "d1")
    assert scene.counted('porter_login_attempts_total{mechanism="LOGIN",outcome="cancelled"}') == 1
    assert len(scene.backend.peers) == 1


async def test_the_login_deadline_while_a_refusal_waits(stage: Stage) -> None:
    scene = await stage(timeouts={"login": 0.1}, limits={"failed_login_delay": 15.0})
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann wrong\r\n")
    assert await client.rest() == FAREWELLS[Outcome.LOGIN_TIMEOUT]
    assert len(scene.logged("login.refused")) == 1
    assert scene.counted('porter_login_attempts_total{mechanism="LOGIN",outcome="authentication_failed"}') == 1
    assert scene.counted('porter_login_attempts_total{mechanism="LOGIN",outcome="cancelled"}') == 0


async def test_a_backend_that_is_silent_too_long(stage: Stage) -> None:
    scene = await stage(silent, dovecot, timeouts={"backend_login": 0.05})
    client = await scene.call_and_be_greeted()
    assert await client.log_in(b"a", b"ann") == b"a " + bytes(REPLIES[Outcome.UNAVAILABLE]) + b"\r\n"
    assert await client.log_in(b"b", b"ann") == b"b" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    assert await client.rest() == LOGGED_OUT
    (refusal,) = scene.logged("login.refused")
    assert (refusal["outcome"], refusal["step"]) == ("unavailable", "login")


# --- the client is gone, or takes nothing ---


async def vanish_by_closing(client: Client) -> None:
    client.close()


async def vanish_by_reset(client: Client) -> None:
    client.reset()


@pytest.mark.parametrize("vanish", [vanish_by_closing, vanish_by_reset])
async def test_a_client_vanishes_while_the_backend_logs_in(
    stage: Stage, vanish: Callable[[Client], Awaitable[None]]
) -> None:
    hesitant = Hesitant()
    scene = await stage(hesitant)
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann right\r\n")
    await scene.until_asked()
    await vanish(client)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert scene.house.admission.open == 1
    hesitant.now.set()
    line = await scene.closing()
    assert (line["outcome"], line["name"]) == ("client_closed", "ann")


async def test_a_client_that_ends_its_half_has_its_early_commands_answered(stage: Stage) -> None:
    hesitant = Hesitant()
    scene = await stage(hesitant)
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann right\r\nb NOOP\r\n")
    await client.end()
    await scene.until_asked()
    hesitant.now.set()
    assert await client.rest() == b"a" + WELCOME + b"b OK NOOP completed.\r\n"
    assert (await scene.closing())["outcome"] == "client_closed"


def clog(client: Client) -> int:
    """Fill what the kernel takes for a client that does not read, from the proxy's end."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += client.proxy_end.send(b"." * 65536)
    return sent


async def test_an_ok_that_cannot_be_delivered_leaves_no_orphan(stage: Stage) -> None:
    hesitant = Hesitant()
    scene = await stage(hesitant, timeouts={"login": 0.15})
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann right\r\n")
    await scene.until_asked()
    clogged = clog(client)
    hesitant.now.set()
    await scene.until_closed(1)
    await until(lambda: scene.backend.open == 0)
    # Behind a part of the OK nothing may be said, so the BYE is missing.
    said = await client.rest()
    assert said[:clogged] == b"." * clogged
    assert (b"a" + WELCOME).startswith(said[clogged:])
    line = await scene.closing()
    assert (line["outcome"], line["name"]) == ("login_timeout", "ann")


async def test_cancelled_while_the_ok_cannot_be_delivered(stage: Stage) -> None:
    hesitant = Hesitant()
    scene = await stage(hesitant)
    async with trio.open_nursery() as visits:
        client = await scene.call_and_be_greeted(nursery=visits)
        await client.send(b"a LOGIN ann right\r\n")
        await scene.until_asked()
        clogged = clog(client)
        hesitant.now.set()
        await trio.testing.wait_all_tasks_blocked(0.02)
        visits.cancel_scope.cancel()
    await until(lambda: scene.backend.open == 0)
    assert (b"a" + WELCOME).startswith((await client.rest())[clogged:])
    assert (await scene.closing())["outcome"] == "drained"


async def test_a_client_that_resets_before_it_logs_in(stage: Stage) -> None:
    scene = await stage()
    client = await scene.call_and_be_greeted()
    client.reset()
    assert (await scene.closing())["outcome"] == "client_closed"


# --- going down ---


@pytest.mark.parametrize("part", [b"", b"a NOOP\r\nb LOG"])
async def test_cancelled_during_the_dialogue(stage: Stage, part: bytes) -> None:
    scene = await stage()
    async with trio.open_nursery() as visits:
        client = await scene.call_and_be_greeted(nursery=visits)
        await client.send(part)
        if part:
            await client.answer(b"a")
        await trio.testing.wait_all_tasks_blocked(0.01)
        scene.listen_on(client)
        visits.cancel_scope.cancel()
    await until(lambda: client.last_words == FAREWELLS[Outcome.DRAINED])
    line = await scene.closing()
    assert (line["outcome"], line["mechanism"]) == ("drained", "")


async def test_cancelled_while_the_backend_is_silent(stage: Stage) -> None:
    scene = await stage(silent)
    async with trio.open_nursery() as visits:
        client = await scene.call_and_be_greeted(nursery=visits)
        await client.send(b"a LOGIN ann right\r\n")
        await scene.until_asked()
        scene.listen_on(client)
        visits.cancel_scope.cancel()
    await until(lambda: client.last_words == FAREWELLS[Outcome.DRAINED])
    line = await scene.closing()
    assert (line["outcome"], line["name"]) == ("drained", "ann")
    assert scene.counted('porter_login_attempts_total{mechanism="LOGIN",outcome="cancelled"}') == 1


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
@pytest.mark.parametrize("begun", [False, True])
async def test_cancelled_during_a_handshake(stage: Stage, trust: ssl.SSLContext, tls: str, begun: bool) -> None:
    """Where TLS was agreed not an octet in clear may come, and no BYE is one that TLS could carry yet."""
    scene = await stage(tls=tls)
    async with trio.open_nursery() as visits:
        client = await scene.call(nursery=visits)
        if tls == "starttls":
            await ask_for_tls(client)
        if begun:
            await client.send(client_hello(trust)[:-1])
        await trio.testing.wait_all_tasks_blocked(0.01)
        scene.listen_on(client)
        visits.cancel_scope.cancel()
    await until(lambda: client.last_words == b"")
    assert (await scene.closing())["outcome"] == "drained"


async def test_cancelled_inside_tls(stage: Stage, trust: ssl.SSLContext) -> None:
    scene = await stage(tls="implicit")
    async with trio.open_nursery() as visits:
        client = await scene.call(nursery=visits)
        await client.start_tls(trust)
        await client.line()
        scene.listen_on(client)
        visits.cancel_scope.cancel()
    await until(lambda: client.last_words == FAREWELLS[Outcome.DRAINED])
    assert (await scene.closing())["outcome"] == "drained"


async def test_a_drain_ends_who_is_not_logging_in(stage: Stage) -> None:
    hesitant = Hesitant()
    scene = await stage(hesitant)
    idle, busy = await scene.call_and_be_greeted(), await scene.call_and_be_greeted()
    await busy.send(b"a LOGIN ann right\r\n")
    await scene.until_asked()
    for visit in list(scene.house.visits):
        visit.drain()
    assert await idle.rest() == FAREWELLS[Outcome.DRAINED]
    assert (await scene.closing())["outcome"] == "drained"
    hesitant.now.set()
    assert await busy.answer(b"a") == b"a" + WELCOME
    await busy.send(b"z LOGOUT\r\n")
    assert await busy.rest() == LOGGED_OUT


# --- what may not be ---


@pytest.mark.parametrize("behind", [b"b NOOP\r\n", b"b LOGIN ann right\r\n", b"x", b"\x16\x03"])
async def test_octets_behind_starttls_end_the_connection(stage: Stage, behind: bytes) -> None:
    scene = await stage(tls="starttls")
    client = await scene.call()
    assert b" STARTTLS " in await client.line()
    await client.send(b"a STARTTLS\r\n" + behind)
    said = await client.rest()
    assert said in (b"", b"a OK Begin TLS negotiation now.\r\n")
    line = await scene.closing()
    assert (line["outcome"], line["mechanism"], line["secure"]) == ("protocol_violation", "", False)
    assert scene.backend.peers == []


async def test_no_login_in_clear(stage: Stage) -> None:
    scene = await stage(tls="starttls")
    client = await scene.call()
    await client.line()
    await client.send(b"a LOGIN ann right\r\nb AUTHENTICATE PLAIN AGFubgByaWdodA==\r\nz LOGOUT\r\n")
    refusal = b" NO [PRIVACYREQUIRED] TLS is required to authenticate.\r\n"
    assert await client.rest() == (
        b"a" + refusal + b"b" + refusal + b"* BYE Logging out.\r\nz OK LOGOUT completed.\r\n"
    )
    assert scene.backend.peers == []
    assert scene.logged("login.refused") == []


async def test_a_client_that_speaks_no_imap(stage: Stage) -> None:
    scene = await stage()
    client = await scene.call_and_be_greeted()
    await client.send(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert await client.rest() == b""
    assert (await scene.closing())["outcome"] == "protocol_violation"


async def test_a_client_that_speaks_no_tls(stage: Stage) -> None:
    scene = await stage(tls="implicit")
    client = await scene.call()
    await client.send(b"a LOGIN ann right\r\n")
    with contextlib.suppress(trio.BrokenResourceError):  # what was not read of it makes the kernel reset
        await client.rest()
    assert b"BYE" not in client.received
    client.close()
    assert (await scene.closing())["outcome"] == "tls_failed"
    assert scene.counted('porter_tls_handshake_failures_total{reason="protocol"}') == 1
