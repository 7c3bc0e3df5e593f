"""What befalls the swarm while it is asked by HTTP: nodes that die, crowds, and what watchers see of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from node.compute.interfaces import PAGE_POSITIONS
from swarm.http import limits
from swarm.http.settings import Settings
from tests.http.swarm import Api, answer_of, api
from tests.http.test_hangups import endless
from tests.support.waiting import block_until

NEW = 40


def frames(said: httpx.Response) -> Iterator[dict[str, Any]]:
    """What a stream says, as it says it."""
    for line in said.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


@pytest.mark.parametrize("stream", [True, False])
def test_a_node_that_dies_is_replaced_and_it_is_told(stream: bool) -> None:
    """The text is what it would have been; the answer says that it was rerouted, and by whom it was made."""
    with api((0, 4), (4, 8), (4, 8), slow=(2,), step_s=0.04) as found:
        body = {
            "prompt": endless(),
            "temperature": 0,
            "max_tokens": NEW,
            "stream": stream,
            "swarm": {"events": True},
        }
        dead, spare = found.world.nodes[1].peer, found.world.nodes[2].peer
        with ThreadPoolExecutor(1) as pool, found.client() as client:
            asked = pool.submit(client.post, "/v1/completions", json=body)
            block_until(lambda: found.steps() > 6)
            found.portal.soon(lambda: found.world.network.kill(dead))
            said = asked.result()
        if stream:
            told = list(frames(said))
            text = "".join(each["choices"][0]["text"] for each in told)
            [event] = [e["swarm"]["event"] for e in told if "event" in e.get("swarm", {})]
            assert (event["kind"], event["lost"], event["replacements"]) == ("rerouted", dead, [spare])
            how = told[-1]["swarm"]
        else:
            text, how = said.json()["choices"][0]["text"], said.json()["swarm"]
        assert text == answer_of(found, endless(), NEW)
        assert [each["lost"] for each in how["reroutes"]] == [dead]
        assert [hop["peer"] for hop in how["route"]] == [found.world.nodes[0].peer, spare]


def test_nobody_is_left_in_mid_stream() -> None:
    """The stream ends with an error, and without the word that says that all is well."""
    with api(step_s=0.01) as found, found.client() as client:
        body = {"prompt": endless(), "temperature": 0, "max_tokens": NEW, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as said:
            lines = said.iter_lines()
            next(lines)
            found.portal.soon(lambda: found.world.network.kill(found.world.nodes[1].peer))
            rest = [line for line in lines if line]
        assert "[DONE]" not in rest[-1]
        assert json.loads(rest[-1][6:])["error"]["code"] == "no_route"
        block_until(lambda: found.sessions() == 0)


def test_a_crowd_is_answered_or_told_to_come_again() -> None:
    """64 at once where nodes have keys and values for 8: an answer or a 429 each, and nothing is left of them."""
    settings = Settings(port=0, places=24, queued=24)
    with api(step_s=0.002, settings=settings, kv_tokens=8 * PAGE_POSITIONS) as found:
        prompts = [[3 + n % 29, 3 + n // 29, 5] for n in range(64)]
        expected = {tuple(prompt): answer_of(found, prompt, 5) for prompt in prompts}

        def ask(prompt: list[int]) -> tuple[tuple[int, ...], httpx.Response]:
            with found.client() as client:
                body = {"prompt": prompt, "temperature": 0, "max_tokens": 5}
                return tuple(prompt), client.post("/v1/completions", json=body)

        with ThreadPoolExecutor(64) as pool:
            said = list(pool.map(ask, prompts))
        answered = {prompt: each.json() for prompt, each in said if each.status_code == 200}
        told = [each for _, each in said if each.status_code == 429]
        others = {each.text for _, each in said if each.status_code not in (200, 429)}
        assert not others
        assert len(answered) >= 8
        assert len(answered) + len(told) == len(prompts)
        assert all(int(each.headers["retry-after"]) >= 1 for each in told)
        for prompt, answer in answered.items():
            assert answer["choices"][0]["text"] == expected[prompt]
        line, pool_of_idle = found.serving.service.line, found.serving.service.pool
        assert (line.active, line.waiting) == (0, 0)
        # Idle ones may have given way at the nodes; what nobody knows of is not there.
        block_until(lambda: found.sessions() <= 2 * pool_of_idle.size)


def test_watchers_see_the_state_and_what_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """First the whole state; then events as they happen, and the state again when it is another."""
    monkeypatch.setattr(limits, "STATUS_S", 0.1)
    with (
        api((0, 4), (4, 8), (4, 8), slow=(2,), step_s=0.04) as found,
        found.client() as client,
        client.stream("GET", "/swarm/events") as said,
    ):
        told = frames(said)
        state = next(told)
        assert state["model"]["name"] == "fake"
        assert [len(model["nodes"]) for model in state["models"]] == [3]
        with ThreadPoolExecutor(1) as pool, found.client() as other:
            body = {"prompt": endless(), "temperature": 0, "max_tokens": NEW}
            asked = pool.submit(other.post, "/v1/completions", json=body)
            block_until(lambda: found.steps() > 6)
            dead = found.world.nodes[1].peer
            found.portal.soon(lambda: found.world.network.kill(dead))
            lost = silent = False
            while not (lost and silent):
                seen = next(told)
                lost = lost or (seen.get("kind"), seen.get("lost")) == ("rerouted", dead)
                silent = silent or _state_of(seen, dead) == "silent"
            assert asked.result().status_code == 200


def test_watchers_see_answers_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks: along which hops, how many tokens so far, and the end; those that were left too. No text."""
    monkeypatch.setattr(limits, "PROGRESS_S", 0.0)
    with (
        api(step_s=0.005) as found,
        found.client() as client,
        client.stream("GET", "/swarm/events") as said,
        found.client() as other,
    ):
        told = (each for each in frames(said) if "kind" in each)
        body = {
            "prompt": endless(),
            "temperature": 0,
            "max_tokens": 5,
            "swarm": {"strategy": "greedy"},  # a token each time
        }
        answer = other.post("/v1/completions", json=body).json()
        seen = [next(told) for _ in range(7)]
        assert [each["kind"] for each in seen] == ["began", *["tokens"] * 5, "ended"]
        peers = [node.peer for node in found.world.nodes]
        assert [hop["peer"] for hop in seen[0]["route"]] == peers
        assert [each["tokens"] for each in seen[1:]] == [1, 2, 3, 4, 5, 5]
        assert [hop["peer"] for hop in seen[-1]["route"]] == peers
        assert answer["choices"][0]["text"] not in json.dumps(seen)
        with other.stream("POST", "/v1/completions", json={**body, "max_tokens": NEW, "stream": True}):
            assert next(told)["kind"] == "began"
        assert next(each["kind"] for each in told if each["kind"] != "tokens") == "left"


