"""The record book: everybody's newest word, bounded."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from protocol import limits
from protocol.book import NEWS, STRANGERS_PASSED_ON, RecordBook
from protocol.codec import encode
from protocol.credit import DIALLED_PER_BROUGHT
from protocol.identity import generate
from protocol.messages import MapReply, MapRequest
from protocol.records import Record, parse_record, sign_record
from protocol.strangers import Source
from protocol.transport.dialling import DIAL_BYTES
from tests.protocol.samples import IDENTITY, NOW, OTHER, announcement


def record(**changes: Any) -> Record:
    """A record of IDENTITY."""
    return sign_record(IDENTITY, announcement(**changes))


def unsigned(peer: str, size: int = 0, **changes: Any) -> Record:
    """A record as if checked already; signing thousands takes long."""
    return Record(announcement(peer=peer, **changes), peer.encode().ljust(size, b"."))


def pushed_by(peer: str, origin: str = "10.0.0.0/24") -> Source:
    """Who brought a record without being asked."""
    return Source(peer, origin, asked=False)


def place(port: int, host: str = "127.0.0.1") -> str:
    """An address."""
    return f"/ip4/{host}/udp/{port}/quic-v1"


def met(book: RecordBook, peer: str, port: int, **changes: Any) -> None:
    """Put in `peer`, met where its record says that it listens."""
    book.add(unsigned(peer, addrs=(place(port),), **changes), NOW)
    book.prove(peer, place(port))


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


def test_nobodys_word_lives_longer_than_others() -> None:
    """Issued as far ahead as clocks may differ, it is forgotten when an honest one would be; its replay changes
    nothing, and what is really new does."""
    book, ahead = RecordBook(), limits.CLOCK_SKEW_S - 1
    word = record(sequence=5, issued=NOW + ahead, expires=NOW + ahead + limits.RECORD_LIFE_S)
    book.merge([word.data], NOW)
    late = NOW + limits.RECORD_LIFE_S
    assert book.alive(late - 0.001) == [word.announcement]
    assert book.merge([word.data], late - 1) == ([], 0)
    book.expire(late)
    assert book.merge([word.data], late) == ([], 0)
    assert book.alive(late) == []
    news = record(sequence=6, issued=late, expires=late + limits.RECORD_LIFE_S)
    assert book.merge([news.data], late) == ([news], 0)
    assert book.alive(late) == [news.announcement]


def test_a_record_is_a_claim_until_its_peer_was_met_where_it_says() -> None:
    """However the address is written; elsewhere counts for nothing, and for a later record only what it names too."""
    book = RecordBook()
    addrs = (place(4001), "/ip6/2001:db8:0:0::7/udp/4001/quic-v1")
    book.add(unsigned("a", addrs=addrs, sequence=1), NOW)
    assert (book.met(NOW), book.proven("a"), book.origin("a")) == ([], (), None)
    book.prove("a", place(4002))
    assert not book.is_proven("a")
    book.prove("a", f"/ip6/2001:db8::7/udp/4001/quic-v1/p2p/{OTHER.peer}")
    assert book.is_proven("a")
    assert book.proven("a") == addrs[1:]
    assert book.origin("a") == "2001:db8::/48"
    book.add(unsigned("a", addrs=addrs[1:], sequence=2), NOW)
    assert [said.sequence for said in book.met(NOW)] == [2]
    book.add(unsigned("a", addrs=addrs[:1], sequence=3), NOW)
    assert book.met(NOW) == []


def test_a_name_counts_where_it_was_dialled() -> None:
    """The book does not resolve names: who dialled one says that it led to the peer."""
    book, name = RecordBook(), "/dns4/node.example/udp/4001/quic-v1"
    book.add(unsigned("a", addrs=(name,)), NOW)
    book.prove("a", place(4001))
    assert not book.is_proven("a")
    book.prove("a", place(4001), name)
    assert book.proven("a") == (name,)
    assert book.origin("a") == "127.0.0.0/24"


def test_one_place_is_one_peers() -> None:
    """Whoever holds one port is one node, under whichever of its identities it was met last."""
    book = RecordBook()
    for n in range(100):
        met(book, f"peer {n}", 4001)
    assert [said.peer for said in book.met(NOW)] == ["peer 99"]


def test_a_proof_ends() -> None:
    """When the peer is not to be reached, and with its record; a door counts wherever it is met."""
    book = RecordBook()
    for port, peer in enumerate("abc", 4001):
        met(book, peer, port)
    book.doubt("a")
    assert {said.peer for said in book.met(NOW)} == {"b", "c"}
    assert book.met(NOW + limits.RECORD_LIFE_S) == []
    book.vouch("a")
    assert book.is_proven("a")


@pytest.mark.slow
def test_a_flood_of_identities_evicts_nobody_who_was_met() -> None:
    """Nine thousand records, by one peer or by hundreds, from elsewhere or from the same block, all fresher."""
    for pushers, origin in [(1, "10.9.9.0/24"), (300, "127.0.0.0/24"), (9000, "127.0.0.0/24")]:
        book = RecordBook(1024)
        for port in range(4001, 4201):
            met(book, f"honest {port}", port)
        asked = Source("honest 4001", "127.0.0.0/24", asked=True)
        for n in range(50):
            book.add(unsigned(f"newcomer {n}", addrs=(place(5000 + n),)), NOW, asked)
        for n in range(9000):
            book.add(
                unsigned(f"evil {n}", addrs=(place(9),), sequence=9),
                NOW + 1,
                pushed_by(f"{n % pushers}", origin),
            )
        assert len(book) <= 200 + 1024
        assert {said.peer for said in book.met(NOW)} == {f"honest {port}" for port in range(4001, 4201)}
        assert all(book.get(f"newcomer {n}") for n in range(50))
        page = book.pack(NOW + 2, random.Random(0))
        assert sum(data.startswith(b"honest") for data in page) == 200
        assert len(page) <= 200 + STRANGERS_PASSED_ON
        assert len(book.news(NOW + 2)) <= NEWS
        book.merge([bytes(50 * DIAL_BYTES)], NOW + 2, asked)  # the page of the one who was asked pays
        assert {peer.peer for peer in book.claim(NOW + 2, 50)} == {f"newcomer {n}" for n in range(50)}


def test_strangers_give_way_by_who_brought_most() -> None:
    """A peer that brings one record keeps it beside one that brings thousands; of two blocks each keeps half."""
    book = RecordBook(128)
    book.add(unsigned("small"), NOW, pushed_by("modest"))
    for n in range(1000):
        book.add(unsigned(f"a {n}"), NOW, pushed_by("greedy"))
    assert book.get("small") is not None
    for n in range(1000):
        book.add(unsigned(f"b {n}"), NOW, pushed_by(f"many {n}", "10.0.1.0/24"))
    kept = [sum(entry.peer.startswith(name) for entry in book) for name in "ab"]
    assert book.get("small") is not None
    assert min(kept) >= 60


@pytest.mark.parametrize("most", [1, 2, 63, 64, 200])
def test_bounded(most: int) -> None:
    """Never more than `most` of each kind, and a newcomer is kept."""
    book = RecordBook(most)
    for n in range(3 * most):
        met(book, f"peer {n}", n + 1)
        book.add(unsigned(f"stranger {n}"), NOW, pushed_by("somebody"))
        assert len(book) <= 2 * most
        assert book.is_proven(f"peer {n}")
        assert book.get(f"stranger {n}") is not None
    assert len(book.met(NOW)) >= most - most // 64


def test_a_third_party_gets_no_more_than_three_times_what_records_cost() -> None:
    """Whoever brings records that name somebody pays for the dials with their bytes; what is answered is free."""
    book, brought = RecordBook(), 0
    identities = [generate() for _ in range(100)]
    words = [
        sign_record(one, announcement(peer=one.peer, addrs=(place(n + 1),))).data
        for n, one in enumerate(identities)
    ]
    dials = 0
    for word in words:
        book.merge([word], NOW, pushed_by("evil"))
        brought += len(word)
        dials += len(book.claim(NOW, 100))
    assert 0 < dials * DIAL_BYTES <= DIALLED_PER_BROUGHT * brought + DIAL_BYTES
    assert book.claim(NOW + 1000, 100) == []  # they have expired
    answered = RecordBook()
    answered.merge(words, NOW, pushed_by("honest"))
    found = 0
    while claimed := answered.claim(NOW, 100):
        found += len(claimed)
        for peer in claimed:
            answered.prove(peer.peer, peer.addrs[0])
    assert found == 100


def test_a_claim_rests() -> None:
    """One dial a stranger; after a while another, and so on ever more rarely."""
    book = RecordBook()
    book.merge([record().data, b"x" * 10_000], NOW, pushed_by("somebody"))
    times = [after for after in range(59) if book.claim(NOW + after, 9)]
    assert times == [0, 5, 15, 35]
    assert book.pack(NOW, random.Random(0)) == ()  # and it is not passed on any more


def test_who_was_asked_comes_before_who_pushed() -> None:
    """And a stranger whom an asked peer names too is that one's from then on."""
    book = RecordBook()
    mine, other = record(), sign_record(OTHER, announcement(peer=OTHER.peer))
    book.merge([mine.data, other.data], NOW, pushed_by("evil"))
    book.merge([other.data], NOW, Source("door", "10.0.5.0/24", asked=True))
    assert [peer.peer for peer in book.claim(NOW, 9)] == [OTHER.peer, IDENTITY.peer]


