"""A bot as Telegram knows it: its token, its updates, its webhook or its poller, its chats."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

from fasthook.testing import methods
from fasthook.testing.calls import Answer, Call, Fault, Refused
from fasthook.testing.chats import Chat, NotCome, User, World
from fasthook.testing.clock import Clock
from fasthook.testing.delivery import Attempt, Delivery
from fasthook.testing.limits import Sent
from fasthook.testing.parameters import Parameters, whole
from fasthook.testing.updates import Event, Pending, Updates
from fasthook.testing.webhooks import Rules, Webhook, allowed_updates, drops_pending, reached, requested

_KEPT = 100_000  # attempts and calls that are remembered
_LONGEST_POLL = 50
_CONFLICT = (
    "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
)
_OTHER_POLLER = "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
_SET_WEBHOOK = "Conflict: terminated by setWebhook request"


class Watcher(Protocol):
    """Who is told what happens to a bot: a recording, a console."""

    def sent(self, account: Account, update: Pending) -> None: ...

    def attempted(self, account: Account, attempt: Attempt) -> None: ...

    def called(self, account: Account, call: Call) -> None: ...


class Account:
    """A bot with this token, `id:secret`. `watchers` are told of each attempt and each call."""

    def __init__(self, token: str, clock: Clock, rules: Rules, seed: random.Random, watchers: list[Watcher]) -> None:
        self.take_token(token)
        self.updates = Updates(clock, seed)
        self.webhook: Webhook | None = None
        self.delivery: Delivery | None = None
        self.faults: list[Fault] = []
        self.attempts: deque[Attempt] = deque(maxlen=_KEPT)
        self.calls: deque[Call] = deque(maxlen=_KEPT)
        self.chats: dict[int, Chat] = {}
        self.store: dict[str, Any] = {}
        self.revoked = False
        self.sent_lately: Sent | None = None  # None: it may send as much as it likes
        self.last_error: tuple[int, str] | None = None  # when, since 1970, and what
        self._clock = clock
        self._rules = rules
        self._random = seed
        self._watchers = watchers
        self._next_set_webhook = -1.0
        self._poll: asyncio.Future[str] | None = None  # a waiting getUpdates: set to why it ends, empty for news
        self._changed: asyncio.Future[None] | None = None
        self._files: dict[str, bytes] = {}
        self._queries: dict[str, Chat] = {}
        self._next_query = 0
        self._polled = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def take_token(self, token: str) -> None:
        """Be the bot with this token from now on."""
        self.token = token
        self.id = int(token.partition(":")[0])

    # ------------------------------------------------------------ updates

    def add(self, kind: str, event: Event, *, raw: bytes | None = None, seconds: float | None = None) -> int | None:
        """Something happens that the bot is told: the update's number, or None if it isn't told."""
        update_id = self.updates.add(kind, event, raw=raw, seconds=seconds)
        if update_id is None:
            return None
        if kind.endswith("_query") and isinstance(event.get("id"), str):
            self._know_query(event["id"], event)
        if self.delivery is not None:
            self.delivery.wake()
        elif self._poll is not None and not self._poll.done():
            self._poll.set_result("")
        return update_id

    async def settled(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 real seconds
        """Wait until every update is taken or given up. NotCome: so many real seconds are not enough."""
        try:
            async with asyncio.timeout(timeout):
                while len(self.updates):
                    await self.changed()
        except TimeoutError:
            raise NotCome(f"within {timeout:g} s the bot did not take everything: {delivery_state(self)}") from None

    def changed(self) -> asyncio.Future[None]:
        """Done when the next attempt or call ends."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        return asyncio.shield(self._changed)

    def _change(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # ------------------------------------------------------------ what the delivery tells

    def sent(self, update: Pending) -> None:
        for watcher in self._watchers:
            watcher.sent(self, update)

    def attempted(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self._change()
        for watcher in self._watchers:
            watcher.attempted(self, attempt)

    def failed(self, error: str) -> None:
        self.last_error = (self._clock.unix(), error)

    def replied(self, method: str, given: Parameters) -> None:
        self._run(self.call(method, given, via="webhook"))

    def gone(self) -> None:
        self.webhook = self.delivery = self.last_error = None

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ calls

    async def call(self, name: str, given: Parameters, via: str = "api") -> Answer:
        """Answer a method."""
        method = methods.names().get(name.lower(), name)
        for fault in self.faults:
            if fault.applies(method, given, self._random):
                answer = fault.answer()
                if answer is not None:
                    self._note(method, given, via, answer.status, None, _description(answer))
                    return answer
                await self._clock.sleep(fault.seconds)
                break
        try:
            answer, result = await self._answer(method, given, via)
        except Refused as why:
            self._note(method, given, via, why.code, None, why.description)
            return Answer.refused(why)
        self._note(method, given, via, 200, result, "")
        return answer

    async def _answer(self, method: str, given: Parameters, via: str) -> tuple[Answer, Any]:
        if method == "getUpdates":
            body = await self._get_updates(given)
            return Answer(200, body), None
        if method in ("setWebhook", "deleteWebhook"):
            description = await self._set_webhook(given if method == "setWebhook" else _without_url(given))
            return Answer.ok(True, description), True
        chat_id = whole(given.values.get("chat_id"))
        if self.sent_lately is not None and chat_id is not None and methods.is_message(method):
            self.sent_lately.count(chat_id)
        if method == "getWebhookInfo":
            result = self.webhook_info()
        else:
            result = methods.answer(self, method, given)
        return Answer.ok(result), result

    def _note(self, method: str, given: Parameters, via: str, status: int, result: Any, description: str) -> None:
        files = {name: upload.data for name, upload in given.files.items()}
        call = Call(self.id, method, given.values, files, via, self._clock.now(), status, result, description)
        if method != "getUpdates":
            self.calls.append(call)
        chat = self._chat_of(given)
        if chat is not None:
            chat.took(call)
        self._change()
        for watcher in self._watchers:
            watcher.called(self, call)

    def _chat_of(self, given: Parameters) -> Chat | None:
        for name in ("callback_query_id", "inline_query_id", "shipping_query_id", "pre_checkout_query_id"):
            if name in given.values:
                return self._queries.get(str(given.values[name]))
        chat_id = whole(given.values.get("chat_id"))
        return self.chats.get(chat_id) if chat_id is not None else None

    # ------------------------------------------------------------ the webhook

    async def _set_webhook(self, given: Parameters) -> str:
        """What the answer says beside true. Refused: in Telegram's words."""
        wanted = requested(given, self._rules)
        drops = drops_pending(given)
        if not drops and _same(wanted, self.webhook):
            self.updates.allowed = allowed_updates(given, self.updates.allowed)
            return "Webhook is already deleted" if wanted is None else "Webhook is already set"
        if self._clock.now() < self._next_set_webhook:
            raise Refused(429, "Too Many Requests: retry after 1", 1)
        self._next_set_webhook = self._clock.now() + 1.0
        found = await reached(wanted, self._rules) if wanted is not None else None
        was = self.webhook is not None
        self.stop_delivery()
        self._end_poll(_SET_WEBHOOK)
        if drops:
            self.updates.clear()
            self._change()
        if found is None:
            return "Webhook was deleted" if was else "Webhook is already deleted"
        self.webhook, address = found
        self.updates.allowed = allowed_updates(given, self.updates.allowed)
        self.delivery = Delivery(
            self.webhook.parts,
            address,
            self.updates,
            self,
            self._clock,
            self._random,
            secret=self.webhook.secret,
            connections=self.webhook.max_connections,
        )
        self.delivery.wake()
        return "Webhook was set"

    def stop_delivery(self) -> None:
        """Forget the webhook. What was in flight will be delivered again."""
        if self.delivery is not None:
            self.delivery.close()
        self.webhook = self.delivery = self.last_error = None

    def webhook_info(self) -> Event:
        """What getWebhookInfo tells."""
        if self.delivery is None:
            self.updates.expire()
        webhook = self.webhook
        info: Event = {
            "url": webhook.url if webhook else "",
            "has_custom_certificate": bool(webhook and webhook.certificate is not None),
            "pending_update_count": len(self.updates),
        }
        if webhook is not None:
            info["max_connections"] = webhook.max_connections
            info["ip_address"] = webhook.ip_address
            if self.last_error is not None:
                info["last_error_date"], info["last_error_message"] = self.last_error
        if self.updates.allowed is not None:
            info["allowed_updates"] = sorted(self.updates.allowed)
        return info

    # ------------------------------------------------------------ polling

    async def _get_updates(self, given: Parameters) -> bytes:
        if self.webhook is not None:
            raise Refused(409, _CONFLICT)
        self._end_poll(_OTHER_POLLER)
        self._polled = True
        values = given.values
        offset = whole(values.get("offset")) or 0
        limit = min(max(whole(values.get("limit")) or 100, 1), 100)
        seconds = min(max(whole(values.get("timeout")) or 0, 0), _LONGEST_POLL)
        self.updates.allowed = allowed_updates(given, self.updates.allowed)
        found = self._page(offset, limit)
        if not found and seconds:
            await self._wait_for_news(seconds)
            found = self._page(offset, limit)
        for update in found:
            update.attempts += 1
            self.sent(update)
        return b'{"ok":true,"result":[%s]}' % b",".join(update.body for update in found)

    def _page(self, offset: int, limit: int) -> list[Pending]:
        found = self.updates.page(offset, limit)
        self._change()
        return found

    async def _wait_for_news(self, seconds: int) -> None:
        poll: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._poll = poll
        timer = self._clock.after(seconds, lambda: None if poll.done() else poll.set_result(""))
        try:
            why = await poll
        finally:
            timer.cancel()
            if self._poll is poll:
                self._poll = None
        if why:
            raise Refused(409, why)

    def _end_poll(self, why: str) -> None:
        if self._poll is not None and not self._poll.done():
            self._poll.set_result(why)

    @property
    def listens(self) -> bool:
        """Whether it has a webhook, or has asked for updates once."""
        return self.webhook is not None or self._polled

    @property
    def polls(self) -> bool:
        """Whether a getUpdates waits."""
        return self._poll is not None

    # ------------------------------------------------------------ its chats

    def event(self) -> Event:
        """The bot as a user."""
        return {"id": self.id, "is_bot": True, "first_name": "Echo" if self.id == 42 else f"Bot {self.id}",
                "username": f"test{self.id}_bot"}  # fmt: skip

    def chat(self, chat_id: Any) -> Chat:
        """The chat with this number; it is made if there is none yet. A negative one is a group's."""
        number = whole(chat_id)
        if number is None:
            raise Refused(400, "Bad Request: chat not found")
        if number not in self.chats:
            person = User(abs(number), "Ann" if not self.chats else f"User {len(self.chats) + 1}")
            kind = "private" if number > 0 else "supergroup"
            self.chats[number] = Chat(number, kind, [person], self._world())
        return self.chats[number]

    def add_chat(self, chat_id: int, kind: str, people: list[User], title: str = "") -> Chat:
        """A chat of this kind (`private`, `group`, `supergroup`, `channel`) with these people."""
        self.chats[chat_id] = Chat(chat_id, kind, people, self._world(), title)
        return self.chats[chat_id]

    def _world(self) -> World:
        return World(self.add, self.unix, self.keep_file, self._keep_query, self.event, lambda: delivery_state(self))

    def unix(self) -> int:
        return self._clock.unix()

    def keep_file(self, data: bytes) -> str:
        file_id = f"AgACAgQAAxk{len(self._files):08d}"
        self._files[file_id] = data
        return file_id

    def file(self, file_id: str) -> bytes | None:
        """The bytes of a file; each size of a photo has the same."""
        return self._files.get(file_id) or self._files.get(file_id[:-1])

    def _keep_query(self, chat: Chat) -> str:
        self._next_query += 1
        number = str((self.id << 32) + self._next_query)
        self._queries[number] = chat
        return number

    def _know_query(self, number: str, event: Event) -> None:
        if number not in self._queries:
            self._queries[number] = self.chat(event.get("from", {}).get("id", 1))
        while len(self._queries) > _KEPT:
            del self._queries[next(iter(self._queries))]

    def query(self, number: Any) -> Chat | None:
        return self._queries.get(str(number))

    def close(self) -> None:
        self.stop_delivery()
        self._end_poll("Conflict: the simulator ends")
        for task in self._tasks:
            task.cancel()


def delivery_state(account: Account) -> str:
    """A line on what is wrong with the delivery to this bot; empty if nothing is known to be."""
    waiting = len(account.updates)
    if not waiting:
        return ""
    if account.last_error is not None:
        return f"{waiting} updates are not delivered; the last error of the webhook: {account.last_error[1]}"
    if account.webhook is None and not account.polls:
        return f"{waiting} updates are not delivered: the bot has no webhook and does not poll"
    return f"{waiting} updates are not delivered yet"


def _without_url(given: Parameters) -> Parameters:
    drops = given.values.get("drop_pending_updates")
    return Parameters({} if drops is None else {"drop_pending_updates": drops})


def _same(wanted: Webhook | None, now: Webhook | None) -> bool:
    if wanted is None or now is None:
        return wanted is now
    address = wanted.fixed == now.fixed and (not wanted.fixed or wanted.ip_address == now.ip_address)
    same = (wanted.url, wanted.secret, wanted.max_connections) == (now.url, now.secret, now.max_connections)
    return same and address and wanted.certificate is None and now.certificate is None


def _description(answer: Answer) -> str:
    if answer.content_type == "application/json" and answer.body:
        return str(json.loads(answer.body)["description"])
    return "hangs" if answer.hang else "hangs up" if answer.close else "an HTML page"
