"""Each message that Telegram is known to say about a webhook, and the words that explain it."""

from __future__ import annotations

import asyncio
import ssl
from http import HTTPStatus
from pathlib import Path

import pytest
import trustme

from fasthook.telegram.explain import explain
from fasthook.testing import Rules
from testing.hook import CLOSE, HANG
from testing.stage import stage
from testing.test_webhooks import CLOUD

SERVER = "SSL routines:"
VERIFY = "certificate verify failed}"
WRONG = "Wrong response from the webhook: "
#: As getWebhookInfo, setWebhook and getUpdates have been seen to say them, and a word of the cause or the fix.
MESSAGES = [
    (WRONG + "301 Moved Permanently", "redirect"),
    (WRONG + "302 Found", "redirect"),
    (WRONG + "302 Moved Temporarily", "redirect"),
    (WRONG + "307 Temporary Redirect", "redirect"),
    (WRONG + "308 Permanent Redirect", "redirect"),
    (WRONG + "400 Bad Request", "malformed"),
    (WRONG + "401 Unauthorized", "secret"),
    (WRONG + "403 Forbidden", "--allow-ip"),
    (WRONG + "404 Not Found", "--path"),
    (WRONG + "405 Method Not Allowed", "no POST"),
    (WRONG + "408 Request Timeout", "--body-timeout"),
    (WRONG + "410 Gone", "23 hours"),
    (WRONG + "411 Length Required", "larger"),
    (WRONG + "413 Request Entity Too Large", "client_max_body_size"),
    (WRONG + "414 URI Too Long", "larger"),
    (WRONG + "415 Unsupported Media Type", "application/json"),
    (WRONG + "421 Misdirected Request", "host name"),
    (WRONG + "429 Too Many Requests", "rate limit"),
    (WRONG + "431 Request Header Fields Too Large", "larger"),
    (WRONG + "418 I'm a teapot", "refuses"),
    (WRONG + "500 Internal Server Error", "traceback"),
    (WRONG + "501 Not Implemented", "another application"),
    (WRONG + "502 Bad Gateway", "is fasthook running"),
    (WRONG + "503 Service Unavailable", "queue is full"),
    (WRONG + "504 Gateway Time-out", "--ack-deadline"),
    (WRONG + "505 HTTP Version Not Supported", "fails"),
    (WRONG + "521 ", "Cloudflare"),
    (WRONG + "522 ", "Cloudflare"),
    (WRONG + "525 ", "certificate"),
    (WRONG + "526 ", "Full (strict)"),
    (WRONG + "530 ", "resolved"),
    (WRONG + "102 Processing", "interim"),
    (WRONG + "GET / HTTP/1.1", "does not speak HTTP"),
    ("SSL error {error:0A000086:SSL routines::certificate verify failed}", "chain"),
    ("SSL error {error:1416F086:" + SERVER + "tls_process_server_certificate:" + VERIFY, "--certificate"),
    ("SSL error {336134278, error:14090086:" + SERVER + "ssl3_get_server_certificate:" + VERIFY, "chain"),
    ("SSL error {error:0A000086:SSL routines::certificate verify failed: self-signed certificate}", "--certificate"),
    ("SSL error {certificate has expired}", "expired"),
    ("SSL error {error:0A000086:SSL routines::hostname mismatch}", "another name"),
    ("SSL error {336130315, error:1408F10B:SSL routines:ssl3_get_record:wrong version number}", "plain HTTP"),
    ("SSL error {error:0A00010B:SSL routines::wrong version number}", "plain HTTP"),
    ("SSL error {336031996, error:140770FC:SSL routines:SSL23_GET_SERVER_HELLO:unknown protocol}", "plain HTTP"),
    ("SSL error {error:0A0000C6:SSL routines::packet length too long}", "plain HTTP"),
    ("SSL error {error:14094410:SSL routines:ssl3_read_bytes:sslv3 alert handshake failure}", "TLS 1.2"),
    ("SSL error {error:0A00042E:SSL routines::tlsv1 alert protocol version}", "TLS 1.2"),
    ("SSL error {error:0A000102:SSL routines::unsupported protocol}", "TLS 1.2"),
    ("SSL error {error:0A0000C1:SSL routines::no shared cipher}", "cipher"),
    ("SSL error {error:0A000458:SSL routines::tlsv1 unrecognized name}", "host name"),
    ("SSL error {error:0A000438:SSL routines::tlsv1 alert internal error}", "subdomains"),
    ("SSL error {error:0A00045C:SSL routines::tlsv13 alert certificate required}", "mutual TLS"),
    ("SSL error {error:0A000412:SSL routines::sslv3 alert bad certificate}", "mutual TLS"),
    ("SSL error {error:0A00018A:SSL routines::dh key too small}", "2048"),
    ("SSL error {error:0A00018E:SSL routines::ca md too weak}", "SHA-256"),
    ("SSL error {error:0A000126:SSL routines::unexpected eof while reading}", "in the middle of TLS"),
    ("SSL_ERROR_SYSCALL", "in the middle of TLS"),
    ("SSL error {error:140840FF:SSL routines:ssl3_connect:unknown state}", "HTTPS server"),
    ("SSL error {something new}", "s_client"),
    ("Can't create an SSL context: Failed to set custom certificate file", "--certificate"),
    ("Can't create an SSL connection: no", "--certificate"),
    ("Connection refused", "nothing listens"),
    ("Connection timed out", "149.154.160.0/20"),
    ("Read timeout expired", "60 seconds"),
    ("Write timeout expired", "could not be written"),
    ("Connection reset by peer", "cut off"),
    ("Broken pipe", "cut off"),
    ("Connection closed", "before there was an answer"),
    ("Webhook connection closed", "before there was an answer"),
    ("No route to host", "public IPv4"),
    ("Network is unreachable", "public IPv4"),
    ("Host is unreachable", "public IPv4"),
    ("Can't connect to the webhook", "port open"),
    ("Can't connect to the webhook proxy", "--webhook-proxy"),
    ("Failed to resolve host: Name or service not known", "A record"),
    ("Bad Request: bad webhook: Failed to resolve host: No address associated with hostname", "A record"),
    ("Temporary failure in name resolution", "A record"),
    ("IPv6-only addresses are not allowed", "IPv4"),
    ("Bad Request: bad webhook: IPv6-only addresses are not allowed", "IPv4"),
    ("Bad Request: bad webhook: IP address 192.168.1.5 is reserved", "fasthook poll"),
    ("Bad Request: bad webhook: Invalid IP address specified", "--ip-address"),
    ("Bad Request: bad webhook: Webhook can be set up only on ports 80, 88, 443 or 8443", "--public-url"),
    ("Bad Request: bad webhook: An HTTPS URL must be provided for webhook", "https"),
    ("Bad Request: bad webhook: HTTPS url must be provided for webhook", "https"),
    ("Bad Request: bad webhook: URL host is empty", "https://host/path"),
    ("Bad Request: invalid webhook URL specified", "https://host/path"),
    ("URL is too long", "https://host/path"),
    ("Bad Request: secret token contains unallowed characters", "--secret"),
    ("Bad Request: can't parse allowed_updates: no", "--allowed-updates"),
    ("Bad Request: certificate size is too big", "PEM"),
    ("Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first",
     "--take-over"),
    ("Conflict: terminated by other getUpdates request; make sure that only one bot instance is running",
     "another program polls"),
    ("Conflict: terminated by setWebhook request", "one way at a time"),
    ("getMe: 401 Unauthorized", "token"),
    ("getMe: 404 Not Found", "token"),
    ("Unsupported Media Type: unsupported content-encoding", "not HTTP"),
    ("Request Entity Too Large: content length is 5000000000", "not HTTP"),
    ("Bad Request: chunk has no end", "not HTTP"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "word"), MESSAGES, ids=[message for message, _ in MESSAGES])
