"""Stages, spans, and what nodes of one model must agree on."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import Malformed, TooLarge
from protocol.model import Manifest, Span, check_files, describe_stages, parse_manifest, weights_digest
from tests.protocol.samples import manifest
from tests.protocol.strategies import manifests, spans
from tests.protocol.test_decoder_law import peak_bytes

FILES = {"config.json": b'{"hidden_size": 64}', "tokenizer.json": b"{}"}


def parse(data: bytes) -> Manifest:
    """The manifest in `data`, asked for by its own digest, as a hostile peer may announce it."""
    return parse_manifest(data, hashlib.sha256(data).digest())


def hostile(**changes: Any) -> bytes:
    """A manifest's bytes with other values in some fields."""
    fields = dict(zip(("version", "blocks", "hidden_size", "vocab_size", "context", "tensors", "files"),
                      msgpack.unpackb(manifest().encode()), strict=True))  # fmt: skip
    return bytes(msgpack.packb(list((fields | changes).values())))


def test_the_weights_digest_is_of_all_stages_in_order() -> None:
    """As the document says; another order, or one byte, is another digest."""
    stages = [bytes([stage] * 8) for stage in range(4)]
    domain = hashlib.sha256(b"swarm weights 1").digest()
    assert weights_digest(stages) == hashlib.sha256(domain + b"".join(stages)).digest()
    assert weights_digest(stages).hex()[:32] == "90e66cc789500d0162fa9915a48c8869"
    assert len({weights_digest(s) for s in (stages, stages[::-1], stages[:3], [*stages[:3], bytes(8)])}) == 4


@given(st.integers(-3, limits.STAGES + 3), st.integers(-3, limits.STAGES + 3))
def test_a_span_is_a_range_that_is_not_empty(start: int, stop: int) -> None:
    """Within the stages there may be; everything else is a ValueError."""
    if 0 <= start < stop <= limits.STAGES:
        span = Span(start, stop)
        assert list(span) == list(range(start, stop))
        assert len(span) == stop - start
        assert str(span) == f"{start}:{stop}"
    else:
        with pytest.raises(ValueError, match="no span"):
            Span(start, stop)


@given(spans, st.integers(-2, limits.STAGES + 2))
def test_membership(span: Span, stage: int) -> None:
    """`in` agrees with iteration, and takes anything."""
    assert (stage in span) == (stage in range(span.start, span.stop))
    assert "1" not in span
    assert None not in span


@given(spans, spans)
def test_covering(a: Span, b: Span) -> None:
    """A span covers another exactly if every stage of the other is in it; itself always."""
    assert a.covers(b) == all(stage in a for stage in b)
    assert a.covers(a)
    assert (a.covers(b) and b.covers(a)) == (a == b)


@given(spans, spans)
def test_spans_are_ordered_by_where_they_begin(a: Span, b: Span) -> None:
    """As tuples are."""
    assert (a < b) == ((a.start, a.stop) < (b.start, b.stop))
    assert len({a, b}) == 1 + (a != b)


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (Span(0, 1), "embedding"),
        (Span(0, 5), "embedding + layers 0:4"),
        (Span(1, 2), "layers 0:1"),
        (Span(3, 5), "layers 2:4"),
        (Span(3, 6), "layers 2:4 + head"),
        (Span(5, 6), "head"),
        (Span(0, 6), "embedding + layers 0:4 + head"),
    ],
)
def test_spans_in_the_users_words(span: Span, words: str) -> None:
    """Of a model with four layers: layers count from 0, ends have names."""
    assert describe_stages(span, 4) == words


@given(st.integers(0, 40), st.data())
def test_words_add_up(blocks: int, data: st.DataObject) -> None:
    """The words name exactly as many stages as the span has."""
    start = data.draw(st.integers(0, blocks + 1))
    span = Span(start, data.draw(st.integers(start + 1, blocks + 2)))
    count = 0
    for part in describe_stages(span, blocks).split(" + "):
        if part.startswith("layers "):
            first, last = map(int, part.removeprefix("layers ").split(":"))
            count += last - first
        else:
            assert part in ("embedding", "head")
            count += 1
    assert count == len(span)


def test_stages() -> None:
    """Blocks, embedding and head."""
    assert manifest().stages == manifest().blocks + 2 == 4


@given(manifests(), st.data())
def test_a_manifest_of_another_digest_is_malformed(made: Manifest, data: st.DataObject) -> None:
    """One changed byte anywhere, or bytes after the end."""
    encoded = made.encode()
    place = data.draw(st.integers(0, len(encoded) - 1))
    flipped = encoded[:place] + bytes([encoded[place] ^ 1]) + encoded[place + 1 :]
    for other in (flipped, encoded + b"\0", encoded[:-1], b""):
        with pytest.raises(Malformed, match="digest"):
            parse_manifest(other, made.digest)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Manifest)])
