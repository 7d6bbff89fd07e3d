"""docs/logs.md tells every event that the program logs, with its level and its keys, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROXY = ROOT / "proxy"
PAGE = ROOT / "docs" / "logs.md"

LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
# These come about inside the log itself, not by a call of a logger.
OF_THE_LOG_ITSELF = {"log.lines_dropped", "log.line_failed", "python.logged", "python.warned"}
_ROW = re.compile(r"^\| `([a-z_]+\.[a-z_]+)` \| ([^|]+) \|([^|]*)\|", re.MULTILINE)

Told = dict[str, tuple[str, set[str]]]  # by event: level and keys


def logged() -> Told:
    """What calls of loggers say, all over the program."""
    found: Told = {}
    for path in sorted(PROXY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            owner, event = node.func.value, node.args[0]
            is_logger = isinstance(owner, ast.Name) and owner.id in ("log", "_log") and node.func.attr in LEVELS
            if not is_logger or not isinstance(event, ast.Constant):
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            assert all(keyword.arg for keyword in node.keywords), f"{where}: keys that cannot be read here"
            keys = {str(keyword.arg) for keyword in node.keywords}
            if "exc_info" in keys or node.func.attr == "exception":
                keys = keys - {"exc_info"} | {"traceback"}
            level, known = found.setdefault(event.value, (LEVELS[node.func.attr], keys))
            assert (level, known) == (LEVELS[node.func.attr], keys), (
                f"{where}: {event.value} differs from place to place"
            )
    return found


def written() -> Told:
    """What the page says."""
    rows = _ROW.findall(PAGE.read_text())
    assert len({event for event, _, _ in rows}) == len(rows), "an event with two rows"
    return {event: (level.strip(), set(re.findall(r"`(\w+)`", keys))) for event, level, keys in rows}


def test_every_event_is_on_the_page() -> None:
    assert {event: value for event, value in written().items() if event not in OF_THE_LOG_ITSELF} == logged()


def test_the_page_tells_what_the_log_says_of_itself() -> None:
    source = ast.parse((PROXY / "observe" / "log.py").read_text())
    constants = {node.value for node in ast.walk(source) if isinstance(node, ast.Constant)}
    assert constants >= OF_THE_LOG_ITSELF
    assert written().keys() >= OF_THE_LOG_ITSELF


def test_every_metric_named_there_exists() -> None:
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    named = set(re.findall(r"`(porter_\w+)`", PAGE.read_text()))
    assert named
    assert [name for name in sorted(named) if f"`{name}`" not in metrics] == []
