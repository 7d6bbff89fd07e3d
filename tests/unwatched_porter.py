"""imap-porter with nothing to watch, to see what watching costs: `python -m tests.unwatched_porter serve -c FILE`.

The same program, of which these methods do nothing: what counts, what publishes events, what notes for traces and for
administrators' questions, and what adds all that up and tells it once a second. Calls to them stay, and so do additions
that stand in other code (octets of the relay, a cache's hits): some nanoseconds each.
"""

from __future__ import annotations

from typing import Any

from proxy.admin.events import Hub
from proxy.app.onlookers import Onlookers
from proxy.app.worker import Worker
from proxy.auth.answers import Answers
from proxy.cli.main import main
from proxy.observe.metrics import Counter, Gauge, Histogram, Metrics
from proxy.observe.tally import HistogramTally, NumberTally, Tally
from proxy.relay.tracing import Tracing
from proxy.session.metrics import SessionMetrics
from proxy.session.refusals import Refusals

_MOVES: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Counter, ("inc",)),
    (Gauge, ("inc", "dec", "set")),
    (Histogram, ("observe", "add")),
    (NumberTally, ("flush",)),
    (HistogramTally, ("observe", "flush")),
    (Tally, ("finished", "idle", "blind", "flush")),
    (
        SessionMetrics,
        (
            "opened",
            "refused",
            "tls_failed",
            "phase",
            "attempt",
            "backend_failed",
            "backend_login",
            "logged_in",
            "closed_before_login",
            "left_backend",
            "closed_after_login",
            "loop_delay",
            "flush",
        ),
    ),
    (Answers, ("heard", "flush")),
    (Metrics, ("flush",)),
    (Worker, ("_tell_figures", "_tell_event", "_introduce")),
    (Onlookers, ("told", "turned", "opened", "lost")),
    (Hub, ("publish",)),
    (Tracing, ("note", "opened", "closed", "tick")),
    (Refusals, ("note",)),
)


def _nothing(*_arguments: Any, **_values: Any) -> None:
    """Nobody is to know."""


def _no_changes(_metrics: Metrics) -> list[Any]:
    return []


def unwatch() -> None:
    """Before anything is served."""
    for kind, methods in _MOVES:
        for method in methods:
            if method not in vars(kind):
                raise AttributeError(f"{kind.__name__} has no {method} any more: name here what moves instead")
            setattr(kind, method, _nothing)
    for method in ("changes", "everything"):
        setattr(Metrics, method, _no_changes)


if __name__ == "__main__":
    unwatch()
    main()
