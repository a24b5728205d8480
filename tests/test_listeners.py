"""Where the server listens, for what a test of the command cannot arrange."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

from fasthook.listeners import ListenError, address, listen
from fasthook.settings import load

# what needs a second address that nothing has to be set up for
two_addresses = pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no 127.0.0.2")
BOTH = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"), (socket.AF_INET, "127.0.0.1")]


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The addresses that a host name has."""
    places = list(BOTH)

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 6, "", (name, port)) for family, name in places]

    monkeypatch.setattr("fasthook.listeners.socket.getaddrinfo", getaddrinfo)
    return places


@two_addresses
def test_one_port_on_each_address(resolves: list[tuple[int, str]]) -> None:
    settings = load({"host": "two", "port": 0}, {})
    with listen(settings) as listeners:
        names = [one.getsockname() for one in listeners.sockets]
        assert [name for name, _ in names] == ["127.0.0.1", "127.0.0.2"]
        [port] = {port for _, port in names}
        assert address(settings, listeners.sockets) == f"http://two:{port}"


@two_addresses
def test_an_address_that_is_not_of_this_machine_is_left_out(resolves: list[tuple[int, str]]) -> None:
    resolves.insert(0, (socket.AF_INET, "192.0.2.1"))
    with listen(load({"host": "three", "port": 0}, {})) as listeners:
        assert len(listeners.sockets) == 2


def test_no_address_is_of_this_machine(resolves: list[tuple[int, str]]) -> None:
    resolves[:] = [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "203.0.113.1")]
    with pytest.raises(ListenError, match=r"^cannot listen on http://none:8000: this machine has no such address; "):
        listen(load({"host": "none"}, {}))


@two_addresses
def test_nothing_is_left_open_where_one_address_is_taken(resolves: list[tuple[int, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:  # which other programs may have that of the other address
        port = free.getsockname()[1]
        taken = socket.create_server(("127.0.0.2", port))
    with taken:
        with pytest.raises(ListenError, match="Address already in use"):
            listen(load({"host": "two", "port": port}, {}))
        socket.create_server(("127.0.0.1", port)).close()
