"""What stands in grafana/: dashboards, rules, and the queries in both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from tests.servers.programs import ROOT

FOLDER = ROOT / "grafana"
ALERTS = FOLDER / "alerts.yaml"
DASHBOARDS = ("overview", "backend")
# What Grafana puts in the place of its variables; a test that asks a server puts its own.
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".*", "$instance": ".*", "$backend": ".*"}
_VARIABLE = re.compile(r"\$\{?[A-Za-z_]+")


@dataclass(frozen=True)
class Query:
    """One query of a dashboard's panel or variable, or of a rule."""

    where: str
    expression: str


def dashboard(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())  # type: ignore[no-any-return]


def panels(name: str) -> Iterator[dict[str, Any]]:
    """Those that show something, in folded rows too."""
    for panel in dashboard(name)["panels"]:
        yield from [each for each in (panel, *panel.get("panels", ())) if each["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def filled(expression: str, **values: str) -> str:
    """The expression as Grafana sends it."""
    for variable, value in (VARIABLES | {f"${name}": value for name, value in values.items()}).items():
        expression = expression.replace(variable, value)
    assert not _VARIABLE.search(expression), f"a variable that nobody knows: {expression}"
    return expression


@cache
def dashboard_queries() -> tuple[Query, ...]:
    """Of all panels, as they stand in the files."""
    return tuple(
        Query(f"{name}: {panel['title']}: {target['refId']}", target["expr"])
        for name in DASHBOARDS
        for panel in panels(name)
        for target in panel.get("targets", ())
    )


@cache
def annotation_queries() -> tuple[Query, ...]:
    return tuple(
        Query(f"{name}: {each['name']}", each["expr"])
        for name in DASHBOARDS
        for each in dashboard(name)["annotations"]["list"]
        if "expr" in each
    )


@cache
def alert_queries() -> tuple[Query, ...]:
    return tuple(Query(rule["alert"], rule["expr"]) for rule in rules())
