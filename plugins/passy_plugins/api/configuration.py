"""The configuration that runs, how the file differs from it, and which plugins there are. Secrets
are veiled where they are read; see `passy_proxy.config.shown`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from passy_plugins.api.errors import responses
from passy_plugins.api.words import Shown
from passy_proxy.config.problem import Problem
from passy_proxy.config.shown import Looked, changes
from passy_proxy.gateway import content_of

if TYPE_CHECKING:
    from passy_proxy.gateway import Gateway
    from passy_proxy.models import Model
    from passy_proxy.registry import Plugin
    from passy_proxy.upstream import Upstream

router = APIRouter(tags=["gateway"])


class ProblemShown(Shown):
    place: str = Field(description="file:line:column", examples=["gateway.yaml:43:34"])
    severity: Literal["error", "warning"]
    message: str
    hint: str | None
    source: str = Field(description="The line, without what may be a secret.")


class Line(Shown):
    kind: Literal["same", "removed", "added", "passed"] = Field(
        description="From what runs to what is on disk; passed: lines that are the same are left "
        "out here."
    )
    text: str


class OnDisk(Shown):
    """The file as it is now."""

    hash: str | None = Field(description="null: it cannot be read.")
    differs: bool = Field(description="Whether it is another text than the one that runs.")
    runs: bool = Field(description="Whether it could run: a reload would take it.")
    problems: list[ProblemShown]
    changes: list[Line] = Field(
        description="Empty where only comments, spaces or secrets differ, or nothing does."
    )


class Origin(Shown):
    kind: Literal["upstream", "model"]
    name: str
    written: str = Field(
        description="file:line:column, or the variable that adds it to the file.",
        examples=["gateway.yaml:19:3", "OPENAI_API_KEY:1:1"],
    )


class Running(Shown):
    """What runs in the worker that answers."""

    path: str | None = Field(description="null: given as text.")
    hash: str
    text: str = Field(description="YAML, written anew: without comments, secrets veiled.")
    origins: list[Origin] = Field(
        description="Where each upstream and each model of what runs was written."
    )
    warnings: list[ProblemShown]
    on_disk: OnDisk | None = Field(description="null: there is no file.")


class Part(Shown):
    kind: Literal["filter", "dialect", "store", "upstream", "app"]
    name: str


class Installed(Shown):
    """An entry point of the group ``passy``."""

    name: str
    distribution: str
    version: str
    loaded: bool = Field(description="A configuration of this process has named it.")
    brings: list[Part] = Field(description="Of one that is loaded.")


class Plugins(Shown):
    rows: list[Installed]


@router.get("/config", responses=responses(401))
async def config(request: Request) -> Running:
    """The configuration that runs, and what a reload would change."""
    gateway: Gateway = request.app.state.gateway()
    content = gateway.content
    running = await gateway.look(content)
    return Running(
        path=str(gateway.path) if gateway.path else None,
        hash=running.hash,
        text=running.text,
        origins=[
            *(origin("upstream", one) for one in gateway.snapshot.upstreams.values()),
            *(origin("model", one) for one in gateway.snapshot.models.aliases),
        ],
        warnings=[problem(one) for one in running.problems],
        on_disk=await on_disk(gateway, running, content) if gateway.path else None,
    )


@router.get("/plugins", responses=responses(401))
async def plugins(request: Request) -> Plugins:
    """What is installed, from where, and whether it is used."""
    registry = request.app.state.gateway().parts.registry
    return Plugins(
        rows=[
            Installed(
                **origin._asdict(),
                loaded=origin.name in registry.loaded,
                brings=brought(registry.loaded.get(origin.name)),
            )
            for origin in registry.origins()
        ]
    )


def origin(kind: Literal["upstream", "model"], one: Upstream | Model) -> Origin:
    return Origin(kind=kind, name=one.name, written=one.origin)


async def on_disk(gateway: Gateway, running: Looked, content: bytes) -> OnDisk:
    """The file, next to what runs."""
    assert gateway.path is not None
    try:
        found = await asyncio.to_thread(content_of, gateway.path)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        missing = problem(Problem(str(gateway.path), 0, 0, reason))
        return OnDisk(hash=None, differs=True, runs=False, problems=[missing], changes=[])
    if found == content:
        return OnDisk(hash=running.hash, differs=False, runs=True, problems=[], changes=[])
    there = await gateway.look(found)
    differing = changes(running.text, there.text) if there.text else ()
    return OnDisk(
        hash=there.hash,
        differs=True,
        runs=there.runs,
        problems=[problem(one) for one in there.problems],
        changes=[Line(kind=KINDS[mark], text=text) for mark, text in differing],
    )


KINDS: dict[str, Literal["same", "removed", "added", "passed"]] = {
    " ": "same",
    "-": "removed",
    "+": "added",
    "@": "passed",
}


def problem(one: Problem) -> ProblemShown:
    return ProblemShown(
        place=one.place,
        severity=one.severity,
        message=one.message,
        hint=one.hint,
        source=one.source.strip(),
    )


def brought(plugin: Plugin | None) -> list[Part]:
    if plugin is None:
        return []
    return [
        *(Part(kind="filter", name=one.name) for one in plugin.filters),
        *(Part(kind="dialect", name=one.name) for one in plugin.dialects),
        *(Part(kind="store", name=one) for one in plugin.stores),
        *(Part(kind="upstream", name=one) for one in plugin.upstreams),
        *(Part(kind="app", name=one.name) for one in plugin.apps),
    ]
