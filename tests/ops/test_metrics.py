"""/metrics: what is counted is what was sent, and Prometheus can read it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.bot import Bot
from e2e.process import PATIENCE, SECRET, reserved_port
from fasthook._scan import KINDS
from fasthook.ops import health
from fasthook.ops.blocks import REASONS
from fasthook.ops.health import CODES
from fasthook.testing import samples
from ops.conftest import Serve
from ops.scrape import OPENMETRICS, Page

RIGHT = {"X-Telegram-Bot-Api-Secret-Token": SECRET}
PROCESSES = {"door", "worker-1", "worker-2"}
HISTOGRAMS = ("ack", "wait", "event_loop_lag", "handler", "journal_commit")


def program(name: str) -> str:
    """The path of a program; without it the test is skipped, or fails in CI."""
    found = shutil.which(name)
    if found is None:
        assert os.environ.get("CI") != "true", f"{name} is not installed: apt install prometheus"
        pytest.skip(f"{name} is not installed: apt install prometheus")
    return found


QUEUES = {
    "memory": ("--queue", "memory:"),
    "journal": ("--queue", "journal:q"),
    "handled": ("--queue", "memory:", "--ack", "handled"),
    "workers": ("--queue", "journal:q", "--workers", "2"),
    "workers handled": ("--queue", "memory:", "--ack", "handled", "--workers", "2"),
}

# It dies of some updates, the first time that it gets them.
MORTAL = """
import asyncio, os, pathlib

