"""setWebhook, deleteWebhook, getWebhookInfo and getUpdates."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fasthook.testing import Rules
from testing.hook import response
from testing.stage import Stage, played, stage

ANN = {"id": 7, "first_name": "Ann"}


async def refused(s: Stage, files: dict[str, bytes] | None = None, **params: Any) -> str:
    """What setWebhook says to these."""
    s.clock.advance(1)
    answer = await s.call("setWebhook", files, **{"url": s.hook.url, **params})
    assert (answer["ok"], answer["error_code"]) == (False, 400)
    assert (await s.info())["url"] == ""
    return str(answer["description"])


@pytest.mark.parametrize("url", ["ftp://a/b", "http://", "http://a b", "http://a:99999/", "://"])
def test_a_url_that_is_none(url: str) -> None:
    async def main() -> str:
        async with stage() as s:
            return await refused(s, url=url)

    assert asyncio.run(main()) == "Bad Request: invalid webhook URL specified"


CLOUD = {
    "http://bot.example.org/": "bad webhook: An HTTPS URL must be provided for webhook",
    "https://bot.example.org:8000/": "bad webhook: Webhook can be set up only on ports 80, 88, 443 or 8443",
    "https://127.0.0.1/": "bad webhook: IP address 127.0.0.1 is reserved",
    "https://10.1.2.3:8443/": "bad webhook: IP address 10.1.2.3 is reserved",
    "https://[2001:4860:4860::8888]:88/": "bad webhook: IPv6-only addresses are not allowed",
    "https://no-such-host.invalid/": "bad webhook: Failed to resolve host: ",
}


@pytest.mark.parametrize("url", CLOUD)
def test_what_the_cloud_refuses(url: str) -> None:
    async def main() -> str:
        async with stage(Rules(local=False)) as s:
            return await refused(s, url=url)

    assert asyncio.run(main()).startswith("Bad Request: " + CLOUD[url])


@pytest.mark.parametrize("port", [443, 80, 88, 8443])
def test_the_cloud_calls_four_ports(port: int) -> None:
    """And `connect_to` brings what it calls to this machine."""

    async def main() -> dict[str, Any]:
        url = f"https://bot.example.org:{port}/hook"
        rules = Rules(local=False, connect_to={("bot.example.org", port): ("127.0.0.1", 9)})
        async with stage(rules) as s:
            await s.set(url)
            return await s.info()

    assert asyncio.run(main())["url"] == f"https://bot.example.org:{port}/hook"


@played
async def test_a_local_server_calls_any_address_and_port_over_plain_http(s: Stage) -> None:
    await s.set(f"http://localhost:{s.hook.port}/", max_connections=100_000)
    s.message()
    await s.until_settled()
    assert (await s.info())["max_connections"] == 100_000


@pytest.mark.parametrize("secret", ["A-Za-z0-9_-", "x" * 256])
def test_a_secret_is_1_to_256_of_its_characters(secret: str) -> None:
    async def main() -> None:
        async with stage() as s:
            await s.set(secret_token=secret)
            assert secret not in str(await s.info())
            s.message()
            await s.until_settled()
            assert ("X-Telegram-Bot-Api-Secret-Token", secret) in s.hook.requests[0].headers

    asyncio.run(main())


@pytest.mark.parametrize("secret", ["a b", "ä", "a.b", "x" * 257])
def test_a_secret_that_is_refused(secret: str) -> None:
    async def main() -> str:
        async with stage() as s:
            return await refused(s, secret_token=secret)

    what = "is too long" if len(secret) > 256 else "contains unallowed characters"
    assert asyncio.run(main()) == f"Bad Request: secret token {what}"


@pytest.mark.parametrize(("given", "most"), [(None, 40), ("1", 1), (0, 40), (100, 100), ("500", 100), (-3, 1)])
def test_max_connections_is_brought_into_1_to_100(given: Any, most: int) -> None:
    async def main() -> Any:
        rules = Rules(local=False, connect_to={("bot.example.org", 443): ("127.0.0.1", 9)})
        async with stage(rules) as s:
            await s.set("https://bot.example.org/", **({} if given is None else {"max_connections": given}))
            return (await s.info())["max_connections"]

    assert asyncio.run(main()) == most


@played
async def test_ip_address_is_dialled_instead_of_the_host(s: Stage) -> None:
    await s.set(f"http://no-such-host.invalid:{s.hook.port}/", ip_address="127.0.0.1")
    s.message()
    await s.until_settled()
    assert s.hook.requests[0].headers[0] == ("Host", "no-such-host.invalid")
    assert (await s.info())["ip_address"] == "127.0.0.1"


@played
async def test_without_ip_address_the_dns_is_asked_again(s: Stage) -> None:
    """It is another webhook than the one with the address fixed; the same one again asks nobody."""
    url = f"http://localhost:{s.hook.port}/"
    for ip_address, told in (("127.0.0.2", "127.0.0.2"), ("", "127.0.0.1")):
        s.clock.advance(1)
        for words in ("Webhook was set", "Webhook is already set"):
            assert (await s.call("setWebhook", url=url, ip_address=ip_address))["description"] == words
        assert (await s.info())["ip_address"] == told


@played
async def test_an_ip_address_that_is_none(s: Stage) -> None:
    assert await refused(s, ip_address="1.2.3") == "Bad Request: bad webhook: Invalid IP address specified"


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("content", [b"", b"root:x:0:0:root\n", b"\xff\xfe"])
def test_a_certificate_that_is_none(content: bytes, verify: bool) -> None:
    async def main() -> str:
        async with stage(Rules(verify=verify)) as s:
            return await refused(s, {"certificate": content}, url=f"https://localhost:{s.hook.port}/")

    words = "Bad Request: bad webhook: Can't create an SSL context: invalid certificate file"
    assert asyncio.run(main()) == words


@played
async def test_a_certificate_that_is_too_large(s: Stage) -> None:
    words = await refused(s, {"certificate": b"x" * (3 << 20) + b"x"})
    assert words == "Bad Request: certificate size is too big (3145729 bytes)"


@played
async def test_one_set_webhook_a_second(s: Stage) -> None:
    await s.set()
    answer = await s.call("setWebhook", url=s.hook.url + "2")
    assert (answer["error_code"], answer["parameters"]) == (429, {"retry_after": 1})
    assert answer["description"] == "Too Many Requests: retry after 1"
    s.clock.advance(1)
    assert (await s.call("setWebhook", url=s.hook.url + "2"))["description"] == "Webhook was set"


@played
async def test_the_same_parameters_again_change_nothing(s: Stage) -> None:
    await s.set(secret_token="a")
    s.message()
    await s.until_settled()
    answer = await s.call("setWebhook", url=s.hook.url, secret_token="a")
    assert answer == {"ok": True, "result": True, "description": "Webhook is already set"}
    s.message()
    await s.until_settled()
    assert s.hook.connected == 1


@played
async def test_a_change_restarts_the_delivery_and_what_was_in_flight_is_sent_again(s: Stage) -> None:
    await s.set()
    held = s.hook.hold()
    update_id = s.message()
    await s.hook.until_asked(1)
    await s.set(s.hook.url + "2")
    await s.hook.until_asked(2)
    assert [request.update_id for request in s.hook.requests] == [update_id] * 2
    assert [request.line.split()[1] for request in s.hook.requests] == ["/hook", "/hook2"]
    held.set()
    await s.until_settled()


@played
async def test_a_change_forgets_how_often_it_failed(s: Stage) -> None:
    s.hook.always = response(500)
    await s.set()
    s.message()
    await s.until_attempted(5)
    await s.set(s.hook.url + "2")
    await s.until_attempted(8)
    assert s.times[6] - s.times[5] == 0
    assert s.times[7] - s.times[6] == 2


@played
async def test_what_get_webhook_info_tells(s: Stage) -> None:
    assert await s.info() == {"url": "", "has_custom_certificate": False, "pending_update_count": 0}
    await s.set(secret_token="secret", max_connections=7, allowed_updates=["message", "poll"])
    assert await s.info() == {
        "url": s.hook.url,
        "has_custom_certificate": False,
        "pending_update_count": 0,
        "max_connections": 7,
        "ip_address": "127.0.0.1",
        "allowed_updates": ["message", "poll"],
    }


@played
async def test_drop_pending_updates(s: Stage) -> None:
    s.message()
    await s.set(drop_pending_updates=True)
    assert (await s.info())["pending_update_count"] == 0
    s.hook.always = response(500)
    s.message()
    await s.until_attempted(1)
    s.clock.advance(1)
    answer = await s.call("deleteWebhook", drop_pending_updates="true")
    assert answer["description"] == "Webhook was deleted"
    assert await s.info() == {"url": "", "has_custom_certificate": False, "pending_update_count": 0}


@played
async def test_a_deleted_webhook_keeps_what_waits(s: Stage) -> None:
    s.hook.always = response(500)
    await s.set()
    s.message()
    await s.until_attempted(1)
    s.clock.advance(1)
    assert (await s.call("deleteWebhook"))["description"] == "Webhook was deleted"
    assert (await s.call("deleteWebhook"))["description"] == "Webhook is already deleted"
    assert (await s.info())["pending_update_count"] == 1


# ---------------------------------------------------------------- allowed_updates


@played
async def test_three_kinds_are_off_unless_they_are_named(s: Stage) -> None:
    kinds = ("chat_member", "message_reaction", "message_reaction_count")
    assert [s.bot.add(kind, {"chat": {"id": 1}}) for kind in kinds] == [None] * 3
    await s.set(allowed_updates=[*kinds])
    assert all(s.bot.add(kind, {"chat": {"id": 1}, "from": ANN}) for kind in kinds)
    assert s.bot.add("message", {"chat": {"id": 1}}) is None
    await s.until_settled()


@played
async def test_left_out_it_keeps_the_list_and_an_empty_one_is_the_default(s: Stage) -> None:
    await s.set(allowed_updates='["poll"]')
    await s.set(s.hook.url + "2")
    assert (await s.info())["allowed_updates"] == ["poll"]
    await s.set(s.hook.url + "3", allowed_updates=[])
    assert "allowed_updates" not in await s.info()
    s.message()
    await s.until_settled()


# ---------------------------------------------------------------- getUpdates


@played
async def test_get_updates_conflicts_with_a_webhook(s: Stage) -> None:
    await s.set()
    answer = await s.call("getUpdates")
    assert answer["error_code"] == 409
    assert answer["description"].startswith("Conflict: can't use getUpdates method while webhook is active")


@played
async def test_a_second_get_updates_beside_a_running_one(s: Stage) -> None:
    first = asyncio.ensure_future(s.call("getUpdates", timeout=50))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(s.call("getUpdates", timeout=50))
    answer = await first
    assert answer["error_code"] == 409
    assert "terminated by other getUpdates request" in answer["description"]
    update_id = s.message()
    assert [update["update_id"] for update in (await second)["result"]] == [update_id]


@played
async def test_set_webhook_ends_a_running_get_updates(s: Stage) -> None:
    poll = asyncio.ensure_future(s.call("getUpdates", timeout=50))
    await asyncio.sleep(0)
    await s.set()
    assert (await poll)["description"] == "Conflict: terminated by setWebhook request"


@played
async def test_offset_and_limit(s: Stage) -> None:
    ids = [s.message(chat=chat) for chat in range(5)]

    async def get(**params: Any) -> list[int]:
        return [update["update_id"] for update in (await s.call("getUpdates", **params))["result"]]

    assert await get() == ids
    assert await get(limit="2") == ids[:2]
    assert await get(offset=ids[1]) == ids[1:]
    assert await get() == ids[1:]
    assert await get(offset=-2) == ids[3:]
    assert await get(offset=ids[-1] + 1) == []
    assert (await s.info())["pending_update_count"] == 0


@played
async def test_a_long_poll_ends_with_its_time(s: Stage) -> None:
    poll = asyncio.ensure_future(s.call("getUpdates", timeout=30))
    await asyncio.sleep(0)
    s.clock.advance(29.9)
    await asyncio.sleep(0)
    assert not poll.done()
    s.clock.advance(0.1)
    assert await poll == {"ok": True, "result": []}


@played
async def test_allowed_updates_of_get_updates(s: Stage) -> None:
    await s.call("getUpdates", allowed_updates=["callback_query"])
    assert s.bot.add("message", {"chat": {"id": 1}}) is None
    assert s.add("callback_query", {"id": "1", "from": ANN})
