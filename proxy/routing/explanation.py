"""A placement told to people: every step of it, and how each backend of the pool stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from proxy.model import Identity, Placement
from proxy.routing.directions import Said
from proxy.routing.view import Pool, Standing, View
from proxy.settings.models import State


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend of the pool, for one key."""

    name: str
    weight: int
    state: State  # the administrators' word
    up: bool  # whether it works
    score: float  # 0.0: no one by hash
    notes: tuple[str, ...]  # what is special about it


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where somebody belongs, and why."""

    name: str
    key: str  # what is hashed
    epoch: str
    tag: str  # of the pool; "": the pool without one
    tag_from: str  # "": nothing gives a tag
    override: str  # as it is spelled where it stands; "": there is none
    override_from: str
    order: tuple[Candidate, ...]  # the pool by score, best first; empty where an override goes around a pool that isn't
    placement: Placement
    why: str


def explain(view: View, identity: Identity, said: Said | None = None) -> Explanation:
    """Say how somebody is placed.

    Args:
        said: What administrators said of him.
    Raises:
        Refused: As with the placement itself.
    """
    name, attribute = identity.name, view.routing.tags.attribute
    given = identity.attributes.get(attribute)
    otherwise = partial(view.place, name, identity.backend, given, identity.source)
    placement = otherwise() if said is None else view.directed(said, otherwise)
    override, override_from = view.override(name, identity.backend) or "", ""
    if override:
        override_from = "routing.overrides" if name in view.routing.overrides else f"source {identity.source}"
    if said is not None and said.moved is not None and said.backend is not None:
        override, override_from = said.backend, f"{said.moved.by}: {said.moved.reason}"
    tag, tag_from = view.tag(name, given), ""
    if tag:
        tag_from = f"attribute {attribute}" if given else "routing.tags.domains"
    key = view.key(name)
    pool = view.pools.get(tag)
    order = () if pool is None else tuple(_candidates(pool, key, placement.home))
    why = _why(placement, override_from, order)
    return Explanation(name, key, view.epoch, tag, tag_from, override, override_from, order, placement, why)


def _candidates(pool: Pool, key: str, home: str) -> Iterator[Candidate]:
    for score in pool.ring.scores(key):
        each = pool.standings[score.name]
        notes = (["home"] if each.name == home else []) + list(_notes(each))
        yield Candidate(each.name, each.weight, each.state, each.up, score.score, tuple(notes))


def _notes(each: Standing) -> Iterator[str]:
    if not each.weight:
        yield "no one by hash"
    if each.state == "drain":
        yield "no new homes"
    if each.closed:
        yield each.closed
    if each.out and (each.up and each.state != "down"):
        yield each.reason or "up again, its users return later"
    elif each.out:
        yield "its users go to their next choice"


def _why(placement: Placement, override_from: str, order: tuple[Candidate, ...]) -> str:
    if not placement.home:
        return placement.problem
    if placement.why == "override":
        return f"named by {override_from}"
    if placement.why == "hash":
        return "the highest score of those that take new homes"
    lost = next(each.name for each in order if each.state != "drain")
    return f"stands in for {lost}"
