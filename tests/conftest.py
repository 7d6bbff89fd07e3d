"""What all tests share: server tests that cannot run are counted aloud, and under CI they fail."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.servers.own_valkey import run_valkey
from tests.servers.valkey import Valkey

# Two busy cores make any deadline for a single example a matter of luck.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

UNDER_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bare",
        action="store_true",
        help="aim the mail clients straight at a Dovecot: tells a client that is broken from a proxy that is",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if UNDER_CI and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("server"):
        report.outcome = "failed"
        report.longrepr = f"a server test must not be skipped under CI: {_reason(report)}"
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """The very last line: how many server tests did not run, and why."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    skipped = [report for report in reporter.stats.get("skipped", []) if "server" in report.keywords]
    if skipped:
        reasons = Counter(map(_reason, skipped))
        listed = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        reporter.write_line(f"{len(skipped)} server tests skipped: {listed}")


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    """What drives browsers; of its kind there can be one in a process."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def own_valkey() -> Iterator[Valkey]:
    """A server for members of a fleet that are no processes."""
    yield from run_valkey()


@pytest.fixture
def valkey(own_valkey: Valkey) -> Valkey:
    """It has been emptied."""
    own_valkey.ask("FLUSHALL")
    return own_valkey
