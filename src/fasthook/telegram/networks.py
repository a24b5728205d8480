"""Addresses: Telegram's, those that may call, and who a caller is when a proxy stands between."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

#: Where the cloud's Bot API connects from (core.telegram.org/bots/webhooks). It "might change".
TELEGRAM = ("149.154.160.0/20", "91.108.4.0/22")


class Networks:
    """A set of networks. `names`: CIDRs, addresses, `telegram`, and `unix` for the peer of a Unix socket.

    ValueError: one of them is none of these.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.unix = "unix" in self.names
        self._networks = [
            ipaddress.ip_network(cidr)
            for name in self.names
            if name != "unix"
            for cidr in (TELEGRAM if name == "telegram" else (name,))
        ]

    def __contains__(self, address: str | None) -> bool:
        """Whether an address belongs; None is the peer of a Unix socket."""
        if address is None:
            return self.unix
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self._networks)

    def __repr__(self) -> str:
        return ",".join(self.names)


def caller(peer: str | None, forwarded: str, trusted: Networks) -> str | None:
    """Who calls: the peer, or if that is a trusted proxy, the right-most address in X-Forwarded-For that is not one."""
    if peer not in trusted:
        return peer
    for name in reversed(forwarded.split(",")):
        address = _address(name)
        if address is None:
            return peer  # nothing to the left of this can be believed
        if address not in trusted:
            return address
        peer = address
    return peer


def _address(name: str) -> str | None:
    """The address in an element of X-Forwarded-For, which some proxies write with a port."""
    name = name.strip()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if "%" in name:
        return None  # an IPv6 zone is any text, and means something on the machine it is of
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return None
