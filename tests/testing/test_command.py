"""`fasthook simulate`: its start, its people, its end, and options that cannot be used."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.process import COMMAND, PATIENCE, environment, fasthook, reserved_port
from fasthook.testing import TOKEN, samples

ROOT = Path(__file__).parents[2]


class Simulation:
    """`fasthook simulate` with these arguments; ready when this returns."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = 0
        self.process = subprocess.Popen(
            [str(COMMAND), "simulate", "--port", "0", *arguments],
            cwd=directory,
            env=environment(PYTHONUNBUFFERED="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,), daemon=True)
            for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()
        try:
            self.url = self.until(r"^fasthook simulates Telegram at (\S+)$")[1]
        except BaseException:
            self.process.kill()
            raise

    def _read(self, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended += 1
            self._changed.notify_all()

    def find(self, pattern: str) -> list[re.Match[str]]:
        return [found for line in list(self.lines) if (found := re.search(pattern, line))]

    def until(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait for so many lines that match: the last of them."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.find(pattern)) >= count or self._ended == 2, PATIENCE)
        matches = self.find(pattern)
        assert len(matches) >= count, "\n".join([f"no line matches {pattern!r} in:", *self.lines])
        return matches[count - 1]

    def call(self, method: str, /, *, token: str = TOKEN, **params: Any) -> Any:
        return httpx.post(f"{self.url}/bot{token}/{method}", json=params, timeout=PATIENCE).json()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.wait()


Start = Callable[..., Simulation]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Simulation] = []

    def started(*arguments: str) -> Simulation:
        running.append(Simulation(tmp_path, *arguments))
        return running[-1]

    yield started
    for simulation in running:
        simulation.process.kill()
        simulation.wait()


def test_what_it_tells_at_its_start(start: Start) -> None:
    simulation = start()
    simulation.until(rf"^  token   {TOKEN}$")
    simulation.until(rf"^  run     fasthook run bot:handler --token {TOKEN} --api-url {simulation.url}$")
    assert simulation.call("getMe")["result"]["id"] == 42
    assert simulation.stop() == 0
    assert simulation.find("1 calls of the bot$")


def test_people_wait_for_the_bot_and_talk_to_it(start: Start) -> None:
    simulation = start("--rate", "50", "--seed", "1", "--chats", "2")
    assert not simulation.find("▸")
    updates: list[Any] = []
    while len(updates) < 20:
        offset = updates[-1]["update_id"] + 1 if updates else 0
        updates += simulation.call("getUpdates", timeout=5, offset=offset)["result"]
    simulation.call("sendMessage", chat_id=1_000_000_001, text="hello\nthere", reply_markup={"keyboard": [["Tea"]]})
    simulation.until(r"^    Echo ▸ hello there  \[Tea\]$")
    simulation.until(r"^ +(Ann|User 2) ▸ ", count=20)
    assert simulation.stop() == 0


def test_the_same_seed_makes_the_same_conversation(start: Start) -> None:
    texts = []
    for seed in ("7", "7", "8"):
        simulation = start("--rate", "1000", "--seed", seed, "--mix", "text")
        found: list[str] = []
        offset = 0
        while len(found) < 30:
            for update in simulation.call("getUpdates", timeout=5, offset=offset)["result"]:
                found.append(update["message"]["text"])
                offset = update["update_id"] + 1
        texts.append(found[:30])
        assert simulation.stop() == 0
    assert texts[0] == texts[1] != texts[2]


def test_every_kind_can_be_in_the_mix(start: Start) -> None:
    simulation = start("--rate", "2000", "--mix", ",".join((*samples.KINDS, "press", "photo", "edit")))
    kinds: set[str] = set()
    offset = 0
    while len(kinds) < len(samples.KINDS):
        updates = simulation.call("getUpdates", timeout=5, offset=offset, allowed_updates=[*samples.KINDS])["result"]
        kinds |= {kind for update in updates for kind in update if kind != "update_id"}
        offset = updates[-1]["update_id"] + 1
    assert simulation.stop() == 0


def test_a_recording_is_written_and_sent_again(start: Start, tmp_path: Path) -> None:
    first = start("--record", "talk.jsonl", "--rate", "200", "--seed", "1")
    updates: list[Any] = []
    while len(updates) < 10:
        updates = first.call("getUpdates", timeout=5)["result"]
    first.call("sendMessage", chat_id=1_000_000_001, text="hi")
    assert first.stop() == 0
    assert TOKEN not in (tmp_path / "talk.jsonl").read_text()
    lines = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert {line["type"] for line in lines} == {"update", "call"}
    assert [line["params"]["text"] for line in lines if line.get("method") == "sendMessage"] == ["hi"]

    second = start("--replay", "talk.jsonl", "--speed", "10")
    again: list[Any] = []
    while len(again) < 10:
        again = second.call("getUpdates", timeout=5)["result"]
    assert second.stop() == 0
    assert [{**update, "update_id": 0} for update in again[:10]] == [
        {**update, "update_id": 0} for update in updates[:10]
    ]
    assert again[0]["update_id"] != updates[0]["update_id"]


def test_updates_as_lines_are_a_recording_too(start: Start, tmp_path: Path) -> None:
    bodies = [samples.update(n, kind).replace(b"\n", b"") for n, kind in enumerate(samples.KINDS)]
    (tmp_path / "updates.jsonl").write_bytes(b"\n".join(bodies))
    simulation = start("--replay", "updates.jsonl")
    kinds: list[str] = []
    while len(kinds) < len(bodies) - 3:  # three are off by default
        found = simulation.call("getUpdates", timeout=5)["result"]
        kinds = [kind for update in found for kind in update if kind != "update_id"]
    assert simulation.stop() == 0
    assert len(set(kinds)) == len(bodies) - 3


def test_several_bots(start: Start) -> None:
    """People talk to each of them, when it listens; what goes wrong goes wrong for each."""
    bots = ["--token", "43:TEST-one", "--token", "44:TEST-two"]
    simulation = start(*bots, "--rate", "200", "--fail", "sendMessage:429")
    simulation.until(
        r"^  run     fasthook run --api-url http://\S+, with a \[\[bot\]\] for each token in fasthook.toml$"
    )
    for token in ("44:TEST-two", "43:TEST-one"):
        assert simulation.call("getUpdates", token=token, timeout=20)["result"]
        assert simulation.call("sendMessage", token=token, chat_id=1_000_000_001, text="hi")["error_code"] == 429
        simulation.until(rf"^ +(Ann|User \d) ▸ .*  \(to Bot {token[:2]}\)$")
        simulation.until(rf"^  ✗ Bot {token[:2]}: sendMessage is answered 429")
    assert simulation.stop() == 0


def test_a_recording_of_several_bots(start: Start, tmp_path: Path) -> None:
    """Each hears what it heard; all hear what another bot heard, or nobody knows who."""
    bodies = [samples.update(n, text=f"hello {n}").decode().replace("\n", "") for n in range(1, 5)]
    lines = [
        json.dumps({"at": 0, "type": "update", "bot": bot, "attempt": 1, "body": body})
        for bot, body in zip((43, 44, 45), bodies, strict=False)
    ]
    lines.append(bodies[3])
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    simulation = start("--token", "43:TEST-one", "--token", "44:TEST-two", "--replay", "talk.jsonl")
    for token, numbers in (("44:TEST-two", [2, 3, 4]), ("43:TEST-one", [1, 3, 4])):
        heard: list[Any] = []
        for _ in range(20):
            if len(heard) < 3:
                heard = simulation.call("getUpdates", token=token, timeout=2)["result"]
        assert [update["message"]["text"] for update in heard] == [f"hello {n}" for n in numbers]
    assert simulation.stop() == 0


def test_a_webhook_that_nobody_serves(start: Start) -> None:
    with reserved_port() as port:
        simulation = start("--webhook", f"http://127.0.0.1:{port}/", "--rate", "100")
        simulation.until(r"^  ✗ Connection refused$")
        assert simulation.stop() == 0
    assert len(simulation.find("Connection refused")) == 1


def test_it_ends_after_its_duration(start: Start) -> None:
    assert start("--duration", "100ms").wait() == 0


def test_answers_on_demand(start: Start) -> None:
    simulation = start("--fail", "sendMessage:429", "--fail", "getChat:403:100%", "--rate", "0")
    assert simulation.call("sendMessage", chat_id=7, text="hi")["error_code"] == 429
    assert simulation.call("getChat", chat_id=7)["error_code"] == 403
    assert simulation.call("getMe")["ok"]
    simulation.until(r"^  ✗ sendMessage is answered 429 Too Many Requests: retry after 1$")
    assert simulation.stop() == 0


def test_limits(start: Start) -> None:
    simulation = start("--limits", "--rate", "0")
    assert [simulation.call("sendMessage", chat_id=7, text="hi")["ok"] for _ in range(2)] == [True, False]
    simulation.until(r"^  ✗ sendMessage is answered 429 Too Many Requests: retry after 1$")
    assert simulation.stop() == 0


WRONG = [
    (["--port", "x"], "--port: must be a whole number from 0 to 65535"),
    (["--token", "nonsense"], "--token: must look like 123456789:ABC-def"),
    (["--token", "42:a", "--token", "42:b"], "--token: two tokens are of the same bot"),
    (["--rate", "-1"], "--rate: must be a number from 0 to 1e+06, not '-1'"),
    (["--chats", "0"], "--chats: must be a whole number"),
    (["--mix", "text=a"], "--mix: must be KIND=WEIGHT with commas between"),
    (["--mix", "poems=1"], "--mix: 'poems' is none of text, photo, press, edit, message"),
    (["--mix", "text=0"], "--mix: must have a weight above 0"),
    (["--seed", "x"], "--seed: must be a whole number"),
    (["--speed", "0"], "--speed: must be a number from 0.001"),
    (["--duration", "soon"], "--duration: must be a time"),
    (["--fail", "sendMessage"], "--fail: must be METHOD:KIND"),
    (["--fail", "sendMessage:poem"], "--fail: must be one of 429, 403"),
    (["--secret", "s"], "--secret: needs --webhook beside it"),
    (["--secret", "a b", "--webhook", "http://a/"], "--secret: must be 1 to 256 of"),
    (["--replay", "none.jsonl"], "--replay: none.jsonl: cannot be read: No such file or directory"),
    (["--replay", "bad.jsonl"], "--replay: bad.jsonl: line 2 is neither a recorded line nor an update"),
    (["--replay", "empty.jsonl"], "--replay: empty.jsonl: there is no update in it"),
    (["--replay", "bad.jsonl", "--mix", "text"], "--replay and --mix: give one of them"),
    (["--ca-file", "none.pem"], "--ca-file: none.pem cannot be used: No such file or directory"),
    (["--connect-to", "a:1"], "--connect-to: must be HOST:PORT:HOST:PORT"),
]
FAILING = [
    (["--host", "0.0.0.0"], "cannot listen on 0.0.0.0:8081: the simulator is for this machine only; use 127.0.0.1"),
    (["--host", "no-such-host.invalid"], "cannot listen on no-such-host.invalid:8081: "),
    (["--port", "0", "--record", "no/dir/file"], "--record: no/dir/file cannot be written: No such file or directory"),
    (["--port", "0", "--webhook", "ftp://a/"], "setWebhook is refused: Bad Request: invalid webhook URL specified"),
    (["--port", "0", "--cloud", "--webhook", "http://a/"], "setWebhook is refused: Bad Request: bad webhook: An HTTPS"),
]


@pytest.mark.parametrize(("code", "arguments", "words"), [(2, *row) for row in WRONG] + [(1, *row) for row in FAILING])
def test_what_cannot_be_used(tmp_path: Path, code: int, arguments: list[str], words: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_bytes(samples.small(1).replace(b"\n", b"") + b"\nnonsense\n")
    ended = fasthook(tmp_path, "simulate", *arguments)
    assert ended.line.startswith(f"fasthook: {words}")
    assert ended.lines == (ended.line,)
    assert ended.code == code


def test_the_demo_is_a_conversation_that_ends_by_itself() -> None:
    with reserved_port() as one, reserved_port() as two:
        env = environment(DEMO_SECONDS="12", DEMO_PORT=str(one), DEMO_API_PORT=str(two))
        done = subprocess.run(
            [sys.executable, "-m", "examples.demo"], cwd=ROOT, env=env, capture_output=True, text=True,
            timeout=2 * PATIENCE, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ +(Ann|User \d) ▸ ", done.stdout, re.MULTILINE)
    assert re.search(r"^ +Echo ▸ \w", done.stdout, re.MULTILINE)
    assert "Echo ▸ [setWebhook]" in done.stdout  # it registers by itself
    assert "  try it  curl -i http://127.0.0.1:" in done.stderr
