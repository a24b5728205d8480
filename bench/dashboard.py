"""The page of all figures: `python -m bench.dashboard [--store DIR] [--out FILE]`.

One file that needs no other: plotly is in it, and its own content policy lets it fetch nothing.
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bench.builds import ROOT
from bench.history import STORE, Record, RecordError, load

OUT = ROOT / "bench/out/dashboard.html"
GONE = timedelta(days=92)  # before the newest record: a peer that nobody has measured since is no longer one
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { margin-bottom: 0; } h2 { margin-top: 3rem; } .note { color: #5a6773; } table { border-collapse: collapse; }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #dde3e8; text-align: right; }
td:first-child, th:first-child { text-align: left; }
"""


@dataclass(frozen=True)
class Chart:
    """One picture: what it says, and how it is drawn."""

    title: str
    note: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]

    @property
    def height(self) -> int:
        return int(self.layout.get("height", 420))


@dataclass(frozen=True)
class Row:
    """What a report of `bench.peers` says of one peer, with the report and the commit that it is of."""

    row: dict[str, Any]
    report: dict[str, Any]
    commit: str

    @property
    def name(self) -> str:
        return str(self.row["name"])

    @property
    def connections(self) -> int:
        return int(self.row["connections"])

    @property
    def median(self) -> dict[str, float]:
        found: dict[str, float] = self.row["median"]
        return found

    @property
    def told(self) -> str:
        return f"{self.report['date'][:10]}, commit {self.commit[:8]}, rounds: {len(self.row['rounds'])}"


def _history(records: list[Record], part: str, value: Callable[[Any], float]) -> list[dict[str, Any]]:
    """A line for each figure, a point for each commit that has it."""
    names = dict.fromkeys(name for record in records for name in record[part])
    traces = []
    for name in names:
        having = [record for record in records if name in record[part]]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": [record["commit"][:8] for record in having],
                "y": [value(record[part][name]) for record in having],
                "text": [f"{record['date'][:10]} {record['subject']}" for record in having],
                "hovertemplate": "%{y:,.4g}<br>%{text}<extra>%{fullData.name}</extra>",
            }
        )
    return traces


def _latest(records: list[Record], part: str) -> list[Row]:
    """The newest rows of each peer, in the order of their newest report, whichever report has them.

    What is measured on each push is a few of the peers; the others stay as they were measured last.
    """
    found: dict[str, list[Row]] = {}
    oldest = datetime.fromisoformat(records[-1]["date"]) - GONE
    for record in reversed(records):
        if not record["peers"] or datetime.fromisoformat(record["date"]) < oldest:
            continue
        rows = [row for row in record["peers"].get(part, ()) if row["median"]]
        for name in dict.fromkeys(row["name"] for row in rows if row["name"] not in found):
            found[name] = [Row(row, record["peers"], record["commit"]) for row in rows if row["name"] == name]
    return [row for rows in found.values() for row in rows]


def _runs(rows: list[Row]) -> str:
    """The runs that these rows are of, the newest first."""
    runs = dict.fromkeys(f"{row.report['date'][:10]}, {row.report['command']}" for row in rows)
    return "; ".join(sorted(runs, reverse=True))


def _peer_history(records: list[Record]) -> list[dict[str, Any]]:
    having = [record for record in records if record["peers"] and record["peers"].get("rows")]
    ratios = [
        record | {"ratios": {row["name"]: row["median"]["ratio"] for row in record["peers"]["rows"] if row["median"]}}
        for record in having
    ]
    return _history(ratios, "ratios", float)


def _bars(rows: list[Row]) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: -row.median["ratio"])
    return {
        "type": "bar",
        "orientation": "h",
        "y": [row.name for row in rows],
        "x": [row.median["ratio"] for row in rows],
        "text": [f"{row.median['ratio']:.2f} x ({row.median['cpu_us']:.1f} µs)" for row in rows],
        "customdata": [row.told for row in rows],
        "textposition": "auto",
        "hovertemplate": "%{y}: %{text}<br>%{customdata}<extra></extra>",
        "marker": {"color": ["#2a7de1" if "fasthook" in row.name else "#9aa7b3" for row in rows]},
    }


def _by_connections(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [row.connections for row in rows if row.name == name],
            "y": [row.median["cpu_us"] for row in rows if row.name == name],
        }
        for name in dict.fromkeys(row.name for row in rows)
    ]


def _latencies(rows: list[Row]) -> list[dict[str, Any]]:
    keys = ("p50_ms", "p99_ms", "p999_ms", "max_ms")
    return [
        {
            "type": "bar",
            "name": row.name,
            "x": [key.removesuffix("_ms").replace("p999", "p99.9") for key in keys if key in row.median],
            "y": [row.median[key] for key in keys if key in row.median],
        }
        for row in rows
    ]


