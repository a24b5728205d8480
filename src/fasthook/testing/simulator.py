"""A Telegram that lives on this machine: a Bot API server, the delivery to webhooks, and people."""

from __future__ import annotations

import ipaddress
import os
import random
import re
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from fasthook.testing.account import Account, Watcher
from fasthook.testing.api import ApiServer
from fasthook.testing.calls import Fault
from fasthook.testing.chats import Chat, User
from fasthook.testing.clock import Clock
from fasthook.testing.limits import Limits, Sent
from fasthook.testing.parameters import Parameters
from fasthook.testing.webhooks import Rules

#: A token that no bot has.
TOKEN = "42:TEST-token-of-the-simulator"
_TOKEN = re.compile(r"[1-9]\d{0,15}:[A-Za-z0-9_-]{1,256}")


class SimulatorError(Exception):
    """It cannot start, or a webhook cannot be set. The message is one line."""


class Simulator:
    """`async with Simulator() as telegram:` is Telegram for the bots with these tokens.

    `url` is what a bot takes for the Bot API's address. `speed`: seconds of its clock in a real one; 0 for a clock that
    stands still and is put forward by `clock.advance` and `clock.skip`. `rules`: how webhooks are taken. `seed`: of all
    that is random in it. ValueError: something of a token's shape is wrong.
    """

    def __init__(
        self,
        tokens: Sequence[str] = (TOKEN,),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        speed: float = 1.0,
        rules: Rules | None = None,
        seed: int | None = None,
    ) -> None:
        for token in tokens:
            _check_token(token)
        if len({token.partition(":")[0] for token in tokens}) < len(tokens):
            raise ValueError("two tokens are of the same bot")
        self.tokens = tuple(tokens)
        self.accounts: list[Account] = []
        self.watchers: list[Watcher] = []
        self.url = ""
        self._where = (host, port)
        self._speed = speed
        self._rules = rules or Rules()
        self._random = random.Random(seed)
        self._clock: Clock | None = None
        self._server: ApiServer | None = None

    async def __aenter__(self) -> Simulator:
        listener = _listen(*self._where)
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._clock = Clock(self._speed)
        self.accounts = [Account(token, self._clock, self._rules, self._random, self.watchers) for token in self.tokens]
        self._server = ApiServer(self, listener)
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        for account in self.accounts:
            account.close()
        self.clock.stop()
        await self._server.stop()

    @property
    def clock(self) -> Clock:
        assert self._clock is not None, "the simulator is not started"
        return self._clock

    @property
    def bot(self) -> Account:
        """The bot of the first token."""
        return self.accounts[0]

    def find(self, token: str) -> Account | None:
        """The bot with this token, if it may call."""
        return next((found for found in self.accounts if found.token == token and not found.revoked), None)

    def take_token(self, token: str) -> None:
        """From now on this is the first bot's token. ValueError: it has not the shape of one, or is another bot's."""
        _check_token(token)
        if any(account.id == int(token.partition(":")[0]) for account in self.accounts[1:]):
            raise ValueError("another bot here has this number")
        self.bot.take_token(token)
        self.tokens = (token, *self.tokens[1:])

    def chat(self, chat_id: int = 1_000_000_001, kind: str = "private", *, people: int = 1, title: str = "") -> Chat:
        """A chat with the first bot: the one with this number, or a new one of this kind with so many people."""
        known = self.bot.chats.get(chat_id)
        if known is not None:
            return known
        first = chat_id if kind == "private" else 1_000_000_001
        members = [User(first + n, "Ann" if n == 0 else f"User {n + 1}") for n in range(people)]
        return self.bot.add_chat(chat_id, kind, members, title)

    def fail(self, kind: str, method: str = "*", **how: Any) -> Fault:
        """From now on answer the bots' calls with this; see `Fault`. ValueError: the kind is not known."""
        fault = Fault(kind, method, **how)
        for account in self.accounts:
            account.faults.insert(0, fault)
        return fault

    def heal(self) -> None:
        """No more faults."""
        for account in self.accounts:
            account.faults.clear()

    def limit(self, limits: Limits | None = Limits()) -> None:  # noqa: B008 is frozen
        """From now on refuse with 429 what the bots send beyond these limits; None: no more of that."""
        for account in self.accounts:
            account.sent_lately = Sent(limits, self.clock) if limits else None

    async def set_webhook(self, url: str, secret: str = "", **params: Any) -> None:
        """setWebhook, as the first bot would call it. SimulatorError: Telegram refuses."""
        from json import loads

        given = {"url": url, **({"secret_token": secret} if secret else {}), **params}
        answer = await self.bot.call("setWebhook", Parameters(given))
        if answer.status != 200:
            raise SimulatorError(f"setWebhook is refused: {loads(answer.body)['description']}")


def _check_token(token: str) -> None:
    if not _TOKEN.fullmatch(token):
        raise ValueError("a token must look like 42:TEST-abc")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(place[:2], family=family, backlog=1024)
    except (OSError, UnicodeError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0  # of a name that cannot be resolved it is negative
        why = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise SimulatorError(f"cannot listen on {host}:{port}: {why}") from None
    if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        listener.close()
        raise SimulatorError(f"cannot listen on {host}:{port}: the simulator is for this machine only; use 127.0.0.1")
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    return listener
