"""A model without weights: where its decoder layers are, what lies around them, and which tensors each stage needs.

The whole `XForCausalLM` is built on the meta device, with every layer at its own index. The layers are then
replaced by gates (see `gates`) and the family's own forward runs once through them; what it calls before the
first layer belongs to stage 0, what it calls after the last to the head. Nothing here knows a family by name.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from node.engine.cache import LayerCaches
from node.engine.forward import Forward
from node.engine.gates import Gates
from node.engine.sources import first_line
from protocol.errors import SwarmError, UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

DTYPES: Final = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_STACK_NAMES: Final = ("layers", "h", "blocks")


@dataclass(frozen=True, slots=True)
class Layout:
    """What one trace of a model's forward found out. Names are paths within the model."""

    stack: str  # of the list of decoder layers
    returns: int  # how a layer returns: 0 the hidden states themselves, else in a tuple of this length
    width: int  # of the embedding
    before: frozenset[str]  # modules with parameters that run before the first layer
    after: frozenset[str]  # and those that run after the last one
    shared: frozenset[str]  # modules outside the layers that hold only buffers, which every span runs
    stages: tuple[frozenset[str], ...]  # per stage the parameters and stored buffers it cannot run without
    tied: Mapping[str, frozenset[str]]  # parameter -> every name of the same parameter
    sizes: Mapping[str, tuple[int, bool]]  # per parameter or buffer: elements, whether floating point


def text_config(config: PreTrainedConfig) -> Any:
    """The part of a configuration that describes the decoder."""
    return config.get_text_config(decoder=True)


