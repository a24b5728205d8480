"""`fasthook.Hook`, the raw ASGI callable. Served by: uvicorn bench.peers.servers.asgi_hook:app"""

from __future__ import annotations

import os

from bench.peers import bots, job

from fasthook import Hook

app = Hook(bots.noop, secret=job.SECRET, path=job.PATH, queue="memory:", state_dir=os.environ["BENCH_STATE"])
