"""Numbers for Prometheus: of a node, and of an API; and that the dashboard asks for what there is."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from node import metrics as of_node
from node.compute.counts import Histogram
from protocol.errors import ConfigError
from protocol.messages import Refused
from swarm.cli.demo_nodes import shipped_model
from tests.http.swarm import api
from tests.support.commands import run
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm, wait_for_news
from tests.support.processes import Processes
from tests.support.waiting import block_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def swarm_of_one(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """A node whose numbers can be asked for."""
    with Processes(launch=forge.start) as processes:
        nodes = LocalSwarm(
            processes, shipped_model(), tmp_path_factory.mktemp("one"), extra=["--metrics", "0"]
        )
        nodes.start("0:8")
        yield nodes


def url_of(nodes: LocalSwarm) -> str:
    """Where its numbers are."""
    url: str = wait_for_news(nodes.nodes[0].process, "metrics").fields["url"]
    return url


def values(text: str) -> dict[str, float]:
    """By name and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.mark.net
def test_a_node_counts_what_it_does(swarm_of_one: LocalSwarm, tmp_path: Path) -> None:
    """Before and after an answer; and no peer's name is in it."""
    url = url_of(swarm_of_one)
    before = values(httpx.get(url).text)
    assert (before["swarm_node_serving"], before["swarm_node_opened_total"]) == (1, 0)
    done = run("generate", "What is the capital of France?", "--join", swarm_of_one.join, home=tmp_path)
    assert "Paris" in done.stdout
    block_until(lambda: values(httpx.get(url).text)["swarm_node_sessions"] == 0)
    text = httpx.get(url).text
    after = values(text)
    assert after["swarm_node_opened_total"] == 1
    assert after["swarm_node_steps_total"] == after["swarm_node_queue_seconds_count"] > 3
    assert after["swarm_node_tokens_total"] == after["swarm_node_batch_tokens_sum"] > 20
    assert after["swarm_node_kv_free"] == after["swarm_node_kv_tokens"] > 0
    for way in ("sent", "received"):
        assert after[f"swarm_node_bytes_total{{way={way}}}"] > 1000
    assert "12D3KooW" not in text
    assert not re.search(r"/(ip4|ip6)/", text)


@pytest.mark.net
def test_who_asks_and_says_nothing_holds_nobody_up(swarm_of_one: LocalSwarm) -> None:
    """Not for long; and what is no request is not logged."""
    url = httpx.URL(url_of(swarm_of_one))
    with socket.create_connection((url.host, url.port or 0)):
        assert httpx.get(url, timeout=20).status_code == 200
    with socket.create_connection((url.host, url.port or 0)) as garbage:
        garbage.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert httpx.get(url, timeout=20).status_code == 200
    assert all(line.startswith("{") for line in swarm_of_one.nodes[0].process.lines)


@pytest.mark.net
def test_the_dashboard_asks_for_what_there_is(swarm_of_one: LocalSwarm) -> None:
    """Every metric that it names is one of a node or of an API, and of those none is left out."""
    named = set(re.findall(r"swarm_\w+", (ROOT / "docs" / "grafana.json").read_text("utf-8")))
    with api() as running, running.client() as client:
        texts = (httpx.get(url_of(swarm_of_one)).text, client.get("/metrics").text)
    families = [family for text in texts for family in text_string_to_metric_families(text)]
    there = {sample.name for family in families for sample in family.samples}
    made = {name for name in there if not name.endswith("_created")}
    # Those with labels come with the first of their kind.
    made |= {"swarm_http_requests_total", "swarm_answers_total"}
    assert named <= made
    basic = {re.sub(r"_(bucket|sum|count)$", "", name) for name in made}
    assert basic == {re.sub(r"_bucket$", "", name) for name in named}
    json.loads((ROOT / "docs" / "grafana.json").read_text("utf-8"))


def test_an_histogram() -> None:
    """Bounds count what is at most them."""
    found = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        found.observe(value)
    assert (found.cumulative, found.sum) == ([2, 3, 4], 12.0)


def test_all_codes_of_refusals_are_counted() -> None:
    """Each is one of the protocol, which says so itself."""
    for code in of_node.CODES:
        Refused(code, "why", 0.0)


@pytest.mark.parametrize(
    ("place", "means"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:2", ("::1", 2)),
        ("x", None),
        ("1:99999", None),
    ],
)
def test_where_metrics_are_asked_for(place: str, means: tuple[str, int] | None) -> None:
    """A port alone is for this machine."""
    if means is not None:
        assert of_node.parse_place(place) == means
        return
    with pytest.raises(ConfigError, match="9464"):
        of_node.parse_place(place)
