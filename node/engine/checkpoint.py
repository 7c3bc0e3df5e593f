"""A Hugging Face checkpoint, in a folder or on the hub, of which only the wanted stages are fetched and read."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.engine.files import CheckpointFiles
from node.engine.shards import SUFFIX, StoredTensor
from node.engine.sources import first_line, open_source
from node.engine.stored import Later, of_file, of_form
from node.formats.files import QuantisedFiles
from node.formats.form import Form
from node.formats.methods import read_scheme
from node.native.precision import Precision
from protocol import limits
from protocol.errors import BadCheckpoint, ConfigError, UnsupportedModel
from protocol.inventory import Inventory
from protocol.model import Manifest, Span

if TYPE_CHECKING:
    from node.engine.skeleton import Layout
    from node.engine.weights import StageTensors

# Under which names configurations keep the longest sequence, where transformers has no one name for it.
_CONTEXT_NAMES: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_CONFIG_DTYPES: Final = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16"}
_STORED_DTYPES: Final = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


class Checkpoint:
    """A checkpoint that is open: its small files are read, of its weights only the names are known.

    `config` is transformers' configuration; nothing else outside `node.engine` should need it.
    """

    def __init__(self, files: CheckpointFiles, precision: Precision | None = None) -> None:
        """See `open`. Raises: BadCheckpoint, UnsupportedModel."""
        self.precision = precision
        self._files: CheckpointFiles | QuantisedFiles = files
        self.name = files.name
        self.config = self._read_config()
        self.manifest = self._manifest()
        self.digest = self.manifest.digest
        self.stages = self.manifest.stages
        self._inventories: dict[int, Inventory] = {}

    @classmethod
    def open(
        cls,
        model: str,
        *,
        span: Span | None = None,
        cache_dir: str | None = None,
        precision: Precision | None = None,
    ) -> Checkpoint:
        """Open `model`, a folder or a hub id ("org/name"), and make sure of the weights of `span`.

        precision: what the weights are packed in; None: they are computed with as they are.
        Raises:
            ConfigError: no such folder, or the hub cannot give it.
            BadCheckpoint: files are missing or damaged; names them.
            UnsupportedModel: a model that this engine cannot split.
        """
        checkpoint = cls(CheckpointFiles(open_source(model, cache_dir)), precision)
        if span is not None:
            checkpoint.require(span)
        return checkpoint

    def file(self, name: str) -> bytes:
        """The bytes of a file of the manifest. Raises: KeyError, if it is not in the manifest."""
        return self._files.file(name)

    def require(self, span: Span) -> None:
        """Make sure that every tensor of the span can be read; fetches what the hub has to give.

        Raises: BadCheckpoint, naming the missing files or tensors; ConfigError, if the model has no such span.
        """
        if span.stop > self.stages:
            raise ConfigError(f"{self.name} has {self.stages} stages; there is no span {span}")
        for stage in span:
            missing = self._stage_tensors[stage].missing
            if missing:
                more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                raise BadCheckpoint(f"{self.name}: no tensors for {', '.join(missing[:3])}{more}")
            for name in sorted(self._stage_tensors[stage].stored):
                self._form(name)

    def has(self, stage: int) -> bool:
        """Whether the weights of a stage are whole and on this machine already; fetches nothing."""
        needed = self._stage_tensors[stage]
        return not needed.missing and self._files.has(needed.stored)

    def places(self, stage: int) -> dict[str, Path | Later]:
        """The tensors of a stage: the safetensors files that they are in, or how they are read.

        Raises: BadCheckpoint, naming a missing file.
        """
        found: dict[str, Path | Later] = {}
        for name in sorted(self._stage_tensors[stage].stored):
            if (form := self._form(name)) is not None:
                found[name] = of_form(name, form)
                continue
            path, stored = self._files.stored(name)
            found[name] = path if path.suffix == SUFFIX else of_file(name, path, stored)
        return found

    def _form(self, name: str) -> Form | None:
        """The form of a tensor, None for a plain one. Raises: BadCheckpoint, if it cannot be read."""
        form = self._files.form(name) if isinstance(self._files, QuantisedFiles) else None
        if form is None:
            self._files.stored(name)
        return form

    def stage_bytes(self, stage: int, dtype: str) -> int:
        """Bytes that the weights of one stage take when it is loaded alone in `dtype`. Reads no weights.

        A head that is tied to the embedding counts it: alone, it has to load it. Packed, about so many.
        """
        from node.engine import sizes

        return sizes.stage_bytes(self.layout, stage, dtype, self.precision)

    def stage_digests(self, span: Span) -> tuple[bytes, ...]:
        """See `node.backend.Model`; the same in every precision, for they are of the weights as stored."""
        return tuple(self.inventory(stage).digest for stage in span)

    def inventory(self, stage: int) -> Inventory:
        """See `node.backend.Model`."""
        if stage not in self._inventories:
            self._inventories[stage] = self._files.inventory(self._stage_tensors[stage].stored)
        return self._inventories[stage]

    def stored(self, stage: int) -> dict[str, tuple[Path, StoredTensor]]:
        """See `node.backend.Model`."""
        return self._files.parts(self._stage_tensors[stage].stored)

    @property
    def dtype(self) -> str | None:
        """The dtype that the checkpoint is stored in ("f32", "f16", "bf16"), None for any other.

        By config.json; where that does not say, by most of the tensors that `require` has looked at.
        """
        said = str(self.config.get_text_config(decoder=True).dtype or self.config.dtype)
        if said != "None":
            return _CONFIG_DTYPES.get(said)
        return _STORED_DTYPES.get(self._files.stored_dtype() or "")

    @cached_property
    def layout(self) -> Layout:
        """How the model is put together. Raises: UnsupportedModel."""
        return self._analysis[0]

    @property
    def _stage_tensors(self) -> tuple[StageTensors, ...]:
        return self._analysis[1]

    @cached_property
    def _analysis(self) -> tuple[Layout, tuple[StageTensors, ...]]:
        # Here, not above: the modules of transformers behind these take seconds to import.
        from node.engine.skeleton import build_skeleton, probing, trace
        from node.engine.weights import sort_tensors

        model = build_skeleton(self.config, "f32")
        layout = trace(model)
        with probing(self.config):
            return layout, sort_tensors(model, layout, self._files.tensors)

    def _read_config(self) -> Any:
        try:
            raw = json.loads(self.file("config.json"))
            kind = raw["model_type"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadCheckpoint(
                f"{self.name}: config.json does not say what model this is: {error!r}"
            ) from error
        try:
            scheme = read_scheme(raw)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{self.name} is not read: {error}") from error
        if isinstance(self._files, CheckpointFiles) and scheme is not None:
            self._files = QuantisedFiles(self._files, scheme)
        from transformers import CONFIG_MAPPING, AutoConfig

        if kind not in CONFIG_MAPPING:
            raise UnsupportedModel(f"{self.name}: transformers has no model type {kind!r} of its own")
        folder = self._files.source.find("config.json")
        assert folder is not None
        try:
            config = AutoConfig.from_pretrained(folder.parent, trust_remote_code=False, local_files_only=True)
        except Exception as error:
            raise BadCheckpoint(f"{self.name}: config.json is no {kind}'s: {first_line(error)}") from error
        for part in (config, config.get_text_config(decoder=True)):
            part.__dict__.pop("quantization_config", None)  # transformers is given plain weights
        return config

    def _manifest(self) -> Manifest:
        try:
            config = self.config.get_text_config(decoder=True)
            sizes = int(config.num_hidden_layers), int(config.hidden_size), int(config.vocab_size)
        except (AttributeError, TypeError, ValueError) as error:
            kind = self.config.model_type
            raise UnsupportedModel(f"{self.name}: a {kind} is no language model") from error
        lengths = [getattr(config, name, None) for name in _CONTEXT_NAMES]
        context = next((n for n in lengths if isinstance(n, int) and n > 0), limits.SESSION_TOKENS)
        return self._files.manifest(*sizes, context)
