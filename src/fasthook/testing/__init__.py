"""What a bot's own tests can use: a Telegram that lives on this machine, and sample updates as Telegram writes them.

`Simulator` is the Telegram; the fixtures `telegram`, `bot` and `chat` of the pytest plugin are made of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fasthook.testing.calls import Call, Fault
    from fasthook.testing.chats import Chat, NotCome, User
    from fasthook.testing.limits import Limits
    from fasthook.testing.simulator import TOKEN, Simulator, SimulatorError
    from fasthook.testing.webhooks import Rules

__all__ = ["TOKEN", "Call", "Chat", "Fault", "Limits", "NotCome", "Rules", "Simulator", "SimulatorError", "User"]

_WHERE = {
    "TOKEN": "simulator",
    "Simulator": "simulator",
    "SimulatorError": "simulator",
    "Call": "calls",
    "Fault": "calls",
    "Chat": "chats",
    "NotCome": "chats",
    "User": "chats",
    "Limits": "limits",
    "Rules": "webhooks",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fasthook.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fasthook.testing.{_WHERE[name]}"), name)
