"""`docs/protocol.md` says what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from protocol import inventory, limits, records
from protocol.candidates import Want
from protocol.messages import (
    BY_TAG,
    DIAL_PROTOCOL,
    MAP_PROTOCOL,
    MODEL_PROTOCOL,
    SESSION_PROTOCOL,
    WEIGHTS_PROTOCOL,
    Fork,
    Lane,
    NextHop,
)
from protocol.records import Announcement, RoundTrip
from protocol.session import TRANSITIONS, Side, State
from tests.protocol.golden import parse_golden, read_golden

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
STRUCTS: dict[str, type[Any]] = {
    "NextHop": NextHop,
    "Fork": Fork,
    "Want": Want,
    "Lane": Lane,
    "Announcement": Announcement,
    "RoundTrip": RoundTrip,
}


def tables() -> dict[str, list[list[str]]]:
    """Heading -> the rows of the first table under it, without the head."""
    found: dict[str, list[list[str]]] = {}
    heading, inside = "", False
    for line in DOCUMENT.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").strip("`")
        elif line.startswith("|---"):
            inside = heading not in found
            found.setdefault(heading, [])
        elif inside and line.startswith("|"):
            found[heading].append([cell.strip() for cell in line.strip("|").split("|")])
        else:
            inside = False
    return found


TABLES = tables()


@pytest.mark.parametrize("name", [*BY_TAG, *STRUCTS])
def test_fields(name: str) -> None:
    """Every message and every map inside one has a table with exactly its fields, in order."""
    cls = BY_TAG.get(name) or STRUCTS[name]
    assert [row[0].strip("`") for row in TABLES[name]] == [field.name for field in dataclasses.fields(cls)]


def test_every_message_is_described_and_no_other() -> None:
    """A heading in code style is a message's tag."""
    described = re.findall(r"^#### `(.+)`$", DOCUMENT, re.MULTILINE)
    assert described == list(BY_TAG)


def test_the_state_table() -> None:
    """Row by row what `protocol.session` allows, and where it leads."""
    stated: dict[State, dict[tuple[Side, type[Any]], State]] = {}
    for state, opener, hop in TABLES["4. Who says what when"]:
        row = stated.setdefault(State[state], {})
        for side, cell in ((Side.OPENER, opener), (Side.HOP, hop)):
            moves = re.findall(r"`(\w+)` → (\w+)", cell)
            assert cell == (", ".join(f"`{tag}` → {after}" for tag, after in moves) or "nothing")
            row |= {(side, BY_TAG[tag]): State[after] for tag, after in moves}
    assert stated == TRANSITIONS


def test_limits() -> None:
    """Every limit that is named has its value in the table, and the table names no other."""
    stated = {name.strip("`"): float(value.replace(",", "")) for name, value in TABLES["9. Limits"]}
    assert stated == {name: float(getattr(limits, name)) for name in stated}
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+)`", DOCUMENT)) <= stated.keys()
    assert all(DOCUMENT.count(f"`{name}`") > 1 for name in stated)


def test_golden_bytes() -> None:
    """The frames shown are the golden ones."""
    shown = parse_golden(DOCUMENT)
    golden = read_golden("frames.txt")
    assert len(shown) == 3
    assert shown == {name: golden[name] for name in shown}


def test_names() -> None:
    """Stream protocols and the domains of hashes, letter by letter."""
    for name in (SESSION_PROTOCOL, MAP_PROTOCOL, DIAL_PROTOCOL, MODEL_PROTOCOL, WEIGHTS_PROTOCOL):
        assert f"| `{name}` |" in DOCUMENT
    assert f'SHA-256("{records.DOMAIN}")' in DOCUMENT
    assert f'SHA-256("{inventory.STAGE_DOMAIN.decode()}")' in DOCUMENT
