"""What a model would take, before any of its weights is fetched or loaded: config.json is all that is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from node.backend import need_torch
from node.engine.sources import open_source
from node.footprint import Footprint
from node.formats.methods import method_of, plainly, read_scheme
from node.formats.mxfp4 import Mxfp4Scheme
from node.formats.scheme import Scheme
from node.native import sizes
from node.native.checkpoint import NativeCheckpoint
from node.native.family import Plan, plan_model
from node.native.gguf.files import GgufFiles
from node.native.gguf.places import find_gguf
from node.native.precision import BF16, F32, INT4, INT8, PRECISIONS, Precision
from protocol import limits
from protocol.errors import BadCheckpoint, ConfigError, UnsupportedModel
from protocol.tensors import ITEM_BYTES

_CONFIG: Final = "config.json"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A model, as its configuration tells.

    name         for people
    model_type   its family
    engine       what would compute it: "native" or "torch"
    stored_in    the form of its weights in the files
    stored       of each stage the bytes in the files; None where the form is not known
    shared       bytes of the files that embedding and head have in common
    own          the precision in which a node computes that is not asked for another
    footprints   by precision, the most precise first
    refused      why a node takes no such checkpoint, "" if it does
    """

    name: str
    model_type: str
    engine: str
    stored_in: str
    stored: tuple[int, ...] | None
    shared: int
    own: str
    footprints: Mapping[str, Footprint]
    refused: str = ""

    @property
    def blocks(self) -> int:
        """How many it has."""
        return self.footprints[self.own].blocks

    def served(self) -> dict[str, Footprint]:
        """What `swarm node` can be asked for by --quant, the most precise first."""
        return {name: self.footprints[name] for name in (self.own, "int8", "int4")}


def estimate(model: str, *, cache_dir: str | None = None) -> Estimate:
    """Of a checkpoint's folder, a GGUF file, a model of the hub, or a config.json by itself.

    Raises: ConfigError, BadCheckpoint; UnsupportedModel, if no engine could split it.
    """
    if (place := find_gguf(model, cache_dir)) is not None:
        return _as_stored(NativeCheckpoint(GgufFiles(place), F32))
    name, config = _read_config(model, cache_dir)
    try:
        scheme = read_scheme(config)
        return _native(name, config, plan_model(plainly(config)), scheme)
    except UnsupportedModel as error:
        need_torch(name, str(error))
    return _by_torch(name, config)


def _native(name: str, config: Mapping[str, Any], plan: Plan, scheme: Scheme | None) -> Estimate:
    if isinstance(scheme, Mxfp4Scheme) and not (config.get("dtype") or config.get("torch_dtype")):
        plan = replace(plan, stored="BF16")  # so is all else of a model whose configuration leaves it out
    shape, stored = plan.shape, sizes.expected(plan, scheme)
    own = "bf16" if sizes.forms(plan, scheme) == {"BF16"} else "f32"
    # Wider, or narrower, than they are stored.
    wide = (F32, _as_f32) if own == "bf16" else (F32, stored)
    narrow = (F32 if own == "bf16" else BF16), stored
    chosen = {"f32": wide, "bf16": narrow, "int8": (INT8, stored), "int4": (INT4, stored)}
    stages = range(shape.blocks + 2)

    def footprint(precision: Precision, stored: sizes.Stored) -> Footprint:
        return Footprint(
            tuple(sizes.stage_bytes(plan, stage, precision, stored) for stage in stages),
            (shape.kv_row_bytes(precision.kv_bytes),) * shape.blocks,
            4 * shape.hidden,
            shares_pages=True,
        )

    return Estimate(
        name=name,
        model_type=str(config["model_type"]),
        engine="native",
        stored_in=plan.stored.lower() if scheme is None else scheme.title,
        stored=tuple(sizes.stored_bytes(plan, stage, scheme) for stage in stages),
        shared=sizes.shared_bytes(plan, scheme),
        own=own,
        footprints={name: footprint(*how) for name, how in chosen.items()},
    )


def _as_stored(opened: NativeCheckpoint) -> Estimate:
    """Of a file in which every tensor has a form of its own."""
    plan, shape = opened.plan, opened.plan.shape
    stages = range(shape.blocks + 2)

    def footprint(precision: Precision) -> Footprint:
        kept = opened.kept_in(precision)
        return Footprint(
            tuple(kept.stage_bytes(stage, "f32") for stage in stages),
            (shape.kv_row_bytes(precision.kv_bytes),) * shape.blocks,
            4 * shape.hidden,
        )

    return Estimate(
        name=opened.name,
        model_type=json.loads(opened.file(_CONFIG))["model_type"],
        engine="native",
        stored_in=opened.kinds(),
        stored=tuple(map(opened.stored_bytes, stages)),
        shared=opened.stored_bytes(0) if plan.tied else 0,
        own="f32",
        footprints={name: footprint(precision) for name, precision in PRECISIONS.items()},
    )


def _as_f32(name: str) -> str:
    return "F32"


def _by_torch(name: str, config: Mapping[str, Any]) -> Estimate:
    from node.engine.device import suited_dtype
    from node.engine.sizes import read_sizes

    found = read_sizes(config)

    def footprint(precision: str) -> Footprint:
        dtype = precision if precision in ITEM_BYTES else "f32"
        packed = None if precision in ITEM_BYTES else PRECISIONS[precision]
        kv = tuple(ITEM_BYTES[dtype] * numbers for numbers in found.kv_numbers)
        return Footprint(found.stages(dtype, packed), kv, ITEM_BYTES[dtype] * found.hidden)

    refused, title = _scheme_of(config)
    return Estimate(
        name=name,
        model_type=str(config["model_type"]),
        engine="torch",
        stored_in=title or found.stored,
        stored=found.kept,
        shared=found.shared,
        own=suited_dtype(found.stored, "cpu"),
        footprints={precision: footprint(precision) for precision in ("f32", "bf16", "int8", "int4")},
        refused=refused,
    )


def _scheme_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """Why a node takes no checkpoint that is quantised like that, and how it is, for people."""
    try:
        scheme = read_scheme(config)
    except UnsupportedModel as error:
        return str(error), method_of(config)
    return "", "" if scheme is None else scheme.title


def _read_config(model: str, cache_dir: str | None) -> tuple[str, Mapping[str, Any]]:
    """A name for people, and config.json. Raises: ConfigError, BadCheckpoint."""
    path = Path(model).expanduser()
    if path.is_file():
        name = path.resolve().parent.name if path.name == _CONFIG else path.stem
    else:
        source = open_source(model, cache_dir)
        name = source.name
        found = source.find(_CONFIG)
        if found is None:
            raise BadCheckpoint(f"{name}: no {_CONFIG}, so this is no model of transformers' format")
        path = found
    return name, _parse(path, name)


def _parse(path: Path, name: str) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(limits.MODEL_FILE_BYTES + 1)
        if len(data) > limits.MODEL_FILE_BYTES:
            raise ConfigError(f"{path} is no config.json: it is too large")
        config = json.loads(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{name}: {path.name} is no JSON") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise BadCheckpoint(f"{name}: {path.name} does not say what model this is")
    return config
