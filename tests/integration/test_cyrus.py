"""Whole sessions through the proxy on a real Cyrus: identities from a file, `login: {method: authzid}`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from argon2 import PasswordHasher

from tests.servers.accounts import MASTER, MASTER_PASSWORD, USERS
from tests.servers.cyrus import Cyrus, require_cyrus, write_cyrus
from tests.servers.pki import Pki
from tests.servers.porter import Door, Porter
from tests.servers.ports import Ports
from tests.servers.wire import Wire

pytestmark = pytest.mark.server
StartPorter = Callable[..., Porter]

# Cyrus knows others for the same people.
PASSWORDS = {"alice": "alice-known-here", "bob": "bob-known-here"}
MESSAGE = (
    b"From: sender@test.example\r\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <cyrus@test.example>\r\n\r\n"
    b"t1 OK not yet\r\n* BYE {3}\r\n\r\nDONE\r\n" + bytes(range(0x80, 0x100)) + b"\r\n" + b"x" * 900 + b"\r\n"
) * 50  # fmt: skip


@pytest.fixture(scope="module")
def cyrus(folder: Path, pki: Pki, ports: Ports) -> Iterator[Cyrus]:
    require_cyrus()
    server = write_cyrus("c1", folder / "c1", pki, ports)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(short_folder: Path) -> dict[str, Any]:
    """Who people are is the proxy's own knowledge; at Cyrus an account of the proxy's acts for them."""
    # The cheapest that the algorithm allows: what is tested here is not its strength.
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    users, secret = short_folder / "users.yaml", short_folder / "master-secret"
    users.write_text(yaml.safe_dump({name: {"hash": hasher.hash(password)} for name, password in PASSWORDS.items()}))
    secret.write_text(MASTER_PASSWORD + "\n")
    for path in (users, secret):
        path.chmod(0o600)
    login = {"method": "authzid", "name": MASTER, "password": {"file": str(secret)}}
    return {"identity": [{"file": {"path": str(users)}}], "backends": {"login": login}}


@pytest.fixture
def porter(start_porter: StartPorter, cyrus: Cyrus, settings: dict[str, Any]) -> Porter:
    return start_porter(backends_url={"c1": f"imap://127.0.0.1:{cyrus.imap_port}"}, **settings)


def enter(door: Door) -> Wire:
    """Connect by a door and come to where LOGIN is allowed."""
    context = door.pki.client_context()
    if not door.starttls:
        return Wire.connect(door.port, context)
    wire = Wire.connect(door.port)
    wire.starttls(context)
    return wire


def session(door: Door, name: str) -> Wire:
    """A session of this user."""
    wire = enter(door)
    answer = wire.login(name, PASSWORDS[name])
    assert answer.startswith(b"OK"), answer
    return wire


def plain(name: str) -> bytes:
    """The response of PLAIN (RFC 4616)."""
    return base64.b64encode(f"\0{name}\0{PASSWORDS[name]}".encode())


def authenticate(wire: Wire, name: str) -> bytes:
    """AUTHENTICATE PLAIN without an initial response; the tagged line without its tag."""
    wire.send(b"a AUTHENTICATE PLAIN\r\n")
    assert wire.line() == b"+ "
    wire.send(plain(name) + b"\r\n")
    return wire.until(b"a")[-1].removeprefix(b"a ")


WAYS: dict[str, Callable[[Wire, str], bytes]] = {
    "LOGIN": lambda wire, name: wire.login(name, PASSWORDS[name]),
    "PLAIN": lambda wire, name: wire.command(b"AUTHENTICATE PLAIN " + plain(name))[-1].split(b" ", 1)[1],
    "PLAIN without an initial response": authenticate,
}


def count(wire: Wire, mailbox: bytes = b"INBOX") -> int:
    """Select a mailbox; how many messages it has."""
    exists = next(line for line in wire.command(b"SELECT " + mailbox) if line.endswith(b" EXISTS"))
    return int(exists.split()[1])


def test_each_way_in(porter: Porter, cyrus: Cyrus) -> None:
    """Whoever logs in is that person at Cyrus too, where the proxy's account is the one that showed a password."""
    logins = 0
    for door in porter.doors.values():
        for way, log_in in WAYS.items():
            with enter(door) as wire:
                answer = log_in(wire, "alice")
                assert answer.startswith(b"OK [CAPABILITY "), (way, answer)
                assert b"LOGINDISABLED" not in answer
                assert b" AUTH=" not in answer
                mailbox = b"of-alice-%d" % logins
                assert wire.command(b"CREATE " + mailbox)[-1].split()[1] == b"OK"
                logins += 1
                wire.command(b"LOGOUT")
                wire.rest()
    lines = porter.wait_for_log("session.closed", logins, name="alice", outcome="logged_out")
    assert {line["backend"] for line in lines} == {"c1"}
    assert [line["mechanism"] for line in lines].count("LOGIN") == 2
    assert [line["mechanism"] for line in lines].count("PLAIN") == 4
    for name, found in (("alice", logins), ("bob", 0), (MASTER, 0)):
        with Wire.connect(cyrus.imap_port) as wire:
            assert wire.login(name, {**USERS, MASTER: MASTER_PASSWORD}[name]).startswith(b"OK")
            listed = [line for line in wire.command(b'LIST "" of-alice-*') if line.startswith(b"* LIST")]
            assert len(listed) == found, name


