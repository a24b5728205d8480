"""The conversation as text: what people did, what the bots did, and what went wrong between them."""

from __future__ import annotations

import json
from collections.abc import Callable

from fasthook.testing.account import Account
from fasthook.testing.calls import Call
from fasthook.testing.delivery import Attempt
from fasthook.testing.updates import Pending

_LONGEST = 100  # characters of what someone said


class Console:
    """Prints a line for each thing that happens. `say` gets the line; `quiet`: only errors are printed; `several`:
    each line says of which bot it is.
    """

    def __init__(self, say: Callable[[str], None], *, quiet: bool = False, several: bool = False) -> None:
        self._say = say
        self._quiet = quiet
        self._several = several
        self._last_error: dict[int, str] = {}
        self.updates = 0
        self.taken = 0
        self.failures = 0
        self.calls = 0

    def sent(self, account: Account, update: Pending) -> None:
        if update.attempts > 1:
            return
        self.updates += 1
        if not self._quiet:
            self._say(_deed(update) + (f"  (to {_name(account)})" if self._several else ""))

    def attempted(self, account: Account, attempt: Attempt) -> None:
        if not attempt.error:
            self.taken += 1
            if self._last_error.pop(account.id, None) is not None:
                self._say(f"  ✓ {self._of(account)}the webhook answers again")
            return
        self.failures += 1
        if self._last_error.get(account.id) != attempt.error:  # once, however often it is tried
            self._last_error[account.id] = attempt.error
            self._say(f"  ✗ {self._of(account)}{attempt.error}")

    def called(self, account: Account, call: Call) -> None:
        if call.method == "getUpdates":
            return
        self.calls += 1
        if call.status != 200:
            self._say(f"  ✗ {self._of(account)}{call.method} is answered {call.status} {call.description}")
        elif not self._quiet:
            self._say(f"{_name(account):>8} ▸ {_said(call)}")

    def _of(self, account: Account) -> str:
        return f"{_name(account)}: " if self._several else ""

    def summary(self) -> str:
        """One line on all of it."""
        return (
            f"{self.updates} updates sent, {self.taken} taken by the webhook, {self.failures} attempts failed, "
            f"{self.calls} calls of the bot"
        )


def _name(account: Account) -> str:
    return str(account.event()["first_name"])


def _deed(update: Pending) -> str:
    event = json.loads(update.event.decode("utf-8", "replace"))
    person = event.get("from") or event.get("user") or event.get("sender_chat") or {}
    name = person.get("first_name") or person.get("title") or "Telegram"
    return f"{name:>8} ▸ {_short(_what(update.kind, event))}"


def _what(kind: str, event: dict[str, object]) -> str:
    if kind == "callback_query":
        return f"[presses {event.get('data')}]"
    if "photo" in event:
        return f"[photo] {event.get('caption', '')}".rstrip()
    text = event.get("text")
    if text is None:
        return f"[{kind}]"
    return f"[edits] {text}" if kind.startswith("edited") else str(text)


def _said(call: Call) -> str:
    if call.method == "sendMessage":
        buttons = "".join(f"  [{button}]" for button in call.buttons)
        return _short(call.text) + buttons
    return _short(f"[{call.method}] {call.text}".rstrip())


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
