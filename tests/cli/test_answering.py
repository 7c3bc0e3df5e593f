"""What is typed about an answer, and what is asked by it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ConfigError
from swarm.cli.answering import AnswerOptions, checked, set_option, settings_of, settled
from swarm.cli.chat import ChatOptions
from swarm.cli.origins import Origin, Rank
from swarm.decoding import (
    BeamSearch,
    BestOf,
    Grammar,
    Greedy,
    Sampling,
    Speculative,
    choose_strategy,
    parse_strategy,
)
from swarm.request import Request

USUAL = AnswerOptions()


def test_every_setting_can_be_typed() -> None:
    """Each field of a Sampling is an option; without any, an answer is what the library makes of nothing."""
    names = {field.name for field in fields(Sampling)}
    assert names <= set(settings_of(USUAL))
    assert USUAL.request() == Request(256, Sampling())


def test_what_is_typed_is_asked() -> None:
    """Lists with commas or repeated, biases by id, strategies with their parameters."""
    options = AnswerOptions(
        stop=["\n\n"],
        strategy="beam_search:beams=3,early_stopping=never,length_penalty=0.5",
        repetition_penalty=1.1,
        logit_bias=["5=-2.5", "7=1"],
        allowed=["1,2", "3"],
        banned=["4, 5"],
        max_seconds=2.5,
    )
    sampling = Sampling(
        repetition_penalty=1.1,
        logit_bias={5: -2.5, 7: 1.0},
        allowed=frozenset({1, 2, 3}),
        banned=frozenset({4, 5}),
    )
    assert options.request(3) == Request(
        256, sampling, BeamSearch(3, 0.5, "never"), ("\n\n",), max_seconds=2.5, top_logprobs=3
    )


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("auto", "auto"),
        ("greedy", Greedy()),
        ("best_of:answers=8", BestOf(8)),
        ("beam_search:early_stopping=true", BeamSearch(early_stopping=True)),
        ("beam_search:early_stopping=false,returned=2", BeamSearch(returned=2)),
    ],
)
def test_strategies_as_they_are_written(text: str, strategy: object) -> None:
    """A name, and after a colon its parameters."""
    assert parse_strategy(text) == strategy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("beam", "beam_search"),
        ("beam_search:width=3", "beams"),
        ("beam_search:beams=many", "whole number"),
        ("beam_search:beams=0", "from 1"),
        ("beam_search:early_stopping=soon", "never"),
        ("greedy:beams=3", "no parameters"),
        ("auto:x=1", "auto"),
        ("top_k:k=40", "no parameters"),
    ],
)
def test_strategies_that_there_are_not(text: str, says: str) -> None:
    """One line that says what there is."""
    with pytest.raises(ConfigError, match=says):
        parse_strategy(text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (AnswerOptions(logit_bias=["5"]), "ID=VALUE"),
        (AnswerOptions(logit_bias=["a=1"]), "ID=VALUE"),
        (AnswerOptions(banned=["the"]), "banned"),
        (AnswerOptions(allowed=[""]), "allowed"),
        (AnswerOptions(stop=[""]), "stop"),
        (AnswerOptions(top_p=3.0), "top_p"),
        (AnswerOptions(strategy="best_of"), "temperature"),
        (AnswerOptions(strategy="greedy", temperature=1.0), "temperature"),
        (AnswerOptions(strategy="top_k", temperature=1.0), "give top_k"),
    ],
)
def test_what_cannot_be_asked(options: AnswerOptions, says: str) -> None:
    """One line that names the option."""
    with pytest.raises(ConfigError, match=says):
        options.request()


def test_settings_change_in_a_chat() -> None:
    """As they would be typed as options; default takes one back; what cannot be changes nothing."""
    options = ChatOptions()
    for name, text in [
        ("temperature", "0.5"),
        ("top-k", "7"),
        ("stop", "the end"),
        ("banned", "1,2"),
        ("seed", "3"),
    ]:
        options = set_option(options, name, text)
    assert options.request() == Request(
        512, Sampling(0.5, top_k=7, banned=frozenset({1, 2}), seed=3), stop=("the end",)
    )
    for name in ("temperature", "top_k", "stop", "banned", "seed"):
        options = set_option(options, name, "default")
    assert options == ChatOptions()
    for name, text, says in [
        ("temprature", "1", "temperature"),
        ("join", "x", "no setting"),
        ("seed", "x", "whole number"),
        ("top_p", "", "a number"),
        ("top_p", "7", "top_p"),
        ("strategy", "top_p", "give top_p"),
        ("stream", "maybe", "true or false"),
        ("mode", "wild", "exploratory"),
    ]:
        with pytest.raises(ConfigError, match=says):
            set_option(options, name, text)


def test_a_strategy_may_be_called_by_its_setting() -> None:
    """As other programs do; the setting has to be in use."""
    for name, given in [("top_k", {"top_k": 40}), ("top_p", {"top_p": 0.9})]:
        sampling = Sampling(temperature=1.0, **given)  # type: ignore[arg-type]
        assert choose_strategy(parse_strategy(name), sampling) == Speculative()


SUGGESTED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}


def at(rank: Rank, **given: Any) -> ChatOptions:
    """Options that some place says."""
    return ChatOptions(**given, origins={name: Origin(rank, "there") for name in given})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (at(Rank.FILE), SUGGESTED),
        (at(Rank.FILE, temperature=0.0), {**SUGGESTED, "temperature": 0.0}),
        (at(Rank.FLAG, strategy="greedy"), {"repetition_penalty": 1.05, "temperature": 0.0, "top_p": 1.0}),
        (at(Rank.FLAG, strategy="beam_search"), {"temperature": 0.0, "top_k": 0}),
        (at(Rank.FLAG, strategy="top_p"), SUGGESTED),
        (at(Rank.FILE, mode="focused"), {"temperature": 0.3, "top_p": 0.9, "top_k": 0}),
        (at(Rank.FILE, mode="focused", temperature=0.5), {"temperature": 0.5, "top_p": 0.9, "top_k": 0}),
        (at(Rank.FILE, mode="focused", strategy="greedy"), {"strategy": "greedy", "temperature": 0.0}),
    ],
)
def test_what_the_model_suggests_is_below_all_that_is_said(
    options: ChatOptions, expected: dict[str, Any]
) -> None:
    """Of the model, of a mode and of strategies that draw nothing only as much as nobody nearer denies."""
    held = settled(options, SUGGESTED)
    held.request()
    assert {name: getattr(held, name) for name in expected} == expected


def test_a_strategy_that_draws_has_a_temperature() -> None:
    """1, where nobody says one; who says 0 is told."""
    assert settled(at(Rank.FLAG, strategy="best_of"), {}).temperature == 1
    with pytest.raises(ConfigError, match="temperature"):
        settled(at(Rank.FLAG, strategy="sample", temperature=0.0), {}).request()
    with pytest.raises(ConfigError, match="leave out temperature"):
        checked(at(Rank.FLAG, strategy="greedy", temperature=1.0))
    checked(at(Rank.FLAG, strategy="top_k"))  # the model may suggest one


def test_a_mode_in_a_chat_takes_the_place_of_what_was_said_before() -> None:
    """And default goes back to what the chat began with."""
    begun = at(Rank.FLAG, temperature=0.7)
    options = begun
    for name, text in [("temperature", "0.2"), ("mode", "exploratory")]:
        options = set_option(options, name, text, begun, SUGGESTED)
    held = settled(options, SUGGESTED)
    assert (held.temperature, held.min_p, held.top_p, held.top_k) == (1.0, 0.05, 1.0, 0)
    options = set_option(options, "mode", "default", begun, SUGGESTED)
    held = settled(options, SUGGESTED)
    assert (held.temperature, held.min_p, held.top_p, held.top_k) == (0.7, 0.0, 0.95, 20)
    assert held.origins["temperature"].text == "there"


def test_a_schema_comes_from_a_file(tmp_path: Path) -> None:
    """One that is none, or is not there, is told with its option or what is wrong with it."""
    file = tmp_path / "city.json"
    file.write_text('{"type": "object"}')
    grammar = AnswerOptions(json_schema=str(file)).request().grammar
    assert grammar == Grammar.json_object()
    file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        AnswerOptions(json_schema=str(file)).request()
    with pytest.raises(ConfigError, match="--json-schema"):
        AnswerOptions(json_schema=str(tmp_path / "none.json")).request()


def test_other_models_that_a_file_names_wait_for_a_strategy_that_uses_them() -> None:
    """Who types one that is of no use is told by the client."""
    for strategy, amateur, draft in [("auto", None, "b"), ("contrastive", "a", None), ("greedy", None, None)]:
        held = checked(at(Rank.FILE, strategy=strategy, amateur="a", draft="b"))
        assert (held.amateur, held.draft) == (amateur, draft)
    assert checked(at(Rank.FLAG, strategy="greedy", amateur="a", draft="b")).amateur == "a"
