"""A real browser for tests of pages: Debian's chromium, headless."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
WAIT = 60_000  # milliseconds; a machine may be busy
PICTURES = Path(__file__).parents[1] / "run" / "screenshots"


@dataclass
class Seen:
    """What a page did: faults that it told the console, and addresses elsewhere that it asked for."""

    faults: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; skips the test where none is installed."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (apt install chromium)")
    expect.set_options(timeout=WAIT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page(browser: Browser, own: str, **options: object) -> Iterator[tuple[Page, Seen]]:
    """A fresh page, and what it did; addresses that begin with `own` are its own."""
    context = browser.new_context(**options)
    context.set_default_timeout(WAIT)
    found, seen = context.new_page(), Seen()
    found.on("console", lambda said: seen.faults.append(said.text) if said.type == "error" else None)
    found.on("pageerror", lambda error: seen.faults.append(str(error)))
    found.on("dialog", lambda dialog: (seen.faults.append("a script ran"), dialog.dismiss()))
    found.on(
        "request",
        lambda asked: (
            None if asked.url.startswith((own, "data:", "blob:")) else seen.fetched.append(asked.url)
        ),
    )
    yield found, seen
    context.close()


def keep(opened: Page, name: str) -> None:
    """Keep a picture of the whole page below run/screenshots (git-ignored), to be looked at."""
    opened.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def overflow(opened: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
