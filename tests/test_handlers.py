"""From `module:attribute` to something that handles updates."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fasthook import Update
from fasthook.handlers import Target, TargetError, adapt, importing, load
from fasthook.lanes import GaveUp
from updates import update

PATIENCE = 60.0  # seconds


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes a module into the current directory; the next test doesn't find it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        file = tmp_path / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


# ---------------------------------------------------------------- targets


def test_a_target_in_the_current_directory(module: Callable[[str, str], None]) -> None:
    module("shop.bots.parcels", "class bot:\n    @staticmethod\n    async def handler(update): ...\n")
    found = load("shop.bots.parcels:bot.handler")
    assert found == Target(sys.modules["shop.bots.parcels"].bot.handler, None)


def test_a_lifespan_beside_the_handler(module: Callable[[str, str], None]) -> None:
    module("withlife", "def lifespan(app): ...\ndef handler(update): ...\n")
    assert load("withlife:handler").lifespan is sys.modules["withlife"].lifespan


@pytest.mark.parametrize("name", ["bot", "bot:", ":handler", "", ":"])
def test_a_target_of_the_wrong_form(name: str) -> None:
    with pytest.raises(TargetError, match=r"is not module:attribute, for instance bot:handler$"):
        load(name)


@pytest.mark.parametrize(
    ("target", "words", "is_their_error"),
    [
        ("nosuch:handler", "there is no module 'nosuch' here or on the Python path", False),
        ("nosuch.inner:handler", "there is no module 'nosuch' here or on the Python path", False),
        ("plainbot.py:handler", "'plainbot.py' is a file, not a module: give plainbot:handler", False),
        ("exits:handler", "the module 'exits' calls sys.exit(3) when it is imported", False),
        ("plainbot:nothing", "the module 'plainbot' has no attribute 'nothing'", False),
        ("plainbot:handler.nothing", "the module 'plainbot' has no attribute 'handler.nothing'", False),
        ("needs:handler", "the module 'needs' imports 'not_installed_here', which is not installed", True),
        ("broken:handler", "the module 'broken' fails to import: ZeroDivisionError: division by zero", True),
        ("typo:handler", "the module 'typo' fails to import: SyntaxError: ", True),
        (".plainbot:handler", "the module '.plainbot' fails to import: TypeError: ", True),
    ],
)
def test_each_wrong_target_has_words_of_its_own(
    module: Callable[[str, str], None], target: str, words: str, is_their_error: bool
) -> None:
    module("plainbot", "def handler(update): ...\n")
    module("needs", "import not_installed_here\n")
    module("broken", "1 / 0\n")
    module("exits", "raise SystemExit(3)\n")
    module("typo", "def handler(update: ...\n")
    with pytest.raises(TargetError) as raised:
        load(target)
    assert str(raised.value).startswith(words)
    assert "\n" not in str(raised.value)
    assert (raised.value.__cause__ is not None) == is_their_error


def test_an_import_that_does_not_end_says_where_it_is(
    module: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bot that runs itself, for instance: nothing of it would be served, and nobody would know why."""
    waits = "import os, time\n\ndef run_polling():\n    while not os.path.exists('told'): time.sleep(0.01)\n"
    module("polls", f"{waits}\nrun_polling()\n\ndef handler(update): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importing, "LONG", 0.1)
    tell = importing.log.warning

    def telling(*words: Any) -> None:
        tell(*words)
        (tmp_path / "told").touch()

    monkeypatch.setattr(importing.log, "warning", telling)
    load("polls:handler")
    [told] = caplog.messages
    seconds, what = told.removeprefix("the module 'polls' has been importing for ").split(" s", 1)
    assert float(seconds) >= 0.1
    assert what == (
        ", and its bot is not served before that ends: it is at "
        "polls.py:4, \"while not os.path.exists('told'): time.sleep(0.01)\"; "
        "a call that does not return belongs under if __name__ == '__main__'"
    )


def test_an_import_that_comes_further_is_not_told(
    module: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long it takes: what a bot imports is large, and a machine may be busy."""
    for n in range(20):
        module(f"part{n}", "import time\ntime.sleep(0.1)\n")
    imports = "".join(f"import part{n}\n" for n in range(20))
    module("large", f"{imports}\ndef handler(update): ...\n")
    monkeypatch.setattr(importing, "LONG", 1.0)
    load("large:handler")
    assert not caplog.messages


# ---------------------------------------------------------------- what is a handler


async def coroutine(update: Update) -> int:
    return update.update_id


def plain(update: Update) -> int:
    return update.update_id


class Caller:
    async def __call__(self, update: Update) -> int:
        return update.update_id

    def method(self, update: Update) -> int:
        return update.update_id


def returns_a_coroutine(update: Update) -> Any:
    return coroutine(update)


def handle(value: Any, *updates: Update) -> list[Any]:
    """What the handler returns for each update, or the error it ends with."""

    async def main() -> list[Any]:
        handler = adapt(value, threads=4)

        async def outcome(update: Update) -> Any:
            try:
                return await handler.call(update)
            except BaseException as error:
                return error

        await handler.start()
        try:
            return await asyncio.gather(*(outcome(update) for update in updates))
        finally:
            await handler.stop()

    return asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize(
    "value",
    [
        coroutine,
        plain,
        Caller(),
        Caller().method,
        functools.partial(coroutine),
        functools.partial(lambda n, update: n + update.update_id, 0),
        returns_a_coroutine,
        lambda update, more=None: update.update_id,
        lambda *all_of_it: all_of_it[0].update_id,
    ],
)
def test_a_handler(value: Any) -> None:
    assert handle(value, update(7), update(8)) == [7, 8]


def test_a_coroutine_function_is_called_directly() -> None:
    assert adapt(coroutine, threads=1).call is coroutine


async def asynchronous_generator(update: Update) -> Any:
    yield update


def generator(update: Update) -> Any:
    yield update


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("text", "a str is not a handler: it cannot be called with an update"),
        (5, "an int is not a handler: it cannot be called with an update"),
        (None, "a NoneType is not a handler: it cannot be called with an update"),
        (Caller, "Caller is a class: make an object of it, or name a function"),
        (generator, "the handler is a generator: it must return, not yield"),
        (asynchronous_generator, "the handler is a generator: it must return, not yield"),
        (lambda: None, "the handler must take one argument, the update"),
        (lambda update, bot: None, "the handler must take one argument, the update"),
        (lambda *, update: None, "the handler must take one argument, the update"),
    ],
)
def test_not_a_handler(value: Any, words: str) -> None:
    with pytest.raises(TargetError, match=f"^{words}$"):
        adapt(value, threads=1)


# ---------------------------------------------------------------- plain functions


def test_plain_functions_run_side_by_side_in_threads() -> None:
    barrier = threading.Barrier(4)

    def handler(update: Update) -> str:
        barrier.wait(PATIENCE)
        return threading.current_thread().name

    names = handle(handler, *(update(n) for n in range(4)))
    assert len(set(names)) == 4
    assert all(name.startswith("fasthook-handler") for name in names)


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration(5), SystemExit(3), KeyError("x")])
def test_what_a_plain_function_raises(error: BaseException) -> None:
    def handler(update: Update) -> None:
        raise error

    [raised] = handle(handler, update(1))
    assert error in (raised, raised.__cause__)


def test_a_plain_function_sees_the_context_and_leaves_nothing_in_it() -> None:
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="outer")

    def handler(update: Update) -> str:
        before = mine.get()
        mine.set("inner")
        return before

    mine.set("caller")
    assert handle(handler, update(1), update(2)) == ["caller", "caller"]
    assert mine.get() == "caller"


def test_a_plain_function_that_cannot_be_stopped_is_given_up_on() -> None:
    let_go = threading.Event()
    began = threading.Event()

    def handler(update: Update) -> None:
        began.set()
        let_go.wait(PATIENCE)

    async def main() -> None:
        adapted = adapt(handler, threads=1)
        await adapted.start()
        call = asyncio.ensure_future(adapted.call(update(1)))
        second = asyncio.ensure_future(adapted.call(update(2)))
        await asyncio.to_thread(began.wait, PATIENCE)
        assert adapted.running == 2
        call.cancel()
        with pytest.raises(GaveUp, match="its thread cannot be stopped") as raised:
            await call
        assert raised.value.reason == "timeout"
        second.cancel()  # it has not begun yet, so it may be tried again
        with pytest.raises(asyncio.CancelledError):
            await second
        assert adapted.running == 1
        await adapted.stop()
        let_go.set()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