@pytest.mark.parametrize("way", ["imaps", "starttls"])
@pytest.mark.parametrize("synchronizing", [True, False], ids=["synchronizing", "non-synchronizing"])
def test_a_message_is_the_same_both_ways(porter: Porter, cyrus: Cyrus, way: str, synchronizing: bool) -> None:
    with session(porter.doors[way], "alice") as wire:
        assert wire.append(b"INBOX", MESSAGE, synchronizing=synchronizing).startswith(b"OK")
        number = b"%d" % count(wire)
        assert wire.fetch_body(number) == MESSAGE
    with Wire.connect(cyrus.imap_port) as wire:
        assert wire.login("alice", USERS["alice"]).startswith(b"OK")
        count(wire)
        assert wire.fetch_body(number) == MESSAGE, "as Cyrus has it"


def test_idle_shows_a_new_message(porter: Porter) -> None:
    with session(porter.doors["imaps"], "bob") as idler, session(porter.doors["starttls"], "bob") as other:
        before = count(idler)
        idler.send(b"i IDLE\r\n")
        assert idler.line().startswith(b"+")
        assert other.append(b"INBOX", MESSAGE, synchronizing=True).startswith(b"OK")
        seen = idler.line()
        while not seen.endswith(b" EXISTS"):
            seen = idler.line()
        assert seen == b"* %d EXISTS" % (before + 1)
        idler.send(b"DONE\r\n")
        assert idler.until(b"i")[-1].startswith(b"i OK")


@pytest.mark.parametrize("scheme", ["imaps", "imap+starttls"])
def test_tls_to_cyrus(start_porter: StartPorter, cyrus: Cyrus, settings: dict[str, Any], scheme: str) -> None:
    port = cyrus.imaps_port if scheme == "imaps" else cyrus.imap_port
    porter = start_porter(backends_url={"c1": f"{scheme}://localhost:{port}"}, **settings)
    with session(porter.doors["imaps"], "bob") as wire:
        assert count(wire) >= 0
        wire.command(b"LOGOUT")
        wire.rest()
    assert porter.wait_for_log("session.closed", name="bob")[0]["backend"] == "c1"


def test_wrong_passwords_end_at_the_proxy(porter: Porter) -> None:
    """The one that Cyrus would take is as wrong as any other."""
    for name, password in (("alice", "certainly-wrong"), ("alice", USERS["alice"]), ("nobody-here", "certainly-wrong")):
        with enter(porter.doors["imaps"]) as wire:
            assert wire.login(name, password).startswith(b"NO [AUTHENTICATIONFAILED]")
    lines = porter.wait_for_log("login.refused", 3)
    assert [(line["outcome"], line["backend"], line["step"]) for line in lines] == [
        ("authentication_failed", "", "")
    ] * 3


def test_an_account_that_may_not_act_for_others(
    start_porter: StartPorter, cyrus: Cyrus, settings: dict[str, Any], short_folder: Path
) -> None:
    """Cyrus refuses it; the user's own password was right, and has gone no further than to the proxy."""
    (short_folder / "master-secret").write_text(USERS["bob"] + "\n")
    settings["backends"]["login"]["name"] = "bob"
    porter = start_porter(backends_url={"c1": f"imap://127.0.0.1:{cyrus.imap_port}"}, **settings)
    with enter(porter.doors["imaps"]) as wire:
        assert wire.login("alice", PASSWORDS["alice"]).startswith(b"NO ")
    (line,) = porter.wait_for_log("login.refused")
    assert (line["backend"], line["step"]) == ("c1", "login")
    assert "authentication failure" in line["detail"]
