"""Coverage bars, JSON, and the lines about answers and events."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from protocol.model import Span
from protocol.numerics import Numerics
from protocol.records import Announcement
from swarm.answer import Answer
from swarm.cli.coverage import render
from swarm.cli.terminal import Terminal
from swarm.cli.words import News, answer_fields, describe_answer, describe_event
from swarm.coverage import by_model, coverage_fields
from swarm.decoding import Token
from swarm.events import Altered, Bridged, Event, Noticed, Rerouted, Waiting
from swarm.routing.precision import ANYTHING, Precisions, parse_precisions
from swarm.routing.route import Hop, Route

A, B = "12D3KooWaaaaaa", "12D3KooWbbbbbb"
RTT_MS = {A: 3.25, B: 1.0, B[:-1] + "c": 1.0}


def node(peer: str, start: int, stop: int, blocks: int = 8, state: str = "serving") -> Announcement:
    return Announcement(
        peer, ("/ip4/192.0.2.1/udp/1/quic-v1",), "org/model", b"\1" * 32, blocks, 64, Span(start, stop), "f32",
        Numerics("f32"), (b"\0" * 8,) * (stop - start), state, 1.5, 0.1, 0.5, 0.0, 900, 16_384, (), 1, 0.0, 1e10,
    )  # fmt: skip


def drawn(
    nodes: list[Announcement], width: int, encoding: str = "utf-8", precisions: Precisions = ANYTHING
) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=True, no_color=True, highlight=False)
    terminal = Terminal(console, console)
    with console.capture() as capture:
        terminal.show(*render(by_model(nodes, RTT_MS, None, precisions)[0], terminal, "ADDR"))
    return capture.get().replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "")


def test_bars_counts_and_holes() -> None:
    """Who serves what, how many serve each stage, and the command for each hole, whole to be copied."""
    text = drawn([node(A, 0, 4), node(B, 6, 10), node(B[:-1] + "c", 0, 10, state="joining")], 90)
    rows = [line.split() for line in text.splitlines()]
    assert "".join(rows[1][1:-1]) == "E01234567H"
    assert rows[-2][1:] == [*"1111!!1111"]
    assert text.splitlines()[-1].endswith("swarm node --model org/model --layers 3:5 --join ADDR")
    assert "nobody serves layers 3:5" in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
@pytest.mark.parametrize("blocks", [1, 8, 32, 126])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_tables_fit_any_terminal(width: int, blocks: int, encoding: str) -> None:
    """No row is wider than the screen, no bar is cut, and the whole range is drawn."""
    stages = blocks + 2
    text = drawn([node(A, 0, stages, blocks), node(B, 0, 2, blocks)], width, encoding)
    text.encode(encoding)
    table = [line for line in text.splitlines()[1:] if "nobody" not in line]
    assert all(cell_len(line) <= width for line in table)
    full = table[1 if "bbbbbb" not in table[1] else 2].split()[1]
    assert set(full) <= {"█", "#"}
    assert len(full) >= 3
    assert len(table[-1].split("nodes")[1].replace(" ", "")) == min(stages, len(full))


def test_details_where_there_is_room() -> None:
    """Precision, speed, free cache, distance and state."""
    text = drawn([node(A, 0, 10)], 120)
    for part in ("f32", "1.50", "900/16k", "3.2 ms", "serving"):
        assert part in text
    assert "serving" not in drawn([node(A, 0, 10)], 80)


def test_a_silent_node_counts_for_nothing() -> None:
    """One that died is announced for a minute still: it is drawn as silent, and its layers are a hole."""
    text = drawn([node(A, 0, 10), node("12D3KooWghosts", 0, 10)], 120)
    assert ("█" * 10 in text, "▒" * 10 in text) == (True, True)
    assert ("silent" in text, text.splitlines()[-1].split()[1:]) == (True, [*"1111111111"])
    [dead] = by_model([node("12D3KooWghosts", 0, 10)], RTT_MS)
    assert dead.missing == [Span(0, 10)]


def test_who_is_not_taken_counts_for_nothing() -> None:
    """Drawn, with what it computes in; holes are those in the precision asked for, and so are their commands."""
    nodes = [replace(node(A, 0, 10), numerics=Numerics("int4", 1)), node(B, 0, 4)]
    text = drawn(nodes, 120, precisions=parse_precisions("f32"))
    assert "int4/1" in text
    assert ("▒" * 10 in text, "█" * 10 in text) == (True, False)
    assert text.splitlines()[-1].split()[:6] == ["nobody", "serves", "layers", "3:8", "+", "head"]
    assert text.splitlines()[-1].endswith(
        "in f32 — to fill it: swarm node --model org/model --layers 3:8 --dtype f32 --join ADDR"
    )
    assert "nobody" not in drawn(nodes, 120, precisions=parse_precisions("exact,int4"))


def test_several_kinds_are_told_also_where_there_is_no_column_for_it() -> None:
    """In one line, which a swarm of one kind does not need."""
    nodes = [replace(node(A, 0, 10), numerics=Numerics("int4", 1)), node(B, 0, 4), node(B[:-1] + "c", 0, 4)]
    line = "computed in f32 at 2 nodes, int4/1 at 1 node"
    assert line in drawn(nodes, 80).splitlines()
    assert line not in drawn(nodes, 120)
    assert "computed in" not in drawn(nodes[1:], 80)


def test_the_longest_word_costs_details_and_not_the_bar() -> None:
    """A stranger's word for its numerics is up to 16 cells wide."""
    wide = replace(node(A, 0, 10), numerics=Numerics("x" * 12, 999))
    assert "xxxxxxxxxxxx/999" in drawn([wide], 120)
    for width in (100, 110, 120, 140):
        text = drawn([wide], width)
        assert "█" * 10 in text
        assert all(cell_len(line) <= width for line in text.splitlines())


