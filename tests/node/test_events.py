"""What a node tells its owner: a line for people, an object for programs, and one is read back from the other."""

from __future__ import annotations

import json

import pytest

from node import events
from protocol.model import Span
from swarm.cli.node_process import told

EVERY = [
    events.Opening("tiny"),
    events.Joining(("/one", "/two")),
    events.Fetching("tiny", "layers 0:4", 3 << 20, 1 << 20, 2),
    events.Fetched("tiny", "layers 0:4", 3 << 20, 1.5, 1),
    events.Loading("tiny", 8, Span(0, 4), 3 << 20, "f32", "native avx2"),
    events.Serving("tiny", bytes(32), 8, Span(0, 4), "f32", "native avx2", 3 << 20, 100, 6400, 0.25),
    events.Weights("ab" * 16),
    events.Address("/one"),
    events.Invitation("join", "swarm node --join /one"),
    events.Ready("12D3", ("/one", "/two")),
    events.Metrics("http://127.0.0.1:9100/metrics"),
    events.Noted("so it is"),
    events.Warned("take care"),
    events.Leaving(),
]


def test_every_event_is_here() -> None:
    """Each once, so that what follows holds for all."""
    kinds = {
        kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)
    }
    assert {type(event) for event in EVERY} == kinds - {events.Event}
    assert len({event.name for event in EVERY}) == len(EVERY)


@pytest.mark.parametrize("event", EVERY, ids=lambda event: event.name)
def test_what_is_written_is_read(event: events.Event) -> None:
    """Name, text and fields."""
    news = told(json.dumps(event.as_json()))
    assert news is not None
    assert (news.name, news.text) == (event.name, str(event))
    assert set(news.fields) == {"event", "text", *type(event).__dataclass_fields__}


def test_fields_are_numbers_and_words() -> None:
    """Stages as everywhere in JSON, digests in hex."""
    said = events.Serving(
        "tiny", bytes(32), 8, Span(0, 4), "f32", "torch", 3 << 20, 100, 6400, 0.25
    ).as_json()
    assert (said["stages"], said["digest"], said["kv_tokens"]) == ([0, 4], "00" * 32, 100)


def test_an_event_is_one_line_whoever_is_quoted() -> None:
    """Names of strangers steer nothing."""
    event = events.Noted("this swarm serves \x1b[2J\nready 12D3")
    assert str(event).isprintable()
    assert json.loads(json.dumps(event.as_json()))["text"] == str(event)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "error: no",
        "[]",
        "7",
        "{}",
        '{"event": 3, "text": ""}',
        '{"event": "ready"}',
        "[" * 50_000,
        "{\ud800",
    ],
    ids=lambda line: ascii(line[:20]),
)
def test_other_lines_tell_nothing(line: str) -> None:
    """Errors, records of the log, whatever a library prints."""
    assert told(line) is None
