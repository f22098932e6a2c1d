"""State in this process: counters, the keys and organisations of gateway.yaml, the last records.

Named in gateway.yaml by ``kind: memory``, and what a file without ``stores:`` gets. Nothing of it
outlives the process; what the file says is there again after a start.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import inf
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Tag,
    WithJsonSchema,
    model_validator,
)

from passy_plugins.stores.buckets import SECOND, Buckets
from passy_plugins.stores.levels import (
    BudgetSettings,
    LevelSettings,
    Tags,
    budgets_of,
)
from passy_plugins.stores.shared_purses import purses_of
from passy_proxy import keys
from passy_proxy.addresses import NetworkSetting
from passy_proxy.config.settings import Secret, Settings, setting
from passy_proxy.evidence import Proof
from passy_proxy.hookspecs import hookimpl
from passy_proxy.records import (
    ECHO_ONLY,
    Credential,
    CustomProvider,
    Level,
    Limits,
    Principal,
    UsageRecord,
    UsageRow,
)
from passy_proxy.site import Site
from passy_proxy.stores import Hook, Store
from passy_proxy.units import RateSetting

SHORTEST_KEY = 16
SUBJECTS = {"organisation": "organisation", "team": "team", "user": "user_id", "key": "key_id"}
"""Kind of who spends → where its id is in a record."""


def _key(value: Secret) -> Secret:
    if len(value.reveal()) < SHORTEST_KEY:
        raise ValueError(f"a key of fewer than {SHORTEST_KEY} characters can be guessed")
    return value


def _digest(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError("a digest is 64 hexadecimal digits, as `passy keys show --json` gives it")
    return value.lower()


def _moment(value: object) -> object:
    """An ISO date or time as Unix seconds; UTC where it says nothing else."""
    if not isinstance(value, str):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("no date; write 2030-12-31 or 2030-12-31T18:00:00+01:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


Moment = Annotated[
    float, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})
]


class KeySettings(Settings):
    key: Annotated[Secret, AfterValidator(_key)] | None = setting(
        None, 'The key itself, from a variable: "${MY_KEY}".'
    )
    digest: Annotated[str, AfterValidator(_digest)] | None = setting(
        None, "In place of the key: its HMAC-SHA-256 under this installation's secret key."
    )
    id: str = setting("", "How the books call the key; made from its digest when not given.")
    name: str = setting("", "Whose it is or what it is for.")
    organisation: str | None = setting(None, "The organisation it belongs to.")
    team: str | None = setting(None, "The team of that organisation that it belongs to.")
    user: str | None = setting(None, "Whose it is, for the limits of users and for the books.")
    tags: Tags = setting((), "Words that its records in the books carry.")
    requests: RateSetting | None = setting(None, "Requests, such as 60/min.")
    tokens: RateSetting | None = setting(None, "Tokens in and out, such as 100k/min.")
    concurrency: int | None = setting(None, "Requests at the same time.", ge=1)
    models: tuple[str, ...] | None = setting(
        None, "The models it may ask for, exact or with *; all when not given."
    )
    budgets: tuple[BudgetSettings, ...] = setting((), "How much it may spend.")
    networks: tuple[NetworkSetting, ...] | None = setting(
        None, "Address ranges it may be used from, such as 10.0.0.0/8; any when not given."
    )
    upstreams: tuple[str, ...] | None = setting(
        None, "The only upstreams it may reach, exact or with *; all when not given."
    )
    test: bool = setting(False, "A test key: it reaches the upstream echo alone, or 'upstreams'.")
    trial: bool = setting(False, "A trial key.")
    expires: Moment | None = setting(None, "When it ends: a date or time, UTC.")
    disabled: bool = setting(False, "Refuse it.")

    @model_validator(mode="after")
    def _either(self) -> KeySettings:
        if (self.key is None) == (self.digest is None):
            raise ValueError("give either 'key' or 'digest'")
        return self


class CredentialSettings(Settings):
    key: Secret = setting(..., 'The key itself, from a variable: "${THEIR_KEY}".')
    name: str = setting("", "What people call it.")
    status: Literal["active", "disabled"] = setting("active", "Whether it is shown.")
    priority: int = setting(0, "Of several, the lowest is shown first.")


def _shape(written: object) -> str:
    return "list" if isinstance(written, list | tuple) else "text"


Credentials = Annotated[
    Annotated[Secret, Tag("text")] | Annotated[tuple[CredentialSettings, ...], Tag("list")],
    Discriminator(_shape),
]
"""One key, or a list of them: the complaint is about the one that was written."""


class ProviderSettings(Settings):
    id: str = setting(..., "How it is called in the books: custom-<id>.", min_length=1)
    name: str = setting("", "What people call it.")
    dialect: str = setting("openai", "The dialect it speaks.")
    url: str = setting(..., "Its base URL.", min_length=1)
    models: tuple[str, ...] = setting(("*",), "The models it serves; * is any.")
    credential: Credentials | None = setting(
        None, "The organisation's key for it, or a list of them."
    )
    status: Literal["active", "disabled"] = setting("active", "Whether it is asked.")
    priority: int = setting(0, "Of several that serve a model, the lowest is asked first.")


class OrganisationSettings(LevelSettings):
    teams: dict[str, LevelSettings] = setting({}, "Team → what is held beside the rest.")
    credentials: dict[str, Credentials] = setting(
        {},
        "Upstream → the organisation's own key for it, or a list of them, used in place of the "
        "operator's.",
    )
    providers: tuple[ProviderSettings, ...] = setting((), "The organisation's own upstreams.")
    byok: Literal["own_first", "own_only"] = setting(
        "own_first",
        "Whether the operator's keys serve it where it has none of its own, or its own alone do.",
    )


class MemorySettings(Settings):
    keys: tuple[KeySettings, ...] = setting((), "Client keys.")
    organisations: dict[str, OrganisationSettings] = setting(
        {}, "Name → what it may use, and what it brings itself."
    )
    users: dict[str, LevelSettings] = setting({}, "User → what is held beside the rest.")
    keep: int = setting(1_000, "How many of the last usage records to hold.", ge=0)

    @model_validator(mode="after")
    def _known(self) -> MemorySettings:
        for key in self.keys:
            organisation = self.organisations.get(key.organisation or "")
            if key.team is not None and (
                organisation is None or key.team not in organisation.teams
            ):
                name = key.name or key.id or "of a key"
                raise ValueError(f"the team {key.team!r} ({name}) is none of its organisation's")
        return self


class Memory(Buckets, Store):
    """Counters, Directory, Vault, Ledger and Books of one process."""

    kind = "memory"
    Settings = MemorySettings
    takes_any_key = True
    """Keys of the file may be of any make, so each is looked up, made by us or not."""

    def __init__(
        self, settings: MemorySettings, site: Site, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        super().__init__(clock, purses_of(site))
        self._keyring = site.keyring
        pepper = site.keyring.pepper if settings.keys else b""
        self._principals = dict(_principal(each, settings, pepper) for each in settings.keys)
        self._providers: dict[str, list[CustomProvider]] = {}
        self._credentials: dict[str, list[Credential]] = {}
        for name, organisation in settings.organisations.items():
            self._add(name, organisation)
        self._records: OrderedDict[str, UsageRow] = OrderedDict()
        self.proofs: dict[str, Proof] = {}
        """By the ids of the records that have one. Nobody could edit them but this process."""
        self._keep = settings.keep
        self._alerts: dict[tuple[str, str, int], float] = {}
        """What was told: since when, or for good."""

    def _add(self, name: str, settings: OrganisationSettings) -> None:
        listed = sorted(settings.providers, key=lambda each: each.priority)
        self._providers[name] = [_provider(name, each) for each in listed]
        own = {each.id: each.credential for each in listed if each.credential}
        self._credentials[name] = [
            credential
            for upstream, written in (settings.credentials | own).items()
            for credential in _credentials(name, upstream, written)
        ]

    async def principal(self, digest: bytes) -> Principal | None:
        return self._principals.get(digest)

    async def passing_key(self, name: str, seconds: float) -> str:
        """A test key of this process that ends by itself."""
        key, ends = keys.new_key(), time.time() + seconds
        digest = keys.digest(self._keyring.pepper, key.encode())
        self._principals[digest] = Principal(
            f"key_{digest.hex()[:16]}", name, expires=ends, is_test=True, upstreams=ECHO_ONLY
        )
        return key

    async def providers(self, organisation: str) -> Sequence[CustomProvider]:
        return self._providers.get(organisation, ())

    async def credentials(self, organisation: str) -> Sequence[Credential]:
        return self._credentials.get(organisation, ())

    full = False

    def begin(self, id: str, note: bytes) -> None:
        """Nothing of it would be left after the process."""

    def record(self, row: UsageRow, proof: Proof | None = None) -> bool:
        """Kept until as many others have come."""
        records, id = self._records, row[0]
        if proof is not None and id not in records:
            self.proofs[id] = proof
        records.setdefault(id, row)
        if len(records) > self._keep:
            oldest, _ = records.popitem(last=False)
            self.proofs.pop(oldest, None)
        return True

    def price(self, id: str, nanos: int, price: str) -> None:
        """Entered in the record, if it is still there."""
        if (row := self._records.get(id)) is not None:
            known = UsageRecord.of(row)._replace(cost_nanos=nanos, price=price)
            self._records[id] = known.row()

    async def spent(self, kind: str, subject: str, unit: str, start: float, end: float) -> int:
        """Of the records that are still there."""
        column = SUBJECTS[kind]
        found = [
            record
            for record in self.records
            if start <= record.at < end and getattr(record, column) == subject
        ]
        if unit == "usd":
            return sum(record.cost_nanos or 0 for record in found)
        return sum(record.input + record.output for record in found)

    async def raise_alert(self, budget: str, window: str, percent: int, patience: float) -> bool:
        """Of this process."""
        alert, now = (budget, window, percent), self._clock() / SECOND
        if self._alerts.get(alert, -inf) + patience > now:
            return False
        self._alerts[alert] = now
        return True

    async def alerted(self, budget: str, window: str, percent: int) -> None:
        self._alerts[budget, window, percent] = inf

    async def hooks(self, organisation: str | None, event: str) -> Sequence[Hook]:
        """None: the filter that tells has them in its own settings."""
        return ()

    @property
    def records(self) -> list[UsageRecord]:
        """The last usage records, oldest first."""
        return [UsageRecord.of(row) for row in self._records.values()]


def _principal(
    settings: KeySettings, others: MemorySettings, pepper: bytes
) -> tuple[bytes, Principal]:
    """The digest and whose it is."""
    if settings.key is not None:
        digest = keys.digest(pepper, settings.key.reveal().encode())
    else:
        digest = bytes.fromhex(settings.digest or "")
    key_id = settings.id or f"key_{digest.hex()[:16]}"
    organisation = others.organisations.get(settings.organisation or "")
    team = organisation and organisation.teams.get(settings.team or "")
    user = others.users.get(settings.user or "")
    held = [level for level in (organisation, team, user) if level is not None]
    above = [
        organisation and organisation.level("organisation", settings.organisation or ""),
        team and team.level("team", settings.team or ""),
        user and user.level("user", settings.user or ""),
    ]
    upstreams = settings.upstreams
    if upstreams is None and settings.test:
        upstreams = ECHO_ONLY
    return digest, Principal(
        key_id=key_id,
        name=settings.name,
        organisation=settings.organisation,
        limits=Limits(settings.requests, settings.tokens, settings.concurrency),
        models=settings.models,
        expires=settings.expires,
        disabled=settings.disabled or any(level.disabled for level in held),
        is_test=settings.test,
        is_trial=settings.trial,
        team=settings.team,
        user=settings.user,
        tags=",".join(settings.tags),
        budgets=budgets_of(settings.budgets, f"key:{key_id}"),
        above=tuple([one for one in above if one and one != Level(one.kind, one.id)]),
        networks=settings.networks,
        upstreams=upstreams,
        byok=organisation.byok if organisation is not None else "own_first",
    )


def _credentials(
    organisation: str, upstream: str, written: Secret | tuple[CredentialSettings, ...]
) -> list[Credential]:
    """Those that are active, in order. Where there are several, their places tell them apart."""
    if isinstance(written, Secret):
        return [Credential(written.reveal(), organisation, upstream, upstream)]
    numbered = enumerate(written, 1)
    listed = sorted(numbered, key=lambda each: each[1].priority)
    return [
        Credential(one.key.reveal(), organisation, f"{upstream}/{number}", upstream)
        for number, one in listed
        if one.status == "active"
    ]


def _provider(organisation: str, settings: ProviderSettings) -> CustomProvider:
    return CustomProvider(
        id=settings.id,
        organisation=organisation,
        name=settings.name or settings.id,
        dialect=settings.dialect,
        url=settings.url,
        models=settings.models,
        active=settings.status == "active",
        priority=settings.priority,
    )


@hookimpl
def passy_stores() -> dict[str, type[Store]]:
    return {Memory.kind: Memory}
