"""Stories of SCRAM: an exchange of several steps, in the midst of which all may happen that can happen."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from proxy.auth.file import FileSource
from proxy.model import Account
from proxy.outcome import FAREWELLS, REPLIES, Outcome, Refused
from tests.servers.scram_client import SCRAM, Scramp
from tests.session.conftest import Stage
from tests.session.stage import WELCOME, Client, Scene, until

FAILED = b" " + bytes(REPLIES[Outcome.AUTHENTICATION_FAILED]) + b"\r\n"
UNAVAILABLE = b" " + bytes(REPLIES[Outcome.UNAVAILABLE]) + b"\r\n"
AT_LIMIT = b" " + bytes(REPLIES[Outcome.LIMIT]) + b"\r\n"
CANCELLED = b" " + bytes(REPLIES[Outcome.CANCELLED]) + b"\r\n"
MALFORMED = b" BAD Malformed authentication response.\r\n"
LOGGED_OUT = b"* BYE Logging out\r\nz OK Logout completed.\r\n"
ATTEMPTS = "porter_login_attempts_total"


class Exchange:
    """AUTHENTICATE SCRAM-SHA-256 by one client, step by step: the server's first empty challenge counts as one."""

    def __init__(self, client: Client, name: str = "ann", password: str = "right", tag: bytes = b"a") -> None:
        self._client, self._tag = client, tag
        self._scram = Scramp(name, password)
        self._challenge = b""

    async def start(self) -> None:
        await self._client.send(b"%b AUTHENTICATE %b\r\n" % (self._tag, SCRAM.encode()))

    async def heard(self) -> bytes:
        """What came: a challenge, or the end of it."""
        line = await self._client.line()
        self._challenge = base64.b64decode(line.removeprefix(b"+ ")) if line.startswith(b"+ ") else b""
        return line

    async def respond(self) -> None:
        await self._client.send(base64.b64encode(self._scram.step(self._challenge)) + b"\r\n")

    async def go(self, steps: int) -> None:
        """Up to so many responses, and the challenge behind the last."""
        await self.start()
        for _ in range(steps):
            assert (await self.heard()).startswith(b"+ ")
            await self.respond()
        assert (await self.heard()).startswith(b"+ ")

    async def finish(self) -> bytes:
        """All of it; how it ends."""
        await self.start()
        while (line := await self.heard()).startswith(b"+ "):
            await self.respond()
        return line


