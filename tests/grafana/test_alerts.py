"""Alert rules: each fires when it should, keeps quiet when it should, and says what to do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.grafana.grafana_files import ALERTS, rules
from tests.servers.programs import ROOT, require

PAGE = ROOT / "docs" / "alerts.md"
PARTS = ("It means", "Users see", "Look", "Do")
WHOSE = {"job": "imap-porter", "instance": "mx1"}
# Labels that an alert does not have since it is about more than one instance.
OF_A_SITE = {"PorterEpochsDiffer": {"instance"}, "PorterFleetSplit": {"instance"}}


@pytest.fixture(scope="module")
def outages() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((Path(__file__).parent / "outages.yaml").read_text())  # type: ignore[no-any-return]


def test_names_and_words() -> None:
    for rule in rules():
        name, words = rule["alert"], rule["annotations"]
        assert re.fullmatch(r"Porter([A-Z][a-z]+)+", name)
        assert rule["labels"] == {"severity": rule["labels"]["severity"]}, name
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert "{{" not in words["summary"], f"{name}: a summary is constant, so that alerts can be grouped by it"
        assert "{{ $labels." in words["description"], name
        assert words["runbook"] == f"docs/alerts.md#{name.lower()}"
        assert all(text.endswith(".") for text in (words["summary"], words["description"])), name
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))


def test_each_rule_has_its_section_and_there_is_no_other() -> None:
    sections = re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    told = {section.partition("\n")[0]: section for section in sections}
    assert list(told) == [rule["alert"] for rule in rules()], "in the same order"
    for rule in rules():
        section = told[rule["alert"]]
        assert rule["labels"]["severity"] in section.split("\n")[2], rule["alert"]
        missing = [part for part in PARTS if f"**{part}:**" not in section]
        assert missing == [], rule["alert"]


def test_each_rule_is_tried_both_ways(outages: Mapping[str, Any]) -> None:
    assert list(outages) == [rule["alert"] for rule in rules()], "in the same order"
    for name, outage in outages.items():
        assert outage["fires"], name
        assert outage["quiet"], name
        assert outage["fires"] != outage["quiet"], name
    # Whoever asks whether something is always there must not take the first moment for always.
    lasting = {rule["alert"] for rule in rules() if re.fullmatch(r"porter_\w+ > 0", rule["expr"])}
    assert lasting == {name for name, outage in outages.items() if "begun" in outage}
    assert len(lasting) == 3


def test_prometheus_agrees(outages: Mapping[str, Any], tmp_path: Path) -> None:
    require("promtool")
    tests = [test for rule in rules() for test in (*_fires(rule, outages), *_keeps_quiet(rule, outages))]
    played = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(played, sort_keys=False))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("which", ["fires", "quiet"])
def test_the_trial_would_notice(outages: Mapping[str, Any], tmp_path: Path, which: str) -> None:
    """The other way round promtool says no."""
    require("promtool")
    rule = rules()[0]
    test = _fires(rule, outages)[0] if which == "fires" else _keeps_quiet(rule, outages)[0]
    test["input_series"] = _series(outages[rule["alert"]]["quiet" if which == "fires" else "fires"])
    played = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(played, sort_keys=False))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0


def _fires(rule: Mapping[str, Any], outages: Mapping[str, Any]) -> list[dict[str, Any]]:
    name, outage = rule["alert"], outages[rule["alert"]]
    whose = {label: value for label, value in WHOSE.items() if label not in OF_A_SITE.get(name, ())}
    expected = {
        "exp_labels": {**whose, **rule["labels"], **outage.get("labels", {})},
        "exp_annotations": {**rule["annotations"], "description": outage["says"]},
    }
    return [_test(name, outage["at"], outage[which], [expected]) for which in ("fires", "also") if which in outage]


def _keeps_quiet(rule: Mapping[str, Any], outages: Mapping[str, Any]) -> list[dict[str, Any]]:
    outage = outages[rule["alert"]]
    return [_test(rule["alert"], outage["at"], outage[which], []) for which in ("quiet", "begun") if which in outage]


def _test(name: str, at: str, series: Mapping[str, str], expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "interval": "1m",
        "input_series": _series(series),
        "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": expected}],
    }


def _series(series: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"series": _with_whose(name), "values": values} for name, values in series.items()]


def _with_whose(series: str) -> str:
    """A series with the labels that Prometheus adds to what it scrapes."""
    name, _, labels = series.removesuffix("}").partition("{")
    added = ",".join(f'{label}="{value}"' for label, value in WHOSE.items() if f"{label}=" not in labels)
    return f"{name}{{{','.join(filter(None, (added, labels)))}}}"