def charts(records: list[Record]) -> Iterator[Chart]:
    """Every picture for which something was measured."""
    log = {"type": "log"}
    order = list(dict.fromkeys(record["commit"][:8] for record in records))
    commits = {"xaxis": {"type": "category", "categoryorder": "array", "categoryarray": order}}
    if traces := _history(records, "instructions", float):
        note = "Callgrind's count, the same on every machine: python -m bench.instructions"
        yield Chart(
            "Instructions for each item, by commit", note, traces, commits | {"yaxis": log | {"title": "instructions"}}
        )
    if traces := _history(records, "micro", lambda figures: figures["ratio"]):
        note = "How many times as long the plain-Python way takes in the same process: make bench"
        layout = commits | {"yaxis": log | {"title": "times"}, "height": 640}
        yield Chart("Beside plain Python, by commit", note, traces, layout)
    if traces := _history(records, "micro", lambda figures: figures["ns"]):
        note = "Nanoseconds for each item; they depend on the machine: make bench"
        layout = commits | {"yaxis": log | {"title": "ns"}, "height": 640}
        yield Chart("Time for each item, by commit", note, traces, layout)
    if traces := _peer_history(records):
        note = "CPU per request over that of limit.c in the same round: python -m bench.peers"
        yield Chart("What a request costs, by commit", note, traces, commits | {"yaxis": log | {"title": "x limit.c"}})
    yield from _of_peers(records)


def _of_peers(records: list[Record]) -> Iterator[Chart]:
    if rows := _latest(records, "rows"):
        layout = {"xaxis": {"type": "log", "title": "x limit.c"}, "height": 560, "margin": {"l": 260}}
        machines = " and ".join(dict.fromkeys(row.report["machine"]["cpu"] for row in rows))
        note = f"CPU per request over that of limit.c in the same round, on {machines}: {_runs(rows)}"
        yield Chart("The peers, side by side", note, [_bars(rows)], layout)
    if rows := _latest(records, "sweep"):
        layout = {
            "xaxis": {"type": "log", "title": "connections"},
            "yaxis": {"title": "CPU µs/request", "rangemode": "tozero"},
        }
        yield Chart("Cost against connections", _runs(rows), _by_connections(rows), layout)
    for part, what in (("steady", "at a steady 5,000 requests/s"), ("rows", "under full load")):
        if rows := _latest(records, part):
            layout = {"yaxis": {"type": "log", "title": "ms"}, "barmode": "group"}
            yield Chart(f"Latency {what}", _runs(rows), _latencies(rows), layout)


def _table(record: Record) -> str:
    """The newest figures as text, for who cannot see the pictures."""
    rows = [(name, f"{count:,.0f} instructions", "") for name, count in record["instructions"].items()]
    rows += [(name, f"{one['ns']:,.0f} ns", f"{one['ratio']:.1f} x") for name, one in record["micro"].items()]
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr><th>figure</th><th>for each</th><th>beside plain Python</th></tr>{cells}</table>"


def _draw(chart: Chart, number: int) -> str:
    import plotly.io

    layout = {"height": 420, "margin": {"t": 20}, "template": "plotly_white", "legend": {"font": {"size": 11}}}
    return str(
        plotly.io.to_html(
            {"data": chart.traces, "layout": layout | chart.layout},
            include_plotlyjs=False,
            full_html=False,
            div_id=f"chart-{number}",
            config={"displayModeBar": False, "responsive": True},
        )
    )


def page(records: list[Record]) -> str:
    """The whole page.

    Raises:
        RecordError: there is nothing to show.
    """
    import plotly.offline

    if not records:
        raise RecordError("nothing was measured yet: run `make bench-quick` first")
    newest = records[-1]
    figures = next((record for record in reversed(records) if record["micro"] or record["instructions"]), newest)
    parts = [
        f"<section><h2>{html.escape(chart.title)}</h2><p class=note>{html.escape(chart.note)}</p>"
        f"{_draw(chart, number)}</section>"
        for number, chart in enumerate(charts(records))
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>fasthook in figures</title><style>{STYLE}</style>",
            f"<script>{plotly.offline.get_plotlyjs()}</script></head><body>",
            "<h1>fasthook in figures</h1>",
            f"<p class=note>Measured {len(records)} times; the newest is {html.escape(newest['commit'])} "
            f"({html.escape(newest['subject'])}), {html.escape(newest['date'])}, "
            f"Python {html.escape(newest['machine']['python'])}.</p>",
            *parts,
            f"<h2>The newest figures</h2>{_table(figures)}</body></html>\n",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    try:
        text = page(load(arguments.store))
    except RecordError as error:
        print(error, file=sys.stderr)
        return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    print(f"{arguments.out}: {len(text):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
