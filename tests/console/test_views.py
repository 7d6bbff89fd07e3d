"""Each view in a real browser: light and dark, on a desk and on a phone; readable, named, and no stranger's script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import OpenPage
from tests.console.fake_api import EVIL, FakeServer

pytestmark = pytest.mark.server

VIEWS = {
    "overview": "Overview",
    "sessions": "Sessions",
    "explain": "Explain",
    "explain/alice%40example.org": "Explain",
    "events": "Events",
    "limits": "Limits",
    "settings": "Settings",
    "audit": "Audit",
}
# Fills the charts as if the page had been open for five minutes.
FIVE_MINUTES = """async () => {
  const { watch } = await import("/console/watch.js");
  for (let step = 0; step < 150; step += 1) await watch.look();
}"""
# Texts whose contrast with what is behind them is less than WCAG 2.1 §1.4.3 asks for.
FAINT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b]
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = rgba(getComputedStyle(each).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba("white");
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("button:disabled, noscript, script")) continue;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${node.data.trim().slice(0, 40)}`);
  }
  return faint;
}"""
# Controls that a screen reader could not name.
NAMELESS = """() => [...document.querySelectorAll("button, a, input, select, summary")]
  .filter((each) => each.checkVisibility())
  .filter((each) => !(each.textContent.trim() || each.ariaLabel || each.labels?.length))
  .map((each) => each.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view(server: FakeServer, open_page: OpenPage, shots: Path, theme: str, size: str) -> None:
    page = open_page(server.url, size=size, theme=theme)
    page.evaluate(FIVE_MINUTES)
    for view, title in VIEWS.items():
        page.goto(f"{server.url}/#/{view}")
        page.locator(f"h1:text-is('{title}')").wait_for()
        if view == "events":
            page.locator(".tag.good").wait_for()
            show_events(server)
            page.locator(".events li").nth(5).wait_for()
        elif view != "explain":
            page.locator("#view tbody tr").first.wait_for()
        page.screenshot(path=shots / f"{view.partition('%')[0].replace('/', '-')}-{theme}-{size}.png", full_page=True)
        assert page.evaluate(FAINT) == [], view
        assert page.evaluate(NAMELESS) == [], view
        wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{view} is {wide} px too wide"
    assert page.evaluate("() => window.hurt") is None


def show_events(server: FakeServer) -> None:
    """Some of each kind."""
    opened = {"listener": "[::]:993", "worker": "worker-1"}
    publish = server.proxy.publish
    for number, name in enumerate(["mia.k", "theo.s", "alice", "nora.b", "paul.w"]):
        client, backend = f"198.51.100.{17 + 31 * number}", f"dovecot-{1 + number % 2}"
        user = f"{name}@example.org"
        publish("session", "session.opened", id=str(number), user=user, client=client, backend=backend, **opened)
    publish("backend", "backend.down", backend="dovecot-4", reason="connect: Connection refused")
    publish("limit", "limit.reached", limit="connections_per_user", action="refuse", user=EVIL, client="203.0.113.9")
    publish("session", "session.closed", id="1", user="theo.s@example.org", client="198.51.100.48", backend="dovecot-2",
            outcome="logged_out", seconds=4711.4)  # fmt: skip
    publish("audit", "admin.changed", caller="ops", verb="drain", backend="dovecot-3", reason="new disks")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_sign_in_and_dialogs_are_readable(server: FakeServer, open_page: OpenPage, shots: Path, theme: str) -> None:
    page = open_page(server.url, token="", theme=theme)
    page.get_by_role("button", name="Sign in").click()
    assert "token first" in page.get_by_role("alert").inner_text()
    page.screenshot(path=shots / f"sign-in-{theme}.png")
    assert page.evaluate(FAINT) == []
    page.get_by_label("Token").fill("operator-token")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Drain dovecot-1").click()
    page.get_by_role("dialog").get_by_text("new users").wait_for()
    page.screenshot(path=shots / f"drain-{theme}.png")
    assert page.evaluate(FAINT) == []
    assert page.evaluate(NAMELESS) == []


def test_names_of_strangers_are_texts(server: FakeServer, open_page: OpenPage) -> None:
    """Markup stays text, and what turns the writing around is spelled out."""
    server.proxy.backends[0]["reason"] = EVIL
    page = open_page(server.url, "sessions")
    row = page.get_by_role("row").filter(has_text="onerror")
    assert row.locator("a.name").inner_text() == EVIL.replace("\u202e", "\\u{202e}")
    row.get_by_role("button", name="Details").click()
    page.get_by_role("dialog").get_by_text("PLAIN").wait_for()
    page.keyboard.press("Escape")
    row.locator("a.name").click()
    page.locator(".verdict").wait_for()
    assert page.evaluate("() => decodeURIComponent(location.hash)") == f"#/explain/{EVIL}"
    page.get_by_role("button", name="Kick…").first.click()
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.goto(f"{server.url}/#/overview")
    page.get_by_text("onerror").wait_for()
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("() => window.hurt") is None


def test_the_fleet_is_told(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(f"{server.url}/#/overview")
    page.get_by_text("One of 2 proxies of its fleet.").wait_for()


def test_the_policy_refuses_markup(server: FakeServer, open_page: OpenPage) -> None:
    """Were somebody to write innerHTML, the browser would refuse it."""
    page = open_page(server.url, forgive=("requires 'TrustedHTML'", "Trusted Type"))
    refused = page.evaluate("() => { try { document.body.innerHTML = '<p>'; return false; } catch { return true; } }")
    assert refused


def test_theme_can_be_chosen(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url, theme="light")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    theme = page.get_by_role("button", name="Theme")
    theme.click()
    assert page.evaluate(ground) == light
    theme.click()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    page.locator("#title").wait_for()
    assert page.evaluate(ground) == dark


FIGURES: list[tuple[str, list[list[Any]], list[list[Any]], float, float | None]] = [
    ("nothing came", [[1, 5], [None, 5]], [[1, 5], [None, 5]], 0.5, None),
    ("in the middle of a bucket", [[1, 0], [2, 0], [None, 0]], [[1, 0], [2, 10], [None, 10]], 0.5, 1.5),
    ("only what came since counts", [[1, 90], [2, 90], [None, 90]], [[1, 90], [2, 100], [None, 100]], 0.5, 1.5),
    ("beyond the last bound", [[1, 0], [None, 0]], [[1, 1], [None, 10]], 0.95, 1),
    ("in the first bucket", [[4, 0], [None, 0]], [[4, 4], [None, 4]], 0.25, 1),
]


@pytest.mark.parametrize(("name", "before", "after", "q", "expected"), FIGURES, ids=[case[0] for case in FIGURES])
def test_quantiles(
    browser: Any, server: FakeServer, name: str, before: Any, after: Any, q: float, expected: Any
) -> None:
    page = browser.new_page()
    page.goto(server.url)
    ask = "async ([before, after, q]) => (await import('/console/figures.js')).quantile(before, after, q)"
    assert page.evaluate(ask, [before, after, q]) == expected
    page.close()


def test_rates_survive_a_new_beginning(browser: Any, server: FakeServer) -> None:
    page = browser.new_page()
    page.goto(server.url)
    rates = page.evaluate(
        """async () => {
          const { History } = await import("/console/figures.js");
          const history = new History();
          const rates = () => history.rates(({ n }) => n).map(([, rate]) => rate);
          const sample = (time, n) => history.add({ time, n, login_seconds: { count: n, buckets: [] } });
          for (const [time, n] of [[0, 0], [2, 20], [4, 40], [6, 60]]) sample(time, n);
          const before = rates();
          sample(8, 3); // it began anew
          sample(10, 5);
          return [before, rates()];
        }"""
    )
    assert rates == [[10, 10, 10], [1]]
    page.close()
