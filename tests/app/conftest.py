"""A server for the members of a fleet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.own_valkey import run_valkey
from tests.servers.valkey import Valkey


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    yield from run_valkey()
