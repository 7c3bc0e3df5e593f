"""Which precisions a client takes: how it says so, what it is told, and what a node is to be started with."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from protocol.errors import ConfigError, NoRoute
from protocol.numerics import PRECISIONS, Numerics, parse_numerics
from swarm.routing.precision import ANYTHING, loss, parse_precisions
from tests.protocol.strategies import numerics
from tests.swarm.test_route import node

WORDS = ("f32", "bf16", "f16", "f32/1", "bf16/1", "int8/1", "int8/2", "int8", "int4/1", "q3/9")


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("any", WORDS),
        ("exact", ("f32", "bf16", "f16", "f32/1", "bf16/1")),
        ("int8", ("int8/1", "int8/2", "int8")),
        ("int8/1", ("int8/1",)),
        (" INT8/1 , int4", ("int8/1", "int4/1")),
        ("exact,int8/2", ("f32", "bf16", "f16", "f32/1", "bf16/1", "int8/2")),
        ("f32", ("f32", "f32/1")),
        ("f32/1", ("f32/1",)),
        ("int8,any", WORDS),
    ],
)
def test_what_is_taken(text: str, taken: tuple[str, ...]) -> None:
    """A precision takes every version of it, a version only itself; words that nobody knows only `any`."""
    precisions = parse_precisions(text)
    assert tuple(word for word in WORDS if precisions.take(parse_numerics(word))) == taken


@pytest.mark.parametrize(
    "text", ["", ",", "int8,", "all", "int9", "q3/9", "int8/0", "exact/1", "int8;id", "f32," * 16 + "f32"]
)
def test_what_is_no_precision(text: str) -> None:
    """A word that is mistyped would leave everybody out: it is refused, with those there are."""
    with pytest.raises(ConfigError, match=r"give any, exact, or some of f32, bf16, f16, int8, int4"):
        parse_precisions(text)


@given(numerics)
def test_what_nobody_knows_is_taken_by_any_alone(said: Numerics) -> None:
    """And is the last that is wanted."""
    assert ANYTHING.take(said)
    if said.precision not in PRECISIONS:
        assert not any(parse_precisions(text).take(said) for text in ("exact", ",".join(PRECISIONS)))
        assert loss(said) > max(loss(Numerics(known)) for known in PRECISIONS)


def test_fewer_bits_lose_more() -> None:
    """The version does not matter."""
    assert [loss(parse_numerics(word)) for word in WORDS] == [0, 0, 0, 0, 0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("any", ""),
        ("exact", ""),
        ("exact,int8", ""),
        ("int8/1", " --quant int8"),
        ("int4,int8", " --quant int8"),
        ("int4", " --quant int4"),
        ("bf16", " --dtype bf16"),
        ("f32/1", ""),
        ("bf16,int8", " --dtype bf16"),
    ],
)
def test_what_a_node_is_started_with(text: str, option: str) -> None:
    """The best of those that are taken."""
    assert parse_precisions(text).node_option == option


def test_an_error_says_what_there_is_instead() -> None:
    """Of nodes that serve a stage that is missing; the error is the same where there are none."""
    error = NoRoute("nobody serves layers 0:3", [(1, 4)])
    int8, int4 = (Numerics(precision, 1) for precision in ("int8", "int4"))
    others = [
        replace(node(str(n), start, start + 2), numerics=kind)
        for n, (start, kind) in enumerate([(0, int8), (2, int8), (3, int4), (4, int4), (8, int8)])
    ]
    explained = parse_precisions("exact").explain(error, others)
    assert explained.missing == error.missing
    assert str(explained) == (
        "nobody serves layers 0:3 in the precision asked for, exact: there is int8/1 at 2 nodes, int4/1 at 1 node, "
        "which --precision any takes"
    )
    assert parse_precisions("exact").explain(error, others[3:]) is error
