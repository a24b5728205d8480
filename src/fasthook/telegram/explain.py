"""What Telegram says about a webhook, in words: why, and what to do.

The messages are those of the Bot API server (`WebhookActor.cpp`, td's sockets, DNS and TLS), of OpenSSL, and of
setWebhook.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explanation:
    """`cause`: what happened, seen from Telegram. `fix`: what to do about it."""

    cause: str
    fix: str


_CHAIN = "a full chain: the server's certificate and every intermediate one (with Let's Encrypt, fullchain.pem)"
_PROXY = "the proxy in front (nginx, a load balancer, a tunnel)"

#: What a message holds (any case), and what it means. The first that is found counts.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    # ---- answers of the webhook
    (
        r"from the webhook: 30[12378]\b",
        "the webhook answers with a redirect, and Telegram never follows one",
        "register the address that it redirects to: https instead of http, with or without www, "
        "with or without the / at the end",
    ),
    (
        r"from the webhook: 400\b",
        "the webhook refuses the request as malformed",
        f"if fasthook's log has no line of it, it is {_PROXY}: plain HTTP sent to a TLS port, or a header it "
        "doesn't take",
    ),
    (
        r"from the webhook: 401\b",
        "the secret that Telegram sends is not the one that the server wants",
        "register again with the server's own configuration (fasthook webhook set); replicas need the same --token "
        "or the same --secret; a proxy must pass X-Telegram-Bot-Api-Secret-Token on, and not ask for a password",
    ),
    (
        r"from the webhook: 403\b",
        "the caller is refused",
        "--allow-ip doesn't have Telegram's networks, or the proxy's address hides them: set --trusted-proxy; "
        "a firewall for web applications may take Telegram for a robot",
    ),
    (
        r"from the webhook: 404\b",
        "nothing is at this path",
        "the path of the registered address must be --path, as it arrives behind the proxy: one that strips a prefix "
        "needs --public-url with that prefix",
    ),
    (
        r"from the webhook: 405\b",
        "the path is there, but takes no POST",
        "another application answers at this path: let the proxy send it to fasthook",
    ),
    (
        r"from the webhook: 408\b",
        "the server did not get the whole request in time",
        f"look for what slows the body down in {_PROXY}; --body-timeout is fasthook's own limit",
    ),
    (
        r"from the webhook: 410\b",
        "the webhook says that it is gone for good; after 23 hours of that Telegram removes it",
        "something other than fasthook answers: point the address to the server, or remove the webhook",
    ),
    (
        r"from the webhook: 411\b|from the webhook: 413\b|from the webhook: 414\b|from the webhook: 431\b",
        "the request is larger than the server takes",
        "Telegram's largest body has 524,315 bytes: raise the proxy's limit (nginx: client_max_body_size 1m) "
        "and leave --max-body at 1MiB or more",
    ),
    (
        r"from the webhook: 415\b",
        "the server takes no application/json",
        "another application answers at this path: let the proxy send it to fasthook",
    ),
    (
        r"from the webhook: 421\b",
        "the server is not meant for this host name",
        "the proxy knows no such host: add the name in the address to its configuration and its certificate",
    ),
    (
        r"from the webhook: 429\b",
        "the webhook is slowed down on purpose; Telegram drops what it cannot deliver in time",
        "fasthook answers so only to wrong secrets (fasthook webhook set makes them right again); "
        "take Telegram's addresses out of the proxy's own rate limit",
    ),
    (
        r"from the webhook: 500\b",
        "the webhook failed while it handled an update",
        "with --ack handled this is a handler that raised: fasthook's log has its traceback; without, another "
        "application answers at this path",
    ),
    (
        r"from the webhook: 501\b",
        "the server doesn't know this kind of request",
        "another application answers at this path: let the proxy send it to fasthook",
    ),
    (
        r"from the webhook: 502\b",
        f"{_PROXY} got no valid answer from the server behind it",
        "is fasthook running, and does the proxy send to its --host and --port (or --uds)? If it is now and then only, "
        "the server closes idle connections before the proxy does: keep --keep-alive above the proxy's",
    ),
    (
        r"from the webhook: 503\b",
        "the server is full, stopping, or not there",
        "from fasthook: the queue is full (slow handlers: --concurrency, --queue-size), or it cannot be written "
        "(the log says why), or it is stopping; from the proxy: no server is up behind it",
    ),
    (
        r"from the webhook: 504\b",
        f"{_PROXY} waited too long for the server behind it",
        "with --ack handled keep --ack-deadline under the proxy's timeout, or use --ack queued; "
        "otherwise the server hangs: look at its log",
    ),
    (
        r"from the webhook: 52[0-7]\b|from the webhook: 530\b",
        "Cloudflare cannot use the server behind it",
        "520, 521, 522 and 524: it is not running, or doesn't take Cloudflare's addresses; 525 and 526: its "
        "certificate "
        "is not one that Cloudflare accepts in the mode Full (strict); 530: its name cannot be resolved",
    ),
    (
        r"from the webhook: 1\d\d\b",
        "the webhook answers with an interim status only",
        "another application answers at this path: let the proxy send it to fasthook",
    ),
    (
        r"from the webhook: 4\d\d\b",
        "the webhook refuses the request",
        f"fasthook doesn't answer so: it comes from {_PROXY}",
    ),
    (
        r"from the webhook: 5\d\d\b",
        "the webhook fails",
        f"fasthook doesn't answer so: it comes from {_PROXY}",
    ),
    (
        r"wrong response from the webhook",
        "what answers at this address does not speak HTTP as a server does",
        "let the port of the address lead to fasthook, or to a proxy in front of it",
    ),
    # ---- TLS
    (
        r"certificate verify failed|self.signed certificate|unable to get (local )?issuer|certificate has expired",
        "Telegram doesn't trust the certificate: the chain is incomplete, it is self-signed, has expired, or is for "
        "another name",
        f"serve {_CHAIN}; a self-signed one must be given to Telegram with --certificate, and its name must "
        "be the host "
        "of the address; one from a known authority must not be given with --certificate",
    ),
    (
        r"hostname mismatch|ip address mismatch",
        "the certificate is for another name",
        "get one for the host of the address, or register the address that it is for",
    ),
    (
        r"wrong version number|unknown protocol|http request|packet length too long|record layer failure",
        "plain HTTP answers where TLS is expected",
        "serve TLS on this port: a proxy in front, or --ssl-certfile and --ssl-keyfile",
    ),
    (
        r"unrecognized name",
        "the server has no certificate for this host name",
        "add the host of the address to the proxy's configuration, with a certificate for it",
    ),
    (
        r"handshake failure|no shared cipher|unsupported (certificate|protocol)|alert protocol version|"
        r"version too low|inappropriate fallback|insufficient security|illegal parameter",
        "the server and Telegram have no version of TLS or no cipher in common, or it has no certificate for this host",
        "allow TLS 1.2 or newer with today's ciphers; if one address serves several hosts, give this one a certificate",
    ),
    (
        r"key too small|md too weak|dh key|ca key|ee key",
        "the certificate or the key exchange is too weak for Telegram",
        "use an RSA key of 2048 bits or more, or an elliptic curve, SHA-256, and no old DH parameters",
    ),
    (
        r"certificate required|bad certificate|alert unknown ca|certificate unknown|handshake.*certificate",
        "the server asks Telegram for a certificate of its own, or refuses it",
        "switch client certificates (mutual TLS) off for this path; Telegram shows the secret instead",
    ),
    (
        r"alert internal error",
        "the server broke off the TLS handshake, usually because it has no certificate for this host",
        "give the host a certificate; with Cloudflare, one for the full name (its free one has one level of "
        "subdomains)",
    ),
    (
        r"unexpected eof|ssl_error_syscall|shutdown while in init",
        "the connection was closed in the middle of TLS",
        "a firewall or a proxy cuts it off, or the server restarted; does openssl s_client -connect "
        "HOST:PORT get through?",
    ),
    (
        r"unknown state|ssl3_connect",
        "the TLS handshake did not get under way",
        "an HTTPS server must listen at this address and port; does openssl s_client -connect HOST:PORT get through?",
    ),
    (
        r"can't create an ssl context|can't create an ssl connection",
        "Telegram cannot use the certificate that it was given",
        "--certificate wants one certificate in PEM, the public one, as fasthook webhook certificate makes it",
    ),
    (
        r"ssl error|ssl routines",
        "the TLS handshake failed",
        f"check what openssl s_client -connect HOST:PORT -servername HOST says; serve {_CHAIN}",
    ),
    # ---- connections
    (
        r"connection refused",
        "the machine is there, but nothing listens on this port",
        "is the server running, on this port, and on more than 127.0.0.1? From outside it needs --host "
        "0.0.0.0 or a proxy",
    ),
    (
        r"connection timed out|connection timeout|connect timeout",
        "nothing answers at this address: a firewall drops the packets, or it is the wrong address",
        "let 149.154.160.0/20 and 91.108.4.0/22 through to this port; does the DNS name lead to the server?",
    ),
    (
        r"read timeout expired",
        "the webhook took the request, but gave no whole answer within 60 seconds",
        "with --ack handled a handler hangs: keep --ack-deadline at 25 or use --ack queued; otherwise the "
        "server or the "
        "proxy hangs: look at its log",
    ),
    (
        r"write timeout expired",
        "the connection opened, but the request could not be written within 60 seconds",
        "the server or a proxy takes connections and reads nothing, or the line loses large packets (MTU): "
        "look at its log",
    ),
    (
        r"connection reset|broken pipe",
        "the connection was cut off",
        "a firewall, a proxy or a restart; if it happens to idle connections only, keep --keep-alive at 75 "
        "or more, and the "
        "proxy's too",
    ),
    (
        r"connection closed|connection aborted|hangup",
        "the connection was closed before there was an answer",
        "the server or the proxy restarted, or closes connections that Telegram still uses: keep-alive of 75 s or more",
    ),
    (
        r"no route to host|network is unreachable|host is unreachable|host unreachable",
        "there is no way from Telegram to this address",
        "it must be a public IPv4 address: does the DNS name lead to the server, and is the server's network up?",
    ),
    (
        r"can't connect to the webhook proxy",
        "the Bot API server cannot reach the proxy that it was started with",
        "check --webhook-proxy of your Bot API server",
    ),
    (
        r"can't connect to the webhook|can't open socket",
        "Telegram cannot open a connection to this address",
        "is the server up, its port open to 149.154.160.0/20 and 91.108.4.0/22, and the DNS name right?",
    ),
    # ---- names and addresses
    (
        r"failed to resolve host|name or service not known|nodename nor servname|no address associated|"
        r"temporary failure in name resolution|failed to parse dns",
        "the host name has no IPv4 address that Telegram can find",
        "add an A record for it; a new one needs some minutes to be known. --ip-address goes around the DNS",
    ),
    (
        r"ipv6.only|not ipv4",
        "the host has only an IPv6 address, and Telegram connects over IPv4",
        "add an A record with an IPv4 address, or put a proxy or a tunnel that has one in front",
    ),
    (
        r"ip address .* is reserved",
        "the host name leads to a private or reserved address, which Telegram cannot reach",
        "the DNS must name a public address; behind a router, use a tunnel, or fasthook poll",
    ),
    (
        r"invalid ip address",
        "the address given with --ip-address is none that Telegram can call",
        "give a public IPv4 address, or leave it to the DNS",
    ),
    (
        r"only on ports",
        "Telegram calls the ports 443, 80, 88 and 8443, and no other",
        "put the server or a proxy on one of them, and name that in --public-url",
    ),
    (
        r"https url must be|an https url",
        "Telegram calls nothing but https",
        "give --public-url with https://; a Bot API server of your own takes http if it was started with --local",
    ),
    (
        r"host is empty|invalid webhook url|can't parse (the )?url|url is too long|invalid http url|"
        r"wrong (host|port|ip)",
        "the address is none that Telegram understands",
        "give --public-url as https://host/path, in ASCII, without a user, a ? or a #",
    ),
    # ---- setWebhook, getUpdates
    (
        r"secret.token|secret token",
        "Telegram doesn't take the secret",
        "it must be 1 to 256 of A-Z a-z 0-9 _ - (--secret)",
    ),
    (
        r"can't parse|allowed_updates",
        "Telegram doesn't understand a parameter",
        "check --allowed-updates: names of kinds of updates with commas between",
    ),
    (
        r"certificate",
        "Telegram doesn't take the certificate",
        "--certificate wants one certificate in PEM, the public one, as fasthook webhook certificate makes it",
    ),
    (
        r"webhook is active|while webhook",
        "the bot has a webhook, and then nobody can poll",
        "remove it (fasthook webhook delete, or fasthook poll --take-over), or use another bot for trying things",
    ),
    (
        r"terminated by setwebhook",
        "somebody set a webhook for this bot while it was polled",
        "one way at a time: end the poll, or remove the webhook (fasthook webhook delete)",
    ),
    (
        r"terminated by other getupdates",
        "another program polls this bot",
        "end it, wherever it runs: an older deployment, a colleague's laptop, a second container; or use another bot",
    ),
    (
        r"\bunauthorized\b|\b404 not found\b",
        "Telegram doesn't know the token",
        "it was mistyped or revoked: @BotFather shows the present one (/mybots, API Token)",
    ),
    (
        r"wrong remote|unsupported content-encoding|entity too large|header fields too large|bad request",
        "what the webhook answered is not HTTP that Telegram can read",
        f"fasthook doesn't answer so: it comes from {_PROXY}",
    ),
)  # fmt: skip


def explain(message: str) -> Explanation | None:
    """Why Telegram said this, and what to do; None if it is not known."""
    for pattern, cause, fix in _KNOWN:
        if re.search(pattern, message, re.IGNORECASE):
            return Explanation(cause, fix)
    return None
