"""How many processor cores this process may use: the system's, its affinity's, or what its container is given."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path, PurePosixPath

_CGROUPS = "sys/fs/cgroup"
_MOUNTS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")  # where the first version's `cpu` is mounted


def cores() -> int:
    """Cores, at least 1; a part of one counts as one."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    mine = len(os.sched_getaffinity(0))
    quota = cpu_quota(Path("/"))
    return mine if quota is None else max(1, min(mine, math.ceil(quota)))


def cpu_quota(root: Path) -> float | None:
    """The cores that the control groups of this process leave it, by the files below `root`; None: no limit, or none
    that can be read.

    A group has at most what those above it have. Linux: `cpu.max` (cgroup-v2.rst), `cpu.cfs_quota_us` and
    `cpu.cfs_period_us` (sched-bwc.rst).
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeError):
        return None
    found: list[float | None] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            found += [_second(group) for group in _upwards(root / _CGROUPS, path)]
        elif "cpu" in controllers.split(","):
            found += [_first(group) for mount in _MOUNTS for group in _upwards(root / _CGROUPS / mount, path)]
    return min((quota for quota in found if quota is not None), default=None)


def _upwards(mount: Path, path: str) -> list[Path]:
    """The directories of a group and of those above it, as far as they can be seen: in a container the path may be the
    host's, and then only the mount itself is there."""
    group = PurePosixPath(path.lstrip("/"))
    if ".." in group.parts:  # above the root of its namespace
        return [mount]
    return [mount / part for part in (group, *group.parents)]


def _second(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such file: the root of all groups has none
        return None


def _first(group: Path) -> float | None:
    try:
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None  # -1: no limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
