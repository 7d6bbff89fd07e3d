"""From an identity to its backend: the one that a source names for it, else the one that the hash gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from proxy.model import Identity
from proxy.outcome import Outcome, Refused
from proxy.routing.rendezvous import Member, Rendezvous, Score
from proxy.settings.models import Server


@dataclass(frozen=True, slots=True)
class Choice:
    """Where an identity belongs."""

    backend: str
    why: Literal["override", "hash"]
    order: tuple[str, ...]  # backends that may serve it, best first; an override stands alone


@dataclass(frozen=True, slots=True)
class Explanation:
    """How the hash places a name, for people."""

    name: str
    key: str
    epoch: str
    scores: tuple[Score, ...]  # best first; those with weight 0 last


class Router:
    """Placement by the settings alone. New settings make a new router."""

    def __init__(self, servers: Sequence[Server], hash: Literal["name", "domain"]) -> None:
        self._ring = Rendezvous(Member(server.name, server.weight) for server in servers)
        self._overrides = _overrides(servers)
        self._by_domain = hash == "domain"
        self.epoch = self._ring.epoch

    def route(self, identity: Identity) -> Choice:
        """Choose the backend.

        Raises:
            Refused: UNAVAILABLE: the identity names a backend that there isn't, or no backend takes new homes.
        """
        override = identity.backend
        if override is not None:
            backend = self._overrides.get(override) or self._overrides.get(override.lower())
            if backend is None:
                # Not by hash instead: a mailbox would be made where its owner's mail is not.
                raise Refused(Outcome.UNAVAILABLE, f'unknown backend "{override}" given by source {identity.source}')
            return Choice(backend, "override", (backend,))
        order = self._ring.order(self._key(identity.name))
        if not order:
            raise Refused(Outcome.UNAVAILABLE, "every backend has weight 0")
        return Choice(order[0], "hash", order)

    def explain(self, name: str) -> Explanation:
        """Show how the hash places a canonical name."""
        key = self._key(name)
        return Explanation(name, key, self.epoch, self._ring.scores(key))

    def _key(self, name: str) -> str:
        """What is hashed: the name; by domain what follows its "@", so that a domain shares one backend."""
        return name.rpartition("@")[2] if self._by_domain else name


def _overrides(servers: Sequence[Server]) -> dict[str, str]:
    """What a source may call a backend: its name first of all, its host:port, its host; the latter where that is
    one's alone. Directories that served another proxy before hold addresses.
    """
    spelled = [(form.lower(), each.name) for each in servers for form in (each.endpoint.host, str(each.endpoint))]
    count = Counter(form for form, _ in spelled)
    found = {form: name for form, name in spelled if count[form] == 1}
    return found | {each.name.lower(): each.name for each in servers} | {each.name: each.name for each in servers}
