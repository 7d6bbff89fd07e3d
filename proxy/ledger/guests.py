"""The sessions of all workers, as the steward lists them: by session, by worker, by user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice

from proxy.ledger.resident import Stage, Why


@dataclass(slots=True, eq=False)
class Guest:
    """A session that lives in some worker."""

    id: str
    name: str  # canonical
    client: str
    listener: str
    worker: str
    since: float  # as time.monotonic() has it, which is one clock for all processes of a host
    backend: str = ""  # "": it waits to be admitted
    stage: Stage = Stage.TRYING
    why: Why = "hash"  # of its placement
    verified: bool = True

    @property
    def address(self) -> str:
        """Of the client, as it is written."""
        return self.client.rpartition(":")[0].strip("[]")


class Guests:
    """Who there is. Whoever adds guests bounds their number: workers have only so many connections."""

    def __init__(self) -> None:
        self._by_id: dict[str, Guest] = {}
        self._by_worker: dict[str, dict[str, Guest]] = {}
        self._by_name: dict[str, dict[str, Guest]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Guest]:
        return iter(self._by_id.values())

    def add(self, guest: Guest) -> None:
        """He is there; whoever had the same id is not any more."""
        self.remove(guest.id)
        self._by_id[guest.id] = guest
        _put(self._by_worker, guest.worker, guest)
        _put(self._by_name, guest.name, guest)

    def get(self, session_id: str) -> Guest | None:
        return self._by_id.get(session_id)

    def remove(self, session_id: str) -> Guest | None:
        """He is gone; one that was not there is no mistake."""
        guest = self._by_id.pop(session_id, None)
        if guest is not None:
            _take(self._by_worker, guest.worker, guest)
            _take(self._by_name, guest.name, guest)
        return guest

    def gone(self, worker: str) -> list[Guest]:
        """A worker has died, and all its guests with it; gives them."""
        guests = list(self._by_worker.pop(worker, {}).values())
        for guest in guests:
            del self._by_id[guest.id]
            _take(self._by_name, guest.name, guest)
        return guests

    def all_of(self, worker: str) -> list[Guest]:
        """All that a worker has."""
        return list(self._by_worker.get(worker, {}).values())

    def count(self, worker: str) -> int:
        """How many a worker has."""
        return len(self._by_worker.get(worker, ()))

    # --- for lists: never more than can be shown, in the order of their coming ---

    @property
    def users(self) -> int:
        """How many users have any."""
        return len(self._by_name)

    def crowds(self, most: int) -> list[tuple[str, int]]:
        """Users and how many they have, those with the most first."""
        counts = ((name, len(guests)) for name, guests in self._by_name.items())
        return nsmallest(most, counts, key=lambda each: (-each[1], each[0]))

    def search(
        self,
        *,
        user: str | None = None,
        backend: str | None = None,
        address: str | None = None,
        listener: str | None = None,
        worker: str | None = None,
        after: str | None = None,
        most: int,
    ) -> tuple[list[Guest], int]:
        """Those to whom all that is given applies, by id; and how many these are.

        Args:
            address: Of the client, without its port.
            after: Those behind this id alone, whether or not it is there: pages stay whole while guests come and go.
            most: At most so many.
        """
        there: Iterable[Guest] = self._by_id.values()
        if user is not None:
            there = self._by_name.get(user, {}).values()
        elif worker is not None:
            there = self._by_worker.get(worker, {}).values()
        found = [
            guest
            for guest in there
            if (backend is None or guest.backend == backend)
            and (worker is None or guest.worker == worker)
            and (listener is None or guest.listener == listener)
            and (address is None or guest.address == address)
        ]
        total = len(found)
        if after is not None:
            found = [guest for guest in found if guest.id > after]
        return nsmallest(most, found, key=lambda guest: guest.id), total

    def first(self, most: int) -> list[Guest]:
        """Some of all."""
        return list(islice(self._by_id.values(), most))

    def named(self, name: str, most: int) -> list[Guest]:
        """Those of one user."""
        return list(islice(self._by_name.get(name, {}).values(), most))

    def of_worker(self, worker: str, most: int) -> list[Guest]:
        """Those of one worker."""
        return list(islice(self._by_worker.get(worker, {}).values(), most))

    def at(self, backend: str, most: int) -> list[Guest]:
        """Those at one backend. This one looks at all guests until it has found so many."""
        return list(islice((guest for guest in self._by_id.values() if guest.backend == backend), most))


def by_worker(session_ids: Iterable[str], guests: Guests) -> dict[str, list[str]]:
    """Whom to ask about these sessions; those that are gone are left out."""
    asked: dict[str, list[str]] = {}
    for session_id in session_ids:
        guest = guests.get(session_id)
        if guest is not None:
            asked.setdefault(guest.worker, []).append(session_id)
    return asked


def _put(index: dict[str, dict[str, Guest]], key: str, guest: Guest) -> None:
    index.setdefault(key, {})[guest.id] = guest


def _take(index: dict[str, dict[str, Guest]], key: str, guest: Guest) -> None:
    there = index[key]
    del there[guest.id]
    if not there:
        del index[key]
