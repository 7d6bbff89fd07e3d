"""What the tests of SCRAM share: people with keys made by `imap-porter hash-password`, a proxy that knows them."""

from __future__ import annotations

import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from argon2 import PasswordHasher

from tests.servers.accounts import MASTER, MASTER_PASSWORD
from tests.servers.dovecot import Dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Door, Porter, porter_settings
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.scram_client import PLUS, BoundWire, ScramClient, Scramp, bound
from tests.servers.wire import Wire

Settings = dict[str, Any]

# Dovecot knows others for the same people.
PASSWORDS = {"alice": "scram-of-alice-4w", "bob": "scram-of-bob-9z", "u05": "hash-of-u05-2q"}
ALICE = PASSWORDS["alice"]
WRONG = "no-pw-of-anybody"
FAILED = b"NO [AUTHENTICATIONFAILED] Authentication failed."
NOT_YOURS = b"NO [AUTHORIZATIONFAILED] Authorization failed."
UNAVAILABLE = b"NO [UNAVAILABLE] Account is temporarily unavailable."
CANNOT = b"NO [CANNOT] Unsupported authentication mechanism."
CANCELLED = b"BAD Authentication cancelled."
# What is tried here fails often, and always comes from one address.
NO_LIMITS = {"failed_login_delay": "0s", "login_tries": 100, "exempt_networks": ["127.0.0.0/8"]}


def keys_of(password: str) -> str:
    """SCRAM keys, as an administrator makes them."""
    command = [sys.executable, "-m", "proxy", "hash-password", "--scram"]
    made = subprocess.run(command, input=password + "\n", capture_output=True, text=True, check=True, timeout=20)
    assert made.stderr == ""
    return made.stdout.removesuffix("\n")


def make_keys() -> dict[str, str]:
    """Of those who have some."""
    return {name: keys_of(PASSWORDS[name]) for name in ("alice", "bob")}


def write_settings(folder: Path, keys: Mapping[str, str]) -> Settings:
    """alice has SCRAM keys, bob has a hash beside them, u05 has a hash alone; Dovecot's master acts for all."""
    # The cheapest that the algorithm allows: what is tested here is not its strength.
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    people = {
        "alice": {"scram": keys["alice"]},
        "bob": {"scram": keys["bob"], "hash": hasher.hash(PASSWORDS["bob"])},
        "u05": {"hash": hasher.hash(PASSWORDS["u05"])},
    }
    place = Path(tempfile.mkdtemp(prefix="scram-", dir=folder))
    users, secret = place / "users.yaml", place / "master-secret"
    users.write_text(yaml.safe_dump(people))
    secret.write_text(MASTER_PASSWORD + "\n")
    for path in (users, secret):
        path.chmod(0o600)
    login = {"method": "master", "name": MASTER, "password": {"file": str(secret)}}
    return {"identity": [{"file": {"path": str(users)}}], "backends": {"login": login}, "limits": NO_LIMITS}


@contextmanager
def running(
    folder: Path, pki: Pki, ports: Ports, dovecots: list[Dovecot], settings: Settings, clear_port: int | None = None
) -> Iterator[Porter]:
    """A proxy in front of these Dovecots, looked over when it ends.

    Args:
        settings: Those of write_settings().
        clear_port: Where it takes logins without TLS too.
    """
    urls = {server.name: f"imap://{LOOPBACK}:{server.imap_port}" for server in dovecots}
    all_settings, taken = porter_settings(pki, urls, ports)
    all_settings["backends"] |= settings["backends"]
    all_settings |= {"identity": settings["identity"], "limits": settings["limits"]}
    if clear_port is not None:
        clear = {"address": f"{LOOPBACK}:{clear_port}", "tls": "none", "trusted_networks": ["127.0.0.0/8"]}
        all_settings["listeners"].append(clear)
        taken["clear"] = clear_port
    porter = Porter(Path(tempfile.mkdtemp(prefix="porter-", dir=folder)), all_settings, pki, taken)
    try:
        yield porter
        porter.stop()
        assert [secret for secret in PASSWORDS.values() if secret in porter.output()] == []
    finally:
        porter.kill()


def enter(door: Door, context: ssl.SSLContext | None = None) -> Wire:
    """Connect by a door and come to where a login is allowed."""
    context = context or door.pki.client_context()
    if not door.starttls:
        return Wire.connect(door.port, context)
    wire = Wire.connect(door.port)
    wire.starttls(context)
    return wire


def offered(wire: Wire) -> list[str]:
    """The mechanisms that a client is told of."""
    words = wire.command(b"CAPABILITY")[0].decode().split()
    return [word.removeprefix("AUTH=") for word in words if word.startswith("AUTH=")]


def messages(wire: Wire) -> int:
    """How many there are in the INBOX."""
    exists = next(line for line in wire.command(b"SELECT INBOX") if line.endswith(b" EXISTS"))
    return int(exists.split()[1])


def leave(wire: Wire) -> None:
    """Log out, so that the session's line says so."""
    wire.command(b"LOGOUT")
    wire.rest()


def client_of(mechanism: str, wire: BoundWire, name: str, password: str) -> ScramClient:
    """A client that does as it should."""
    return bound(name, password, wire.channel_binding) if mechanism == PLUS else Scramp(name, password)
