"""Where a user goes at his next login, and why: what routing says, and where the ledger knows him to be."""

from __future__ import annotations

from typing import Any

from proxy.ledger.resident import Whereabouts
from proxy.model import Identity, Placement
from proxy.routing.explanation import Candidate, Explanation


def route_document(
    identity: Identity, explanation: Explanation, whereabouts: Whereabouts | None, now: float, *, running: bool = True
) -> dict[str, Any]:
    """All that is known of a user's placement, as plain objects.

    Args:
        identity: Who he is.
        explanation: What routing says.
        whereabouts: What the ledger says; None: he has no sessions, and nothing holds him anywhere.
        now: The time, on the clock of `whereabouts`.
        running: Whether this is asked of a running proxy; else health is not known.
    """
    placement = explanation.placement
    backend, reason = next_login(placement, whereabouts)
    return {
        "name": explanation.name,
        "source": identity.source,
        "pool": explanation.tag,
        "pool_from": explanation.tag_from,
        "override": explanation.override,
        "override_from": explanation.override_from,
        "key": explanation.key,
        "epoch": explanation.epoch,
        "order": [_candidate(each, running) for each in explanation.order],
        "home": placement.home,
        "why": placement.why,
        "whereabouts": None if whereabouts is None else _whereabouts(whereabouts, placement, now),
        "backend": backend,
        "reason": reason or explanation.why,
        "running": running,
    }


def next_login(placement: Placement, whereabouts: Whereabouts | None) -> tuple[str, str]:
    """The ledger's decision, foretold.

    Returns:
        The backend, "" where the login would be refused; and why there, or why refused; "": because it is his home.
    """
    home = placement.home
    backend, reason = home, ""
    if whereabouts is not None and whereabouts.backend != home:
        there = whereabouts.backend
        if whereabouts.moving:
            reason = f"once he has left {there}"
        elif whereabouts.sessions:
            if there in placement.joinable and placement.why != "override":
                backend, reason = there, "he has sessions there"
            else:
                reason = f"once his sessions at {there} are closed"
        elif _sticks(placement, there):
            backend, reason = there, "he was there lately"
    if not backend:
        return "", placement.problem
    if backend in placement.closed:
        return "", f"{backend}: {placement.closed[backend]}"
    return backend, reason


def _sticks(placement: Placement, there: str) -> bool:
    """Whether he goes back to where his sessions were, just now."""
    if there in placement.closed:
        return False
    return there == placement.home or (there in placement.sticky and placement.why != "override")


def _candidate(candidate: Candidate, running: bool) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "weight": candidate.weight,
        "state": candidate.state,
        "up": candidate.up if running else None,
        "score": candidate.score,
        "notes": list(candidate.notes),
    }


def _whereabouts(whereabouts: Whereabouts, placement: Placement, now: float) -> dict[str, Any]:
    until = whereabouts.sticky_until
    return {
        "backend": whereabouts.backend,
        "sessions": whereabouts.sessions,
        "seconds": max(0.0, now - whereabouts.since),
        "sticky_seconds": None if until is None else max(0.0, until - now),
        "sticky_holds": until is not None and _sticks(placement, whereabouts.backend),
        "moving": whereabouts.moving,
    }
