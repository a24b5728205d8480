"""The page of figures, opened in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import history
from bench.dashboard import Chart, charts

from shipping.chromium import Browser, browser, find

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 8 * 2**20  # bytes; plotly is most of it


def row(name: str, ratio: float, connections: int = 64) -> dict[str, Any]:
    median = {"ratio": ratio, "cpu_us": ratio * 8, "p50_ms": 1.0, "p99_ms": 2.0, "p999_ms": 3.0, "max_ms": 9.0}
    return {"name": name, "connections": connections, "median": median, "rounds": [median]}


def record(number: int) -> dict[str, Any]:
    peers = {
        "date": f"2026-01-{number + 1:02}T12:00:00+00:00",
        "command": "python -m bench.peers --all",
        "machine": {"cpu": "a <fast> one"},
        "rows": [row("limit.c", 1), row("fasthook memory: (no-op)", 1.2), row("FastAPI", 60)],
        "sweep": [row("limit.c", 1, 1), row("limit.c", 1, 512)],
        "steady": [row("fasthook memory: (no-op)", 1.2)],
    }
    return {
        "schema": 1,
        "commit": f"{number + 1:08x}0000",
        "date": f"2026-01-{number + 1:02}T12:00:00+00:00",
        "subject": "A subject with <b>marks</b> & </script>",
        "machine": {"python": "3.11.7"},
        "micro": {"scan, 500 B / orjson.loads": {"ns": 250.0 + number, "ratio": 5.0, "plain": "orjson.loads"}},
        "instructions": {"scan": 4000 + number},
        "peers": peers if number % 2 else None,
    }


def dashboard(store: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.dashboard", "--store", str(store), "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    for number in range(4):
        (store / f"{number}.json").write_text(json.dumps(record(number)))
    out = store / "page.html"
    done = dashboard(store, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    with browser(path, tmp_path_factory.mktemp("chromium")) as made:
        yield made


def drawn(records: list[dict[str, Any]]) -> dict[str, Chart]:
    return {chart.title: chart for chart in charts(records)}


def pushed_after_monday() -> list[dict[str, Any]]:
    """All peers, and then those that are measured on a push."""
    full, quick = record(1), record(3)
    few = [row("limit.c", 1), row("fasthook memory: (no-op)", 1.3)]
    quick["peers"] |= {
        "rows": few,
        "sweep": [row("limit.c", 1, 64)],
        "steady": few,
        "date": "2026-01-04T12:00:00+00:00",
    }
    return [full, quick]


def test_a_push_keeps_the_peers_that_it_did_not_measure() -> None:
    (bars,) = drawn(pushed_after_monday())["The peers, side by side"].traces
    assert dict(zip(bars["y"], bars["x"], strict=True)) == {
        "FastAPI": 60,
        "fasthook memory: (no-op)": 1.3,
        "limit.c": 1,
    }
    assert [told.split(", rounds")[0] for told in bars["customdata"]] == [
        "2026-01-02, commit 00000002",
        "2026-01-04, commit 00000004",
        "2026-01-04, commit 00000004",
    ]
    assert {trace["name"] for trace in drawn(pushed_after_monday())["Latency under full load"].traces} == set(bars["y"])


def test_the_lines_of_one_run_stay_together() -> None:
    full, quick = pushed_after_monday()
    full["peers"]["sweep"] += [row("FastAPI", 60, connections) for connections in (1, 512)]
    found = {trace["name"]: trace["x"] for trace in drawn([full, quick])["Cost against connections"].traces}
    assert found == {"limit.c": [64], "FastAPI": [1, 512]}


def test_a_peer_that_nobody_measures_any_more_goes() -> None:
    full, quick = pushed_after_monday()
    full["date"] = "2025-09-01T12:00:00+00:00"
    (bars,) = drawn([full, quick])["The peers, side by side"].traces
    assert "FastAPI" not in bars["y"]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What `bench.peers --all` writes: limit.c measured for seconds, and fasthook said to have taken as long."""
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("the peers are measured on Linux, with a C compiler")
    from bench.peers import goals, measure, report
    from bench.peers.catalog import chosen
    from bench.peers.measure import Load
    from bench.stamp import stamp

    limit, noop = chosen("memory: (no-op)")
    steady = measure.measure(limit, Load(1, 4, 200))
    seconds = 5  # in one, nothing at all is answered where the machine is busy with something else
    full = measure.measure(limit, Load(seconds, 4)) if shutil.which("wrk") else steady | {"seconds": 1.0}
    cost = {"cpu_us": 9.0}  # so little load may be less than a tick of the kernel's clock
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "measure", lambda peer, load: (steady if load.rate else full) | cost)
        parts = {
            "rows": measure.run((limit, noop), Load(1, 64), 2, print),
            "sweep": [row for count in (1, 64) for row in measure.run((limit, noop), Load(1, count), 1, print)],
            "steady": measure.run((limit, noop), Load(1, 64, 200), 1, print),
        }
    held = [*goals.of_table(parts["rows"]), *goals.of_sweep(parts["sweep"]), *goals.of_steady(parts["steady"])]
    settings = {"rounds": 2, "seconds": 1, "connections": 64}
    made = report.document("python -m bench.peers --all", parts, held, settings, stamp())
    assert "limit.c" in report.markdown(made)
    return made


