"""`python -m bench.where`: where a server's CPU time goes under load, by part and by function. Needs perf and wrk.

    python -m bench.where
    python -m bench.where --only "Hook under uvicorn" --connections 1

Samples of the CPU clock, as virtual machines have no other: shares are good to a percent or two.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from bench.peers.catalog import NOOP, Peer, chosen
from bench.peers.measure import MEASURED_IDS, WARM_UP_IDS, Load, send
from bench.peers.process import serving

PARTS = (  # the first whose pattern is in the name of the shared object
    ("kernel", r"\[kernel|\[vdso|\[unknown"),
    ("uvloop", r"uvloop|loop\.cpython"),
    ("llhttp, httptools", r"httptools|parser\.cpython"),
    ("fasthook, compiled", r"_(asgi|core|framing|head|protocol|scan)\.cpython"),
    ("the interpreter", r"python"),
    ("libc", r"libc|libpthread|ld-linux"),
)
MOST = 12  # functions that are printed
LINE = re.compile(r"^\s*(\d+\.\d+)%\s+(\S+)\s+\[\S\]\s+(.+?)(?:\s+-)*\s*$")


def part_of(dso: str) -> str:
    """What a shared object belongs to."""
    return next((name for name, pattern in PARTS if re.search(pattern, dso)), dso)


def profile(peer: Peer, connections: int, seconds: int) -> list[tuple[float, str, str]]:
    """The share of each function in percent, with the shared object that it is in."""
    with tempfile.TemporaryDirectory() as directory, serving(peer) as server:
        data = str(Path(directory) / "perf.data")
        send(server, WARM_UP_IDS, Load(1, connections))
        load = threading.Thread(target=send, args=(server, MEASURED_IDS, Load(seconds + 1, connections)))
        load.start()
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-o", data]
        command += ["-p", str(server.process.pid), "--", "sleep", str(seconds)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        load.join()
        report = ["perf", "report", "--stdio", "-i", data, "--no-children", "--sort", "dso,symbol"]
        text = subprocess.run(report, check=True, capture_output=True, text=True).stdout
    found = [LINE.match(line) for line in text.splitlines()]
    return [(float(match[1]), match[2], match[3]) for match in found if match]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.where", description="Where a server's CPU time goes.")
    parser.add_argument("--only", default=NOOP, metavar="NAME", help=f"the peer, or a part of its name ({NOOP})")
    parser.add_argument("--connections", type=int, default=64, help="keep-alive connections (64)")
    parser.add_argument("--seconds", type=int, default=5, help="of samples (5)")
    arguments = parser.parse_args()
    try:
        peer = chosen(arguments.only)[-1]
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    functions = profile(peer, arguments.connections, arguments.seconds)
    parts: Counter[str] = Counter()
    for share, dso, _ in functions:
        parts[part_of(dso)] += share  # type: ignore[assignment]
    print(f"{peer.name}, {arguments.connections} connections\n\n| part | share |\n| --- | --: |")
    for name, share in parts.most_common():
        print(f"| {name} | {share:.1f}% |")
    print("\n| function outside the kernel | of | share |\n| --- | --- | --: |")
    for share, dso, symbol in [one for one in functions if part_of(one[1]) != "kernel"][:MOST]:
        print(f"| `{symbol}` | {part_of(dso)} | {share:.1f}% |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
