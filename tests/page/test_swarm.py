"""The page over node processes: a chat, who computed it, and a node that is killed under it."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.page.browser import DESK, PHONE, answered, ask, open_page
from tests.page.conftest import Served

pytestmark = [pytest.mark.net, pytest.mark.process, pytest.mark.timeout(120)]

COUNT = "Count from 3 to 40."
DOWN = "Count down from 51 to 27."  # asked nowhere else: no other idle session begins like it
NUMBERS = ", ".join(map(str, range(3, 41)))


def route_of(page: Page, turn: int) -> list[str]:
    """The last letters of those that computed an answer."""
    return [
        text.removeprefix("…")
        for text in page.locator(".turn").nth(turn).locator(".hop:not(.rest) .peer").all_inner_texts()
    ]


def assert_sound(page: Page) -> None:
    """Nothing is wider than the screen, and axe finds nothing serious."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(page).response["violations"]
    bad = [
        (each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")
    ]
    assert bad == []


def test_a_chat_and_who_computed_it(looking: Browser, served: Served) -> None:
    """The answer as it is, its route with times, and the map of all nodes."""
    with open_page(looking, served.url) as page:
        ask(page, COUNT)
        assert NUMBERS in answered(page, 1).replace("\n", " ")
        route = route_of(page, 0)
        assert [len(hop) for hop in route] == [6, 6]
        assert route[0] == served.nodes.nodes[0].peer[-6:]
        expect(page.locator(".turn .hop .time").last).to_have_text(re.compile(r"^[\d.]+ ms$"))
        expect(page.locator(".turn .figures")).to_contain_text("tok/s")
        expect(page.locator(".row.node")).to_have_count(3)
        expect(page.locator(".copy-run")).to_have_text(["1", "2"])
        expect(page.locator("#verdict")).to_contain_text("one node has layers that nobody else has")
        expect(page.locator("#commands")).to_contain_text(f"{served.url}/v1/chat/completions")
        expect(page.locator("#commands")).to_contain_text(served.nodes.join)
        expect(page.locator("#happened")).to_contain_text("An answer of 108 tokens")
        expect(page.locator(".routes .latest .way")).to_have_attribute("d", re.compile(r"^M[\d.]+ [\d.]+L"))


def test_it_fits_and_everybody_can_use_it(looking: Browser, served: Served) -> None:
    """On a screen and on a phone, light and dark, with all that can be opened open."""
    with open_page(looking, served.url) as page:
        page.get_by_role("button", name="Settings").click()
        ask(page, "What is the capital of Norway?")
        answered(page, 1)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": DESK[0], "height": DESK[1]})
            assert_sound(page)
            page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
            for view in ("Swarm", "Chat"):
                page.get_by_role("button", name=view, exact=True).click()
                expect(page.locator("#map")).to_be_visible(visible=view == "Swarm")
                assert_sound(page)


def test_a_kill_is_seen_as_it_happens(looking: Browser, served: Served) -> None:
    """`kill -9` in mid-answer: the same text; the answer and the map say who was lost, and what that cost."""
    with open_page(looking, served.url) as page:
        ask(page, DOWN)
        expected = answered(page, 1)
        killed = f"…{route_of(page, 0)[1]}"
        peer = page.locator(".row.node .name", has_text=killed).get_attribute("title")
        victim = served.nodes.nodes[served.named(peer)]
        row = page.locator(".row.node", has=page.get_by_text(killed, exact=False))
        victim.process.stop()  # so that the answer, which goes on from that session, is under way when it is killed
        ask(page, DOWN)
        expect(page.locator(".turn").nth(1).locator(".figures")).to_contain_text(re.compile("answering|turn"))
        victim.process.kill9()
        assert answered(page, 2) == expected
        befell = page.locator(".turn").nth(1).locator(".befell li")
        expect(row).to_have_attribute("data-state", re.compile("lost|silent"))
        expect(befell.first).to_contain_text(f"Lost {killed}")
        expect(page.locator(".turn").nth(1).locator(".figures")).to_contain_text("1 reroute cost")
        expect(page.locator("#happened")).to_contain_text(f"Lost {killed}")
        assert killed.removeprefix("…") not in route_of(page, 1)
        expect(row).to_have_attribute("data-state", "silent")
        expect(page.locator(".copy-run")).to_have_text(["1"])
