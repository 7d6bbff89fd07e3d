"""The settings that the pages for movers show can be used, and place people as the programs before did."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from proxy.cli.check import check
from proxy.model import Identity
from proxy.routing.cluster import Cluster
from proxy.settings.loader import load

EXAMPLES = Path(__file__).resolve().parents[2] / "config" / "examples"
SETTINGS = sorted(path.name for path in EXAMPLES.glob("*.yaml"))


@pytest.fixture
def installed(folder: Path) -> Path:
    """A folder as an administrator has it, with the folder that systemd makes."""
    for example in SETTINGS:
        shutil.copy(EXAMPLES / example, folder)
        file = folder / example
        file.write_text(file.read_text().replace("/run/imap-porter/", f"{folder}/"))
    for name in ("auth.key", "probe.password"):
        (folder / name).write_text("s3cret\n")
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_check_finds_no_mistakes(installed: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(installed / name, False) == 0
    out, err = capsys.readouterr()
    assert out.endswith(f"{name}: no mistakes\n")
    assert err == ""


def home(settings_file: Path, name: str, named: str | None = None) -> str:
    settings = load(settings_file)
    placement = Cluster(settings.backends, settings.routing, 0.0).place(Identity(name, "backend", named))
    assert not placement.problem
    return placement.home


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("boss@example.org", "mail-2"),
        ("ann@gold.example", "mail-2"),
        ("ann@example.org", "mail-1"),
        ("ann@elsewhere.example", "mail-1"),
        ("ann", "mail-1"),
    ],
)
def test_perdition_users_stay_where_they_are(installed: Path, name: str, backend: str) -> None:
    assert home(installed / "perdition.yaml", name) == backend


@pytest.mark.parametrize(("server", "backend"), [("10.0.0.11:143", "mail-1"), ("10.0.0.12:143", "mail-2")])
def test_what_the_service_says_is_a_backend(installed: Path, server: str, backend: str) -> None:
    assert home(installed / "nginx-mail.yaml", "ann", server) == backend


def test_overrides_hold_what_the_director_said(installed: Path) -> None:
    assert home(installed / "dovecot-director.yaml", "alice@example.org") == "mail-1"
    assert home(installed / "dovecot-director.yaml", "bob@example.org") == "mail-2"
