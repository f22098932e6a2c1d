"""The table of models: what clients may ask for, and the targets behind each name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from passy_proxy.records import Principal, Switch
from passy_proxy.transport import Timeouts
from passy_proxy.upstream import Target, Upstream


@dataclass(frozen=True, slots=True)
class Choice:
    """One target of an alias, before the asked name is filled in."""

    upstream: Upstream
    model: str
    """May be ``*``: the name as it was asked for."""
    priority: int = 0
    weight: float = 1.0
    timeouts: Timeouts | None = None
    fallback_on: frozenset[str] | None = None

    @property
    def label(self) -> str:
        """As it is written: ``upstream/model``."""
        return f"{self.upstream.name}/{self.model}"

    def at(self, asked: str) -> Target:
        model = self.model.replace("*", asked) if "*" in self.model else self.model
        return Target.at(self.upstream, model, self.timeouts, self.fallback_on)


class Model:
    """An alias: its targets in tiers of equal priority, lowest first."""

    __slots__ = ("disabled", "missing", "name", "origin", "targets", "tiers", "weighted")

    def __init__(
        self, name: str, choices: Sequence[Choice], missing: Sequence[str] = (), origin: str = ""
    ) -> None:
        self.name = name
        self.missing = tuple(missing)
        """Upstreams it names that are left out for want of a credential."""
        self.origin = origin
        self.disabled: tuple[str, ...] = ()
        """Labels of targets that were switched off."""
        tiers: dict[int, list[Choice]] = {}
        for choice in choices:
            tiers.setdefault(choice.priority, []).append(choice)
        self.tiers = tuple(tuple(tiers[priority]) for priority in sorted(tiers))
        self.weighted = any(
            len(tier) > 1 and any(choice.weight != 1.0 for choice in tier) for tier in self.tiers
        )
        self.targets = self.at(name) if "*" not in name else ()

    def at(self, asked: str) -> tuple[Target, ...]:
        """Its targets for the name asked, in the order written inside each priority."""
        return tuple(choice.at(asked) for tier in self.tiers for choice in tier)

    @property
    def choices(self) -> list[Choice]:
        """All its targets, best first."""
        return [choice for tier in self.tiers for choice in tier]

    def switched(self, states: Mapping[str, str]) -> Model:
        """The same with what people decided of its targets, by label: a ``pinned`` one is asked
        before all others, and one that is ``disabled`` never."""
        choices = self.choices
        if states.keys().isdisjoint(choice.label for choice in choices):
            return self
        first = choices[0].priority - 1
        kept = [
            replace(choice, priority=first) if states.get(choice.label) == "pinned" else choice
            for choice in choices
            if states.get(choice.label) != "disabled"
        ]
        made = Model(self.name, kept, self.missing, self.origin)
        left_out = [one.label for one in choices if states.get(one.label) == "disabled"]
        made.disabled = tuple(left_out)
        return made


class Models:
    """Aliases, and the upstreams that can be named without one."""

    def __init__(self, aliases: Iterable[Model], upstreams: Mapping[str, Upstream]) -> None:
        self.aliases = tuple(aliases)
        self._exact = {model.name: model for model in self.aliases if "*" not in model.name}
        wild = [model for model in self.aliases if "*" in model.name]
        self._wild = sorted(wild, key=lambda model: -len(model.name))
        self._upstreams = upstreams
        self.listed: dict[str, Target] = {}
        """Names that upstreams say they serve."""
        for upstream in upstreams.values():
            for name in upstream.models:
                if "*" not in name:
                    self.listed.setdefault(name, Target.at(upstream, name))

    def switched(self, switches: Iterable[Switch]) -> Models:
        """The same table with what people decided of targets."""
        states: dict[str, dict[str, str]] = {}
        for one in switches:
            states.setdefault(one.model, {})[one.target] = one.state
        if not states:
            return self
        aliases = [
            model.switched(states[model.name]) if model.name in states else model
            for model in self.aliases
        ]
        return Models(aliases, self._upstreams)

    def find(self, name: str) -> Model | None:
        """The alias for a name: exact, else the longest pattern that matches."""
        model = self._exact.get(name)
        if model is None:
            for model in self._wild:
                if fnmatchcase(name, model.name):
                    return model
            return None
        return model

    def alias(self, name: str, direct: bool = True) -> Model | None:
        """The alias that answers for a name: as `find`, but a pattern of whose targets none has a
        credential gives way to an upstream that lists the name, where that can be asked
        (``direct``)."""
        model = self.find(name)
        if model is None or model.tiers or model.disabled or "*" not in model.name:
            return model
        return None if direct and name in self.listed else model

    def targets(self, name: str) -> tuple[Target, ...]:
        """Who could answer for a name, in order."""
        model = self.alias(name)
        return model.at(name) if model is not None else self.direct(name) or ()

    def direct(self, name: str) -> tuple[Target, ...] | None:
        """A target without an alias: ``upstream/model``, or a name that an upstream lists."""
        if (listed := self.listed.get(name)) is not None:
            return (listed,)
        head, slash, model = name.partition("/")
        upstream = self._upstreams.get(head)
        if slash and model and upstream is not None and serves(upstream.models, model):
            return (Target.at(upstream, model),)
        if upstream is None:
            upstream = self._upstreams.get(name.partition(":")[0])
            if upstream is None or upstream.dialect is not None:
                return None
        elif upstream.dialect is not None:
            return None
        # An in-process upstream answers to its own name, and to its variants (``echo:slow``).
        return (Target.at(upstream, name),)

    def served(self) -> Iterator[Target]:
        """All targets that there are before anybody asks for a name."""
        for model in self.aliases:
            yield from model.targets
        for name in self.names():
            yield from self.direct(name) or ()

    def missing(self, name: str) -> tuple[str, ...]:
        """Upstreams that the alias ``name`` would need and that have no credential."""
        model = self.find(name)
        return model.missing if model is not None else ()

    def names(self) -> list[str]:
        """All names a client can ask for: usable aliases, in-process upstreams, listed models."""
        names = [model.name for model in self.aliases if model.tiers and "*" not in model.name]
        names += [u.name for u in self._upstreams.values() if u.dialect is None]
        names += self.listed
        return list(dict.fromkeys(names))

    def owner(self, name: str) -> str:
        """Who answers first for a name, for model lists."""
        targets = self.targets(name)
        return targets[0].upstream.name if targets else "passy"


def may_use(principal: Principal, model: str) -> bool:
    """Whether the key and all that stands above it allow ``model``."""
    if principal.models is not None and not serves(principal.models, model):
        return False
    return all(level.models is None or serves(level.models, model) for level in principal.above)


def may_reach(principal: Principal, upstream: Upstream) -> bool:
    return principal.upstreams is None or serves(principal.upstreams, upstream.name)


def serves(patterns: Sequence[str], model: str) -> bool:
    """Whether a list of names and patterns (``*``) covers ``model``."""
    return model in patterns or any(fnmatchcase(model, p) for p in patterns if "*" in p)
