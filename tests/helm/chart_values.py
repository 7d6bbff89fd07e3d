"""Values for the chart: the least that it needs, and everything that can be turned on at once."""

from __future__ import annotations

from typing import Any

BACKENDS = {"settings": {"backends": {"servers": [{"name": "d1", "url": "imaps://10.0.0.11"}]}}}
HASH = "$argon2id$v=19$m=65536,t=3,p=4$HkA/zSL2W0qjZNjG7qMXMw$3/9eBlhXj8hzpHI6P6TwKBVfjUyj+v7TJmpMROiHq5Q"

EVERYTHING: dict[str, Any] = {
    "image": {"tag": "1.2.3", "pullSecrets": [{"name": "registry"}]},
    "fullnameOverride": "mail-front",
    "nodeSelector": {"role": "mail"},
    "tolerations": [{"key": "mail", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "mail",
    "podAnnotations": {"example.org/on": "yes"},
    "podLabels": {"team": "mail"},
    "settings": {
        "listeners": [
            {"address": "[::]:1993", "tls": "implicit", "proxy_protocol": {"trusted_networks": ["10.0.0.0/8"]}},
            {"address": "[::]:1143", "tls": "starttls"},
            {"address": "[::]:8143", "tls": "none", "protocol": "websocket", "trusted_networks": ["10.0.0.0/8"]},
        ],
        "admin": {
            "tls": {
                "certificate": "/etc/imap-porter/admin/tls.crt",
                "private_key": "/etc/imap-porter/admin/tls.key",
            },
            "tokens": [{"name": "ops", "role": "operator", "hash": HASH}],
        },
        **BACKENDS["settings"],
    },
    "terminationGracePeriodSeconds": 120,
    "tls": {
        "secretName": "front-tls",
        "certManager": {"enabled": True, "dnsNames": ["imap.example.org"], "issuerRef": {"name": "letsencrypt"}},
    },
    "secretMounts": [
        {"name": "admin.tls", "mountPath": "/etc/imap-porter/admin"},
        {"name": "admin.tls", "mountPath": "/run/again"},
    ],
    "configMapMounts": [{"name": "ca", "mountPath": "/etc/imap-porter/ca"}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "env": [{"name": "LDAP_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "ldap", "key": "password"}}}],
    "service": {
        "annotations": {"example.org/balancer": "network"},
        "loadBalancerClass": "example.org/nlb",
        "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "ipFamilyPolicy": "PreferDualStack",
        "nodePorts": {"imaps": 30993},
    },
    "websocketService": {"enabled": True, "annotations": {"example.org/a": "b"}},
    "adminService": {"enabled": True, "annotations": {"example.org/a": "b"}},
    "autoscaling": {"enabled": True, "targetSessionsPerPod": 5000},
    "networkPolicy": {
        "enabled": True,
        "monitoringFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "dovecot"}}}], "ports": [{"port": 143}]}],
    },
    "serviceAccount": {"annotations": {"example.org/a": "b"}},
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Mail"}},
    },
}
DAEMON_SET: dict[str, Any] = {**BACKENDS, "kind": "DaemonSet", "hostPorts": True, "service": {"type": "ClusterIP"}}
