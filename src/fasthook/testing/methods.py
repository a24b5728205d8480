"""What the Bot API's methods answer here. One that is not known is answered with true."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from fasthook.testing.calls import Refused
from fasthook.testing.chats import Chat
from fasthook.testing.parameters import Parameters, structure, whole
from fasthook.testing.updates import Event

_LONGEST_TEXT = 4096
_LONGEST_CAPTION = 1024

#: Methods that send one message, and the field of the message and the parameter that carry what is sent.
_SENDING = {
    "sendMessage": "text",
    "sendPhoto": "photo",
    "sendAudio": "audio",
    "sendDocument": "document",
    "sendVideo": "video",
    "sendAnimation": "animation",
    "sendVoice": "voice",
    "sendVideoNote": "video_note",
    "sendSticker": "sticker",
    "sendLocation": "location",
    "sendVenue": "venue",
    "sendContact": "contact",
    "sendPoll": "poll",
    "sendDice": "dice",
    "sendInvoice": "invoice",
    "sendGame": "game",
}
_FILES = ("audio", "document", "video", "animation", "voice", "video_note", "sticker")
_PLAIN = (
    "latitude",
    "longitude",
    "phone_number",
    "first_name",
    "last_name",
    "title",
    "address",
    "currency",
)


class Bot(Protocol):
    """What the methods need of the bot that calls them."""

    store: dict[str, Any]  # what it set and may get: commands, names, descriptions

    def event(self) -> Event: ...

    def chat(self, chat_id: Any) -> Chat: ...

    def keep_file(self, data: bytes) -> str: ...

    def file(self, file_id: str) -> bytes | None: ...

    def query(self, number: Any) -> Chat | None: ...

    def unix(self) -> int: ...


Method = Callable[[Bot, Parameters], Any]


@functools.cache
def names() -> dict[str, str]:
    """The methods that are known, as the Bot API spells them, by their names in lower case."""
    known = [*_SENDING, *_METHODS, *_STORED, *_STORED.values(), "setWebhook", "deleteWebhook", "getWebhookInfo"]
    known += ["getUpdates", "sendChatAction", "answerInlineQuery", "setMessageReaction", "close", "logOut"]
    return {name.lower(): name for name in known}


def is_message(method: str) -> bool:
    """Whether a method sends or changes a message, and so counts for the limits of a bot."""
    return method in _SENDING or method.startswith(("sendMediaGroup", "copyMessage", "forwardMessage", "editMessage"))


def answer(bot: Bot, method: str, given: Parameters) -> Any:
    """The result of a method. Refused: in Telegram's words."""
    if method in _SENDING:
        return _send(bot, _SENDING[method], given)
    if method in _METHODS:
        return _METHODS[method](bot, given)
    if method in _STORED.values():
        key = next(name for name, setter in _STORED.items() if setter == method)
        bot.store[key] = _stored(key, given)
        return True
    if method in _STORED:
        return bot.store.get(method, _EMPTY[method])
    if method == "sendChatAction":
        reach(bot, given)
    return True


def reach(bot: Bot, given: Parameters) -> Chat:
    """The chat that a call is about. Refused: there is none, or it doesn't want to hear of this bot."""
    chat_id = given.values.get("chat_id")
    if chat_id in (None, ""):
        raise Refused(400, "Bad Request: chat_id is empty")
    chat = bot.chat(chat_id)
    if chat.blocked:
        what = "blocked by the user" if chat.kind == "private" else f"kicked from the {chat.kind} chat"
        raise Refused(403, f"Forbidden: bot was {what}")
    return chat


# ---------------------------------------------------------------- sending


def _send(bot: Bot, what: str, given: Parameters) -> Event:
    chat = reach(bot, given)
    content = _content(bot, what, given)
    replied = structure(given.values.get("reply_parameters"))
    number = whole(replied.get("message_id") if replied else given.values.get("reply_to_message_id"))
    if number in chat.messages:
        content = {"reply_to_message": chat.messages[number], **content}
    return chat.write({"from": bot.event()}, {**content, **_markup(given)})


