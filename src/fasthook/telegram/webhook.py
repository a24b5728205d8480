"""A bot's webhook: what Telegram has, what this configuration wants, and how one becomes the other."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasthook._scan import KINDS
from fasthook.settings import Settings
from fasthook.telegram.api import BadRequest, BotAPI, BotAPIError, BotAPIUnreachable, NotFound, Unauthorized
from fasthook.telegram.explain import explain

log = logging.getLogger("fasthook")

_KNOWN = frozenset(KINDS[1:])
#: What Telegram doesn't send unless it is named (Bot API, "setWebhook", `allowed_updates`).
_UNASKED = frozenset({"chat_member", "message_reaction", "message_reaction_count"})
_PATIENCE = 20.0  # seconds for one call
_LONGEST_PAUSE = 60.0
_RECENT = 300  # seconds for which an error counts, when nothing waits
_WAITING = 86_400  # the same while updates wait


@dataclass(frozen=True, slots=True)
class Wanted:
    """A webhook as it is to be. `allowed_updates`: None leaves them as they are, empty is Telegram's default."""

    url: str
    secret: str
    max_connections: int
    allowed_updates: tuple[str, ...] | None
    ip_address: str | None
    certificate: Path | None
    drop_pending: bool

    @classmethod
    def of(cls, settings: Settings, kinds: tuple[str, ...] | None) -> Wanted:
        """What the settings want. `kinds`: those that the bot handles, if known; the setting goes first."""
        assert settings.webhook_url
        return cls(
            settings.webhook_url,
            settings.valid_secrets[0].decode(),
            settings.webhook_connections,
            settings.allowed_updates if settings.allowed_updates is not None else kinds,
            settings.ip_address,
            settings.certificate,
            settings.drop_pending,
        )

    def differs(self, info: dict[str, Any]) -> list[str]:
        """What getWebhookInfo shows to be otherwise, by name. It doesn't show the secret."""
        same = {
            "url": info.get("url", "") == self.url,
            "max_connections": info.get("max_connections", 40) == self.max_connections,
            "certificate": bool(info.get("has_custom_certificate")) == (self.certificate is not None),
            "ip_address": self.ip_address is None or info.get("ip_address") == self.ip_address,
            "allowed_updates": self.allowed_updates is None
            or _kinds(self.allowed_updates) == _kinds(info.get("allowed_updates")),
        }
        return [name for name, is_same in same.items() if not is_same]

    async def register(self, api: BotAPI) -> None:
        """Call setWebhook. The errors of `BotAPI.call`; OSError: the certificate cannot be read."""
        await api.call(
            "setWebhook",
            url=self.url,
            secret_token=self.secret,
            max_connections=self.max_connections,
            allowed_updates=list(self.allowed_updates) if self.allowed_updates is not None else None,
            ip_address=self.ip_address,
            certificate=self.certificate,
            drop_pending_updates=self.drop_pending or None,
        )

    def mark(self, token: str) -> str:
        """A digest of all that is registered, the secret and the certificate with it."""
        certificate = self.certificate.read_bytes() if self.certificate else b""
        parts = [self.url, self.secret, self.max_connections, self.allowed_updates, self.ip_address, certificate.hex()]
        return hmac.new(token.encode(), json.dumps(parts).encode(), hashlib.sha256).hexdigest()


def _kinds(names: Iterable[str] | None) -> set[str]:
    """The kinds that a list asks for, as far as they are known. Telegram leaves the list out when it is its own choice.

    It drops what it doesn't know without a word, so that a misspelt kind would be a difference for ever.
    """
    return set(names or ()) & _KNOWN or set(_KNOWN - _UNASKED)


def unknown_kinds(settings: Settings) -> str:
    """A line on what --allowed-updates names and nobody here knows; empty if there is nothing of that."""
    unknown = [kind for kind in settings.allowed_updates or () if kind not in _KNOWN]
    if not unknown:
        return ""
    is_one = "is not a kind of update" if len(unknown) == 1 else "are not kinds of updates"
    return f"--allowed-updates: {', '.join(unknown)} {is_one} known here, and Telegram ignores what it doesn't know"


# ---------------------------------------------------------------- while a server runs


async def keep_registered(settings: Settings, kinds: tuple[str, ...] | None) -> None:
    """Register the webhook if Telegram has another, trying until Telegram has been reached; tell what came of it."""
    assert settings.token
    wanted = Wanted.of(settings, kinds)
    if words := unknown_kinds(settings):
        log.warning("%s", words)
    api = BotAPI(settings.token, settings.api_url, timeout=_PATIENCE, tries=1, waits=log.warning)
    pause = 1.0
    try:
        while True:
            try:
                await _register_once(api, wanted, settings)
                return
            except (Unauthorized, NotFound) as error:
                log.error("the webhook is not registered: %s", sentence(error))
                return
            except BotAPIError as error:
                log.error("the webhook is not registered: %s", sentence(error))
                if not isinstance(error, BadRequest) or "resolve" not in error.description:
                    return
                pause = _LONGEST_PAUSE  # a name that was just made
            except BotAPIUnreachable as error:
                log.warning("the webhook is not registered yet, tried again in %.0f s: %s", pause, error)
            except OSError as error:
                log.error("the webhook is not registered: %s: %s", error.filename, error.strerror)
                return
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))
            pause = min(_LONGEST_PAUSE, pause * 2)
    finally:
        await api.close()


