"""What is counted and logged of moves: how many users had to leave, why, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import trio

from proxy.ledger.moves import Closing
from proxy.ledger.resident import Move, MoveReason, Resident
from proxy.observe import metrics
from proxy.observe.log import get_logger

log = get_logger()

MOVES = metrics.counter(
    "porter_moves_total",
    "Users whose sessions at a backend had to end, so that they log in elsewhere.",
    reason=MoveReason,
)
MOVES_IN_FLIGHT = metrics.gauge(
    "porter_moves_in_flight", "Users whose sessions are being closed for a move, or have just been."
)
WAITING = metrics.gauge("porter_moves_waiting_logins", "Logins that wait until their user's move has ended.")
STUCK = metrics.counter(
    "porter_moves_stuck_total",
    "Times that sessions had to be told again that they should end, since they were still there.",
)
PINS_DROPPED = metrics.counter(
    "porter_placement_pins_dropped_total",
    "Users whose last backend was forgotten before its time, for want of room.",
)
ABANDONED = metrics.counter(
    "porter_sessions_abandoned_total",
    "Sessions given up at a backend that could not be reached, and that may live on there.",
    backend=None,
)
DIVIDED = metrics.counter(
    "porter_users_divided_total",
    "Users who turned out to have sessions at two backends; those at one of them were told to end.",
)


def know_backends(names: Iterable[str]) -> None:
    """Make zero visible in what is counted by backend."""
    for name in names:
        ABANDONED.labels(name)


def count_closings(closings: Iterable[Closing]) -> None:
    """All together, for evictions come in thousands."""
    moves: Counter[MoveReason] = Counter()
    abandoned: Counter[str] = Counter()
    for closing in closings:
        count = len(closing.session_ids)
        if closing.repeated:
            STUCK.inc()
            log.warning("ledger.move_stuck", name=closing.name, backend=closing.backend, sessions=count)
            continue
        moves[closing.reason] += closing.begins
        if closing.abandoned:
            abandoned[closing.backend] += closing.abandoned
    for reason, users in moves.items():
        MOVES.labels(reason).inc(users)
    for backend, sessions in abandoned.items():
        ABANDONED.labels(backend).inc(sessions)


def tell_moved(resident: Resident, move: Move) -> None:
    """Somebody has left; it is not told of whoever did so by himself."""
    if move.reason is not None:
        seconds = trio.current_time() - move.since
        log.info(
            "ledger.moved", name=resident.name, backend=resident.backend, reason=move.reason.value, seconds=seconds
        )
