"""A log that can be read back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy.observe import log

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def logged() -> Iterator[Lines]:
    """What was logged since the test began; to be called once."""
    descriptor = os.memfd_create("log")
    sink = log.configure("json", "warning", descriptor=descriptor)

    def read() -> list[dict[str, Any]]:
        assert sink.close(5)
        return [json.loads(line) for line in os.pread(descriptor, 1 << 20, 0).splitlines()]

    yield read
    log.restore()
    os.close(descriptor)
