"""Runs a command of fasthook without what only Unix has: `python -P unixless.py FASTHOOK run …`.

It stands for Windows where there is none: modules, signals, sockets and calls of the loop that Windows lacks are gone,
and `sys.platform` says so. What Python and other packages do there by themselves it cannot show.
"""

# ruff: noqa: F401 they are to be loaded before their world changes
from __future__ import annotations

import asyncio
import functools
import importlib.util
import mmap
import os
import pkgutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import types

import click
import httptools
import httpx
import lmdb
import orjson
import prometheus_client
import rich.console
import starlette.applications
import uvicorn.protocols.http.httptools_impl

MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "uvloop")
SIGNALS = (
    "SIGBUS",
    "SIGCHLD",
    "SIGHUP",
    "SIGKILL",
    "SIGPIPE",
    "SIGQUIT",
    "SIGUSR1",
    "SIGUSR2",
    "alarm",
    "pthread_kill",
)
CALLS = ("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "fork", "geteuid", "getuid", "killpg", "sched_getaffinity", "uname")
LOOP = ("add_signal_handler", "create_unix_connection", "create_unix_server")


def msvcrt() -> types.ModuleType:
    """Its lock of a byte, as far as it is used."""
    import fcntl

    made = types.ModuleType("msvcrt")

    def locking(descriptor: int, mode: int, size: int) -> None:
        assert (mode, size) == (2, 1)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, os.lseek(descriptor, 0, os.SEEK_CUR))

    made.LK_NBLCK = 2  # type: ignore[attr-defined]
    made.locking = locking  # type: ignore[attr-defined]
    return made


def not_here(*_: object, **__: object) -> None:
    raise NotImplementedError


def leave_unix() -> None:
    sys.modules["msvcrt"] = msvcrt()
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in SIGNALS:
        delattr(signal, name)
    for name in [*CALLS, *(name for name in dir(os) if name.startswith("posix_"))]:
        delattr(os, name)
    for name in LOOP:
        setattr(asyncio.SelectorEventLoop, name, not_here)
    socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)  # Windows has one of its own
    del socket.AF_UNIX
    sys.platform = "win32"


def libraries() -> list[str]:
    """Those of bots; aiogram is not for Python 3.15 yet."""
    absent = sys.version_info >= (3, 15) and importlib.util.find_spec("aiogram") is None
    return [*([] if absent else ["aiogram"]), "telegram.ext", "telebot.async_telebot"]


def load_all(left_out: set[str]) -> None:
    """Import every module of fasthook but these."""
    import fasthook

    for module in pkgutil.walk_packages(fasthook.__path__, "fasthook."):
        if module.name not in {"fasthook.__main__", *left_out}:
            print(importlib.import_module(module.name).__name__)


if __name__ == "__main__":
    if sys.argv[1] == "--load-all":
        names = libraries()
        for name in (*names, "pytest"):
            importlib.import_module(name)
        leave_unix()
        sys.exit(load_all(set() if "aiogram" in names else {"fasthook.handlers.aiogram"}))
    leave_unix()
    from fasthook.cli import main

    del sys.argv[0]
    sys.exit(main())