def test_who_comes_later_is_told_what_happened() -> None:
    """The latest events, with when that was; and the state says how to join, and how many copies there are."""
    with api((0, 4), (4, 8), (4, 8), slow=(2,), step_s=0.01) as found, found.client() as client:
        dead = found.world.nodes[1].peer
        with ThreadPoolExecutor(1) as pool, found.client() as other:
            body = {"prompt": endless(), "temperature": 0, "max_tokens": NEW}
            asked = pool.submit(other.post, "/v1/completions", json=body)
            block_until(lambda: found.steps() > 6)
            found.portal.soon(lambda: found.world.network.kill(dead))
            assert asked.result().status_code == 200
        with client.stream("GET", "/swarm/events") as said:
            told = frames(said)
            state, event = next(told), next(told)
        assert state["commands"]["node"].startswith("swarm node --join ")
        assert len(state["models"][0]["copies"]) == state["models"][0]["layers"] + 2
        assert (event["kind"], event["lost"], event["number"], event["past"]) == ("rerouted", dead, 1, True)
        assert event["at"] > 1.7e9


def test_a_strategy_can_be_asked_for_in_every_dialect() -> None:
    """Within `swarm`; a word that names none is 400."""
    with api() as found, found.client() as client:
        for path, body in (
            ("/v1/completions", {"prompt": endless(), "max_tokens": 3}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "51"}], "max_tokens": 3}),
        ):
            said = client.post(path, json={**body, "swarm": {"strategy": "greedy"}})
            assert said.status_code == 200, said.text
            refused = client.post(path, json={**body, "swarm": {"strategy": "magic"}})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "swarm.strategy"


def test_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is told so, and a place is free again when one has left."""
    monkeypatch.setattr(limits, "WATCHERS", 1)
    with api() as found, found.client() as client:
        with client.stream("GET", "/swarm/events") as said:
            told = frames(said)
            assert next(told)["joined"]
            with found.client() as other:
                assert other.get("/swarm/events").status_code == 429
        block_until(lambda: _can_watch(found))


def _can_watch(found: Api) -> bool:
    with found.client() as client, client.stream("GET", "/swarm/events") as said:
        return said.status_code == 200


def _state_of(said: dict[str, Any], peer: str) -> str | None:
    nodes = [node for model in said.get("models", []) for node in model["nodes"]]
    return next((node["state"] for node in nodes if node["peer"] == peer), None)
