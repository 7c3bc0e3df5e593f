"""Some stages of a model, with weights, and the family's own forward to run any span of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from node.engine import weights
from node.engine.batching import may_batch, takes_chunks
from node.engine.cache import LayerCaches, SpanCache
from node.engine.forward import Caches, Forward
from node.engine.gates import Gates
from node.engine.pool import Pool
from node.engine.pooled import PoolCaches
from node.engine.rows import RowAttention, RowCaches
from node.engine.skeleton import DTYPES, build_skeleton, text_config
from node.engine.threads import one_thread
from protocol.errors import BadCheckpoint
from protocol.model import Span

if TYPE_CHECKING:
    from node.engine.checkpoint import Checkpoint
    from node.engine.quantised import Quantiser

# Of one session: attending to so many with one row takes longer than waking a thread that helps.
_FEW_POSITIONS: Final = 1024


class _Zero(nn.Module):
    """In place of an embedding that is not loaded: its part of a sum is nothing."""

    def __init__(self, zero: torch.Tensor) -> None:
        super().__init__()
        self._zero = zero

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._zero


class _Same(nn.Module):
    """In place of anything else that is not loaded: what comes in goes out."""

    def forward(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return states


class SplitModel:
    """The stages `stages` of a checkpoint's model, loaded. Not for two threads at once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        stages: frozenset[int],
        dtype: str,
        device: str,
        quantiser: Quantiser | None = None,
    ) -> None:
        """quantiser: packs the weights while they are loaded. Raises: BadCheckpoint, UnsupportedModel."""
        self.config = checkpoint.config
        self.stages = stages
        self.dtype = DTYPES[dtype]
        self.device = torch.device(device)
        self._is_packed = quantiser is not None and self.device.type == "cpu"
        if self.device.type == "cuda":
            # It makes a plan for every length of keys that it has not met: a growing session meets one a step.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.blocks = checkpoint.stages - 2
        self.vocab_size = int(text_config(self.config).vocab_size)
        self.hidden_size = int(text_config(self.config).hidden_size)
        self._layout = layout = checkpoint.layout
        self._model = build_skeleton(self.config, dtype)
        self._model.requires_grad_(False)
        self._load(checkpoint, dtype, quantiser)
        owner, _, name = layout.stack.rpartition(".")
        decoder = self._model.get_submodule(owner)
        self._slots = self._cache_slots(getattr(decoder, name))
        self._stub()
        self._gates = Gates(getattr(decoder, name), layout.returns)
        self._forward = Forward(self._model, decoder)
        self._attention = RowAttention(self._model)
        self.keeps_rows = self._keeps_rows()
        self.takes_chunks = takes_chunks(self.config) or self.keeps_rows
        self.may_batch = self._forward.takes_positions and may_batch(self._model)
        self._dummy: torch.Tensor = torch.zeros(1, 1, layout.width, dtype=self.dtype, device=self.device)

    def _load(self, checkpoint: Checkpoint, dtype: str, quantiser: Quantiser | None) -> None:
        loaded: set[str] = set()
        needed: set[str] = set()
        # One stage at a time: where dtypes differ, or weights are packed, only one is in memory twice.
        for stage in sorted(self.stages):
            places = {n: p for n, p in checkpoint.places(stage).items() if n not in loaded}
            if places:
                loaded |= weights.load_tensors(self._model, places, dtype, self.device)
            needed |= self._layout.stages[stage]
            if quantiser is not None:
                quantiser.replace(self._model, self._layout)
        weights.tie(self._model, self._layout, needed, loaded)
        if quantiser is not None:
            quantiser.replace(self._model, self._layout)
        weights.fill_buffers(self._model, self._modules_run(), self.device)
        empty = [n for n in sorted(needed) if n not in loaded and self._is_meta(n)]
        if empty:
            raise BadCheckpoint(f"{checkpoint.name}: no tensors for {', '.join(empty[:3])}")
        self.weight_bytes = self._weight_bytes()
        if quantiser is not None and self.device.type == "cuda":
            torch.cuda.empty_cache()  # what the weights took before they were packed is free for others

    def _is_meta(self, name: str) -> bool:
        tensor: torch.Tensor = self._model.get_parameter_or_buffer(name)
        return tensor.device.type == "meta"

    def _weight_bytes(self) -> int:
        distinct = {id(p): p for p in self._model.parameters() if p.device.type != "meta"}
        packed = (getattr(module, "packed_bytes", 0) for module in self._model.modules())
        return sum(p.nbytes for p in distinct.values()) + sum(packed)

    def _modules_run(self) -> list[str]:
        """The paths of the modules that a span here runs."""
        layout = self._layout
        paths = set(layout.shared)
        paths |= layout.before if 0 in self.stages else frozenset()
        paths |= layout.after if self.blocks + 1 in self.stages else frozenset()
        for stage in self.stages & set(range(1, self.blocks + 1)):
            block = f"{layout.stack}.{stage - 1}"
            inner = self._model.get_submodule(block).named_modules()
            paths |= {f"{block}.{name}" if name else block for name, _ in inner}
        return sorted(paths)

    def _cache_slots(self, layers: nn.ModuleList) -> dict[int, frozenset[int]]:
        """Block -> the cache slots that it uses: its own index, but for families with two attentions a layer."""
        slots = {}
        for index, layer in enumerate(layers):
            own = {getattr(module, "layer_idx", None) for module in layer.modules()}
            slots[index] = frozenset(i for i in own if type(i) is int) or frozenset([index])
        return slots

    def _stub(self) -> None:
        layout = self._layout
        absent = set() if 0 in self.stages else set(layout.before)
        absent |= set() if self.blocks + 1 in self.stages else set(layout.after)
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        for path in absent:
            parent, _, leaf = path.rpartition(".")
            stub = _Zero(zero) if isinstance(self._model.get_submodule(path), nn.Embedding) else _Same()
            setattr(self._model.get_submodule(parent), leaf, stub)

    def _keeps_rows(self) -> bool:
        """Whether all that its layers keep of a sequence is rows, none of them a state."""
        slots: frozenset[int] = frozenset().union(*self._slots.values())
        return LayerCaches(self.config, slots).can_cut()

    def layers_of(self, span: Span) -> range:
        """The decoder layers, from 0, of a span."""
        return range(max(span.start, 1) - 1, min(span.stop, self.blocks + 1) - 1)

    def has_head(self, span: Span) -> bool:
        """Whether the span ends with the head."""
        return span.stop == self.blocks + 2

    def new_cache(self, span: Span, max_tokens: int | None = None, pool: Pool | None = None) -> SpanCache:
        """An empty cache for one session over stages of this model; see `SpanEngine.new_cache`."""
        slots: frozenset[int] = frozenset().union(*(self._slots[i] for i in self.layers_of(span)))
        return SpanCache(self.config, span, slots, max_tokens, pool)

    @property
    def attention(self) -> str:
        """The name of the family's own way to attend."""
        return self._attention.name

    def together(self, sessions: Sequence[LayerCaches]) -> RowCaches:
        """Caches of a batch: one row of each session."""
        return RowCaches(sessions, self._attention.name)

    def hidden(self, span: Span, caches: Caches, inputs: torch.Tensor) -> torch.Tensor:
        """Hidden states [1, tokens, hidden] after the last block of the span (after the embedding, if it has none).

        inputs: ids [1, tokens], int64, if the span begins with stage 0; else hidden states [1, tokens, hidden]. With
        caches of several sessions one row of each: [sessions, 1] or [sessions, 1, hidden], and so what comes out.
        """
        with self._running(span, caches, inputs):
            self._forward.hidden(caches, self._offered(span, inputs))
            return self._gates.left

    def fill(self, span: Span, caches: Caches, inputs: torch.Tensor) -> None:
        """Take the rows into the caches, for nothing else; inputs as for `hidden`."""
        if self.layers_of(span):
            self.hidden(span, caches, inputs)
        else:
            caches.advance(inputs.shape[1])

    def logits(self, span: Span, caches: Caches, inputs: torch.Tensor, rows: int) -> torch.Tensor:
        """Logits [1 or sessions, rows, vocabulary] of the last `rows` rows (0: of all); inputs as for `hidden`."""
        with self._running(span, caches, inputs):
            return self._forward.logits(caches, self._offered(span, inputs), rows)

    def logits_and_states(
        self, span: Span, caches: Caches, inputs: torch.Tensor, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the states after the last norm [1 or sessions, rows, hidden]."""
        with self._running(span, caches, inputs):
            return self._forward.logits_and_states(caches, self._offered(span, inputs), rows)

    @contextlib.contextmanager
    def _running(self, span: Span, caches: Caches, inputs: torch.Tensor) -> Iterator[None]:
        layers = self.layers_of(span)
        attending = (
            self._attention.by_session() if not isinstance(caches, LayerCaches) else contextlib.nullcontext()
        )
        self._gates.set(layers.start, layers.stop, None if span.start == 0 else inputs)
        caches.begin()
        threads = one_thread() if self._leaves_little(caches, inputs) else contextlib.nullcontext()
        try:
            with attending, threads:
                yield
        finally:
            self._gates.set(0, 0, None)  # holds on to no states
        caches.advance(inputs.shape[1])

    def _leaves_little(self, caches: Caches, inputs: torch.Tensor) -> bool:
        """Whether the kernels compute nearly all: torch's threads, which sleep meanwhile, are not worth waking."""
        if not self._is_packed or inputs.shape[1] > 1 or isinstance(caches, PoolCaches):
            return False
        sessions = caches.sessions if isinstance(caches, RowCaches) else (caches,)
        return all(each.length < _FEW_POSITIONS for each in sessions)

    def _offered(self, span: Span, inputs: torch.Tensor) -> torch.Tensor:
        """What the family's forward begins with: the ids, or zeros of the same length that nothing depends on."""
        if span.start == 0:
            return inputs
        # Not expanded from one row: some families write into the embeddings that they are given.
        return self._dummy.repeat(*inputs.shape[:2], 1)
