"""A portal that is in use, as `passy demo` fills it; and somebody in it who has only just begun."""

from __future__ import annotations

import asyncio
import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from harness.gateway import PASSY, Gateway
from harness.portal import PASSWORD, Browser, me
from passy_plugins.stores.sql.admin import Admin
from passy_portal.access import ACCESS
from passy_portal.accounts import Accounts
from passy_portal.demo.command import CONFIGURATION as FILE
from passy_portal.migrate import migrate
from passy_proxy.keyring import Keyring

BOOKS = "sqlite:///.passy/passy.db"
CONFIGURATION = re.sub(r"sqlite:///demo\.db", BOOKS, FILE.read_text(encoding="utf-8"))
BEGINNER = "newton@example.com"
LONGEST = 300
"""Seconds that a demo may take to write."""


class Demo(NamedTuple):
    gateway: Gateway
    owner: str
    """The e-mail of who owns the organisation that is in use."""
    password: str
    keys: dict[str, str]
    """Of that organisation, by their names."""

    def signed_in(self, email: str = "", password: str = "") -> Browser:
        browser = Browser(self.gateway)
        asked = browser.sign_in(email or self.owner, password or self.password)
        assert asked.status == 303, asked.body
        return browser

    def beginner(self) -> Browser:
        """The owner of an organisation in which nothing has happened."""
        return self.signed_in(BEGINNER, PASSWORD)


def fill(gateway: Gateway, days: int) -> Demo:
    """Into the books of a gateway that does not run yet."""
    done = subprocess.run(
        [PASSY, "demo", "--yes", "--json", "--days", str(days),
         "--config", gateway.file, "--data", gateway.folder / "data"],
        cwd=gateway.folder, env=gateway.variables, capture_output=True, text=True, timeout=LONGEST,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    asyncio.run(_begin(gateway.folder))
    return Demo(gateway, told["people"]["owner"], told["password"], told["keys"])


async def _begin(folder: Path) -> None:
    keyring = Keyring.load(folder / "data", None)
    url = f"sqlite:///{folder}/.passy/passy.db"
    async with Admin.opened(url, keyring) as admin:
        await migrate(admin)
        accounts = Accounts(admin, 86_400, 86_400)
        user = await admin.create_user(BEGINNER, "Isaac")
        organisation = await admin.create_organisation("Apples")
        await admin.set_member(organisation, user.id, "owner")
        await accounts.set_password(user.id, await accounts.passwords.hash(PASSWORD))


APART = re.compile(r"^/api/|\.\w+$|/tail$")
"""What is no page."""


def patterns() -> dict[str, re.Pattern[str]]:
    """Each page for who has signed in, as its route is written → what its addresses look like."""
    return {
        path: re.compile(re.sub(r"{\w+}", "[^/]+", path))
        for (method, path), access in ACCESS.items()
        if method == "GET" and access.roles is not None and not APART.search(path)
    }


SWITCHED = (
    ("chat", "openai/gpt-4o", "pin"),
    ("chat-mini", "groq/llama-3.1-8b-instant", "disable"),
    ("embed", "openai/text-embedding-3-small", "disable"),
)
PRICED = {
    "openai/gpt-4.1": {"input": 1.6, "cached_input": 0.4, "output": 6.4},
    "groq/llama-3.1-8b-instant": {"input": 0.0000135, "output": 0},
}


def steer(owner: Browser) -> None:
    """Pin a target, disable one of two and the only one, and set prices; and undo one of each."""
    owner.csrf = me(owner)["csrf_token"]
    undone = ("claude-sonnet", "openai/gpt-4.1")
    for model, target, do in (*SWITCHED, (*undone, "pin"), (*undone, "release")):
        change = {"model": model, "target": target, "do": do}
        assert 200 == owner.api("PUT", "/models/target", change).status
    prices = {**PRICED, "openai/o4-mini": {"input": 1, "output": 4}}
    for target, rates in (*prices.items(), ("openai/o4-mini", None)):
        assert 200 == owner.api("PUT", "/prices", {"target": target, "rates": rates}).status


LED_TO = ("/begin",)
"""Pages that no link leads to, but a form that was sent."""


def walked(browser: Browser) -> dict[str, str]:
    """Each page that can be reached by links from the first one → an address of it, with a real id
    where it takes one."""
    wanted = patterns()
    found = {path: path for path in ("/", *LED_TO) if browser.look(path).status == 200}
    waiting = list(found)
    while waiting:
        page = browser.look(waiting.pop(0)).body.decode()
        for href in re.findall(r'href="([^"]+)"', page):
            path = urlsplit(html.unescape(href)).path.removeprefix(browser.root) or "/"
            for route, pattern in wanted.items():
                literal = route == path or path not in wanted
                if route not in found and literal and pattern.fullmatch(path):
                    found[route] = path
                    waiting.append(path)
    return found
