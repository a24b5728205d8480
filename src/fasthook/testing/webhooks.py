"""setWebhook's parameters: what Telegram takes, and the words with which it refuses the rest."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, urlsplit

from fasthook.testing.calls import Refused
from fasthook.testing.connection import Address
from fasthook.testing.parameters import Parameters, structure, truth, whole
from fasthook.testing.samples import KINDS
from fasthook.testing.updates import OFF_BY_DEFAULT

_PORTS = (443, 80, 88, 8443)
_LARGEST_CERTIFICATE = 3 << 20


@dataclass(frozen=True, slots=True)
class Rules:
    """How a webhook is taken and reached.

    `local`: as a local Bot API server does it, plain HTTP to any address and port; else as the cloud: https, four
    ports, IPv4, no reserved address. `verify`: whether certificates are verified; `ca`: authorities to trust (PEM)
    beside the system's. `connect_to`: dial another place than the one in a URL, by (host, port).
    """

    local: bool = True
    verify: bool = True
    ca: str | None = None
    connect_to: Mapping[tuple[str, int], tuple[str, int]] | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook as it is set. `fixed`: the address was given, else it is what the DNS said."""

    url: str
    secret: str = ""
    max_connections: int = 40
    ip_address: str = ""
    certificate: bytes | None = None
    fixed: bool = False

    @property
    def parts(self) -> SplitResult:
        return urlsplit(self.url if "://" in self.url else f"https://{self.url}")

    @property
    def port(self) -> int:
        return self.parts.port or (443 if self.parts.scheme == "https" else 80)


def requested(given: Parameters, rules: Rules) -> Webhook | None:
    """The webhook that setWebhook asks for; None if it asks for none. Refused: in Telegram's words."""
    values = given.values
    url = str(values.get("url") or "")
    if not url:
        return None
    secret = str(values.get("secret_token") or "")
    if len(secret) > 256:
        raise Refused(400, "Bad Request: secret token is too long")
    if not re.fullmatch(r"[A-Za-z0-9_-]*", secret):
        raise Refused(400, "Bad Request: secret token contains unallowed characters")
    upload = given.files.get("certificate")
    if upload is not None and len(upload.data) > _LARGEST_CERTIFICATE:
        raise Refused(400, f"Bad Request: certificate size is too big ({len(upload.data)} bytes)")
    most = 100_000 if rules.local else 100
    wanted = whole(values.get("max_connections"))
    ip_address = str(values.get("ip_address") or "")
    webhook = Webhook(
        url,
        secret,
        min(max(wanted, 1), most) if wanted else 40,
        ip_address,
        upload.data if upload is not None else None,
        fixed=bool(ip_address),
    )
    _check_url(webhook, rules)
    return webhook


def _check_url(webhook: Webhook, rules: Rules) -> None:
    try:
        scheme, host, port = webhook.parts.scheme, webhook.parts.hostname, webhook.port
    except ValueError:
        scheme, host, port = "", None, 0
    if scheme not in ("http", "https") or not host or not re.fullmatch(r"\S+", webhook.url):
        raise Refused(400, "Bad Request: invalid webhook URL specified")
    if rules.local:
        return
    if scheme == "http":
        raise _bad("An HTTPS URL must be provided for webhook")
    if port not in _PORTS:
        raise _bad("Webhook can be set up only on ports 80, 88, 443 or 8443")


def _bad(why: str) -> Refused:
    return Refused(400, f"Bad Request: bad webhook: {why}")


async def reached(webhook: Webhook, rules: Rules) -> tuple[Webhook, Address]:
    """The webhook with its address, and what to dial. Refused: its host has none that Telegram would call."""
    host = webhook.parts.hostname or ""
    mapped = (rules.connect_to or {}).get((host, webhook.port))
    if mapped is not None:
        where: tuple[str, int] = mapped
        ip = await _resolve(mapped[0])
    else:
        ip = webhook.ip_address if webhook.fixed else await _resolve(host)
        where = (ip, webhook.port)
        _check_address(ip, rules)
    tls = _tls(webhook, rules) if webhook.parts.scheme == "https" else None
    found = webhook if webhook.fixed else replace(webhook, ip_address=ip)
    return found, Address(where[0], where[1], tls, host if tls else None)


async def _resolve(host: str) -> str:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        words = getattr(error, "strerror", None) or "Name or service not known"
        raise _bad(f"Failed to resolve host: {words}") from None
    found.sort(key=lambda one: one[0] != socket.AF_INET)  # IPv4 first
    return str(found[0][4][0])


def _check_address(text: str, rules: Rules) -> None:
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise _bad("Invalid IP address specified") from None
    if rules.local:
        return
    if ip.version != 4:
        raise _bad("IPv6-only addresses are not allowed")
    if not ip.is_global:
        raise _bad(f"IP address {ip} is reserved")


def _tls(webhook: Webhook, rules: Rules) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if webhook.certificate is not None:
        try:
            context.load_verify_locations(cadata=webhook.certificate.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError):  # ValueError: it is empty
            raise _bad("Can't create an SSL context: invalid certificate file") from None
    if not rules.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if rules.ca:
        context.load_verify_locations(cafile=rules.ca)
    if webhook.certificate is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate of one's own is no authority
    return context


def allowed_updates(given: Parameters, before: frozenset[str] | None) -> frozenset[str] | None:
    """The kinds that are wanted from now on: those of before if none are named, the default if the list is empty."""
    wanted = structure(given.values.get("allowed_updates"))
    if not isinstance(wanted, list) or not all(isinstance(kind, str) for kind in wanted):
        return before
    known = frozenset(kind.lower() for kind in wanted) & frozenset(KINDS)
    return None if not known or known == frozenset(KINDS) - OFF_BY_DEFAULT else known


def drops_pending(given: Parameters) -> bool:
    return truth(given.values.get("drop_pending_updates"))