def test_the_digest_binds_every_field(field: str) -> None:
    """Nodes that disagree in anything serve different models."""
    made = manifest()
    value = getattr(made, field)
    other: Any = value + 1 if isinstance(value, int) else bytes(32) if field == "tensors" else made.files[:1]
    assert dataclasses.replace(made, **{field: other}).digest != made.digest


@pytest.mark.parametrize("version", [0, 2, None, "1", [1]])
def test_other_versions(version: Any) -> None:
    """Refused, not guessed at."""
    with pytest.raises(Malformed, match="version"):
        parse(hostile(version=version))


@pytest.mark.parametrize("value", [-1, 1 << 40, 1.0, True, None, "1", b"1", []])
@pytest.mark.parametrize("field", ["blocks", "hidden_size", "vocab_size", "context"])
def test_counts_within_limits(field: str, value: Any) -> None:
    """What nodes and clients allocate by is bounded."""
    with pytest.raises(Malformed):
        parse(hostile(**{field: value}))


@pytest.mark.parametrize("tensors", [b"", bytes(31), bytes(33), "x" * 32, [0] * 32, None, 32])
def test_the_tensors_digest_is_a_digest(tensors: Any) -> None:
    """32 bytes."""
    with pytest.raises(Malformed):
        parse(hostile(tensors=tensors))


def test_regression_a_number_in_place_of_bytes_allocates_nothing() -> None:
    """bytes(n) makes n zero bytes; a hostile n would take all memory."""

    def attempt() -> None:
        with pytest.raises(Malformed):
            parse(hostile(tensors=1 << 30))

    assert peak_bytes(attempt) < limits.MIB


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../config.json", "/etc/passwd", "a/b", "a\\b", "..\\b", ".hidden", "a\0b", "a\nb", "\x1b[2J",
     "x" * 129, "é" * 65, 1, None, b"config.json", ["config.json"]],
)  # fmt: skip
def test_names_that_are_no_plain_file_names(name: Any) -> None:
    """A file of a manifest is written into one folder and nowhere else, and its name is safe to print."""
    with pytest.raises(Malformed):
        parse(hostile(files=[[name, 1, bytes(32)]]))


@pytest.mark.parametrize("name", ["config.json", "a b", "é.json", "x" * 128, "a..b", "con"])
def test_plain_file_names(name: str) -> None:
    """Nearly anything else."""
    assert parse(hostile(files=[[name, 1, bytes(32)]])).files[0].name == name


@pytest.mark.parametrize(
    "files",
    [None, 1, "abc", {}, {"a": 1}, [1], ["abc"], [[]], [["a", 1]], [["a", 1, bytes(32), 1]], [["a", -1, bytes(32)]],
     [["a", 1, bytes(31)]], [["a", 1.0, bytes(32)]], [["a", limits.MODEL_FILE_BYTES + 1, bytes(32)]]],
)  # fmt: skip
def test_files_of_odd_shapes(files: Any) -> None:
    """A list of [name, size, digest] and nothing else."""
    with pytest.raises(Malformed):
        parse(hostile(files=files))


def test_a_file_named_twice() -> None:
    """Which of the two counts is not left to the reader."""
    entry = ["a", 1, bytes(32)]
    with pytest.raises(Malformed, match="twice"):
        parse(hostile(files=[entry, entry]))


def test_too_many_or_too_large() -> None:
    """By count and by sum, to the byte."""
    many = [[f"f{n}", 1, bytes(32)] for n in range(limits.MODEL_FILES + 1)]
    assert len(parse(hostile(files=many[:-1])).files) == limits.MODEL_FILES
    with pytest.raises(TooLarge):
        parse(hostile(files=many))
    half = limits.MODEL_FILES_BYTES // 2
    assert len(parse(hostile(files=[["a", half, bytes(32)], ["b", half, bytes(32)]])).files) == 2
    with pytest.raises(TooLarge):
        parse(hostile(files=[["a", half, bytes(32)], ["b", half, bytes(32)], ["c", 1, bytes(32)]]))
    with pytest.raises(TooLarge):
        parse(bytes(limits.CONTROL_FRAME_BYTES + 1))


def test_the_files_of_a_manifest() -> None:
    """Exactly those that it names, byte for byte."""
    check_files(manifest(), FILES)
    for wrong in (
        {},
        {"config.json": FILES["config.json"]},
        FILES | {"tokenizer.json": b"[]"},
        FILES | {"tokenizer.json": b"{} "},
        FILES | {"tokenizer.json": b""},
        FILES | {"extra.json": b""},
    ):
        with pytest.raises(Malformed):
            check_files(manifest(), wrong)
