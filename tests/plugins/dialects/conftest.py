"""Requests as the core would hand them to a dialect."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast
from urllib.parse import quote, unquote

import pytest

from passy_proxy.body import read_head
from passy_proxy.downstream import Downstream
from passy_proxy.exchange import Request
from passy_proxy.framing import told

PATHS = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "responses": "/responses",
    "messages": "/messages",
    "count_tokens": "/messages/count_tokens",
}

Asked = Callable[..., Request]


@pytest.fixture(scope="session")
def asked() -> Asked:
    """Makes a request: ``asked(body, operation, headers=…, query=…, method=…, rest=…)``."""

    def make(
        body: bytes,
        operation: str = "chat",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        query: bytes = b"",
        **more: str,
    ) -> Request:
        rest = more.get("rest", PATHS.get(operation, "/"))
        unused = cast(Downstream, None)
        method = more.get("method", "POST")
        raw_path = quote("/v1" + rest, "/%").encode()
        head = told(method, unquote("/v1" + rest), query, list(headers), raw_path)
        request = Request(head, unused)
        request.operation = operation
        request.root = len("/v1")
        request.body = body
        if operation:
            request.head = read_head(body)
        return request

    return make
