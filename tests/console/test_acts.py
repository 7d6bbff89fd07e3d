"""What operators do in the console, what viewers can't, and what is said when something goes wrong."""

from __future__ import annotations

import re

import pytest

from tests.console.conftest import OpenPage
from tests.console.fake_api import VIEWER, FakeServer

pytestmark = pytest.mark.server

WRITING = re.compile(r"Drain|Undrain|Kick|Move|Hold|Release|Trace|Reload|Log level|More for")


def test_drain_by_keyboard_alone(server: FakeServer, open_page: OpenPage) -> None:
    """g o, Tab to the button, Enter; a reason is demanded; Enter. Focus comes back to where it was."""
    page = open_page(server.url, "limits")
    page.keyboard.press("g")
    page.keyboard.press("o")
    page.get_by_role("button", name="Drain dovecot-1").wait_for()
    focused = "() => document.activeElement.ariaLabel ?? ''"
    for _ in range(30):
        if page.evaluate(focused) == "Drain dovecot-1…":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Drain dovecot-1")
    there = server.proxy.backends[0]["sessions"]
    assert f"{there} sessions are there now" in dialog.inner_text()
    page.keyboard.press("ArrowDown")  # to "are moved within"
    assert "within 10 min" in dialog.locator(".effect").inner_text()
    page.keyboard.press("Enter")
    assert "Say why" in dialog.get_by_role("alert").inner_text()
    assert server.proxy.changes == []
    page.keyboard.type("new disks")
    page.keyboard.press("Enter")
    dialog.wait_for(state="detached")
    assert server.proxy.changes == [("drain", {"backend": "dovecot-1", "over_seconds": 600, "reason": "new disks"})]
    page.get_by_role("button", name="Undrain dovecot-1").wait_for()
    assert page.evaluate(focused) == "Undrain dovecot-1…"
    page.get_by_role("status").filter(has_text="dovecot-1 is draining now").wait_for()


def test_a_warning_stays_until_it_is_read(server: FakeServer, open_page: OpenPage) -> None:
    server.proxy.warning = "no other backend takes homes; who is placed anew is refused"
    page = open_page(server.url)
    page.get_by_role("button", name="More for dovecot-2").click()
    page.get_by_role("menuitem", name="Take down").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("burnt")
    dialog.get_by_role("button", name="Take down").click()
    assert dialog.get_by_role("alert").inner_text() == server.proxy.warning
    dialog.get_by_role("button", name="Close").last.click()
    dialog.wait_for(state="detached")


def test_a_session_and_all_of_a_user_are_kicked(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url, "sessions")
    page.keyboard.press("/")
    page.keyboard.type("alice@example.org")
    page.keyboard.press("Enter")
    page.get_by_text("4 sessions.").wait_for()
    page.get_by_role("button", name="Kick the session of alice").first.click()
    page.keyboard.type("stolen phone")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for(state="detached")
    page.get_by_role("button", name="Kick all of these").click()
    assert "4 sessions and those at the other proxy will end" in page.get_by_role("dialog").inner_text()
    page.keyboard.type("stolen phones")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for(state="detached")
    [first, second] = server.proxy.changes
    assert first[1].keys() == {"session", "reason"}
    assert second == ("kick", {"user": "alice@example.org", "reason": "stolen phones"})


ALONE = {"name": "porter-1", "up": False, "members": [], "error": "no answer in time"}
THREE = {"name": "porter-1", "up": True, "members": ["porter-1", "porter-2", "porter-3"], "error": None}
NOBODY = [
    (None, "No session is open just now; nothing will happen."),
    (ALONE, "No session is open at this proxy just now."),
    (THREE, "No session is open at this proxy just now; those at the other 2 proxies will end, at a safe point"),
]


