"""A simulator and a bot on threads of their own: that they end, and leave nothing behind."""

from __future__ import annotations

import gc
import socket
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fasthook.testing.chats import NotCome
from fasthook.testing.running import RunningBot, Telegram


def test_what_is_not_taken_in_time_is_told_with_the_reason() -> None:
    telegram = Telegram()
    try:
        telegram.settled(60).result()
        telegram.chat().send("hello").result()
        with pytest.raises(NotCome, match="1 updates are not delivered: the bot has no webhook and does not poll"):
            telegram.settled(0.1).result()
    finally:
        telegram.stop()


async def ignore(update: object) -> None:
    """A handler that answers nothing."""


def test_connections_that_come_while_the_bot_stops_are_closed(tmp_path: Path) -> None:
    telegram = Telegram()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number in range(30):
            bot = RunningBot(ignore, telegram, tmp_path / str(number), {"queue": "memory:"})
            port = urlsplit(bot.url).port
            assert port
            clients = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(2)]
            bot.stop()
            for client in clients:
                with client:
                    assert _end(client) == b""
        telegram.stop()
        gc.collect()
    assert [str(each.message) for each in told] == []


def _end(client: socket.socket) -> bytes:
    try:
        return client.recv(1)
    except ConnectionResetError:
        return b""  # it was still in the listener's backlog