def _content(bot: Bot, what: str, given: Parameters) -> Event:
    values = given.values
    if what == "text":
        return {"text": _text(values.get("text"), "message", _LONGEST_TEXT)}
    caption = {"caption": _text(values["caption"], "caption", _LONGEST_CAPTION)} if values.get("caption") else {}
    if what == "photo" or what in _FILES:
        return {what: _file(bot, what, given), **caption}
    if what == "dice":
        return {"dice": {"emoji": values.get("emoji") or "\N{GAME DIE}", "value": 4}}
    if what == "poll":
        options = [option if isinstance(option, str) else option.get("text", "") for option in _options(values)]
        shown = [{"text": option, "voter_count": 0} for option in options]
        return {"poll": {"id": "1", "question": values.get("question", ""), "options": shown, "is_closed": False}}
    return {what: {name: values[name] for name in _PLAIN if name in values}}


def _options(values: dict[str, Any]) -> list[Any]:
    found = structure(values.get("options"))
    if not isinstance(found, list) or len(found) < 1:
        raise Refused(400, "Bad Request: poll must have at least 1 answer option")
    return found


def _text(value: Any, what: str, longest: int) -> str:
    text = "" if value is None else str(value)
    if not text.strip():
        raise Refused(400, f"Bad Request: {what} text is empty")
    if len(text) > longest:
        raise Refused(400, f"Bad Request: {what} is too long")
    return text


def _file(bot: Bot, what: str, given: Parameters) -> Any:
    value = given.values.get(what)
    upload = given.files.get(what)
    if isinstance(value, str) and value.startswith("attach://"):
        upload = given.files.get(value.removeprefix("attach://"))
    if upload is None and not value:
        raise Refused(400, f"Bad Request: there is no {what.replace('_', ' ')} in the request")
    data = upload.data if upload else bot.file(str(value)) or str(value).encode()
    file_id = bot.keep_file(data) if upload else str(value)
    known = {"file_id": file_id, "file_unique_id": f"{file_id}u", "file_size": len(data)}
    if what == "photo":
        return [known | {"width": 800, "height": 600}]
    return known | ({"file_name": upload.name} if upload else {})


def _markup(given: Parameters) -> Event:
    value = given.values.get("reply_markup")
    markup = structure(value)
    if value and not isinstance(markup, dict):
        raise Refused(400, "Bad Request: can't parse reply keyboard markup JSON object")
    rows = markup.get("inline_keyboard", markup.get("keyboard")) if isinstance(markup, dict) else None
    if rows is None:
        return {}
    if not isinstance(rows, list) or not all(isinstance(row, list) and all(map(_is_button, row)) for row in rows):
        raise Refused(400, "Bad Request: can't parse reply keyboard markup JSON object")
    return {"reply_markup": markup}


def _is_button(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("text"), str))


def _album(bot: Bot, given: Parameters) -> list[Event]:
    media = structure(given.values.get("media"))
    if not isinstance(media, list) or not media:
        raise Refused(400, "Bad Request: there are no messages to send")
    if not all(isinstance(item, dict) and item.get("type") in ("photo", *_FILES) for item in media):
        raise Refused(400, "Bad Request: can't parse InputMedia")
    sent = []
    for item in media:
        values = {**given.values, item["type"]: item.get("media"), "caption": item.get("caption")}
        sent.append(_send(bot, item["type"], Parameters(values, given.files)))
    return sent


def _copy(bot: Bot, given: Parameters) -> Event:
    original = _original(bot, given)
    content = {name: value for name, value in original.items() if name not in ("message_id", "from", "chat", "date")}
    written = reach(bot, given).write({"from": bot.event()}, {**content, **_markup(given)})
    return {"message_id": written["message_id"]}


def _forward(bot: Bot, given: Parameters) -> Event:
    original = _original(bot, given)
    content = {name: value for name, value in original.items() if name not in ("message_id", "from", "chat", "date")}
    origin = {"type": "user", "sender_user": original.get("from", {}), "date": original["date"]}
    return reach(bot, given).write({"from": bot.event()}, {"forward_origin": origin, **content})


def _original(bot: Bot, given: Parameters) -> Event:
    source = bot.chat(given.values.get("from_chat_id"))
    found = source.messages.get(whole(given.values.get("message_id")) or 0)
    if found is None:
        raise Refused(400, "Bad Request: message to copy not found")
    return found


# ---------------------------------------------------------------- changing


