"""What the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.auth.names import NameRules
from proxy.auth.passwords import Parameters, hash_password
from proxy.settings.models import Names

CHEAP = Parameters(memory_kib=8, time=1, parallelism=1)


@pytest.fixture
def rules() -> NameRules:
    return NameRules(Names(default_domain="example.org"))


@pytest.fixture(scope="session")
def cheap_hash() -> Callable[[bytes], str]:
    """Hashes that cost next to nothing."""
    return lambda secret: hash_password(secret, CHEAP)


@pytest.fixture
def users_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes users.yaml."""

    def write(text: str) -> Path:
        path = tmp_path / "users.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
