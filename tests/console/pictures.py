"""The pictures of docs/console.md: `python -m tests.console.pictures docs` takes them anew from the fake proxy."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.console.fake_api import OPERATOR, FakeServer
from tests.console.small_png import small
from tests.servers.ports import Ports
from tests.servers.programs import require

FIVE_MINUTES = """async () => {
  const { watch } = await import("/console/watch.js");
  for (let step = 0; step < 150; step += 1) await watch.look();
}"""
_HEIGHT = 760
_WHOLE = ("overview", "explain")


def main(folder: Path) -> None:
    """Take them all."""
    ports = Ports()
    server = FakeServer(ports.take())
    server.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=require("chromium"), args=["--no-sandbox"])
            take = _Camera(browser, server, folder)
            take("overview", "overview", "light")
            take("explain", "explain/alice%40example.org", "dark", before=_trace)
            take("drain", "overview", "light", before=_drain)
            take("events", "events", "dark", before=_events)
            take("phone", "sessions", "light", width=390)
            browser.close()
    finally:
        server.stop()
        ports.close()


class _Camera:
    def __init__(self, browser: Any, server: FakeServer, folder: Path) -> None:
        self._browser, self._server, self._folder = browser, server, folder
        server.proxy.sessions = [each for each in server.proxy.sessions if "<" not in each["user"]]

    def __call__(self, name: str, view: str, theme: str, *, width: int = 1280, before: Any = None) -> None:
        size = {"width": width, "height": _HEIGHT}
        page = self._browser.new_page(viewport=size, color_scheme=theme, reduced_motion="reduce")
        page.goto(f"{self._server.url}/#/{view}")
        page.get_by_label("Token").fill(OPERATOR)
        page.keyboard.press("Enter")
        page.locator("#title").wait_for()
        page.evaluate(FIVE_MINUTES)
        if before is not None:
            before(page, self._server)
        page.wait_for_timeout(400)
        path = self._folder / f"console-{name}.png"
        page.screenshot(path=path, full_page=name in _WHOLE)
        path.write_bytes(small(path.read_bytes()))
        page.close()


def _drain(page: Any, _server: FakeServer) -> None:
    page.get_by_role("button", name="Drain dovecot-2").click()
    page.get_by_label("are moved within").check()
    page.get_by_label("Reason").fill("kernel update, ticket 4712")


def _trace(page: Any, _server: FakeServer) -> None:
    page.get_by_text("ticket 4711").wait_for()


def _events(page: Any, server: FakeServer) -> None:
    page.locator(".tag.good").wait_for()
    began = time.time() - 41
    names = [each["user"] for each in server.proxy.sessions[40:58]]
    for number, user in enumerate(names):
        session = server.proxy.sessions[40 + number]
        shared = {"time": began + 2.3 * number, "id": session["id"], "user": user, "client": session["client"]}
        if number % 5 == 3:
            closed = {"backend": session["backend"], "outcome": "logged_out", "seconds": session["seconds"]}
            server.proxy.publish("session", "session.closed", **shared, **closed)
        elif number == 6:
            server.proxy.publish("limit", "limit.reached", limit="connections_per_user", action="refuse", **shared)
        elif number == 10:
            what = {"backend": "dovecot-4", "reason": "connect: Connection refused"}
            server.proxy.publish("backend", "backend.down", time=shared["time"], **what)
        elif number == 14:
            what = {"verb": "drain", "backend": "dovecot-3", "reason": "new disks"}
            server.proxy.publish("audit", "admin.changed", time=shared["time"], caller="ops", **what)
        else:
            opened = {"listener": session["listener"], "backend": session["backend"]}
            server.proxy.publish("session", "session.opened", **shared, **opened)
    page.locator(".events li").nth(len(names) - 1).wait_for()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
