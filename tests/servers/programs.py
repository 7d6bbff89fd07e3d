"""Programs that the tests drive: where they are, and the skip where they are not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODE_MODULES = ROOT / ".make" / "npm" / "node_modules"
# An ordinary user's PATH leaves the servers' folders out.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def require(program: str) -> str:
    """The program's path; the test skips where it is not installed."""
    found = shutil.which(program, path=SEARCH_PATH)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def require_node_module(name: str) -> Path:
    """The folder for NODE_PATH; the test skips where the package is not installed there."""
    if not (NODE_MODULES / name).is_dir():
        pytest.skip(f"npm package {name} is not installed")
    return NODE_MODULES
