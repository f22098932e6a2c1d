"""A look through the books for what was done to them. See ``evidence.py``, and ``compared.py`` for
their sums.

One read transaction sees them as they are at one moment, whoever writes meanwhile. Nothing that
stands in the tables is believed to be of its type.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

from passy_plugins.stores.sql import statements
from passy_plugins.stores.sql.blocking import Connection
from passy_plugins.stores.sql.compared import compare
from passy_plugins.stores.sql.evidence import (
    PROVED,
    Head,
    canonical,
    digest,
    head_of,
    number_of,
    tolerant,
)
from passy_plugins.stores.sql.retention import Gap, Total, gaps_of, total_of
from passy_proxy.evidence import Verdict
from passy_proxy.keyring import Keyring, KeyringError
from passy_proxy.records import UsageRecord

Tell = Callable[[int, int], None]
"""Is told every so often how many rows were looked at, and how many there are."""

COLUMNS = len(UsageRecord._fields)
AT = UsageRecord._fields.index("at")
TELL_EVERY = 1_000
NO_HEAD = Head(0, "", 0, 0)
NOTHING = Total(0, 0)


def verify(path: Path, keyring: Keyring, tell: Tell | None = None, noted: str = "") -> Verdict:
    """What is to be said of the books in ``path``. ``noted`` is the `Verdict.head` of an earlier
    look, which must still be there. Raises sqlite3.Error."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        return verify_within(connection, keyring, tell, noted)


def verify_within(
    connection: Connection, keyring: Keyring, tell: Tell | None = None, noted: str = ""
) -> Verdict:
    """`verify`, within somebody's own transaction."""
    if isinstance(connection, sqlite3.Connection):
        connection.text_factory = tolerant
    return _Look(connection, keyring, tell).through(noted)


