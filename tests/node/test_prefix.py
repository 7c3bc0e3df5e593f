"""The index of what sessions computed.

- What is found follows from marks alone: it is the longest prefix that was kept, and has what that was kept with.
- Bytes stay within the bound, and are those of what is kept; nothing is kept without what it follows on.
- Pages are released once, when they are no longer kept, and never while they are borrowed.
- Where there is too little room, who has the most gives way.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from node.compute.interfaces import PAGE_POSITIONS, KvPage
from node.compute.prefix import GRAIN, Passage, Prefix, PrefixIndex
from protocol.model import Span
from protocol.tensors import from_numpy
from protocol.trail import first_mark, marks_of

SPAN = Span(0, 3)
PAGE_BYTES = 1000
FIRST, LEFT = first_mark(bytes(32), 0), first_mark(bytes(32), 3)


@dataclass(eq=False)
class Page:
    """Counts its releases."""

    nbytes: int = PAGE_BYTES
    released: int = 0

    def release(self) -> None:
        """One holder less."""
        self.released += 1


def release(pages: Sequence[KvPage]) -> None:
    """What the worker does."""
    for page in pages:
        page.release()


def marks(tokens: Sequence[int]) -> tuple[bytes, ...]:
    """As they entered."""
    return tuple(marks_of(FIRST, from_numpy(np.array(tokens, np.int32))))


def passages(tokens: Sequence[int], origin: str = "here", index: PrefixIndex | None = None) -> list[Passage]:
    """What a session of these tokens leaves; they are kept in `index`, after what is known already."""
    tokens = tokens[: len(tokens) - len(tokens) % GRAIN]
    entered, made = marks(tokens), []
    states = from_numpy(np.array(tokens, np.float32)[:, None])
    left = tuple(marks_of(LEFT, states))
    before: Passage | None = None
    for start in range(0, len(tokens), PAGE_POSITIONS):
        stop = min(start + PAGE_POSITIONS, len(tokens))
        rows = states.row_slice(start, stop)
        passage = Passage(SPAN, start, before, entered[start:stop], left[start:stop], rows, Page(), origin)
        if index is not None and not index.add(passage):
            known = index.find(SPAN, [passage.marks[-1]])
            if known is None:
                break
            passage = known.passage
        made.append(passage)
        before = passage
    return made


def length(found: Prefix | None) -> int:
    """How much was found."""
    return 0 if found is None else found.length


def a_page(seed: int) -> list[int]:
    """The tokens of one."""
    return random.Random(seed).choices(range(1000), k=PAGE_POSITIONS)


def test_the_longest_prefix_is_found() -> None:
    """To the grain, over several pages, with the rows that left and their mark."""
    index = PrefixIndex(1 << 30, release)
    told = [*a_page(1), *a_page(2), *a_page(3)[:77]]
    kept = passages(told, index=index)
    asked = [*told[:305], 1001, 1002]
    found = index.find(SPAN, marks(asked))
    assert found is not None
    assert (found.length, found.pages()) == (288, [kept[0].page, kept[1].page])
    assert found.mark(288) == marks(told)[287]
    assert found.left == list(marks_of(LEFT, from_numpy(np.array(told, np.float32)[:, None])))[287]
    for start in (0, 255, 256, 287):
        rows = found.rows(start)
        assert rows is not None
        assert rows.numpy().ravel().tolist() == told[start:288]
    shorter = found.cut(256)
    assert shorter is not None
    assert (shorter.length, shorter.pages()) == (256, [kept[0].page])
    assert found.cut(0) is None
    assert index.find(Span(0, 4), marks(asked)) is None
    assert index.find(SPAN, marks([7, *asked])) is None


def test_what_is_longer_takes_the_place_of_what_is_shorter() -> None:
    """The last page of an answer, when it is whole."""
    index = PrefixIndex(1 << 30, release)
    page = a_page(1)
    [shorter] = passages(page[:100], index=index)
    passages([*page[:50], *a_page(2)[:80]], index=index)
    [longer] = passages(page, index=index)
    assert len(index) == 2
    assert isinstance(shorter.page, Page)
    assert shorter.page.released == 1
    found = index.find(SPAN, marks(page[:70]))
    assert found is not None
    assert found.passage is longer


def test_what_is_common_is_found_where_it_still_is() -> None:
    """Of two that begin alike, either may go."""
    for gone in (0, 1):
        index = PrefixIndex(1 << 30, release)
        both = [passages([*a_page(1)[:100], *a_page(number)[:60]], index=index)[0] for number in (2, 3)]
        index.find(SPAN, [both[1 - gone].marks[-1]])
        index.shrink(both[0].nbytes)
        assert length(index.find(SPAN, marks(a_page(1)))) == 96


def test_the_richest_gives_way() -> None:
    """Whoever floods the index replaces its own."""
    one = passages(a_page(0))[0].nbytes
    index = PrefixIndex(4 * one, release)
    passages(a_page(1), "quiet", index)
    for seed in range(2, 30):
        passages(a_page(seed), "loud", index)
    assert length(index.find(SPAN, marks(a_page(1)))) == PAGE_POSITIONS
    assert length(index.find(SPAN, marks(a_page(29)))) == PAGE_POSITIONS


def test_what_does_not_fit() -> None:
    """Too large, beside what is in use, or after what is not there: it is not kept, and nothing goes for it."""
    one = passages(a_page(1))[0].nbytes
    index = PrefixIndex(one, release)
    passages(a_page(1), index=index)
    found = index.find(SPAN, marks(a_page(1)))
    assert found is not None
    index.borrow(found)
    assert not index.add(passages(a_page(2))[0])
    index.give_back(found)
    assert not index.add(passages([*a_page(3), *a_page(4)])[1])
    assert not PrefixIndex(one - 1, release).add(passages(a_page(1))[0])
    assert length(index.find(SPAN, marks(a_page(1)))) == PAGE_POSITIONS


TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=3)  # of pages, the last one cut short


def spell(pages: list[int], cut: int) -> list[int]:
    """Tokens; texts that begin with the same numbers begin alike."""
    whole = [token for page in pages for token in a_page(page)]
    return whole[: max(GRAIN, len(whole) - cut)]


class Histories(RuleBasedStateMachine):
    """Sessions come, leave, borrow and give back, in any order."""

    borrowed = Bundle("borrowed")

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(6 * passages(a_page(0))[0].nbytes, release)
        self.kept: list[Passage] = []
        self.lent: list[Prefix] = []

    @rule(text=TEXTS, cut=st.integers(0, 250), origin=st.sampled_from("abc"))
    def leave(self, text: list[int], cut: int, origin: str) -> None:
        """A session leaves what it computed."""
        self.kept += passages(spell(text, cut), origin, self.index)

    @rule(text=TEXTS, cut=st.integers(0, 250))
    def ask(self, text: list[int], cut: int) -> None:
        """What is found is a prefix of what was asked, with its rows."""
        tokens = spell(text, cut)
        found = self.index.find(SPAN, marks(tokens))
        if found is not None:
            rows = found.rows(0)
            assert rows is not None
            assert rows.numpy().ravel().tolist() == tokens[: found.length]
            assert not found.length % GRAIN
            assert len(found.pages()) == -(-found.length // PAGE_POSITIONS)

    @rule(target=borrowed, text=TEXTS)
    def borrow(self, text: list[int]) -> Prefix | None:
        """A session is about to begin."""
        found = self.index.find(SPAN, marks(spell(text, 0)))
        if found is not None:
            self.index.borrow(found)
            self.lent.append(found)
        return found

    @rule(prefix=borrowed)
    def give_back(self, prefix: Prefix | None) -> None:
        """It has begun."""
        if prefix in self.lent and prefix is not None:
            self.lent.remove(prefix)
            self.index.give_back(prefix)

    @rule(pages=st.integers(0, 6))
    def shrink(self, pages: int) -> None:
        """Others need the room."""
        before = self.index.most_bytes
        self.index.shrink(pages * PAGE_BYTES)
        self.index.most_bytes = before

    @invariant()
    def is_sound(self) -> None:
        """Within the bound; what is lent is there to the last page."""
        assert self.index.nbytes <= self.index.most_bytes
        for prefix in self.lent:
            assert all(isinstance(page, Page) and not page.released for page in prefix.pages())
        for passage in self.kept:
            found = self.index.find(SPAN, [passage.marks[-1]])
            assert isinstance(passage.page, Page)
            assert passage.page.released <= 1
            if found is not None and found.passage is passage:
                assert not passage.page.released


TestHistories = Histories.TestCase


@pytest.mark.parametrize("stop", [32, 192, 256])
@given(seed=st.integers(0, 5))
def test_the_head_leaves_no_rows(stop: int, seed: int) -> None:
    """Keys and values are all there is to take."""
    index = PrefixIndex(1 << 30, release)
    tokens = a_page(seed)[:stop]
    index.add(Passage(SPAN, 0, None, marks(tokens), (), None, Page(), "here"))
    found = index.find(SPAN, marks(tokens))
    assert found is not None
    assert (found.rows(0), found.left, found.length) == (None, b"", stop)
