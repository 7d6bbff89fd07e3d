"""The console in front of a real proxy with two backends: what is clicked comes to pass, and what happens is seen."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.auth.passwords import Parameters, hash_password
from tests.console.conftest import OpenPage
from tests.console.fake_api import OPERATOR, VIEWER
from tests.servers.pki import Pki, write_pki
from tests.servers.porter import Porter, porter_settings, wait_for
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.wire import Wire

pytestmark = pytest.mark.server

NAMES = ("d1", "d2")
SPEEDY = Parameters(memory_kib=8, time=1, parallelism=1)


@pytest.fixture(scope="module")
def sinks(console_ports: Ports) -> Iterator[dict[str, str]]:
    """Two cheap backends that let everybody in."""
    ports = {name: console_ports.take() for name in NAMES}
    command = [sys.executable, "-m", "tests.servers.sink"]
    root = Path(__file__).resolve().parents[2]
    running = [subprocess.Popen([*command, str(port)], cwd=root) for port in ports.values()]
    try:
        wait_until_listening(set(ports.values()), 20, lambda: None)
        yield {name: f"imap://{LOOPBACK}:{port}" for name, port in ports.items()}
    finally:
        for each in running:
            each.kill()
            each.wait()


@pytest.fixture(scope="module")
def pki() -> Iterator[Pki]:
    with tempfile.TemporaryDirectory(prefix="imap-porter-") as folder:
        yield write_pki(Path(folder) / "pki")


@pytest.fixture
def stage(sinks: dict[str, str], pki: Pki, console_ports: Ports, tmp_path: Path) -> Iterator[Stage]:
    settings, ports = porter_settings(pki, sinks, console_ports)
    ports["admin"] = console_ports.take()
    tokens = [
        {"name": role, "role": role, "hash": hash_password(token.encode(), SPEEDY)}
        for role, token in (("operator", OPERATOR), ("viewer", VIEWER))
    ]
    settings["admin"] = {"address": f"{LOOPBACK}:{ports['admin']}", "tokens": tokens}
    porter = Porter(tmp_path, settings, pki, ports)
    stage = Stage(porter, pki, ports["admin"])
    try:
        yield stage
        stage.leave()
        porter.stop()
    finally:
        porter.kill()


class Stage:
    """A proxy, and clients that stay."""

    def __init__(self, porter: Porter, pki: Pki, admin_port: int) -> None:
        self.porter = porter
        self.url = f"http://{LOOPBACK}:{admin_port}"
        self._context = pki.client_context()
        self._clients = contextlib.ExitStack()

    def log_in(self, name: str) -> Wire:
        wire = self._clients.enter_context(Wire.connect(self.porter.imaps_port, self._context))
        assert wire.command(f"LOGIN {name} any-pass".encode())[-1].split()[1] == b"OK"
        return wire

    def leave(self) -> None:
        self._clients.close()

    def ask(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}/v1/{path}", headers={"Authorization": f"Bearer {VIEWER}"})
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def backend(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in self.ask("backends")["backends"] if each["name"] == name)
        return found

    def home(self, user: str) -> str:
        [session] = self.ask(f"sessions?user={user}")["sessions"]
        return str(session["backend"])


def until(what: Callable[[], bool]) -> None:
    assert wait_for(what, 15)


def test_a_drain_moves_sessions(stage: Stage, open_page: OpenPage, shots: Path) -> None:
    wires = {name: stage.log_in(name) for name in (f"user{number}@example.org" for number in range(6))}
    at_d1 = [name for name in wires if stage.home(name) == "d1"]
    assert at_d1, "the hash places none of six users at d1"
    page = open_page(stage.url)
    page.get_by_role("button", name="Drain d1").click()
    dialog = page.get_by_role("dialog", name="Drain d1")
    assert f"{len(at_d1)} users" in dialog.inner_text() or f"{len(at_d1)} user " in dialog.inner_text()
    dialog.get_by_label("are moved within").check()
    dialog.get_by_label("how long").fill("1")
    dialog.get_by_label("unit").select_option("seconds")
    dialog.get_by_label("Reason").fill("new disks")
    dialog.get_by_role("button", name="Drain").click()
    dialog.wait_for(state="detached")
    until(lambda: stage.backend("d1")["state"] == "drain" and stage.backend("d1")["sessions"] == 0)
    for name in at_d1:
        assert wires[name].line().startswith(b"* BYE Your mailbox is being moved")
        stage.log_in(name)
    assert stage.backend("d2")["sessions"] == len(wires)
    row = page.get_by_role("row").filter(has=page.get_by_text("d1", exact=True))
    row.get_by_text("draining").wait_for()
    page.screenshot(path=shots / "real-drain.png", full_page=True)
    page.goto(f"{stage.url}/#/audit")
    page.get_by_role("row").filter(has_text="new disks").wait_for()
    page.goto(f"{stage.url}/#/overview")
    page.get_by_role("button", name="Undrain d1").click()
    page.get_by_label("Reason").fill("disks are in")
    page.keyboard.press("Enter")
    until(lambda: stage.backend("d1")["state"] == "up")
    changed = stage.porter.wait_for_log("admin.changed", 2)
    assert [line["reason"] for line in changed] == ["new disks", "disks are in"]


def test_a_session_is_kicked_and_events_are_seen_live(stage: Stage, open_page: OpenPage) -> None:
    events = open_page(stage.url, "events")
    events.locator(".tag.good").wait_for()
    wire = stage.log_in("alice@example.org")
    opened = events.locator(".events li").filter(has_text="session.opened")
    opened.get_by_text("alice@example.org").wait_for()
    page = open_page(stage.url, "sessions?user=alice%40example.org")
    page.get_by_role("button", name="Details of alice").click()
    page.get_by_role("dialog").get_by_text("TLS").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Kick the session of alice").click()
    page.get_by_label("Reason").fill("stolen phone")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for(state="detached")
    assert wire.line().startswith(b"* BYE Disconnected by the administrator")
    until(lambda: stage.ask("sessions")["total"] == 0)
    closed = events.locator(".events li").filter(has_text="session.closed")
    closed.get_by_text("kicked").wait_for()
    events.locator(".events li").filter(has_text="stolen phone").wait_for()


def test_all_views_have_answers(stage: Stage, open_page: OpenPage, shots: Path) -> None:
    """The fake proxy says what the real one does."""
    stage.log_in("alice@example.org")
    page = open_page(stage.url)
    page.locator(".chart .big").first.filter(has_text="0").wait_for()
    for view in ("overview", "sessions", "explain/alice%40example.org", "limits", "settings"):
        page.goto(f"{stage.url}/#/{view}")
        page.locator("#view tbody tr").first.wait_for()
        assert page.get_by_role("alert").locator("visible=true").count() == 0, view
        page.screenshot(path=shots / f"real-{view.partition('/')[0]}.png", full_page=True)


def test_a_viewer_looks_on(stage: Stage, open_page: OpenPage) -> None:
    page = open_page(stage.url, token=VIEWER)
    page.locator("tbody tr").first.wait_for()
    assert page.locator("#role").inner_text() == "viewer"
    assert page.get_by_role("button", name="Drain").count() == 0
