"""Rules for the fields of messages: how a value is packed, and what bytes may become that value.

A rule's `parse` takes what msgpack gave and returns the value, or raises Malformed or TooLarge; nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from protocol import limits
from protocol.candidates import Candidates, candidates_from_tensors
from protocol.errors import Malformed, TooLarge
from protocol.model import Span
from protocol.plain import plain
from protocol.tensors import Tensor, parse_tensor
from protocol.transport.addresses import sound_addresses


@dataclass(frozen=True, slots=True)
class Rule:
    """How one field crosses the wire."""

    pack: Callable[[Any], Any]
    parse: Callable[[Any], Any]


def wire(rule: Rule, **default: Any) -> Any:
    """A dataclass field that crosses the wire by `rule`."""
    return field(metadata={"rule": rule}, **default)


def _same(value: Any) -> Any:
    return value


def uint(most: int) -> Rule:
    """An integer from 0 to `most`."""

    def parse(value: Any) -> int:
        if type(value) is not int or value < 0:
            raise Malformed("expected a non-negative integer")
        if value > most:
            raise TooLarge(f"{value} is above the limit of {most}")
        return value

    return Rule(_same, parse)


def real(least: float, most: float) -> Rule:
    """A finite number from `least` to `most`."""

    def parse(value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
            raise Malformed(f"expected a number from {least} to {most}")
        return float(value)

    return Rule(_same, parse)


def text(most_bytes: int = limits.TEXT_BYTES) -> Rule:
    """A string of at most `most_bytes` in UTF-8; longer ones are cut when sent."""

    def pack(value: str) -> str:
        return value.encode(errors="replace")[:most_bytes].decode(errors="ignore")

    def parse(value: Any) -> str:
        if not isinstance(value, str):
            raise Malformed("expected text")
        if len(value.encode(errors="surrogatepass")) > most_bytes:
            raise TooLarge(f"text above {most_bytes} bytes")
        return value

    return Rule(pack, parse)


def said(most_cells: int = limits.SAID_CELLS, most_bytes: int = limits.TEXT_BYTES) -> Rule:
    """Text for people to read, which comes in as one plain line whatever was sent."""
    rule = text(most_bytes)
    return Rule(rule.pack, lambda value: plain(rule.parse(value), most_cells))


def word(*allowed: str) -> Rule:
    """One of a few words."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise Malformed(f"expected one of {', '.join(allowed)}")
        return value

    return Rule(_same, parse)


def blob(most: int, exact: int | None = None) -> Rule:
    """Bytes, at most `most`, or exactly `exact`."""

    def parse(value: Any) -> bytes:
        if type(value) is not bytes:
            raise Malformed("expected bytes")
        if exact is not None and len(value) != exact:
            raise Malformed(f"expected {exact} bytes")
        if len(value) > most:
            raise TooLarge(f"{len(value)} bytes, at most {most} allowed")
        return value

    return Rule(_same, parse)


def _parse_flag(value: Any) -> bool:
    if type(value) is not bool:
        raise Malformed("expected true or false")
    return value


FLAG = Rule(_same, _parse_flag)


def optional(rule: Rule) -> Rule:
    """A value or nil."""
    return Rule(
        lambda value: None if value is None else rule.pack(value),
        lambda value: None if value is None else rule.parse(value),
    )


def sequence(rule: Rule, most: int) -> Rule:
    """A tuple of at most `most` values."""

    def parse(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Malformed("expected a list")
        if len(value) > most:
            raise TooLarge(f"{len(value)} entries, at most {most} allowed")
        return tuple(rule.parse(entry) for entry in value)

    return Rule(lambda value: [rule.pack(entry) for entry in value], parse)


_TEXTS = sequence(text(limits.ADDRESS_BYTES), limits.ADDRESSES)
# Where a peer can be dialled. What is no address comes in as nothing: one odd entry costs a peer only itself.
ADDRESSES = Rule(_TEXTS.pack, lambda value: sound_addresses(_TEXTS.parse(value)))


def _parse_span(value: Any) -> Span:
    if not isinstance(value, list) or len(value) != 2 or any(type(n) is not int for n in value):
        raise Malformed("a span is two integers")
    try:
        return Span(*value)
    except ValueError as error:
        raise Malformed(str(error)) from error


SPAN = Rule(lambda span: [span.start, span.stop], _parse_span)
TENSOR = Rule(Tensor.pack, parse_tensor)


def _parse_candidates(value: Any) -> Candidates:
    if not isinstance(value, dict) or set(value) != {"ids", "logits", "lse", "asked"}:
        raise Malformed("candidates are a map of ids, logits, lse and asked")
    return candidates_from_tensors(**{name: parse_tensor(tensor) for name, tensor in value.items()})


CANDIDATES = Rule(Candidates.pack, _parse_candidates)


def struct(cls: type[Any]) -> Rule:
    """A nested dataclass whose fields were declared with `wire`."""
    return Rule(pack_fields, lambda value: parse_fields(cls, value))


@cache
def rules_of(cls: type[Any]) -> dict[str, Rule]:
    """Field name -> rule, in the order declared."""
    return {f.name: f.metadata["rule"] for f in fields(cls)}


def pack_fields(value: Any) -> dict[str, Any]:
    """The plain map of a dataclass whose fields were declared with `wire`."""
    rules = rules_of(type(value))  # type: ignore[arg-type]  # mypy does not see that classes are hashable
    return {name: rule.pack(getattr(value, name)) for name, rule in rules.items()}


def parse_fields(cls: type[Any], value: Any) -> Any:
    """The dataclass in a plain map, which has exactly its fields. Raises: Malformed or TooLarge."""
    rules = rules_of(cls)  # type: ignore[arg-type]  # mypy does not see that classes are hashable
    if not isinstance(value, dict) or value.keys() != rules.keys():
        raise Malformed(f"{cls.__name__} has the fields {', '.join(rules)}")
    return cls(**{name: rule.parse(value[name]) for name, rule in rules.items()})
