"""Who is in the demo: people, teams, keys, and what each key is used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from passy_proxy.issue import Role
from passy_proxy.periods import Period
from passy_proxy.records import Limits
from passy_proxy.units import parse_rate

ORGANISATION = "Halcyon Robotics"
TEAMS = ("Customer support", "Platform", "Research")
CHAT, MESSAGES, EMBEDDINGS = (
    "POST /v1/chat/completions", "POST /v1/messages", "POST /v1/embeddings",
)  # fmt: skip
OWN = "gpu-rack"
"""The provider that the organisation has of its own; nobody has a price for what it serves."""
OWN_MODELS = ("halcyon-support-7b", "mixture-of-experts-instruct-preview-2026-11")
INVITED = "new.colleague@halcyon.example"


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    email: str
    role: Role


PEOPLE = (
    Person("Maya Lindqvist", "maya@halcyon.example", "owner"),
    Person("Tomás Ferreira", "tomas@halcyon.example", "admin"),
    Person("Ines Okafor", "ines@halcyon.example", "developer"),
    Person("Jonas Weber", "jonas@halcyon.example", "developer"),
    Person("Priya Ramachandran-Hohenstein", "priya.ramachandran@halcyon.example", "developer"),
    Person("Sam Whitfield", "sam@halcyon.example", "viewer"),
    Person("Lena Brandt", "lena@halcyon.example", "billing"),
)
"""Each role is there; the first of a role is who the command tells of."""

Rhythm = Literal["office", "customers", "night", "always"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request is like: tokens are medians, shares are between 0 and 1."""

    model: str
    weight: float
    input: int
    output: int = 0
    route: str = CHAT
    streamed: float = 0.0
    cached: float = 0.0
    """Share of the input, as are ``written``, into a cache, and ``heard``, as audio."""
    written: float = 0.0
    heard: float = 0.0
    reasoning: float = 0.0
    """Share of the output, as is ``spoken``, as audio."""
    spoken: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """A key, and what is done with it."""

    name: str
    person: int
    """Whose, of `PEOPLE`."""
    team: str | None
    a_day: float
    """Requests on a working day."""
    rhythm: Rhythm
    asks: Sequence[Ask]
    first_day: float = 0.0
    """From which to which share of the time it is used."""
    last_day: float = 1.0
    kind: Literal["plain", "test", "trial"] = "plain"
    state: Literal["active", "disabled", "expired", "deleted", "rolled"] = "active"
    tags: tuple[str, ...] = ()
    description: str = ""
    limits: Limits = field(default_factory=Limits)
    models: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    budget: tuple[Period, int] | None = None
    """Of the key, with how many percent of it are spent."""


WORK = (
    Work(
        "support-bot production", 1, "Customer support", 430, "customers",
        (Ask("chat", 8, 1_750, 240, streamed=0.95, cached=0.55),
         Ask("chat-mini", 4, 620, 90, streamed=0.6)),
        state="rolled", tags=("production", "support"), budget=("month", 71),
        description="Answers customers in the help centre",
        limits=Limits(parse_rate("600/min"), parse_rate("2M/min"), 40),
    ),
    Work(
        "voice assistant", 1, "Customer support", 75, "customers",
        (Ask("voice", 1, 900, 520, streamed=1.0, heard=0.78, spoken=0.72),),
        tags=("production", "voice"), budget=("month", 94), models=("voice",),
        description="The telephone line",
    ),
    Work(
        "search indexer", 0, "Platform", 310, "always",
        (Ask("embed", 1, 690, route=EMBEDDINGS),),
        tags=("production", "search"), networks=("10.20.0.0/16", "127.0.0.0/8"), models=("embed",),
    ),
    Work(
        "ticket summaries", 3, "Platform", 190, "customers",
        (Ask("llama-70b", 5, 1_400, 180), Ask("chat-mini", 1, 900, 150)),
        tags=("production",), budget=("week", 38),
    ),
    Work(
        "nightly evals", 2, "Research", 270, "night",
        (Ask("reasoning", 5, 1_150, 1_300, reasoning=0.7), Ask("chat", 2, 900, 420)),
        tags=("evals", "batch"), budget=("month", 82),
        limits=Limits(parse_rate("120/min"), None, 8),
    ),
    # Without a hard budget anywhere above: what has no price is refused under one.
    Work(
        "rack pilot", 2, "Research", 105, "office",
        (Ask(OWN_MODELS[0], 3, 1_100, 160, streamed=0.5), Ask(OWN_MODELS[1], 2, 1_300, 500)),
        first_day=0.2, tags=("pilot",), models=OWN_MODELS,
        description="How far our own hardware goes",
    ),
    Work(
        "ines · laptop", 2, "Research", 70, "office",
        (Ask("claude-sonnet", 6, 21_000, 640, route=MESSAGES, streamed=1.0, cached=0.84,
             written=0.06),
         Ask("reasoning", 1, 3_000, 2_100, reasoning=0.65)),
        tags=("claude-code",),
    ),
    Work(
        "jonas · laptop", 3, "Platform", 60, "office",
        (Ask("claude-sonnet", 1, 26_000, 720, route=MESSAGES, streamed=1.0, cached=0.86,
             written=0.05),),
        tags=("claude-code",), limits=Limits(parse_rate("20/min"), None, None),
    ),
    Work(
        "priya · notebooks", 4, "Research", 45, "office",
        (Ask("gpt-4.1", 2, 2_600, 480, streamed=0.5, cached=0.2), Ask("embed", 2, 400,
                                                                    route=EMBEDDINGS),
         Ask("gemini-pro", 0.06, 900, 0)),
    ),
    Work(
        "continuous integration", 3, "Platform", 95, "office",
        (Ask("echo", 5, 9, 9), Ask("demo", 2, 12, 12)),
        kind="test", tags=("ci",),
    ),
    Work(
        "trial: Meridian Logistics", 1, None, 28, "customers",
        (Ask("chat-mini", 4, 800, 140, streamed=0.8), Ask("chat", 1, 1_000, 200, streamed=0.8)),
        first_day=0.55, kind="trial", budget=("total", 97),
        description="Two weeks, until they decide",
    ),
    Work(
        "hackathon October", 0, "Research", 260, "office",
        (Ask("chat-mini", 3, 500, 200, streamed=0.7), Ask("gpt-4o-mini", 1, 500, 200)),
        first_day=0.30, last_day=0.39, state="expired", tags=("hackathon",),
    ),
    Work(
        "staging", 3, "Platform", 55, "office",
        (Ask("chat-mini", 1, 300, 60),),
        last_day=0.62, state="disabled", tags=("staging",),
    ),
    Work(
        "data export", 4, "Platform", 40, "night",
        (Ask("llama-70b", 1, 2_200, 90),),
        last_day=0.4, state="deleted",
    ),
)  # fmt: skip

HOURS: Mapping[Rhythm, Sequence[float]] = {
    "office": (0, 0, 0, 0, 0, 0, 1, 3, 8, 10, 10, 9, 5, 8, 10, 9, 8, 6, 3, 2, 1, 1, 0, 0),
    "customers": (2, 1, 1, 1, 1, 2, 4, 6, 8, 9, 10, 9, 8, 8, 9, 9, 8, 7, 7, 7, 6, 5, 4, 3),
    "night": (0, 8, 10, 10, 6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "always": (4, 6, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 4, 4, 4, 4),
}
"""How busy each hour of UTC is."""
WEEKEND: Mapping[Rhythm, float] = {"office": 0.06, "customers": 0.4, "night": 0.35, "always": 0.8}
"""What is left of it on Saturdays and Sundays."""
