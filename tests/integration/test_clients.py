"""Real mail clients fetch an INBOX of 100 messages through the proxy, by either door."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import clients
from tests.servers.accounts import USERS
from tests.servers.porter import Door
from tests.servers.ports import Ports

pytestmark = pytest.mark.server
NAME = "alice"
PASSWORD = USERS[NAME]
Inboxes = dict[str, list[bytes]]


def whose(found: list[bytes], inboxes: Inboxes) -> str:
    """The backend that has exactly these messages, in whatever order; else what is wrong, in few words."""
    for backend, messages in inboxes.items():
        if sorted(found) == sorted(messages):
            return backend
    known = {message for messages in inboxes.values() for message in messages}
    return f"{len(found)} messages, {len(known & set(found))} of them as they were sent"


def test_imaplib(door: Door, inboxes: Inboxes) -> None:
    assert whose(clients.imaplib_fetch(door, NAME, PASSWORD), inboxes) in inboxes


def test_imapclient(door: Door, inboxes: Inboxes) -> None:
    assert whose(clients.imapclient_fetch(door, NAME, PASSWORD), inboxes) in inboxes


def test_curl(door: Door, inboxes: Inboxes, short_folder: Path) -> None:
    assert whose(clients.curl_fetch(door, NAME, PASSWORD, short_folder, 100), inboxes) in inboxes


def test_mbsync(door: Door, inboxes: Inboxes, short_folder: Path) -> None:
    assert whose(clients.mbsync_fetch(door, NAME, PASSWORD, short_folder), inboxes) in inboxes


def test_mutt(door: Door, short_folder: Path) -> None:
    # mutt writes headers of its own into each copy.
    assert len(clients.mutt_fetch(door, NAME, PASSWORD, short_folder)) == 100


def test_imapflow(door: Door, inboxes: Inboxes) -> None:
    assert whose(clients.imapflow_fetch(door, NAME, PASSWORD), inboxes) in inboxes


def test_thunderbird(door: Door, short_folder: Path, ports: Ports) -> None:
    assert clients.thunderbird_fetch(door, NAME, PASSWORD, short_folder, ports, 100) == 100