def test_a_message_is_explained(message: str, word: str) -> None:
    found = explain(message)
    assert found is not None
    assert word in f"{found.cause}; {found.fix}"


def test_what_is_not_known() -> None:
    assert explain("the moon is full") is None


def test_each_explanation_is_reached_by_a_message() -> None:
    from fasthook.telegram import explain as module

    reached = {(found.cause, found.fix) for message, _ in MESSAGES if (found := explain(message))}
    assert reached == {(cause, fix) for _, cause, fix in module._KNOWN}


# ---------------------------------------------------------------- what a simulated Telegram comes to say

STATUSES = {
    301: "redirect", 302: "redirect", 307: "redirect", 308: "redirect", 400: "malformed", 401: "secret",
    403: "--allow-ip", 404: "--path", 405: "no POST", 410: "23 hours", 413: "client_max_body_size", 429: "rate limit",
    500: "traceback", 502: "is fasthook running", 503: "queue is full", 504: "--ack-deadline",
}  # fmt: skip
ANSWERS = {
    **{f"HTTP/1.1 {n} {HTTPStatus(n).phrase}\r\nContent-Length: 0\r\n\r\n".encode(): STATUSES[n] for n in STATUSES},
    b"+OK\r\n\r\n": "does not speak HTTP",
    CLOSE: "before there was an answer",
    HANG: "60 seconds",
}


def explained(message: str) -> str:
    found = explain(message)
    assert found is not None, message
    return f"{found.cause}; {found.fix}"


@pytest.mark.parametrize("answer", ANSWERS, ids=[answer.decode().partition("\r")[0] or "none" for answer in ANSWERS])
def test_an_answer_of_the_webhook_is_explained(answer: bytes) -> None:
    async def main() -> str:
        async with stage() as s:
            s.hook.always = answer
            await s.set()
            s.message()
            if answer == HANG:
                await s.hook.until_asked(1)
                s.clock.advance(60)
            await s.until_attempted(1)
            return str((await s.info())["last_error_message"])

    assert ANSWERS[answer] in explained(asyncio.run(main()))


def test_nobody_listens_is_explained() -> None:
    async def main() -> str:
        async with stage() as s:
            url = s.hook.url
            await s.hook.stop()
            await s.set(url)
            s.message()
            await s.until_attempted(1)
            return str((await s.info())["last_error_message"])

    assert "nothing listens" in explained(asyncio.run(main()))


def test_a_certificate_that_is_not_trusted_is_explained(tmp_path: Path) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "chain.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "chain.pem")

    async def main() -> str:
        async with stage() as s:
            await s.hook.stop()
            await s.hook.start(context)
            await s.set(f"https://localhost:{s.hook.port}/hook")
            s.message()
            await s.until_attempted(1)
            return str((await s.info())["last_error_message"])

    assert "--certificate" in explained(asyncio.run(main()))


@pytest.mark.parametrize("url", CLOUD)
def test_an_address_that_the_cloud_refuses_is_explained(url: str) -> None:
    async def main() -> str:
        async with stage(Rules(local=False)) as s:
            return str((await s.call("setWebhook", url=url))["description"])

    assert explained(asyncio.run(main()))
