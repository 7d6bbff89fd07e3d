"""A wrong value fails at `helm install`, and is named; each value is explained, and known to the schema."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from tests.helm.chart_values import BACKENDS
from tests.servers.helm import CHART, Helm, Rejected
from tests.servers.programs import ROOT

VALUES = CHART / "values.yaml"
SCHEMA = CHART / "values.schema.json"


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """As helm merges values, but that null stays."""
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = merged(below[key], above[key])
    return both


def settings(**sections: Any) -> dict[str, Any]:
    return {"settings": sections}


FLEET = {"valkey": "rediss://valkey.mail.svc.cluster.local"}

# What is written, the key that the message names, and what more it says.
WRONG: list[tuple[dict[str, Any], str, str]] = [
    # in the settings, by the program's own schema
    (settings(backend={}), "settings", "backend"),
    (settings(backends={"serverz": []}), "settings.backends", "serverz"),
    (settings(backends={"servers": [{"name": "d1"}]}), "settings.backends.servers.0", "url"),
    (settings(workers="many"), "settings.workers", "auto"),
    (settings(listeners=None), "settings", "listeners"),
    (settings(listeners=[{"address": "[::]:1993", "tls": "sometimes"}]), "settings.listeners.0.tls", "implicit"),
    (settings(listeners=[{"address": "1993", "tls": "implicit"}]), "settings.listeners.0.address", "pattern"),
    (settings(timeouts={"drain": 30}), "settings.timeouts.drain", "string"),
    (settings(timeouts={"drain": "soon"}), "settings.timeouts.drain", "ms|s|m|h|d"),
    (settings(version=2), "settings.version", "1"),
    (
        settings(backends={"login": {"method": "master", "name": "porter", "password": "s3cret"}}),
        "settings.backends.login.password",
        "",
    ),
    (settings(limits={"connections_per_user": -1}), "settings.limits.connections_per_user", "1"),
    (settings(fleet={"redis": "redis://valkey"}), "settings.fleet", "redis"),
    (settings(fleet={"name": "porter-1"}), "settings.fleet", "valkey"),
    (settings(fleet={"valkey": "valkey.mail.svc:6379"}), "settings.fleet.valkey", "pattern"),
    (settings(fleet={"valkey": "rediss://:word@valkey.mail.svc"}), "settings.fleet.valkey", "pattern"),
    (settings(fleet={"valkey": "rediss://valkey/0,rediss://more"}), "settings.fleet.valkey", "pattern"),
    (settings(fleet=FLEET | {"password": "s3cret"}), "settings.fleet.password", ""),
    (settings(fleet=FLEET | {"secret": {"file": "/s", "env": "S"}}), "settings.fleet.secret", ""),
    (settings(fleet=FLEET | {"insecure": "yes"}), "settings.fleet.insecure", "boolean"),
    # in the settings, by what a pod needs
    (settings(backends={"servers": []}), "settings.backends", "name the mail servers"),
    (settings(backends={"servers": None}), "settings.backends", "name the mail servers"),
    (settings(admin=None), "settings.admin.address", "probes"),
    (settings(admin={"address": None}), "settings.admin.address", "probes"),
    (settings(admin={"address": "127.0.0.1:9143"}), "settings.admin.address", "kubelet cannot reach"),
    (settings(admin={"address": "[::1]:9143"}), "settings.admin.address", "kubelet cannot reach"),
    (settings(metrics={"address": "127.0.0.1:9142"}), "settings.metrics.address", "reach"),
    (settings(user="porter"), "settings.user", "leave it out"),
    (settings(fleet=FLEET | {"name": "porter-1"}), "settings.fleet.name", "leave it out"),
    # of the chart, by its schema
    ({"replica": 3}, "replica", "not allowed"),
    ({"replicas": 0}, "replicas", "1"),
    ({"replicas": "two"}, "replicas", "integer"),
    ({"kind": "StatefulSet"}, "kind", "DaemonSet"),
    ({"maxSurge": 0}, "maxSurge", ""),
    ({"fullnameOverride": "x" * 53}, "fullnameOverride", "pattern"),
    ({"nameOverride": "Mail_Front"}, "nameOverride", "pattern"),
    ({"image": {"repo": "x"}}, "image", "repo"),
    ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy", "IfNotPresent"),
    ({"service": {"type": "ExternalName"}}, "service.type", "ClusterIP"),
    ({"service": {"externalTrafficPolicy": "local"}}, "service.externalTrafficPolicy", "Local"),
    ({"service": {"ports": {"imaps": {"targetPort": 993}}}}, "service.ports.imaps.targetPort", "1024"),
    ({"service": {"ports": {"imaps": {"port": 70000}}}}, "service.ports.imaps.port", "65535"),
    (
        {"service": {"ports": {"a-name-that-is-too-long": {"port": 1, "targetPort": 1993}}}},
        "service.ports",
        "a-name-that-is-too-long",
    ),
    ({"service": {"ports": {"admin": {"port": 1, "targetPort": 1993}}}}, "service.ports.admin", "another port"),
    ({"secretMounts": [{"name": "x"}]}, "secretMounts.0", "mountPath"),
    ({"secretMounts": [{"name": "x", "mountPath": "run"}]}, "secretMounts.0.mountPath", "pattern"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "podDisruptionBudget.maxUnavailable", ""),
    ({"autoscaling": {"targetCPUUtilizationPercentage": 600}}, "autoscaling.targetCPUUtilizationPercentage", "100"),
    ({"readinessProbe": {"periodSeconds": 0}}, "readinessProbe.periodSeconds", "1"),
    ({"tls": {"secretName": ""}}, "tls.secretName", ""),
    ({"terminationGracePeriodSeconds": "1m"}, "terminationGracePeriodSeconds", ""),
    # of the chart, by what does not go together
    ({"terminationGracePeriodSeconds": 54}, "terminationGracePeriodSeconds", "54 is less than"),
    (
        settings(timeouts={"drain": "1h"}) | {"terminationGracePeriodSeconds": 300},
        "terminationGracePeriodSeconds",
        "= 3625",
    ),
    ({"service": {"ports": {"imaps": {"targetPort": 1994}}}}, "service.ports.imaps.targetPort", "they have 1993, 1143"),
    ({"service": {"nodePorts": {"imapz": 30993}}}, "service.nodePorts.imapz", "no port"),
    ({"service": {"type": "ClusterIP", "nodePorts": {"imaps": 30993}}}, "service.nodePorts", "NodePort"),
    ({"websocketService": {"enabled": True}}, "websocketService.targetPort", "8143"),
    ({"websocketService": {"enabled": True, "targetPort": 1993}}, "websocketService.targetPort", "protocol: websocket"),
    ({"tls": {"certManager": {"enabled": True, "issuerRef": {"name": "ca"}}}}, "tls.certManager.dnsNames", "name"),
    ({"tls": {"certManager": {"enabled": True, "dnsNames": ["x.example"]}}}, "tls.certManager.issuerRef.name", ""),
    ({"hostPorts": True}, "hostPorts", "DaemonSet"),
    ({"kind": "DaemonSet", "autoscaling": {"enabled": True}}, "autoscaling", "Deployment"),
    (
        {"autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": None}},
        "autoscaling",
        "targetSessionsPerPod",
    ),
    ({"autoscaling": {"enabled": True, "minReplicas": 11}}, "autoscaling.minReplicas", "maxReplicas"),
    ({"metrics": {"serviceMonitor": {"enabled": True}, "service": False}}, "metrics.serviceMonitor", "metrics.service"),
    (
        settings(metrics=None) | {"metrics": {"serviceMonitor": {"enabled": True}}},
        "metrics.serviceMonitor",
        "settings.metrics.address",
    ),
]


@pytest.mark.server
@pytest.mark.parametrize(("values", "key", "words"), WRONG)
def test_wrong_values(helm: Helm, values: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(Rejected) as rejected:
        helm.template(merged(BACKENDS, values))
    message = re.sub(r"(?<=\d),(?=\d{3})", "", str(rejected.value))  # helm 4 writes 65,535
    # Helm 3 writes settings.listeners.0.tls, helm 4 '/settings/listeners/0/tls'.
    assert re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", message.replace("/", ".").replace("'.", "'")), message
    assert words in message
    assert "nil pointer" not in message
    assert "invalid value" not in message
    assert "YAML parse error" not in message
    assert "s3cret" not in message


# --- the schema ---


def test_the_schema_is_as_the_program_has_it() -> None:
    made = runpy.run_path(str(ROOT / "helm" / "make_schema.py"))
    assert json.loads(SCHEMA.read_text()) == made["values_schema"](), "make docs"


def leaves(values: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys, those of sections too. Settings have a page of their own."""
    for key, value in values.items():
        yield (*at, key)
        if isinstance(value, dict) and (*at, key) != ("settings",):
            yield from leaves(value, (*at, key))


