"""A server as the measuring sees it: started on its own core, read through /proc, stopped by its id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.peers import job
from bench.peers.catalog import Peer
from bench.peers.install import ROOT, last_line

START_WITHIN = 30.0  # seconds
STOP_WITHIN = 15.0
QUIET = 0.3  # seconds without CPU time: what was left to do is done
QUIET_WITHIN = 30.0
TICKS = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]  # the same one on a machine with one: bench.peers says so


class ServerError(Exception):
    """The server could not be started, or died; the message is what it said."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    peer: Peer
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def cpu_seconds(self) -> float:
        """User and system time of all its processes, also of those that ended."""
        return sum(_times(pid) for pid in self._tree()) / TICKS

    def peak_mib(self) -> float:
        """The peak resident memory of its processes, added up; pages that they share count in each."""
        return sum(_peak_kib(pid) for pid in self._tree()) / 1024

    def settle(self) -> None:
        """Waits until it has nothing left to do, so that work it put off is counted, and counted where it belongs."""
        deadline = time.monotonic() + QUIET_WITHIN
        spent = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(QUIET)
            before, spent = spent, self.cpu_seconds()
            if spent - before < 2 / TICKS:  # a tick may go to a timer
                return

    def said(self) -> str:
        """The last line of its output."""
        return last_line(self.log.read_text(errors="replace"))

    def _tree(self) -> set[int]:
        """Its process and all below it. It leads a session, which a process whose parent has died is still in."""
        found: set[int] = set()
        for _ in range(2):  # twice, as a child can have a lower id than its parent
            for pid, parent, session in _processes():
                if session == self.process.pid or parent in found or pid == self.process.pid:
                    found.add(pid)
        return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself hold spaces; [] if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _processes() -> Iterator[tuple[int, int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            yield int(entry.name), int(fields[1]), int(fields[3])


def _times(pid: int) -> int:
    return sum(int(field) for field in _stat(pid)[11:15])  # utime, stime, and both of the children it waited for


def _peak_kib(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


def machine_cpu_seconds() -> float:
    """What all processes of this machine used of its cores, and what other machines took of them (steal)."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(state: Path, witness: Path | None) -> dict[str, str]:
    ours = {
        "PYTHONPATH": str(ROOT),
        "NODE_ENV": "production",
        "BENCH_STATE": str(state),
        "HOOK_PATH": job.PATH,
        "HOOK_SECRET": job.SECRET,
        "HOOK_TOKEN": job.TOKEN,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FASTHOOK_", "BENCH_"))}
    return kept | ours | ({"BENCH_WITNESS": str(witness)} if witness else {})


def on_core(core: int, command: list[str]) -> list[str]:
    """The command, kept on one core."""
    return ["taskset", "-c", str(core), *command]


def _wait_until_it_accepts(server: Server) -> None:
    deadline = time.monotonic() + START_WITHIN
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerError(f"ended at start ({server.process.returncode}): {server.said()}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1):
            return
        time.sleep(0.02)
    raise ServerError(f"accepted nothing for {START_WITHIN:.0f} s: {server.said()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WITHIN)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what is left in the session that we made for it
    process.wait()


@contextmanager
def serving(peer: Peer, *, witnessed: bool = False) -> Iterator[Server]:
    """The peer's server, accepting connections, on its core; stopped at the end.

    Raises:
        ServerError: it did not start.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="fasthook-bench-") as name:
        state = Path(name)
        log = state / "output"
        environment = _environment(state, state / "witness" if witnessed else None)
        command = on_core(SERVER_CORE, peer.command(port, state))
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(peer, process, port, log)
        try:
            _wait_until_it_accepts(server)
            yield server
        finally:
            _stop(process)
