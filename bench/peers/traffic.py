"""The request that every peer gets: Telegram's headers in Telegram's order, and a 500-byte message update.

One template serves wrk (update.lua), steady.c and --check: they put nine digits in the place of ID and CHAT, so the
length stays what Content-Length says.
"""

from __future__ import annotations

import json

from bench.peers import job

ID = "I" * 9
CHAT = "C" * 9
BODY_SIZE = 500
FIRST_CHAT = 700_000_000  # update.lua and steady.c spread updates over 1,000 chats from here


def _message(text: str) -> str:
    ada = {"first_name": "Ada", "last_name": "Lovelace", "username": "ada_lovelace"}
    message = {
        "message_id": ID,
        "from": {"id": CHAT, "is_bot": False, **ada, "language_code": "en"},
        "chat": {"id": CHAT, **ada, "type": "private"},
        "date": 1_760_000_000,
        "text": text,
    }
    return json.dumps(message, separators=(",", ":")).replace(f'"{ID}"', ID).replace(f'"{CHAT}"', CHAT)


def _body() -> str:
    """Telegram's own format: no spaces, and a newline before the kind of the update."""
    empty = f'{{"update_id":{ID},\n"message":{_message("")}}}'
    text = ("The engine might compose elaborate and scientific pieces of music. " * 9)[: BODY_SIZE - len(empty)]
    return f'{{"update_id":{ID},\n"message":{_message(text)}}}'


def template(port: int, path: str = job.PATH) -> str:
    """The whole request, with ID and CHAT in it."""
    body = _body()
    head = (
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"{job.SECRET_HEADER}: {job.SECRET}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: keep-alive",
        "Accept-Encoding: gzip, deflate",
    )
    return "\r\n".join(head) + "\r\n\r\n" + body


def request(text: str, update_id: int) -> bytes:
    """One request made from the template."""
    return text.replace(ID, f"{update_id:09d}").replace(CHAT, f"{FIRST_CHAT + update_id % 1000:09d}").encode()
