"""What both applications are made with: FastAPI without its pages, and every error in our shape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from passy_plugins.api.errors import schemas, told
from passy_proxy import __version__
from passy_proxy.application import Message

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


def api(
    title: str, about: str, log: FilteringBoundLogger | None, secured: Mapping[str, Any]
) -> FastAPI:
    """An application without routes. ``secured``: the ways to show who asks, for its OpenAPI
    document, which is at ``/openapi.json`` for those who are let in."""
    app = FastAPI(
        title=title,
        description=" ".join(about.split()),
        version=__version__,
        docs_url=None,  # They are HTML, and fetch scripts from elsewhere.
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=named,
        separate_input_output_schemas=False,
    )
    app.state.log = log
    told(app)

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                separate_input_output_schemas=False,
                servers=app.servers,
            )
            known = made.setdefault("components", {}).get("schemas", {})
            made["components"]["schemas"] = dict(sorted((known | schemas()).items()))
            share_errors(made)
            made["components"]["securitySchemes"] = dict(secured)
            made["security"] = [{name: []} for name in secured]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    return app


def ready(app: FastAPI) -> FastAPI:
    """``app`` with everything made that is otherwise made for the first request, while others
    wait. For a thread."""
    app.openapi()
    asked_once(app)
    return app


def asked_once(app: FastAPI) -> None:
    """The same without its document."""
    asyncio.run(_ask(app))


async def _ask(app: FastAPI) -> None:
    """Something that is not there."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/nothing/at/all",
        "headers": [],
        "query_string": b"",
        "state": {"request_id": ""},
    }

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None: ...

    await app(scope, receive, send)


def share_errors(document: dict[str, Any]) -> None:
    """Write each error once, and name it everywhere else."""
    shared: dict[str, Any] = {}
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/json", {})
                if content.get("schema", {}).get("$ref", "").endswith("/Errors"):
                    shared[status] = response
                    operation["responses"][status] = {"$ref": f"#/components/responses/{status}"}
    document.setdefault("components", {})["responses"] = shared


def named(route: APIRoute) -> str:
    """Its function's name is what generated clients call it."""
    return route.name
