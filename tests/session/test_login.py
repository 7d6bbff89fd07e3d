"""Stories of logins: what the client reads, what the backend reads, and the one line that tells of both."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import proxy.session.tries
from proxy.outcome import FAREWELLS, REPLIES, Outcome
from tests.session.conftest import Stage
from tests.session.stage import GREETING, LOGGED_IN, WELCOME, Part, Wire, answering, dovecot, greeting_with, mailbox

FAILED = b" " + bytes(REPLIES[Outcome.AUTHENTICATION_FAILED]) + b"\r\n"
UNAVAILABLE = b" " + bytes(REPLIES[Outcome.UNAVAILABLE]) + b"\r\n"
AT_LIMIT = b" " + bytes(REPLIES[Outcome.LIMIT]) + b"\r\n"
LOGGED_OUT = b"* BYE Logging out\r\nz OK Logout completed.\r\n"


def source(identity: str, users: Path) -> dict[str, Any]:
    """Who says yes to a login: the backend, after which a place is taken, or a file, before."""
    return {"backend": {}} if identity == "backend" else {"file": {"path": str(users)}}


async def test_login_noop_logout(stage: Stage) -> None:
    scene = await stage()
    client = await scene.call_and_be_greeted()
    assert await client.log_in(b"a", b"Ann") == b"a" + WELCOME
    await client.send(b"b NOOP\r\n")
    assert await client.line() == b"b OK NOOP completed.\r\n"
    await client.send(b"z LOGOUT\r\n")
    assert await client.rest() == LOGGED_OUT
    (peer,) = scene.backend.peers
    assert peer.received == b'p1 LOGIN "ann" "right"\r\nb NOOP\r\nz LOGOUT\r\n'
    line = await scene.closing()
    assert (line["outcome"], line["mechanism"], line["authentication_identity"]) == ("logged_out", "LOGIN", "Ann")
    assert (line["name"], line["backend"], line["secure"]) == ("ann", "d1", False)
    assert line["bytes_from_client"] == len(b"b NOOP\r\nz LOGOUT\r\n")
    assert line["bytes_from_backend"] == len(b"b OK NOOP completed.\r\n" + LOGGED_OUT)
    assert 0 < line["login_seconds"] <= line["session_seconds"]
    assert scene.counted('porter_login_attempts_total{mechanism="LOGIN",outcome="ok"}') == 1
    assert scene.counted('porter_sessions_ended_total{outcome="logged_out"}') == 1
    assert "right" not in repr(scene.logged("session.closed"))


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
async def test_a_login_inside_tls(stage: Stage, trust: ssl.SSLContext, tls: str) -> None:
    scene = await stage(tls=tls)
    client = await scene.call()
    if tls == "starttls":
        assert b" STARTTLS LOGINDISABLED]" in await client.line()
        assert await client.log_in(b"a", b"ann") == b"a " + bytes(REPLIES[Outcome.PRIVACY_REQUIRED]) + b"\r\n"
        await client.send(b"b STARTTLS\r\n")
        assert (await client.line()).startswith(b"b OK ")
    await client.start_tls(trust)
    if tls == "implicit":
        assert (await client.line()).startswith(b"* OK [CAPABILITY IMAP4rev1 ")
    await client.send(b"c AUTHENTICATE PLAIN %b\r\n" % base64.b64encode(b"\0ann\0right"))
    assert await client.line() == b"c" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    assert await client.rest() == LOGGED_OUT
    line = await scene.closing()
    assert (line["outcome"], line["secure"], line["mechanism"]) == ("logged_out", True, "PLAIN")


async def test_a_logout_before_login(stage: Stage) -> None:
    scene = await stage()
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGOUT\r\n")
    assert await client.rest() == b"* BYE Logging out.\r\na OK LOGOUT completed.\r\n"
    line = await scene.closing()
    assert (line["outcome"], line["mechanism"], line["name"]) == ("logged_out", "", "")
    assert scene.backend.peers == []


async def test_the_closing_line_tells_of_the_last_identity_alone(stage: Stage) -> None:
    scene = await stage()
    client = await scene.call_and_be_greeted()
    await client.send(b"a AUTHENTICATE PLAIN %b\r\n" % base64.b64encode(b"ann\0ann\0wrong"))
    assert await client.line() == b"a" + FAILED
    assert await client.log_in(b"b", b"eve", b"wrong") == b"b" + FAILED
    assert await client.log_in(b"c", b"bob") == b"c" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    assert await client.rest() == LOGGED_OUT
    first, second = scene.logged("login.refused")
    assert (first["authentication_identity"], first["authorization_identity"]) == ("ann", "ann")
    assert (second["authentication_identity"], second["authorization_identity"]) == ("eve", "")
    assert {first["outcome"], second["outcome"]} == {"authentication_failed"}
    line = await scene.closing()
    assert (line["mechanism"], line["authentication_identity"], line["name"]) == ("LOGIN", "bob", "bob")
    assert (line["authorization_identity"], line["backend"], line["outcome"]) == ("", "d1", "logged_out")
    assert not {"ann", "eve"} & {str(value) for value in line.values()}
    assert scene.counted('porter_login_attempts_total{mechanism="PLAIN",outcome="authentication_failed"}') == 1
    assert scene.counted('porter_login_attempts_total{mechanism="LOGIN",outcome="authentication_failed"}') == 1
    assert scene.counted('porter_login_attempts_total{mechanism="LOGIN",outcome="ok"}') == 1


async def test_a_name_that_is_refused_leaves_nothing_of_the_one_before(stage: Stage) -> None:
    """The second name gets no canonical form and no backend, so the line has none."""
    scene = await stage()
    client = await scene.call_and_be_greeted()
    assert await client.log_in(b"a", b"ann", b"wrong") == b"a" + FAILED
    assert await client.log_in(b"b", b'"eve*master"') == b"b" + FAILED
    await client.end()
    assert await client.rest() == b""
    line = await scene.closing()
    assert (line["outcome"], line["authentication_identity"]) == ("client_closed", "eve*master")
    assert (line["name"], line["backend"], line["login_seconds"]) == ("", "", 0)
    assert len(scene.backend.peers) == 1


async def test_the_try_limit_and_one_answer_for_unknown_and_wrong(stage: Stage, users: Path) -> None:
    scene = await stage(
        identity=[{"file": {"path": str(users)}}, {"backend": {}}],
        limits={"login_tries": 3, "failed_login_delay": 0.001},
    )
    told = []
    for name, password in ((b"ann", b"wrong"), (b"nobody", b"wrong"), (b'"a*b"', b"wrong"), (b"ann", b'""')):
        client = await scene.call_and_be_greeted()
        for tag in (b"a", b"b", b"c"):
            await client.send(b"%b LOGIN %b %b\r\n" % (tag, name, password))
        told.append(await client.rest())
    assert told == [b"a" + FAILED + b"b" + FAILED + b"c" + FAILED + FAREWELLS[Outcome.TRY_LIMIT]] * 4
    await scene.until_closed(4)
    assert {line["outcome"] for line in scene.logged("session.closed")} == {"try_limit"}
    assert len(scene.logged("login.refused")) == 12


async def test_outages_cost_neither_tries_nor_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delay for failed tries would be felt here: it is longer than the client's patience."""
    monkeypatch.setattr(proxy.session.tries, "_OUTAGE_DELAY_SECONDS", 0.001)
    down = answering(b"NO [UNAVAILABLE] authentication service on host-17 is down")
    scene = await stage(*[down] * 5, dovecot, limits={"login_tries": 2, "failed_login_delay": 15.0})
    client = await scene.call_and_be_greeted()
    for tag in (b"a", b"b", b"c", b"d", b"e"):
        assert await client.log_in(tag, b"ann") == tag + UNAVAILABLE
    assert await client.log_in(b"f", b"ann") == b"f" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    assert await client.rest() == LOGGED_OUT
    refusals = scene.logged("login.refused")
    assert [(each["outcome"], each["step"]) for each in refusals] == [("unavailable", "login")] * 5
    assert (await scene.closing())["outcome"] == "logged_out"


