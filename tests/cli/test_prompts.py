"""Prompts as a command is given them."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ConfigError
from swarm.cli.prompts import Given, one_line_of, parse_prompts, read_prompts


def test_lines_are_prompts() -> None:
    """As they stand, blank ones left out; a brace within the text makes no JSON of it."""
    assert list(parse_prompts('a b \n\n  c\r\n{"prompt": 1}\n')) == [
        Given("a b "),
        Given("  c"),
        Given('{"prompt": 1}'),
    ]


def test_objects_are_prompts() -> None:
    """Where the first is one: with an id of any kind, or without."""
    text = '{"prompt": "a\\nb", "id": [1]}\n\n {"prompt": "c"}'
    assert list(parse_prompts(text)) == [Given("a\nb", [1]), Given("c")]


@pytest.mark.parametrize(
    "line", ["c", '"c"', "{", '{"prompt": 1}', "{}", '{"prompt": "c", "seed": 1}', "[" * 100000]
)
def test_what_is_no_prompt_is_named_by_its_line(line: str) -> None:
    """Also a field that would say nothing."""
    with pytest.raises(ConfigError, match="line 2"):
        list(parse_prompts('{"prompt": "a"}\n' + line))


def test_prompts_are_read_from_a_file(tmp_path: Path) -> None:
    """One that has none says so."""
    file = tmp_path / "asked"
    file.write_bytes(b"a\n\xff\n")
    assert [each.text for each in read_prompts((), str(file))] == ["a", "\ufffd"]
    file.write_text("\n")
    with pytest.raises(ConfigError, match="no prompt"):
        read_prompts((), str(file))


def test_an_answer_is_one_line() -> None:
    """Whatever breaks are in it; and can be told from one that has a backslash."""
    assert one_line_of("a\nb\\n\r") == "a\\nb\\\\n\\r"
