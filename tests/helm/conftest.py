"""Both helms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.helm import Helm, require_helm


@pytest.fixture(params=[4, 3], ids=["helm4", "helm3"])
def helm(request: pytest.FixtureRequest, tmp_path: Path) -> Helm:
    return require_helm(request.param, tmp_path)


@pytest.fixture
def helm4(tmp_path: Path) -> Helm:
    """For what does not depend on its version."""
    return require_helm(4, tmp_path)
