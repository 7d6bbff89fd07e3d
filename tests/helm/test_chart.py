"""What the chart renders is what Kubernetes, Prometheus and cert-manager understand, and its parts find each other."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

import proxy
from proxy.settings.models import Settings
from proxy.settings.values import parse_server_name
from tests.helm.chart_values import BACKENDS, DAEMON_SET, EVERYTHING
from tests.servers.helm import CHART, EXAMPLES, KUBERNETES, RELEASE, Helm, Manifest, find, of_kind, pod_of, settings_of
from tests.servers.programs import ROOT, require

pytestmark = pytest.mark.server

VERSIONS = ("1.28", "1.30", "1.33")
FOREIGN = {"ServiceMonitor", "PrometheusRule", "Certificate"}  # of operators: Kubernetes has no schema of them
# Values by a name: what examples say, and what goes on top.
CASES: dict[str, tuple[list[Path], Mapping[str, Any]]] = {
    **{name: ([path], {}) for name, path in EXAMPLES.items()},
    "defaults": ([], BACKENDS),
    "everything": ([], EVERYTHING),
    "daemon set": ([], DAEMON_SET),
    "user ids by the cluster": (
        [],
        {**BACKENDS, "podSecurityContext": dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"))},
    ),
    "one port": ([], {**BACKENDS, "service": {"type": "NodePort", "ports": {"imap": None}}}),
    "bare": (
        [],
        {
            "settings": {**BACKENDS["settings"], "metrics": None, "timeouts": None},
            "serviceAccount": {"create": False},
            "podDisruptionBudget": {"enabled": False},
            "networkPolicy": {"enabled": True},
        },
    ),
}


@pytest.fixture(params=list(CASES))
def rendered(request: pytest.FixtureRequest, helm4: Helm) -> list[Manifest]:
    files, values = CASES[request.param]
    return helm4.template(values, *files)


@pytest.mark.parametrize("name", ["", *EXAMPLES])
def test_lint(helm: Helm, name: str) -> None:
    """Also without any values, as pipelines do it."""
    helm.run("helm", "lint", "--strict", CHART, *(["-f", EXAMPLES[name]] if name else []))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CASES)
def test_kubernetes_knows_every_key(helm: Helm, name: str, version: str) -> None:
    files, values = CASES[name]
    manifests = helm.template(values, *files, kubernetes=version)
    identities = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(set(identities)) == len(identities) > 2
    for manifest in manifests:
        if manifest["kind"] not in FOREIGN:
            assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_both_helms_render_the_same(tmp_path: Path, helm4: Helm) -> None:
    three = Helm(helm4.folder.parent / "3", tmp_path)
    for files, values in CASES.values():
        assert {str(each) for each in helm4.template(values, *files)} == {
            str(each) for each in three.template(values, *files)
        }


def test_kubectl_reads_them(helm: Helm) -> None:
    """As objects: it gives each a label and writes it again."""
    manifests = yaml.safe_dump_all(helm.template(EVERYTHING))
    printed = helm.run("kubectl", "label", "--local", "-f", "-", "tried=yes", "-o", "name", given=manifests)
    assert len(printed.split()) == len(list(yaml.safe_load_all(manifests)))


def test_an_old_cluster_is_refused(helm: Helm) -> None:
    with pytest.raises(Exception, match="incompatible with Kubernetes"):
        helm.template(BACKENDS, kubernetes="1.27")


def test_the_package_is_whole(helm: Helm, tmp_path: Path) -> None:
    helm.run("helm", "package", CHART, "--destination", tmp_path)
    package = tmp_path / f"imap-porter-{proxy.__version__}.tgz"
    with tarfile.open(package) as archive:
        names = {name.removeprefix("imap-porter/") for name in archive.getnames()}
        alerts = archive.extractfile("imap-porter/files/alerts.yaml")
        assert alerts is not None
        assert alerts.read() == (ROOT / "grafana" / "alerts.yaml").read_bytes()
    assert names == {str(path.relative_to(CHART)) for path in CHART.rglob("*") if path.is_file()}
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == proxy.__version__
    assert {path.name for path in (CHART / "files").iterdir()} == {path.name for path in (ROOT / "grafana").iterdir()}
    printed = helm.run("helm", "template", RELEASE, package, "-f", EXAMPLES["minimal"])
    assert len(list(yaml.safe_load_all(printed))) > 4


# --- the parts find each other ---


def test_selectors_find_the_pods(rendered: list[Manifest]) -> None:
    pod = pod_of(rendered)
    labels = pod["metadata"]["labels"].items()
    selectors = [each["spec"]["selector"] for each in of_kind(rendered, "Service")]
    for kind in ("Deployment", "DaemonSet", "PodDisruptionBudget"):
        selectors += [each["spec"]["selector"]["matchLabels"] for each in of_kind(rendered, kind)]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in of_kind(rendered, "NetworkPolicy")]
    spread = pod["spec"].get("topologySpreadConstraints", [])
    selectors += [each["labelSelector"]["matchLabels"] for each in spread]
    assert len(selectors) >= 2
    assert [selector for selector in selectors if not selector or not selector.items() <= labels] == []
    for scaler in of_kind(rendered, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert find(rendered, target["kind"])["metadata"]["name"] == target["name"]
        assert "replicas" not in find(rendered, "Deployment")["spec"], "else each upgrade would undo the scaling"


def test_named_ports_exist(rendered: list[Manifest]) -> None:
    """Who names a port means one of the container's, on which the settings have somebody listen."""
    pod = pod_of(rendered)
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert len(ports) == len(container["ports"])
    named = {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    for service in of_kind(rendered, "Service"):
        named |= {port["targetPort"] for port in service["spec"]["ports"]}
    for policy in of_kind(rendered, "NetworkPolicy"):
        named |= {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert named <= set(ports)
    settings = settings_of(rendered)
    addresses = [listener["address"] for listener in settings["listeners"]]
    addresses += [settings[key]["address"] for key in ("admin", "metrics") if key in settings]
    assert set(ports.values()) <= {int(address.rpartition(":")[2]) for address in addresses}
    assert min(ports.values()) >= 1024


def test_volumes_and_mounts_are_pairs(rendered: list[Manifest]) -> None:
    spec = pod_of(rendered)["spec"]
    volumes = [volume["name"] for volume in spec["volumes"]]
    mounts = spec["containers"][0]["volumeMounts"]
    assert sorted(volumes) == sorted(mount["name"] for mount in mounts)
    assert len(set(volumes)) == len(volumes)
    assert [mount["mountPath"] for mount in mounts if not mount.get("readOnly")] in (["/tmp"], ["/tmp", "/more"])


def test_no_rights(rendered: list[Manifest]) -> None:
    spec = pod_of(rendered)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [each for each in rendered if each["kind"] in ("Role", "RoleBinding", "ClusterRole")] == []
    account = spec["serviceAccountName"]
    created = [each["metadata"]["name"] for each in of_kind(rendered, "ServiceAccount")]
    assert created == ([] if account == "default" else [account])


# --- pods that know of each other ---


def test_a_fleet_is_let_out_to_its_valkey(helm4: Helm) -> None:
    manifests = helm4.template({}, EXAMPLES["fleet"])
    fleet = settings_of(manifests)["fleet"]
    policy = find(manifests, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert urlsplit(fleet["valkey"]).port in {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    mounted = [mount["mountPath"] for mount in pod_of(manifests)["spec"]["containers"][0]["volumeMounts"]]
    for file in (fleet["password"]["file"], fleet["secret"]["file"], fleet["ca"]):
        assert str(Path(file).parent) in mounted


def test_pods_of_a_fleet_have_names_that_it_takes(helm4: Helm) -> None:
    """Those of the longest release too, which Kubernetes cuts before it puts five letters of the pod's own behind."""
    manifests = helm4.template({}, EXAMPLES["fleet"], release="r" * 53)
    pod = f"{find(manifests, 'Deployment')['metadata']['name']}-6d5f7b8c9d-"[:58] + "x2v4q"
    assert parse_server_name(pod) == pod
    assert "name" not in settings_of(manifests)["fleet"]


# --- a pod that ends ---


@pytest.mark.parametrize(
    ("timeouts", "seconds"),
    [
        ({}, 10 + 30 + 15),
        ({"drain": "1h"}, 10 + 3600 + 15),
        ({"drain": "90s", "drain_grace": "2m"}, 120 + 90 + 15),
        ({"drain": "1500ms", "drain_grace": "0s"}, 0 + 2 + 15),
        ({"drain": "3000 ms", "drain_grace": "1 s"}, 1 + 3 + 15),
        ({"drain": "1d"}, 10 + 86400 + 15),
    ],
)
def test_the_grace_period_is_long_enough(helm: Helm, timeouts: dict[str, str], seconds: int) -> None:
    settings = {**BACKENDS["settings"], "timeouts": timeouts}
    assert pod_of(helm.template({"settings": settings}))["spec"]["terminationGracePeriodSeconds"] == seconds
    enough = {"settings": settings, "terminationGracePeriodSeconds": seconds + 1}
    assert pod_of(helm.template(enough))["spec"]["terminationGracePeriodSeconds"] == seconds + 1


@pytest.mark.parametrize(
    ("grace", "probe", "failures"),
    [
        ("10s", {}, 6),
        ("0s", {}, 2),
        ("9s", {}, 6),
        ("1m", {"periodSeconds": 5}, 13),
        ("10s", {"failureThreshold": 2}, 2),
    ],
)
def test_a_pod_that_ends_counts_as_ready_while_it_lets_clients_in(
    helm: Helm, grace: str, probe: dict[str, int], failures: int
) -> None:
    settings = {**BACKENDS["settings"], "timeouts": {"drain_grace": grace}}
    (container,) = pod_of(helm.template({"settings": settings, "readinessProbe": probe}))["spec"]["containers"]
    assert container["readinessProbe"]["failureThreshold"] == failures


def test_without_timeouts_the_programs_defaults_count(helm4: Helm) -> None:
    timeouts = Settings.model_fields["timeouts"].get_default(call_default_factory=True)
    manifests = helm4.template({"settings": {**BACKENDS["settings"], "timeouts": None}})
    assert "timeouts" not in settings_of(manifests)
    least = timeouts.drain_grace + timeouts.drain + 15
    assert pod_of(manifests)["spec"]["terminationGracePeriodSeconds"] == least


@pytest.mark.parametrize(
    ("changes", "strategy", "most_gone", "most_more"),
    [
        ({}, "strategy", 0, 1),
        ({"maxSurge": "25%"}, "strategy", 0, "25%"),
        ({"kind": "DaemonSet"}, "updateStrategy", 0, 1),
        ({"kind": "DaemonSet", "hostPorts": True}, "updateStrategy", 1, 0),
    ],
)
def test_new_pods_come_before_old_ones_go(
    helm4: Helm, changes: dict[str, Any], strategy: str, most_gone: object, most_more: object
) -> None:
    (workload,) = (
        each for each in helm4.template({**BACKENDS, **changes}) if each["kind"] in ("Deployment", "DaemonSet")
    )
    rolling = workload["spec"][strategy]["rollingUpdate"]
    assert rolling == {"maxUnavailable": most_gone, "maxSurge": most_more}


def test_new_settings_are_new_pods(helm4: Helm) -> None:
    def annotation(**changes: Any) -> str:
        settings = {**BACKENDS["settings"], **changes}
        return pod_of(helm4.template({"settings": settings}))["metadata"]["annotations"]["checksum/settings"]  # type: ignore[no-any-return]

    assert annotation() == annotation()
    assert annotation() != annotation(log={"level": "debug"})


def test_host_ports_are_what_clients_see(helm4: Helm) -> None:
    (container,) = pod_of(helm4.template(DAEMON_SET))["spec"]["containers"]
    seen = {port["name"]: port.get("hostPort") for port in container["ports"]}
    assert seen == {"imaps": 993, "imap": 143, "admin": None, "metrics": None}


def test_scaling_down_is_slow_enough_for_idle(helm4: Helm) -> None:
    scaler = find(helm4.template(EVERYTHING), "HorizontalPodAutoscaler")["spec"]
    assert [metric["type"] for metric in scaler["metrics"]] == ["Resource", "Pods"]
    assert scaler["behavior"]["scaleDown"] == {
        "stabilizationWindowSeconds": 3600,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 1800}],
    }


# --- those who watch ---


def test_probes_speak_as_the_admin_door_does(helm4: Helm) -> None:
    for values, scheme in ((BACKENDS, "HTTP"), (EVERYTHING, "HTTPS")):
        (container,) = pod_of(helm4.template(values))["spec"]["containers"]
        asked = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
        assert [each["path"] for each in asked] == ["/livez", "/livez", "/readyz"]
        assert {each["scheme"] for each in asked} == {scheme}


def test_prometheus_takes_the_rules(helm: Helm, tmp_path: Path) -> None:
    rule = find(helm.template(EVERYTHING), "PrometheusRule")
    assert (rule["apiVersion"], rule["metadata"]["labels"]["release"]) == ("monitoring.coreos.com/v1", "prometheus")
    assert rule["spec"] == yaml.safe_load((ROOT / "grafana" / "alerts.yaml").read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    checked = subprocess.run(
        [require("promtool"), "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_monitor_finds_the_service(helm4: Helm) -> None:
    manifests = helm4.template(EVERYTHING)
    monitor = find(manifests, "ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint == {
        "port": "metrics",
        "interval": "15s",
        "relabelings": [{"targetLabel": "job", "replacement": "imap-porter"}],
    }
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = (each for each in of_kind(manifests, "Service") if wanted <= each["metadata"]["labels"].items())
    assert [port["name"] for port in service["spec"]["ports"]] == ["metrics"]
    assert service["spec"]["clusterIP"] == "None", "each pod has figures of its own"
    assert 'job="imap-porter"' in (ROOT / "grafana" / "alerts.yaml").read_text()


def test_dashboards_are_those_of_grafana(helm4: Helm) -> None:
    maps = [each for each in of_kind(helm4.template(EVERYTHING), "ConfigMap") if "porter.yaml" not in each["data"]]
    found = {name: text for each in maps for name, text in each["data"].items()}
    assert found == {path.name: path.read_text() for path in (ROOT / "grafana").glob("*.json")}
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in maps)
    assert all(each["metadata"]["annotations"] == {"grafana_folder": "Mail"} for each in maps)


def test_cert_manager_makes_the_secret_that_is_mounted(helm4: Helm) -> None:
    manifests = helm4.template(EVERYTHING)
    certificate = find(manifests, "Certificate")
    assert certificate["apiVersion"] == "cert-manager.io/v1"
    assert certificate["spec"] == {
        "secretName": "front-tls",
        "dnsNames": ["imap.example.org"],
        "issuerRef": {"kind": "ClusterIssuer", "name": "letsencrypt"},
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
    }
    mounted = [volume["secret"]["secretName"] for volume in pod_of(manifests)["spec"]["volumes"] if "secret" in volume]
    assert "front-tls" in mounted


def test_clients_and_services(helm4: Helm) -> None:
    manifests = helm4.template(EVERYTHING)
    front = find(manifests, "Service", "mail-front")["spec"]
    assert (front["type"], front["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    seen = [(port["name"], port["port"], port.get("nodePort")) for port in front["ports"]]
    assert seen == [("imap", 143, None), ("imaps", 993, 30993)]
    assert find(manifests, "Service", "-websocket")["spec"]["ports"][0]["port"] == 80
    assert find(manifests, "Service", "-admin")["spec"]["ports"][0]["port"] == 9143


def test_labels_and_the_long_name_of_a_release(helm: Helm) -> None:
    manifests = helm.template(EVERYTHING | {"fullnameOverride": ""}, kubernetes=KUBERNETES, release="r" * 53)
    for manifest in manifests:
        metadata = manifest["metadata"]
        assert len(metadata["name"]) <= 63 or manifest["kind"] == "ConfigMap", metadata["name"]
        assert len(metadata["name"]) <= 253
        assert (
            metadata["labels"].items()
            >= {
                "app.kubernetes.io/name": "imap-porter",
                "app.kubernetes.io/instance": "r" * 53,
                "app.kubernetes.io/version": proxy.__version__,
                "app.kubernetes.io/managed-by": "Helm",
                "helm.sh/chart": f"imap-porter-{proxy.__version__}",
            }.items()
        )
