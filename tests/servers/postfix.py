"""Postfix's own client of lookup tables, `postmap -q`: the code by which Postfix itself asks them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.servers.ports import LOOPBACK
from tests.servers.programs import require

# Without a level it warns on standard error that there is none.
CONFIGURATION = "compatibility_level = 3.6\n"


@dataclass(frozen=True)
class Lookup:
    """What a table said of a key."""

    value: str | None  # None: the key is not in it
    problem: str = ""  # why Postfix could not look it up, and so would have the mail wait


@dataclass(frozen=True)
class Postmap:
    """Looks keys up as a Postfix with an empty main.cf does. No server runs."""

    folder: Path

    def look_up(self, key: str, port: int, table: str = "route", host: str = LOOPBACK) -> Lookup:
        """One key, over a connection of its own."""
        done = self._run(key, host, port, table, "")
        if done.stderr:
            return Lookup(None, done.stderr)
        return Lookup(done.stdout.removesuffix("\n") if done.returncode == 0 else None)

    def look_up_all(self, keys: list[str], port: int) -> dict[str, str]:
        """Many keys over one connection: those that are there, with their values."""
        done = self._run("-", LOOPBACK, port, "route", "".join(f"{key}\n" for key in keys))
        if done.stderr:
            raise RuntimeError(done.stderr)
        return dict(line.split("\t", 1) for line in done.stdout.splitlines())

    def _run(self, key: str, host: str, port: int, table: str, given: str) -> subprocess.CompletedProcess[str]:
        command = [require("postmap"), "-c", str(self.folder), "-q", key, f"socketmap:inet:{host}:{port}:{table}"]
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)


def write_postmap(folder: Path) -> Postmap:
    """Write all that it needs into `folder`."""
    require("postmap")
    folder.mkdir()
    main = folder / "main.cf"
    main.write_text(CONFIGURATION)
    os.utime(main, (0, 0))  # one that has just changed Postfix reads again until it stays the same, seconds later
    return Postmap(folder)
