"""The pytest plugin, as a bot's own tests meet it."""

from __future__ import annotations

import importlib.util
import os
import textwrap

import pytest

from e2e.process import LONG

pytest_plugins = "pytester"

BOT = """
    from fasthook import Update

    KEYBOARD = {"inline_keyboard": [[{"text": "Tea", "callback_data": "tea"}, {"text": "Site", "url": "https://a.b"}]]}

    async def handler(update: Update):
        if update.kind == "callback_query":
            return update.reply("answerCallbackQuery", text="You chose " + update["callback_query"]["data"])
        if update.kind == "edited_message":
            return update.reply("sendMessage", text="changed to " + update["edited_message"]["text"])
        message = update["message"] if update.kind == "message" else {}
        if "photo" in message:
            return update.reply("sendPhoto", photo=message["photo"][-1]["file_id"], caption=message["caption"])
        if message.get("text") == "/start":
            return update.reply("sendMessage", text="Hello!", reply_markup=KEYBOARD)
        if "text" in message:
            return update.reply("sendMessage", text=message["text"].upper())
"""
CONFTEST = """
    import pytest

    @pytest.fixture
    def bot_handler():
        return "shop:handler"
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A bot, and a conftest.py that names it."""
    pytester.makepyfile(shop=BOT)
    pytester.makeconftest(CONFTEST)
    return pytester


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """pytest in a process of its own, by default without pytest-asyncio, warnings being errors."""
    asyncio = (
        ["-o", "asyncio_default_fixture_loop_scope=function"]
        if any("asyncio" in given for given in arguments)
        else ["-p", "no:asyncio"]
    )
    return project.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *asyncio, *arguments, timeout=LONG)


CONVERSATION = """
    async def test_it(chat, telegram):
        await chat.send("/start")
        call = await chat.expect(method="sendMessage", text="Hello!", timeout=60)
        assert call.buttons == ["Tea", "Site"]
        await chat.press("Tea")
        await chat.expect("answerCallbackQuery", text="You chose tea", timeout=60)
        message = await chat.send("one")
        await chat.expect("sendMessage", text="ONE", timeout=60)
        await chat.edit(message, "two")
        await chat.expect(text="changed to two", timeout=60)
        await chat.send_photo("look")
        await chat.expect("sendPhoto", caption="look", timeout=60)
        await telegram.settled(60)
        assert [call.method for call in chat.calls][-1] == "sendPhoto"
"""


def test_a_conversation(project: pytest.Pytester) -> None:
    """Without a plugin for async tests."""
    project.makepyfile(CONVERSATION)
    run(project).assert_outcomes(passed=1)


def test_under_anyio(project: pytest.Pytester) -> None:
    project.makepyfile(
        "import pytest\npytestmark = pytest.mark.anyio\n"
        "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n" + _dedent(CONVERSATION)
    )
    run(project).assert_outcomes(passed=1)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_under_pytest_asyncio(project: pytest.Pytester, mode: str) -> None:
    if importlib.util.find_spec("pytest_asyncio") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("pytest-asyncio is not installed")
        pytest.skip("pytest-asyncio is not installed")
    mark = "import pytest\npytestmark = pytest.mark.asyncio\n" if mode == "strict" else ""
    project.makepyfile(mark + _dedent(CONVERSATION))
    run(project, f"--asyncio-mode={mode}").assert_outcomes(passed=1)


def test_without_async_at_all(project: pytest.Pytester) -> None:
    project.makepyfile("""
        def test_it(chat):
            chat.send("hello").result()
            assert chat.expect("sendMessage", timeout=60).result().text == "HELLO"
    """)
    run(project).assert_outcomes(passed=1)


def test_a_handler_of_the_test_itself(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        seen = []

        @pytest.fixture
        def bot_handler():
            def handler(update):
                seen.append(update["message"]["text"])
            return handler

        @pytest.fixture
        def bot_settings():
            return {"ack": "handled", "secret": "s-1"}

        async def test_it(chat, telegram, bot):
            await chat.send("hello")
            await telegram.settled(60)
            assert seen == ["hello"]
            assert bot.secret == "s-1"
            assert telegram.webhook_info()["pending_update_count"] == 0
    """)
    run(pytester).assert_outcomes(passed=1)


TOKENED = "777000:TEST-the-bot-has-its-own"
LIBRARIES = {
    "aiogram": f"""
        from aiogram import Bot, Dispatcher

        bot = Bot({TOKENED!r})
        app = Dispatcher()

        @app.message()
        async def echo(message):
            await message.answer(message.text.upper())
    """,
    "telegram": f"""
        from telegram.ext import Application, MessageHandler, filters

        async def echo(update, context):
            await update.message.reply_text(update.message.text.upper())

        app = Application.builder().token({TOKENED!r}).build()
        app.add_handler(MessageHandler(filters.TEXT, echo))
    """,
    "telebot": f"""
        from telebot.async_telebot import AsyncTeleBot

        app = AsyncTeleBot({TOKENED!r})

        @app.message_handler()
        async def echo(message):
            await app.send_message(message.chat.id, message.text.upper())
    """,
}
TWO_TESTS = """
    import pytest

    @pytest.fixture
    def bot_handler():
        return "shop:app"

    @pytest.mark.parametrize("text", ["one", "two"])
    async def test_it(chat, telegram, text):
        assert telegram.token.startswith("777000:")
        await chat.send(text)
        call = await chat.expect("sendMessage", text=text.upper(), timeout=60)
        assert call.via == "api"
        assert call.bot_id == 777000

    def test_without_async(chat):
        chat.send("three").result()
        chat.expect("sendMessage", text="THREE", timeout=60).result()
"""


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_bot_you_have(pytester: pytest.Pytester, library: str) -> None:
    """One application for all tests of a module, with a token of its own; its library has nothing to complain of."""
    pytester.makepyfile(shop=LIBRARIES[library], test_shop=TWO_TESTS)
    result = run(pytester, "-rP")
    result.assert_outcomes(passed=3)
    for words in ("*CRITICAL*", "*ERROR*", "*Traceback*"):
        result.stdout.no_fnmatch_line(words)


def test_a_token_in_the_settings(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import pytest

        @pytest.fixture
        def bot_settings():
            return {"token": "43:TEST-another"}

        async def test_it(chat, telegram):
            await chat.send("hello")
            assert (await chat.expect("sendMessage", timeout=60)).bot_id == 43
            assert telegram.token == "43:TEST-another"
    """)
    run(project).assert_outcomes(passed=1)


