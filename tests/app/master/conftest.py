from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.app.master.stage import Caller, Mastered
from tests.servers.ports import LOOPBACK, Ports


@pytest.fixture
def port() -> Iterator[int]:
    ports = Ports()
    yield ports.take()
    ports.close()


@pytest.fixture
def ports() -> Iterator[Ports]:
    ports = Ports()
    yield ports
    ports.close()


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Callable[..., Mastered]]:
    """Starts masters that do not survive the test."""
    started: list[Mastered] = []

    def start(*arguments: object, **options: object) -> Mastered:
        started.append(Mastered(tmp_path, *arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def call() -> Iterator[Callable[[int | str], Caller]]:
    """Connects to a port, or to a unix socket."""
    callers: list[Caller] = []

    def connect(where: int | str) -> Caller:
        callers.append(Caller(where if isinstance(where, str) else (LOOPBACK, where)))
        return callers[-1]

    yield connect
    for caller in callers:
        caller.close()
