"""How models write calls: found out of their chat templates, and held to by grammars."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swarm.decoding import Grammar
from swarm.http.tools import Tools, calls_grammar, tool_of
from swarm.text.chat_template import ChatTemplate
from swarm.text.masks import mask_process
from swarm.text.text import ToolFormat
from swarm.text.tool_format import tool_format
from tests.swarm.test_masks import of, text_with
from tests.swarm.tokenizers import model_files

HEAD = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
CALLS = "{% for m in messages %}{{ m.content }}{% for call in m.tool_calls or [] %}%s{% endfor %}{% endfor %}"
TEMPLATES = {
    "hermes": CALLS.replace("%s", '<tool_call>\n{"name": "{{ call.function.name }}"}</tool_call>'),
    "mistral": CALLS.replace("%s", "[TOOL_CALLS][{{ call.function | tojson }}]"),
    "llama": CALLS.replace(
        "%s", '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}'
    ),
    "unknown": CALLS.replace("%s", "<function={{ call.function.name }}>"),
}
F, G = '{"name": "f", "arguments": {"a": 1}}', '{"name": "g", "arguments": {}}'
TOOLS = [
    tool_of({"name": "f", "parameters": {"$ref": "#/$defs/a", "$defs": {"a": {"required": ["a"]}}}}, "tools"),
    tool_of({"name": "g", "parameters": {"type": "object", "propertyNames": {"pattern": "a"}}}, "tools"),
]
# Of each format and of what is asked: what is an answer, and what is none.
ANSWERS: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "hermes",
        {"must": True},
        [
            f"<tool_call>\n{F}\n</tool_call>",
            f"<tool_call>\n{F}\n</tool_call>\n<tool_call>\n{G}\n</tool_call>",
        ],
        ["No.", f"Yes. <tool_call>\n{F}\n</tool_call>", '<tool_call>\n{"name": "h"'],
    ),
    (
        "hermes",
        {"must": True, "parallel": False},
        [f"<tool_call>\n{F}\n</tool_call>"],
        [f"<tool_call>\n{F}\n</tool_call>\n<tool_call>\n{G}\n</tool_call>"],
    ),
    (
        "hermes",
        {},
        ["No.", f"Yes.\n<tool_call>\n{G}\n</tool_call>", f"<tool_call>\n{F}\n</tool_call>\nSo."],
        ['So <tool_call>\n{"name": "h"', "<tool_call>f"],
    ),
    ("hermes", {"parallel": False}, ["No.", f"Yes.\n<tool_call>\n{G}\n</tool_call>"], ["<tool_call>f"]),
    ("mistral", {"must": True}, [f"[TOOL_CALLS][{F}]", f"[TOOL_CALLS][{F}, {G}]"], ["No.", "[TOOL_CALLS][]"]),
    ("mistral", {}, ["No.", f"[TOOL_CALLS][{F}, {G}]"], ["[TOOL_CALLS]{"]),
    (
        "llama",
        {"must": True},
        [F.replace("arguments", "parameters"), f"{F}; {G}".replace("arguments", "parameters")],
        [F, "No."],
    ),
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_is_the_template_s(name: str) -> None:
    """By what it makes of a call."""
    assert tool_format(ChatTemplate(HEAD + TEMPLATES[name]), {}) == name


def test_a_template_that_makes_nothing_of_tools_knows_none() -> None:
    """Neither does one that refuses them."""
    assert tool_format(ChatTemplate(TEMPLATES["hermes"]), {}) == "none"
    refusing = "{% if tools %}{{ raise_exception('no') }}{% endif %}" + CALLS.replace("%s", "")
    assert tool_format(ChatTemplate(refusing), {}) == "none"


def test_what_a_template_tells_will_do_where_it_takes_no_calls() -> None:
    """One that fails at calls says in words how they are written."""
    said = "{% if tools %}Say <tool_call>\n{\"name\": ...}{% endif %}{% for m in messages %}{{ m['content'] + '' }}"
    failing = "{% if m.tool_calls %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    assert tool_format(ChatTemplate(said + failing), {}) == "hermes"


async def test_marks_that_are_special_tokens_are_named() -> None:
    """They have no text otherwise; others are text."""
    files = model_files(tokenizer_config={"chat_template": HEAD + TEMPLATES["hermes"]})
    made = json.loads(files["tokenizer.json"])
    made["added_tokens"].append(
        {**made["added_tokens"][0], "id": 399, "content": "<tool_call>", "special": True}
    )
    files["tokenizer.json"] = json.dumps(made).encode()
    async with text_with(mask_process(), files) as text:
        how = await text.tools()
        assert how.format == "hermes"
        [(mark, token)] = how.marks.items()
        assert mark == "<tool_call>"
        stream = text.stream({token: mark})
        [letter] = await text.encode("a")
        assert [await stream.push(each) for each in (letter, token, letter)] == ["a", mark, "a"]
        assert await text.decode([letter, token, letter]) == "aa"
        grammar = calls_grammar(Tools(tuple(TOOLS), must=True), how)
        assert grammar is not None
        [left] = await text.masks(of(grammar)).after([()])
        assert left.bits[token // 8] == 1 << token % 8


@pytest.mark.parametrize(("format_", "how", "right", "wrong"), ANSWERS)
async def test_answers_keep_to_the_format(
    format_: str, how: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    """Calls of tools that there are, with their arguments; and text, where no call must be."""
    async with text_with(mask_process()) as text:
        grammar = calls_grammar(Tools(tuple(TOOLS), **how), ToolFormat(format_, {}))
        assert isinstance(grammar, Grammar)
        masks = text.masks(of(grammar))
        for each in right:
            [left] = await masks.after([await text.encode(each)])
            assert left.whole, each
        for each in wrong:
            [left] = await masks.after([await text.encode(each)])
            assert not left.whole, each
            assert left.bits.strip(b"\0") == b"", each


def test_in_words_or_json_nothing_is_held_to() -> None:
    """Where a call is told from text by its first sign alone, text is free."""
    assert calls_grammar(Tools(tuple(TOOLS)), ToolFormat("llama", {})) is None
