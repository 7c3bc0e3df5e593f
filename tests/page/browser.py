"""A headless Chromium, and what somebody does who looks at the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

WITHIN_MS: Final = 45_000
DESK: Final = (1280, 800)
PHONE: Final = (390, 844)


def chromium() -> str | None:
    """Where there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser. Raises: AssertionError, where there is none."""
    found = chromium()
    assert found is not None, "there is no Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield running
        running.close()


@contextmanager
def open_page(
    browser: Browser, url: str, size: tuple[int, int] = DESK, *, scheme: str = "light", **how: Any
) -> Iterator[Page]:
    """The page, once it knows the swarm. Raises: AssertionError, if the browser has complained of anything."""
    with fresh_page(browser, url, size, scheme=scheme, **how) as page:
        page.locator("#link[data-state=live]").wait_for()
        page.locator(".row.node").first.wait_for(state="attached")
        yield page


@contextmanager
def fresh_page(
    browser: Browser, url: str, size: tuple[int, int], *, complains: bool = False, **how: Any
) -> Iterator[Page]:
    """The page as it loads; `complains`: its console may have errors, as of a request that is refused."""
    scheme = how.pop("scheme", "light")
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, locale="en-GB", **how
    )
    context.set_default_timeout(WITHIN_MS)
    page, said = context.new_page(), list[str]()

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    assert complains or said == []


def ask(page: Page, question: str) -> None:
    """Type and send."""
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_label("Question", exact=True).press("Enter")


def answered(page: Page, count: int) -> str:
    """Wait until so many answers are whole; the text of the last."""
    page.wait_for_function(
        "n => document.querySelectorAll('.turn .figures').length === n"
        " && [...document.querySelectorAll('.turn .figures')].every(f => f.textContent.includes('in all'))",
        arg=count,
    )
    return page.locator(".turn .text").nth(count - 1).inner_text()
