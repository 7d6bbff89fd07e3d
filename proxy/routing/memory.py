"""What one process knows of a backend, as another takes it over. It travels as JSON, between versions too.

Times are ages. What stands in the settings of a backend goes along beside what was said of it: who reads it with other
settings can tell whether it still holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.settings.models import Backends, Server, State

_LONGEST_AGE = 1e9
_MOST = 1_000_000  # more weight than any administrator gives


@dataclass(frozen=True, slots=True)
class Memo:
    """One backend."""

    url: str
    set_state: State  # by the settings, or by discovery
    set_weight: int
    said_state: State | None  # by an administrator; None: nothing
    said_weight: int | None
    up: bool
    age: float  # how long ago that changed
    reason: str
    failed_over: bool
    unproved: int | None
    server: Mapping[str, Any] | None  # as it stands in settings; None: it does
    addresses: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """A short form: what goes without saying is left out."""
        document: dict[str, Any] = {
            "url": self.url,
            "set": [self.set_state, self.set_weight],
            "health": [self.up, round(self.age, 3), self.reason, self.failed_over, self.unproved],
        }
        if self.said_state is not None or self.said_weight is not None:
            document["said"] = [self.said_state, self.said_weight]
        if self.server is not None:
            document["server"] = self.server
            document["addresses"] = list(self.addresses)
        return document

    def discovered_server(self) -> Server | None:
        """None: there is none, or it is written as this version would not."""
        try:
            return None if self.server is None else Server.model_validate(self.server)
        except ValueError:
            return None


def what_is_asked(backends: Backends) -> list[Any] | None:
    """What makes discovered servers who they are, and fit to be trusted; JSON. What others have asked for is theirs."""
    found = backends.discovery
    if found is None:
        return None
    return [found.dns, found.scheme, found.port, found.ordinal_names, found.ordinal_prefix, backends.pins_names]


def memos(memory: Mapping[str, Any]) -> Iterator[tuple[str, Memo]]:
    """The backends that a memory tells of, by name. What makes no sense is passed over."""
    backends = memory.get("backends")
    for name, document in backends.items() if isinstance(backends, dict) else ():
        memo = _memo(document)
        if memo is not None:
            yield name, memo


def _memo(document: object) -> Memo | None:
    match document:
        case {
            "url": str(url),
            "set": [("up" | "drain" | "down") as set_state, int(set_weight), *_],
            "health": [bool(up), int() | float() as age, str(reason), bool(failed_over), unproved, *_],
            **more,
        } if 0 <= age <= _LONGEST_AGE and (unproved is None or isinstance(unproved, int)):
            server, addresses = more.get("server"), more.get("addresses")
            return Memo(
                url,
                set_state,
                set_weight,
                *_said(more.get("said")),
                up,
                age,
                reason,
                failed_over,
                unproved,
                server if isinstance(server, dict) else None,
                tuple(map(str, addresses)) if isinstance(addresses, list) else (),
            )
    return None


def _said(said: object) -> tuple[State | None, int | None]:
    match said:
        case [("up" | "drain" | "down" | None) as state, (int() | None) as weight, *_] if 0 <= (weight or 0) <= _MOST:
            return state, weight
    return None, None