async def _register_once(api: BotAPI, wanted: Wanted, settings: Settings) -> None:
    assert settings.token
    file = settings.state_dir / f"webhook-{settings.bot_id}"
    mark = wanted.mark(settings.token)
    info = await api.webhook_info()
    different = wanted.differs(info)
    if not different and not wanted.drop_pending and _read(file) == mark:
        log.info("Telegram has the webhook as it is to be: %s", wanted.url)
        return
    await wanted.register(api)
    try:
        _write(file, mark)
    except OSError as error:
        log.warning("%s: cannot be written, so the webhook is registered again at the next start: %s", file, error)
    log.info("the webhook is registered: %s", wanted.url)
    old = info.get("url", "")
    if old and "url" in different:
        log.warning("it was %s before: if another server still registers that, they take it from each other", old)


def _read(file: Path) -> str:
    try:
        return file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _write(file: Path, mark: str) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(mark + "\n")


def sentence(error: BotAPIError) -> str:
    """What Telegram said, why, and what to do."""
    known = explain(f"{error.code} {error.description}")
    return f"{error}: {known.cause}; {known.fix}" if known else str(error)


# ---------------------------------------------------------------- a look at it


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a webhook, why, and what to do."""

    what: str
    cause: str
    fix: str


def problems(
    info: dict[str, Any], wanted: Wanted | None, now: float, resolve: dict[str, list[str]] | None = None
) -> list[Problem]:
    """What is wrong, by what getWebhookInfo says at `now` (seconds since the epoch).

    `resolve`: the addresses of the webhook's host as this machine sees them, `{"4": […], "6": […]}`.
    """
    found: list[Problem] = []
    url = info.get("url", "")
    if not url:
        found.append(
            Problem(
                "the bot has no webhook",
                "it was never set, or was removed: by hand, by a library that polls, or by Telegram after a day of 410",
                "fasthook webhook set, or fasthook run with --public-url",
            )
        )
    if wanted and url:
        found += [_difference(name, info, wanted) for name in wanted.differs(info)]
    if url and resolve and not (wanted and wanted.ip_address):
        found += _addresses(info, resolve)
    for message, date in (
        (info.get("last_error_message"), info.get("last_error_date")),
        ("Telegram's own servers do not agree on the bot", info.get("last_synchronization_error_date")),
    ):
        if message and date and now - date <= (_WAITING if info.get("pending_update_count") else _RECENT):
            found.append(_error(str(message), int(now - date)))
    return found


def _error(message: str, age: int) -> Problem:
    what = f"{message} ({_ago(age)} ago)"
    if message.startswith("Telegram's own"):
        return Problem(what, "updates could not be fetched for a while", "nothing: Telegram tries again by itself")
    known = explain(message)
    if known is None:
        return Problem(what, "this message is not known here", "core.telegram.org/bots/webhooks lists the requirements")
    return Problem(what, known.cause, known.fix)


def _ago(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{max(0, seconds)} s"


def _difference(name: str, info: dict[str, Any], wanted: Wanted) -> Problem:
    again = "fasthook webhook set registers it as configured"
    if name == "url":
        return Problem(
            f"Telegram has another address: {info['url']}",
            "another server registered it last: an older deployment, another configuration, or a replica that has "
            "another --public-url. There is one webhook a bot, and the last to register has it",
            f"give all replicas the same --public-url, and stop what registers the other one; {again}",
        )
    if name == "allowed_updates":
        missing = sorted(_kinds(wanted.allowed_updates) - _kinds(info.get("allowed_updates")))
        cause = f"it does not send {', '.join(missing)}" if missing else "it sends kinds that nobody handles"
        return Problem("Telegram has other allowed_updates", cause, again)
    if name == "certificate":
        cause = "it does not know the self-signed certificate" if wanted.certificate else "it expects one of its own"
        return Problem("Telegram has another idea of the certificate", cause, again)
    return Problem(f"Telegram has another {name}", f"{info.get(name, 'none')} is registered", again)


def _addresses(info: dict[str, Any], resolve: dict[str, list[str]]) -> list[Problem]:
    """What the DNS says now, beside the address that Telegram calls."""
    calls, known = info.get("ip_address"), resolve.get("4", [])
    if not known and resolve.get("6"):
        known_as = explain("IPv6-only addresses are not allowed")
        assert known_as
        return [Problem("the host has only an IPv6 address", known_as.cause, known_as.fix)]
    if calls and known and calls not in known:
        return [
            Problem(
                f"Telegram calls {calls}, the DNS says {', '.join(known)}",
                "the address changed and Telegram still has the old one, or it was fixed with ip_address; "
                "behind a CDN this may be in order",
                "wait: about every half hour Telegram asks the DNS by itself. At once: fasthook webhook delete, then "
                "fasthook webhook set. If it was fixed with --ip-address: fasthook webhook set without that",
            )
        ]
    return []


def host_of(url: str) -> str:
    """The host of a webhook's address, without port and brackets."""
    found = re.match(r"https?://(\[[^\]]*\]|[^/:]*)", url)
    return found[1].strip("[]") if found else ""
