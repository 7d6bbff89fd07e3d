"""Where everybody belongs at one moment: overrides, then pools, then the hash.

A pool's hash knows all of its backends whatever their state; those that may not take a name just now are passed over
in its order. Rendezvous hashing makes that the same as a hash without them, so a backend that comes and goes empties
no cache. Every answer that can be given is made beforehand, and finding one is a look-up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from proxy.model import NO_ATTRIBUTES, Placement
from proxy.outcome import Outcome, Refused
from proxy.routing.directions import Said
from proxy.routing.rendezvous import Member, Rendezvous, epoch
from proxy.settings.models import Routing, Server, State

BY_ADMINISTRATOR = "set down by an administrator"
NOT_CHECKED = "new: not checked yet"


@dataclass(frozen=True, slots=True)
class Standing:
    """How one backend stands at one moment."""

    server: Server
    weight: int
    state: State  # the administrators' word
    up: bool
    reason: str  # why it is not up, or why it is out though it is
    out: bool  # its users go to their next choice

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def tag(self) -> str:
        return self.server.tag or ""

    @property
    def takes_homes(self) -> bool:
        return self.state != "drain" and not self.out and self.weight > 0

    @property
    def told(self) -> str:
        """The state as the epoch tells it. "active" is older than the settings' word for it, and stays: epochs last."""
        if self.state == "drain":
            return "drain, out" if self.out else "drain"
        if self.out:
            return "out"
        return "active" if self.state == "up" else self.state

    @property
    def closed(self) -> str:
        """Why it is not to be asked; "": it may be."""
        if self.state == "down":
            return BY_ADMINISTRATOR
        return "" if self.up else f"down: {self.reason}"


class Pool:
    """The backends of one tag."""

    __slots__ = ("homes", "lost", "nowhere", "ring", "standings", "substitutes")

    def __init__(self, tag: str, standings: Sequence[Standing], ring: Rendezvous, closed: Mapping[str, str]) -> None:
        self.standings = {each.name: each for each in standings}
        self.ring = ring
        self.lost = frozenset(each.name for each in standings if each.out and each.state != "drain")
        joinable = frozenset(each.name for each in standings if not each.out)
        sticky = frozenset(each.name for each in standings if not each.out and each.state != "drain")
        takers = [each.name for each in standings if each.takes_homes]
        self.homes = {name: Placement(name, "hash", joinable, sticky, closed) for name in takers}
        self.substitutes = {name: Placement(name, "failover", joinable, sticky, closed) for name in takers}
        problem = f"every backend {of_pool(tag)} drains, is down or has weight 0"
        self.nowhere = Placement("", "hash", joinable, sticky, closed, problem)

    def place(self, key: str) -> Placement:
        """The first of the key's order that takes it."""
        answers = self.homes
        answer = answers.get(self.ring.first(key))
        if answer is not None:
            return answer
        for name in self.ring.order(key):
            if name in answers:
                return answers[name]
            if name in self.lost:
                answers = self.substitutes
        return self.nowhere


