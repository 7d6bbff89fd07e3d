"""The units in config/, as systemd reads them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.servers.programs import require

CONFIG = Path(__file__).resolve().parents[3] / "config"
pytestmark = pytest.mark.server


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """With a program and a user that there are on this machine."""
    for name in ("imap-porter.service", "imap-porter.socket"):
        text = (CONFIG / name).read_text()
        text = text.replace("ExecStart=/usr/bin/imap-porter", "ExecStart=/bin/true").replace("User=imap", "#User=imap")
        (tmp_path / name).write_text(text)
    return [str(path) for path in sorted(tmp_path.iterdir())]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [require("systemd-analyze"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_they_make_sense(units: list[str]) -> None:
    done = analyze("verify", "--man=no", *units)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_sandbox_is_tight(units: list[str]) -> None:
    """At most 3.0 of 10 as it stands here: without the user, which counts for 0.4."""
    done = analyze("security", "--offline=yes", "--threshold=30", "--no-pager", units[0])
    assert done.returncode == 0, done.stdout
