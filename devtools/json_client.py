"""Asks a server on this machine for JSON and files."""
from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any


class JsonClient:
    """The HTTP side of a server on `port` of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        # The proxies of the environment are for the outside world.
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def url(self) -> str:
        """The address of the server, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def get_bytes(self, path: str, timeout: float = 30.0) -> bytes:
        """The body at `path`."""
        with self._http.open(self.url + path, timeout=timeout) as answer:
            return bytes(answer.read())

    def get_json(self, path: str, timeout: float = 30.0) -> Any:
        """The JSON at `path`."""
        return json.loads(self.get_bytes(path, timeout))

    def post_json(self, path: str, body: Mapping[str, Any], timeout: float = 30.0) -> Any:
        """Post `body` as JSON; the JSON answer, or None when there is none."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with self._http.open(request, timeout=timeout) as answer:
            text = answer.read()
        return json.loads(text) if text else None