def test_what_a_bot_leaves_behind_ends_with_it(pytester: pytest.Pytester) -> None:
    """Though the loop goes on."""
    pytester.makepyfile("""
        import asyncio
        import pytest

        seen, loops, tasks = [], [], set()

        @pytest.fixture
        def bot_handler():
            async def linger():
                try:
                    await asyncio.Event().wait()
                finally:
                    seen.append("ended")

            async def handler(update):
                loops.append(asyncio.get_running_loop())
                tasks.add(asyncio.create_task(linger()))
                await asyncio.sleep(0)
                return update.reply("sendMessage", text="hi")
            return handler

        async def test_one(chat):
            await chat.send("one")
            await chat.expect("sendMessage", timeout=60)
            assert seen == []

        async def test_two(chat):
            assert seen == ["ended"]
            await chat.send("two")
            await chat.expect("sendMessage", timeout=60)

        def test_the_loop():
            assert len(set(loops)) == 1
            assert seen == ["ended"] * 2
            assert not any(task for task in tasks if not task.done())
    """)
    run(pytester).assert_outcomes(passed=3)


def test_what_did_not_come_is_told_with_what_came(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import asyncio

        async def test_it(chat):
            await chat.send("hello")
            while not chat.calls:
                await asyncio.sleep(0.01)
            await chat.expect("sendMessage", text="goodbye", timeout=0.5)
    """)
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        "*NotCome: the bot did not call sendMessage with text='goodbye' within 0.5 s; what came instead:",
        "*  sendMessage(text='HELLO', chat_id=*)",
    ])  # fmt: skip


def test_a_webhook_that_fails_is_told(project: pytest.Pytester) -> None:
    project.makepyfile("""
        async def test_it(chat, bot, telegram):
            bot.stop()
            bot.stop = lambda: None
            await chat.send("hello")
            await chat.expect(timeout=0.5)
    """)
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        "*the bot did not call any method within 0.5 s; nothing else came",
        "*1 updates are not delivered*",
    ])  # fmt: skip


def test_a_button_that_is_not_there(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import pytest

        async def test_it(chat):
            await chat.send("/start")
            await chat.expect("sendMessage", timeout=60)
            with pytest.raises(AssertionError, match="no button 'Coffee' .*; the buttons here: 'Tea', 'Site'"):
                await chat.press("Coffee")
            with pytest.raises(AssertionError, match="the button 'Site' opens something"):
                await chat.press("Site")
    """)
    run(project).assert_outcomes(passed=1)


def test_answers_on_demand(project: pytest.Pytester) -> None:
    project.makepyfile("""
        async def test_it(chat, telegram):
            telegram.fail("429", "sendMessage", times=1, retry_after=1)
            await chat.send("hello")
            await chat.expect("sendMessage", status=429, timeout=60)
            await chat.expect("sendMessage", text="HELLO", timeout=60)
            await chat.block()
            await chat.send("are you there?")
            await chat.expect("sendMessage", status=403, timeout=60)
    """)
    run(project).assert_outcomes(passed=1)


def test_a_test_that_does_not_say_which_bot(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("async def test_it(chat): pass")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*which bot is tested? Write a fixture `bot_handler` that returns its handler*"])


def test_a_bot_that_is_not_there(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("async def test_it(chat): pass")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*TargetError: there is no module 'shop'*"])


def test_fixtures_of_the_same_names_go_before_ours(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def bot():
            return "mine"

        def test_it(bot):
            assert bot == "mine"
    """)
    run(pytester).assert_outcomes(passed=1)


def test_nothing_heavy_is_imported_before_a_fixture_is_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_it():
            heavy = {"uvicorn", "starlette", "httpx", "rich", "lmdb", "fasthook.asgi", "fasthook.testing.simulator"}
            assert not heavy & sys.modules.keys()
    """)
    run(pytester).assert_outcomes(passed=1)


def _dedent(text: str) -> str:
    return textwrap.dedent(text)
