"""Administrators who look on: what the steward asks the workers for them, and what workers tell him while they do.

Nothing here is of any need for mail, and nobody waits for it: who is behind is asked and told the less.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import trio

from proxy.admin.events import Hub, Kind
from proxy.app.informant import OCTETS_OF_A_COMMAND
from proxy.app.inquiries import Inquiries
from proxy.app.marks import Marks
from proxy.app.registry import Registry
from proxy.app.traces import Traces
from proxy.app.worker_link import WorkerLink
from proxy.ledger.guests import Guest
from proxy.ledger.resident import Stage
from proxy.observe.log import Level
from proxy.observe.metrics import METRICS
from proxy.outcome import Outcome
from proxy.routing.cluster import BackendEvent
from proxy.transport.packets import Message, slices

_FIRST_SECONDS = 1.2
_OURS = frozenset({"time", "kind", "event"})  # of an event, whatever another version's worker calls his values
_NAMES_AT_ONCE = 100  # directions that fit into one packet, however long their reasons are
_MOST_ENDS = 1000  # of sessions that a worker took along, that are told one by one


class Onlookers:
    """What is asked and watched, over all workers."""

    def __init__(self, links: Mapping[str, WorkerLink], registry: Registry, level: Level) -> None:
        """Args:
        links: Those of all workers, by name; read whenever there is something to say.
        level: How much is logged until somebody says otherwise; workers may remember another steward's.
        """
        self.hub = Hub()
        self.inquiries = Inquiries(links)
        self.traces = Traces(links)
        self._links, self._registry = links, registry
        self._level = level
        self._commands = Marks[dict[str, int]]()
        self.hub.on_wanted = self._tell_wanted
        registry.on_directions = self._tell_directions

    # --- what all workers have to know ---

    def greet(self, link: WorkerLink) -> None:
        """There is a worker, and he is new, or it is we who are."""
        link.post(["watch", sorted(self.hub.wanted)])  # or nothing: he may have been watched by another steward
        link.post(["log_level", self._level])
        self.traces.tell(link)

    def tell_all_directions(self, link: WorkerLink) -> None:
        """He has reported what he knows; from now on he knows what we know."""
        link.post(["undirected", None])
        for told in slices(self._registry.directions.memory(), _NAMES_AT_ONCE):
            link.post(["directions", told])

    def set_log_level(self, level: Level) -> None:
        """Have all workers log so much, and those that come."""
        self._level = level
        for link in self._links.values():
            link.post(["log_level", level])

    def _tell_wanted(self) -> None:
        for link in self._links.values():
            link.post(["watch", sorted(self.hub.wanted)])

    def _tell_directions(self, names: list[str]) -> None:
        memory = self._registry.directions.memory(names)
        for link in self._links.values():
            for some in slices(names, _NAMES_AT_ONCE):
                link.post(["undirected", some])
            for told in slices(memory, _NAMES_AT_ONCE):
                link.post(["directions", told])

    # --- what happens ---

    def told(self, _link: WorkerLink, message: Message) -> None:
        """Something has happened at a worker that somebody may want to know."""
        match message:
            case [_, str(kind), str(event), dict(values), *_] if kind in self.hub.wanted:
                known = {key: value for key, value in values.items() if key not in _OURS}
                self.hub.publish(Kind(kind), event, **known)

    def turned(self, event: BackendEvent) -> None:
        """A backend is not what it was."""
        self.hub.publish(Kind.BACKEND, f"backend.{event.kind}", backend=event.backend, reason=event.reason)

    def opened(self, guest: Guest) -> None:
        """A session's backend has let it in."""
        if Kind.SESSION in self.hub.wanted:
            self.hub.publish(
                Kind.SESSION,
                "session.opened",
                id=guest.id,
                user=guest.name,
                client=guest.client,
                listener=guest.listener,
                backend=guest.backend,
                worker=guest.worker,
            )

    def lost(self, guests: Iterable[Guest]) -> None:
        """A worker has died, and these with it."""
        if Kind.SESSION not in self.hub.wanted:
            return
        now = time.monotonic()
        for guest in islice((each for each in guests if each.stage is Stage.OPENED), _MOST_ENDS):
            self.hub.publish(
                Kind.SESSION,
                "session.closed",
                id=guest.id,
                user=guest.name,
                client=guest.client,
                backend=guest.backend,
                outcome=Outcome.WORKER_LOST,
                seconds=round(now - guest.since, 3),
            )

    # --- who does most ---

    async def top(self, most: int) -> dict[str, Any]:
        """Rates of the last seconds, over all workers: users, backends, commands."""
        commands = self._command_rates()
        told = await self.inquiries.ask("top", most)
        if any(not answer.get("seconds") for answer in told.values() if isinstance(answer, dict)):
            await trio.sleep(_FIRST_SECONDS)  # nobody has asked for a while: they have begun to count just now
            told = await self.inquiries.ask("top", most)
            commands = self._command_rates()
        users: dict[str, list[float]] = {}
        backends: dict[str, list[float]] = {}
        longest = 0.0
        for answer in told.values():
            match answer:
                case {"seconds": int() | float() as seconds, "users": list(some), "backends": list(others)}:
                    longest = max(longest, seconds)
                    _add(users, some, seconds)
                    _add(backends, others, seconds)
        busiest = sorted(users.items(), key=lambda each: (-_busyness(each[1]), each[0]))
        return {
            "seconds": round(longest, 3),
            "users": [{"user": name, **_rates(row)} for name, row in busiest[:most]],
            "backends": [{"backend": name, **_rates(row)} for name, row in sorted(backends.items())],
            "commands": commands,
        }

    def _command_rates(self) -> list[dict[str, Any]]:
        METRICS.flush()
        series = METRICS.look("porter_command_duration_seconds")[1]
        now, counts = time.monotonic(), {labels[0]: sum(value[0]) for labels, value in series}
        begun = self._commands.since(now)
        self._commands.put(now, counts)
        if begun is None:
            return []
        seconds, before = begun
        rates = [
            {"command": name, "per_second": round((count - before.get(name, 0)) / seconds, 2)}
            for name, count in counts.items()
            if count > before.get(name, 0)
        ]
        return sorted(rates, key=lambda each: (-float(each["per_second"]), str(each["command"])))


def _add(rows: dict[str, list[float]], told: Iterable[Any], seconds: float) -> None:
    """Sessions, and what was counted by second."""
    for each in told:
        match each:
            case [str(name), int(sessions), int(commands), int(up), int(down)]:
                row = rows.setdefault(name, [0, 0.0, 0.0, 0.0])
                row[0] += sessions
                for index, count in enumerate((commands, up, down), start=1):
                    row[index] += count / seconds if seconds else 0.0


def _busyness(row: list[float]) -> float:
    _, commands, up, down = row
    return commands * OCTETS_OF_A_COMMAND + up + down


def _rates(row: list[float]) -> dict[str, Any]:
    sessions, commands, up, down = row
    return {
        "sessions": int(sessions),
        "commands_per_second": round(commands, 2),
        "octets_per_second_up": round(up),
        "octets_per_second_down": round(down),
    }
