"""Stories with a bug in them: it ends the session that met it, is told and counted once, and harms no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.outcome import FAREWELLS, Outcome
from proxy.relay.relay import Relay
from proxy.transport.stream import PlainStream
from tests.session.conftest import Stage
from tests.session.stage import WELCOME, Scene

LOGGED_OUT = b"* BYE Logging out\r\nz OK Logout completed.\r\n"
SERVER_BUG = FAREWELLS[Outcome.SERVER_BUG]


async def sound_session(scene: Scene) -> None:
    """Another session is none the worse."""
    client = await scene.call_and_be_greeted()
    assert await client.log_in(b"a", b"bob") == b"a" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    assert await client.rest() == LOGGED_OUT


async def test_a_bug_in_the_authenticator(stage: Stage, users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = await stage(identity=[{"file": {"path": str(users)}}])
    authenticate = scene.house.authenticator.authenticate

    async def broken(credentials: Any, origin: Any) -> Any:
        if credentials.authentication_identity == "ann":
            raise RuntimeError("a bug")
        return await authenticate(credentials, origin)

    monkeypatch.setattr(scene.house.authenticator, "authenticate", broken)
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann right\r\n")
    assert await client.rest() == SERVER_BUG
    line = await scene.closing()
    assert (line["outcome"], line["authentication_identity"], line["name"]) == ("server_bug", "ann", "")
    (failure,) = scene.logged("session.failed")
    assert (failure["session_id"], failure["log_level"]) == (line["session_id"], "error")
    assert scene.counted('porter_login_attempts_total{mechanism="LOGIN",outcome="server_bug"}') == 1
    assert scene.counted('porter_sessions_ended_total{outcome="server_bug"}') == 1
    await sound_session(scene)


@pytest.mark.parametrize("room", ["registrar.admit", "registrar.confirm", "backends.__getitem__"])
async def test_a_bug_in_another_room(stage: Stage, room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = await stage()
    name, method = room.split(".")
    kind = type(getattr(scene.house, name))
    sound = getattr(kind, method)

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(kind, method, broken)
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann right\r\n")
    assert await client.rest() == SERVER_BUG
    assert (await scene.closing())["outcome"] == "server_bug"
    assert len(scene.logged("session.failed")) == 1
    monkeypatch.setattr(kind, method, sound)
    await sound_session(scene)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_bug_in_the_start_of_the_relay(stage: Stage, begun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = await stage()
    start = Relay.start

    def broken(relay: Relay, early_client: bytes, early_backend: bytes) -> None:
        if begun:
            start(relay, early_client, early_backend)
        raise RuntimeError("a bug")

    monkeypatch.setattr(Relay, "start", broken)
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann right\r\n")
    assert (await client.rest()).startswith(b"a" + WELCOME)
    line = await scene.closing()
    assert (line["outcome"], line["name"], line["backend"]) == ("server_bug", "ann", "d1")
    assert len(scene.logged("session.failed")) == 1
    assert scene.counted('porter_login_attempts_total{mechanism="LOGIN",outcome="ok"}') == 1
    assert scene.counted('porter_sessions_ended_total{outcome="server_bug"}') == 1
    monkeypatch.setattr(Relay, "start", start)
    await sound_session(scene)


@pytest.mark.parametrize("method", ["receive", "send"])
async def test_a_bug_where_octets_travel(stage: Stage, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The goodbye meets the bug again, and that is no reason to end the service either."""
    scene = await stage()
    sound = getattr(PlainStream, method)

    async def broken(stream: PlainStream, *arguments: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(PlainStream, method, broken)
    client = await scene.call()
    assert (await client.rest()).startswith(b"* OK " if method == "receive" else b"")
    assert (await scene.closing())["outcome"] == "server_bug"
    assert scene.counted('porter_sessions_ended_total{outcome="server_bug"}') == 1
    monkeypatch.setattr(PlainStream, method, sound)
    await sound_session(scene)