class View:
    """One moment. It never changes: new settings, states or health are a new view."""

    __slots__ = ("_by_domain", "_overridden", "_spellings", "_tags", "epoch", "pools", "routing", "standings")

    def __init__(self, standings: tuple[Standing, ...], routing: Routing, before: View | None = None) -> None:
        """Look at the backends.

        Args:
            standings: Each of them once, in any order.
            routing: The settings.
            before: The view that this one follows; hashes that are the same in both keep their caches.
        """
        self.standings = standings
        self.routing = routing
        self.epoch = epoch(Member(each.name, each.weight, each.told, each.tag) for each in standings)
        closed = MappingProxyType({each.name: each.closed for each in standings if each.closed})
        old: Mapping[str, Pool] = {} if before is None else before.pools
        self.pools: dict[str, Pool] = {
            tag: Pool(tag, members, _ring(members, old.get(tag)), closed) for tag, members in _by_tag(standings).items()
        }
        self._by_domain = routing.hash == "domain"
        self._tags = routing.tags.domains
        self._spellings = _spellings([each.server for each in standings])
        self._overridden = {
            each.name: Placement(each.name, "override", frozenset([each.name]), frozenset([each.name]), closed)
            for each in standings
        }

    def place(self, name: str, named: str | None, tag: str | None, source: str) -> Placement:
        """Say where somebody belongs.

        Args:
            name: The canonical name.
            named: The backend that his identity names.
            tag: The tag that his identity has.
            source: Where the identity is from.
        Raises:
            Refused: UNAVAILABLE: a backend is named, or a tag given, that there is not.
        """
        override = self.override(name, named)
        if override is None:
            return self.pool(name, tag).place(self.key(name))
        backend = self._spellings.get(override) or self._spellings.get(override.lower())
        if backend is None:
            # Not by hash instead: a mailbox would be made where its owner's mail is not.
            by = "in routing.overrides" if name in self.routing.overrides else f"by source {source}"
            raise Refused(Outcome.UNAVAILABLE, f'unknown backend "{override}" given {by}')
        return self._overridden[backend]

    def directed(self, said: Said, otherwise: Callable[[], Placement]) -> Placement:
        """Say where somebody belongs of whom administrators have said something.

        Args:
            said: What they have said.
            otherwise: Says where he would belong without.
        Raises:
            Refused: UNAVAILABLE: there is no such backend any more; or as `otherwise` does.
        """
        if said.held is not None:
            problem = f"held by {said.held.by}: {said.held.reason}"
            return Placement("", "override", frozenset(), frozenset(), NO_ATTRIBUTES, problem)
        if said.moved is None or said.backend is None:
            return otherwise()
        if said.backend not in self._overridden:
            raise Refused(Outcome.UNAVAILABLE, f'unknown backend "{said.backend}" given by {said.moved.by}')
        return self._overridden[said.backend]

    def override(self, name: str, named: str | None) -> str | None:
        """What wins over the hash, as it is spelled."""
        return self.routing.overrides.get(name, named)

    def pool(self, name: str, tag: str | None) -> Pool:
        """The pool that somebody belongs to.

        Raises:
            Refused: UNAVAILABLE: there is none.
        """
        tag = self.tag(name, tag)
        pool = self.pools.get(tag)
        if pool is None:
            named = "" if self.standings else "; DNS has named none yet"
            raise Refused(Outcome.UNAVAILABLE, f"there is no backend {of_pool(tag)}{named}")
        return pool

    def tag(self, name: str, tag: str | None) -> str:
        """The tag of somebody's pool; an attribute that is empty says as little as none."""
        if tag or not self._tags:
            return tag or ""
        _, at, domain = name.rpartition("@")
        return self._tags.get(domain.lower(), "") if at else ""

    def key(self, name: str) -> str:
        """What is hashed: the name; by domain what follows its "@", so that a domain shares one backend."""
        return name.rpartition("@")[2] if self._by_domain else name


def of_pool(tag: str) -> str:
    """A pool for people, as it follows "backend"."""
    return f'of the pool "{tag}"' if tag else "without a tag"


def _by_tag(standings: Iterable[Standing]) -> dict[str, list[Standing]]:
    pools: dict[str, list[Standing]] = {}
    for each in standings:
        pools.setdefault(each.tag, []).append(each)
    return pools


def _ring(standings: Iterable[Standing], before: Pool | None) -> Rendezvous:
    """The hash of a pool: the one that there was, where names and weights are the same."""
    members = sorted((Member(each.name, each.weight) for each in standings), key=lambda member: member.name)
    if before is not None and list(before.ring.members) == members:
        return before.ring
    return Rendezvous(members)


def _spellings(servers: Sequence[Server]) -> dict[str, str]:
    """What a backend may be called: its name first of all, its host:port, its host; the latter where that is one's
    alone. Directories that served another proxy before hold addresses.
    """
    spelled = [(form.lower(), each.name) for each in servers for form in (each.endpoint.host, str(each.endpoint))]
    count = Counter(form for form, _ in spelled)
    found = {form: name for form, name in spelled if count[form] == 1}
    return found | {each.name.lower(): each.name for each in servers} | {each.name: each.name for each in servers}
