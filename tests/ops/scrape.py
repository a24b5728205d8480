"""A client of the ops server."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from e2e.process import PATIENCE, Response, Server, answer

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@dataclass(frozen=True)
class Page:
    """The samples of one scrape."""

    text: str
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, response: Response) -> Page:
        assert response.status == 200
        text = response.body.decode()
        parse = parse_openmetrics if "openmetrics" in response.headers["content-type"] else parse_text
        found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in parse(text):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found, key
                found[key] = sample.value
        return cls(text, found)

    def __getitem__(self, name: str) -> float:
        """The one sample without labels."""
        return self.samples[name, frozenset()]

    def by(self, name: str, label: str, **also: str) -> dict[str, float]:
        """The samples of a name that are not 0, by a label."""
        return {
            dict(labels)[label]: value
            for (found, labels), value in self.samples.items()
            if found == name and value and also.items() <= dict(labels).items()
        }


class Ops:
    """The ops server at an address."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)

    @classmethod
    def of(cls, server: Server) -> Ops:
        host, port = server.until(r"^  ops +http://(\S+):(\d+)$").groups()
        return cls(host, int(port))

    def ask(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Response:
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            return answer(connection)
        finally:
            connection.close()

    def metrics(self, accept: str = "") -> Page:
        return Page.of(self.ask("/metrics", headers={"Accept": accept} if accept else {}))

    def until(self, holds: Callable[[Page], bool]) -> Page:
        """Scrape until it holds."""
        end = time.monotonic() + PATIENCE
        while not holds(page := self.metrics()):
            assert time.monotonic() < end, page.text
        return page

    def ready(self) -> tuple[int, list[str]]:
        """The status of /readyz, and the codes of its reasons."""
        response = self.ask("/readyz")
        said: dict[str, Any] = json.loads(response.body)
        codes = [reason["code"] for reason in said["reasons"]]
        assert said["ready"] is (not codes)
        return response.status, codes
