"""A simulator and a bot that run beside a test, each on a loop and a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, TypeVar

from fasthook import settings as declared
from fasthook.asgi import Hook
from fasthook.handlers import complete, load
from fasthook.testing.api import ended, hang_up
from fasthook.testing.calls import Call, Fault
from fasthook.testing.chats import PHOTO, Chat, User
from fasthook.testing.limits import Limits
from fasthook.testing.simulator import TOKEN, Simulator
from fasthook.testing.updates import Event
from fasthook.testing.webhooks import Rules

_T = TypeVar("_T")
_PATIENCE = 30.0  # seconds for a bot to start, and to stop


class Pending(Generic[_T]):
    """Something that happens in another thread. `await` it in any asyncio loop, or call `result()` without one."""

    def __init__(self, future: Future[_T]) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, _T]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self) -> _T:
        """Wait for it without a loop: its result."""
        return self._future.result()


class _Thread:
    """A loop in a thread. `keep`: the loop outlives the thread, its tasks do not."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop | None = None, *, keep: bool = False) -> None:
        self._loop = loop or asyncio.new_event_loop()
        self._stop = self._loop.create_future()
        self._thread = threading.Thread(target=self._keep if keep else self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_stopped())

    def _keep(self) -> None:
        self._loop.run_until_complete(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self._stop
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_PATIENCE)

    def run(self, work: Coroutine[Any, Any, _T]) -> Pending[_T]:
        return Pending(asyncio.run_coroutine_threadsafe(work, self._loop))

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set_result, None)
        self._thread.join(_PATIENCE)


@contextlib.contextmanager
def lasting_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for one `RunningBot` after the other: an application that several of them serve may be bound to it."""
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        _Thread("fasthook-bot", loop).stop()  # which closes it, and not in a thread where another loop may run


class Conversation:
    """A chat with the bot under test, for a test: each method can be awaited, or asked for its `result()`."""

    def __init__(self, chat: Chat, thread: _Thread) -> None:
        self._chat = chat
        self._thread = thread

    @property
    def id(self) -> int:
        return self._chat.id

    @property
    def person(self) -> User:
        """Who talks here."""
        return self._chat.person

    @property
    def calls(self) -> list[Call]:
        """All that the bot did here until now."""
        return list(self._chat.calls)

    def send(self, text: str, **more: Any) -> Pending[Event]:
        """Type something: the message. `more`: other fields of it, by the names of the Bot API."""
        return self._thread.run(self._chat.send(text, **more))

    def send_photo(self, caption: str = "", *, data: bytes = PHOTO, by: User | None = None) -> Pending[Event]:
        """Send a photo; `data` is what the bot gets when it downloads it."""
        return self._thread.run(self._chat.send_photo(caption, data=data, by=by))

    def edit(self, message: Event, text: str) -> Pending[Event]:
        """Change the text of a message that was sent here."""
        return self._thread.run(self._chat.edit(message, text))

    def press(self, button: str, *, by: User | None = None) -> Pending[Event]:
        """Press the button with these words, or this callback_data, that the bot showed last.

        AssertionError: there is no such button. The message lists those there are.
        """
        return self._thread.run(self._chat.press(button, by=by))

    def block(self) -> Pending[None]:
        """Block the bot: what it sends here is refused with 403."""
        return self._thread.run(self._chat.block())

    def unblock(self) -> Pending[None]:
        """Let the bot write again."""
        return self._thread.run(self._chat.unblock())

    def expect(
        self,
        method: str | None = None,
        *,
        text: str | re.Pattern[str] | None = None,
        status: int = 200,
        timeout: float = 5.0,
        **params: Any,
    ) -> Pending[Call]:
        """Wait for the bot to call a method here, for at most `timeout` seconds: the call; see `Chat.expect`.

        NotCome, an AssertionError: in time nothing came that fits. The message lists what came instead.
        """
        return self._thread.run(self._chat.expect(method, text=text, status=status, timeout=timeout, **params))


class Telegram:
    """A simulator that runs beside a test."""

    def __init__(
        self, *, token: str = TOKEN, speed: float = 1.0, seed: int | None = None, rules: Rules | None = None
    ) -> None:
        self._thread = _Thread("fasthook-telegram")
        self.simulator = Simulator((token,), speed=speed, seed=seed, rules=rules)
        try:
            self._thread.run(self.simulator.__aenter__()).result()
        except BaseException:
            self._thread.stop()
            raise

    @property
    def url(self) -> str:
        """What a bot takes for the Bot API's address."""
        return self.simulator.url

    @property
    def token(self) -> str:
        return self.simulator.bot.token

    def take_token(self, token: str) -> None:
        """From now on the bot has this token; ValueError: it has not the shape of one."""
        self._do(lambda: self.simulator.take_token(token))

    @property
    def calls(self) -> list[Call]:
        """All that the bot called until now."""
        return list(self.simulator.bot.calls)

    def chat(self, chat_id: int = 1_000_000_001, kind: str = "private", *, people: int = 1) -> Conversation:
        """The chat with this number, or a new one of this kind (`private`, `group`, `supergroup`, `channel`)."""
        return Conversation(self._do(lambda: self.simulator.chat(chat_id, kind, people=people)), self._thread)

    def fail(self, kind: str, method: str = "*", **how: Any) -> Fault:
        """From now on answer the bot's calls with this: `429`, `403`, `500`, `html`, `slow`, `hang` or `close`.

        `chat_id`, `times`, `share`, `retry_after` and `seconds` say when and how; see `Fault`. ValueError: the kind is
        not known.
        """
        return self._do(lambda: self.simulator.fail(kind, method, **how))

    def heal(self) -> None:
        """No more faults."""
        self._do(self.simulator.heal)

    def limit(self, limits: Limits | None = Limits()) -> None:  # noqa: B008 is frozen
        """From now on refuse with 429 what the bot sends beyond these limits; None: no more of that."""
        self._do(lambda: self.simulator.limit(limits))

    def advance(self, seconds: float) -> None:
        """Put Telegram's clock forward: what it would have done meanwhile happens now."""
        self._do(lambda: self.simulator.clock.advance(seconds))

    def set_webhook(self, url: str, secret: str = "", **params: Any) -> None:
        """setWebhook, as the bot would call it. SimulatorError: Telegram refuses."""
        self._thread.run(self.simulator.set_webhook(url, secret, **params)).result()

    def webhook_info(self) -> Event:
        """What getWebhookInfo tells."""
        return self._do(self.simulator.bot.webhook_info)

    def settled(self, timeout: float | None = None) -> Pending[None]:
        """Wait until the bot has taken every update, for at most `timeout` seconds.

        NotCome, an AssertionError: in time it has not. The message says what is known of why.
        """
        return self._thread.run(self.simulator.bot.settled(timeout))

    def stop(self) -> None:
        self._thread.run(self.simulator.__aexit__(None, None, None)).result()
        self._thread.stop()

    def _do(self, what: Callable[[], _T]) -> _T:
        async def work() -> _T:
            return what()

        return self._thread.run(work()).result()


