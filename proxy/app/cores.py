"""How many processor cores this process may use: what `workers: auto` means.

A control group's quota (`--cpus` of a container, CPUQuota of a unit) counts beside the affinity: with a worker for each
core of a large machine, and a quota of two, the workers would only take turns in being throttled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

Read = Callable[[str], str | None]


def cores() -> int:
    """The cores of the affinity mask, or fewer where the quota is less; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cgroup_quota(_read)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cgroup_quota(read: Read) -> float | None:
    """The least quota, in cores, of this process's control groups (version 2 and 1) and of those above them.

    Args:
        read: Gives a file's text, None where there is no such file.
    Returns:
        None: There is no quota.
    Source: cgroups(7); the kernel's admin-guide/cgroup-v2.rst, scheduler/sched-bwc.rst; mountinfo in proc(5).
    """
    paths = dict(_memberships(read("/proc/self/cgroup") or ""))
    quotas: list[float] = []
    for controller, root, mount_point in _mounts(read("/proc/self/mountinfo") or ""):
        path = paths.get(controller)
        if path is None:
            continue
        for folder in _folders(path, root, mount_point):
            quota = _quota_v1(folder, read) if controller else _quota_v2(folder, read)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _memberships(text: str) -> Iterator[tuple[str, str]]:
    """From /proc/self/cgroup: the paths of version 2 (as "") and of version 1's controller `cpu`."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            yield ("cpu" if controllers else ""), path


def _mounts(text: str) -> Iterator[tuple[str, str, str]]:
    """From /proc/self/mountinfo, as _memberships: which of them, the path that is mounted, and where."""
    for line in text.splitlines():
        fields, _, tail = line.partition(" - ")
        _, _, _, root, mount_point, *_ = fields.split(" ")
        kind, _, options = tail.split(" ", 2)
        if kind == "cgroup2":
            yield "", root, mount_point
        elif kind == "cgroup" and "cpu" in options.split(","):
            yield "cpu", root, mount_point


def _folders(path: str, root: str, mount_point: str) -> Iterator[str]:
    """The group's own folder and those above it, as far as they can be seen from here."""
    inner = PurePosixPath(path)
    # A container that has no namespace of its own for groups sees its whole path, and only its own group mounted.
    inside = inner.relative_to(root) if inner.is_relative_to(root) else PurePosixPath()
    for folder in (inside, *inside.parents):
        relative = PurePosixPath(*(part for part in folder.parts if part not in ("/", "..")))
        yield str(PurePosixPath(mount_point) / relative)


def _quota_v2(folder: str, read: Read) -> float | None:
    """`cpu.max`: "max 100000", or quota and period."""
    quota, _, period = (read(f"{folder}/cpu.max") or "max").strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: str, read: Read) -> float | None:
    quota, period = read(f"{folder}/cpu.cfs_quota_us"), read(f"{folder}/cpu.cfs_period_us")
    if quota is None or period is None or int(quota) < 0:
        return None
    return int(quota) / int(period)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None
