"""The dashboards are what Grafana knows as dashboards, and what an operator can read."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.grafana.grafana_files import DASHBOARDS, FOLDER, dashboard, panels

# Of one panel type each: they are declared as the type's own options, which the model of a dashboard does not hold.
OPTIONS = {"stat": "stat", "timeseries": "timeseries", "state-timeline": "statetimeline", "table": "table"}
FIELDS = {
    "timeseries": ("common", "GraphFieldConfig"),
    "state-timeline": ("statetimeline", "FieldConfig"),
    "table": ("common", "TableFieldOptions"),
}
# Keys that Grafana writes itself and that its published model leaves out.
BEYOND_THE_MODEL = {"/annotations/list/0/builtIn"}
PLAIN_UNITS = {"none", "short", "reqps", "percentunit", "s", "bytes", "Bps", "dateTimeFromNow"}


def lost(given: Any, read: Any, path: str = "") -> Iterator[str]:
    """What a model has not taken over."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(read, dict) or key not in read:
                yield f"{path}/{key}"
            else:
                yield from lost(value, read[key], f"{path}/{key}")
    elif isinstance(given, list):
        if not isinstance(read, list) or len(read) != len(given):
            yield path
        else:
            for number, (one, other) in enumerate(zip(given, read, strict=True)):
                yield from lost(one, other, f"{path}/{number}")
    elif given != read:
        yield f"{path}: {given!r} was read as {read!r}"


@pytest.fixture(params=DASHBOARDS)
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dashboard(request.param)


def test_grafana_knows_every_key(board: dict[str, Any]) -> None:
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    encoder = importlib.import_module("grafana_foundation_sdk.cog.encoder").JSONEncoder
    read = json.loads(encoder().encode(models.Dashboard.from_json(board)))
    assert set(lost(board, read)) == BEYOND_THE_MODEL


def test_grafana_knows_every_panels_options(board: dict[str, Any]) -> None:
    pytest.importorskip("grafana_foundation_sdk")
    encoder = importlib.import_module("grafana_foundation_sdk.cog.encoder").JSONEncoder
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        parts = [(OPTIONS[panel["type"]], "Options", panel["options"])]
        if panel["type"] in FIELDS:
            parts.append((*FIELDS[panel["type"]], panel["fieldConfig"]["defaults"]["custom"]))
        for module, name, given in parts:
            model = getattr(importlib.import_module(f"grafana_foundation_sdk.models.{module}"), name)
            read = json.loads(encoder().encode(model.from_json(given)))
            assert list(lost(given, read)) == [], panel["title"]


def test_the_checks_notice() -> None:
    assert list(lost({"a": [{"b": 1}], "c": 2}, {"a": [{}], "c": 3})) == ["/a/0/b", "/c: 2 was read as 3"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_can_be_read(name: str) -> None:
    titles = [panel["title"] for panel in panels(name)]
    assert len(titles) == len(set(titles))
    for panel in panels(name):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["description"].endswith("."), panel["title"]
        assert defaults["unit"] in PLAIN_UNITS, panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert [target["datasource"] for target in panel["targets"]] == [panel["datasource"]] * len(panel["targets"])


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(name)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard(name)["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_rate_errors_duration_stand_on_top(name: str) -> None:
    rows = [panel["title"] for panel in dashboard(name)["panels"] if panel["type"] == "row"]
    assert rows[:2] == ["Now", "Rate, errors, duration"]


def test_links_lead_to_dashboards_that_are_there() -> None:
    known = {dashboard(name)["uid"] for name in DASHBOARDS}
    for name in DASHBOARDS:
        text = (FOLDER / f"{name}.json").read_text()
        targets = set(re.findall(r"/d/([a-z-]+)", text))
        assert targets
        assert targets <= known
        assert targets - {dashboard(name)["uid"]} == known - {dashboard(name)["uid"]}, "each leads to the others"
