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
from protocol.errors import Malformed, TooLarge
from protocol.plain import plain
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
        if type(value) not in (int, float) or not least <= value <= most or not math.isfinite(value):
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


def blob(most: int) -> Rule:
    """Bytes, at most `most`."""

    def parse(value: Any) -> bytes:
        if type(value) is not bytes:
            raise Malformed("expected bytes")
        if len(value) > most:
            raise TooLarge(f"{len(value)} bytes, at most {most} allowed")
        return value

    return Rule(_same, parse)


def exactly(size: int) -> Rule:
    """Bytes, `size` of them."""

    def parse(value: Any) -> bytes:
        if type(value) is not bytes or len(value) != size:
            raise Malformed(f"expected {size} bytes")
        return value

    return Rule(_same, parse)


def _parse_flag(value: Any) -> bool:
    if type(value) is not bool:
        raise Malformed("expected true or false")
    return value


FLAG = Rule(_same, _parse_flag)


def optional(rule: Rule) -> Rule:
    """A value or nil."""

    def parse(value: Any) -> Any:
        return None if value is None else rule.parse(value)

    if rule.pack is _same:
        return Rule(_same, parse)
    return Rule(lambda value: None if value is None else rule.pack(value), parse)


def sequence(rule: Rule, most: int) -> Rule:
    """A tuple of at most `most` values."""

    def parse(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Malformed("expected a list")
        if len(value) > most:
            raise TooLarge(f"{len(value)} entries, at most {most} allowed")
        return tuple(rule.parse(entry) for entry in value)

    if rule.pack is _same:
        return Rule(list, parse)
    return Rule(lambda value: [rule.pack(entry) for entry in value], parse)


DIGEST = exactly(32)
PEER = text(limits.PEER_ID_BYTES)


_TEXTS = sequence(text(limits.ADDRESS_BYTES), limits.ADDRESSES)
# Where a peer can be dialled. What is no address comes in as nothing: one odd entry costs a peer only itself.
ADDRESSES = Rule(_TEXTS.pack, lambda value: sound_addresses(_TEXTS.parse(value)))


def struct(cls: type[Any]) -> Rule:
    """A nested dataclass whose fields were declared with `wire`."""
    return Rule(pack_fields, lambda value: parse_fields(cls, value))


def row(cls: type[Any]) -> Rule:
    """The same, as the list of its values in the order declared."""

    def parse(value: Any) -> Any:
        rules = rules_of(cls)  # type: ignore[arg-type]  # mypy does not see that classes are hashable
        if not isinstance(value, list) or len(value) != len(rules):
            raise Malformed(f"{cls.__name__} is a list of {', '.join(rules)}")
        return cls(*(rule.parse(entry) for rule, entry in zip(rules.values(), value, strict=True)))

    return Rule(lambda value: list(pack_fields(value).values()), parse)


def flat(cls: type[Any], most: int) -> Rule:
    """A tuple of at most `most` of these, as one list: the values of the first, then those of the second, ..."""

    def pack(value: Any) -> list[Any]:
        return [entry for each in value for entry in pack_fields(each).values()]

    def parse(value: Any) -> tuple[Any, ...]:
        rules = [*rules_of(cls).values()]  # type: ignore[arg-type]  # mypy does not see that classes are hashable
        width = len(rules)
        if not isinstance(value, list) or len(value) % width:
            raise Malformed(f"expected a list of {cls.__name__}, {width} values each")
        if len(value) > most * width:
            raise TooLarge(f"{len(value) // width} entries, at most {most} allowed")
        starts = range(0, len(value), width)
        return tuple(
            cls(*[rule.parse(value[start + at]) for at, rule in enumerate(rules)]) for start in starts
        )

    return Rule(pack, parse)


@cache
def rules_of(cls: type[Any]) -> dict[str, Rule]:
    """Field name -> rule, in the order declared."""
    return {f.name: f.metadata["rule"] for f in fields(cls)}


def pack_fields(value: Any) -> dict[str, Any]:
    """The plain map of a dataclass whose fields were declared with `wire`."""
    rules = rules_of(type(value))  # type: ignore[arg-type]  # mypy does not see that classes are hashable
    plain = {}
    for name, rule in rules.items():
        entry, pack = getattr(value, name), rule.pack
        plain[name] = entry if pack is _same else pack(entry)
    return plain


def parse_fields(cls: type[Any], value: Any) -> Any:
    """The dataclass in a plain map, which has exactly its fields. Raises: Malformed or TooLarge."""
    rules = rules_of(cls)  # type: ignore[arg-type]  # mypy does not see that classes are hashable
    if not isinstance(value, dict) or value.keys() != rules.keys():
        raise Malformed(f"{cls.__name__} has the fields {', '.join(rules)}")
    return cls(*[rule.parse(value[name]) for name, rule in rules.items()])