def build_skeleton(config: PreTrainedConfig, dtype: str) -> PreTrainedModel:
    """The whole model on the meta device, in evaluation mode. Raises: UnsupportedModel."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            # A copy: the model's dtype and its way to attend are written into its configuration.
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=DTYPES[dtype], trust_remote_code=False
            )
    except Exception as error:
        raise UnsupportedModel(f"{config.model_type} cannot be built: {first_line(error)}") from error
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            # It reads the first and last id of every step to warn of padding, which nobody here does.
            module.warn_if_padding_and_no_attention_mask = lambda *args: None
    return model.eval()  # type: ignore[no-any-return]


def find_stack(model: PreTrainedModel) -> tuple[str, str]:
    """(path of the module whose forward loops over the decoder layers, name of the list in it).

    Raises: UnsupportedModel.
    """
    blocks = text_config(model.config).num_hidden_layers
    best, best_score = None, 0
    for path, module in model.named_modules():  # outermost first
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == blocks:
                score = 1 + (name in _STACK_NAMES)
                if score > best_score:
                    best, best_score = (path, name), score
    if best is None:
        raise UnsupportedModel(
            f"{model.config.model_type} cannot be split: no list of {blocks} decoder layers"
        )
    return best


@contextlib.contextmanager
def probing(config: PreTrainedConfig) -> Iterator[None]:
    """Around questions to a family's own code, which promises nothing: whatever fails then is UnsupportedModel.

    The phase is the boundary, not the place: a family that leaves nothing where something is expected fails in our
    code. The error that came first is the cause.
    """
    try:
        yield
    except (SwarmError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UnsupportedModel(f"{config.model_type} cannot be split: {what}") from error


def trace(model: PreTrainedModel) -> Layout:
    """Runs the forward of a model on the meta device once through gates. Raises: UnsupportedModel.

    Autograd tracks what depends on the parameters before the layers: if a layer gets such a tensor besides its
    hidden states (embeddings per layer, for one), a span in the middle could not know it.
    """
    with probing(model.config):
        return _trace(model)


def _trace(model: PreTrainedModel) -> Layout:
    owner_path, name = find_stack(model)
    stack = f"{owner_path}.{name}" if owner_path else name
    owner = model.get_submodule(owner_path)
    layers: nn.ModuleList = getattr(owner, name)
    _refuse_sharing(model)
    errors: list[str] = []
    for returns in (0, 1, 2, 3):
        gates = Gates(layers, returns)
        calls = _Calls(model, layers, stack)
        try:
            with calls.watching(), torch.enable_grad():
                _run_once(model, owner, gates)
        except UnsupportedModel:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a family's code raises, it is told below
            errors.append(first_line(error))
            continue
        finally:
            gates.remove()
        return _layout(model, stack, returns, calls)
    raise UnsupportedModel(f"{model.config.model_type} cannot be split: its forward fails: {errors[0]}")


def _refuse_sharing(model: PreTrainedModel) -> None:
    if "reuse" in (getattr(text_config(model.config), "kv_sharing_modes", None) or ()):
        reason = "layers read the keys and values of other layers"
        raise UnsupportedModel(f"{model.config.model_type} cannot be split: {reason}")


def _run_once(model: PreTrainedModel, owner: nn.Module, gates: Gates) -> None:
    kind, hidden_size = model.config.model_type, text_config(model.config).hidden_size
    tokens = 3
    caches = LayerCaches(model.config, frozenset())
    gates.watch()
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    logits = Forward(model, owner).logits(caches, ids, 1)
    if gates.seen != list(range(len(gates))):
        raise UnsupportedModel(f"{kind} cannot be split: its forward does not run its layers once, in order")
    if tuple(gates.left.shape) != (1, tokens, hidden_size):
        raise UnsupportedModel(f"{kind} cannot be split: layers take states of {list(gates.left.shape)}")
    if gates.tainted:
        raise UnsupportedModel(
            f"{kind} cannot be split: layers read more than hidden states: {gates.tainted}"
        )
    if tuple(logits.shape) != (1, 1, text_config(model.config).vocab_size):
        raise UnsupportedModel(f"{kind} cannot be split: its logits have the shape {list(logits.shape)}")


class _Calls:
    """Which modules outside the layers run, and on which side of them."""

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, stack: str) -> None:
        self._layers = layers
        self._modules = {
            p: m for p, m in model.named_modules() if p != stack and not p.startswith(stack + ".")
        }
        self._entered = False
        self.before: set[str] = set()
        self.after: set[str] = set()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calls made inside."""
        hooks = [self._layers[0].register_forward_pre_hook(self._enter)]
        for path, module in self._modules.items():
            hooks.append(module.register_forward_pre_hook(self._note(path)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._entered = True

    def _note(self, path: str) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            (self.after if self._entered else self.before).add(path)

        return note


def _layout(model: PreTrainedModel, stack: str, returns: int, calls: _Calls) -> Layout:
    names = _parameter_names(model)
    state = model.state_dict()
    width: Any = model.get_input_embeddings().embedding_dim

    def own(path: str, *, buffers: bool) -> set[str]:
        module = model.get_submodule(path)
        found = {f"{path}.{n}" if path else n for n, _ in module.named_parameters(recurse=False)}
        if buffers:
            found |= {f"{path}.{n}" if path else n for n in module._buffers} & state.keys()
        return found

    before = {path for path in calls.before if own(path, buffers=False)}
    after = {path for path in calls.after if own(path, buffers=False)}
    shared = (calls.before | calls.after) - before - after
    blocks = [
        frozenset(n for n in state if n.startswith(f"{stack}.{i}."))
        for i in range(text_config(model.config).num_hidden_layers)
    ]
    everywhere = {n for path in shared for n in own(path, buffers=True)}
    first = frozenset(everywhere.union(*(own(path, buffers=True) for path in before)))
    last = frozenset(everywhere.union(*(own(path, buffers=True) for path in after)))
    return Layout(
        stack=stack,
        returns=returns,
        width=width,
        before=frozenset(before),
        after=frozenset(after),
        shared=frozenset(shared),
        stages=(first, *(block | everywhere for block in blocks), last),
        tied={name: names[id(p)] for name, p in model.named_parameters(remove_duplicate=False)},
        sizes={name: (t.numel(), t.is_floating_point()) for name, t in state.items()},
    )


def _parameter_names(model: PreTrainedModel) -> dict[int, frozenset[str]]:
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {key: frozenset(group) for key, group in names.items()}
