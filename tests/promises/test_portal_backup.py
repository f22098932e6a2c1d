"""O9: a copy of the database and the secret keys are a working system; without the keys it is
refused, by the name of what is missing. The commands are those of the guide."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.gateway import PASSY, PATIENCE, ROOT, Gateway, Serve
from harness.office import VARIABLES, Office
from harness.portal import CONFIGURATION, PASSWORD, Browser, enrolled, found, me, next_code
from harness.postgres import PACKAGE, VERSION, Database

from passy_proxy.keyring import Keyring

FIRST = "a key that was put in front: 9Wd2xYt6Lr0QpZ7cVb"
LAST = "the key of the first start: 4kTz8mNq1RsHy5PjXv"
NEXT = "a key for after the fire: 7bGf3wEo9UaKd2MlCi"
GUIDE = ROOT / "docs/guides/portal.md"
RING = {"PASSY_SECRET_KEYS": f"{FIRST},{LAST}"}


def steps(heading: str) -> list[str]:
    """The commands below a line of the guide."""
    text = GUIDE.read_text()
    block = re.search(rf"{re.escape(heading)}.*?```sh\n(.*?)```", text, re.S)
    assert block, heading
    return block[1].strip().splitlines()


def run(commands: list[str], folder: Path, url: str, backup: Path) -> None:
    """In a shell, as somebody would; with the tools of the server's own version."""
    found = importlib.util.find_spec(PACKAGE)
    places = [
        Path(each) / VERSION / "bin" for each in (found and found.submodule_search_locations) or ()
    ]
    variables = {
        "PATH": ":".join([*map(str, places), os.environ["PATH"]]),
        "DATABASE_URL": url, "BACKUP": str(backup),
    }  # fmt: skip
    for command in commands:
        ran = subprocess.run(
            command, shell=True, cwd=folder, env=variables, capture_output=True, text=True,
            timeout=PATIENCE,
        )  # fmt: skip
        assert 0 == ran.returncode, (command, ran.stderr)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the database that is lost; nothing for a file."""
    if request.param == "sqlite":
        if shutil.which("sqlite3") is None:
            pytest.skip("sqlite3 is needed (apt-get install sqlite3)")
        yield ""
        return
    yield str(request.getfixturevalue("database").url)


@pytest.mark.large
def test_O9_a_backup_and_its_keys_are_a_working_system(
    url: str, serve: Serve, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    at = {"DATABASE_URL": url} if url else {}
    before = serve(CONFIGURATION, **VARIABLES, **RING, **at)
    owner, key = found(before)
    secret, codes, _ = enrolled(owner)
    organisation = me(owner)["organisation"]
    Office(before).made(
        f"/organisations/{organisation}/credentials", {"upstream": "echo", "secret": "sk-theirs"}
    )
    kind = "PostgreSQL" if url else "SQLite"
    (tmp_path / "backup").mkdir()
    run(steps(f"{kind}, while it runs"), before.folder, url, tmp_path / "backup")
    owner.api("POST", "/keys", {"name": "after the backup"})
    assert 0 == before.stop()

    fresh = request.getfixturevalue("another").url if url else ""
    then = {"DATABASE_URL": fresh} if fresh else {}
    after = serve(CONFIGURATION, start=False, **VARIABLES, **RING, **then)
    run(steps(f"{kind}, into an empty place"), after.folder, fresh, tmp_path / "backup")
    kept = dict(after.variables)

    # Without the keys, and with one of them only.
    for ring, missing in ((None, LAST), (FIRST, LAST), (LAST, FIRST)):
        after.variables = {k: v for k, v in kept.items() if k != "PASSY_SECRET_KEYS"}
        if ring is not None:
            after.variables["PASSY_SECRET_KEYS"] = ring
        code, said = ended(after)
        assert (78, True) == (code, Keyring([missing]).first in said), said

    after.variables = kept
    after.start()
    try:
        assert 200 == Office(after).chat(key).status
        browser = Browser(after)
        asked = browser.sign_in("ada@example.com")
        token = re.search(r'name="token" value="([^"]+)"', asked.text)
        assert token, asked.text
        fields = {"token": token[1], "code": next_code(secret), "then": ""}
        assert 303 == browser.send("/login/second", fields).status
        assert "Every entry is as it was written." in browser.look("/audit").text
        assert b"after the backup" not in browser.look("/keys").body
        # All that was sealed opens: it is put under another key, the second factor with it.
        after.variables = kept | {"PASSY_SECRET_KEYS": f"{NEXT},{FIRST},{LAST}"}
        rotated = after.passy("secrets", "rotate")
        assert 0 == rotated.returncode, rotated.stderr
        assert "2 of 2 secrets" in rotated.stdout
    finally:
        after.stop()
    after.variables = kept | {"PASSY_SECRET_KEYS": f"{NEXT},{LAST}"}
    after.start()
    try:
        browser = Browser(after)
        asked = browser.sign_in("ada@example.com", PASSWORD)
        token = re.search(r'name="token" value="([^"]+)"', asked.text)
        assert token
        fields = {"token": token[1], "code": "000000", "then": ""}
        assert 401 == browser.send("/login/second", fields).status  # It was read, and is another.
        assert 303 == browser.send("/login/second", {**fields, "code": codes[0]}).status
    finally:
        assert 0 == after.stop()


@pytest.fixture
def another(database: Database) -> Iterator[Database]:
    with database.server.database() as made:
        yield made


def ended(gateway: Gateway) -> tuple[int, str]:
    """How a gateway ends that cannot start, and its last words."""
    ran = subprocess.run(
        [PASSY, "serve", "--config", gateway.file, "--data", gateway.data, "--listen", ":0"],
        cwd=gateway.folder, env=gateway.variables, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    return ran.returncode, ran.stderr.strip().splitlines()[-1]
