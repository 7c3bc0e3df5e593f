"""Takes the pictures of the web page in docs/images, from a real swarm of the model that ships.

python scripts/screenshots.py [FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

# The node processes are started by what the tests start them with, which is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
from playwright.sync_api import Page

from swarm import entry
from swarm.cli.demo_nodes import shipped_model
from swarm.http.serve import serve
from swarm.http.settings import Settings
from swarm.portal import Portal
from tests.page.browser import PHONE, answered, ask, browser, open_page
from tests.support.local_swarm import LocalSwarm
from tests.support.processes import Processes

LAYERS = ("0:3", "0:5", "3:8", "5:8")
DESK = (1360, 860)
OTHERS = 2
COLOURS = 256
WATCHED_S = 15  # so that the plots have something to show


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


@contextmanager
def others(url: str) -> Iterator[None]:
    """Some who ask as well, over and over: what they ask is of the model's own kind."""
    leave = threading.Event()

    def ask_on(first: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            for number in itertools.count():
                if leave.is_set():
                    return
                question = f"Count from {first} to {20 + (first + number) % 40}."
                body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
                client.post("/v1/chat/completions", json=body)
                leave.wait(0.3 * first)

    with ThreadPoolExecutor(OTHERS) as pool:
        for first in range(1, OTHERS + 1):
            pool.submit(ask_on, first)
        try:
            yield
        finally:
            leave.set()


def chat(page: Page) -> None:
    """Two questions and their answers."""
    ask(page, "What is the capital of Norway?")
    answered(page, 1)
    ask(page, "Count from 3 to 40.")
    answered(page, 2)


def take(url: str, folder: Path) -> None:
    """The page at rest, on a screen and on a phone, after a while with others."""
    with browser() as chromium, open_page(chromium, url, DESK) as page:
        with others(url):
            page.wait_for_timeout(1000 * WATCHED_S)
            chat(page)
            shoot(page, folder / "page-light.png")
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(2500)
        shoot(page, folder / "page-dark.png")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        page.locator("#turns").evaluate("turns => turns.scrollTo(0, turns.scrollHeight)")
        shoot(page, folder / "page-phone.png")
        page.get_by_role("button", name="Swarm", exact=True).click()
        shoot(page, folder / "page-phone-swarm.png")


def take_kill(url: str, nodes: LocalSwarm, folder: Path) -> None:
    """`kill -9` of a node that is computing, as the page shows it at once, and when the answer is whole."""
    with browser() as chromium, open_page(chromium, url, DESK, scheme="dark") as page, others(url):
        page.wait_for_timeout(1000 * WATCHED_S)
        ask(page, "Count down from 51 to 12.")
        page.locator(".turn .text", has_text="46, ").wait_for()
        used = page.locator(".row.node[data-used] .name").last.get_attribute("title")
        next(node for node in nodes.nodes if node.peer == used).process.kill9()
        page.locator(".befell li", has_text="Lost").wait_for()
        shoot(page, folder / "page-kill.png")


def shoot(page: Page, file: Path) -> None:
    """A picture, in a palette where Pillow is there to make one: a third of the bytes."""
    page.screenshot(path=file)
    try:
        from PIL import Image
    except ImportError:
        return
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(COLOURS, kmeans=4, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/images"))
    parser.add_argument("--quick", action="store_true", help="without the one of a kill")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, swarm_with_page(Path(home)) as (nodes, url):
        take(url, given.folder)
        if not given.quick:
            take_kill(url, nodes, given.folder)


if __name__ == "__main__":
    main()