def _edit(what: str) -> Method:
    def edit(bot: Bot, given: Parameters) -> Any:
        if "inline_message_id" in given.values:
            return True
        chat = reach(bot, given)
        number = whole(given.values.get("message_id")) or 0
        message = chat.messages.get(number)
        if message is None or not message.get("from", {}).get("is_bot"):
            raise Refused(400, "Bad Request: message to edit not found")
        kept = {name: value for name, value in message.items() if name not in ("reply_markup", "edit_date")}
        changed: Event = {}
        if what in ("text", "caption"):
            longest = _LONGEST_TEXT if what == "text" else _LONGEST_CAPTION
            changed = {what: _text(given.values.get(what), "message", longest)}
        edited = {**kept, **changed, **_markup(given)}
        if edited == {name: value for name, value in message.items() if name != "edit_date"}:
            words = "specified new message content and reply markup are exactly the same as a current content"
            raise Refused(400, f"Bad Request: message is not modified: {words} and reply markup of the message")
        chat.messages[number] = edited | {"edit_date": bot.unix()}
        return chat.messages[number]

    return edit


def _delete(bot: Bot, given: Parameters) -> bool:
    chat = reach(bot, given)
    if chat.messages.pop(whole(given.values.get("message_id")) or 0, None) is None:
        raise Refused(400, "Bad Request: message to delete not found")
    return True


def _answer_query(bot: Bot, given: Parameters) -> bool:
    if bot.query(given.values.get("callback_query_id")) is None:
        raise Refused(400, "Bad Request: query is too old and response timeout expired or query ID is invalid")
    return True


# ---------------------------------------------------------------- asking


def _me(bot: Bot, _: Parameters) -> Event:
    return bot.event() | {
        "can_join_groups": True,
        "can_read_all_group_messages": False,
        "supports_inline_queries": True,
    }


def _chat(bot: Bot, given: Parameters) -> Event:
    return reach(bot, given).event()


def _member(bot: Bot, given: Parameters) -> Event:
    chat, user_id = reach(bot, given), whole(given.values.get("user_id"))
    if user_id == bot.event()["id"]:
        return {"user": bot.event(), "status": "administrator" if chat.kind == "channel" else "member"}
    found = next((person for person in chat.people if person.id == user_id), None)
    if found is None:
        raise Refused(400, "Bad Request: user not found")
    return {"user": found.event(), "status": "member"}


def _administrators(bot: Bot, given: Parameters) -> list[Event]:
    chat = reach(bot, given)
    return [] if chat.kind == "private" else [{"user": chat.person.event(), "status": "creator"}]


def _get_file(bot: Bot, given: Parameters) -> Event:
    file_id = str(given.values.get("file_id", ""))
    data = bot.file(file_id)
    if data is None:
        raise Refused(400, "Bad Request: invalid file_id")
    return {
        "file_id": file_id,
        "file_unique_id": f"{file_id}u",
        "file_size": len(data),
        "file_path": f"files/{file_id}",
    }


_METHODS: dict[str, Method] = {
    "getMe": _me,
    "getChat": _chat,
    "getChatMember": _member,
    "getChatMemberCount": lambda bot, given: len(reach(bot, given).people) + 1,
    "getChatAdministrators": _administrators,
    "getFile": _get_file,
    "getUserProfilePhotos": lambda bot, given: {"total_count": 0, "photos": []},
    "sendMediaGroup": _album,
    "copyMessage": _copy,
    "forwardMessage": _forward,
    "editMessageText": _edit("text"),
    "editMessageCaption": _edit("caption"),
    "editMessageReplyMarkup": _edit("reply_markup"),
    "deleteMessage": _delete,
    "answerCallbackQuery": _answer_query,
}

#: What a bot sets and may get again.
_STORED = {
    "getMyCommands": "setMyCommands",
    "getMyName": "setMyName",
    "getMyDescription": "setMyDescription",
    "getMyShortDescription": "setMyShortDescription",
    "getChatMenuButton": "setChatMenuButton",
}
_EMPTY: dict[str, Any] = {
    "getMyCommands": [],
    "getMyName": {"name": ""},
    "getMyDescription": {"description": ""},
    "getMyShortDescription": {"short_description": ""},
    "getChatMenuButton": {"type": "default"},
}


def _stored(key: str, given: Parameters) -> Any:
    if key == "getMyCommands":
        return structure(given.values.get("commands")) or []
    if key == "getChatMenuButton":
        return structure(given.values.get("menu_button")) or _EMPTY[key]
    return {name: given.values.get(name, "") for name in _EMPTY[key]}