@pytest.mark.parametrize(("fleet", "expected"), NOBODY, ids=["no fleet", "alone", "three"])
def test_a_kick_reaches_other_proxies(
    server: FakeServer, open_page: OpenPage, fleet: dict[str, object] | None, expected: str
) -> None:
    """Whoever has no session here may have some there: then nothing is greyed out."""
    server.proxy.fleet = fleet
    server.proxy.backends[3] |= {"sessions": 0, "users": 0}
    page = open_page(server.url, "explain/nadine%40example.org")
    page.get_by_text("Next login:").wait_for()
    page.get_by_role("button", name="Kick…", exact=True).click()
    page.locator(".effect").get_by_text(expected).wait_for()
    page.keyboard.press("Escape")
    page = open_page(server.url)
    page.get_by_role("button", name="More for dovecot-4").click()
    kick = page.get_by_role("menuitem", name="Kick all sessions")
    assert kick.is_enabled() == (fleet is THREE)
    if fleet is THREE:
        page = open_page(server.url, "sessions?user=nadine%40example.org")
        page.get_by_role("button", name="Kick all of these").wait_for()


def test_one_session_is_at_one_proxy(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url, "sessions?user=alice%40example.org")
    page.get_by_role("button", name="Kick the session of alice").first.click()
    assert "1 session will end, at a safe point" in page.locator(".effect").inner_text()


def test_sessions_are_turned_page_by_page(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url, "sessions")
    page.get_by_text("1,243 sessions; these are 1 to 100.").wait_for()
    page.get_by_role("button", name="Next page").click()
    page.get_by_text("these are 101 to 200.").wait_for()
    page.get_by_role("button", name="Previous page").click()
    page.get_by_text("these are 1 to 100.").wait_for()


USER_ACTS = [
    ("Move…", {"backend": "dovecot-1", "for_seconds": None}),
    ("Hold…", {"for_seconds": None}),
    ("Release…", {}),
    ("Kick…", {}),
]


@pytest.mark.parametrize(("button", "expected"), USER_ACTS, ids=[name for name, _ in USER_ACTS])
def test_a_user_is_steered(server: FakeServer, open_page: OpenPage, button: str, expected: dict[str, object]) -> None:
    page = open_page(server.url, "explain/alice%40example.org")
    page.get_by_text("ticket 4711").wait_for()
    page.get_by_role("button", name=button, exact=True).first.click()
    page.get_by_label("Reason").fill("ticket 12")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for(state="detached")
    verb = button.rstrip("…").lower()
    assert server.proxy.changes == [(verb, {"user": "alice@example.org", **expected, "reason": "ticket 12"})]


def test_a_trace_shows_its_lines(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url, "explain/alice%40example.org")
    page.get_by_text("ticket 4711").wait_for()
    page.get_by_role("button", name="Trace…").click()
    page.get_by_label("Reason").fill("ticket 12")
    page.keyboard.press("Enter")
    page.get_by_text("until ").last.wait_for()
    page.locator(".heading .tag").filter(has_text="until").wait_for()
    for trace, text in (("other", "a1 NOOP"), ("t1", "a2 SELECT <b>INBOX</b>")):
        server.proxy.publish("trace", "trace.line", trace=trace, session="1", side="client", text=text)
    page.locator(".trace li").wait_for()
    assert page.locator(".trace li span").all_inner_texts() == ["a2 SELECT <b>INBOX</b>"]
    page.get_by_role("button", name="End it…").click()
    page.get_by_label("Reason").fill("seen")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for(state="detached")
    assert server.proxy.changes[-1] == ("untrace", {"trace": "t1", "reason": "seen"})


@pytest.mark.parametrize("view", ["overview", "sessions", "explain/alice%40example.org", "settings"])
def test_a_viewer_has_nothing_to_write_with(server: FakeServer, open_page: OpenPage, view: str) -> None:
    page = open_page(server.url, view, token=VIEWER)
    page.locator("#view tbody tr").first.wait_for()
    assert page.locator("#role").inner_text() == "viewer"
    assert page.locator("#main").get_by_role("button", name=WRITING).count() == 0