async def test_who_asks_on_and_on_during_an_outage_is_sent_away(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy.session.tries, "_OUTAGE_DELAY_SECONDS", 0.0001)
    monkeypatch.setattr(proxy.session.tries, "_MOST_REFUSALS", 4)
    scene = await stage(answering(b"NO [UNAVAILABLE] down"))
    client = await scene.call_and_be_greeted()
    for _ in range(9):
        await client.send(b"a LOGIN ann right\r\n")
    assert await client.rest() == (b"a" + UNAVAILABLE) * 4 + FAREWELLS[Outcome.TRY_LIMIT]
    assert (await scene.closing())["outcome"] == "try_limit"


BROKEN = [
    ("BYE", greeting_with(b"* BYE Too many connections on host-17\r\n"), "greeting"),
    ("PREAUTH", greeting_with(b"* PREAUTH Welcome root\r\n"), "greeting"),
    ("no IMAP", greeting_with(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "greeting"),
    ("nothing", greeting_with(b""), "greeting"),
    ("BYE at login", answering(b"BYE gone"), "login"),
]


@pytest.mark.parametrize("identity", ["backend", "file"])
@pytest.mark.parametrize(("name", "part", "step"), BROKEN)
async def test_a_backend_that_cannot_now_may_later(
    stage: Stage, users: Path, name: str, part: Part, step: str, identity: str
) -> None:
    """The failed login gives the user's only place back, whichever way it was taken."""
    scene = await stage(part, dovecot, identity=[source(identity, users)], limits={"connections_per_user": 1})
    client = await scene.call_and_be_greeted()
    assert await client.log_in(b"a", b"ann") == b"a" + UNAVAILABLE
    assert b"LOGIN" not in scene.backend.peers[0].received or step == "login"
    assert await client.log_in(b"b", b"ann") == b"b" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    assert await client.rest() == LOGGED_OUT
    (refusal,) = scene.logged("login.refused")
    assert (refusal["outcome"], refusal["step"], refusal["backend"]) == ("unavailable", step, "d1")
    assert scene.counted(f'porter_backend_failures_total{{backend="d1",step="{step}"}}') == 1


async def test_a_backend_that_is_down_may_come_back(stage: Stage, nursery: trio.Nursery) -> None:
    scene = await stage(listening=False)
    client = await scene.call_and_be_greeted()
    assert await client.log_in(b"a", b"ann") == b"a" + UNAVAILABLE
    (refusal,) = scene.logged("login.refused")
    assert refusal["step"] == "connect"
    assert "Connection refused" in refusal["detail"]
    nursery.start_soon(scene.backend.serve)
    await trio.testing.wait_all_tasks_blocked()
    assert await client.log_in(b"b", b"ann") == b"b" + WELCOME
    await client.send(b"z LOGOUT\r\n")
    assert await client.rest() == LOGGED_OUT


@pytest.mark.parametrize("identity", ["backend", "file"])
async def test_a_user_has_so_many_sessions_and_then_room_again(stage: Stage, users: Path, identity: str) -> None:
    scene = await stage(
        identity=[source(identity, users)], limits={"connections_per_user": 1, "failed_login_delay": 0.001}
    )
    first, second = await scene.call_and_be_greeted(), await scene.call_and_be_greeted()
    assert await first.log_in(b"a", b"ann") == b"a" + WELCOME
    assert await second.log_in(b"b", b"ann", b"wrong") == b"b" + FAILED  # the limit is nothing for strangers to know
    assert await second.log_in(b"c", b"ann") == b"c" + AT_LIMIT
    await first.send(b"z LOGOUT\r\n")
    assert await first.rest() == LOGGED_OUT
    await scene.until_closed(1)
    assert await second.log_in(b"d", b"ann") == b"d" + WELCOME
    await second.send(b"z LOGOUT\r\n")
    assert await second.rest() == LOGGED_OUT
    await scene.until_closed(2)
    refusal = scene.logged("login.refused")[-1]
    assert (refusal["outcome"], refusal["detail"]) == ("limit", "connections_per_user: 1 sessions of 1")


async def test_strangers_cannot_take_a_users_places(stage: Stage) -> None:
    """Only the backend knows passwords here, and it takes its time with wrong ones."""
    hesitate = trio.Event()

    async def slow(peer: Wire) -> None:
        await peer.send(GREETING)
        tag = (await peer.line()).split()[0]
        await hesitate.wait()
        await peer.send(tag + b" NO [AUTHENTICATIONFAILED] wrong\r\n")

    scene = await stage(slow, dovecot, limits={"connections_per_user": 1, "failed_login_delay": 0.001})
    stranger, ann = await scene.call_and_be_greeted(), await scene.call_and_be_greeted()
    await stranger.send(b"a LOGIN ann wrong\r\n")
    await scene.until_asked(1)
    assert await ann.log_in(b"a", b"ann") == b"a" + WELCOME
    hesitate.set()
    assert await stranger.line() == b"a" + FAILED
    for client in (stranger, ann):
        await client.end()
        assert await client.rest() == b""


async def test_early_octets_of_both_sides_arrive_in_order(stage: Stage) -> None:
    async def eager(peer: Wire) -> None:
        await peer.send(GREETING)
        tag = (await peer.line()).split()[0]
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(tag + LOGGED_IN + b"* 3 EXISTS\r\n* 1 REC")
        await peer.send(b"ENT\r\n")
        await mailbox(peer)

    scene = await stage(eager)
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann right\r\nb NOOP\r\nc NO")
    await scene.until_asked(1)
    await client.send(b"OP\r\nz LOGOUT\r\n")
    said = await client.rest()
    assert said.startswith(b"a" + WELCOME + b"* 3 EXISTS\r\n")
    untagged = b"* 1 RECENT\r\n"
    assert said.replace(untagged, b"") == (
        b"a" + WELCOME + b"* 3 EXISTS\r\n" + b"b OK NOOP completed.\r\nc OK NOOP completed.\r\n" + LOGGED_OUT
    )
    assert scene.backend.peers[0].received == b'p1 LOGIN "ann" "right"\r\nb NOOP\r\nc NOOP\r\nz LOGOUT\r\n'


async def test_commands_behind_a_refused_login_are_answered_here(stage: Stage) -> None:
    scene = await stage()
    client = await scene.call_and_be_greeted()
    await client.send(b"a LOGIN ann wrong\r\nb NOOP\r\nc SELECT INBOX\r\nd LOGIN ann right\r\nz LOGOUT\r\n")
    said = await client.rest()
    assert said == b"".join(
        [
            b"a" + FAILED,
            b"b OK NOOP completed.\r\n",
            b"c BAD Unknown command, or not allowed before login.\r\n",
            b"d" + WELCOME,
            LOGGED_OUT,
        ]
    )
    assert [peer.received for peer in scene.backend.peers] == [
        b'p1 LOGIN "ann" "wrong"\r\n',
        b'p1 LOGIN "ann" "right"\r\nz LOGOUT\r\n',
    ]