record = os.open("handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

async def handler(update):
    died = pathlib.Path(f"died-{update.update_id}")
    if update["message"]["text"] == "die" and not died.exists():
        died.touch()
        os.kill(os.getpid(), 9)
    await asyncio.sleep(0.002)
    os.write(record, b"%d\\n" % update.update_id)
"""


@pytest.mark.parametrize("kept", QUEUES)
def test_the_counters_are_what_was_sent(serve: Serve, bot: Bot, door: str, kept: str) -> None:
    server, ops = serve(
        "--http",
        door,
        "--token",
        "42:TEST",
        "--max-body",
        "4096",
        "--auth-rate",
        "off",
        "--retries",
        "0",
        *QUEUES[kept],
    )
    statuses: Counter[int] = Counter()
    sent = 0

    def ask(times: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        for _ in range(times):
            statuses[server.ask(method, path, body, headers or {}).status] += 1

    for update_id in range(20):
        sent += 1
        ask(1, "POST", server.path, samples.update(update_id, chat_id=update_id), RIGHT)
    ask(1, "POST", server.path, samples.update(20, "inline_query"), RIGHT)
    sent += 1
    page = ops.until(lambda page: page["fasthook_queue_depth"] == 0)
    assert page["fasthook_in_flight"] == 0
    for update_id in range(5):
        ask(1, "POST", server.path, samples.update(update_id, chat_id=update_id), RIGHT)
    ask(3, "POST", server.path, b"not an update", RIGHT)
    ask(4, "POST", server.path, samples.update(99), {"X-Telegram-Bot-Api-Secret-Token": "wrong"})
    ask(2, "POST", "/nowhere", samples.update(99), RIGHT)
    ask(6, "GET", server.path)
    ask(7, "POST", server.path, b"x" * 5000, RIGHT)
    page = ops.until(lambda page: page["fasthook_queue_depth"] == 0)
    verdicts = {"accepted": 21, "duplicate": 5, "invalid": 3, "unauthorized": 4, "bad_method": 6, "too_large": 7}
    assert page.by("fasthook_requests_total", "verdict", bot="42") == verdicts
    assert page.by("fasthook_requests_total", "verdict", bot="none") == {"not_found": 2}
    assert page.by("fasthook_updates_total", "kind") == {"message": 20, "inline_query": 1}
    assert page.by("fasthook_duplicates_total", "bot") == {"42": 5}
    assert page.by("fasthook_dead_letters_total", "reason") == {"invalid": 3}
    assert page.by("fasthook_handler_seconds_count", "kind", outcome="handled") == {"message": 20, "inline_query": 1}
    assert page["fasthook_ack_seconds_count"] == sum(statuses.values())
    assert page["fasthook_wait_seconds_count"] == sent
    assert (page["fasthook_disconnects_total"], page["fasthook_retries_total"]) == (0, 0)
    assert statuses == {200: 29, 401: 4, 404: 2, 405: 6, 413: 7}


def test_nothing_that_was_counted_is_lost_with_a_worker(serve: Serve, bot: Bot) -> None:
    """And a successor has the name of its predecessor, so that there are no more series than before."""
    (bot.directory / "mortal.py").write_text(MORTAL)
    server, ops = serve("--workers", "2", "--concurrency", "8", target="mortal:handler")
    named = ops.metrics().samples.keys()
    sent = 300
    with ThreadPoolExecutor(8) as pool:
        bodies = [
            samples.update(number, chat_id=number % 30, text="die" if number % 100 == 50 else "live")
            for number in range(sent)
        ]
        assert {response.status for response in pool.map(server.post, bodies)} == {200}
    page = ops.until(lambda page: page["fasthook_queue_depth"] == 0)
    ran = (bot.directory / "handled").read_text().split()
    assert {int(one) for one in ran} == set(range(sent))
    assert page.by("fasthook_requests_total", "verdict") == {"accepted": sent}
    assert page.by("fasthook_updates_total", "kind") == {"message": sent}
    assert page["fasthook_wait_seconds_count"] == sent  # the first run of each
    assert page.by("fasthook_handler_seconds_count", "outcome") == {"handled": len(ran)}
    assert (page["fasthook_in_flight"], page["fasthook_retries_total"]) == (0, 0)
    assert not page.by("fasthook_dead_letters_total", "reason")
    page = ops.until(lambda page: page["fasthook_worker_restarts_total"] == 3)
    page = ops.until(lambda page: page.by("fasthook_process_cpu_seconds_total", "process").keys() >= PROCESSES)
    assert page.by("fasthook_process_resident_memory_bytes", "process").keys() == PROCESSES
    assert {name for name, _ in page.samples.keys() - named} <= {
        f"fasthook_handler_seconds_{end}" for end in ("bucket", "count", "sum")
    }
    assert len(list((bot.directory / ".fasthook" / "stats").iterdir())) == len(PROCESSES)


def test_each_loop_is_looked_at(serve: Serve, bot: Bot) -> None:
    _, ops = serve("--workers", "2")
    page = ops.until(lambda page: page["fasthook_event_loop_lag_seconds_count"] >= 6)
    blocked = {
        dict(labels)["process"] for name, labels in page.samples if name == "fasthook_event_loop_blocked_seconds"
    }
    assert blocked == PROCESSES


@pytest.mark.parametrize("workers", ["1", "2"])
def test_failures_retries_and_dead_letters(serve: Serve, bot: Bot, workers: str) -> None:
    server, ops = serve("--retries", "1", "--handler-timeout", "0.2", "--workers", workers)
    for update_id, text in enumerate(["fail once", "raise", "hang", "fine"]):
        server.post(samples.update(update_id, chat_id=update_id, text=text))
    ended = {"failed": 1, "timeout": 1}
    ops.until(lambda page: page.by("fasthook_dead_letters_total", "reason") == ended)
    page = ops.until(lambda page: page["fasthook_queue_depth"] == 0)
    assert page.by("fasthook_handler_seconds_count", "outcome", kind="message") == {
        "handled": 2,
        "failed": 3,
        "timeout": 2,
    }
    assert page["fasthook_retries_total"] == 3
    assert page.by("fasthook_dead_letters_total", "reason") == ended
    assert page["fasthook_wait_seconds_count"] == 4  # the first run of each


def test_what_waits_and_what_runs(serve: Serve, bot: Bot) -> None:
    server, ops = serve("--drain-timeout", "0", env={"HELD": "1"})
    for update_id in range(3):
        server.post(samples.update(update_id, chat_id=1))
    page = ops.until(lambda page: page["fasthook_in_flight"] == 1)
    assert page["fasthook_queue_depth"] == 3
    assert 0 < page["fasthook_queue_oldest_seconds"] < PATIENCE


def test_a_full_queue_is_counted_as_it_was_answered(serve: Serve, bot: Bot) -> None:
    server, ops = serve("--queue", "memory:", "--queue-size", "2", env={"HELD": "1"})
    statuses = [server.post(samples.update(update_id, chat_id=1)).status for update_id in range(5)]
    assert statuses == [200, 200, 503, 503, 503]
    assert ops.metrics().by("fasthook_requests_total", "verdict") == {"accepted": 2, "busy": 3}


def test_a_failing_disk_is_counted_as_it_was_answered(serve: Serve, bot: Bot) -> None:
    server, ops = serve("--queue", "journal:q", "--journal-max", "1MiB", "--max-body", "1MiB", env={"HELD": "1"})
    statuses: Counter[int] = Counter()
    update_id = 0
    while statuses[503] < 3:
        assert update_id < 100, statuses
        update_id += 1
        statuses[server.post(samples.update(update_id, chat_id=1, size=100_000)).status] += 1
    page = ops.metrics()
    assert page.by("fasthook_requests_total", "verdict") == {"accepted": statuses[200], "busy": 3}
    assert page["fasthook_queue_depth"] == statuses[200]
    assert page["fasthook_journal_bytes"] > 100_000 * statuses[200]
    assert page["fasthook_journal_commit_seconds_count"] >= statuses[200]
    assert page.by("fasthook_unready", "reason").keys() >= {"queue_unwritable"}
    assert ops.ready()[0] == 503


def test_a_peer_that_goes_away_is_counted(serve: Serve, door: str) -> None:
    server, ops = serve("--http", door)
    with socket.create_connection(server.address) as peer:
        peer.sendall(
            f"POST /webhook HTTP/1.1\r\nHost: a\r\nX-Telegram-Bot-Api-Secret-Token: {SECRET}\r\n"
            "Content-Length: 500\r\n\r\n{".encode()
        )
        ops.until(lambda page: page["fasthook_connections"] == 1)
    # a page is put together while the server goes on: what was counted stands in it as it was a little before
    page = ops.until(lambda page: page["fasthook_connections"] == 0 and page["fasthook_disconnects_total"] > 0)
    assert page["fasthook_disconnects_total"] == 1


def test_labels_are_bounded(serve: Serve) -> None:
    """Whatever is sent, no name of a series comes from it."""
    server, ops = serve()
    before = {key for key in ops.metrics().samples if key[0] != "fasthook_handler_seconds_bucket"}
    for n in range(50):
        server.post(b'{"update_id":%d,"kind_%d":{"chat":{"id":%d}}}' % (n, n, n))
        server.ask(f"M{n}", f"/path-{n}", headers={"X-Telegram-Bot-Api-Secret-Token": f"s{n}"})
    page = ops.until(lambda page: page.by("fasthook_handler_seconds_count", "kind") == {"unknown": 50})
    new = {name for name, _ in page.samples.keys() - before}
    assert new <= {f"fasthook_handler_seconds_{end}" for end in ("bucket", "count", "sum")} | {
        "fasthook_requests_total"
    }
    names = {value for _, labels in page.samples for label, value in labels if label not in ("le", "version", "python")}
    assert not {name for name in names if any(digit in name for digit in "123456789")}
    assert page.by("fasthook_updates_total", "kind") == {"unknown": 50}
    assert len(page.samples) < 300 + 13 * len(KINDS)


def test_nothing_of_a_chat_is_in_it(serve: Serve) -> None:
    server, ops = serve("--path", "/very-private")
    server.post(samples.update(7654321, chat_id=8765432, user_id=9876543, text="hush"))
    text = ops.until(lambda page: bool(page.by("fasthook_handler_seconds_count", "kind"))).text
    for private in ("7654321", "8765432", "9876543", "hush", "very-private", SECRET):
        assert private not in text


def test_openmetrics(serve: Serve) -> None:
    server, ops = serve("--queue", "journal:q")
    server.post(samples.update(1))
    ops.until(lambda page: bool(page.by("fasthook_handler_seconds_count", "kind")))
    response = ops.ask("/metrics", headers={"Accept": OPENMETRICS})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.body.endswith(b"# EOF\n")
    page = Page.of(response)
    plain = ops.metrics()
    assert plain.samples.keys() == page.samples.keys()
    for name in HISTOGRAMS:
        bounds = page.by(f"fasthook_{name}_seconds_bucket", "le") or {"+Inf": 0}
        assert "+Inf" in bounds


@pytest.mark.parametrize("workers", ["1", "2"])
def test_promtool_has_nothing_to_say(serve: Serve, workers: str) -> None:
    promtool = program("promtool")
    server, ops = serve("--queue", "journal:q", "--workers", workers)
    server.post(samples.update(1))
    page = ops.until(lambda page: bool(page.by("fasthook_handler_seconds_count", "kind")))
    done = subprocess.run([promtool, "check", "metrics"], input=page.text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_prometheus_scrapes_it(serve: Serve, tmp_path: Path, workers: str) -> None:
    prometheus = program("prometheus")
    server, ops = serve("--workers", workers)
    for update_id in range(7):
        server.post(samples.update(update_id, chat_id=update_id))
    config = tmp_path / "prometheus.yml"
    target = f"{ops.address[0]}:{ops.address[1]}"
    config.write_text(
        "scrape_configs:\n- job_name: fasthook\n  scrape_interval: 1s\n  scrape_timeout: 1s\n"
        f"  static_configs:\n  - targets: ['{target}']\n"
    )
    with reserved_port() as port, (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                prometheus,
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            processes = 1 if workers == "1" else 3
            for query, value in {
                'fasthook_requests_total{verdict="accepted"}': 7,
                "up": 1,
                "fasthook_ack_seconds_count": 7,
                "count(fasthook_process_cpu_seconds_total)": processes,
            }.items():
                until_it_says(port, query, value)
        finally:
            process.kill()
            process.wait()


DOCUMENT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")


def test_every_metric_is_documented(serve: Serve) -> None:
    _, ops = serve("--queue", "journal:q")
    families = set(re.findall(r"^# TYPE (\w+) ", ops.metrics().text, re.MULTILINE))
    assert families == set(re.findall(r"`(fasthook_\w+)(?:\{[a-z,]+\})?`", DOCUMENT.partition("Worth an alert")[0]))


def test_every_reason_is_documented(serve: Serve) -> None:
    """Why a server is not ready, and why updates are given up on; in the metrics and in the code."""
    _, ops = serve()
    codes = re.findall(r"^\| `([a-z_]+)` \|", DOCUMENT.partition("## Metrics")[0], re.MULTILINE)
    assert codes == list(CODES)
    page = ops.metrics()
    assert {dict(labels)["reason"] for name, labels in page.samples if name == "fasthook_unready"} == set(codes)
    [row] = [line for line in DOCUMENT.splitlines() if line.startswith("| `fasthook_dead_letters_total{reason}`")]
    assert re.findall(r"`([a-z_]+)`", row) == [reason.replace(" ", "_") for reason in REASONS]
    given = set(re.findall(r'Reason\("([a-z_]+)"', (Path(health.__file__)).read_text()))
    assert given == set(codes)


def test_the_alerts_are_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(DOCUMENT.partition("```yaml\n")[2].partition("```")[0])
    done = subprocess.run([program("promtool"), "check", "rules", str(tmp_path / "rules.yml")], check=False)
    assert done.returncode == 0


def until_it_says(port: int, query: str, value: float) -> None:
    """Ask Prometheus until the one series has this value: its scrapes may be late, and one may have failed."""
    import httpx

    end, found = time.monotonic() + PATIENCE, []
    while [float(series["value"][1]) for series in found] != [value]:
        assert time.monotonic() < end, (query, found)
        time.sleep(0.05)  # it is another program: there is nothing to wait for
        with contextlib.suppress(httpx.TransportError, ValueError, KeyError):
            asked = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, timeout=PATIENCE)
            found = asked.json()["data"]["result"]
