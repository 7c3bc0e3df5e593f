"""The record book: everybody's newest word, bounded."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from protocol import limits
from protocol.book import RecordBook
from protocol.codec import encode
from protocol.identity import generate
from protocol.messages import MapReply
from protocol.records import Record, parse_record, sign_record
from tests.protocol.samples import IDENTITY, NOW, OTHER, announcement


def record(**changes: Any) -> Record:
    """A record of IDENTITY."""
    return sign_record(IDENTITY, announcement(**changes))


def unsigned(peer: str, size: int = 0, **changes: Any) -> Record:
    """A record as if checked already; signing thousands takes long."""
    return Record(announcement(peer=peer, **changes), bytes(size))


def peers(book: Iterable[Record]) -> set[str]:
    """Who is in a book."""
    return {entry.peer for entry in book}


def test_the_newest_wins() -> None:
    """A replay of an older word changes nothing, in whatever order they come."""
    book = RecordBook()
    old, new = record(sequence=5), record(sequence=6)
    assert book.add(old, NOW)
    assert book.add(new, NOW)
    assert not book.add(old, NOW)
    assert not book.add(new, NOW)
    assert book.get(IDENTITY.peer) is new
    assert len(book) == 1


def test_a_peer_that_has_gone_stays_gone() -> None:
    """Its last word is kept until it expires, so that an older one cannot bring it back."""
    book = RecordBook()
    book.add(record(sequence=6, state="gone"), NOW)
    assert book.merge([record(sequence=5).data], NOW) == ([], 0)
    assert book.alive(NOW) == []


def test_merge_keeps_what_is_new_and_counts_what_is_refused() -> None:
    """Each entry is judged alone: one forged record does not spoil the others."""
    book = RecordBook()
    mine, other = record(), sign_record(OTHER, announcement(peer=OTHER.peer))
    forged = bytearray(other.data)
    forged[-1] ^= 1
    expired = sign_record(OTHER, announcement(peer=OTHER.peer, issued=NOW - 60, expires=NOW))
    fresh, refused = book.merge([b"rubbish", mine.data, bytes(forged), expired.data, other.data], NOW)
    assert (fresh, refused) == ([mine, other], 3)
    assert book.merge([mine.data, other.data], NOW) == ([], 0)


def test_what_is_held_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps repeat each other: a record costs one signature check, however often it comes, even in one map."""
    checked: list[bytes] = []

    def count(data: bytes, now: float) -> Record:
        checked.append(data)
        return parse_record(data, now)

    monkeypatch.setattr("protocol.book.parse_record", count)
    book, mine = RecordBook(), record()
    assert book.merge([mine.data] * 5, NOW) == ([mine], 0)
    assert book.merge([mine.data] * 5, NOW) == ([], 0)
    assert checked == [mine.data]


def test_expired_records_are_forgotten() -> None:
    """To the moment; until `expire` is called, `alive` and `pack` pass over them already."""
    book = RecordBook()
    book.add(record(), NOW)
    end = announcement().expires
    assert book.alive(end - 0.001) == [announcement()]
    assert book.alive(end) == []
    assert book.pack(end, random.Random(0)) == ()
    assert book.get(IDENTITY.peer) is not None
    book.expire(end - 0.001)
    assert len(book) == 1
    book.expire(end)
    assert len(book) == 0
    assert book.get(IDENTITY.peer) is None


@pytest.mark.parametrize("most", [1, 2, 63, 64, 200])
def test_bounded(most: int) -> None:
    """Never more than `most`; the newcomer is kept, and what made room would have expired soonest."""
    book = RecordBook(most)
    for n in range(3 * most):
        assert book.add(unsigned(f"peer {n}", expires=NOW + n))
        assert len(book) <= most
        assert book.get(f"peer {n}") is not None
    assert peers(book) == {f"peer {n}" for n in range(3 * most - len(book), 3 * most)}
    assert len(book) >= most - most // 64


def test_a_full_book_takes_a_known_peers_next_word_without_forgetting_another() -> None:
    """Only newcomers need room."""
    book = RecordBook(2)
    book.add(unsigned("a", sequence=1))
    book.add(unsigned("b", sequence=1))
    book.add(unsigned("a", sequence=2))
    assert peers(book) == {"a", "b"}


def test_a_book_may_change_while_it_is_read() -> None:
    """Iteration goes over what was there when it began."""
    book = RecordBook()
    book.add(unsigned("a"))
    for entry in book:
        book.add(unsigned(entry.peer + "a"))
    assert len(book) == 2


@pytest.mark.parametrize(("count", "size"), [(10, 100), (5000, 10), (5000, 900), (300, limits.RECORD_BYTES)])
def test_a_packed_book_fits_one_control_frame(count: int, size: int) -> None:
    """As many as fit, within both limits of a map message."""
    book = RecordBook()
    for n in range(count):
        book.add(unsigned(f"peer {n}", size))
    packed = book.pack(NOW, random.Random(1))
    assert len(encode(MapReply(packed))) <= limits.CONTROL_FRAME_BYTES
    full = (
        len(packed) == limits.MAP_RECORDS or sum(map(len, packed)) > 0.99 * limits.CONTROL_FRAME_BYTES - size
    )
    assert len(packed) == count or full


def test_regression_which_records_are_packed_is_random() -> None:
    """Where not all fit, whoever came first into the book has no advantage, by count nor by size."""
    for count, size in ((limits.MAP_RECORDS + 500, 10), (300, limits.RECORD_BYTES)):
        book = RecordBook()
        for n in range(count):
            book.add(Record(announcement(peer=f"peer {n}"), n.to_bytes(4, "big") + bytes(size - 4)))
        one, two = (set(book.pack(NOW, random.Random(seed))) for seed in (1, 2))
        assert one != two


def test_pack_gives_what_merge_takes() -> None:
    """A book copied over the wire is the same book."""
    book, copy = RecordBook(), RecordBook()
    for identity in (IDENTITY, OTHER, generate()):
        book.add(sign_record(identity, announcement(peer=identity.peer)))
    fresh, refused = copy.merge(book.pack(NOW, random.Random(0)), NOW)
    assert refused == 0
    assert {entry.data for entry in fresh} == {entry.data for entry in book}
