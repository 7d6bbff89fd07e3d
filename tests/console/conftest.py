"""A browser in front of the console, and a fake proxy behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.console.fake_api import OPERATOR, FakeServer
from tests.servers.ports import Ports
from tests.servers.programs import require

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
ANSWER_MS = 10_000
OpenPage = Callable[..., Any]


@pytest.fixture(scope="session")
def browser(playwright: Any) -> Iterator[Any]:
    running = playwright.chromium.launch(executable_path=require("chromium"), args=["--no-sandbox"])
    yield running
    running.close()


@pytest.fixture(scope="session")
def console_ports() -> Iterator[Ports]:
    taken = Ports()
    yield taken
    taken.close()


@pytest.fixture
def server(console_ports: Ports) -> Iterator[FakeServer]:
    running = FakeServer(console_ports.take())
    running.start()
    yield running
    running.stop()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Open the console somewhere and sign in; no page may complain, nor ask any other host.

    `forgive` gives parts of complaints that a test brings about.
    """
    contexts: list[Any] = []
    complaints: list[str] = []
    asked: set[str] = set()
    own: set[str] = set()
    forgiven: list[str] = []

    def look_over(page: Any) -> None:
        page.on("console", lambda line: complaints.append(f"{line.text} {line.location.get('url', '')}")
                if line.type in ("error", "warning") else None)  # fmt: skip
        page.on("pageerror", lambda problem: complaints.append(str(problem)))
        page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
        page.on("websocket", lambda socket: asked.add(urlsplit(socket.url).netloc))

    def open_(
        url: str,
        view: str = "overview",
        *,
        token: str = OPERATOR,
        size: str = "desktop",
        theme: str = "light",
        forgive: tuple[str, ...] = (),
    ) -> Any:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
        )
        contexts.append(context)
        own.add(urlsplit(url).netloc)
        forgiven.extend(forgive)
        page = context.new_page()
        page.set_default_timeout(ANSWER_MS)
        look_over(page)
        page.goto(f"{url}/#/{view}")
        if token:
            page.get_by_label("Token").fill(token)
            page.keyboard.press("Enter")
            page.locator("#title").wait_for()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert asked <= own, "another host was asked"
    assert [each for each in complaints if not any(part in each for part in forgiven)] == []


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where screenshots are kept: PORTER_SCREENSHOTS, or the test's own folder."""
    folder = Path(os.environ.get("PORTER_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
