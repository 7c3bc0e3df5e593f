"""Takes the pictures of the web page in docs/images, from a real swarm of the model that ships.

python scripts/screenshots.py [FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

# The node processes are started by what the tests start them with, which is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import Page

from swarm import entry
from swarm.cli.demo_nodes import shipped_model
from swarm.http.serve import serve
from swarm.http.settings import Settings
from swarm.portal import Portal
from tests.page.browser import answered, ask, browser, open_page
from tests.support.local_swarm import LocalSwarm
from tests.support.processes import Processes

LAYERS = ("0:3", "0:5", "3:8", "5:8")
DESK, PHONE = (1360, 860), (390, 844)


@contextmanager
def swarm_with_page(folder: Path) -> Iterator[tuple[LocalSwarm, str]]:
    """Four node processes, any of which may die, and the address of the page."""
    os.environ["SWARM_HOME"] = str(folder / "client")
    with ExitStack() as stack:
        processes = stack.enter_context(Processes())
        nodes = LocalSwarm(
            processes, shipped_model(), folder, extra=["--kv-tokens", "8192", "--threads", "1"]
        )
        nodes.start(*LAYERS)
        portal = stack.enter_context(Portal())
        enter = partial(entry.connect, nodes.join)
        serving = stack.enter_context(serve(portal, lambda tell: enter(on_event=tell), Settings(port=0)))
        yield nodes, serving.url


def chat(page: Page) -> None:
    """Two questions and their answers."""
    ask(page, "What is the capital of Norway?")
    answered(page, 1)
    ask(page, "Count from 3 to 40.")
    answered(page, 2)


def settled(page: Page, seconds: float) -> None:
    """Wait until pictures have moved on: these are for the eye alone."""
    page.wait_for_timeout(1000 * seconds)


def take(url: str, nodes: LocalSwarm, folder: Path, quick: bool) -> None:
    """All pictures."""
    with browser() as chromium:
        with open_page(chromium, url, DESK) as page:
            chat(page)
            settled(page, 2)
            page.screenshot(path=folder / "page-light.png")
        with open_page(chromium, url, DESK, scheme="dark") as page:
            chat(page)
            settled(page, 2)
            page.screenshot(path=folder / "page-dark.png")
        with open_page(chromium, url, PHONE) as page:
            chat(page)
            settled(page, 1)
            page.screenshot(path=folder / "page-phone.png")
            page.get_by_role("button", name="Swarm", exact=True).click()
            page.screenshot(path=folder / "page-phone-swarm.png")
        if quick:
            return
        with open_page(chromium, url, DESK, scheme="dark") as page:
            ask(page, "What is the capital of Norway?")
            answered(page, 1)
            ask(page, "Count from 3 to 40.")
            page.locator(".turn").nth(1).locator(".text", has_text="9, 10").wait_for()
            used = page.locator(".row.node[data-used] .name").last.get_attribute("title")
            next(node for node in nodes.nodes if node.peer == used).process.kill9()
            page.locator(".befell li", has_text="Lost").wait_for()
            page.screenshot(path=folder / "page-kill.png")
            answered(page, 2)
            settled(page, 3)
            page.screenshot(path=folder / "page-after-kill.png")


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/images"))
    parser.add_argument("--quick", action="store_true", help="without the one of a kill")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, swarm_with_page(Path(home)) as (nodes, url):
        take(url, nodes, given.folder, given.quick)


if __name__ == "__main__":
    main()
