"""What a service manager is told and what it hands over: sd_notify(3) and sd_listen_fds(3), without libsystemd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

_FIRST = 3  # the first inherited descriptor (SD_LISTEN_FDS_START)


def inherited(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets that were handed over, of any family; taken out of the environment.

    OSError: one of them is no listening stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []  # meant for a process further up
    found = []
    for number in range(_FIRST, _FIRST + int(count)):
        os.set_inheritable(number, False)
        listener = socket.socket(fileno=number)
        found.append(listener)
        if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(0, f"descriptor {number} is no listening stream socket: the .socket unit needs ListenStream=")
    return found


class Notifier:
    """Tells the service manager about this process, if there is one that wants to know."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Takes its variables out of the environment, so that no child speaks for this process."""
        where = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + where[1:] if where.startswith("@") else where  # an abstract name
        watched = usec.isdecimal() and pid in ("", str(os.getpid()))
        self._period = int(usec) / 2e6 if watched and self._address else 0.0
        self._timer: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """It serves; from now on the watchdog is fed from the running loop, so that a blocked one is noticed."""
        self._send("READY=1")
        if self._period and self._timer is None:
            self._feed()

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _feed(self) -> None:
        self._send("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(self._period, self._feed)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A manager that is gone or busy is none of the bot's troubles.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), self._address)
