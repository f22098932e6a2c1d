"""Take a picture of every page of the portal: `./passy screenshots [FOLDER]`.

Each page in light and dark, at 360 and 1440 pixels, in an organisation that is in use and in one
where nothing has happened yet. The pages are those of `passy_portal.access` that links lead to.
Look at ``index.html`` in the folder: every picture is on it.
"""

from __future__ import annotations

import argparse
import html
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from harness.chromium import launched  # noqa: E402
from harness.demo import BEGINNER, CONFIGURATION, Demo, fill, patterns, steer, walked  # noqa: E402
from harness.gateway import Gateway  # noqa: E402
from harness.portal import PASSWORD  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTHS = (1440, 360)
THEMES = ("light", "dark")
TALLEST = 5_000
"""Pixels of a picture."""
MORE = {
    "usage by key": "/usage?by=key_id",
    "a price that is set": "/settings/prices/set?target=openai/gpt-4.1",
    "usage of nothing": "/usage?model=no%20such",
    "keys not found": "/keys?q=nothing-is-called-so",
    "no such page": "/nowhere",
}
"""Pages in another state, beside those of the table."""
STRANGERS = {"/login": "/login", "/first": "/first?link=x", "/join": "/join?link=x"}


class Shot(NamedTuple):
    name: str
    path: str
    state: str
    theme: str
    width: int

    @property
    def file(self) -> str:
        slug = "".join(c if c.isalnum() else "-" for c in self.name).strip("-") or "overview"
        return f"{slug}-{self.state}-{self.theme}-{self.width}.png"


@contextmanager
def served(days: int) -> Iterator[Demo]:
    with tempfile.TemporaryDirectory(prefix="passy-screenshots-") as folder:
        gateway = Gateway(Path(folder), CONFIGURATION, {})
        demo = fill(gateway, days)
        gateway.start()
        try:
            steer(demo.signed_in())
            yield demo
        finally:
            gateway.stop()


def shots(demo: Demo, only: str) -> list[Shot]:
    pages = {
        "full": walked(demo.signed_in()) | MORE,
        "empty": walked(demo.beginner()),
        "stranger": STRANGERS,
    }
    missing = sorted(set(patterns()) - set(pages["full"]))
    if missing:
        print("no link leads to", ", ".join(missing), file=sys.stderr)
    return [
        Shot(name, path, state, theme, width)
        for state, found in pages.items()
        for name, path in sorted(found.items())
        if only in name
        for width in WIDTHS
        for theme in THEMES
    ]


def taken(browser: Browser, demo: Demo, every: list[Shot], folder: Path) -> None:
    """Each in its file, with a line that says how far it is."""
    states = {"full": (demo.owner, demo.password), "empty": (BEGINNER, PASSWORD), "stranger": None}
    base = f"{demo.gateway.url}/portal"
    done = 0
    for state, who in states.items():
        cookies = browser.new_context()
        if who is not None:
            page = cookies.new_page()
            page.goto(f"{base}/login")
            page.fill("#email", who[0])
            page.fill("#password", who[1])
            page.click("button.primary")
            page.wait_for_selector("nav")
        for theme in THEMES:
            context = browser.new_context(
                color_scheme="dark" if theme == "dark" else "light",
                storage_state=cookies.storage_state(),
                device_scale_factor=1,
                timezone_id="Europe/Berlin",
            )
            with closing(context):
                page = context.new_page()
                for shot in every:
                    if (shot.state, shot.theme) != (state, theme):
                        continue
                    page.set_viewport_size({"width": shot.width, "height": 900})
                    page.goto(base + shot.path)
                    height = page.evaluate("document.documentElement.scrollHeight")
                    page.set_viewport_size({"width": shot.width, "height": min(height, TALLEST)})
                    page.screenshot(path=folder / shot.file)
                    done += 1
                    tell(done, len(every), shot)


def tell(done: int, all: int, shot: Shot) -> None:
    end = "\n" if done == all or not sys.stderr.isatty() else ""
    if sys.stderr.isatty() or done % 20 == 0 or done == all:
        line = f"{done}/{all} {shot.path} {shot.state} {shot.theme} {shot.width}"
        print(f"\r\x1b[K{line}" if sys.stderr.isatty() else line, end=end, file=sys.stderr)


FRONT = ROOT / "docs/images"


def front(browser: Browser, demo: Demo) -> None:
    """The two pictures of the README: the first page, as it is seen at first."""
    FRONT.mkdir(exist_ok=True)
    base = f"{demo.gateway.url}/portal"
    for theme in THEMES:
        context = browser.new_context(
            color_scheme="dark" if theme == "dark" else "light",
            viewport={"width": 1280, "height": 800},
        )
        with closing(context):
            page = context.new_page()
            page.goto(f"{base}/login")
            page.fill("#email", demo.owner)
            page.fill("#password", demo.password)
            page.click("button.primary")
            page.wait_for_selector("nav")
            page.screenshot(path=FRONT / f"portal-{theme}.png")


STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; background: #888; color: #111; }
section { display: flex; gap: 1rem; align-items: start; overflow-x: auto; padding: .5rem 0 1.5rem; }
figure { margin: 0; flex: none; } img { display: block; width: 180px; background: #fff; }
.w1440 img { width: 480px; } a { color: inherit; } h2 { margin: 0; position: sticky; left: 0; }
"""


def sheet(every: list[Shot]) -> str:
    """Every picture on one page, a row for each page of the portal."""
    rows: dict[tuple[str, str], list[Shot]] = {}
    for shot in every:
        rows.setdefault((shot.name, shot.state), []).append(shot)
    parts = []
    for (name, state), found in sorted(rows.items()):
        figures = "".join(
            f'<figure class="w{shot.width}"><a href="{shot.file}">'
            f'<img src="{shot.file}" loading="lazy" alt=""></a>'
            f"<figcaption>{shot.theme}, {shot.width}</figcaption></figure>"
            for shot in found
        )
        parts.append(f"<h2>{html.escape(name)}, {state}</h2><section>{figures}</section>")
    made = time.strftime("%Y-%m-%d %H:%M")
    head = f"<!doctype html><meta charset=utf-8><title>The portal, {made}</title>"
    return f"{head}<style>{STYLE}</style><h1>The portal, {made}</h1>{''.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser("passy screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / ".passy/screenshots")
    parser.add_argument("--days", type=int, default=30, help="How many days of traffic there are.")
    parser.add_argument("--only", default="", help="Pages with this in their path.")
    parser.add_argument("--readme", action="store_true", help="Only the two in docs/images.")
    given = parser.parse_args()
    if given.readme:
        with served(given.days) as demo, launched() as browser:
            front(browser, demo)
        return
    if given.folder.exists() and not given.only:
        shutil.rmtree(given.folder)
    given.folder.mkdir(parents=True, exist_ok=True)
    print("filling the books", file=sys.stderr)
    with served(given.days) as demo, launched() as browser:
        every = shots(demo, given.only)
        taken(browser, demo, every, given.folder)
    (given.folder / "index.html").write_text(sheet(every), encoding="utf-8")
    print(os.path.relpath(given.folder / "index.html"))


if __name__ == "__main__":
    main()
