"""A Redis of its own for tests without processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from proxy.settings.models import Fleet
from tests.servers.pki import write_pki
from tests.servers.ports import Ports
from tests.servers.programs import require
from tests.servers.valkey import Valkey, write_valkey


def run_valkey() -> Iterator[Valkey]:
    """For a fixture of as wide a scope as one likes; the test skips where none is installed."""
    require("redis-server")
    require("redis-cli")
    ports = Ports()
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        pki = write_pki(Path(folder) / "pki")
        server = write_valkey(Path(folder) / "server", pki, ports)
        server.start()
        try:
            yield server
        finally:
            server.stop()
            ports.close()


def fleet_settings(server: Valkey, **changes: Any) -> Fleet:
    """How a member gets there."""
    return Fleet.model_validate({"valkey": server.url, "password": {"file": str(server.password_file)}, **changes})


async def ask(server: Valkey, *words: str) -> str:
    """What `redis-cli` prints, while other tasks go on."""
    return await trio.to_thread.run_sync(server.ask, *words)
