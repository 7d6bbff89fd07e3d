"""Real helms, and what they make of the chart."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.programs import ROOT

CHART = ROOT / "helm" / "imap-porter"
EXAMPLES = {path.stem: path for path in sorted((CHART / "examples").glob("*.yaml"))}
BINARIES = ROOT / ".make" / "helm"  # by tests/servers/helm.sh
RELEASE = "rel"
KUBERNETES = "1.30"
Manifest = dict[str, Any]


class Rejected(Exception):
    """What helm says against chart or values."""


@dataclass(frozen=True)
class Helm:
    """One helm, and the kubectl that came with it."""

    folder: Path
    home: Path

    def run(self, program: str, *arguments: object, given: str = "") -> str:
        """What it prints.

        Raises:
            Rejected: It ended with another status than 0.
        """
        ended = subprocess.run(
            [self.folder / program, *map(str, arguments)],
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PATH": os.defpath, "HOME": str(self.home)},
        )
        if ended.returncode:
            raise Rejected(ended.stderr)
        return ended.stdout

    def template(
        self, values: Mapping[str, Any], *files: Path, kubernetes: str = KUBERNETES, release: str = RELEASE
    ) -> list[Manifest]:
        """The chart's manifests with values on top of those of files."""
        arguments: list[object] = ["template", release, CHART, "--namespace", "mail", "--kube-version", kubernetes]
        for file in files:
            arguments += ["-f", file]
        printed = self.run("helm", *arguments, "-f", "-", given=json.dumps(values))
        return [manifest for manifest in yaml.safe_load_all(printed) if manifest]


def require_helm(version: int, home: Path) -> Helm:
    """That version; the test skips where it is not installed."""
    if not (BINARIES / "installed").exists():
        pytest.skip(f"helm {version} is not installed")
    return Helm(BINARIES / str(version), home)


def find(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    """The only one of a kind, or the one whose name ends so."""
    (found,) = (each for each in of_kind(manifests, kind) if each["metadata"]["name"].endswith(name))
    return found


def of_kind(manifests: list[Manifest], kind: str) -> Iterator[Manifest]:
    return (manifest for manifest in manifests if manifest["kind"] == kind)


def pod_of(manifests: list[Manifest]) -> Manifest:
    """The template of the pods."""
    (workload,) = (manifest for manifest in manifests if manifest["kind"] in ("Deployment", "DaemonSet"))
    return workload["spec"]["template"]  # type: ignore[no-any-return]


def settings_of(manifests: list[Manifest]) -> dict[str, Any]:
    """porter.yaml as the pods read it."""
    (text,) = (each["data"]["porter.yaml"] for each in of_kind(manifests, "ConfigMap") if "porter.yaml" in each["data"])
    return yaml.safe_load(text)  # type: ignore[no-any-return]