class RunningBot:
    """A handler that is served on a free port, in this process, in a thread of its own.

    `handler`: what `fasthook.Hook` takes, or `module:attribute`. `settings`: those of `fasthook run` by their names.
    A token among them, else the handler's own, is the bot's at `telegram` from now on. `loop`: on which it runs, if it
    shall outlive this object; see `lasting_loop`.
    """

    def __init__(
        self,
        handler: Any,
        telegram: Telegram,
        state: Path,
        settings: dict[str, Any],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        lifespan = None
        if isinstance(handler, str):
            target = load(handler)
            handler, lifespan = target.value, target.lifespan
        given = {
            "token": _own_token(handler) or telegram.token,
            "api_url": telegram.url,
            "state_dir": state,
            **settings,
        }
        self.hook = Hook(handler, lifespan=lifespan, **given)
        if self.hook.settings.token and self.hook.settings.token != telegram.token:
            telegram.take_token(self.hook.settings.token)
        self._thread = _Thread("fasthook-bot", loop, keep=loop is not None)
        with _stopping_on_error(self._thread):
            port = self._thread.run(self._start()).result()
        self.url = f"http://127.0.0.1:{port}{self.hook.settings.path}"
        self.secret = self.hook.settings.valid_secrets[0].decode()

    async def _start(self) -> int:
        import uvicorn

        config = uvicorn.Config(
            self.hook,
            http="fasthook._protocol:HookProtocol" if self.hook.settings.http == "compiled" else "httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(self.hook.settings.keep_alive),
        )
        config.load()
        self._state = uvicorn.server.ServerState()
        await self.hook.receiver.start()
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        loop = asyncio.get_running_loop()
        make: Any = config.http_protocol_class
        self._server = await loop.create_server(lambda: make(config, self._state, {}, loop), sock=listener)
        port: int = listener.getsockname()[1]
        return port

    async def _stop(self) -> None:
        await hang_up(self._server, self._state)
        await self.hook.receiver.stop()
        await ended(self._state)

    def stop(self) -> None:
        """Stop as `fasthook run` does: running handlers finish first."""
        self._thread.run(self._stop()).result()
        self._thread.stop()


def _own_token(handler: Any) -> str | None:
    """The token that a library's object brings. TargetError: it has not the shape of one."""
    return complete(handler, declared.load({}, {}, keywords=True)).token


@contextlib.contextmanager
def _stopping_on_error(thread: _Thread) -> Iterator[None]:
    try:
        yield
    except BaseException:
        thread.stop()
        raise
