"""`fasthook secret`."""

from __future__ import annotations

from typing import Any

import click

from fasthook.cli.options import bot_option, each_bot, fail, settings_options
from fasthook.settings import Settings


@click.command("secret")
@settings_options
@bot_option
def command(config: str | None, bot_id: int | None, **given: Any) -> None:
    """Print the secret and the path of this token, as setWebhook wants them; of several bots, those of each."""
    bots = each_bot(config, given, bot_id)
    for number, one in enumerate(bots):
        if len(bots) > 1:
            click.echo(f"{'' if number == 0 else chr(10)}bot           {one.bot_id}")
        _print(one.settings)


def _print(settings: Settings) -> None:
    if not settings.token and not settings.secret:
        fail("no token: set --token, FASTHOOK_TOKEN or BOT_TOKEN", code=2)
    click.echo(f"secret_token  {settings.valid_secrets[0].decode()}")
    click.echo(f"path          {settings.path}")
