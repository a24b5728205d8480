"""`python fuzz/corpus.py DIR`: inputs for the fuzz targets, DIR/edge and DIR/scan, made of what the tests send."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from edge.client import BODY, numbered, post
from edge.rows import ROWS
from edge.test_smuggling import TRICKS

UPDATES = [
    BODY,
    b'{"update_id":@@@@@@@@@@,\n"callback_query":{"id":"1","from":{"id":7},"message":{"chat":{"id":-100}}}}',
    b'{"poll":{"id":"1","options":[{"text":"\\u00e4","voter_count":1.5e3}]},"update_id":@@@@@@@@@@}',
    b'{"update_id":@@@@@@@@@@,"message":{"reply_to_message":{"chat":{"id":2}},"chat":{"id":1},"from":{"id":3}}}',
    b'{"update_id":-1,"\\u006dessage":[[{}],null,true,false,"\\ud800\\n"]}',
]


def write(directory: Path, inputs: Iterable[bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (directory / hashlib.sha1(data).hexdigest()).write_bytes(data)


def main(directory: Path) -> None:
    requests = [row.sent for row in ROWS if row.short] + list(TRICKS.values())
    pairs = [post() + post(body=BODY + b" "), *(post() + request for request in requests[::7])]
    write(directory / "edge", [b"\x00\x00" + numbered(data, 1_000_000_000) for data in requests + pairs])
    write(directory / "scan", [numbered(data, 1_000_000_000) for data in UPDATES])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
