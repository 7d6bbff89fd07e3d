"""SCRAM by clients of other hands, each of which fetches an INBOX through the proxy, by either door."""

from __future__ import annotations

import imaplib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from imapclient import IMAPClient

from tests.integration.scram_stage import ALICE, FAILED, WRONG, make_keys, messages, running, write_settings
from tests.servers import clients
from tests.servers.dovecot import Dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Door, Porter
from tests.servers.ports import Ports
from tests.servers.sasl_clients import mbsync_fetch, mutt_fetch
from tests.servers.scram_client import PLUS, SCRAM, BoundWire, Gsasl, Scramp, authenticate

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def porter(folder: Path, pki: Pki, ports: Ports, dovecots: list[Dovecot]) -> Iterator[Porter]:
    with running(folder, pki, ports, dovecots, write_settings(folder, make_keys())) as porter:
        yield porter


@pytest.fixture(params=["imaps", "starttls"])
def door(request: pytest.FixtureRequest, porter: Porter) -> Door:
    return porter.doors[request.param]


def fetched_by_imaplib(door: Door, folder: Path) -> int:
    """Python's own client, with scramp."""
    client: imaplib.IMAP4
    if door.starttls:
        client = imaplib.IMAP4("localhost", door.port, timeout=20)
        client.starttls(door.pki.client_context())
    else:
        client = imaplib.IMAP4_SSL("localhost", door.port, ssl_context=door.pki.client_context(), timeout=20)
    with client:
        client.authenticate(SCRAM, Scramp("alice", ALICE).step)
        client.select("INBOX", readonly=True)
        _, parts = client.fetch("1:*", "(BODY.PEEK[])")
    return sum(isinstance(part, tuple) for part in parts)


def fetched_by_imapclient(door: Door, folder: Path) -> int:
    """IMAPClient, with scramp."""
    context = door.pki.client_context()
    with IMAPClient("localhost", door.port, ssl=not door.starttls, ssl_context=context, timeout=20) as client:
        if door.starttls:
            client.starttls(context)
        client.sasl_login(SCRAM, Scramp("alice", ALICE).step)
        client.select_folder("INBOX", readonly=True)
        return len(client.fetch(client.search("ALL"), [b"BODY.PEEK[]"]))


def fetched_by_mbsync(door: Door, folder: Path) -> int:
    """mbsync, by Cyrus SASL's plugin; it names whom it acts as."""
    return len(mbsync_fetch(door, f"User alice\nPass {ALICE}\nAuthMechs {SCRAM}", folder))


def fetched_by_mbsync_as_it_likes(door: Door, folder: Path) -> int:
    return len(mbsync_fetch(door, f"User alice\nPass {ALICE}\nAuthMechs *", folder))


def fetched_by_mutt(door: Door, folder: Path) -> int:
    """mutt, by GNU SASL; it names whom it acts as."""
    account = f"set imap_user=alice imap_pass={ALICE} imap_authenticators=scram-sha-256"
    return len(mutt_fetch(door, account, folder))


SPEAKERS = [
    fetched_by_imaplib,
    fetched_by_imapclient,
    fetched_by_mbsync,
    fetched_by_mbsync_as_it_likes,
    fetched_by_mutt,
]


@pytest.mark.parametrize("fetched", SPEAKERS, ids=lambda fetch: fetch.__name__.removeprefix("fetched_by_"))
def test_a_mail_client(porter: Porter, door: Door, short_folder: Path, fetched: Callable[[Door, Path], int]) -> None:
    before = porter.metrics()
    assert fetched(door, short_folder) == 100
    attempts, after = "porter_login_attempts_total", porter.metrics()
    grown = {
        mechanism: after.total(attempts, mechanism=mechanism) - before.total(attempts, mechanism=mechanism)
        for mechanism in ("LOGIN", "PLAIN", PLUS, SCRAM)
    }
    assert grown == {"LOGIN": 0, "PLAIN": 0, PLUS: 0, SCRAM: 1}


@pytest.mark.parametrize("mechanism", [SCRAM, PLUS])
def test_gnu_sasl(door: Door, mechanism: str) -> None:
    """The one library here that has PLUS with `tls-exporter` from another hand."""
    with BoundWire.enter(door) as wire:
        binding = wire.channel_binding if mechanism == PLUS else b""
        assert authenticate(wire, Gsasl("alice", WRONG, binding)).answer == FAILED
        told = authenticate(wire, Gsasl("alice", ALICE, binding))
        assert told.accepted
        assert len(told.challenges) == 2
        assert messages(wire) == 100


def fetched_by_curl(door: Door, folder: Path) -> int:
    return len(clients.curl_fetch(door, "alice", ALICE, folder, 3))


def fetched_by_imapflow(door: Door, folder: Path) -> int:
    return len(clients.imapflow_fetch(door, "alice", ALICE))


def fetched_by_mutt_as_it_likes(door: Door, folder: Path) -> int:
    """mutt begins with PLUS, has nothing to bind to, and goes on with LOGIN without a word on the wire."""
    return len(mutt_fetch(door, f"set imap_user=alice imap_pass={ALICE}", folder))


OTHERS = [
    (fetched_by_curl, 3, "PLAIN"),
    (fetched_by_imapflow, 100, "PLAIN"),
    (fetched_by_mutt_as_it_likes, 100, "LOGIN"),
]


@pytest.mark.parametrize(
    ("fetched", "count", "mechanism"), OTHERS, ids=[row[0].__name__.removeprefix("fetched_by_") for row in OTHERS]
)
def test_clients_that_speak_no_scram_are_none_the_worse(
    porter: Porter, door: Door, short_folder: Path, fetched: Callable[[Door, Path], int], count: int, mechanism: str
) -> None:
    before = porter.metrics()
    assert fetched(door, short_folder) == count
    attempts, after = "porter_login_attempts_total", porter.metrics()
    assert after.total(attempts, mechanism=mechanism) > before.total(attempts, mechanism=mechanism)
    assert after.total(attempts, outcome="authentication_failed") == before.total(
        attempts, outcome="authentication_failed"
    )
