"""The chain of evidence: each row of the books is entered in it, in the transaction that writes the
row.

An entry holds the digest of the row as the database has it, the proof of the exchange, and a link:
an HMAC, with a key derived from the secret key, of the link before and of all that the entry says.
So entries cannot be edited, moved, removed or put in by anybody who has not that key. Where the
chain ends is in ``marks``, under the same key: what is cut off is missed.

It begins with the first record that has a proof. From then on every row gets an entry, those too
that have no proof: of exchanges under way when a process was killed, of gateways without
``evidence``. A row without an entry is one that nobody here has written.

The chain goes on where its mark says that it ends, and not where the table does: else whoever cuts
it would be forgiven at the next write. Where the mark is not ours, nothing is added to that chain
any more and another one begins, so that what was done to the first one stays to be seen. What looks
at all this is in ``verify.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import chain
from json import JSONEncoder
from typing import Any, NamedTuple

from passy_plugins.stores.sql import statements, sums
from passy_plugins.stores.sql.blocking import Connection
from passy_proxy.json import loads
from passy_proxy.keyring import Keyring, KeyringError

MARK = "evidence:"
"""Before the number of a chain: the name of the mark of its end."""

PROVED, BARE, PRICED = "proved", "bare", "priced"
"""Kinds of entries: a row and its proof, a row alone, and a row whose price became known."""

NO_PROOF = ("", "", ())

_ENCODER = JSONEncoder(separators=(",", ":"), default=lambda blob: {"blob": blob.hex()})
"""One text for the same values for ever, whatever is installed; also for bytes that are no text."""


def tolerant(text: bytes) -> str:
    """A text of the database, also one that somebody has made none."""
    return text.decode("utf-8", "surrogateescape")


def canonical(values: Sequence[Any]) -> bytes:
    """What digests and links are made of."""
    return _ENCODER.encode(values).encode()


def digest(row: Sequence[Any]) -> str:
    """Of a row of ``usage``, as the database has it."""
    return sha256(canonical(row)).hexdigest()


class Head(NamedTuple):
    """Where a chain ends, and what was there before it."""

    seq: int
    link: str
    before: int
    """Rows without an entry when the chain began."""
    since: int
    """Unix milliseconds: none of those rows is of that moment, or later."""


def head_text(head: Head, chain: int, keyring: Keyring) -> str:
    """A mark's value."""
    return canonical([*head, keyring.attest(canonical(["head", chain, *head]))]).decode()


def head_of(text: Any, chain: int, keyring: Keyring) -> Head | None:
    """What a mark says; ``None`` when it is not ours. `KeyringError` when its key is not."""
    try:
        seq, link, before, since, made = loads(text)
        head = Head(seq, link, before, since)
        ours = keyring.attested(canonical(["head", chain, *head]), made)
    except KeyringError:
        raise
    except (ValueError, TypeError, AttributeError):
        return None
    return head if ours and canonical([*head, made]).decode() == text else None


class Chain:
    """The end of a chain, for one transaction."""

    def __init__(self, connection: Connection, keyring: Keyring, number: int, head: Head) -> None:
        self._connection = connection
        self._keyring = keyring
        self._number = number
        self._head = head
        self._entries: list[tuple[Any, ...]] = []
        """Not written yet."""

    @classmethod
    def last(cls, connection: Connection, keyring: Keyring) -> Chain | None:
        """The one that goes on; ``None`` where there is no evidence at all."""
        last, text = 0, None
        for name, value in connection.execute(statements.HEADS):
            number = number_of(name)
            if number > last:
                last, text = number, value
        if text is not None:
            try:
                head = head_of(text, last, keyring)
            except KeyringError:
                head = None
            if head is not None:
                return cls(connection, keyring, last, head)
        ((entered,),) = connection.execute(statements.LAST_CHAIN)
        if isinstance(entered, int):
            last = max(last, entered)
        return cls.begun(connection, keyring, last + 1) if last else None

    @classmethod
    def begun(cls, connection: Connection, keyring: Keyring, number: int = 1) -> Chain:
        """A new one."""
        ((before, latest),) = connection.execute(statements.WITHOUT_EVIDENCE)
        since = latest + 1 if isinstance(latest, int) else 0
        return cls(connection, keyring, number, Head(0, "", before, since))

    def enter(self, kind: str, row: Sequence[Any], proof: Sequence[Any] = NO_PROOF) -> None:
        """``row`` as the database has it, and its proof."""
        head = self._head
        upstream, client, modified_by = proof
        changed = canonical(modified_by).decode()
        entry = (head.seq + 1, row[0], kind, digest(row), upstream, client, changed)
        link = self._keyring.attest(canonical([head.link, self._number, *entry]))
        self._entries.append((self._number, *entry, link))
        self._head = head._replace(seq=head.seq + 1, link=link)

    def enter_all(self, rows: Sequence[Sequence[Any]], proofs: Mapping[Any, Sequence[Any]]) -> None:
        """`enter` rows, with what proves them by their ids."""
        for row in rows:
            proof = proofs.get(row[0])
            if proof is None:
                self.enter(BARE, row)
            else:
                self.enter(PROVED, row, proof)

    def price(self, id: str, work: Sequence[Any]) -> None:
        """Change the price in a row, and enter what it is now; unless somebody has edited it
        before: that is not to be made good."""
        self._write()
        execute = self._connection.execute
        row = execute(statements.ROW, (id,)).fetchone()
        last = execute(statements.LAST_ENTRY, (id,)).fetchone()
        if priced(self._connection, work) and last == (digest(row),):
            self.enter(PRICED, execute(statements.ROW, (id,)).fetchone())

    def drop(self, bare: int) -> None:
        """So many of the records that had no entry when the chain began are gone by our hand."""
        self._head = self._head._replace(before=max(0, self._head.before - bare))

    def close(self) -> None:
        """Write what was entered, and the mark of the end."""
        self._write()
        name = f"{MARK}{self._number}"
        value = head_text(self._head, self._number, self._keyring)
        self._connection.execute(statements.MOVE_MARK, (name, value))

    def _write(self) -> None:
        entries, start = self._entries, 0
        for size in statements.ROWS_AT_ONCE:
            while len(entries) - start >= size:
                values = list(chain.from_iterable(entries[start : start + size]))
                self._connection.execute(statements.enter(size), values)
                start += size
        entries.clear()


def priced(connection: Connection, work: Sequence[Any]) -> bool:
    """Enter nanos and price in the row of an id and in the sums; whether they were not known."""
    if connection.execute(statements.PRICE, work).fetchone() is None:
        return False
    sums.enter(connection, "usage WHERE id = ? AND summed = 1", work[-1:], priced=True)
    return True


def number_of(name: Any) -> int:
    """Of the chain that a mark belongs to; 0 for none."""
    text = str(name).removeprefix(MARK)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
