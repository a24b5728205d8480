"""Several bots: the `[[bot]]` tables of fasthook.toml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fasthook.settings import (
    Settings,
    SettingsError,
    flag,
    load,
    nearest,
    parsed,
    read_file,
    secret_of,
    setting,
    variable,
)

TABLES = "bot"  # the key of the file
_OWN = ("token", "secret", "path", "allowed_updates")  # the settings that a table may have
_NEVER_SHARED = ("token", "secret", "path")


@dataclass(frozen=True)
class BotTable:
    """One bot: its target, and all settings with its own among them. `where`: what an error message calls it."""

    where: str
    target: str
    settings: Settings

    @property
    def bot_id(self) -> int:
        return self.settings.bot_id

    def same(self, other: BotTable) -> bool:
        """Whether nothing of its own differs."""
        return (self.target, self.settings) == (other.target, other.settings)

    @property
    def hidden(self) -> list[str]:
        """What no log may show."""
        token = self.settings.token or ""
        return [token, token.partition(":")[2], *(secret.decode() for secret in self.settings.valid_secrets)]


@dataclass(frozen=True)
class Configured:
    """What a command line, the environment and a file say: settings for all, and the tables; none for one bot."""

    settings: Settings
    tables: tuple[BotTable, ...]


def configured(
    given: Mapping[str, Any], environ: Mapping[str, str], config: Path | None, target: str | None
) -> Configured:
    """The settings of `load`, and the file's `[[bot]]` tables. `target`: of tables without one; they may stay without
    if it is empty.

    SettingsError: one line that names the table.
    """
    settings = load(given, environ, config, command=True)
    content = read_file(config) if config else {}
    if config is None or TABLES not in content:
        return Configured(settings, ())
    raw = content[TABLES]
    if not isinstance(raw, list) or not raw or not all(isinstance(table, dict) for table in raw):
        raise SettingsError(f"{config}: {TABLES}: write [[bot]] above each bot's keys, with two brackets")
    _refuse_shared(given, environ, config, content)
    tables = [_table(f"{config}: [[bot]] {number}", table, settings, target) for number, table in enumerate(raw, 1)]
    _check_distinct(tables)
    _check_together(tables, settings)
    return Configured(settings, tuple(tables))


def _refuse_shared(
    given: Mapping[str, Any], environ: Mapping[str, str], config: Path, content: Mapping[str, Any]
) -> None:
    """What each table has of its own cannot be given for all."""
    for name in _NEVER_SHARED:
        places = [flag(name)] if given.get(name) is not None else []
        places += [variable(name)] if environ.get(variable(name)) else []
        places += ["BOT_TOKEN"] if name == "token" and environ.get("BOT_TOKEN") else []
        places += [f"{config}: {name}"] if name in content else []
        if places:
            where = "it" if places[0].startswith(str(config)) else str(config)
            raise SettingsError(
                f"{places[0]}: {where} has [[bot]] tables, each with its own {name}: leave this one out"
            )


def _table(where: str, raw: Mapping[str, Any], settings: Settings, target: str | None) -> BotTable:
    known = ("target", *(name.replace("_", "-") for name in _OWN))
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = key.replace("_", "-")
        if name not in known:
            raise SettingsError(f"{where}: {key}: a bot has no such setting{nearest(key, list(known))}")
        if name == "target":
            if not isinstance(value, str) or not value:
                raise SettingsError(f"{where}: target: must be module:attribute, not {value!r}")
            target = value
            continue
        name = name.replace("-", "_")
        if name in values:
            raise SettingsError(f"{where}: {key}: it is there twice")
        values[name] = parsed(setting(name), value, f"{where}: {key}")
    if "token" not in values:
        raise SettingsError(f"{where}: token: is missing; @BotFather gives it")
    if target is None:
        raise SettingsError(f"{where}: target: is missing: give it there, or as TARGET for all that have none")
    values.setdefault("path", f"/webhook/{values['token'].partition(':')[0]}")
    values.setdefault("secret", (secret_of(values["token"]),))
    return BotTable(where, target, replace(settings, **values))


def _check_distinct(tables: list[BotTable]) -> None:
    ways: dict[str, Callable[[BotTable], tuple[object, str]]] = {
        "token": lambda one: (one.bot_id, f"bot {one.bot_id}"),
        "path": lambda one: (one.settings.path, one.settings.path),
    }
    for name, of in ways.items():
        seen: dict[object, str] = {}
        for table in tables:
            value, words = of(table)
            if value in seen:
                raise SettingsError(
                    f"{table.where}: {name}: {words} is that of {seen[value].partition(': ')[2]} already"
                )
            seen[value] = table.where


def _check_together(tables: list[BotTable], settings: Settings) -> None:
    for name in ("concurrency", "queue_size"):
        if getattr(settings, name) < len(tables):
            raise SettingsError(f"{flag(name)}: must be {len(tables)} or more, one for each [[bot]]")
    url = settings.public_url
    for table in tables:
        if url is not None and url.endswith(table.settings.path):
            raise SettingsError(f"--public-url: each bot's path is put behind it: leave out {table.settings.path}")
