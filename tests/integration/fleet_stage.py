"""Proxies that are a fleet, each with the same Dovecots behind it, and the server that they share."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from argon2 import PasswordHasher

from proxy.outcome import FAREWELLS, Outcome
from tests.integration.placement_stage import Cast, StartCast
from tests.servers.accounts import USERS
from tests.servers.porter import wait_for
from tests.servers.valkey import Valkey
from tests.servers.wire import Wire

QUICK_MOVES = {"move_delay": "200ms", "move_patience": "3s"}


class Fleet:
    """The proxies are called a, b and so on."""

    def __init__(self, valkey: Valkey, start_cast: StartCast, changes: Mapping[str, Any]) -> None:
        """Args:
        changes: Settings of all proxies.
        """
        self.valkey, self._start_cast, self._changes = valkey, start_cast, changes
        self.casts: list[Cast] = []

    def start(self, name: str, *, joins: bool = True, **changes: Any) -> Cast:
        """One proxy more, with some settings of its own.

        Args:
            joins: Return once it is a member.
        """
        own = {**self._changes, **changes}
        shared = {"name": name, "valkey": self.valkey.url, "password": {"file": str(self.valkey.password_file)}}
        own["fleet"] = {**shared, **self._changes.get("fleet", {}), **changes.get("fleet", {})}
        own["routing"] = {**QUICK_MOVES, **own.get("routing", {})}
        cast = self._start_cast(**own)
        self.casts.append(cast)
        if joins:
            self.until_up(cast)
        return cast

    def until_up(self, *casts: Cast, up: bool = True) -> None:
        """These are members, or alone; without any: all are."""
        for cast in casts or self.casts:
            assert wait_for(lambda cast=cast: is_up(cast) is up, 30), cast.porter.output()  # type: ignore[misc]

    def shares(self, user: str) -> dict[str, str]:
        """By proxy: how many sessions of a user the fleet knows there, and how many of them count."""
        words = self.valkey.ask("HGETALL", f"imap-porter:user:{user}").split("\n")
        known = dict(zip(words[::2], words[1::2], strict=False))
        return {name: value for name, value in known.items() if not name.startswith("@") and name}

    def wait_for_shares(self, user: str, **shares: int) -> None:
        """The fleet knows soon that a user has so many sessions by these proxies, which all count, and no others."""
        wanted = {name: f"{count} {count}" for name, count in shares.items()}
        assert wait_for(lambda: self.shares(user) == wanted, 20), f"{self.shares(user)} are not {wanted}"

    def members(self) -> set[str]:
        """Whom the server has heard of."""
        return set(self.valkey.ask("HKEYS", "imap-porter:members").split())


StartFleet = Callable[..., Fleet]


class Login(threading.Thread):
    """A login that may have to wait."""

    def __init__(self, cast: Cast, user: str) -> None:
        super().__init__(daemon=True)
        self._user = user
        self.answer = b""
        self.wire: Wire = cast.enter()
        self.wire.socket.settimeout(60)
        self.start()

    def run(self) -> None:
        self.answer = self.wire.login(self._user, USERS[self._user])

    @property
    def waits(self) -> bool:
        return self.is_alive()

    def let_in(self) -> Wire:
        """The session, once there is one."""
        self.join(60)
        assert self.answer.startswith(b"OK"), self.answer
        return self.wire


def is_up(cast: Cast) -> bool:
    """Whether it is a member."""
    return cast.porter.metrics().total("porter_fleet_up") == 1


def idle(wire: Wire) -> Wire:
    """It is in IDLE from now on."""
    wire.command(b"SELECT INBOX")
    wire.send(b"i IDLE\r\n")
    assert wire.line().startswith(b"+ ")
    return wire


def ends(wire: Wire, outcome: Outcome = Outcome.MOVED) -> bool:
    """Whether the last that the client is told is this, and then the end."""
    return wire.rest().endswith(FAREWELLS[outcome])


def reload(cast: Cast) -> None:
    """Return once it serves with settings that were read anew."""
    began, joined = (len(cast.porter.log(event)) for event in ("steward.began", "fleet.joined"))
    cast.porter.process.send_signal(signal.SIGHUP)
    cast.porter.wait_for_log("steward.began", began + 1, seconds=30)
    cast.porter.wait_for_log("fleet.joined", joined + 1, seconds=30)


def kill_steward(cast: Cast) -> None:
    """Return once there is another one."""
    began, joined = (len(cast.porter.log(event)) for event in ("steward.began", "fleet.joined"))
    cast.porter.kill_one("steward")
    cast.porter.wait_for_log("steward.began", began + 1, seconds=30)
    cast.porter.wait_for_log("fleet.joined", joined + 1, seconds=30)


def write_users(path: Path, names: Iterable[str], backends: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """A users file, as the one identity source; some have their backend written there."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    users = {name: {"hash": hasher.hash(USERS[name])} for name in names}
    for name, backend in (backends or {}).items():
        users[name]["backend"] = backend
    path.write_text(yaml.safe_dump(users))
    return [{"file": {"path": str(path)}}]
