"""What a fleet costs a login. By hand, on a machine that does nothing else:

    python -m tests.measure_fleet FOLDER [--rounds 5] [--json]

FOLDER holds `imapload` and `imapsink`, a load generator and a cheap backend. CPU of all the proxy's processes per
login, and that of the server, beside the same proxy that stands for itself. Two workers; both take turns in one run:
figures of one run compare, others don't. All logins of a run are of one user each, who comes and goes.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.measure_watching import PIECES, WARM_UP, Stage, cpu_ns, log_in, serving, spread, staged
from tests.servers.valkey import write_valkey

KINDS = ("alone", "in a fleet")


def measure(stage: Stage) -> dict[str, Any]:
    """Microseconds of CPU per login."""
    chosen = stage.chosen
    task = stage.task("a login", PIECES * chosen.rounds)
    costs: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "server")}
    valkey = write_valkey(stage.scratch / "valkey", stage.pki, stage.ports)
    with ExitStack() as whole:
        whole.callback(valkey.stop)
        valkey.start()
        for number in range(chosen.rounds):
            with ExitStack() as stack:
                ports = {}
                for kind in KINDS:
                    settings, taken = stage.settings()
                    if kind == "in a fleet":
                        password = {"file": str(valkey.password_file)}
                        settings["fleet"] = {"valkey": valkey.url, "password": password, "name": f"round-{number}"}
                    home = stage.scratch / f"{kind}-{number}"
                    process_id = stack.enter_context(serving("proxy", home, settings, taken))
                    ports[kind] = process_id, taken["imaps"]
                    log_in(stage.folder, taken["imaps"], WARM_UP)
                pieces: dict[str, list[float]] = {kind: [] for kind in costs}
                for piece in range(PIECES):
                    for kind in KINDS[:: 1 if piece % 2 else -1]:
                        process_id, port = ports[kind]
                        logins = chosen.logins // PIECES
                        before, server_before = cpu_ns(process_id), cpu_ns(valkey.process_id)
                        log_in(stage.folder, port, logins)
                        pieces[kind].append((cpu_ns(process_id) - before) / logins / 1e3)
                        if kind == "in a fleet":
                            pieces["server"].append((cpu_ns(valkey.process_id) - server_before) / logins / 1e3)
                    stage.progress.advance(task)
            for kind, values in pieces.items():
                costs[kind].append(fmean(values))
    return {"rounds": chosen.rounds, "login_us": costs}


def show(measured: dict[str, Any]) -> None:
    """A table."""
    costs = measured["login_us"]
    table = Table("", "median (middle half of the rounds)", title=f"{measured['rounds']} rounds")
    for kind in KINDS:
        table.add_row(f"CPU per login, µs, {kind}", spread(costs[kind]))
    more = [one - other for one, other in zip(costs[KINDS[1]], costs[KINDS[0]], strict=True)]
    table.add_row("  the fleet, µs", spread(more))
    table.add_row("the server's CPU per login, µs", spread(costs["server"], 1))
    Console().print(table)


def main() -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logins", type=int, default=5000, help="of each in a round")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with staged(chosen) as stage:
        measured = measure(stage)
    if chosen.json:
        json.dump(measured, sys.stdout)
    else:
        show(measured)


if __name__ == "__main__":
    main()