def test_a_book_may_change_while_it_is_read() -> None:
    """Iteration goes over what was there when it began."""
    book = RecordBook()
    book.add(unsigned("a"), NOW)
    for entry in book:
        book.add(unsigned(entry.peer + "a"), NOW)
    assert len(book) == 2


@pytest.mark.parametrize(
    ("count", "size"), [(10, 100), (4096, 100), (4096, 1100), (300, limits.RECORD_BYTES)]
)
def test_a_packed_book_fits_one_control_frame(count: int, size: int) -> None:
    """As many as fit beside the packer's own; what a request brings fits its own, smaller frame."""
    book = RecordBook()
    for n in range(count):
        book.add(unsigned(f"peer {n}", size, addrs=(place(n + 1),)), NOW)
        book.prove(f"peer {n}", place(n + 1))
    own = bytes(limits.RECORD_BYTES)
    packed = book.pack(NOW, random.Random(1))
    assert len(encode(MapReply((own, *packed)))) <= limits.CONTROL_FRAME_BYTES
    full = len(packed) == limits.MAP_RECORDS - 1 or sum(map(len, packed)) > 0.99 * limits.MAP_BYTES - 2 * size
    assert len(packed) == count or full
    assert len(encode(MapRequest((own, *book.news(NOW))))) <= limits.MAP_REQUEST_BYTES


