"""Stages, spans, and the manifest that says what nodes of one model must agree on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from protocol import limits
from protocol.errors import Malformed, TooLarge
from protocol.unpack import unpack

WEIGHTS_DOMAIN: Final = b"swarm weights 1"


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


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A small file of the checkpoint that clients fetch from nodes."""

    name: str
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """What must agree between the nodes of one model; its hash is the model digest.

    `tensors` is the SHA-256 over the sorted names of all tensors in the checkpoint, joined by newlines.
    Shapes and dtypes follow from config.json, which is among `files`, with the tokenizer and the chat
    template.
    """

    blocks: int
    hidden_size: int
    vocab_size: int
    context: int  # the longest sequence in tokens that the model is made for
    tensors: bytes
    files: tuple[ManifestFile, ...]

    @property
    def stages(self) -> int:
        """Number of stages: blocks, embedding and head."""
        return self.blocks + 2

    def encode(self) -> bytes:
        """The canonical bytes, the same on every node of the model."""
        files = [[f.name, f.size, f.sha256] for f in sorted(self.files, key=lambda f: f.name)]
        fields = [1, self.blocks, self.hidden_size, self.vocab_size, self.context, self.tensors, files]
        encoded: bytes = msgpack.packb(fields)
        return encoded

    @property
    def digest(self) -> bytes:
        """32 bytes that name the model on the wire."""
        return hashlib.sha256(self.encode()).digest()


def parse_manifest(data: bytes, digest: bytes) -> Manifest:
    """The manifest in `data`, which must hash to `digest`.

    Raises: Malformed or TooLarge, the peer's fault.
    """
    if len(data) > limits.CONTROL_FRAME_BYTES:
        raise TooLarge("manifest above the frame limit")
    if hashlib.sha256(data).digest() != digest:
        raise Malformed("the manifest does not hash to the model digest")
    try:
        version, blocks, hidden_size, vocab_size, context, tensors, files = unpack(data, limits.STAGES)
        manifest = Manifest(
            _uint(blocks, limits.STAGES - 2),
            _uint(hidden_size, limits.HIDDEN_SIZE),
            _uint(vocab_size, limits.VOCABULARY),
            _uint(context, limits.SESSION_TOKENS),
            _sha256(tensors),
            tuple(_manifest_file(*f) for f in _list(files)),
        )
    except (ValueError, TypeError) as error:
        raise Malformed(f"not a manifest: {error}") from error
    if version != 1:
        raise Malformed(f"manifest version {version!r}, this side reads version 1")
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


def _uint(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a count of at most {most}")
    return value


def _sha256(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != 32:
        raise ValueError("a digest has 32 bytes")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("expected a list")
    return value


def _manifest_file(name: Any, size: Any, sha256: Any) -> ManifestFile:
    if not isinstance(name, str) or not 0 < len(name.encode()) <= limits.FILE_NAME_BYTES:
        raise ValueError("a file name is short text")
    if name[0] == "." or set(name) & set("/\\") or not name.isprintable():
        raise ValueError(f"{name!r} is not a file name")
    return ManifestFile(name, _uint(size, limits.MODEL_FILE_BYTES), _sha256(sha256))
