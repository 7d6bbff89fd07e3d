"""The porter.yaml that pods read is one that the program takes, and the page tells how it gets there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from proxy.cli.main import app
from proxy.settings.loader import load
from tests.helm.chart_values import BACKENDS, DAEMON_SET, EVERYTHING, HASH
from tests.servers.helm import CHART, EXAMPLES, Helm, Manifest, Rejected, find, of_kind, pod_of
from tests.servers.pki import write_pki
from tests.servers.programs import ROOT

pytestmark = pytest.mark.server

PAGE = ROOT / "docs" / "kubernetes.md"
CONTENTS = {"users.yaml": f"alice: {{hash: '{HASH}'}}\n"}


def files_in(value: Any) -> set[str]:
    """Everything in the settings that looks like an absolute path."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return {path for each in inner for path in files_in(each)}
    return {value} if isinstance(value, str) and value.startswith("/") else set()


def as_mounted(manifests: list[Manifest], folder: Path) -> Path:
    """The settings as a pod reads them, but with a folder here for each mount; all files that they name are made."""
    pki = write_pki(folder / "pki")
    (container,) = pod_of(manifests)["spec"]["containers"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("subPath")]
    places = {mounted: folder / f"mount-{number}" for number, mounted in enumerate(mounts)}
    (text,) = (each["data"]["porter.yaml"] for each in of_kind(manifests, "ConfigMap") if "porter.yaml" in each["data"])
    # The longest first, since one mount may lie in another.
    mounted = "|".join(sorted(map(re.escape, mounts), key=len, reverse=True))
    text = re.sub(rf"(?<=[ \"'])({mounted})(?=/)", lambda found: str(places[found[1]]), text)
    made = {"tls.crt": pki.certificate, "tls.key": pki.private_key, "ca.crt": pki.ca}
    for path in map(Path, files_in(yaml.safe_load(text))):
        assert path.is_relative_to(folder), f"nothing is mounted where {path} is"
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".sock":
            continue
        path.write_text(made[path.name].read_text() if path.name in made else CONTENTS.get(path.name, "s3cret\n"))
        path.chmod(0o440)
    (folder / "porter.yaml").write_text(text)
    return folder / "porter.yaml"


@pytest.mark.parametrize("name", [*EXAMPLES, "defaults", "everything", "daemon set"])
def test_check_finds_no_mistakes(helm: Helm, name: str, tmp_path: Path) -> None:
    values = {"defaults": BACKENDS, "everything": EVERYTHING, "daemon set": DAEMON_SET}.get(name, {})
    manifests = helm.template(values, *([EXAMPLES[name]] if name in EXAMPLES else []))
    checked = subprocess.run(
        [Path(sys.executable).parent / "imap-porter", "check", "-c", as_mounted(manifests, tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "no mistakes" in checked.stdout


def test_what_helm_writes_is_what_was_written(helm: Helm, tmp_path: Path) -> None:
    """Large numbers, and names that other readers of YAML take for numbers and truth values."""
    overrides = dict.fromkeys(("no", "on", "~", "1e3", "0o17", "0x1f", "12:30:00", "1_000", "2001-12-14"), "d1")
    written = {"limits": {"connections": 1000000}, "routing": {"overrides": overrides}}
    manifests = helm.template({"settings": {**BACKENDS["settings"], **written}})
    settings = load(as_mounted(manifests, tmp_path))
    assert settings.limits.connections == 1000000
    assert dict(settings.routing.overrides) == overrides


# --- the page ---


def blocks(language: str) -> list[str]:
    """The page's code, as it would be pasted."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return [re.sub(r"^   ", "", block, flags=re.MULTILINE) for block in found]


def test_its_values_install(helm: Helm) -> None:
    for block in blocks("yaml"):
        manifests = helm.template(yaml.safe_load(block), release="porter")
        assert find(manifests, "Deployment")["metadata"]["name"] == "porter-imap-porter"


def test_the_mistake_that_it_shows(helm4: Helm) -> None:
    (shown,) = re.findall(r"with its\s+place: `([^`]+)`", PAGE.read_text())
    with pytest.raises(Rejected, match=re.escape(shown)):
        helm4.template({"settings": {"backends": {"serverz": []}}})


def test_its_commands_name_what_is_there(helm4: Helm) -> None:
    manifests = helm4.template(yaml.safe_load(blocks("yaml")[0]), release="porter")
    named = {(each["kind"].lower(), each["metadata"]["name"]) for each in manifests}
    secrets = {
        ("secret", volume["secret"]["secretName"])
        for volume in pod_of(manifests)["spec"]["volumes"]
        if "secret" in volume
    }
    text = PAGE.read_text()
    asked = set(re.findall(r"\b(?:deploy/|service |secret tls )(\S*porter\S*)", text))
    assert asked
    assert asked <= {name for _, name in named | secrets}
    assert set(re.findall(r"helm/imap-porter(?:/examples)?(?=[` ])", text)) <= {
        str(path.relative_to(ROOT)) for path in (CHART, CHART / "examples")
    }
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    used = {shlex.split(found)[0] for found in re.findall(r"(?:-- |`)imap-porter (\w\S*)", text)}
    assert used
    assert used <= commands


def test_its_words_about_values_are_values(helm4: Helm) -> None:
    """`a.b` in the page is a key of the chart's values or of the settings."""
    text = re.sub(r"^ *```.*?^ *```$", "", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = schema["properties"]
    settings = set(schema["$defs"]["Settings"]["properties"])
    for word in re.findall(r"`([a-zA-Z_]+(?:\.[a-zA-Z_]+)+)(?:: [^`]+)?`", text):
        first, *inner = word.removeprefix("settings.").split(".")
        if word.startswith("settings."):
            assert first in settings, word
        elif first in known:
            assert inner[0] in known[first]["properties"], word
        else:
            assert first in settings or word in ("values.yaml", "porter.yaml"), word


def test_its_numbers_are_the_charts(helm4: Helm) -> None:
    text = PAGE.read_text()
    scaled = find(helm4.template(EVERYTHING), "HorizontalPodAutoscaler")["spec"]["behavior"]["scaleDown"]
    assert scaled["stabilizationWindowSeconds"] == 3600
    assert "only after an hour" in text
    assert scaled["policies"][0]["periodSeconds"] == 1800
    assert "one in half an hour" in text
    assert "`drain_grace + drain + 15`" in text
