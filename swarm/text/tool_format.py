"""How a model writes calls of tools: its chat template is asked, with a made-up tool and a call of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from protocol.errors import ConfigError, Malformed
from swarm.text.chat_template import ChatTemplate

# The templates' ways, and the marks around calls.
MARKS: Final[Mapping[str, tuple[str, ...]]] = {
    "hermes": (
        "<tool_call>",
        "</tool_call>",
    ),  # <tool_call>{"name": …, "arguments": …}</tool_call>, one or more
    "mistral": ("[TOOL_CALLS]",),  # [TOOL_CALLS][{"name": …, "arguments": …}, …]
    "llama": ("<|python_tag|>",),  # {"name": …, "parameters": …}
}
# A template that knows no tools; and one that writes calls in a way of its own.
NONE: Final = "none"
UNKNOWN: Final = "unknown"

_CALLS: Final = (
    ("hermes", re.compile(r'<tool_call>\s*\{\s*"name"')),
    ("mistral", re.compile(r'\[TOOL_CALLS\]\s*\[\s*\{\s*"name"')),
    ("llama", re.compile(r'\{\s*"name"\s*:\s*"?[^"]*"?\s*,\s*"parameters"')),
)
_NAME: Final = "look_around"
_USER: Final = {"role": "user", "content": "Where?"}
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"far": {"type": "boolean"}}, "required": ["far"]},
    },
}
_CALL: Final = {
    "role": "assistant",
    "content": "",
    # Of nine letters and digits, as the strictest templates want it.
    "tool_calls": [
        {"id": "a1b2c3d4e", "type": "function", "function": {"name": _NAME, "arguments": {"far": True}}}
    ],
}
_RESULT: Final = {"role": "tool", "name": _NAME, "tool_call_id": "a1b2c3d4e", "content": "Here."}


def tool_format(template: ChatTemplate, special: Mapping[str, str]) -> str:
    """One of MARKS, NONE or UNKNOWN. Raises: Malformed, if the template fails without tools."""
    plain = template.render([_USER], special)
    told = _rendered(template, special, [_USER])
    if told is None or told == plain:
        return NONE
    called = _rendered(template, special, [_USER, _CALL, _RESULT]) or ""
    # What is told of tools shows how calls are written as well; a call that was written comes first.
    for text in (called.removeprefix(told), told):
        for name, pattern in _CALLS:
            if pattern.search(text):
                return name
    return UNKNOWN


def _rendered(
    template: ChatTemplate, special: Mapping[str, str], messages: list[dict[str, Any]]
) -> str | None:
    try:
        return template.render(messages, special, [_TOOL])
    except (ConfigError, Malformed):
        return None
