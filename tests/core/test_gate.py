"""The gate: each verdict with its bytes, in the order of the steps, counted in the right row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h11
import pytest

from fasthook import DedupRing, Gate, Stats, TokenBuckets, Update, Verdict
from fasthook._core import SHORT_LIVED, VERDICTS, Route
from fasthook._scan import KINDS, Admitted
from fasthook.testing import samples

SECOND = 10**9
BOT, PATH, SECRET = 42, b"/webhook", b"correct-horse_battery-staple"
CALLER = "149.154.167.197"
NAMES = [name for name, *_ in VERDICTS]
PER_ROW = Gate.counters(0)


@dataclass
class Door:
    """A gate with one hook, asked as an edge asks it."""

    gate: Gate
    route: Route
    now: int = 0

    def head(
        self,
        path: bytes = PATH,
        post: bool = True,
        length: int = 100,
        secret: bytes | None = SECRET,
        caller: str = CALLER,
    ) -> Verdict | Route:
        return self.gate.head(path, post, length, secret, caller, self.now)

    def body(self, raw: bytes) -> Any:
        return self.gate.body(self.route, raw, 1.5, self.now)

    def admit(self, update_id: int, kind: str = "message", **facts: Any) -> Admitted:
        update = self.body(samples.update(update_id, kind, **facts))
        assert isinstance(update, Admitted), update
        return update

    def counts(self, row: int = 1) -> dict[str, int]:
        """The counters of a row that are not 0, by the verdict's name or the kind."""
        names = [*NAMES, *(f"kind {kind}" for kind in KINDS)]
        counted = {name: self.gate.stats.counter(row * PER_ROW + at) for at, name in enumerate(names)}
        return {name: count for name, count in counted.items() if count}


def open_door(limit: int = 4, paths: int = 1, secrets: tuple[bytes, ...] = (SECRET,), **options: Any) -> Door:
    gate = Gate(DedupRing(100, limit), Stats(Gate.counters(paths), 0), **options)
    return Door(gate, gate.add(PATH, BOT, secrets))


def name_of(answer: object) -> str:
    return answer.name if isinstance(answer, Verdict) else "passed"


# ---------------------------------------------------------------- the bytes

EMPTY = [b"HTTP/1.1 200 OK", b"content-length: 0", b"", b""]
TEXT = b"content-type: text/plain"
RESPONSES = {
    "accepted": EMPTY,
    "duplicate": EMPTY,
    "in_flight": EMPTY,
    "flood": EMPTY,
    "invalid": EMPTY,
    "not_found": [b"HTTP/1.1 404 Not Found", b"content-length: 24", TEXT, b"", b"no hook is at this path\n"],
    "bad_method": [
        b"HTTP/1.1 405 Method Not Allowed",
        b"content-length: 21",
        TEXT,
        b"allow: POST",
        b"",
        b"updates come by POST\n",
    ],
    "too_large": [
        b"HTTP/1.1 413 Content Too Large",
        b"content-length: 33",
        TEXT,
        b"connection: close",
        b"",
        b"the body is larger than max-body\n",
    ],
    "unauthorized": [
        b"HTTP/1.1 401 Unauthorized",
        b"content-length: 63",
        TEXT,
        b"",
        b"the header X-Telegram-Bot-Api-Secret-Token is missing or wrong\n",
    ],
}


@pytest.mark.parametrize("name", RESPONSES)
def test_the_response_bytes(name: str) -> None:
    assert open_door().gate.refuse(None, NAMES.index(name)).response == b"\r\n".join(RESPONSES[name])


