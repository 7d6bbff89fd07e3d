from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from proxy.observe import log


class Recording(Protocol):
    """A configured log whose lines can be read back once they are written."""

    def lines(self) -> list[bytes]: ...
    def objects(self) -> list[dict[str, Any]]: ...


class FileLog:
    def __init__(self, format: log.Format, level: log.Level) -> None:
        self._descriptor = os.memfd_create("log")
        self._sink = log.configure(format, level, descriptor=self._descriptor)

    def lines(self) -> list[bytes]:
        """Close the sink and give every line without its LF."""
        assert self._sink.close(5)
        data = os.pread(self._descriptor, 1 << 24, 0)
        assert not data or data.endswith(b"\n")
        return data.split(b"\n")[:-1]

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def close(self) -> None:
        log.restore()
        os.close(self._descriptor)


@pytest.fixture
def record() -> Iterator[Callable[..., Recording]]:
    logs: list[FileLog] = []

    def start(format: log.Format = "json", level: log.Level = "info") -> Recording:
        logs.append(FileLog(format, level))
        return logs[-1]

    yield start
    for started in logs:
        started.close()