class _Look:
    def __init__(self, connection: Connection, keyring: Keyring, tell: Tell | None) -> None:
        self._connection = connection
        self._keyring = keyring
        self._tell = tell
        self._seen = self._size = 0
        self._verdict = Verdict()
        self._unknown: set[str] = set()
        self._gaps: dict[tuple[int, int], Gap] = {}

    def through(self, noted: str) -> Verdict:
        verdict = self._verdict
        ((self._size,),) = self._connection.execute(statements.SIZE)
        heads = self._heads()
        self._gaps, strange = gaps_of(self._connection, self._keyring)
        total = total_of(self._connection, self._keyring)
        if strange or total is None:
            why = "what is said to have been dropped for its age is not ours"
            verdict.found("edited", "", 0, 0, why)
        verdict.dropped, verdict.dropped_before = total or NOTHING
        ends = self._chains()
        previous = 0
        for number in sorted({*heads, *ends}):
            if number > previous + 1:
                why = f"the chains before {number} are gone"
                verdict.found("removed", "", previous + 1, 0, why)
            self._end(number, heads.get(number), self._over(number, *ends.get(number, (0, ""))))
            previous = number
        whole = [number for number, head in heads.items() if head is not None]
        last = heads[max(whole)] if whole else None
        unknown = last is None and any(each.kind == "unknown" for each in verdict.findings)
        self._rows(last or NO_HEAD, bool(heads or ends) and not unknown)
        for chain, seq, id in self._connection.execute(statements.ROWLESS):
            verdict.found("removed", id, *_place(chain, seq), "its record is gone")
        if last is not None:
            verdict.head = f"{max(whole)}:{last.seq}:{last.link}"
        if noted and not self._still(noted):
            verdict.found("removed", "", 0, 0, f"what was noted earlier is gone: {noted}")
        compare(self._connection, verdict)
        return verdict

    def _heads(self) -> dict[int, Head | None]:
        """The marks of the chains' ends; ``None`` where one is not ours."""
        heads: dict[int, Head | None] = {}
        for name, text in self._connection.execute(statements.HEADS):
            number = number_of(name)
            if not number:
                self._verdict.found("added", "", 0, 0, f"a mark {name!r} of no chain")
                continue
            heads[number] = None
            try:
                heads[number] = head_of(text, number, self._keyring)
            except KeyringError as error:
                self._verdict.found("unknown", "", number, 0, f"the mark of its end is {error}")
            else:
                if heads[number] is None:
                    self._verdict.found("edited", "", number, 0, "the mark of its end is not ours")
        return heads

    def _chains(self) -> dict[int, tuple[int, str]]:
        """Looks at each entry; where each chain ends."""
        ends: dict[int, tuple[int, str]] = {}
        for chain, seq, id, *said, link in self._counted(statements.ENTRIES):
            self._verdict.entries += 1
            if not isinstance(chain, int) or not isinstance(seq, int) or chain < 1 or seq < 1:
                self._verdict.found("added", id, *_place(chain, seq), "an entry of no chain")
                continue
            last, before = self._over(chain, *ends.get(chain, (0, "")))
            if seq != last + 1:
                why = f"entries {last + 1} to {seq - 1} are gone"
                self._verdict.found("removed", "", chain, last + 1, why)
            elif not self._linked([before, chain, seq, id, *said], link, chain):
                why = "the entry is not what it was, or not where it was"
                self._verdict.found("edited", id, chain, seq, why)
            ends[chain] = (seq, link)
        return ends

    def _over(self, chain: int, last: int, link: str) -> tuple[int, str]:
        """Where a chain goes on behind ``last``, when what followed was dropped for its age."""
        gap = self._gaps.get((chain, last + 1))
        return (last, link) if gap is None else (gap.last, gap.link)

    def _linked(self, entry: list[Any], link: Any, chain: int) -> bool:
        try:
            return isinstance(link, str) and self._keyring.attested(canonical(entry), link)
        except KeyringError as error:
            # Said once: a key that was dropped has sealed many.
            if str(error) not in self._unknown:
                self._unknown.add(str(error))
                self._verdict.found("unknown", entry[3], chain, entry[2], str(error))
            return True

    def _end(self, number: int, head: Head | None, end: tuple[int, str]) -> None:
        """Whether a chain ends where its mark says."""
        found, (seq, link) = self._verdict.found, end
        if head is None:
            if not any(each.chain == number and not each.seq for each in self._verdict.findings):
                found("removed", "", number, 0, "the mark of its end is gone")
        elif head.seq > seq:
            why = f"entries {seq + 1} to {head.seq} are gone"
            found("removed", "", number, seq + 1, why)
        elif head.seq < seq:
            why = f"its mark says that it ends at {head.seq}"
            found("added", "", number, head.seq + 1, why)
        elif head.link != link:
            found("edited", "", number, seq, "its last entry is not what it was")

    def _rows(self, head: Head, begun: bool) -> None:
        """Each row of the books against its last entry."""
        verdict = self._verdict
        for row, joined in groupby(self._counted(statements.ROWS), lambda each: each[:COLUMNS]):
            entries = [each[COLUMNS:] for each in joined]
            known = [each for each in entries if type(each[0]) is type(each[1]) is int]
            if not known:
                if begun and not (isinstance(row[AT], int) and row[AT] < head.since):
                    verdict.found("added", row[0], 0, 0, "a record that was never entered")
                else:
                    verdict.before += 1
                continue
            chain, seq, _, record = max(known, key=lambda each: each[:2])
            if record != digest(row):
                verdict.found("edited", row[0], chain, seq, "the record is not what it was")
            elif any(kind == PROVED for _, _, kind, _ in known):
                verdict.proved += 1
            else:
                verdict.bare += 1
        if begun and verdict.before != head.before:
            more = verdict.before - head.before
            why = (
                f"{abs(more)} records from before the evidence are {'new' if more > 0 else 'gone'}"
            )
            verdict.found("added" if more > 0 else "removed", "", 0, 0, why)

    def _counted(self, statement: str) -> Iterator[Any]:
        for row in self._connection.execute(statement):
            self._seen += 1
            if self._tell is not None and not self._seen % TELL_EVERY:
                self._tell(self._seen, max(self._size, self._seen))
            yield row

    def _still(self, noted: str) -> bool:
        chain, _, rest = noted.partition(":")
        seq, _, link = rest.partition(":")
        try:
            values = (int(chain), int(seq), link)
        except ValueError:
            return False
        if any(
            gap.chain == values[0] and gap.first <= values[1] <= gap.last
            for gap in self._gaps.values()
        ):
            return True  # Dropped for its age.
        return self._connection.execute(statements.NOTED, values).fetchone() is not None


def _place(chain: Any, seq: Any) -> tuple[int, int]:
    """As far as they are numbers."""
    return chain if isinstance(chain, int) else 0, seq if isinstance(seq, int) else 0