def answered(response: bytes) -> tuple[int, dict[bytes, bytes], bytes, bool]:
    """Status, headers, body, and whether the connection closes, as h11's client reads them."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    client.send(h11.EndOfMessage())
    client.receive_data(response)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert not client.trailing_data[0]
    return head.status_code, dict(head.headers), body, client.their_state is h11.MUST_CLOSE


def assert_whole(verdict: Verdict) -> None:
    status, headers, body, closes = answered(verdict.response)
    assert (status, body, closes) == (verdict.status, verdict.body, verdict.closes)
    assert headers == dict(verdict.headers)
    assert headers[b"content-length"] == b"%d" % len(body)
    assert headers.get(b"retry-after") == (b"%d" % verdict.retry_after if verdict.retry_after else None)


@pytest.mark.parametrize("code", range(len(VERDICTS)))
def test_every_response_is_http(code: int) -> None:
    verdict = open_door().gate.refuse(None, code)
    name, status, _, closes, body = VERDICTS[code]
    assert (verdict.code, verdict.name, verdict.status, verdict.closes, verdict.body) == (
        code,
        name,
        status,
        closes,
        body,
    )
    assert_whole(verdict)
    assert repr(verdict) == f"<Verdict {status} {name}>"


def test_a_verdict_is_made_once() -> None:
    door = open_door()
    assert door.head(b"/other") is door.head(b"/another")


# ---------------------------------------------------------------- before the body


def test_a_genuine_request_gets_its_route() -> None:
    door = open_door()
    assert door.head() is door.route
    assert (door.route.path, door.route.bot_id, door.route.row, door.route.secrets) == (PATH, BOT, 1, (SECRET,))
    assert door.counts() == {}


@pytest.mark.parametrize("path", [b"", b"/", b"/webhoo", b"/webhook/", b"/webhook?", b"/WEBHOOK", b"/webhook\0"])
def test_no_other_path(path: bytes) -> None:
    door = open_door()
    assert name_of(door.head(path)) == "not_found"
    assert (door.counts(0), door.counts(1)) == ({"not_found": 1}, {})


@pytest.mark.parametrize(
    ("length", "name"), [(-1, "passed"), (0, "passed"), (500, "passed"), (501, "too_large"), (2**62, "too_large")]
)
def test_the_declared_size(length: int, name: str) -> None:
    assert name_of(open_door(max_body=500).head(length=length)) == name


def test_telegrams_largest_update_fits() -> None:
    door = open_door()
    assert door.gate.max_body == 1_048_576
    assert door.head(length=524_315) is door.route


def test_the_steps_in_their_order() -> None:
    """Everything is wrong at first, then one thing less at each request."""
    door = open_door(auth=TokenBuckets(8, SECOND, 1), max_body=500)
    wrong: dict[str, Any] = {"path": b"/", "post": False, "length": 501, "secret": b"guess"}
    for step, name in (
        ("path", "not_found"),
        ("post", "bad_method"),
        ("length", "too_large"),
        ("secret", "unauthorized"),
    ):
        assert name_of(door.head(**wrong)) == name
        del wrong[step]
    assert door.head(**wrong) is door.route
    assert door.counts(0) == {"not_found": 1}
    assert door.counts(1) == {"bad_method": 1, "too_large": 1, "unauthorized": 1}


# ---------------------------------------------------------------- the secret

WRONG_SECRETS = {
    "none": None,
    "empty": b"",
    "the first byte": b"C" + SECRET[1:],
    "the last byte": SECRET[:-1] + b"f",
    "one bit": SECRET[:-1] + bytes([SECRET[-1] ^ 1]),
    "one byte less": SECRET[:-1],
    "one byte more": SECRET + b"e",
    "a NUL behind": SECRET + b"\0",
    "a space behind": SECRET + b" ",
    "its own half": SECRET[: len(SECRET) // 2],
    "twice": SECRET * 2,
    "upper case": SECRET.upper(),
    "zeros": bytes(len(SECRET)),
    "very long": SECRET * 1000,
}


@pytest.mark.parametrize("wrong", WRONG_SECRETS)
@pytest.mark.parametrize("secrets", [(SECRET,), (b"another", SECRET), (SECRET, b"another")])
def test_a_wrong_secret(wrong: str, secrets: tuple[bytes, ...]) -> None:
    door = open_door(secrets=secrets)
    assert name_of(door.head(secret=WRONG_SECRETS[wrong])) == "unauthorized"
    assert door.counts() == {"unauthorized": 1}


def test_every_byte_of_the_secret_counts() -> None:
    door = open_door()
    for at in range(len(SECRET)):
        assert name_of(door.head(secret=SECRET[:at] + b"!" + SECRET[at + 1 :])) == "unauthorized"


def test_two_secrets_during_a_rotation() -> None:
    door = open_door(secrets=(b"new", b"old-secret"))
    assert door.head(secret=b"new") is door.head(secret=b"old-secret") is door.route
    assert name_of(door.head(secret=b"newold-secret")) == "unauthorized"


def test_a_rotation() -> None:
    door = open_door()
    before = door.gate.generation
    door.route = door.gate.rotate(PATH, (b"new", SECRET))
    assert door.head(secret=SECRET) is door.head(secret=b"new") is door.route
    door.route = door.gate.rotate(PATH, (b"new",))
    assert door.gate.generation == before + 2
    assert name_of(door.head(secret=SECRET)) == "unauthorized"
    door.admit(7)
    assert door.counts() == {"unauthorized": 1, "accepted": 1, "kind message": 1}  # the row stays
    with pytest.raises(KeyError):
        door.gate.rotate(b"/other", (b"new",))


# ---------------------------------------------------------------- wrong secrets cost


def test_an_empty_bucket_is_429_until_it_has_a_token_again() -> None:
    door = open_door(auth=TokenBuckets(8, 2 * SECOND, 3))
    assert [name_of(door.head(secret=b"guess")) for _ in range(4)] == ["unauthorized"] * 3 + ["throttled"]
    door.now = 2 * SECOND - 1
    assert name_of(door.head(secret=b"guess")) == "throttled"
    door.now = 2 * SECOND
    assert name_of(door.head(secret=b"guess")) == "unauthorized"
    assert door.counts() == {"unauthorized": 4, "throttled": 2}


@pytest.mark.parametrize(
    ("interval", "elapsed", "seconds"),
    [
        (1, 0, 1),
        (SECOND, 0, 1),
        (SECOND, SECOND - 1, 1),
        (SECOND + 1, 0, 2),
        (3 * SECOND, SECOND, 2),
        (60 * SECOND, 0, 60),
        (60 * SECOND + 1, 0, 60),
        (10**6 * SECOND, 0, 60),
    ],
)
def test_retry_after_is_the_wait_in_whole_seconds(interval: int, elapsed: int, seconds: int) -> None:
    door = open_door(auth=TokenBuckets(8, interval, 1))
    door.head(secret=b"guess")
    door.now = elapsed
    verdict = door.head(secret=b"guess")
    assert isinstance(verdict, Verdict)
    assert (verdict.status, verdict.retry_after, verdict.closes) == (429, seconds, True)
    assert_whole(verdict)


def test_each_caller_has_a_bucket_of_its_own() -> None:
    door = open_door(auth=TokenBuckets(8, SECOND, 1))
    callers = [CALLER, "other", CALLER, "other"]
    answers = [name_of(door.head(secret=b"guess", caller=caller)) for caller in callers]
    assert answers == ["unauthorized", "unauthorized", "throttled", "throttled"]


def test_a_genuine_caller_is_never_limited_by_its_address() -> None:
    auth = TokenBuckets(8, SECOND, 1)
    door = open_door(auth=auth)
    for _ in range(1000):
        assert door.head() is door.route
    assert len(auth) == 0
    for _ in range(5):
        door.head(secret=b"guess")
    assert name_of(door.head(secret=b"guess")) == "throttled"
    assert door.head() is door.route


def test_only_a_wrong_secret_costs_a_token() -> None:
    auth = TokenBuckets(8, SECOND, 1)
    door = open_door(auth=auth, max_body=500)
    wrongs: list[dict[str, Any]] = [{"path": b"/"}, {"post": False}, {"length": 501}]
    for wrong in wrongs:
        door.head(secret=b"guess", **wrong)
    assert len(auth) == 0


# ---------------------------------------------------------------- the body


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_admitted_update(kind: str) -> None:
    door = open_door()
    raw = samples.update(7, kind)
    update = door.body(raw)
    assert type(update) is Admitted
    assert (update.update_id, update.kind, update.bot_id, update.received_at, update.attempt) == (7, kind, BOT, 1.5, 1)
    assert update.raw is raw
    assert update.state is None
    assert door.gate.ring.items() == [(BOT, 7, False)]
    assert door.counts() == {"accepted": 1, f"kind {kind}": 1}


def test_a_kind_that_is_not_known_is_admitted() -> None:
    door = open_door()
    assert door.body(b'{"update_id":7,"story":{}}').kind == "story"
    assert door.counts() == {"accepted": 1, "kind unknown": 1}


class Mine(Update):
    """An update as a handler's framework may want it."""

    def shout(self) -> str:
        return self.kind.upper()


