"""Events in, lines out."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import warnings
from typing import Any

import pytest
import structlog

from proxy.observe import log as observe_log
from proxy.observe.log import get_logger, set_level
from proxy.outcome import Outcome, Refused

log = get_logger()


def test_a_line_round_trips(record: Any) -> None:
    recording = record()
    log.info(
        "session.closed",
        outcome=Outcome.LOGGED_OUT,
        authentication_identity="jürgen@example.org",
        backend=None,
        secure=True,
        login_seconds=0.0012345678,
        bytes_from_client=1234,
        steps=["tls", "auth"],
        detail={"failed": 2},
    )
    (line,) = recording.objects()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "event": "session.closed",
        "outcome": "logged_out",
        "authentication_identity": "jürgen@example.org",
        "backend": None,
        "secure": True,
        "login_seconds": 0.001235,
        "bytes_from_client": 1234,
        "steps": ["tls", "auth"],
        "detail": {"failed": 2},
    }


def test_a_console_line_is_readable(record: Any) -> None:
    recording = record("console")
    log.warning("backend.failed", backend="dovecot-1", detail='no "greeting"', step="", tries=2, up=False)
    (line,) = recording.lines()
    assert line[25:] == b'warning backend.failed backend=dovecot-1 detail="no \\"greeting\\"" step="" tries=2 up=false'


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, terminal = os.openpty()
    try:
        sink = observe_log.configure("console", descriptor=terminal)
        log.info("worker.started", foreign="\x1b[2J")
        assert sink.close(5)
        shown = os.read(master, 4096)
    finally:
        observe_log.restore()
        os.close(terminal)
        os.close(master)
    assert b"\x1b[1mworker.started\x1b[0m" in shown
    assert b"\x1b[2J" not in shown
    assert rb"\x1b[2J" in shown


INJECTIONS = [
    ("LF", "a\nb", r"a\nb"),
    ("CRLF", "a\r\nb", r"a\r\nb"),
    ("NUL", "a\0b", r"a\x00b"),
    ("ANSI sequence", "\x1b[31mred\x07", r"\x1b[31mred\x07"),
    ("C1 control", "a\x9bb\x85", r"a\x9bb\x85"),
    ("DEL", "a\x7f", r"a\x7f"),
    ("line separator", "a\u2028b", r"a\u2028b"),
    ("paragraph separator", "a\u2029b", r"a\u2029b"),
    ("bidirectional override", "a\u202eb\u2066", r"a\u202eb\u2066"),
    ("zero width", "a\u200bb\ufeff", r"a\u200bb\ufeff"),
    ("lone surrogates", b"\xff\xfe".decode("utf-8", "surrogateescape"), r"\udcff\udcfe"),
    ("high surrogate", "\ud800", r"\ud800"),
    ("tag characters", "\U000e0001", r"\U000e0001"),
    ("octets", b"ann\xff\n", r"ann\xff\n"),
    ("a list of them", ["\x1b", b"\x9b"], [r"\x1b", r"\x9b"]),
    ("keys of a mapping", {"\n": "\u202e"}, {r"\n": r"\u202e"}),
    ("an exception's text", ValueError("a\nb"), r"ValueError: a\nb"),
    ("a refusal", Refused(Outcome.UNAVAILABLE, "said\x1b[0m"), r"Refused: unavailable: said\x1b[0m"),
]


@pytest.mark.parametrize(("name", "value", "expected"), INJECTIONS, ids=[row[0] for row in INJECTIONS])
def test_foreign_text_is_escaped_in_json(record: Any, name: str, value: object, expected: object) -> None:
    recording = record()
    log.info("login.refused", detail=value)
    (line,) = recording.lines()
    assert line.decode().isprintable()
    # What JSON decodes to goes to a terminal too.
    assert json.loads(line)["detail"] == expected


@pytest.mark.parametrize(("name", "value", "expected"), INJECTIONS, ids=[row[0] for row in INJECTIONS])
def test_foreign_text_is_escaped_on_the_console(record: Any, name: str, value: object, expected: object) -> None:
    recording = record("console")
    log.info("login.refused", detail=value)
    (line,) = recording.lines()
    assert line.decode().isprintable()
    if isinstance(expected, str):
        assert expected in line.decode()


@pytest.mark.parametrize("format", ["json", "console"])
def test_events_and_keys_are_escaped_too(record: Any, format: str) -> None:
    recording = record(format)
    log.info("a\nb", **{"c\nd": 1, 'e"': 2, "time": "never"})
    (line,) = recording.lines()
    assert line.decode().isprintable()
    if format == "json":
        shown = json.loads(line)
        assert (shown["event"], shown["c\\nd"], shown['e"'], shown["time_"]) == (r"a\nb", 1, 2, "never")


BOUNDED = [
    ("a text", "x" * 5000),
    ("octets", b"x" * 5000),
    ("controls", "\x1b" * 5000),
    ("a list", ["x"] * 5000),
    ("a mapping", {str(n): n for n in range(5000)}),
    ("nesting", [[[[["x"] * 1000]]]]),
]


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize(("name", "value"), BOUNDED, ids=[row[0] for row in BOUNDED])
def test_values_are_bounded(record: Any, format: str, name: str, value: object) -> None:
    recording = record(format)
    log.info("login.refused", detail=value)
    (line,) = recording.lines()
    assert len(line) < 1400


class Secret:
    """Like the settings' own: only `value` gives it away."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Secret(file:/run/secret)"


