"""Stages, spans, and the manifest that says what nodes of one model must agree on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack

from protocol import limits
from protocol.errors import Malformed, RemoteProtocolError, TooLarge
from protocol.fields import DIGEST, Rule, row, sequence, text, uint, wire
from protocol.unpack import unpack

WEIGHTS_DOMAIN: Final = b"swarm weights 1"
VERSION: Final = 1  # of manifests


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open, non-empty range of stages.

    A model with L blocks has L + 2 stages: 0 embeds token ids, 1..L are the blocks, L + 1 is the final
    norm and the LM head.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= limits.STAGES:
            raise ValueError(f"no span: [{self.start}, {self.stop})")

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __contains__(self, stage: object) -> bool:
        return isinstance(stage, int) and self.start <= stage < self.stop

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    def covers(self, other: Span) -> bool:
        """Whether every stage of `other` is in this span."""
        return self.start <= other.start and other.stop <= self.stop


def describe_stages(span: Span, blocks: int) -> str:
    """A span in the user's words: layers numbered from 0, ends named ("embedding + layers 0:4")."""
    parts = []
    if span.start == 0:
        parts.append("embedding")
    first, last = max(span.start, 1) - 1, min(span.stop, blocks + 1) - 1
    if first < last:
        parts.append(f"layers {first}:{last}")
    if span.stop == blocks + 2:
        parts.append("head")
    return " + ".join(parts)


def _parse_span(value: Any) -> Span:
    if not isinstance(value, list) or len(value) != 2 or any(type(n) is not int for n in value):
        raise Malformed("a span is two integers")
    try:
        return Span(*value)
    except ValueError as error:
        raise Malformed(str(error)) from error


SPAN: Final = Rule(lambda span: [span.start, span.stop], _parse_span)
_TEXT: Final = text(limits.FILE_NAME_BYTES)


def _parse_file_name(value: Any) -> str:
    name: str = _TEXT.parse(value)
    if not name or name[0] == "." or set(name) & set("/\\") or not name.isprintable():
        raise Malformed(f"{name!r} is not a file name")
    return name


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A small file of the checkpoint that clients fetch from nodes."""

    name: str = wire(Rule(_TEXT.pack, _parse_file_name))
    size: int = wire(uint(limits.MODEL_FILE_BYTES))
    sha256: bytes = wire(DIGEST)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What must agree between the nodes of one model; its hash is the model digest.

    `tensors` is the SHA-256 over the sorted names of all tensors in the checkpoint, joined by newlines.
    Shapes and dtypes follow from config.json, which is among `files`, with the tokenizer and the chat
    template.
    """

    blocks: int = wire(uint(limits.STAGES - 2))
    hidden_size: int = wire(uint(limits.HIDDEN_SIZE))
    vocab_size: int = wire(uint(limits.VOCABULARY))
    # the longest sequence in tokens that the model is made for
    context: int = wire(uint(limits.SESSION_TOKENS))
    tensors: bytes = wire(DIGEST)
    # their number is checked together with their size
    files: tuple[ManifestFile, ...] = wire(sequence(row(ManifestFile), limits.CONTAINERS))

    @property
    def stages(self) -> int:
        """Number of stages: blocks, embedding and head."""
        return self.blocks + 2

    @property
    def tokenizer(self) -> bytes:
        """The digest of its tokenizer: ids mean the same only where this is the same."""
        return next((file.sha256 for file in self.files if file.name == "tokenizer.json"), b"")

    def encode(self) -> bytes:
        """The canonical bytes, the same on every node of the model."""
        in_order = replace(self, files=tuple(sorted(self.files, key=lambda f: f.name)))
        encoded: bytes = msgpack.packb([VERSION, *_MANIFEST.pack(in_order)])
        return encoded

    @property
    def digest(self) -> bytes:
        """32 bytes that name the model on the wire."""
        return hashlib.sha256(self.encode()).digest()


_MANIFEST: Final = row(Manifest)


def parse_manifest(data: bytes, digest: bytes) -> Manifest:
    """The manifest in `data`, which must hash to `digest`.

    Raises: Malformed or TooLarge, the peer's fault.
    """
    if len(data) > limits.CONTROL_FRAME_BYTES:
        raise TooLarge("manifest above the frame limit")
    if hashlib.sha256(data).digest() != digest:
        raise Malformed("the manifest does not hash to the model digest")
    value = unpack(data, limits.STAGES)
    if not isinstance(value, list) or value[:1] != [VERSION]:
        raise Malformed("not a manifest of a version that this side reads")
    try:
        manifest: Manifest = _MANIFEST.parse(value[1:])
    except RemoteProtocolError as error:
        raise Malformed(f"not a manifest: {error}") from error
    size = sum(f.size for f in manifest.files)
    if len(manifest.files) > limits.MODEL_FILES or size > limits.MODEL_FILES_BYTES:
        raise TooLarge("the manifest names too many or too large files")
    if len({f.name for f in manifest.files}) != len(manifest.files):
        raise Malformed("the manifest names a file twice")
    return manifest


def weights_digest(stages: Iterable[bytes]) -> bytes:
    """32 bytes that name the weights of a whole model: of the digests of all its stages, in order."""
    return hashlib.sha256(hashlib.sha256(WEIGHTS_DOMAIN).digest() + b"".join(stages)).digest()


def check_files(manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    """Raises Malformed unless `contents` are exactly the manifest's files, byte for byte."""
    if contents.keys() - {file.name for file in manifest.files}:
        raise Malformed("there are files that the manifest does not name")
    for file in manifest.files:
        data = contents.get(file.name)
        if data is None or len(data) != file.size or hashlib.sha256(data).digest() != file.sha256:
            raise Malformed(f"{file.name} is not the file that the manifest names")
