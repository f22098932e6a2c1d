"""Rows as files, sent as they are read."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from fastapi.responses import StreamingResponse

from passy_proxy import json

Format = Literal["csv", "jsonl"]
KINDS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}


async def exported(
    name: str,
    format: Format,
    columns: Sequence[str],
    pages: AsyncIterator[list[dict[str, Any]]],
) -> StreamingResponse:
    """The rows as they are read. The first page is read before the answer begins, so that what
    cannot be had is an error and not the beginning of a file."""
    first = await anext(pages)

    async def pieces() -> AsyncIterator[bytes]:
        encode = csv_of if format == "csv" else jsonl_of
        if format == "csv":
            yield csv_of([dict(zip(columns, columns, strict=True))], columns)
        yield encode(first, columns)
        async for page in pages:
            yield encode(page, columns)

    return StreamingResponse(
        pieces(),
        media_type=KINDS[format],
        headers={"content-disposition": f'attachment; filename="{name}.{format}"'},
    )


def jsonl_of(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> bytes:
    return b"".join([json.dumps(row) + b"\n" for row in rows])


def csv_of(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    for row in rows:
        writer.writerow([cell(row[column]) for column in columns])
    return file.getvalue().encode(errors="replace")


def cell(value: Any) -> Any:
    """What a client has written must not be a formula where the file is opened."""
    if isinstance(value, list):
        value = " ".join(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value
