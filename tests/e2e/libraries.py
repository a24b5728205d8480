"""The same bot in three libraries: an echo, two conversations with buttons, a middleware, a job, and ways to fail.

What `/menu` begins is carried by its buttons; what `/start` begins, by the library, in the memory of its process.

`record` keeps what began, ended and was handled; Telegram's side sees the rest.
"""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType
from typing import Any

import pytest

from fasthook.testing import TOKEN

_RECORD = f"""\
import os

TOKEN = {TOKEN!r}
_file = os.open("record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
attempts = 0


def record(*words):
    os.write(_file, (" ".join(map(str, words)) + "\\n").encode())


def fail_twice():
    global attempts
    attempts += 1
    record("attempt", attempts)
    if attempts < 3:
        raise ValueError("not yet")


"""

AIOGRAM = (
    _RECORD
    + """\
from aiogram import Bot, Dispatcher, F
from aiogram.client.default import DefaultBotProperties
from aiogram.filters import Command
from aiogram.fsm.context import FSMContext
from aiogram.fsm.state import State, StatesGroup
from aiogram.types import BufferedInputFile, CallbackQuery, InlineKeyboardButton, InlineKeyboardMarkup, Message

bot = Bot(TOKEN, default=DefaultBotProperties(parse_mode="HTML"))
app = Dispatcher(shop="parcels")


class Order(StatesGroup):
    name = State()


@app.startup()
async def began(bot, shop):
    record("began", bot.id, shop)


@app.shutdown()
async def ended(shop):
    record("ended", shop)


@app.update.outer_middleware()
async def count(handler, event, data):
    record("middleware", event.update_id)
    data["extra"] = "from the middleware"
    return await handler(event, data)


@app.message(Command("start"))
async def start(message: Message, state: FSMContext):
    await state.clear()
    button = InlineKeyboardButton(text="Order", callback_data="order")
    return message.answer("Welcome", reply_markup=InlineKeyboardMarkup(inline_keyboard=[[button]]))


@app.message(Command("menu"))
async def menu(message: Message):
    sizes = [InlineKeyboardButton(text=size.title(), callback_data=f"size:{size}") for size in ("small", "large")]
    await message.answer("Which size?", reply_markup=InlineKeyboardMarkup(inline_keyboard=[sizes]))


@app.callback_query(F.data.startswith("size:"))
async def size(query: CallbackQuery):
    size = query.data.partition(":")[2]
    await query.answer(size)
    yes = InlineKeyboardButton(text="Yes", callback_data=f"yes:{size}")
    await query.message.edit_text(f"A {size} parcel?", reply_markup=InlineKeyboardMarkup(inline_keyboard=[[yes]]))


@app.callback_query(F.data.startswith("yes:"))
async def yes(query: CallbackQuery, extra: str):
    await query.answer()
    await query.message.answer(f"A {query.data.partition(':')[2]} parcel is on its way, {extra}")


@app.callback_query(F.data == "order")
async def order(query: CallbackQuery, state: FSMContext):
    await state.set_state(Order.name)
    await query.answer("ok")
    await query.message.answer("Your name?")


@app.message(Order.name)
async def name(message: Message, state: FSMContext, extra: str):
    await state.clear()
    await message.answer(f"Ordered for {message.text}, {extra}")


@app.message(F.text == "fail")
async def fail(message):
    raise ValueError("the bot is broken")


@app.message(F.text == "returned")
async def returned(message):
    return message.answer("returned")


@app.message(F.text == "fail twice")
async def twice(message):
    fail_twice()


@app.message(F.text == "file")
async def file(message):
    return message.answer_document(BufferedInputFile(b"contents", "a.txt"))


@app.message(F.text)
async def echo(message: Message):
    record("handled", message.chat.id, message.text)
    if not message.text.startswith("quiet"):
        return message.answer(message.text)
"""
)

PTB = (
    _RECORD
    + """\
import warnings

from telegram.warnings import PTBUserWarning
from telegram import InlineKeyboardButton, InlineKeyboardMarkup
from telegram.ext import (
    ApplicationBuilder, CallbackQueryHandler, CommandHandler, ConversationHandler, MessageHandler, filters,
)


async def began(application):
    record("began", application.bot.id, application.bot_data.setdefault("shop", "parcels"))


async def stopped(application):
    record("stopped")


async def ended(application):
    record("ended", application.bot_data.get("shop"))


async def start(update, context):
    markup = InlineKeyboardMarkup([[InlineKeyboardButton("Order", callback_data="order")]])
    await update.message.reply_text("Welcome", reply_markup=markup)


async def order(update, context):
    await update.callback_query.answer("ok")
    await context.bot.send_message(update.effective_chat.id, "Your name?")
    return "name"


async def name(update, context):
    await update.message.reply_text(f"Ordered for {update.message.text}, from the middleware")
    return ConversationHandler.END


async def menu(update, context):
    sizes = [InlineKeyboardButton(size.title(), callback_data=f"size:{size}") for size in ("small", "large")]
    await update.message.reply_text("Which size?", reply_markup=InlineKeyboardMarkup([sizes]))


async def size(update, context):
    query, size = update.callback_query, update.callback_query.data.partition(":")[2]
    await query.answer(size)
    yes = InlineKeyboardButton("Yes", callback_data=f"yes:{size}")
    await query.edit_message_text(f"A {size} parcel?", reply_markup=InlineKeyboardMarkup([[yes]]))


async def yes(update, context):
    await update.callback_query.answer()
    size = update.callback_query.data.partition(":")[2]
    await context.bot.send_message(update.effective_chat.id, f"A {size} parcel is on its way, from the middleware")


async def remind(context):
    await context.bot.send_message(context.job.chat_id, "A reminder")


async def break_job(context):
    raise ValueError("the job is broken")


async def echo(update, context):
    text = update.message.text
    if text == "fail":
        raise ValueError("the bot is broken")
    if text == "fail twice":
        return fail_twice()
    if text == "job":
        return context.job_queue.run_once(remind, 0.01, chat_id=update.effective_chat.id)
    if text == "broken job":
        return context.job_queue.run_once(break_job, 0.01)
    record("handled", update.effective_chat.id, text)
    if not text.startswith("quiet"):
        await update.message.reply_text(text)


async def later(update, context):
    record("middleware", update.update_id)


app = ApplicationBuilder().token(TOKEN).post_init(began).post_stop(stopped).post_shutdown(ended).build()
app.add_handler(MessageHandler(filters.ALL, later), group=-1)
app.add_handler(CommandHandler("start", start))
app.add_handler(CommandHandler("menu", menu))
app.add_handler(CallbackQueryHandler(size, pattern="^size:"))
app.add_handler(CallbackQueryHandler(yes, pattern="^yes:"))
warnings.filterwarnings("ignore", category=PTBUserWarning)  # about per_message
app.add_handler(ConversationHandler(
    entry_points=[CallbackQueryHandler(order, pattern="^order$")],
    states={"name": [MessageHandler(filters.TEXT, name)]},
    fallbacks=[],
))
app.add_handler(MessageHandler(filters.TEXT, echo))
"""
)

