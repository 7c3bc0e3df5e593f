"""What the text of an answer has to be: JSON, JSON of a schema, or what a regular expression or a grammar matches."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ConfigError

# Of a vocabulary, which ids are left: one truth value for each.
Mask = NDArray[np.bool_]
Kind = Literal["json_schema", "regex", "lark"]

# Schemas of whole APIs have some tens of KiB; what is larger takes seconds to compile, and masks of it take long.
SOURCE_BYTES: Final = 64 * 1024
# Objects and lists within one another, as the schema is written: recursion goes by $ref, and costs no depth.
DEPTH: Final = 64


@dataclass(frozen=True, slots=True)
class Grammar:
    """A language, and every answer is a text of it. Made by `json_schema`, `json_object`, `regex` or `lark`.

    Raises: ConfigError, where its source is too long, or nested too deeply. What it says is looked at by whoever
    computes masks, when an answer begins.
    """

    kind: Kind
    source: str

    def __post_init__(self) -> None:
        size = len(self.source.encode(errors="replace"))
        if size > SOURCE_BYTES:
            raise ConfigError(f"the grammar has {size} bytes; at most {SOURCE_BYTES} are taken")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """JSON that this schema describes; as a text, the schema as JSON. Raises: ConfigError."""
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"the schema is not JSON: {error}") from error
        if not isinstance(schema, Mapping | bool):
            raise ConfigError("a JSON schema is an object")
        check_depth(schema)
        try:
            return cls("json_schema", json.dumps(schema))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the schema is not JSON: {error}") from error

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Texts that match all of a regular expression, in the syntax of Rust's regex. Raises: ConfigError."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, source: str) -> Grammar:
        """Texts of a context-free grammar in Lark's syntax, with `start` as its first rule. Raises: ConfigError."""
        if not re.search(r"^\s*\??start\b", source, re.MULTILINE):
            raise ConfigError("the grammar has no rule `start`")
        return cls("lark", source)


class Guide(ABC):
    """Tells which tokens a grammar leaves. Whoever drives a strategy sees to it that the masks are there in time."""

    @abstractmethod
    def mask(self, tokens: Sequence[int]) -> Mask:
        """Which ids may follow `tokens`, the prompt's and the answer's, after which the model was asked."""


def check_depth(value: object) -> None:
    """Raises: ConfigError, where objects and lists of JSON are nested too deeply to be looked at."""
    level = [value]
    for _ in range(DEPTH):
        level = [inner for each in level for inner in _inner(each)]
        if not level:
            return
    raise ConfigError(f"the schema is nested more than {DEPTH} deep")


def _inner(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else []
