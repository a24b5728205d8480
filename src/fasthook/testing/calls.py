"""A call of a Bot API method, its answer, and the answers that one can ask for."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import Any

from fasthook.testing.parameters import Parameters, structure, whole


class Refused(Exception):
    """Telegram refuses a call, in its words."""

    def __init__(self, code: int, description: str, retry_after: int = 0) -> None:
        super().__init__(f"{code} {description}")
        self.code = code
        self.description = description
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back. `hang`: nothing at all; `close`: the end of the connection."""

    status: int
    body: bytes
    content_type: str = "application/json"
    retry_after: int = 0
    hang: bool = False
    close: bool = False

    @classmethod
    def ok(cls, result: Any, description: str = "") -> Answer:
        told = {"description": description} if description else {}
        return cls(200, json.dumps({"ok": True, "result": result, **told}, separators=(",", ":")).encode())

    @classmethod
    def refused(cls, why: Refused) -> Answer:
        answer: dict[str, Any] = {"ok": False, "error_code": why.code, "description": why.description}
        if why.retry_after:
            answer["parameters"] = {"retry_after": why.retry_after}
        return cls(why.code, json.dumps(answer, separators=(",", ":")).encode(), retry_after=why.retry_after)


@dataclass(frozen=True, slots=True)
class Call:
    """A method that a bot called. `via`: `api`, or `webhook` for one in an answer to an update."""

    bot_id: int
    method: str
    params: dict[str, Any]
    files: dict[str, bytes]
    via: str
    at: float  # on the clock
    status: int
    result: Any = None
    description: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.params[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.params.get(name, default)

    @property
    def text(self) -> str:
        """Its text or caption, empty without one."""
        return str(self.params.get("text", self.params.get("caption", "")))

    @property
    def buttons(self) -> list[str]:
        """The words on the buttons it shows, row by row."""
        return [button["text"] for button in buttons_of(self.params.get("reply_markup"))]

    def __str__(self) -> str:
        named = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        files = "".join(f", {name}=({len(data)} bytes)" for name, data in self.files.items())
        refused = f" → {self.status} {self.description}" if self.status != 200 else ""
        return f"{self.method}({named}{files}){refused}"


def buttons_of(reply_markup: Any) -> list[dict[str, Any]]:
    """The buttons of an inline or of a reply keyboard."""
    markup = structure(reply_markup)
    if not isinstance(markup, dict):
        return []
    rows = markup.get("inline_keyboard") or markup.get("keyboard") or []
    found = [button for row in rows for button in row]
    return [{"text": button} if isinstance(button, str) else button for button in found]


# ---------------------------------------------------------------- answers on demand

_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
#: What can be asked for by name.
FAULTS = ("429", "403", "400", "401", "500", "502", "html", "slow", "hang", "close")
_WORDS = {
    400: "Bad Request: chat not found",
    401: "Unauthorized",
    403: "Forbidden: bot was blocked by the user",
    500: "Internal Server Error",
    502: "Bad Gateway",
}


@dataclass(slots=True)
class Fault:
    """What a bot is answered instead of what it should be.

    `kind`: a status, `html` (502 with a page, as a proxy's), `slow` (after `seconds`), `hang` (never) or `close`.
    `method`: `*` for all. `times`: None for always. `share`: of the calls that it would apply to.
    ValueError: the kind is not known.
    """

    kind: str
    method: str = "*"
    chat_id: int | None = None
    times: int | None = None
    share: float = 1.0
    retry_after: int = 1
    seconds: float = 5.0
    description: str = ""

    def __post_init__(self) -> None:
        if self.kind not in FAULTS and not re.fullmatch(r"[45]\d\d", self.kind):
            raise ValueError(f"must be one of {', '.join(FAULTS)}, not {self.kind!r}")

    def applies(self, method: str, given: Parameters, seed: random.Random) -> bool:
        """Whether it is this call's turn; one of `times` is used up then."""
        if self.times == 0 or (self.method not in ("*", "") and self.method.lower() != method.lower()):
            return False
        if self.chat_id is not None and whole(given.values.get("chat_id")) != self.chat_id:
            return False
        if self.share < 1.0 and seed.random() >= self.share:
            return False
        if self.times is not None:
            self.times -= 1
        return True

    def refusal(self) -> Refused | None:
        """What the bot is told, if it is told something by Telegram itself."""
        if not self.kind.isdigit():
            return None
        code = int(self.kind)
        if code == 429:
            return Refused(429, f"Too Many Requests: retry after {self.retry_after}", self.retry_after)
        return Refused(code, self.description or _WORDS.get(code, "Bad Request"))

    def answer(self) -> Answer | None:
        """The answer that stands for the real one; None if that is only late."""
        refusal = self.refusal()
        if refusal is not None:
            return Answer.refused(refusal)
        if self.kind == "html":
            return Answer(502, _HTML, "text/html")
        if self.kind in ("hang", "close"):
            return Answer(0, b"", hang=self.kind == "hang", close=self.kind == "close")
        return None


def parse_fault(text: str) -> Fault:
    """`METHOD:KIND[:PERCENT]`, for instance `sendMessage:429:10`. ValueError: it is not."""
    match = re.fullmatch(r"([A-Za-z]+|\*):(\w+)(?::(\d{1,3}(?:\.\d+)?)%?)?", text)
    if not match or not 0 <= float(match[3] or 100) <= 100:
        raise ValueError("must be METHOD:KIND or METHOD:KIND:PERCENT, for instance sendMessage:429:10")
    return Fault(match[2], match[1], share=float(match[3] or 100) / 100)