TELEBOT = (
    _RECORD
    + """\
from telebot.async_telebot import AsyncTeleBot
from telebot.asyncio_filters import StateFilter
from telebot.asyncio_handler_backends import BaseMiddleware, State, StatesGroup
from telebot.types import InlineKeyboardButton, InlineKeyboardMarkup

app = AsyncTeleBot(TOKEN)


class Order(StatesGroup):
    name = State()


class Count(BaseMiddleware):
    def __init__(self):
        self.update_sensitive = False
        self.update_types = ["message", "callback_query"]

    async def pre_process(self, message, data):
        record("middleware", message.from_user.id)
        data["extra"] = "from the middleware"

    async def post_process(self, message, data, exception):
        pass


app.setup_middleware(Count())
app.add_custom_filter(StateFilter(app))


@app.message_handler(commands=["start"])
async def start(message):
    markup = InlineKeyboardMarkup([[InlineKeyboardButton("Order", callback_data="order")]])
    await app.send_message(message.chat.id, "Welcome", reply_markup=markup)


@app.message_handler(commands=["menu"])
async def menu(message):
    sizes = [InlineKeyboardButton(size.title(), callback_data=f"size:{size}") for size in ("small", "large")]
    await app.send_message(message.chat.id, "Which size?", reply_markup=InlineKeyboardMarkup([sizes]))


@app.callback_query_handler(func=lambda query: query.data.startswith("size:"))
async def size(query):
    size, at = query.data.partition(":")[2], query.message
    await app.answer_callback_query(query.id, size)
    markup = InlineKeyboardMarkup([[InlineKeyboardButton("Yes", callback_data=f"yes:{size}")]])
    await app.edit_message_text(f"A {size} parcel?", at.chat.id, at.message_id, reply_markup=markup)


@app.callback_query_handler(func=lambda query: query.data.startswith("yes:"))
async def yes(query, data):
    await app.answer_callback_query(query.id)
    size = query.data.partition(":")[2]
    await app.send_message(query.message.chat.id, f"A {size} parcel is on its way, {data['extra']}")


@app.callback_query_handler(func=lambda query: query.data == "order")
async def order(query):
    await app.answer_callback_query(query.id, "ok")
    await app.set_state(query.from_user.id, Order.name, query.message.chat.id)
    await app.send_message(query.message.chat.id, "Your name?")


@app.message_handler(state=Order.name)
async def name(message, data):
    await app.delete_state(message.from_user.id, message.chat.id)
    await app.send_message(message.chat.id, f"Ordered for {message.text}, {data['extra']}")


@app.message_handler(content_types=["text"])
async def echo(message):
    if message.text == "fail":
        raise ValueError("the bot is broken")
    if message.text == "fail twice":
        return fail_twice()
    record("handled", message.chat.id, message.text)
    if not message.text.startswith("quiet"):
        await app.send_message(message.chat.id, message.text)
"""
)


def aiogram() -> ModuleType:
    """aiogram; the test is skipped on a Python that is too new for it, and nowhere else."""
    if sys.version_info >= (3, 15):
        pytest.importorskip("aiogram", reason="aiogram is not for Python 3.15 yet")
    return importlib.import_module("aiogram")


SOURCES = {"aiogram": AIOGRAM, "ptb": PTB, "telebot": TELEBOT}


def message(update_id: int, text: str, chat: int = 5) -> bytes:
    """A message of a private chat, with the entities that a command has."""
    user = {"id": chat, "is_bot": False, "first_name": "Ann"}
    body: dict[str, Any] = {
        "message_id": update_id,
        "from": user,
        "chat": {"id": chat, "first_name": "Ann", "type": "private"},
        "date": 1_750_000_000,
        "text": text,
    }
    if text.startswith("/"):
        body["entities"] = [{"offset": 0, "length": len(text), "type": "bot_command"}]
    return json.dumps({"update_id": update_id, "message": body}).encode()
