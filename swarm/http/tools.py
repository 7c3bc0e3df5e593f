"""Tools that an answer may call: what a request says of them, and the grammar that calls keep to."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.errors import ConfigError
from swarm.decoding import Grammar
from swarm.decoding.grammar import check_depth
from swarm.http import limits
from swarm.http.errors import bad_request, unsupported
from swarm.text.text import Text as ModelText
from swarm.text.text import ToolFormat
from swarm.text.tool_format import NONE, UNKNOWN
from swarm.text.wire import BLANKS

_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}", re.ASCII)
_ALNUM: Final = string.ascii_letters + string.digits
_ANY_ARGUMENTS: Final = {"type": "object"}
_MORE: Final = {between: f"({json.dumps(between)} call)*" for between in (", ", "; ")}
_TEXT: Final = "TEXT: /(.|\\n)*/"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the asker has. `strict`: its schema is to be kept to the letter."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool = False

    def as_function(self) -> dict[str, Any]:
        """As chat templates take it."""
        said = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": said}


@dataclass(frozen=True, slots=True)
class Tools:
    """What may be called.

    must      whether the answer is a call
    parallel  whether it may be several
    """

    tools: tuple[Tool, ...]
    must: bool = False
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """What calls may name."""
        return frozenset(tool.name for tool in self.tools)

    def only(self, name: str) -> Tools:
        """The same where this one is to be called. Raises: ApiError, 400, if there is none of that name."""
        named = tuple(tool for tool in self.tools if tool.name == name)
        if not named:
            raise bad_request(f"tool_choice: there is no tool {name[:64]!r}", "tool_choice")
        return Tools(named, must=True, parallel=self.parallel)


def tool_of(said: Mapping[str, Any], param: str) -> Tool:
    """A function by its name, description and the schema of its parameters. Raises: ApiError, 400."""
    name, schema = said.get("name"), said.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request(f"{param}.name: 1 to 64 letters, digits and any of _ . -", f"{param}.name")
    schema = _ANY_ARGUMENTS if schema is None else schema
    if not isinstance(schema, dict):
        raise bad_request(f"{param}.parameters: a JSON schema is an object", f"{param}.parameters")
    try:
        check_depth(schema)
    except ConfigError as error:
        raise bad_request(f"{param}.parameters: {error}", f"{param}.parameters") from error
    described = said.get("description")
    return Tool(
        name,
        described if isinstance(described, str) else "",
        schema or _ANY_ARGUMENTS,
        said.get("strict") is True,
    )


def functions_of(given: Sequence[object], param: str = "tools") -> Tools:
    """Tools in OpenAI's words, and Ollama's. Raises: ApiError, 400."""
    found = []
    for index, each in enumerate(given):
        if not isinstance(each, dict) or each.get("type", "function") != "function":
            raise unsupported(f"{param}[{index}]", "tools are functions: {type: function, function: ...}")
        function = each.get("function")
        if not isinstance(function, dict):
            raise bad_request(f"{param}[{index}].function: it is missing", f"{param}[{index}].function")
        found.append(tool_of(function, f"{param}[{index}].function"))
    return checked(found, param)


def checked(tools: Sequence[Tool], param: str = "tools") -> Tools:
    """So many, each of another name. Raises: ApiError, 400."""
    if len(tools) > limits.TOOLS:
        raise bad_request(f"{param}: at most {limits.TOOLS}", param)
    if len({tool.name for tool in tools}) < len(tools):
        raise bad_request(f"{param}: two have the same name", param)
    return Tools(tuple(tools))


def chosen(tools: Tools, choice: object) -> Tools | None:
    """What `tool_choice` leaves of them, in OpenAI's words; None: nothing. Raises: ApiError, 400."""
    match choice:
        case None | "auto":
            return tools
        case "none":
            return None
        case "required":
            return Tools(tools.tools, must=True, parallel=tools.parallel)
        case {"type": "function", "function": {"name": str(name)}}:
            return tools.only(name)
    raise unsupported("tool_choice", "it is none, auto, required or a function by name")


async def tool_format(text: ModelText) -> ToolFormat:
    """How the model writes calls. Raises: ApiError, 400, where it does not, or in a way that is not known here."""
    how = await text.tools()
    if how.format == NONE:
        raise unsupported("tools", "the model's chat template knows no tools")
    if how.format == UNKNOWN:
        raise unsupported("tools", "the model's chat template writes calls in a way that is not known here")
    return how


def new_call_id() -> str:
    """An id that nobody else has, of nine letters and digits: the strictest templates take no other."""
    return "".join(secrets.choice(_ALNUM) for _ in range(9))


def calls_grammar(tools: Tools, how: ToolFormat) -> Grammar | None:
    """What an answer with these tools is a text of; None: anything, where calls cannot be told from text in time.

    Raises: ConfigError, where their schemas are too much together.
    """
    rules = [f"call: {' | '.join(f'call_{n}' for n in range(len(tools.tools)))}"]
    for number, tool in enumerate(tools.tools):
        arguments = "parameters" if how.format == "llama" else "arguments"
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "{arguments}": ')
        rules.append(f'call_{number}: {head} args_{number} "}}"')
        rules.append(f"args_{number}: %json {json.dumps(_schema(tool))}")
    start = _start(tools, how)
    return None if start is None else Grammar.lark("\n".join([*start, *rules]))


def _start(tools: Tools, how: ToolFormat) -> list[str] | None:
    """The first rules: where calls stand in an answer."""

    def mark(text: str) -> str:
        return f"<[{how.marks[text]}]>" if text in how.marks else json.dumps(text)

    match how.format:
        case "hermes":
            begin, end = mark("<tool_call>"), mark("</tool_call>")
            body = f'"\\n" call "\\n" {end}'
            if tools.must:
                more = f'("\\n" {begin} {body})*' if tools.parallel else ""
                return [f"start: {begin} {body} {more}"]
            found = _after_text(begin)
            # After the last call that there may be nothing follows: it could be another.
            start = f"start: (begun {body})* TEXT" if tools.parallel else f"start: begun {body} | TEXT"
            return [start, *found]
        case "mistral":
            begin = mark("[TOOL_CALLS]")
            body = f'"[" call {_MORE[", "] if tools.parallel else ""} "]"'
            if tools.must:
                return [f"start: {begin} {body}"]
            return [f"start: begun {body} | TEXT", *_after_text(begin)]
    if not tools.must:
        return None
    return [f"start: call {_MORE['; '] if tools.parallel else ''}"]


def _after_text(begin: str) -> list[str]:
    """A text that ends with the first such mark."""
    if begin.startswith("<["):
        return [f"begun: TEXT {begin}", _TEXT]
    return [f"begun[lazy]: TEXT {begin}", _TEXT]


def _schema(tool: Tool) -> dict[str, Any]:
    # Of a schema that is no promise what is not known is left out: it is the tool that checks what it is given.
    return {**tool.parameters, "x-guidance": {"whitespace_pattern": BLANKS, "lenient": not tool.strict}}
