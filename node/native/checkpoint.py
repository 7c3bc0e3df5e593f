"""A checkpoint that the kernels know completely, opened without torch and without transformers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from node.engine.files import CheckpointFiles
from node.engine.shards import StoredTensor
from node.engine.sources import open_source
from node.formats.files import QuantisedFiles
from node.formats.form import Form
from node.formats.methods import plainly, read_scheme
from node.formats.scheme import Scheme
from node.native import sizes
from node.native.family import Plan, plan_model
from node.native.forms import FormRows
from node.native.gguf.architectures import GgufTensor
from node.native.gguf.files import GgufFiles
from node.native.gguf.places import find_gguf
from node.native.gguf.rows import GgufRows
from node.native.names import block_tensors, end_tensors, is_left_over
from node.native.precision import Precision
from node.native.tensors import StoredRows
from protocol.errors import BadCheckpoint, ConfigError, UnsupportedModel
from protocol.inventory import Inventory
from protocol.model import Manifest, Span


class ModelFiles(Protocol):
    """Where a checkpoint lies, in whatever format."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def tensors(self) -> Iterable[str]:
        """The names of all tensors."""

    def file(self, name: str) -> bytes:
        """The bytes of a small file. Raises: KeyError."""

    def manifest(self, blocks: int, hidden_size: int, vocab_size: int, context: int) -> Manifest:
        """What the nodes of this model agree on."""

    def has(self, tensors: Iterable[str]) -> bool:
        """Whether these are on this machine already."""

    def stored(self, tensor: str) -> tuple[Path, StoredTensor]:
        """Where in which file a tensor lies. Raises: BadCheckpoint."""

    def parts(self, tensors: Iterable[str]) -> Mapping[str, tuple[Path, StoredTensor]]:
        """The same of all that these tensors are made from. Raises: BadCheckpoint."""

    def kinds(self) -> str:
        """In which form matrices are kept, for people; "" where that is plain."""

    def inventory(self, tensors: Iterable[str]) -> Inventory:
        """What all that these tensors are made from is as it is stored. Raises: BadCheckpoint."""


