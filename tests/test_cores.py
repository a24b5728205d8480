"""What control groups leave a process, by files as Linux has them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fasthook import cores
from fasthook.cores import cpu_quota

V1 = "sys/fs/cgroup/cpu,cpuacct"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


SECOND = {
    "a container's own namespace": ("0::/", {"cpu.max": "150000 100000"}, 1.5),
    "no limit": ("0::/", {"cpu.max": "max 100000"}, None),
    "the root has no file": ("0::/", {"cpu.stat": "usage_usec 1"}, None),
    "its own": ("0::/system.slice/bot.service", {"system.slice/bot.service/cpu.max": "50000 100000"}, 0.5),
    "one above": (
        "0::/a/b/c",
        {"a/b/c/cpu.max": "max 100000", "a/b/cpu.max": "400000 100000", "a/cpu.max": "300000 100000"},
        3,
    ),
    "the least": ("0::/a/b", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "800000 100000"}, 2),
    "a path of the host": ("0::/docker/0123", {"cpu.max": "200000 100000"}, 2),
    "above its namespace": ("0::/../other", {"cpu.max": "200000 50000"}, 4),
    "damaged": ("0::/", {"cpu.max": "nonsense"}, None),
    "no period": ("0::/", {"cpu.max": "100 0"}, None),
}


@pytest.mark.parametrize(("line", "files", "quota"), SECOND.values(), ids=SECOND.keys())
def test_the_second_version(tmp_path: Path, line: str, files: dict[str, str], quota: float | None) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": line} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert cpu_quota(root) == quota


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("limit", "quota"), [("250000", 2.5), ("-1", None)])
def test_the_first_version(tmp_path: Path, mount: str, limit: str, quota: float | None) -> None:
    lines = "12:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n0::/docker/0123"
    files = {"cpu.cfs_quota_us": limit, "cpu.cfs_period_us": "100000"}
    root = tree(tmp_path, {"proc/self/cgroup": lines} | {f"sys/fs/cgroup/{mount}/{k}": v for k, v in files.items()})
    assert cpu_quota(root) == quota


def test_another_controller_s_group(tmp_path: Path) -> None:
    files = {f"{V1}/a/cpu.cfs_quota_us": "100000", f"{V1}/a/cpu.cfs_period_us": "100000"}
    assert cpu_quota(tree(tmp_path, {"proc/self/cgroup": "3:cpuset:/a\n4:cpu,cpuacct:/b"} | files)) is None


def test_no_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
@pytest.mark.parametrize(("quota", "expected"), [(0.2, 1), (1.0, 1), (1.1, 2), (2.5, 3), (64.0, 4), (None, 4)])
def test_a_part_of_a_core_counts_as_one(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "cpu_quota", lambda root: quota)
    assert cores.cores() == expected