def slow_to_look_up(monkeypatch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """A source that takes its time: it has been asked, and it may answer."""
    look_up = FileSource.look_up
    asked, answer = trio.Event(), trio.Event()

    async def slow(source: FileSource, name: str) -> Account | None:
        asked.set()
        await answer.wait()
        return await look_up(source, name)

    monkeypatch.setattr(FileSource, "look_up", slow)
    return asked, answer


async def test_a_login(stage: Stage, scram: dict[str, Any]) -> None:
    scene = await stage(**scram)
    client = await scene.call_and_be_greeted()
    exchange = Exchange(client, "Ann")
    await exchange.go(2)
    await client.send(b"\r\nb NOOP\r\nz LOGOUT\r\n")
    assert await client.rest() == b"a" + WELCOME + b"b OK NOOP completed.\r\n" + LOGGED_OUT
    (peer,) = scene.backend.peers
    assert peer.received == b'p1 LOGIN "ann*porter" "right"\r\nb NOOP\r\nz LOGOUT\r\n'
    line = await scene.closing()
    assert (line["mechanism"], line["authentication_identity"], line["name"]) == (SCRAM, "Ann", "ann")
    assert (line["outcome"], line["source"]) == ("logged_out", "file")
    assert scene.counted(f'{ATTEMPTS}{{mechanism="{SCRAM}",outcome="ok"}}') == 1
    assert scene.counted_in_all(ATTEMPTS) == 1


async def test_the_try_limit(stage: Stage, scram: dict[str, Any]) -> None:
    scene = await stage(**scram, limits={"login_tries": 3, "failed_login_delay": 0.001})
    told = []
    for name in ("ann", "nobody"):
        client = await scene.call_and_be_greeted()
        for tag in (b"a", b"b", b"c"):
            assert await Exchange(client, name, "wrong", tag).finish() == tag + FAILED
        told.append(await client.rest())
    assert told == [FAREWELLS[Outcome.TRY_LIMIT]] * 2
    assert scene.counted(f'{ATTEMPTS}{{mechanism="{SCRAM}",outcome="authentication_failed"}}') == 6
    assert scene.counted_in_all(ATTEMPTS) == 6


async def test_an_exchange_that_is_broken_off_is_a_try_like_others(stage: Stage, scram: dict[str, Any]) -> None:
    """From the server's first message on, which a client gets for a name alone; the closing line has none of it."""
    scene = await stage(**scram)
    client = await scene.call_and_be_greeted()
    for steps, broken_off_by, told in ((0, b"*", CANCELLED), (1, b"*", CANCELLED), (1, b"AAAA", MALFORMED)):
        await Exchange(client, "ann").go(steps)
        await client.send(broken_off_by + b"\r\n")
        assert await client.line() == b"a" + told
    assert await client.log_in(b"b", b"bob") == b"b" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    await client.rest()
    lines = scene.logged("login.refused")
    assert [(line["outcome"], line["mechanism"], line["authentication_identity"]) for line in lines] == [
        ("cancelled", SCRAM, "ann")
    ] * 2
    line = await scene.closing()
    assert (line["mechanism"], line["authentication_identity"], line["name"]) == ("LOGIN", "bob", "bob")
    assert scene.counted(f'{ATTEMPTS}{{mechanism="{SCRAM}",outcome="cancelled"}}') == 2
    assert scene.counted_in_all(ATTEMPTS) == 3


async def test_who_breaks_off_again_and_again_is_sent_away(stage: Stage, scram: dict[str, Any]) -> None:
    scene = await stage(**scram, limits={"login_tries": 3, "failed_login_delay": 0.001})
    client = await scene.call_and_be_greeted()
    for _ in range(3):
        await Exchange(client, "nobody").go(1)
        await client.send(b"*\r\n")
        assert await client.line() == b"a" + CANCELLED
    assert await client.rest() == FAREWELLS[Outcome.TRY_LIMIT]
    assert (await scene.closing())["outcome"] == "try_limit"


# --- the account can't be had ---


async def test_the_limit_on_failures_holds_before_the_exchange(stage: Stage, scram: dict[str, Any]) -> None:
    """Whoever is at the limit hears nothing of salts, whatever he would prove."""
    limits = {"failed_login_delay": 0.001, "login_failures_per_user": {"count": 2}}
    scene = await stage(**scram, limits=limits)
    client = await scene.call_and_be_greeted()
    for name in ("ann", "nobody"):
        for tag in (b"a", b"b"):
            assert await Exchange(client, name, "wrong", tag).finish() == tag + FAILED
        exchange = Exchange(client, name, "right", b"c")
        await exchange.start()
        assert await exchange.heard() == b"+ \r\n"
        await exchange.respond()
        assert await exchange.heard() == b"c" + AT_LIMIT
    assert await Exchange(client, "bob").finish() == b"a" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    await client.rest()
    lines = [line for line in scene.logged("login.refused") if line["outcome"] == "limit"]
    assert [(line["authentication_identity"], line["limit"]) for line in lines] == [
        ("ann", "login_failures_per_user"),
        ("nobody", "login_failures_per_user"),
    ]
    assert {line["mechanism"] for line in lines} == {SCRAM}
    assert scene.counted(f'{ATTEMPTS}{{mechanism="{SCRAM}",outcome="limit"}}') == 2
    assert scene.counted('porter_limits_reached_total{action="refuse",limit="login_failures_per_user"}') == 2


async def test_many_exchanges_at_once_are_no_way_around_the_limit(stage: Stage, scram: dict[str, Any]) -> None:
    """There are as many as the user may have sessions; the server's signature would tell that a proof was right."""
    most = 4
    limits = {
        "failed_login_delay": 0.001,
        "login_failures_per_user": {"count": 2},
        "connections_per_user": most,
    }
    scene = await stage(**scram, limits=limits)
    guesses = [f"wrong-{number}" for number in range(most)] + ["right"]
    exchanges = [Exchange(await scene.call_and_be_greeted(), "ann", password) for password in guesses]
    told = []
    for exchange in exchanges:
        await exchange.start()
        await exchange.heard()
        await exchange.respond()
        told.append(await exchange.heard())
    assert [line.startswith(b"+ ") for line in told] == [True] * most + [False]
    assert told[-1] == b"a" + AT_LIMIT
    for exchange in exchanges[:most]:
        await exchange.respond()
        assert await exchange.heard() == b"a" + FAILED
    exchange = Exchange(await scene.call_and_be_greeted(), "ann", "right")
    await exchange.start()
    await exchange.heard()
    await exchange.respond()
    assert await exchange.heard() == b"a" + AT_LIMIT, "failed proofs, now"
    for client in scene.clients:
        client.close()
    await scene.until_closed(len(scene.clients))


async def test_a_client_that_leaves_gives_its_place_back(stage: Stage, scram: dict[str, Any]) -> None:
    scene = await stage(**scram, limits={"connections_per_user": 1})
    for number in range(1, 4):
        client = await scene.call_and_be_greeted()
        await Exchange(client).go(number - 1)
        client.close()
        await scene.until_closed(number)
    client = await scene.call_and_be_greeted()
    assert await Exchange(client).finish() == b"a" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    await client.rest()


async def test_an_outage_is_told_before_the_exchange(
    stage: Stage, scram: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def out(source: FileSource, name: str) -> Account | None:
        raise Refused(Outcome.UNAVAILABLE, "the directory is down")

    look_up = FileSource.look_up
    scene = await stage(**scram, limits={"login_tries": 1, "failed_login_delay": 15.0})
    client = await scene.call_and_be_greeted()
    monkeypatch.setattr(FileSource, "look_up", out)
    for name, tag in (("ann", b"a"), ("nobody", b"b")):
        exchange = Exchange(client, name, "wrong", tag)
        await exchange.start()
        assert await exchange.heard() == b"+ \r\n"
        await exchange.respond()
        assert await exchange.heard() == tag + UNAVAILABLE, "no failed try: it costs no time, and another is allowed"
    monkeypatch.setattr(FileSource, "look_up", look_up)
    assert await Exchange(client, tag=b"c").finish() == b"c" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    await client.rest()
    lines = scene.logged("login.refused")
    assert [(line["outcome"], line["detail"]) for line in lines] == [("unavailable", "file: the directory is down")] * 2
    assert scene.counted(f'{ATTEMPTS}{{mechanism="{SCRAM}",outcome="unavailable"}}') == 2
    assert scene.counted_in_all(ATTEMPTS) == 3


async def test_a_bug_while_the_account_is_looked_up(
    stage: Stage, scram: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(source: FileSource, name: str) -> Account | None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(FileSource, "look_up", broken)
    scene = await stage(**scram)
    client = await scene.call_and_be_greeted()
    exchange = Exchange(client)
    await exchange.start()
    await exchange.heard()
    await exchange.respond()
    assert await client.rest() == FAREWELLS[Outcome.SERVER_BUG]
    assert (await scene.closing())["outcome"] == "server_bug"
    assert len(scene.logged("session.failed")) == 1
    assert scene.counted(f'{ATTEMPTS}{{mechanism="{SCRAM}",outcome="server_bug"}}') == 1


# --- the client is gone, or does nothing ---


async def vanish_by_closing(client: Client) -> None:
    client.close()


async def vanish_by_reset(client: Client) -> None:
    client.reset()


async def end_its_half(client: Client) -> None:
    await client.end()
    assert await client.rest() == b""


STEPS = [0, 1, 2]  # so many of its messages a client has sent
VANISH = [vanish_by_closing, vanish_by_reset, end_its_half]


@pytest.mark.parametrize("vanish", VANISH)
@pytest.mark.parametrize("steps", STEPS)
async def test_a_client_leaves_in_the_midst_of_an_exchange(
    stage: Stage, scram: dict[str, Any], steps: int, vanish: Callable[[Client], Awaitable[None]]
) -> None:
    scene = await stage(**scram)
    client = await scene.call_and_be_greeted()
    await Exchange(client).go(steps)
    await vanish(client)
    assert (await scene.closing())["outcome"] == "client_closed"
    assert_nothing_came_of_it(scene, begun=steps > 0)


@pytest.mark.parametrize("vanish", [vanish_by_closing, vanish_by_reset])
async def test_a_client_leaves_while_its_account_is_looked_up(
    stage: Stage, scram: dict[str, Any], vanish: Callable[[Client], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = slow_to_look_up(monkeypatch)
    scene = await stage(**scram)
    client = await scene.call_and_be_greeted()
    exchange = Exchange(client)
    await exchange.start()
    await exchange.heard()
    await exchange.respond()
    await asked.wait()
    await vanish(client)
    answer.set()
    assert (await scene.closing())["outcome"] == "client_closed"
    assert_nothing_came_of_it(scene, begun=True)


@pytest.mark.parametrize("steps", STEPS)
async def test_the_login_deadline_in_the_midst_of_an_exchange(stage: Stage, scram: dict[str, Any], steps: int) -> None:
    scene = await stage(**scram, timeouts={"login": 0.1}, limits={"failed_login_delay": 0.01})
    client = await scene.call_and_be_greeted()
    await Exchange(client).go(steps)
    assert await client.rest() == FAREWELLS[Outcome.LOGIN_TIMEOUT]
    assert (await scene.closing())["outcome"] == "login_timeout"
    assert_nothing_came_of_it(scene, begun=steps > 0)


async def test_the_login_deadline_while_the_account_is_looked_up(
    stage: Stage, scram: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_to_look_up(monkeypatch)
    scene = await stage(**scram, timeouts={"login": 0.1})
    client = await scene.call_and_be_greeted()
    exchange = Exchange(client)
    await exchange.start()
    await exchange.heard()
    await exchange.respond()
    assert await client.rest() == FAREWELLS[Outcome.LOGIN_TIMEOUT]
    line = await scene.closing()
    assert (line["outcome"], line["mechanism"], line["authentication_identity"]) == ("login_timeout", SCRAM, "ann")
    assert scene.counted(f'{ATTEMPTS}{{mechanism="{SCRAM}",outcome="cancelled"}}') == 1
    assert scene.counted_in_all(ATTEMPTS) == 1


# --- going down ---


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("how", ["drain", "cancel"])
async def test_going_down_in_the_midst_of_an_exchange(
    stage: Stage, scram: dict[str, Any], how: str, steps: int
) -> None:
    """It is the client's turn, and nobody knows when it will take it."""
    scene = await stage(**scram)
    async with trio.open_nursery() as visits:
        client = await scene.call_and_be_greeted(nursery=visits)
        await Exchange(client).go(steps)
        scene.listen_on(client)
        if how == "drain":
            for visit in list(scene.house.visits):
                visit.drain()
        else:
            visits.cancel_scope.cancel()
    await until(lambda: client.last_words == FAREWELLS[Outcome.DRAINED])
    assert (await scene.closing())["outcome"] == "drained"
    assert_nothing_came_of_it(scene, begun=steps > 0)


async def test_a_drain_while_the_account_is_looked_up(
    stage: Stage, scram: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is waited for, and then it is the client's turn."""
    asked, answer = slow_to_look_up(monkeypatch)
    scene = await stage(**scram)
    client = await scene.call_and_be_greeted()
    exchange = Exchange(client)
    await exchange.start()
    await exchange.heard()
    await exchange.respond()
    await asked.wait()
    (visit,) = scene.house.visits
    visit.drain()
    answer.set()
    assert (await exchange.heard()).startswith(b"+ ")
    visit.drain()
    assert await client.rest() == FAREWELLS[Outcome.DRAINED]
    assert (await scene.closing())["outcome"] == "drained"
    assert_nothing_came_of_it(scene, begun=True)


def assert_nothing_came_of_it(scene: Scene, *, begun: bool) -> None:
    """No login was refused, and nothing is wrong with us.

    Args:
        begun: Whether the client was told of an account, which counts as a try.
    """
    assert scene.counted(f'{ATTEMPTS}{{mechanism="{SCRAM}",outcome="cancelled"}}') == begun
    assert scene.counted_in_all(ATTEMPTS) == begun
    assert scene.logged("login.refused") == []
    assert scene.logged("session.failed") == []
    assert scene.backend.peers == []
