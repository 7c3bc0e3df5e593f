"""What the page makes of the state that it is told, and that it keeps no more than it shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.http.swarm import api
from tests.page.browser import open_page

pytestmark = [pytest.mark.net, pytest.mark.process, pytest.mark.timeout(120)]

# A swarm of two layers and the nodes that a script gives it.
BEGIN = """const { Swarm, runs, verdict } = await import("/page/swarm.js");
const node = (peer, from, to, state = "serving") => (
  {peer, stages: [from, to], state, taken: state === "serving", serves: peer});
const status = (nodes, under_way = []) => {
  const copies = [0, 1, 2, 3].map(s => nodes.filter(n => n.taken && n.stages[0] <= s && s < n.stages[1]).length);
  const model = {digest: "m", layers: 2, nodes, copies, complete: !copies.includes(0), missing: []};
  return {joined: true, model: {digest: "m", name: "m"}, models: [model], doing: {under_way}};
};
let now = 0;
const swarm = new Swarm(() => now);
"""


@pytest.fixture(scope="module")
def page(looking: Browser) -> Iterator[Page]:
    """Any page of ours, for its modules."""
    with api() as found, open_page(looking, found.url) as opened:
        yield opened


def run(page: Page, script: str) -> Any:
    """What a script returns that begins with a swarm."""
    return page.evaluate(f"async () => {{ {BEGIN} {script} }}")


def test_what_has_become_of_nodes(page: Page) -> None:
    """Joined, silent, gone; nothing of the first state, which is no news."""
    script = """
    const [a, b, silent] = [node("a", 0, 4), node("b", 0, 2), node("a", 0, 4, "silent")];
    for (const nodes of [[a], [a, b], [silent, b], [a]]) swarm.hear("status", status(nodes));
    return swarm.events.map(e => [e.kind, e.peer]);"""
    assert run(page, script) == [["gone", "b"], ["joined", "a"], ["silent", "a"], ["joined", "b"]]


def test_a_node_that_fails_counts_no_more(page: Page) -> None:
    """At once, before the map has been asked for; until it serves again or is said to be silent."""
    script = """
    swarm.hear("status", status([node("a", 0, 4), node("b", 2, 4)]));
    const seen = [swarm.copies];
    const lost = {kind: "rerouted", lost: "b", layers: "x", replacements: ["a"], seconds: 1, reason: ""};
    swarm.hear("event", {...lost, number: 1, at: 1});
    seen.push(swarm.copies, verdict(swarm.model, swarm.nodes, swarm.copies).tone);
    now = 61000;
    swarm.hear("status", status([node("a", 0, 4), node("b", 2, 4)]));
    return [...seen, swarm.copies, swarm.lost.size];"""
    assert run(page, script) == [[1, 1, 2, 2], [1, 1, 1, 1], "thin", [1, 1, 2, 2], 0]


def test_events_are_told_once_and_in_order(page: Page) -> None:
    """Also after a reconnection; those of the past take their place; of many answers a few are left."""
    script = """
    const event = (number, at, more) => swarm.hear("event", {number, at, kind: "noticed", text: "x", ...more});
    swarm.hear("status", status([node("a", 0, 4)]));
    event(3, 30); event(1, 10, {past: true}); event(2, 20, {past: true}); event(3, 30, {past: true});
    const numbers = swarm.events.map(e => e.number);
    for (let id = 0; id < 50; id++) {
      swarm.hear("answer", {kind: "began", id, route: []});
      swarm.hear("answer", {kind: "ended", id, tokens: 1, seconds: 1, ttft_s: 1, tokens_per_s: 1});
    }
    for (let n = 4; n < 500; n++) event(n, n);
    return [numbers, swarm.events.length, swarm.answers.size];"""
    assert run(page, script) == [[3, 2, 1], 60, 0]


def test_answers_that_went_unseen_are_let_go(page: Page) -> None:
    """The state says which there are; whoever lagged behind comes to it again."""
    script = """
    const route = [{peer: "a", stages: [0, 4]}];
    swarm.hear("answer", {kind: "began", id: 1, route});
    swarm.hear("status", status([node("a", 0, 4)], [{id: 2, route}, {id: 3, route}]));
    return [[...swarm.answers.keys()], swarm.routes.map(r => r.answers)];"""
    assert run(page, script) == [[2, 3], [2]]


def test_equal_neighbours_are_one_run(page: Page) -> None:
    """As the row of copies is drawn."""
    expected = [
        {"from": 0, "to": 2, "value": 1},
        {"from": 2, "to": 3, "value": 0},
        {"from": 3, "to": 4, "value": 1},
    ]
    assert run(page, "return runs([1, 1, 0, 1]);") == expected
