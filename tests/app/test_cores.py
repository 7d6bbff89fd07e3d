"""How many cores may be used, as control groups have it."""

from __future__ import annotations

import os

import pytest

from proxy.app.cores import cgroup_quota, cores

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:7 - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "34 32 0:30 / /sys/fs/cgroup/memory rw shared:8 - cgroup cgroup rw,memory\n"
DOCKER_V1 = "40 39 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"

# /proc/self/cgroup, /proc/self/mountinfo, other files, the quota
QUOTAS = [
    ("no control groups", "", "", {}, None),
    ("none is set", "0::/a\n", V2, {"/sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
    ("version 2", "0::/a\n", V2, {"/sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
    ("a container's own root", "0::/\n", V2, {"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
    (
        "the one above is tighter",
        "0::/a/b\n",
        V2,
        {"/sys/fs/cgroup/a/cpu.max": "200000 100000\n", "/sys/fs/cgroup/a/b/cpu.max": "800000 100000\n"},
        2.0,
    ),
    (
        "version 1",
        "4:memory:/m\n3:cpu,cpuacct:/a\n",
        V1_MEMORY + V1,
        {
            "/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n",
            "/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        },
        2.5,
    ),
    (
        "version 1, none is set",
        "3:cpu,cpuacct:/a\n",
        V1,
        {
            "/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "-1\n",
            "/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    (
        "version 1 in a container that sees its whole path",
        "3:cpu,cpuacct:/docker/abc\n",
        DOCKER_V1,
        {
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
    (
        "both at once",
        "3:cpu,cpuacct:/a\n0::/b\n",
        V1 + V2,
        {
            "/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n",
            "/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            "/sys/fs/cgroup/b/cpu.max": "100000 100000\n",
        },
        1.0,
    ),
    ("a path outside of what is mounted", "0::/../../x\n", V2, {"/sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1.0),
]


@pytest.mark.parametrize(("name", "groups", "mounts", "files", "quota"), QUOTAS)
def test_quota(name: str, groups: str, mounts: str, files: dict[str, str], quota: float | None) -> None:
    texts = {"/proc/self/cgroup": groups, "/proc/self/mountinfo": mounts, **files}
    assert cgroup_quota(texts.get) == quota


LIMITS = [
    ("no quota", "max 100000", {0, 1, 2, 3}, 4),
    ("rounded up", "150000 100000", {0, 1, 2, 3}, 2),
    ("less than one", "10000 100000", {0, 1, 2, 3}, 1),
    ("more than there are", "900000 100000", {0, 1}, 2),
]


@pytest.mark.parametrize(("name", "quota", "affinity", "count"), LIMITS)
def test_cores(monkeypatch: pytest.MonkeyPatch, name: str, quota: str, affinity: set[int], count: int) -> None:
    texts = {
        "/proc/self/cgroup": "0::/\n",
        "/proc/self/mountinfo": V2,
        "/sys/fs/cgroup/cpu.max": quota,
    }
    monkeypatch.setattr("proxy.app.cores._read", texts.get)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: affinity)
    assert cores() == count


def test_this_machine() -> None:
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
