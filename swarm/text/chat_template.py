"""Chat templates: small programs that strangers' nodes hand out. They run in the text process only.

Jinja2's immutable sandbox keeps a template from reaching Python; what it may take of time and memory is what that
process may take. Here is what makes a template mean the same as in transformers.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from protocol.errors import ConfigError, Malformed, SwarmError


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here they are just the words."""

    tags = {"generation"}  # noqa: RUF012 -- the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class ChatTemplate:
    """A compiled template. Raises: Malformed, if it is none."""

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source)
        except MemoryError:
            raise
        except Exception as error:
            raise Malformed(f"the model's chat template cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        special: Mapping[str, str],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt for the assistant's next words. `special`: bos_token, eos_token and the like.

        `tools` are what it may call, each as JSON Schema has functions: `type` and `function`.

        Raises: ConfigError, if the template refuses these messages; Malformed, if it fails.
        """
        said = {"messages": [dict(message) for message in messages], "tools": list(tools) if tools else None}
        variables = {"documents": None, **special, **said}
        try:
            return self._template.render(variables, add_generation_prompt=True)
        except (SwarmError, MemoryError):
            raise
        except Exception as error:
            raise Malformed(f"the model's chat template fails: {type(error).__name__}: {error}") from error


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **how: Any) -> str:
    # Not Jinja's own, which escapes HTML.
    separators, sort_keys = how.get("separators"), bool(how.get("sort_keys", False))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: object) -> None:
    raise ConfigError(f"the model's chat template refuses this conversation: {message}")


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)
