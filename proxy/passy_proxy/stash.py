"""Typed private state of filters on an exchange.

A `StashKey[T]` is identity, type and namespace in one: only who holds the key object can reach
the value, and a type checker knows what comes out.

    GRANT = StashKey[Grant]("rate_limit.grant")

    ex.stash[GRANT] = grant           # a Grant or a type error
    ex.stash.get(GRANT)               # Grant | None
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

T = TypeVar("T")
D = TypeVar("D")


class StashKey(Generic[T]):
    """One place in every stash. `name` is for people: two keys of one name are two places."""

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"StashKey({self.name!r})"


class Stash(dict[StashKey[Any], Any]):
    """The private state of one exchange: a plain dict at run time, typed per key for a checker.

    Its repr tells the keys alone, for a value may hold what no log should.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Stash({', '.join(key.name for key in self)})"

    if TYPE_CHECKING:  # dict's own methods do the work; these are their types

        def __getitem__(self, key: StashKey[T]) -> T: ...
        def __setitem__(self, key: StashKey[T], value: T) -> None: ...
        @overload  # type: ignore[override]  # narrower than dict, on purpose
        def get(self, key: StashKey[T]) -> T | None: ...
        @overload
        def get(self, key: StashKey[T], default: D) -> T | D: ...
        def get(self, key: StashKey[Any], default: object = None) -> object: ...
        @overload
        def pop(self, key: StashKey[T]) -> T: ...
        @overload
        def pop(self, key: StashKey[T], default: D) -> T | D: ...
        def pop(self, key: StashKey[Any], default: object = None) -> object: ...
        def setdefault(  # type: ignore[override]  # narrower than dict, on purpose
            self, key: StashKey[T], default: T
        ) -> T: ...
