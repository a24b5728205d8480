"""What handlers return is sent: at the rates that are set, each refusal told once."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

from fasthook.lanes import GaveUp
from fasthook.settings import Settings
from fasthook.telegram.api import BotAPI, BotAPIError, BotAPIUnreachable, Forbidden, NotFound, Unauthorized
from fasthook.telegram.flood import Governor, is_message
from fasthook.telegram.refusals import Refusals

log = logging.getLogger("fasthook")


class Replies:
    """Sends Bot API methods for one bot. `settings`: the token, the server and the rates."""

    def __init__(self, settings: Settings) -> None:
        assert settings.token
        self._api = BotAPI(settings.token, settings.api_url)
        self._governor = Governor(
            bot=settings.reply_rate, chat=settings.reply_chat_rate, group=settings.reply_group_rate
        )
        self._refusals = Refusals()

    async def send(self, update_id: int, call: dict[str, Any]) -> None:
        """Send `{"method": …, …}`, when its turn comes.

        A refusal is logged, and that is all. GaveUp: Telegram could not be reached, or knows the token no more.
        """
        params = dict(call)
        method = params.pop("method")
        chat_id = params.get("chat_id")
        counts = chat_id is not None and is_message(method)
        try:
            async with self._governor.turn(chat_id) if counts else nullcontext():
                await self._api.call(method, **params)
        except Forbidden as error:
            self._refusals.tell(chat_id, f"update {update_id}: Telegram refused {error}")
        except (Unauthorized, NotFound) as error:
            if isinstance(error, NotFound) and error.description != "Not Found":
                log.error("update %d: Telegram refused %s", update_id, error)
                return
            words = f"Telegram doesn't know the token ({error}): if it was revoked, start again with the new one"
            raise GaveUp(words, "reply failed") from None
        except BotAPIError as error:
            log.error("update %d: Telegram refused %s", update_id, error)
        except BotAPIUnreachable as error:
            raise GaveUp(str(error), "reply failed") from None
        except (TypeError, OSError) as error:
            log.error("update %d: what the handler returned cannot be sent: %s", update_id, error)

    async def close(self) -> None:
        await self._api.close()
