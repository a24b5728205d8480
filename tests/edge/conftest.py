"""Servers for the tests of the compiled edge: on both event loops, plain and with TLS."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from edge.serving import Certificate, Process, Served, fasthook_run


@pytest.fixture(scope="session", autouse=True)
def bare_environment() -> Iterator[None]:
    """No setting comes from the environment of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("FASTHOOK_") or name == "BOT_TOKEN":
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_threads() -> Iterator[None]:
    """A server and its client in one process hand over to each other often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    authority = trustme.CA()
    chain = tmp_path_factory.mktemp("certificate") / "chain.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(chain))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return Certificate(chain, client)


Serve = Callable[..., Served]
Run = Callable[..., Process]


@pytest.fixture(scope="session", params=["uvloop", "asyncio", "uvloop-tls", "asyncio-tls"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[Served]:
    """A server for many tests: each uses update ids of its own."""
    loop, _, tls = request.param.partition("-")
    state = tmp_path_factory.mktemp(request.param) / "state"
    server = Served(state, loop=loop, certificate=certificate if tls else None)
    yield server
    server.stop()


@pytest.fixture(scope="session", params=["uvloop", "asyncio"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The same without TLS, for what TLS cannot do or does not change."""
    server = Served(tmp_path_factory.mktemp("plain") / "state", loop=request.param)
    yield server
    server.stop()


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers with settings of their own; all are stopped at the end."""
    servers: list[Served] = []

    def start(**settings: object) -> Served:
        servers.append(Served(tmp_path / f"state-{len(servers)}", **settings))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start `fasthook run` with options; all processes are ended at the end."""
    processes: list[Process] = []

    def start(*options: str, certificate: Certificate | None = None) -> Process:
        processes.append(fasthook_run(tmp_path / f"run-{len(processes)}", *options, certificate=certificate))
        return processes[-1]

    yield start
    for process in processes:
        process.stop()