@pytest.mark.parametrize("format", ["json", "console"])
def test_secrets_stay_out(record: Any, format: str) -> None:
    recording = record(format)
    for key in ("password", "secret", "token", "credentials", "access_token", "Password"):
        log.info("login.refused", **{key: "hunter2"}, nested={key: "hunter2"}, items=[{key: b"hunter2"}])
    log.info("settings.loaded", bind=Secret("hunter2"), authorization_identity="ann")
    lines = recording.lines()
    assert not any(b"hunter2" in line for line in lines)
    assert lines[0].count(b"***") == 3
    assert b"Secret(file:/run/secret)" in lines[-1]
    assert b"ann" in lines[-1]


def test_an_exception_is_one_line_without_local_variables(record: Any) -> None:
    recording = record()
    password = "hunter2"
    try:
        raise RuntimeError(f"line one\nline two, {len(password)} octets")
    except RuntimeError:
        log.exception("session.failed", client="192.0.2.1")
    (line,) = recording.objects()
    assert (line["level"], line["event"], line["client"]) == ("error", "session.failed", "192.0.2.1")
    assert line["traceback"].startswith(r"Traceback (most recent call last):\n  File ")
    assert line["traceback"].endswith(r"RuntimeError: line one\nline two, 7 octets")
    assert password not in line["traceback"]


def test_a_value_that_cannot_be_shown_raises_nothing(record: Any) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    recording = record()
    log.info("session.closed", detail=Broken())
    (line,) = recording.objects()
    assert (line["event"], line["line"], line["error"]) == ("log.line_failed", "session.closed", "RuntimeError")


def test_levels_can_change_while_running(record: Any) -> None:
    recording = record(level="warning")
    log.info("a.hidden")
    log.warning("a.shown")
    set_level("debug")
    log.debug("b.shown")
    set_level("error")
    log.warning("b.hidden")
    log.error("c.shown")
    assert [line["event"] for line in recording.objects()] == ["a.shown", "b.shown", "c.shown"]


def test_libraries_and_warnings_come_along(record: Any) -> None:
    recording = record()
    library = logging.getLogger("hypercorn.error")
    library.info("chatter")
    try:
        raise ValueError("inside")
    except ValueError:
        library.exception("went %s\n", "wrong")
    misuse = logging.makeLogRecord({"name": "trio", "levelno": 30, "msg": "bad %d", "args": ("format",)})
    logging.getLogger().handlers[-1].handle(misuse)  # by name it would also reach pytest, which raises
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # catch_warnings put Python's own way of showing back
        warnings.warn("old\nthing", DeprecationWarning, stacklevel=1)
    failed, misused, warned = recording.objects()
    assert (failed["event"], failed["level"], failed["logger"]) == ("python.logged", "error", "hypercorn.error")
    assert failed["message"] == "went wrong"
    assert failed["traceback"].endswith(r"\nValueError: inside")
    assert misused["message"] == "bad %d (TypeError)"
    assert (warned["event"], warned["level"]) == ("python.warned", "warning")
    assert r"DeprecationWarning: old\nthing" in warned["message"]


def test_unhandled_exceptions_come_along(record: Any) -> None:
    recording = record()
    error = RuntimeError("lost")
    sys.excepthook(RuntimeError, error, None)
    threading.excepthook(threading.ExceptHookArgs((RuntimeError, error, None, threading.current_thread())))
    crashed, thread = recording.objects()
    assert (crashed["event"], crashed["traceback"]) == ("process.crashed", "RuntimeError: lost")
    assert (thread["event"], thread["thread"]) == ("thread.crashed", "MainThread")


def test_restore_gives_python_its_hooks_back() -> None:
    before = (sys.excepthook, threading.excepthook, sys.unraisablehook, list(logging.getLogger().handlers))
    observe_log.configure(descriptor=2)
    assert sys.excepthook is not before[0]
    observe_log.restore()
    after = (sys.excepthook, threading.excepthook, sys.unraisablehook, list(logging.getLogger().handlers))
    assert after == before


def test_before_configure_lines_go_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    log.info("check.read", file="porter.yaml")
    assert capfd.readouterr().err.endswith("Z info    check.read file=porter.yaml\n")


def test_other_rooms_tests_can_capture_events() -> None:
    with structlog.testing.capture_logs() as events:
        log.info("session.closed", outcome="ok")
    assert events == [{"event": "session.closed", "outcome": "ok", "log_level": "info"}]
