"""The request that carries an update."""

from __future__ import annotations

import asyncio
import base64
import random
import ssl
from pathlib import Path

import pytest
import trustme

from fasthook.testing import Rules, samples
from fasthook.testing.updates import LARGEST_EVENT
from testing.stage import Stage, played, stage

TOKEN_HEADER = "X-Telegram-Bot-Api-Secret-Token"


@played
async def test_the_head_byte_for_byte(s: Stage) -> None:
    await s.set(s.hook.url + "/a%20b?x=1&y", secret="s-e_C")
    s.message()
    await s.until_settled()
    [request] = s.hook.requests
    assert request.line == "POST /hook/a%20b?x=1&y HTTP/1.1"
    assert request.headers == [
        ("Host", "127.0.0.1"),
        (TOKEN_HEADER, "s-e_C"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(request.body))),
        ("Connection", "keep-alive"),
        ("Accept-Encoding", "gzip, deflate"),
    ]


@played
async def test_no_secret_no_header(s: Stage) -> None:
    await s.set()
    s.message()
    await s.until_settled()
    assert TOKEN_HEADER not in s.hook.requests[0].names


@played
async def test_a_user_and_password_in_the_url_come_behind_the_host(s: Stage) -> None:
    await s.set(s.hook.url.replace("//", "//me:pass@"))
    s.message()
    await s.until_settled()
    [request] = s.hook.requests
    assert request.names[:2] == ["Host", "Authorization"]
    assert request.headers[1][1] == "Basic " + base64.b64encode(b"me:pass").decode()


@played
async def test_the_body_byte_for_byte(s: Stage) -> None:
    await s.set()
    update_id = s.add("poll_answer", {"poll_id": "1", "option_ids": [0], "text": "Grüße \N{SUN WITH FACE}"})
    await s.until_settled()
    wanted = b'{"update_id":%d,\n"poll_answer":{"poll_id":"1","option_ids":[0],' % update_id
    assert s.hook.requests[0].body == wanted + b'"text":"Gr\\u00fc\\u00dfe \\ud83c\\udf1e"}}'


@played
async def test_invoice_payload_is_raw(s: Stage) -> None:
    await s.set()
    body = samples.update(0, "pre_checkout_query", invoice_payload=b"\xff\x00raw")
    s.add("pre_checkout_query", raw=body[len(b'{"update_id":0,\n"pre_checkout_query":') : -1])
    await s.until_settled()
    assert b'"invoice_payload":"\xff\x00raw"' in s.hook.requests[0].body


@played
async def test_an_event_has_at_most_524288_bytes(s: Stage) -> None:
    await s.set()
    largest = b'{"id":"%s"}' % (b"x" * (LARGEST_EVENT - len('"poll":{"id":""}')))
    s.add("poll", raw=largest)
    await s.until_settled()
    assert 524_300 < len(s.hook.requests[0].body) <= 524_315
    with pytest.raises(ValueError, match="524288"):
        s.add("poll", raw=largest + b" ")


@played
async def test_id_comes_first_and_the_chat_before_the_message_that_is_replied_to(s: Stage) -> None:
    await s.set()
    chat = s.simulator.chat()
    first = await chat.send("one")
    await chat.send("two", reply_to_message=first)
    await s.until_settled()
    message = s.hook.requests[1].update["message"]
    assert [*message].index("chat") < [*message].index("reply_to_message")
    assert next(iter(message["chat"])) == next(iter(message["from"])) == "id"


# ---------------------------------------------------------------- numbers


def test_numbers_begin_at_random_and_go_up_by_one() -> None:
    async def first(seed: int) -> list[int]:
        async with stage() as s:
            s.bot.updates._random = random.Random(seed)
            return [s.message(), s.message(), s.add("poll")]

    runs = [asyncio.run(first(seed)) for seed in (1, 2)]
    assert runs[0][0] != runs[1][0]
    for numbers in runs:
        assert 0 <= numbers[0] < 2_000_000_000
        assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]


