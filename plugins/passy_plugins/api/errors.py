"""How the two applications say that something is wrong: in JSON, in one shape, with the place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from passy_plugins.api.denied import Denied
from passy_plugins.api.gate import said
from passy_proxy import StoreUnavailable
from passy_proxy.config.problem import nearest

if TYPE_CHECKING:
    from starlette.responses import Response


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    param: str = Field(description="Where: body.limits.requests, query.limit.")
    message: str


class Error(BaseModel):
    model_config = ConfigDict(title="Error")

    message: str = Field(description="For people.")
    type: str
    param: str | None = Field(description="The first thing that is wrong, if one is.")
    code: str = Field(description="For programs: stable.")
    request_id: str
    problems: list[Problem] = Field(default=[], description="All that is wrong with a request.")


class Errors(BaseModel):
    """What every error looks like."""

    error: Error


WORDS = {
    400: "The request cannot be read.",
    401: "The secret is missing or wrong.",
    403: "It is not allowed.",
    404: "There is no such thing, or it is none of yours.",
    409: "It has changed meanwhile, or is in use.",
    412: "It has changed since it was read; see `If-Match`.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "Something in the request does not fit; `param` says what.",
    429: "A test is running already.",
    503: "The database cannot be asked now.",
}


SCHEMAS = "#/components/schemas/"
"""Where an OpenAPI document has them."""


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its description. Named and not as a model: FastAPI would make all
    it takes to check an answer against it, once for each error of each route."""
    content = {"application/json": {"schema": {"$ref": f"{SCHEMAS}{Errors.__name__}"}}}
    return {status: {"description": WORDS[status], "content": content} for status in statuses}


def schemas() -> dict[str, Any]:
    """What those names mean: name → its JSON Schema."""
    schema = Errors.model_json_schema(ref_template=SCHEMAS + "{model}", mode="serialization")
    return {**schema.pop("$defs"), Errors.__name__: schema}


def absent(what: str) -> Denied:
    """404 for a thing that is not there, or not for who asks."""
    return Denied(404, "not_found", f"There is no such {what}.")


def suggestion(word: str, choices: Iterable[str]) -> str:
    """What ``word`` was probably meant to be, as a sentence to add to an error; else nothing."""
    meant = nearest(word, choices)
    return f" Did you mean {meant}?" if meant else ""


def told(app: FastAPI) -> None:
    """Have ``app`` say all its errors in this shape."""
    app.add_exception_handler(Denied, denied)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StoreUnavailable, unavailable)
    app.add_exception_handler(Exception, failed)


async def denied(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Denied)
    content = said(exc.code, str(exc), id_of(request), exc.param)
    if exc.problems:
        problems = [{"param": place, "message": message} for place, message in exc.problems]
        content["error"]["problems"] = problems
    return JSONResponse(content, exc.status)


_CODES = {404: "unknown_url", 405: "method_not_allowed", 400: "invalid_json"}


async def refused(request: Request, exc: Exception) -> Response:
    """What the framework has to say."""
    assert isinstance(exc, HTTPException)
    code = _CODES.get(exc.status_code, "invalid_request")
    message = str(exc.detail)
    if exc.status_code == 404:
        message = f"There is nothing at {request.method} {request.scope['path'][:200]}."
    return error(request, exc.status_code, code, message, headers=exc.headers)


async def invalid(request: Request, exc: Exception) -> Response:
    """Everything that is wrong at once, each with its place; no value is repeated, since it may be
    a secret."""
    assert isinstance(exc, RequestValidationError)
    found = exc.errors()
    if any(one["type"] == "json_invalid" for one in found):
        return error(request, 400, "invalid_json", "The body is not JSON.", "body")
    problems = [{"param": place_of(one["loc"]), "message": words_of(one)} for one in found]
    message = f"{problems[0]['param']}: {problems[0]['message']}"
    content = said("invalid_value", message, id_of(request), problems[0]["param"])
    content["error"]["problems"] = problems
    return JSONResponse(content, 422)


async def unavailable(request: Request, exc: Exception) -> Response:
    """The reason is for the log: it may name a host."""
    request.app.state.log.warning("books_unavailable", request_id=id_of(request), reason=str(exc))
    message = "The database cannot be asked now. Try again in a moment."
    return error(request, 503, "books_unavailable", message, headers={"retry-after": "1"})


async def failed(request: Request, exc: Exception) -> Response:
    request_id = id_of(request)
    return error(request, 500, "internal_error", f"Internal error; see {request_id}.")


def error(
    request: Request,
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:  # fmt: skip
    content = said(code, message, id_of(request), param)
    return JSONResponse(content, status, dict(headers or {}))


def id_of(request: Request) -> str:
    return str(request.scope["state"]["request_id"])


def place_of(location: Sequence[str | int]) -> str:
    """``body.limits.requests``, ``query.since``, ``body.models.0``."""
    return ".".join(map(str, location))


_WORDS = {"extra_forbidden": "Nothing is called that here.", "missing": "This is needed."}


def words_of(detail: Mapping[str, Any]) -> str:
    """pydantic's words, or those of a validator of ours."""
    message = _WORDS.get(detail["type"], str(detail["msg"]))
    for begin in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(begin)
    return message
