"""Ending a worker's sessions at safe points, spread over the time there is, so that clients do not return as one wave.

Connections that are not logging in just now end at once; logins under way may finish. Sessions end between commands or
in IDLE, a few at a time; whoever is not at such a point when it is his turn is asked again in a later round. What is
left when the time is over ends as soon as no response is being sent to it; what is in a response after a moment more is
cut off.
"""

from __future__ import annotations

import random

import trio

from proxy.outcome import Outcome
from proxy.relay.engine import Carried
from proxy.session import House

_TICK_SECONDS = 0.1
# All sessions should have had their turn after about so much of the time.
_PART = 2 / 3
_LAST_SECONDS = 2.0


def busy(house: House, logins: trio.Nursery) -> bool:
    """Whether there is anybody yet."""
    return bool(house.engine.sessions or logins.child_tasks)


async def end_sessions(house: House, logins: trio.Nursery, seconds: float) -> None:
    """End all sessions within so many seconds, and a moment more for responses that are being sent."""
    engine = house.engine
    deadline = trio.current_time() + seconds
    rounds = max(1, int(seconds * _PART / _TICK_SECONDS))
    due: list[Carried] = []
    per_round = 0
    while busy(house, logins) and trio.current_time() < deadline:
        for visit in list(house.visits):
            visit.drain()
        if not due:
            due = list(engine.sessions)
            random.shuffle(due)
            per_round = max(1, -(-len(due) // rounds))
        for _ in range(min(per_round, len(due))):
            session = due.pop()
            if session.at_safe_point:
                engine.say_goodbye(session, Outcome.DRAINED)
        await trio.sleep(_TICK_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
    for session in list(engine.sessions):
        engine.say_goodbye(session, Outcome.DRAINED, soon=True)
    with trio.move_on_after(_LAST_SECONDS):
        while engine.sessions:  # noqa: ASYNC110 - there is no event for the last of them
            await trio.sleep(_TICK_SECONDS)
