"""Calls in what models write, however it is cut into pieces; what is no call stays text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.http.calls import READERS, Call, Found

NAMES = frozenset({"f", "g"})
F, G = Call("f", '{"a": 1}'), Call("g", "{}")
CASES = [
    ("hermes", 'Well.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ["Well.", F]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n<tool_call>\n{"name": "g"}\n</tool_call> Done.',
        [F, G, "Done."],
    ),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}', [F]),
    ("hermes", "a < b and <tool_ but no more ", ["a < b and <tool_ but no more "]),
    ("hermes", '<tool_call>{"name": "other"}</tool_call>', ['<tool_call>{"name": "other"}</tool_call>']),
    ("hermes", '<tool_call>{"name": ["f"]}</tool_call>', ['<tool_call>{"name": ["f"]}</tool_call>']),
    ("hermes", '<tool_call>{"name": "f", "argu', ['<tool_call>{"name": "f", "argu']),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', [F, G]),
    ("mistral", "[TOOL_CALLS] is a word", ["[TOOL_CALLS] is a word"]),
    ("mistral", 'So: [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', ["So: ", F]),
    ("llama", '{"name": "f", "parameters": {"a": 1}}', [F]),
    ("llama", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', [F, G]),
    ("llama", '{"name": "f", "parameters": [1]}', ['{"name": "f", "parameters": [1]}']),
    ("llama", "Hello {you}", ["Hello {you}"]),
    ("llama", "[" * 5000, ["[" * 5000]),
]


def joined(found: list[Found]) -> list[Found]:
    """With texts that follow one another as one."""
    parts: list[Found] = []
    for each in found:
        if isinstance(each, str) and parts and isinstance(parts[-1], str):
            parts[-1] += each
        else:
            parts.append(each)
    return parts


@pytest.mark.parametrize(("format_", "text", "expected"), CASES)
@given(cuts=st.lists(st.integers(0, 120), max_size=8))
def test_however_it_is_cut(format_: str, text: str, expected: list[Found], cuts: list[int]) -> None:
    """The same calls and the same text come out."""
    reader, found, at = READERS[format_](NAMES), list[Found](), 0
    for cut in sorted(cuts):
        found += reader.push(text[at:cut])
        at = max(at, cut)
    found += reader.push(text[at:])
    assert joined(found + reader.flush()) == expected


@given(st.sampled_from(sorted(READERS)), st.text('{}[]<>/|_tolcapyhn": \n,;f1', max_size=80))
def test_nothing_is_lost_of_what_is_no_call(format_: str, text: str) -> None:
    """But for blanks around calls."""
    reader = READERS[format_](frozenset())
    found = joined(reader.push(text) + reader.flush())
    assert "".join(each for each in found if isinstance(each, str)).split() == text.split()
