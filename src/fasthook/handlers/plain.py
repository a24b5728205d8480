"""A plain callable as a handler: `async def handler(update)`, or a plain `def`, which runs in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fasthook.handlers import TargetError
from fasthook.lanes import RunsOn
from fasthook.update import Update
from fasthook.wording import with_article


class PlainHandler:
    """A callable that takes an `Update`. `threads`: how many plain functions may run at once.

    TargetError: it is not callable, or not with one argument.
    """

    def __init__(self, function: Any, *, threads: int) -> None:
        _check(function)
        self._function: Callable[[Update], Any] = function
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self.running = 0
        coroutine = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        self.call: Callable[[Update], Awaitable[Any]] = function if coroutine else self._in_thread

    async def start(self) -> None:
        if self.call != self._function:
            self._pool = ThreadPoolExecutor(self._threads, "fasthook-handler")

    async def stop(self) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, update: Update) -> Any:
        assert self._pool is not None
        future = self._pool.submit(contextvars.copy_context().run, self._run, update)
        self.running += 1
        future.add_done_callback(self._ended)
        try:
            result = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                return future.result()  # it ended just then
            if future.running():
                raise RunsOn(
                    "the handler is a plain function that ran too long: its thread cannot be stopped and still runs",
                    "timeout",
                ) from None
            raise
        return await result if inspect.isawaitable(result) else result

    def _run(self, update: Update) -> Any:
        try:
            return self._function(update)
        except StopIteration as error:  # which no future carries from one thread to another
            raise RuntimeError("the handler raised StopIteration") from error

    def _ended(self, _: Future[Any]) -> None:
        self.running -= 1


def _check(function: Any) -> None:
    if not callable(function):
        kind = with_article(type(function).__name__)
        raise TargetError(f"{kind} is not a handler: it cannot be called with an update")
    if inspect.isclass(function):
        raise TargetError(f"{function.__name__} is a class: make an object of it, or name a function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TargetError("the handler is a generator: it must return, not yield")
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        words = _makes_a_bot(function) or "the handler must take one argument, the update"
        raise TargetError(words) from None
    except ValueError:
        return  # a built-in without a signature: the first call will tell


#: What a bot of a library is served by.
_SERVED = {"aiogram": "Dispatcher", "telegram": "Application", "telebot": "AsyncTeleBot"}


def _makes_a_bot(function: Any) -> str | None:
    """What to do about a function without arguments where a library is used: the `main()` of its examples."""
    if inspect.signature(function).parameters:
        return None
    names = getattr(function, "__globals__", {}).values()
    packages = {str(getattr(value, "__module__", "")).partition(".")[0] for value in names}
    packages |= {value.__name__.partition(".")[0] for value in names if inspect.ismodule(value)}
    found = next((package for package in _SERVED if package in packages), None)
    if found is None:
        return None
    name, served = getattr(function, "__name__", "it"), with_article(_SERVED[found])
    return f"{name}() takes no update; put {served} at the top level of the module, not into {name}(), and name that"
