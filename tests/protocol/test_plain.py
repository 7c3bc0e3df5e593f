"""Strangers' text: one line of what it looks like, whatever they wrote."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import Lost, SwarmError, unwrapped
from protocol.fields import ADDRESSES, said
from protocol.plain import STAND_IN, one_line, plain, printable

FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# What attackers write, and what is left of it.
NASTY = {
    "\x1b]0;title\x07a": "]0;titlea",
    "\x1b[2J\x9b31mred": "[2J31mred",
    "one\nothers join with: two\r\n\x85\u2028\u2029three": "one others join with: two three",
    "a\u202eb\u2066c\u200bd\ufefff": "abcdf",
    "tags\U000e0041\U000e0042": "tags",
    "wide\u3000\u00a0\u2003 \tblanks": "wide blanks",
    "filler\u3164\u2800\u115fs": "filler s",
    "e\u0301\u0302\u0303\u0304\u0305\u0306\u0307x": "e\u0301\u0302\u0303\u0304x",
    "\u0301first": "first",
    "\ud800\udcff": STAND_IN,
    "": STAND_IN,
    " \n\t ": STAND_IN,
    "\u200b\u2060": STAND_IN,
    "[/][red]$(touch x);id #": "[/][red]$(touch x);id #",
}


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_what_is_left_of_attacks(text: str) -> None:
    """Nothing that moves, turns, hides or piles up."""
    assert plain(text) == NASTY[text]


@given(st.text(st.characters(codec=None), max_size=300), st.integers(1, 50))
def test_any_text_is_one_short_line(text: str, most: int) -> None:
    """Printable, bounded in characters and cells, never empty, and plain already."""
    for shown in (plain(text, most), one_line(text, most)):
        assert shown.isprintable()
        assert shown.strip()
        assert not {unicodedata.category(char) for char in shown} & FORBIDDEN
        assert len(shown) <= most
    assert plain(plain(text, most), most) == plain(text, most)
    assert "  " not in plain(text, most)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in plain(text, most))
    assert len(plain(text, most)) + wide <= most + 1  # the mark of a cut


def test_long_text_is_cut_and_says_so() -> None:
    """At once, however long it is."""
    assert plain("x" * 10_000, 10) == "x" * 9 + "…"
    assert plain("日" * 10_000, 10) == "日" * 4 + "…"
    assert len(plain("a" + "\u0301" * 100_000)) == 1 + limits.MARKS
    assert one_line("a  b") == "a  b"


@given(st.text(st.characters(codec=None), max_size=300))
def test_answers_keep_their_lines(text: str) -> None:
    """And joiners, but nothing else that is a control of a terminal or of the reading direction."""
    for char in printable(text):
        assert char in "\n\t\u200c\u200d" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    kept = "Grüße\n\t日本 👩\u200d🚀 می\u200cخواهم\u00a0!"
    assert printable(kept) == kept


def test_errors_are_plain() -> None:
    """Also where they quote what a peer said, and where there is nothing to say."""
    assert str(Lost("x gave up:\n\x1b[2Jready\u202e")) == "x gave up: [2Jready"
    assert str(Lost()) == "Lost"


@given(st.text(max_size=200))
def test_texts_for_people_come_in_plain(text: str) -> None:
    """At the door: no field of a message that people read can hold anything else."""
    rule = said(20)
    assert rule.parse(rule.pack(text)) == plain(rule.pack(text), 20)


def test_addresses_come_in_as_such() -> None:
    """In our own words; what is none is left out, and costs nobody the rest."""
    good = "/ip4/192.0.2.7/udp/4001/quic-v1"
    hostile = ["$(touch x);id #", "/dns/$(id)/udp/1/quic-v1", "/ip6/fe80::1%$(id)/udp/1/quic-v1", "\x1b[2J"]
    assert ADDRESSES.parse([*hostile, good, "/ip4/192.0.2.7/udp/04001/quic-v1"]) == (good, good)


def test_the_one_error_in_groups() -> None:
    """Of several of ours the first; a stranger among them keeps the group."""
    ours, other = Lost("a"), ValueError("b")
    assert unwrapped(ExceptionGroup("", [ExceptionGroup("", [ours])])) is ours
    assert unwrapped(ExceptionGroup("", [ours, SwarmError("c")])) is ours
    assert unwrapped(other) is other
    group = ExceptionGroup("", [ours, other])
    assert unwrapped(group) is group
