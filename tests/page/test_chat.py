"""The page over a swarm in this process: stopping, asking again, settings, keys, what goes wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from swarm.http.settings import Settings
from tests.http.swarm import Api, api
from tests.page.browser import DESK, answered, ask, fresh_page, open_page
from tests.support.waiting import block_until

pytestmark = [pytest.mark.net, pytest.mark.process, pytest.mark.timeout(120)]

KEY = "a-key-of-some-length"
ENDLESS = "55"  # the fake model's answer to it is as long as may be
STEP_S = 0.005
BUSY_S = 20  # on a machine that also has a browser to run


@pytest.fixture(scope="module")
def shared() -> Iterator[Api]:
    """A swarm for all that does it no harm."""
    with api(step_s=STEP_S) as found:
        yield found


def bodies(page: Page) -> list[dict[str, object]]:
    """What the page asks from now on."""
    said: list[dict[str, object]] = []

    def heard(request: Request) -> None:
        if request.method == "POST":
            said.append(json.loads(request.post_data or "{}"))

    page.on("request", heard)
    return said


def set_to(page: Page, **values: str) -> None:
    """Open the settings, and set some."""
    page.get_by_role("button", name="Settings").click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " ")).fill(value)


@pytest.mark.parametrize("way", ["the button", "Escape"])
def test_stopping_ends_the_answer_everywhere(looking: Browser, shared: Api, way: str) -> None:
    """What has come stays, the nodes are let go, and the map shows both: tokens that pass, and that none do."""
    with open_page(looking, shared.url) as page:
        set_to(page, Temperature="0", Tokens_at_most="900")
        page.get_by_label("Strategy").select_option("greedy")  # a token each step
        ask(page, ENDLESS)
        turn = page.locator(".turn")
        expect(turn.locator(".text")).to_contain_text("66")
        expect(page.locator(".row.node[data-used]")).to_have_count(2)
        page.locator(".routes .spark").first.wait_for(state="attached")
        if way == "Escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Stop").click()
        expect(turn.locator(".figures")).to_contain_text("Stopped after")
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        expect(turn.locator(".text")).to_contain_text("66")
        block_until(lambda: shared.serving.service.line.active == 0, BUSY_S)
        expect(page.locator(".row.node[data-used]")).to_have_count(0)


def test_nothing_moves_where_that_is_not_wanted(looking: Browser, shared: Api) -> None:
    """The way is drawn all the same, and what is used is marked."""
    with open_page(looking, shared.url, reduced_motion="reduce") as page:
        set_to(page, Temperature="0", Tokens_at_most="900")
        page.get_by_label("Strategy").select_option("greedy")  # a token each step
        ask(page, ENDLESS)
        expect(page.locator(".turn .text")).to_contain_text("6666")
        expect(page.locator(".row.node[data-used]")).to_have_count(2)
        expect(page.locator(".routes .way")).to_have_attribute("d", re.compile("^M"))
        assert page.evaluate("document.getAnimations().length") == 0
        assert page.locator(".routes .spark").count() == 0
        page.keyboard.press("Escape")


def test_edit_and_retry(looking: Browser, shared: Api) -> None:
    """A question that is edited is asked again, and what came after it goes; so does retrying."""
    with open_page(looking, shared.url) as page:
        set_to(page, Temperature="0", Tokens_at_most="5", System_prompt="7")
        said = bodies(page)
        for number, question in enumerate(("51", "52", "53"), 1):
            ask(page, question)
            answered(page, number)
        turns = page.locator(".turn")
        turns.nth(1).get_by_role("button", name="Edit").click()
        page.get_by_label("Edit the question").fill("54")
        page.keyboard.press("Enter")
        answered(page, 2)
        expect(turns).to_have_count(2)
        turns.nth(0).get_by_role("button", name="Retry").click()
        answered(page, 1)
        expect(turns).to_have_count(1)
        asked = [[each["content"] for each in body["messages"]] for body in said]  # type: ignore[attr-defined]
        assert asked[0] == ["7", "51"]
        assert asked[3] == ["7", "51", "66666", "54"]
        assert asked[4] == ["7", "51"]


def test_settings_are_sent_and_kept(looking: Browser, shared: Api) -> None:
    """Those that are filled in, and no others; they are there after a reload, and a bad one is said."""
    with open_page(looking, shared.url, complains=True) as page:
        set_to(
            page, Temperature="0.7", Top_k="9", Seed="3", Tokens_at_most="4", **{"Stop_at_(one_a_line)": "zz"}
        )
        page.get_by_label("Strategy").select_option("sample")
        page.reload()
        page.locator("#link[data-state=live]").wait_for()
        said = bodies(page)
        ask(page, "51")
        answered(page, 1)
        assert said[0] == {
            "messages": [{"role": "user", "content": "51"}],
            "temperature": 0.7,
            "top_k": 9,
            "seed": 3,
            "max_tokens": 4,
            "stop": ["zz"],
            "swarm": {"events": True, "strategy": "sample"},
            "stream": True,
        }
        set_to(page, Temperature="5000")
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_role("alert")).to_contain_text("temperature")


def test_a_key_is_asked_for_once(looking: Browser) -> None:
    """Again where it is wrong, and when something is asked without; then all have it, also after a reload."""
    with (
        api(settings=Settings(port=0, keys=(KEY,))) as found,
        fresh_page(looking, found.url, DESK, complains=True) as page,
    ):
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#link-words")).to_contain_text("needs a key")
        ask(page, "51")
        page.get_by_label("Key", exact=True).fill("not-this-one-at-all")
        dialog.get_by_role("button").click()
        expect(dialog).to_contain_text("was not taken")
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        page.locator("#link[data-state=live]").wait_for()
        answered(page, 1)
        expect(page.locator("#commands")).to_contain_text("$SWARM_API_KEY")
        assert KEY not in page.locator("body").inner_text()
        page.reload()
        page.locator("#link[data-state=live]").wait_for()


def test_nobody_serves_it(looking: Browser) -> None:
    """The map names what is missing and the command that serves it; the answer says so too, and can be retried."""
    with api((0, 4)) as found, open_page(looking, found.url, complains=True) as page:
        expect(page.locator("#verdict")).to_contain_text("Nobody serves")
        expect(page.locator(".copy-run")).to_have_text(["1", "0"])
        expect(page.locator(".hole code")).to_contain_text("swarm node --model fake")
        ask(page, "51")
        expect(page.get_by_role("alert")).to_contain_text("to serve it")
        expect(page.get_by_role("button", name="Retry")).to_be_visible()


def test_a_hidden_page_watches_nothing(looking: Browser, shared: Api) -> None:
    """Its stream is closed, and there again when it is seen again."""
    hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    with open_page(looking, shared.url) as page:
        service = shared.serving.service
        assert service.watched
        page.evaluate(hide, True)
        expect(page.locator("#link-words")).to_have_text("paused")
        block_until(lambda: not service.watched, BUSY_S)
        page.evaluate(hide, False)
        page.locator("#link[data-state=live]").wait_for()


def test_the_keyboard_is_enough(looking: Browser, shared: Api) -> None:
    """From the address on: to the question, to the settings, to what is under an answer; the focus is seen."""
    with open_page(looking, shared.url) as page:
        page.keyboard.press("Escape")
        page.locator("h1").click()
        page.keyboard.press("Tab")
        expect(page.get_by_label("Theme")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Settings")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#settings")).to_be_visible()
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_what_it_says_aloud(looking: Browser, shared: Api) -> None:
    """That an answer has begun, and in the end its text: not letter by letter."""
    with open_page(looking, shared.url) as page:
        page.evaluate(
            "() => { window.heard = []; new MutationObserver(() => heard.push(said.textContent))"
            ".observe(said, {childList: true}); }"
        )
        set_to(page, Temperature="0", Tokens_at_most="40")
        ask(page, ENDLESS)
        answered(page, 1)
        expect(page.get_by_role("status")).to_contain_text(re.compile("6{40}.*complete"))
        assert len(page.evaluate("heard")) <= 4


THEMES = {"light": "rgb(246, 244, 238)", "dark": "rgb(16, 21, 19)"}


def test_the_theme_can_be_chosen(looking: Browser, shared: Api) -> None:
    """Whatever the system says; and it is kept."""
    with open_page(looking, shared.url, scheme="dark") as page:
        ground = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(ground) == THEMES["dark"]
        page.get_by_label("Theme").select_option("light")
        assert page.evaluate(ground) == THEMES["light"]
        page.reload()
        assert page.evaluate(ground) == THEMES["light"]