@played
async def test_what_expires_leaves_a_gap(s: Stage) -> None:
    first, gone = s.message(chat=1), s.add("inline_query")
    s.clock.advance(31)
    last = s.message(chat=2)
    await s.set()
    await s.until_settled()
    assert sorted(request.update_id for request in s.hook.requests) == [first, last]
    assert (gone, last) == (first + 1, first + 2)


@played
async def test_after_a_week_without_an_update_they_begin_anew(s: Stage) -> None:
    first = s.message()
    s.clock.advance(6 * 86_400)
    second = s.message()
    s.clock.advance(7 * 86_400 + 1)
    assert second == first + 1
    assert s.message() != second + 1


# ---------------------------------------------------------------- TLS


def tls_hook(s: Stage, chain: bytes, key: bytes, directory: Path) -> ssl.SSLContext:
    (directory / "chain.pem").write_bytes(chain)
    (directory / "key.pem").write_bytes(key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "chain.pem", directory / "key.pem")
    return context


async def deliver(directory: Path, rules: Rules, chain: bytes, key: bytes, **params: bytes) -> Stage:
    """Deliver one update to an https webhook of the name localhost; the stage as it is after the first attempt."""
    async with stage(rules) as s:
        await s.hook.stop()
        await s.hook.start(tls_hook(s, chain, key, directory))
        answer = await s.call("setWebhook", params, url=f"https://localhost:{s.hook.port}/hook")
        assert answer["ok"], answer
        s.message()
        await s.until_attempted(1)
        return s


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_a_certificate_of_a_known_authority(tmp_path: Path, authority: trustme.CA) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    leaf = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    rules = Rules(ca=str(tmp_path / "ca.pem"))
    s = asyncio.run(deliver(tmp_path, rules, chain, leaf.private_key_pem.bytes()))
    assert s.attempts[0].status == 200


@pytest.mark.parametrize("what", ["authority", "name", "chain"])
def test_a_certificate_that_is_not_verified(tmp_path: Path, authority: trustme.CA, what: str) -> None:
    """The authority is unknown; the name is another; the certificate between the two is missing."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issuer = authority.create_child_ca() if what == "chain" else authority
    leaf = issuer.issue_cert("localhost" if what != "name" else "example.org")
    rules = Rules(ca=None if what == "authority" else str(tmp_path / "ca.pem"))
    s = asyncio.run(deliver(tmp_path, rules, leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()))
    assert s.attempts[0].status == 0
    assert s.attempts[0].error == "SSL error {error:0A000086:SSL routines::certificate verify failed}"


def test_verification_can_be_switched_off(tmp_path: Path, authority: trustme.CA) -> None:
    leaf = authority.issue_cert("example.org")
    s = asyncio.run(
        deliver(tmp_path, Rules(verify=False), leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes())
    )
    assert s.attempts[0].status == 200


def test_an_uploaded_certificate_is_trusted(tmp_path: Path, authority: trustme.CA) -> None:
    leaf = authority.issue_cert("localhost")
    chain = leaf.cert_chain_pems[0].bytes()
    s = asyncio.run(deliver(tmp_path, Rules(), chain, leaf.private_key_pem.bytes(), certificate=chain))
    assert s.attempts[0].status == 200


@pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated:DeprecationWarning")
def test_tls_is_1_2_or_newer(tmp_path: Path, authority: trustme.CA) -> None:
    leaf = authority.issue_cert("localhost")

    async def main(version: ssl.TLSVersion) -> int:
        async with stage(Rules(verify=False)) as s:
            await s.hook.stop()
            context = tls_hook(s, leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes(), tmp_path)
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            await s.hook.start(context)
            await s.set(f"https://localhost:{s.hook.port}/hook")
            s.message()
            await s.until_attempted(1)
            return s.attempts[0].status

    assert asyncio.run(main(ssl.TLSVersion.TLSv1_1)) == 0
    assert asyncio.run(main(ssl.TLSVersion.TLSv1_2)) == 200


def test_plain_http_where_https_is_expected() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def main() -> str:
        async with stage() as s, await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            await s.set(f"https://localhost:{server.sockets[0].getsockname()[1]}/hook")
            s.message()
            await s.until_attempted(1)
            return s.attempts[0].error

    assert asyncio.run(main()) == "SSL error {error:0A00010B:SSL routines::wrong version number}"
