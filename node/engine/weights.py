"""From stored tensors to the parameters of a span, by transformers' own rules of conversion, and nothing else read.

Checkpoints name and shape tensors otherwise than modules do (experts one by one, fused projections, renamed
prefixes); transformers has the rules, so its own machinery is given just the span's tensors. Where dtypes agree the
parameters are views of the mapped files: several nodes on one machine share the memory, and loading reads nothing
that is not used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from node.engine.skeleton import DTYPES, Layout
from node.engine.sources import first_line
from node.engine.stored import Later
from protocol.errors import BadCheckpoint, UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class StageTensors:
    """The stored tensors that one stage is made from, and the parameters for which there are none."""

    stored: frozenset[str]
    missing: tuple[str, ...]


def sort_tensors(model: PreTrainedModel, layout: Layout, stored: Iterable[str]) -> tuple[StageTensors, ...]:
    """Which of the checkpoint's tensors each stage needs, by transformers' rules of renaming and fusing.

    A tied parameter that is not stored itself is made from the one that it is tied to.
    """
    made_from: dict[str, set[str]] = {}
    for name, targets in _targets(model, stored):
        for target in targets:
            made_from.setdefault(target, set()).add(name)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stages = []
    for needed in layout.stages:
        found: set[str] = set()
        missing = []
        for name in sorted(needed):
            alias = alias_of(name, layout, made_from.keys())
            if alias is not None:
                found |= made_from[alias]
            elif name in parameters:
                missing.append(name)
        stages.append(StageTensors(frozenset(found), tuple(missing)))
    return tuple(stages)


def alias_of(name: str, layout: Layout, available: Iterable[str]) -> str | None:
    """`name` itself if it is available, else one that it is tied to, else None."""
    if name in available:
        return name
    return min(layout.tied.get(name, frozenset()) & set(available), default=None)


def _targets(model: PreTrainedModel, stored: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    for name in stored:
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state:
            continue  # a left-over of training that no module has a place for
        patterns = by_pattern[pattern].target_patterns if pattern is not None else []
        yield name, [target, *(target.replace(patterns[0], other) for other in patterns[1:])]


def load_tensors(
    model: PreTrainedModel, places: Mapping[str, Path | Later], dtype: str, device: torch.device
) -> frozenset[str]:
    """Fill parameters from stored tensors (name -> safetensors file, or how it is read); returns the names filled.

    Raises: BadCheckpoint, naming what is wrong.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    config = LoadStateDictConfig(
        dtype=DTYPES[dtype],
        dtype_plan=model._get_dtype_plan(DTYPES[dtype]),
        weight_mapping=get_model_conversion_mapping(model),  # type: ignore[arg-type]  # their own two hints differ
        device_map={"": device},
    )
    before = set(model.state_dict())
    with contextlib.ExitStack() as files, _no_progress_bar():
        opened: dict[Path, Any] = {}
        slices: dict[str, Any] = {}
        for name, path in places.items():
            if isinstance(path, Later):
                slices[name] = path
                continue
            try:
                if path not in opened:
                    opened[path] = files.enter_context(safe_open(path, framework="pt"))
                slices[name] = opened[path].get_slice(name)
            except (SafetensorError, OSError) as error:
                raise BadCheckpoint(f"{path}: {name} cannot be read: {first_line(error)}") from error
        info, _ = convert_and_load_state_dict_in_model(model, slices, config)
    if info.mismatched_keys:
        name, stored, wanted = min(info.mismatched_keys)
        shapes = f"{list(stored)} instead of {list(wanted)}"
        raise BadCheckpoint(
            f"{name} has the shape {shapes}, so config.json and the weights do not belong together"
        )
    if info.conversion_errors:
        name = min(info.conversion_errors)
        raise BadCheckpoint(f"{name} cannot be made from the checkpoint's tensors")
    return frozenset(before - info.missing_keys)


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def tie(model: PreTrainedModel, layout: Layout, needed: Iterable[str], loaded: set[str]) -> None:
    """Give each needed parameter that was not stored the one that it is tied to."""
    for name in needed:
        alias = alias_of(name, layout, loaded)
        if alias is not None and alias != name:
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, model.get_parameter(alias))
            loaded.add(name)


def fill_buffers(model: PreTrainedModel, paths: Iterable[str], device: torch.device) -> None:
    """Compute the buffers of the modules at `paths` that are not stored (frequencies, slopes, masks).

    The family's own code does it, on the module itself or, in some families, on one that holds it.
    Raises: UnsupportedModel, if the family leaves one as it was.
    """
    empty = []
    for path in paths:
        module = model.get_submodule(path)
        names = [n for n, b in module._buffers.items() if b is not None and b.device.type == "meta"]
        for name in names:
            # A value that no family uses shows below whether it was overwritten.
            unset = _unset(module._buffers[name].dtype)  # type: ignore[union-attr]
            module._buffers[name] = torch.full_like(module._buffers[name], unset, device=device)  # type: ignore[arg-type]
        if names:
            empty.append((path, names))
            _initialise(model, module)
    left = _left_unset(model, empty)
    for holder in sorted({path[:n] for path, _ in left for n, c in enumerate(path) if c == "."} | {""}):
        if left:
            _initialise(model, model.get_submodule(holder))
    for path, name in _left_unset(model, empty):
        raise UnsupportedModel(f"{model.config.model_type} cannot be split: nothing computes {path}.{name}")


def _initialise(model: PreTrainedModel, module: nn.Module) -> None:
    # Parameters that were loaded carry a mark of transformers', by which its initialisers leave them alone.
    with torch.no_grad():
        model._init_weights(module)


def _left_unset(model: PreTrainedModel, empty: Iterable[tuple[str, list[str]]]) -> list[tuple[str, str]]:
    filled = (
        (path, name, model.get_submodule(path)._buffers[name]) for path, names in empty for name in names
    )
    return [(path, name) for path, name, buffer in filled if buffer is not None and _is_unset(buffer)]


def _unset(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return False if dtype == torch.bool else torch.iinfo(dtype).min


def _is_unset(buffer: torch.Tensor) -> bool:
    if buffer.dtype == torch.bool:
        return False
    if buffer.dtype.is_floating_point or buffer.dtype.is_complex:
        return bool(torch.isnan(buffer).any())
    return bool((buffer == torch.iinfo(buffer.dtype).min).any())
