"""What placement costs, and how evenly it spreads people. By hand: `python -m tests.bench_placement [PEOPLE]`.

A cold look-up is the first of a name, a cached one the second; both by `Cluster.place()`, as a login does it. The least
of several rounds counts: whatever else the machine does only makes it slower. To be at 100 backends of one weight: 50
µs cold, 2 µs cached, and for a million people no backend with more than 1.03 times the average.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from proxy.model import Identity
from proxy.routing.cluster import Cluster
from proxy.routing.rendezvous import Member, Rendezvous
from proxy.settings.models import Backends, Routing

BACKENDS = 100
PEOPLE = 1_000_000
ROUNDS, NAMES = 10, 2000
WEIGHTS = {"all 1": [1], "1, 2 and 3 in turn": [1, 2, 3], "from 1 to 100": list(range(1, 101))}


def cluster(weights: list[int]) -> Cluster:
    servers = [
        {"name": f"dovecot-{number}", "url": f"imap://10.0.0.{number}", "weight": weights[number % len(weights)]}
        for number in range(BACKENDS)
    ]
    settings = {"servers": servers, "failover": "30s", "health": {"down_after": 1}}
    return Cluster(Backends.model_validate(settings), Routing(), 0.0)


def microseconds(made: Cluster, identities: Iterable[Identity], count: int) -> float:
    place = made.place
    began = time.perf_counter()
    for identity in identities:
        place(identity)
    return (time.perf_counter() - began) / count * 1e6


def look_ups(weights: list[int]) -> tuple[float, float, float, float]:
    """Microseconds of a look-up: cold, cold where the first choice has failed over, known but for the view, cached."""
    cold, substitute, next_view, cached = [], [], [], []
    for number in range(ROUNDS):
        people = [Identity(f"person{number}.{each}@example.org", "file") for each in range(NAMES)]
        made = cluster(weights)
        cold.append(microseconds(made, people, NAMES))
        cached.append(microseconds(made, people, NAMES))
        made.set_state("dovecot-0", "drain", 0.0)
        next_view.append(microseconds(made, people, NAMES))
        made = cluster(weights)
        half = [f"dovecot-{each}" for each in range(0, BACKENDS, 2)]
        theirs = [each for each in people if made.place(each).home in half]
        made = cluster(weights)
        for backend in half:
            made.checked(backend, 0.0, "refused")
        made.tick(30.0)
        substitute.append(microseconds(made, theirs, len(theirs)))
    return min(cold), min(substitute), min(next_view), min(cached)


def change_milliseconds() -> float:
    """What a change of one backend's state keeps the event loop busy for."""
    made = cluster([1])
    durations = []
    for number in range(ROUNDS):
        began = time.perf_counter()
        made.set_state(f"dovecot-{number}", "drain", 0.0)
        durations.append((time.perf_counter() - began) * 1e3)
    return min(durations)


def balance(people: int) -> tuple[float, float]:
    """The most and the least people on one of 100 backends, in terms of the average."""
    ring = Rendezvous((Member(f"dovecot-{number}") for number in range(BACKENDS)), cached_keys=1)
    homes = Counter(ring.first(f"person{number}@example.org") for number in range(people))
    average = people / BACKENDS
    return max(homes.values()) / average, min(homes[name] for name in homes) / average


def main(people: int) -> None:
    columns = ("weights", "cold", "cold, failed over", "after a change", "cached")
    table = Table(*columns, title=f"µs per Cluster.place() at {BACKENDS} backends, least of {ROUNDS} rounds")
    for name, weights in WEIGHTS.items():
        table.add_row(name, *(f"{each:.2f}" for each in look_ups(weights)))
    console = Console()
    console.print(table)
    console.print(f"a changed state: {change_milliseconds():.1f} ms")
    most, least = balance(people)
    console.print(f"{people} people: most {most:.4f}, least {least:.4f} of the average")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    main(int(sys.argv[1]) if len(sys.argv) == 2 else PEOPLE)