def test_json_of_coverage() -> None:
    """It is JSON, and says what is missing and how to fill it."""
    fields = json.loads(json.dumps(coverage_fields(by_model([node(A, 0, 4)], RTT_MS)[0], "ADDR")))
    assert (fields["precision"], fields["nodes"][0]["numerics"]) == ("any", "f32")
    assert (fields["complete"], fields["layers"], fields["nodes"][0]["rtt_ms"]) == (False, 8, 3.25)
    assert fields["missing"][0]["command"] == "swarm node --model org/model --layers 3:8 --join ADDR"
    assert fields["missing"][0]["stages"] == [4, 10]


def test_a_model_name_cannot_become_a_command() -> None:
    """What a stranger calls a model is quoted in the command that we tell a user to run."""
    evil = replace(node(A, 0, 4), model="x; rm -rf \x1b[2J$(id)")
    command = by_model([evil], RTT_MS)[0].fill(Span(4, 10), "ADDR")
    assert command == "swarm node --model 'x; rm -rf [2J$(id)' --layers 3:8 --join ADDR"


SESSION = "5e55104e"
ROUTE = Route((Hop(A, (), Span(0, 5), 2.0), Hop(B, (), Span(5, 10), 3.0)), 8, 5.0)
LOST = Rerouted(SESSION, A, Span(0, 5), "gone", (B,), 0.314)
FULL_ID = "12D3KooWL6mTvFXi9JSMNbz6Q1PG2sgCYaqje8mdbLGWmYpXG3Vk"
TOKENS = tuple(Token(token, -0.5) for token in (5, 6, 7))
ANSWER = Answer("hi", TOKENS, 4, "length", 1.25, 0.25, ROUTE, (LOST,))


def test_the_line_under_an_answer() -> None:
    """Time, speed, first token, way, and what went wrong on it."""
    line = "1.25 s · 2.0 tok/s · TTFT 0.25 s · 2 hops via 2 peers · 1 reroute · cut at 3 tokens"
    assert describe_answer(ANSWER) == line
    short = replace(ANSWER, chosen=TOKENS[:1], reroutes=(), finish_reason="cancelled", seconds=0.25)
    assert describe_answer(short) == "0.25 s · TTFT 0.25 s · 2 hops via 2 peers · stopped"


def test_events_are_one_line_each() -> None:
    """With peers by the end of their id, or by the name given."""
    assert (
        describe_event(LOST, 8)
        == "↻ lost …aaaaaa (gone); embedding + layers 0:4 now at …bbbbbb, after 0.31 s"
    )
    assert describe_event(LOST, 8, {B: "node 2"}).count("node 2") == 1
    altered = Altered(SESSION, Span(5, 8), Numerics("int8", 1), Numerics("f32"))
    assert describe_event(altered, 8) == (
        "↻ layers 4:7 now in f32, before in int8/1: the answer may differ from here on"
    )
    assert "(…pXG3Vk left)" in describe_event(replace(LOST, reason=f"{FULL_ID} left"))
    for event in (
        LOST,
        altered,
        Bridged(SESSION, (A, B), "no way"),
        Waiting(None, (), "nobody serves it", 5),
        Noticed("hm"),
    ):
        assert "\n" not in describe_event(event)


def test_a_wait_is_told_once() -> None:
    """Until something else happens, or something else is waited for."""
    news = News()
    events: list[Event] = [
        Waiting(None, (), "a", 9),
        Waiting(None, (), "a", 8),
        Waiting(None, (), "b", 7),
        Noticed("x"),
        Waiting(None, (), "b", 6),
    ]
    told = [news.line(event) is not None for event in events]
    assert told == [True, False, True, True, True]


def test_json_of_an_answer() -> None:
    """It is JSON and has all that the line says."""
    fields = json.loads(json.dumps(answer_fields(ANSWER, "model", 8)))
    assert fields["tokens"] == [5, 6, 7]
    assert fields["reroutes"][0]["lost"] == A
    assert fields["altered"] == []
    assert [hop["serves"] for hop in fields["route"]] == ["embedding + layers 0:4", "layers 4:8 + head"]
