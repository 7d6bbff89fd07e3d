"""Postfix's own lookups, over TCP, of people that a users file knows."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.admin.socketmap import Socketmap, lmtp_endpoint
from proxy.auth.authenticator import Authenticator
from proxy.auth.cache import cached
from proxy.auth.file import FileSource
from proxy.auth.names import NameRules
from proxy.auth.passwords import PasswordVerifier
from proxy.model import Endpoint
from proxy.outcome import Outcome, Refused
from proxy.settings.addresses import parse_backend_url
from proxy.settings.models import Cache, Names, Server
from proxy.transport.listen import accept_forever, bind
from tests.servers.ports import LOOPBACK
from tests.servers.postfix import Lookup, Postmap, write_postmap

pytestmark = pytest.mark.server

HASH = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$W3hwfhrTLMYpxaLMQHSzLwKpMfJ29zBzMWz0x3UtQGc"
USERS = f"""\
alice@test.example: {{hash: "{HASH}", backend: d1}}
bob@test.example: {{hash: "{HASH}", backend: d2}}
carol@test.example: {{hash: "{HASH}", backend: d3}}
zoë@test.example: {{hash: "{HASH}", backend: d1}}
stuck@test.example: {{hash: "{HASH}", backend: down}}
"""
SERVERS = {
    "d1": Server(name="d1", url=parse_backend_url("imaps://10.0.0.11")),
    "d2": Server(name="d2", url=parse_backend_url("imap://dovecot-2.test.example"), lmtp=Endpoint("10.0.0.12", 2424)),
    "d3": Server(name="d3", url=parse_backend_url("imap://[2001:db8::3]:1143")),
}


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[int]:
    """A map of these people on some port."""
    (folder / "users.yaml").write_text(USERS, encoding="utf-8")
    rules = NameRules(Names(default_domain="test.example"))
    source = cached(FileSource(folder / "users.yaml", rules, PasswordVerifier()), Cache())
    authenticator = Authenticator([source], rules)

    async def route(name: str) -> str:
        identity = await authenticator.find(name)
        if identity is None:
            raise LookupError(name)
        assert identity.backend is not None
        if identity.backend not in SERVERS:
            raise Refused(Outcome.UNAVAILABLE, "the backend is down")
        return identity.backend

    table = Socketmap(route, lambda backend: lmtp_endpoint(SERVERS[backend]))
    with bind(Endpoint(LOOPBACK, 0)) as listener:
        async with trio.open_nursery() as nursery:

            def accepted(sock: socket.socket, address: Any) -> None:
                nursery.start_soon(table.serve, sock, Endpoint(*address))

            nursery.start_soon(accept_forever, listener, accepted)
            yield listener.getsockname()[1]
            nursery.cancel_scope.cancel()


@pytest.fixture
def postmap(tmp_path: Path) -> Postmap:
    return write_postmap(tmp_path / "postfix")


LOOKUPS = [
    ("alice@test.example", "lmtp:inet:10.0.0.11:24"),
    ("Alice@Test.Example", "lmtp:inet:10.0.0.11:24"),
    ("alice", "lmtp:inet:10.0.0.11:24"),
    ("alice+lists@test.example", "lmtp:inet:10.0.0.11:24"),
    ("zoë@test.example", "lmtp:inet:10.0.0.11:24"),
    ("bob@test.example", "lmtp:inet:10.0.0.12:2424"),
    ("carol@test.example", "lmtp:inet:[ipv6:2001:db8::3]:24"),
    ("nobody@test.example", None),
    ("alice@other.example", None),
    ("alice*porter@test.example", None),
    ("*", None),
    ("alice smith@test.example", None),
    ("x" * 2048, None),
]


async def test_lookups(tmp_path: Path, postmap: Postmap) -> None:
    async with serving(tmp_path) as port:
        for key, value in LOOKUPS:
            assert await trio.to_thread.run_sync(postmap.look_up, key, port) == Lookup(value), key


async def test_many_lookups_over_one_connection(tmp_path: Path, postmap: Postmap) -> None:
    keys = [key for key, _ in LOOKUPS] * 100
    async with serving(tmp_path) as port:
        found = await trio.to_thread.run_sync(postmap.look_up_all, keys, port)
    assert found == {key: value for key, value in LOOKUPS if value is not None}


@pytest.mark.parametrize(
    ("key", "table", "problem"),
    [
        # Postfix lets the mail wait in each case.
        ("stuck@test.example", "route", "socketmap server temporary error: temporarily unavailable"),
        ("alice@test.example", "rout", "socketmap server permanent error: there is no such map here, but route"),
        ("x" * 5000, "route", "lookup error: "),
    ],
)
async def test_lookups_that_fail(key: str, table: str, problem: str, tmp_path: Path, postmap: Postmap) -> None:
    async with serving(tmp_path) as port:
        lookup = await trio.to_thread.run_sync(postmap.look_up, key, port, table)
    assert lookup.value is None
    assert problem in lookup.problem


async def test_a_later_lookup_is_not_hurt(tmp_path: Path, postmap: Postmap) -> None:
    """A client that says something else than Postfix does ends its own connection."""
    async with serving(tmp_path) as port:
        async with await trio.open_tcp_stream(LOOPBACK, port) as stranger:
            await stranger.send_all(b"a LOGIN alice pw\r\n")
            assert await stranger.receive_some() == b""
        lookup = await trio.to_thread.run_sync(postmap.look_up, "alice@test.example", port)
    assert lookup == Lookup("lmtp:inet:10.0.0.11:24")
