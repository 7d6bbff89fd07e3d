"""Stories of tokens: what a client is told, and what counts as a try."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import pytest

from proxy.outcome import FAREWELLS, Outcome
from proxy.settings.secret import Secret
from tests.session.conftest import Stage
from tests.session.stage import Client, Scene, answering

# Tokens of an issuer that is never asked: none of them is a JWT of its.
ISSUER = {"oauth": {"issuer": "https://id.example.org", "audience": "imap", "scopes": ["imap"]}}
MASTER = {"method": "master", "name": "porter", "password": Secret("env", "MASTER", b"right")}
TOKENS: dict[str, Any] = {"identity": [ISSUER], "backends": {"login": MASTER}}
FAILED = b"NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"
XOAUTH2 = b"XOAUTH2 " + b64encode(b"user=ann\x01auth=Bearer opaque\x01\x01") + b"\r\n"
DISCOVERY = b"OAUTHBEARER " + b64encode(b"n,,\x01auth=\x01\x01") + b"\r\n"


async def call(scene: Scene) -> Client:
    client = await scene.call()
    assert b" AUTH=XOAUTH2 AUTH=OAUTHBEARER LOGINDISABLED]" in await client.line()
    return client


async def test_a_refused_token_is_told_in_two_steps(stage: Stage) -> None:
    scene = await stage(**TOKENS, limits={"failed_login_delay": 0.001})
    client = await call(scene)
    await client.send(b"a AUTHENTICATE " + XOAUTH2)
    assert b'"status":"401"' in b64decode((await client.line())[2:])
    await client.send(b"\r\n")
    assert await client.line() == b"a " + FAILED
    client.close()
    assert (await scene.closing())["outcome"] == "client_closed"


async def test_the_last_try_is_told_in_one_step(stage: Stage) -> None:
    """Behind a challenge the connection would end without the tagged response."""
    scene = await stage(**TOKENS, limits={"failed_login_delay": 0.001, "login_tries": 1})
    client = await call(scene)
    await client.send(b"a AUTHENTICATE " + XOAUTH2)
    assert await client.rest() == b"a " + FAILED + FAREWELLS[Outcome.TRY_LIMIT]


async def test_asking_what_a_token_needs_is_no_guess(stage: Stage) -> None:
    """RFC 7628 §4.3; the limit on guesses would hold the second client up."""
    limits = {"failed_login_delay": 0.001, "login_failures_per_address": {"count": 1, "per": 600.0}}
    scene = await stage(**TOKENS, limits=limits)
    for _ in range(3):
        client = await call(scene)
        await client.send(b"a AUTHENTICATE " + DISCOVERY)
        assert b'"scope":"imap"' in b64decode((await client.line())[2:])
        await client.send(b"AQ==\r\n")
        assert await client.line() == b"a " + FAILED
        client.close()
    await scene.until_closed(3)
    assert {line["limit"] for line in scene.logged("login.refused")} == {""}


async def test_where_nobody_knows_passwords_none_is_taken(stage: Stage) -> None:
    scene = await stage(**TOKENS)
    client = await call(scene)
    await client.send(b"a LOGIN ann {5}\r\n")
    assert await client.line() == b"a NO [CANNOT] Passwords are not accepted; use AUTHENTICATE.\r\n"
    client.close()
    await scene.closing()
    assert scene.logged("login.refused") == []


@pytest.mark.parametrize("code", [b"[AUTHENTICATIONFAILED] no", b"[AUTHORIZATIONFAILED] no", b"no"])
async def test_the_proxys_own_password_is_not_the_users_to_mend(stage: Stage, users: Any, code: bytes) -> None:
    identity = [{"file": {"path": str(users)}}]
    refusal = b"NO " + code
    scene = await stage(answering(refusal), identity=identity, backends={"login": MASTER})
    client = await scene.call_and_be_greeted()
    said = await client.log_in(b"a", b"ann")
    assert said == b"a NO [UNAVAILABLE] Account is temporarily unavailable.\r\n"
    client.close()
    await scene.closing()
    (line,) = scene.logged("login.refused")
    assert line["detail"].startswith("the proxy's own credentials: login refused: NO")
    assert scene.counted('porter_login_attempts_total{mechanism="LOGIN",outcome="unavailable"}') == 1