class NativeCheckpoint:
    """A checkpoint and the precision that it is served in. See `node.backend.Model`."""

    def __init__(self, files: ModelFiles, precision: Precision) -> None:
        """Raises: UnsupportedModel, saying what the kernels do not know; BadCheckpoint."""
        self.name = files.name
        self.precision = precision
        config = _config(files)
        self.scheme: Scheme | None = read_scheme(config)
        self.plan: Plan = plan_model(plainly(config))
        if isinstance(files, CheckpointFiles) and self.scheme is not None:
            files = QuantisedFiles(files, self.scheme)
        self._files = files
        shape = self.plan.shape
        self.manifest: Manifest = files.manifest(
            shape.blocks, shape.hidden, shape.vocabulary, self.plan.context
        )
        self._stages = (
            end_tensors(self.plan)[0],
            *(block_tensors(self.plan, index) for index in range(shape.blocks)),
            end_tensors(self.plan)[1],
        )
        self._inventories: dict[int, Inventory] = {}
        known = {name for stage in self._stages for name in stage}
        unknown = sorted(name for name in set(files.tensors) - known if not is_left_over(self.plan, name))
        if unknown:
            raise UnsupportedModel(f"the native kernels do not know the tensor {unknown[0]}")

    @classmethod
    def open(cls, model: str, precision: Precision, *, cache_dir: str | None = None) -> NativeCheckpoint:
        """Open a folder, a GGUF file or a model of the hub. Raises: ConfigError, BadCheckpoint, UnsupportedModel."""
        return cls(open_files(model, cache_dir), precision)

    def kept_in(self, precision: Precision) -> NativeCheckpoint:
        """The same, in another precision; nothing is read again."""
        other = copy.copy(self)
        other.precision = precision
        return other

    def file(self, name: str) -> bytes:
        """See `node.backend.Model`."""
        return self._files.file(name)

    def require(self, span: Span) -> None:
        """See `node.backend.Model`. Raises: BadCheckpoint, also where a tensor has another shape; ConfigError."""
        if span.stop > self.manifest.stages:
            raise ConfigError(f"{self.name} has {self.manifest.stages} stages; there is no span {span}")
        stored = set(self._files.tensors)
        for stage in span:
            if missing := sorted(self._stages[stage].keys() - stored):
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                raise BadCheckpoint(f"{self.name}: no tensors for {', '.join(missing[:3])}{more}")
            for name in self._stages[stage]:
                self.rows(stage, name)

    def has(self, stage: int) -> bool:
        """See `node.backend.Model`."""
        needed = self._stages[stage].keys()
        return needed <= set(self._files.tensors) and self._files.has(needed)

    def stage_bytes(self, stage: int, dtype: str) -> int:
        """See `node.backend.Model`; whatever the dtype of the states, precision and stored dtype decide."""
        if stage == 0 and self._knows(0):  # mapped as it is stored, in whatever form
            return self.stored_bytes(0)
        return sizes.stage_bytes(self.plan, stage, self.precision, self._stored(stage))

    def stored_bytes(self, stage: int) -> int:
        """Bytes of a stage's tensors in the files. Raises: BadCheckpoint."""
        return sum(map(self._nbytes, self._stages[stage]))

    def stage_digests(self, span: Span) -> tuple[bytes, ...]:
        """See `node.backend.Model`; the same in every precision, for they are of the weights as stored."""
        return tuple(self.inventory(stage).digest for stage in span)

    def inventory(self, stage: int) -> Inventory:
        """See `node.backend.Model`."""
        if stage not in self._inventories:
            self._inventories[stage] = self._files.inventory(self._stages[stage])
        return self._inventories[stage]

    def stored(self, stage: int) -> dict[str, tuple[Path, StoredTensor]]:
        """See `node.backend.Model`."""
        return dict(self._files.parts(self._stages[stage]))

    def conversion(self) -> str:
        """What is made of weights that are kept in another form here, for people; "" where that is plain."""
        return f"{kinds} into {self.precision.name}" if (kinds := self.kinds()) else ""

    def kinds(self) -> str:
        """The forms that its matrices are kept in, for people; "" where that is plain."""
        return self._files.kinds()

    def _stored(self, stage: int) -> sizes.Stored:
        """The forms of a stage's tensors: as the files say where that is known, else as config.json does."""
        return self._kept if self._knows(stage) else sizes.expected(self.plan, self.scheme)

    def _kept(self, name: str) -> str:
        if isinstance(self._files, GgufFiles):
            return self._files.known(name).dtype
        form = self._form(name)
        return self._files.stored(name)[1].dtype if form is None else form.kept

    def _knows(self, stage: int) -> bool:
        """Whether it is known where the tensors of a stage lie, without fetching what holds them."""
        return isinstance(self._files, GgufFiles) or self.has(stage)

    def _nbytes(self, name: str) -> int:
        """In the files."""
        if isinstance(self._files, GgufFiles):
            known = self._files.known(name)
            return known.stop - known.start
        return sum(tensor.stop - tensor.start for _, tensor in self._files.parts([name]).values())

    def rows(self, stage: int, name: str) -> StoredRows:
        """A tensor of a stage. Raises: BadCheckpoint."""
        shape, form = self._stages[stage][name], self._form(name)
        if form is not None:
            return FormRows(name, form, shape, self._nbytes(name))
        path, tensor = self._files.stored(name)
        if isinstance(tensor, GgufTensor):
            return GgufRows(name, path, tensor, shape)
        return StoredRows(name, path, tensor, shape)

    def _form(self, name: str) -> Form | None:
        return self._files.form(name) if isinstance(self._files, QuantisedFiles) else None


def open_files(model: str, cache_dir: str | None = None) -> ModelFiles:
    """The files that `model` names: a folder's, a GGUF file, the hub's. Raises: ConfigError, BadCheckpoint."""
    if (place := find_gguf(model, cache_dir)) is not None:
        return GgufFiles(place)
    return CheckpointFiles(open_source(model, cache_dir))


def _config(files: ModelFiles) -> Mapping[str, Any]:
    try:
        config = json.loads(files.file("config.json"))
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{files.name}: config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadCheckpoint(f"{files.name}: config.json does not say what model this is")
    return config
