"""Sessions to relay."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from proxy.relay.engine import Engine
from proxy.relay.partings import Partings
from tests.relay.stage import Splicer


@pytest.fixture
async def splice(nursery: trio.Nursery) -> AsyncIterator[Splicer]:
    engine, partings = Engine(), Partings(10.0, trio.current_time, lambda: 0.5)
    nursery.start_soon(engine.run)
    nursery.start_soon(partings.run)
    splicer = Splicer(engine, partings)
    yield splicer
    splicer.close()
