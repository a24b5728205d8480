"""The access log: the same lines from both doors, and nothing in them that must stay secret."""

from __future__ import annotations

import logging

import pytest

from edge.client import connected, head, new_id, numbered, post
from edge.conftest import Serve
from edge.serving import SECRET

TOKEN = "42:TEST-of_the-access-log"
DOORS = pytest.mark.parametrize("http", ["compiled", "httptools"])


def lines(serve: Serve, caplog: pytest.LogCaptureFixture, http: str, *requests: bytes, **settings: object) -> list[str]:
    """What is logged of these requests, which are sent one after the other."""
    options = {} if http == "compiled" else {"http": http}
    served = serve(options=options, access_log=True, **settings)
    with caplog.at_level(logging.INFO, "fasthook.access"), connected(served) as peer:
        for request in requests:
            peer.send(numbered(request, new_id()))
            peer.read(b"HEAD" if request.startswith(b"HEAD ") else b"POST")
        served.settle()  # a line is written behind its answer
    return [record.getMessage() for record in caplog.records if record.name == "fasthook.access"]


@DOORS
def test_a_line_for_each_request(serve: Serve, caplog: pytest.LogCaptureFixture, http: str) -> None:
    assert lines(
        serve,
        caplog,
        http,
        post(),
        post(),
        post(line=b"POST /webhook?a=b HTTP/1.1"),
        head(line=b"GET /webhook HTTP/1.1"),
        head(line=b"HEAD /other?secret HTTP/1.1"),
        post(body=b"{}"),
        post().replace(SECRET.encode(), b"wrong"),
        post(b"Expect: x"),
    ) == [
        "127.0.0.1 POST /webhook 200 accepted",
        "127.0.0.1 POST /webhook 200 accepted",
        "127.0.0.1 POST /webhook 200 accepted",
        "127.0.0.1 GET /webhook 405 bad_method",
        "127.0.0.1 HEAD /other 404 not_found",
        "127.0.0.1 POST /webhook 200 invalid",
        "127.0.0.1 POST /webhook 401 unauthorized",
        "127.0.0.1 POST /webhook 417 expectation",
    ]


@DOORS
def test_the_address_is_the_client_of_a_trusted_proxy(
    serve: Serve, caplog: pytest.LogCaptureFixture, http: str
) -> None:
    one, two = (b"X-Forwarded-For: 9.9.9.9, 192.0.2.%d" % n for n in (1, 2))
    requests = [post(one), post(one), post(two), post(), head(one, line=b"GET / HTTP/1.1")]
    found = lines(serve, caplog, http, *requests, trusted_proxy="127.0.0.1")
    assert [line.split()[0] for line in found] == ["192.0.2.1", "192.0.2.1", "192.0.2.2", "127.0.0.1", "192.0.2.1"]


@DOORS
@pytest.mark.parametrize(
    ("asked", "shown"),
    {
        f"/webhook/{TOKEN}": "/webhook/42:***",
        f"/x/{TOKEN}?y": "/x/42:***",
        f"/bot{TOKEN.partition(':')[2]}": "/bot***",
        f"/{SECRET}": "/***",
        f"/{TOKEN.replace(':', '%3A')}": "/42%3A***",
        f"/{TOKEN.replace('-', '%2D')}": "***",
        f"/?{SECRET}": "/",
        "/%0a%0dx": "/%0a%0dx",
    }.items(),
)
def test_what_must_stay_secret(
    serve: Serve, caplog: pytest.LogCaptureFixture, http: str, asked: str, shown: str
) -> None:
    path = f"/webhook/{TOKEN}"
    [line] = lines(
        serve, caplog, http, post(line=b"POST %b HTTP/1.1" % asked.encode()), token=TOKEN, path=path, auth_rate="off"
    )
    assert line.split()[:3] == ["127.0.0.1", "POST", shown]


def test_what_is_not_known_of_a_refused_request(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    assert lines(serve, caplog, "compiled", b"nonsense\r\n\r\n") == ["127.0.0.1 - - 400 bad_request"]
    caplog.clear()
    assert lines(serve, caplog, "compiled", b"PUT /x HTTP/1.1\r\nX : y\r\n") == ["127.0.0.1 PUT /x 400 bad_request"]


def test_nothing_is_logged_without_the_setting(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), connected(serve()) as peer:
        peer.send(numbered(post(), new_id()))
        assert peer.read().status == 200
    assert "fasthook.access" not in {record.name for record in caplog.records}
