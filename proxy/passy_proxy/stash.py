"""(being written)"""
from __future__ import annotations
from typing import Any, Generic, TypeVar, overload
T = TypeVar("T")
class StashKey(Generic[T]):
    __slots__ = ("name",)
    def __init__(self, name: str) -> None:
        self.name = name
class Stash(dict[Any, Any]):
    pass