def test_regression_which_records_are_packed_is_random() -> None:
    """Where not all fit, whoever came first into the book has no advantage."""
    book = RecordBook()
    for n in range(300):
        book.add(unsigned(f"peer {n}", limits.RECORD_BYTES, addrs=(place(n + 1),)), NOW)
        book.prove(f"peer {n}", place(n + 1))
    one, two = (set(book.pack(NOW, random.Random(seed))) for seed in (1, 2))
    assert one != two


def test_a_map_begins_with_some_of_each_block() -> None:
    """Whoever runs hundreds of nodes on one machine does not hide those of others behind them."""
    book = RecordBook()
    for n in range(500):
        met(book, f"many {n}", n + 1)
    for n in range(5):
        here = place(4001, f"198.51.{n}.7")
        book.add(unsigned(f"few {n}", addrs=(here,)), NOW)
        book.prove(f"few {n}", here)
    page = book.pack(NOW, random.Random(1))
    assert len(page) == 505
    assert sum(data.startswith(b"few") for data in page[:6]) == 5


def test_pack_gives_what_merge_takes() -> None:
    """A book copied over the wire is the same book, of strangers."""
    book, copy = RecordBook(), RecordBook()
    for port, identity in enumerate((IDENTITY, OTHER, generate()), 4001):
        book.add(sign_record(identity, announcement(peer=identity.peer, addrs=(place(port),))), NOW)
        book.prove(identity.peer, place(port))
    fresh, refused = copy.merge(book.pack(NOW, random.Random(0)), NOW)
    assert refused == 0
    assert {entry.data for entry in fresh} == {entry.data for entry in book}
    assert copy.met(NOW) == []
