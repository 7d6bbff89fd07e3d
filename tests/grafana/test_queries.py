"""Every query of dashboards and rules asks for what the program exports, and Prometheus can read it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from proxy.observe.metrics import METRICS, Declaration
from proxy.observe.reference import import_all_rooms
from tests.grafana.grafana_files import (
    DASHBOARDS,
    Query,
    alert_queries,
    annotation_queries,
    dashboard,
    dashboard_queries,
    filled,
    panels,
)
from tests.servers.programs import require

ADDED = {"job", "instance"}  # by Prometheus, to all that it scrapes
_SELECTOR = re.compile(r"\b(porter_[a-z_]+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|on|group_left|group_right|without|ignoring)\s*\(([^)]*)\)")
_LEGEND = re.compile(r"\{\{\s*([a-z_]+)\s*\}\}")
_SUFFIXES = ("_bucket", "_count", "_sum")


@pytest.fixture(scope="module")
def declared() -> dict[str, Declaration]:
    import_all_rooms()
    return {declaration.name: declaration for declaration in METRICS.declarations}


def all_queries() -> list[Query]:
    return [*dashboard_queries(), *annotation_queries(), *alert_queries()]


def problems(expression: str, declared: dict[str, Declaration]) -> Iterator[str]:
    """What a query asks for that there is not."""
    labels = {*ADDED}
    for name, matchers in _SELECTOR.findall(expression):
        declaration = declared.get(name)
        if declaration is None:
            stem = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
            declaration = declared.get(stem)
            if declaration is None or declaration.kind != "histogram":
                yield f"no metric {name}"
                continue
            if name.endswith("_bucket"):
                labels.add("le")
        elif declaration.kind == "histogram":
            yield f"{name} is a histogram: its series are {', '.join(name + suffix for suffix in _SUFFIXES)}"
        labels |= declaration.labels.keys()
        for label, operator, value in _MATCHER.findall(matchers):
            if label not in declaration.labels and label not in ADDED:
                yield f"{name} has no label {label}"
            elif known := declaration.labels.get(label):
                wanted = re.split(r"\|", value) if "~" in operator else [value]
                yield from (f"{name}: {label} is never {each}" for each in wanted if each not in known)
    for group in _GROUPING.findall(expression):
        yield from (f"nothing has a label {label}" for label in re.findall(r"[a-z_]+", group) if label not in labels)


@pytest.mark.parametrize("query", all_queries(), ids=lambda query: query.where)
def test_what_is_asked_for_is_exported(query: Query, declared: dict[str, Declaration]) -> None:
    assert list(problems(query.expression, declared)) == []


BAD = [
    ("porter_session", "no metric"),
    ("rate(porter_login_duration_seconds[5m])", "is a histogram"),
    ("porter_sessions_count", "no metric"),
    ('porter_sessions{backend="d1"}', "no label"),
    ('porter_sessions{state="open"}', "never open"),
    ('porter_backend_failures_total{step!~"login|logout"}', "never logout"),
    ("sum by (backend) (porter_sessions)", "nothing has"),
]


@pytest.mark.parametrize(("expression", "problem"), BAD)
def test_a_bad_query_is_noticed(expression: str, problem: str, declared: dict[str, Declaration]) -> None:
    assert any(problem in found for found in problems(expression, declared))


def test_prometheus_reads_them_all(tmp_path: Path) -> None:
    require("promtool")
    rules = [
        {"record": f"check:{number}", "expr": filled(query.expression)} for number, query in enumerate(all_queries())
    ]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "queries.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_looks_at_what_is_chosen(name: str) -> None:
    variables = {f"${each['name']}" for each in dashboard(name)["templating"]["list"]}
    assert variables >= {"$datasource", "$job", "$instance"}
    for panel in panels(name):
        for target in panel["targets"]:
            for selector in _SELECTOR.finditer(target["expr"]):
                assert 'job=~"$job"' in (selector[2] or ""), f"{panel['title']}: {selector[0]}"
                assert 'instance=~"$instance"' in selector[2], f"{panel['title']}: {selector[0]}"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_legends_name_labels_that_are_left(name: str) -> None:
    for panel in panels(name):
        for target in panel["targets"]:
            kept = {
                label for group in _GROUPING.findall(target["expr"]) for label in re.findall(r"[a-z_]+", group)
            } or {"instance", "process"}
            missing = [label for label in _LEGEND.findall(target.get("legendFormat", "")) if label not in kept]
            assert missing == [], panel["title"]
