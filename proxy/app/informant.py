"""What a worker tells of its sessions when the steward asks, for administrators who look on."""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import nlargest
from itertools import islice
from typing import Any

from proxy.app.marks import Marks
from proxy.imap.observer import State
from proxy.relay.splice import Splice
from proxy.session.house import House

_ACTIVITIES = {
    State.BETWEEN_COMMANDS: "between",
    State.IN_IDLE: "idle",
    State.BUSY: "busy",
    State.BLIND: "blind",
}
_MOST_FAILURES = 50
OCTETS_OF_A_COMMAND = 16384  # of two users one is as busy with so many

_Counts = tuple[int, int, int]  # commands, octets up, octets down


class Informant:
    """Answers by the names of the questions. An answer is JSON; None: there is nothing to tell."""

    def __init__(self, house: House, clock: Callable[[], float] = time.monotonic) -> None:
        self._house = house
        self._clock = clock
        self._marks = Marks[dict[str, _Counts]]()  # of all sessions
        self._answers: dict[str, Callable[..., Any]] = {
            "session": self._session,
            "top": self._top,
            "limits": house.meters.left,
            "failures": self._failures,
        }

    def answer(self, what: str, arguments: list[Any]) -> Any:
        """One question's answer. What nobody knows here, or asks in another way, is None."""
        ask = self._answers.get(what)
        try:
            return None if ask is None else ask(*arguments)
        except TypeError:  # another version's question
            return None

    def _session(self, session_id: str) -> dict[str, Any] | None:
        carried = self._house.engine.find(session_id)
        if not isinstance(carried, Splice):
            return None
        session = carried.session
        commands, up, down = _counted(carried)
        return {
            "mechanism": session.mechanism,
            "source": session.source,
            "secure": session.secure,
            "commands": commands,
            "octets_up": up,
            "octets_down": down,
            "activity": _ACTIVITIES[carried.observer.state],
        }

    def _top(self, most: int) -> dict[str, Any]:
        """What users and backends have done lately, so many of the busiest users; `seconds` is 0 where that is not
        known yet, and soon will be.

        Each is [name, sessions, commands, octets up, octets down]. What sessions did that have ended since is lost.
        """
        now = self._clock()
        begun = self._marks.since(now)
        counts: dict[str, _Counts] = {}
        users: dict[str, list[int]] = {}
        backends: dict[str, list[int]] = {}
        for carried in self._house.engine.sessions:
            if not isinstance(carried, Splice):
                continue
            counted = counts[carried.id] = _counted(carried)
            of_user = users.setdefault(carried.session.name, [0, 0, 0, 0])
            of_backend = backends.setdefault(carried.session.backend, [0, 0, 0, 0])
            of_user[0] += 1
            of_backend[0] += 1
            # One that has begun meanwhile has done all of it since.
            if begun is not None and counted != (old := begun[1].get(carried.id, (0, 0, 0))):
                for index in range(3):
                    of_user[index + 1] += counted[index] - old[index]
                    of_backend[index + 1] += counted[index] - old[index]
        self._marks.put(now, counts)
        busiest = nlargest(most, users.items(), key=lambda each: (_weight(each[1]), each[0]))
        return {
            "seconds": 0.0 if begun is None else begun[0],
            "users": [[name, *row] for name, row in busiest],
            "backends": [[name, *row] for name, row in backends.items()],
        }

    def _failures(self, name: str) -> list[dict[str, Any]]:
        found = (failure.document() for failure in reversed(self._house.refusals) if name in failure.names)
        return list(islice(found, _MOST_FAILURES))


def _counted(carried: Splice) -> _Counts:
    return carried.observer.answered, carried.bytes_from_client, carried.bytes_from_backend


def _weight(row: list[int]) -> int:
    """How busy somebody is."""
    _, commands, up, down = row
    return commands * OCTETS_OF_A_COMMAND + up + down
