"""(being written)"""
from __future__ import annotations
import re
from typing import Annotated, Any, NamedTuple
from pydantic import BeforeValidator, WithJsonSchema

class Rate(NamedTuple):
    amount: int
    seconds: float

_U = {"ms": .001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_P = {"s": 1, "sec": 1, "min": 60, "h": 3600, "hour": 3600, "day": 86400, "d": 86400}
def parse_duration(v: Any) -> float:
    if isinstance(v, (int, float)): return float(v)
    m = re.fullmatch(r"([0-9.]+)(ms|s|m|h|d)", str(v))
    if not m: raise ValueError("a duration looks like 30s")
    return float(m[1]) * _U[m[2]]
def parse_count(v: Any) -> int:
    m = re.fullmatch(r"([0-9.]+)([kM]?)", str(v))
    if not m: raise ValueError("a count looks like 100k")
    return int(float(m[1]) * {"": 1, "k": 1000, "M": 1000000}[m[2]])
def parse_size(v: Any) -> int:
    m = re.fullmatch(r"([0-9.]+)(KiB|MiB|GiB|KB|MB|GB|)", str(v))
    if not m: raise ValueError("a size looks like 10MiB")
    return int(float(m[1]) * {"": 1, "KiB": 1024, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 1000, "MB": 10**6, "GB": 10**9}[m[2]])
def rate(v: Any) -> Rate:
    if isinstance(v, Rate): return v
    a, _, p = str(v).partition("/")
    if p not in _P: raise ValueError("a rate looks like 60/min")
    return Rate(parse_count(a), _P[p])
def duration(s: float) -> str:
    if s < 1: return f"{round(s*1000)}ms"
    m, x = divmod(s, 60)
    return f"{int(m)}m{x:g}s" if m else f"{x:g}s"
def size(n: int) -> str:
    return f"{n // (1<<20)}MiB" if n % (1 << 20) == 0 else f"{n} bytes"
Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Count = Annotated[int, BeforeValidator(parse_count)]
RateSetting = Annotated[Rate, BeforeValidator(rate), WithJsonSchema({"type": "string"})]