@pytest.mark.parametrize("cls", [Admitted, Update, Mine])
def test_the_class_of_updates(cls: type[Admitted]) -> None:
    door = open_door(update=cls)
    update = door.admit(7, chat_id=5)
    assert type(update) is cls
    assert (update.chat_id, update.bot_id, update.lane) == (5, BOT, (BOT, 5))
    if isinstance(update, Mine):
        assert update.shout() == "MESSAGE"
        assert update["message"]["chat"]["id"] == 5


@pytest.mark.parametrize("raw", [b"", b"{}", b"not json", b'{"update_id":"7"}', samples.update(7)[:-1]])
def test_what_is_no_update_is_acknowledged(raw: bytes) -> None:
    door = open_door()
    verdict = door.body(raw)
    assert (verdict.name, verdict.status) == ("invalid", 200)
    assert door.gate.ring.items() == []
    assert door.counts() == {"invalid": 1}


def test_in_flight_then_duplicate() -> None:
    door = open_door()
    update = door.admit(7)
    assert name_of(door.body(samples.update(7))) == "in_flight"
    assert door.gate.settle(update)
    assert name_of(door.body(samples.update(7))) == "duplicate"
    assert not door.gate.settle(update)
    assert not door.gate.release(update)
    assert door.counts() == {"accepted": 1, "kind message": 1, "in_flight": 1, "duplicate": 1}


