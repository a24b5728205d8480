"""`fasthook secret`."""

from __future__ import annotations

from typing import Any

import click

from fasthook.cli.options import fail, settings_from, settings_options


@click.command("secret")
@settings_options
def command(config: str | None, **given: Any) -> None:
    """Print the secret and the path of this token, as setWebhook wants them."""
    settings = settings_from(config, given)
    if not settings.token and not settings.secret:
        fail("no token: set --token, FASTHOOK_TOKEN or BOT_TOKEN", code=2)
    click.echo(f"secret_token  {settings.valid_secrets[0].decode()}")
    click.echo(f"path          {settings.path}")
