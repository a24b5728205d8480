"""`--workers` and its like, as settings."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fasthook import Hook
from fasthook.settings import SettingsError, load


def test_auto_is_the_cores_but_one_and_at_least_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for cores, quota, workers in [(1, None, 2), (2, 0.5, 2), (3, None, 2), (8, None, 7), (64, 4.0, 3), (8, 5.5, 5)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.setattr("fasthook.cores.cpu_quota", lambda _, quota=quota: quota)
        assert load({"workers": "auto"}, {}).workers == workers


@pytest.mark.parametrize(("given", "separate"), [({}, False), ({"workers": 2}, True), ({"workers": 1}, False)])
def test_when_the_bot_runs_in_processes_of_its_own(given: dict[str, Any], separate: bool) -> None:
    assert load(given, {}).in_processes is separate
    assert load(given | {"reload": True}, {}).in_processes
    assert load(given | {"max_requests": 1000}, {}).in_processes


@pytest.mark.parametrize("given", [{"workers": 2}, {"reload": True}, {"max_requests": 5}])
def test_windows_has_no_workers(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(SettingsError, match=r"^--workers, --max-requests and --reload: .* need Linux or macOS$"):
        load(given, {})


@pytest.mark.parametrize("given", [{"workers": 2}, {"reload": True}, {"max_requests": 5}, {"worker_timeout": 5}])
def test_a_hook_starts_no_processes(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="a Hook runs its handler in its own process; use `fasthook run`"):
        Hook(lambda update: None, **given)


def test_a_hook_in_a_bot_that_has_workers_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of a bot may make one, and is imported in a worker with the same environment."""
    monkeypatch.setenv("FASTHOOK_WORKERS", "4")
    Hook(lambda update: None)
