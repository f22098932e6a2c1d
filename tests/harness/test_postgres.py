"""The tests' PostgreSQL: fresh databases, and what may be done to the server."""

from __future__ import annotations

import signal
import threading

import asyncpg
import pytest

from harness.postgres import PASSWORD, PATIENCE, Database, OwnServer, Server, done


def test_each_database_is_empty_and_gone_at_the_end(postgres: Server) -> None:
    with postgres.database() as one, postgres.database() as other:
        one.run("CREATE TABLE kept (x INT); INSERT INTO kept VALUES (1)")
        assert [(1,)] == one.rows("SELECT x FROM kept WHERE x = $1", 1)
        assert [(0,)] == other.rows("SELECT count(*) FROM pg_tables WHERE tablename = 'kept'")
    names = [one.name, other.name]
    with postgres.database() as third:
        found = third.rows("SELECT 1 FROM pg_database WHERE datname = ANY($1)", names)
    assert [] == found


def test_it_wants_its_password(own_postgres: OwnServer) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        done(asyncpg.connect(own_postgres.url.replace(PASSWORD, "another"), timeout=PATIENCE))


def test_what_was_written_is_there_after_a_crash(
    own_postgres: OwnServer, database: Database
) -> None:
    database.run("CREATE TABLE kept (x INT); INSERT INTO kept VALUES (1)")
    own_postgres.stop(signal.SIGQUIT)
    with pytest.raises(OSError, match=r"refused|failed"):
        database.rows("SELECT 1")
    own_postgres.start()
    assert [(1,)] == database.rows("SELECT x FROM kept")


def test_a_paused_server_says_nothing_until_it_goes_on(
    own_postgres: OwnServer, database: Database
) -> None:
    answered = threading.Event()

    def ask() -> None:
        database.rows("SELECT 1")
        answered.set()

    own_postgres.pause()
    asking = threading.Thread(target=ask)
    asking.start()
    assert not answered.wait(0.5)
    own_postgres.resume()
    assert answered.wait(PATIENCE)
    asking.join()