def test_what_the_peers_command_writes_is_drawn(report: dict[str, Any], tmp_path: Path) -> None:
    """The way that it takes: a file, the store, the page."""
    places = {part: tmp_path / f"{part}.json" for part in history.PARTS}
    places["peers"].write_text(json.dumps(report))
    history.add(tmp_path / "store", places)
    found = drawn(history.load(tmp_path / "store"))
    both = {"limit.c", "fasthook memory: (no-op)"}
    (bars,) = found["The peers, side by side"].traces
    assert (set(bars["y"]), bars["x"]) == (both, [1.0, 1.0])
    assert all(told.endswith("rounds: 2") for told in bars["customdata"])
    assert {trace["name"] for trace in found["What a request costs, by commit"].traces} == both
    lines = found["Cost against connections"].traces
    assert {trace["name"]: trace["x"] for trace in lines} == {name: [1, 64] for name in both}
    assert all(cost > 0 for trace in lines for cost in trace["y"])
    for title in ("at a steady 5,000 requests/s", "under full load"):
        traces = found[f"Latency {title}"].traces
        assert {trace["name"] for trace in traces} == both
        assert all(trace["x"][:3] == ["p50", "p99", "p99.9"] for trace in traces)
        assert all(one > 0 for trace in traces for one in trace["y"])


def test_it_draws_every_chart_and_asks_nobody_for_anything(page: Path, chromium: Browser) -> None:
    tab = chromium.open(page.as_uri())
    marks = chromium.evaluate(
        "Promise.all([...document.querySelectorAll('.plotly-graph-div')].map(div => Plotly.redraw(div))).then(() =>"
        "[...document.querySelectorAll('.plotly-graph-div')].map(div =>"
        "div.querySelectorAll('.main-svg .point, .main-svg .scatterlayer path').length))"
    )
    assert len(marks) == 8
    assert all(marks), marks
    assert tab.errors == []
    assert [address for address in tab.requests if not address.startswith("data:")] == [page.as_uri()]


def test_text_of_a_commit_stays_text(page: Path, chromium: Browser) -> None:
    chromium.open(page.as_uri())
    assert "<b>marks</b> & </script>" in chromium.evaluate("document.querySelector('.note').innerText")


def test_the_page_is_of_a_reasonable_size(page: Path) -> None:
    assert page.stat().st_size < LIMIT


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "nothing was measured yet"), ("{", "line 1"), ('{"schema": 9}', "not a record of schema 1")],
)
def test_a_store_that_is_none_is_told_in_a_line(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    done = dashboard(tmp_path, tmp_path / "page.html")
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
