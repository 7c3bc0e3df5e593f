"""A word for how a node computes: what it may be, and that nothing else becomes one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Malformed
from protocol.numerics import PRECISIONS, Numerics, parse_numerics
from tests.protocol.strategies import numerics


@given(numerics)
def test_what_is_written_is_read(said: Numerics) -> None:
    """Every word that there can be, known or not, comes back as it was."""
    assert parse_numerics(str(said)) == said
    assert len(str(said)) <= 16


@pytest.mark.parametrize("word", [*PRECISIONS, *(f"{each}/1" for each in PRECISIONS)])
def test_the_words_that_are_used(word: str) -> None:
    """With the version of an arithmetic and without."""
    assert str(parse_numerics(word)) == word


@pytest.mark.parametrize(
    "word",
    [
        "", "/", "f32/", "/1", "f32/0", "f32/01", "f32/1000", "f32/1/1", "f32 ", " f32", "f32\n", "F32", "8int",
        "int-8", "f32/1\n", "f32/\u0661", "\u017f32", "f32\u200b", "x" * 13, "$(id)",
        None, 32, b"f32", ["f32"], True, 1.5,
    ],
)  # fmt: skip
def test_nothing_else_is_one(word: Any) -> None:
    """Not a letter that could steer a terminal, hide in one, or mean something to a shell."""
    with pytest.raises(Malformed):
        parse_numerics(word)


@given(st.text(max_size=20))
def test_any_text_is_one_or_malformed(text: str) -> None:
    """Nothing else happens, and one word has one form."""
    try:
        said = parse_numerics(text)
    except Malformed:
        return
    assert str(said) == text
