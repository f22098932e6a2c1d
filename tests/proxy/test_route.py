"""Which chain answers which request."""

from __future__ import annotations

from typing import Any

import pytest

from passy_proxy.route import Route, RouteTable


def route(match: str) -> Route:
    method, path = match.split(" ")
    unused: Any = None
    return Route(match, method, path, unused, unused, "", False, 0, 0)


TABLE = RouteTable(
    [
        route(match)
        for match in (
            "POST /v1/chat/completions",
            "* /v1/any",
            "GET /v1/files*",
            "POST /v1/files*",
            "* /v1/files/deep/*",
            "OPTIONS /v1/*",
        )
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/chat/completions", "POST /v1/chat/completions"),
        ("GET", "/v1/chat/completions", None),
        ("POST", "/v1/chat/completions/", None),
        ("OPTIONS", "/v1/chat/completions", "OPTIONS /v1/*"),
        ("PATCH", "/v1/any", "* /v1/any"),
        ("GET", "/v1/files", "GET /v1/files*"),
        ("POST", "/v1/files/one", "POST /v1/files*"),
        ("GET", "/v1/files/deep/one", "* /v1/files/deep/*"),
        ("DELETE", "/v1/files/one", None),
        ("GET", "/", None),
    ],
)
def test_the_most_specific_route_answers(method: str, path: str, expected: str | None) -> None:
    found = TABLE.find(method, path)
    assert expected == (found.match if found else None)


def test_of_two_equal_routes_the_first_wins() -> None:
    first, second = route("GET /x"), route("GET /x")
    assert first is RouteTable([first, second]).find("GET", "/x")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", ["OPTIONS", "POST"]),
        ("/v1/files/one", ["GET", "OPTIONS", "POST"]),
        ("/elsewhere", []),
    ],
)
def test_the_methods_of_a_path_are_known(path: str, expected: list[str]) -> None:
    assert expected == TABLE.methods(path)
