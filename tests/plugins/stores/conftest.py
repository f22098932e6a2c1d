"""What the stores' tests have in common: patience."""

from __future__ import annotations

import pytest

from passy_plugins.stores.sql import database, postgres
from passy_plugins.stores.sql.ledger import Shipper

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that gets no turn for a while is not away, and what it is told is not left for the
    next start."""
    monkeypatch.setattr(database, "BUSY_SECONDS", PATIENCE)
    for each in ("CONNECT_SECONDS", "ANSWER_SECONDS", "WRITE_SECONDS"):
        monkeypatch.setattr(postgres, each, PATIENCE)
    monkeypatch.setattr(Shipper.stop, "__defaults__", (PATIENCE,))