def test_a_released_update_is_new_when_telegram_sends_it_again() -> None:
    door = open_door()
    assert door.gate.release(door.admit(7))
    door.admit(7)
    assert door.counts()["accepted"] == 2


def test_the_same_id_for_another_bot() -> None:
    door = open_door(paths=2)
    other = Door(door.gate, door.gate.add(b"/other", 43, (b"secret",)))
    door.admit(7)
    other.admit(7)
    assert name_of(other.body(samples.update(7))) == "in_flight"
    assert door.counts(1) == {"accepted": 1, "kind message": 1}
    assert door.counts(2) == {"accepted": 1, "kind message": 1, "in_flight": 1}


# ---------------------------------------------------------------- no room

RETRY = {kind: 1 if kind in SHORT_LIVED else 3 for kind in KINDS[1:]}
LIFE = {"inline_query": 30, "callback_query": 150, "shipping_query": 150, "pre_checkout_query": 150}


def test_what_lives_shortly_is_asked_for_soon() -> None:
    assert {kind for kind, seconds in RETRY.items() if seconds == 1} == {*LIFE, "chosen_inline_result"}
    assert all(seconds < LIFE.get(kind, 600) for kind, seconds in RETRY.items())


@pytest.mark.parametrize("kind", RETRY)
def test_the_queue_is_full(kind: str) -> None:
    door = open_door(limit=1)
    update = door.admit(1)
    verdict = door.body(samples.update(2, kind))
    assert (verdict.name, verdict.status, verdict.retry_after, verdict.closes) == ("busy", 503, RETRY[kind], False)
    assert_whole(verdict)
    assert door.counts() == {"accepted": 1, "kind message": 1, "busy": 1}
    door.gate.settle(update)
    door.admit(2, kind)  # it was not remembered


@pytest.mark.parametrize("kind", RETRY)
def test_the_server_is_stopping(kind: str) -> None:
    door = open_door()
    door.gate.draining = True
    verdict = door.body(samples.update(2, kind))
    assert (verdict.name, verdict.status, verdict.retry_after, verdict.closes) == ("draining", 503, RETRY[kind], True)
    assert_whole(verdict)
    assert door.gate.ring.items() == []
    assert door.counts() == {"draining": 1}


def test_what_is_known_is_still_answered_when_full_or_stopping() -> None:
    door = open_door(limit=2)
    door.gate.settle(door.admit(1))
    door.admit(2)
    door.admit(3)
    for draining in (False, True):
        door.gate.draining = draining
        answers = [name_of(door.body(raw)) for raw in (b"{}", samples.update(1), samples.update(2))]
        assert answers == ["invalid", "duplicate", "in_flight"]