def test_events_come_by_themselves(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url, "events")
    page.locator(".tag.good").wait_for()
    server.proxy.publish("session", "session.opened", user="alice@example.org", client="198.51.100.7")
    server.proxy.publish("limit", "limit.reached", limit="connections_per_user", user="bob@example.org")
    page.get_by_text("2 events since").wait_for()
    server.proxy.publish("lost", "", events=41)
    page.get_by_text("41 lost").wait_for()
    page.get_by_label("Sessions", exact=True).uncheck()
    page.locator(".tag.good").wait_for()
    wait_for_readers(page, server, {"backend", "limit", "audit"})
    server.proxy.publish("session", "session.closed", user="alice@example.org")
    server.proxy.publish("limit", "limit.reached", limit="commands_per_user", user="bob@example.org")
    page.locator(".events").get_by_text("commands_per_user").wait_for()
    assert page.locator(".events").get_by_text("session.closed").count() == 0


def test_events_come_again_after_an_outage(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url, "events", forgive=("WebSocket connection", "Failed to load resource"))
    page.locator(".tag.good").wait_for()
    server.stop()
    page.get_by_text("connection lost; next try").wait_for()
    server.start()
    page.locator(".tag.good").wait_for()
    server.proxy.publish("session", "session.opened", user="alice@example.org")
    page.locator(".events").get_by_text("session.opened").wait_for()


def wait_for_readers(page: object, server: FakeServer, kinds: set[str]) -> None:
    """Return once somebody reads just these kinds."""
    for _ in range(200):
        if any(each[0] == kinds for each in server.proxy.readers):
            return
        page.wait_for_timeout(20)  # type: ignore[attr-defined]
    raise AssertionError(f"nobody reads {kinds}")


def test_changes_are_kept_in_the_audit(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url)
    wait_for_readers(page, server, {"audit", "backend"})
    server.proxy.publish(
        "audit", "admin.changed", caller="uid 0", verb="weight", backend="dovecot-1", weight=3, reason="<i>"
    )
    page.goto(f"{server.url}/#/audit")
    row = page.get_by_role("row").filter(has_text="uid 0")
    assert "<i>" in row.inner_text()
    assert "dovecot-1" in row.inner_text()


def test_an_unreachable_proxy_leaves_what_is_known(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url, forgive=("WebSocket connection", "Failed to load resource"))
    page.get_by_text("dovecot-1", exact=True).wait_for()
    server.stop()
    page.get_by_text("The proxy does not answer.").wait_for()
    assert "ago" in page.get_by_role("alert").inner_text()
    assert page.get_by_text("dovecot-1", exact=True).is_visible()
    assert page.locator("body.stale").count() == 1
    server.start()
    page.locator("body:not(.stale)").wait_for()


def test_a_token_that_is_gone_leads_to_the_sign_in(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url, "limits", forgive=("401",))
    page.get_by_text("connections_per_address", exact=True).wait_for()
    server.proxy.tokens.clear()
    page.get_by_text("not valid any more").wait_for()
    assert page.evaluate("() => sessionStorage.length") == 0
    server.proxy.tokens["another"] = "viewer"
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("does not know this token").wait_for()
    page.get_by_label("Token").fill("another")
    page.keyboard.press("Enter")
    page.locator("h1:text-is('Limits')").wait_for()


def test_what_cannot_be_had_is_named(server: FakeServer, open_page: OpenPage) -> None:
    server.proxy.broken.add("limits")
    page = open_page(server.url, "limits", forgive=("503",))
    page.get_by_text("Limits cannot be shown: the steward is busy").wait_for()


def test_nobody_is_explained_too(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url, "explain/nobody")
    page.get_by_text("next login is refused: no source knows the name").wait_for()


def test_keys(server: FakeServer, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.keyboard.press("Tab")  # the title has focus on arrival; what follows is in the view
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keyboard").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    for letter, title in {
        "s": "Sessions",
        "x": "Explain",
        "e": "Events",
        "l": "Limits",
        "t": "Settings",
        "a": "Audit",
    }.items():
        page.keyboard.press("g")
        page.keyboard.press(letter)
        page.locator(f"h1:text-is('{title}')").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("alice@example.org")
    page.keyboard.press("Enter")
    page.get_by_text("ticket 4711").wait_for()
    page.reload()
    page.get_by_text("ticket 4711").wait_for()
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"
