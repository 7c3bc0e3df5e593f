"""The engine of a node: one span of one model, loaded, and a step of one session through it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from node.compute.inputs import check_context, check_want
from node.compute.interfaces import Call, StepResult
from node.engine import convert, head
from node.engine.cache import SpanCache
from node.engine.checkpoint import Checkpoint
from node.engine.skeleton import probing
from node.engine.split import SplitModel
from protocol.errors import ConfigError, LocalProtocolError, Malformed, UnsupportedModel
from protocol.model import Manifest, Span
from protocol.tensors import ITEM_BYTES, Tensor

_CHECK_TOKENS = 3


class SpanEngine:
    """One span of one model. Everything but `load` is for one thread.

    span, dtype: what was loaded, "f32", "f16" or "bf16"; hidden_size: of the states it takes and gives;
    weight_bytes: memory of the parameters (of a checkpoint in the same dtype on the CPU: mapped, not copied).
    """

    shares_pages = False

    def __init__(self, checkpoint: Checkpoint, span: Span, dtype: str, device: str) -> None:
        """Use `load`."""
        self.span = span
        self.dtype = dtype
        self.manifest: Manifest = checkpoint.manifest
        self.hidden_size = self.manifest.hidden_size
        self._model = SplitModel(checkpoint, frozenset(span), dtype, device)
        self.weight_bytes = self._model.weight_bytes
        self._kv_bytes = self._check()

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, span: Span, *, dtype: str | None = None, device: str = "cpu"
    ) -> SpanEngine:
        """Load the span's tensors, no others, and try them out.

        dtype: None takes the checkpoint's own where the device computes in it natively, else "f32".
        Raises: BadCheckpoint, UnsupportedModel; ConfigError, if the model has no such span or dtype.
        """
        checkpoint.require(span)
        dtype = choose_dtype(checkpoint, dtype, device)
        return cls(checkpoint, span, dtype, device)

    def kv_bytes_per_token(self) -> int:
        """Memory that one position of one session over the whole span takes (recurrent states are not counted)."""
        return self._kv_bytes

    def new_cache(self, span: Span, max_tokens: int | None = None) -> SpanCache:
        """An empty cache for one session of at most `max_tokens` over `span`, which is within the engine's span."""
        if not self.span.covers(span):
            raise LocalProtocolError(f"span {span} asked of an engine that holds {self.span}")
        return self._model.new_cache(span, max_tokens)

    def run(self, calls: Sequence[Call]) -> list[StepResult | Exception]:
        """See `node.compute.interfaces.Engine`; one call after the other."""
        return [self._attempt(call) for call in calls]

    def _attempt(self, call: Call) -> StepResult | Exception:
        try:
            return self._call(call)
        except Exception as error:  # noqa: BLE001 - in its place; states that cannot be cut are not run again
            return error

    @torch.inference_mode()
    def _call(self, call: Call) -> StepResult:
        """Cut the cache to `position`, run `inputs` through the cache's span, append to the cache.

        inputs: int32 ids [tokens] if the span begins with stage 0, else hidden states [tokens, hidden_size] in the
        engine's dtype. Returns hidden states [tokens, hidden_size] of every row, whatever is wanted, unless the span
        ends with the head: then candidates of the last row or of every row, or None if nothing is wanted.
        Raises: Malformed, the sender's fault; UnsupportedModel, if a recurrent model is asked to go back.
        """
        cache, position, inputs, want = call.cache, call.position, call.inputs, call.want
        if not isinstance(cache, SpanCache):
            raise LocalProtocolError("a cache that this engine did not make")
        if not 0 <= position <= cache.length:
            raise Malformed(f"a step at position {position}, the cache ends at {cache.length}")
        states = self._inputs(cache.span, inputs)
        check_context(position, inputs, self.manifest.context)
        ends = self._model.has_head(cache.span)
        if ends:
            check_want(want, self.manifest.vocab_size)
        cache.cut(position)
        if not ends:
            return convert.hidden_out(self._model.hidden(cache.span, cache.layers, states))
        if want.kind == "nothing":
            self._model.hidden(cache.span, cache.layers, states)
            return None
        rows = 0 if want.every else 1
        return head.candidates(self._model.logits(cache.span, cache.layers, states, rows)[0], want)

    def _inputs(self, span: Span, inputs: Tensor) -> torch.Tensor:
        if span.start == 0:
            return convert.ids_in(inputs, self.manifest.vocab_size).to(self._model.device)
        return convert.hidden_in(inputs, self.hidden_size, self._model.dtype, self._model.device)

    @torch.inference_mode()
    def _check(self) -> int:
        """Run the span at once and stage by stage, which must agree (on the CPU to the bit); KV bytes per token.

        Layers that hand each other more than hidden states show here. Raises: UnsupportedModel.
        """
        whole = self.new_cache(self.span)
        parts = [self.new_cache(Span(stage, stage + 1)) for stage in self.span]
        with probing(self._model.config):
            for tokens in (_CHECK_TOKENS, 1):
                inputs = self._sample(tokens)
                expected = self._run(whole, inputs)
                for part in parts:
                    inputs = self._run(part, inputs)
                if not self._agree(expected, inputs):
                    kind = self._model.config.model_type
                    raise UnsupportedModel(
                        f"{kind} cannot be split: its layers share more than hidden states"
                    )
        return whole.layers.bytes_per_token()

    @staticmethod
    def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
        if one.device.type == "cpu":
            return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        # Elsewhere sums run in no fixed order; what layers keep from each other makes more of a difference.
        one, other = one.float().nan_to_num(), other.float().nan_to_num()
        return bool((one - other).norm() <= 0.05 * one.norm())

    def _sample(self, tokens: int) -> torch.Tensor:
        if self.span.start == 0:
            return torch.arange(tokens, device=self._model.device)[None] % self.manifest.vocab_size
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(1, tokens, self.hidden_size, generator=generator)
        return states.to(device=self._model.device, dtype=self._model.dtype)

    def _run(self, cache: SpanCache, inputs: torch.Tensor) -> torch.Tensor:
        run = self._model.hidden
        if self._model.has_head(cache.span):
            return self._model.logits(cache.span, cache.layers, inputs, 0)
        return run(cache.span, cache.layers, inputs)


def choose_dtype(checkpoint: Checkpoint, dtype: str | None, device: str) -> str:
    """`dtype`, or the checkpoint's own where the device computes in it natively. Raises: ConfigError."""
    if dtype is not None:
        if dtype not in ITEM_BYTES or dtype == "i32":
            raise ConfigError(f"there is no dtype {dtype!r}: f32, f16 or bf16")
        return dtype
    own = checkpoint.dtype or "f32"
    if torch.device(device).type != "cpu":
        return own
    # Without these instructions bf16 prefill is three times slower than fp32, and fp16 worse.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if own == "bf16" and native else "f32"