def test_refusals_while_stopping_forget_nothing() -> None:
    door = open_door()
    for update_id in range(100):
        door.gate.settle(door.admit(update_id))
    door.gate.draining = True
    for update_id in range(1000, 1500):
        assert name_of(door.body(samples.update(update_id))) == "draining"
    assert {name_of(door.body(samples.update(update_id))) for update_id in range(100)} == {"duplicate"}


# ---------------------------------------------------------------- flood


def test_a_chat_over_its_rate_is_acknowledged_and_dropped() -> None:
    door = open_door(chats=TokenBuckets(8, SECOND, 2))
    door.admit(1, chat_id=5)
    door.admit(2, chat_id=5)
    verdict = door.body(samples.update(3, chat_id=5))
    assert (verdict.name, verdict.status) == ("flood", 200)
    door.admit(4, chat_id=6)
    assert name_of(door.body(samples.update(3, chat_id=5))) == "duplicate"  # it was dropped for good
    door.now = SECOND
    door.admit(5, chat_id=5)
    assert door.counts() == {"accepted": 4, "kind message": 4, "flood": 1, "duplicate": 1}


def test_duplicates_cost_a_chat_nothing() -> None:
    door = open_door(chats=TokenBuckets(8, SECOND, 2))
    door.admit(1, chat_id=5)
    for _ in range(10):
        door.body(samples.update(1, chat_id=5))
    door.admit(2, chat_id=5)


def test_what_has_no_chat_is_no_flood() -> None:
    chats = TokenBuckets(8, SECOND, 1)
    door = open_door(limit=50, chats=chats)
    for update_id in range(50):
        door.admit(update_id, "inline_query")
    assert len(chats) == 0


def test_the_chats_of_two_bots_are_two() -> None:
    door = open_door(paths=2, chats=TokenBuckets(8, SECOND, 1))
    other = Door(door.gate, door.gate.add(b"/other", 43, (b"secret",)))
    door.admit(1, chat_id=5)
    other.admit(1, chat_id=5)


# ---------------------------------------------------------------- paths


def test_a_path_has_one_hook() -> None:
    door = open_door(paths=2)
    with pytest.raises(ValueError, match="/webhook"):
        door.gate.add(PATH, 43, (b"x",))


def test_a_path_needs_a_row() -> None:
    with pytest.raises(ValueError, match="row"):
        open_door(paths=0)


def test_a_path_is_closed() -> None:
    door = open_door(paths=2)
    before = door.gate.generation
    door.gate.remove(PATH)
    assert door.gate.generation > before
    assert name_of(door.head()) == "not_found"
    assert door.gate.add(PATH, 43, (SECRET,)).row == 2  # a row is never used again
    with pytest.raises(KeyError):
        door.gate.remove(b"/other")


def test_how_many_counters() -> None:
    assert [Gate.counters(paths) for paths in range(3)] == [
        (len(VERDICTS) + len(KINDS) + 1) * rows for rows in (1, 2, 3)
    ]


def test_a_row_for_each_path() -> None:
    door = open_door(limit=6, paths=3)
    doors = [door, *(Door(door.gate, door.gate.add(b"/%d" % bot, bot, (b"s",))) for bot in (2, 3))]
    for hooks, other in enumerate(doors, 1):
        assert other.route.row == hooks
        for update_id in range(hooks):
            other.body(samples.update(update_id))
    assert [other.counts(other.route.row)["accepted"] for other in doors] == [1, 2, 3]


@pytest.mark.parametrize("wrong", [{"path": "/"}, {"secret": "x"}, {"length": "5"}, {"length": 2**70}])
def test_what_an_edge_must_not_pass(wrong: dict[str, Any]) -> None:
    with pytest.raises((TypeError, OverflowError)):
        open_door().head(**wrong)


def test_a_caller_must_be_hashable() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        open_door(auth=TokenBuckets(8, SECOND, 1)).gate.head(PATH, True, 1, b"guess", [], 0)  # type: ignore[arg-type]
