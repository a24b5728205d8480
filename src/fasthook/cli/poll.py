"""`fasthook poll TARGET`."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from fasthook.cli.ending import Ending, in_a_line
from fasthook.cli.options import configured_from, fail, settings_options
from fasthook.logs import set_up

if TYPE_CHECKING:
    from fasthook.settings import Settings


@click.command("poll")
@click.argument("target")
@click.option("--take-over", is_flag=True, help="Remove the bot's webhook, if it has one; asks first on a terminal.")
@settings_options
def command(target: str, take_over: bool, config: str | None, **given: Any) -> None:
    """Fetch updates with getUpdates and give them to TARGET: for a machine with no public address.

    The queue, the order, the retries and the drain are those of fasthook run. A bot that has a webhook is left alone.
    """
    found = configured_from(config, given, target)
    if found.tables:
        fail("poll fetches for one bot, and fasthook.toml has [[bot]] tables: name another file with --config", code=2)
    settings = replace(found.settings, public_url=None)
    ending = Ending(set_up(settings), settings.log_format == "json")

    from fasthook.asgi import Hook
    from fasthook.handlers import load
    from fasthook.server import open_ops, run_loop
    from fasthook.systemd import Notifier
    from fasthook.telegram.polling import NO_TOKEN, PollError, serve, webhook_of

    with in_a_line(ending, target):
        try:
            if settings.in_processes:
                hook = Hook.of(None, settings, target=target)
            else:
                loaded = load(target)
                hook = Hook.of(loaded.value, settings, lifespan=loaded.lifespan)
            if hook.settings.token:
                url = asyncio.run(webhook_of(hook.settings))
            elif settings.in_processes:
                url = None  # the token may be the bot's own, which its workers will tell
            else:
                ending.fail(NO_TOKEN, code=2)
            removes = _may_take_over(hook.settings, url, take_over)
            with open_ops(settings) as ops:
                code = run_loop(hook, serve(hook, ops, Notifier(os.environ), take_over=removes))
        except PollError as error:
            ending.fail(str(error), code=error.code)
    raise SystemExit(code)


def _may_take_over(settings: Settings, url: str | None, take_over: bool) -> bool:
    """Whether a webhook is to be removed; ends here if there is one that stays. `url`: None if it is not known yet."""
    from fasthook.telegram.polling import has_webhook

    if url == "" or not (url or take_over):
        return False
    if url and not take_over:
        fail(has_webhook(settings, url), code=1)
    question = f"Remove the webhook of bot {settings.bot_id} at {url}?" if url else "Remove the bot's webhook?"
    if sys.stdin.isatty() and not click.confirm(question, err=True):
        fail("the webhook stays", code=1)
    return True