def schema_at(path: tuple[str, ...]) -> Any:
    node = json.loads(SCHEMA.read_text())
    for key in path:
        by_pattern = [each for pattern, each in node.get("patternProperties", {}).items() if re.fullmatch(pattern, key)]
        node = node.get("properties", {}).get(key) or [*by_pattern, node.get("additionalProperties")][0]
        if not node:
            return None
    return node


def test_the_schema_knows_each_value_and_each_value_has_a_default() -> None:
    given = set(leaves(yaml.safe_load(VALUES.read_text())))
    free = {("podSecurityContext",), ("securityContext",), ("resources",), ("tls", "certManager", "privateKey")}
    assert [path for path in given if not any(path[: len(f)] == f for f in free) and not schema_at(path)] == []
    top = json.loads(SCHEMA.read_text())["properties"]
    assert set(top) - {"global"} == {path[0] for path in given}


def test_each_value_is_explained() -> None:
    """By a comment beside it, or above it in its block; a section, by what is said of all that is in it."""
    explained, unexplained = False, []
    for line in VALUES.read_text().splitlines():
        if not line.strip() or line.startswith("# ---"):
            explained = False
        elif line.lstrip().startswith("#"):
            explained = True
        elif re.match(r" *[A-Za-z]+: *\S", line) and not explained and not re.search(r"\s# \S", line):
            unexplained.append(line)
    assert unexplained == []
