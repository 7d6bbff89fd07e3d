"""Real mail clients with tokens of a real provider fetch an INBOX through the proxy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from imapclient.exceptions import IMAPClientError

from tests.integration.token_stage import KINDS, METHODS, Site, token_site
from tests.servers.pki import Pki
from tests.servers.porter import Porter, wait_for
from tests.servers.ports import Ports
from tests.servers.token_clients import CLIENTS

pytestmark = pytest.mark.server
COUNT = 10


@pytest.fixture(scope="module")
def messages(inboxes: dict[str, list[bytes]]) -> list[bytes]:
    return inboxes["d1"][:COUNT]


@pytest.fixture(scope="module")
def site(folder: Path, pki: Pki, ports: Ports, messages: list[bytes]) -> Iterator[Site]:
    with token_site(folder, pki, ports, messages) as running:
        yield running


@pytest.fixture(scope="module")
def porters(site: Site) -> Iterator[Mapping[str, Porter]]:
    """One that keeps tokens to itself, and one that passes them on."""
    with ExitStack() as stack:
        yield {method: stack.enter_context(site.porter(method)) for method in METHODS}


@pytest.mark.parametrize(("method", "kind"), [(method, kind) for method in METHODS for kind in KINDS[method]])
@pytest.mark.parametrize(("client", "way"), [(name, way) for name, each in CLIENTS.items() for way in each.ways])
def test_client(
    site: Site,
    porters: Mapping[str, Porter],
    messages: list[bytes],
    short_folder: Path,
    client: str,
    way: str,
    method: str,
    kind: str,
) -> None:
    porter, program = porters[method], CLIENTS[client]
    known = {line.get("session_id", "") for line in porter.log()}
    found = program.fetch(porter.doors[way], "alice", site.token(kind), short_folder, COUNT)
    assert len(found) == COUNT
    if program.faithful:
        assert sorted(found) == sorted(messages)
    lines = new_lines(porter, known)
    assert {line["event"] for line in lines} == {"session.closed"}, "the token is good at the first try"
    told = {(line["mechanism"], line["name"], line["source"], line["secure"]) for line in lines}
    assert told == {(program.mechanism, "alice", "oauth", True)}


@pytest.mark.parametrize("client", [name for name, client in CLIENTS.items() if client.gives_up])
def test_client_with_an_expired_token(
    site: Site, porters: Mapping[str, Porter], short_folder: Path, client: str
) -> None:
    """Each answers the challenge in its own way, hears the NO, and ends."""
    porter, program = porters["master"], CLIENTS[client]
    known = {line.get("session_id", "") for line in porter.log()}
    token = site.mint(exp=int(site.provider.claims("alice")["iat"]) - 60)
    with pytest.raises((AssertionError, IMAPClientError)):
        program.fetch(porter.doors["imaps"], "alice", token, short_folder, COUNT)
    lines = new_lines(porter, known)
    refused = [line for line in lines if line["event"] == "login.refused"]
    assert {(line["mechanism"], line["outcome"]) for line in refused} == {(program.mechanism, "expired")}
    closed = [line["session_id"] for line in lines if line["event"] == "session.closed"]
    assert sorted(closed) == sorted(line["session_id"] for line in refused), "one try, and off it goes"


def new_lines(porter: Porter, known: set[str]) -> list[dict[str, Any]]:
    """The log of the sessions that were not known, once all are closed."""
    assert wait_for(lambda: len(porter.log("session.closed")) == porter.metrics().total("porter_connections_total"))
    return [line for line in porter.log() if line.get("session_id", "") not in known]
