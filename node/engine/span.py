"""The engine of a node: one span of one model, loaded, and steps of sessions through it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from node.compute.inputs import check_context, check_want
from node.compute.interfaces import Call, StepResult
from node.compute.kv import default_kv_tokens, token_bytes
from node.engine import convert, head
from node.engine.cache import SpanCache
from node.engine.checkpoint import Checkpoint
from node.engine.device import free_bytes, suited_dtype
from node.engine.pool import PAGE, Pool
from node.engine.quantised import Quantiser
from node.engine.replay import MOST_ROWS, Replay
from node.engine.sources import first_line
from node.engine.split import SplitModel
from node.engine.trial import Trial
from protocol.candidates import Want
from protocol.errors import (
    CacheFull,
    ConfigError,
    LocalProtocolError,
    Malformed,
    UnsupportedModel,
)
from protocol.model import Manifest, Span
from protocol.numerics import Numerics
from protocol.tensors import ITEM_BYTES

logger = logging.getLogger(__name__)

_Results = list[StepResult | Exception]


class SpanEngine:
    """One span of one model. Everything but `load` is for one thread.

    span, dtype: what was loaded, "f32", "f16" or "bf16"; hidden_size: of the states it takes and gives;
    weight_bytes: memory of the parameters (of a checkpoint in the same dtype on the CPU: mapped, not copied);
    goes_back: whether its caches can be cut to any position; batches: whether decode steps of several sessions are
    computed together; records: whether, on a graphics card, they are recorded once and replayed from then on.
    """

    shares_pages = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        span: Span,
        dtype: str,
        device: str,
        quantiser: Quantiser | None,
        recorded: bool,
    ) -> None:
        """Use `load`."""
        self.span = span
        self.dtype = dtype
        self.numerics = numerics_of(checkpoint, dtype)
        self.manifest: Manifest = checkpoint.manifest
        self.hidden_size = self.manifest.hidden_size
        self._model = SplitModel(checkpoint, frozenset(span), dtype, device, quantiser)
        self.weight_bytes = self._model.weight_bytes
        self.goes_back = self._model.keeps_rows
        trial = Trial(self._model, span)
        self._kv_bytes = trial.kv_bytes()
        self.batches = self._model.may_batch and trial.rows_agree()
        self._replay: Replay | None = None
        if recorded and self.batches and self._model.device.type == "cuda" and self._kv_bytes:
            replay = Replay(self._model, span, Pool(self._pages(), self._model.device))
            self._replay = replay if trial.replay_agrees(replay) else None
        self.records = self._replay is not None
        self._chunks = self._model.takes_chunks

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        span: Span,
        *,
        dtype: str | None = None,
        device: str = "cpu",
        quantiser: Quantiser | None = None,
        recorded: bool = True,
    ) -> SpanEngine:
        """Load the span's tensors, no others, and try them out.

        dtype: None takes the checkpoint's own where the device computes in it natively, else "f32". quantiser: packs
        the weights, on the CPU for "f32", on a card for "bf16". recorded: False launches every step anew, to compare.
        Raises: BadCheckpoint, UnsupportedModel; ConfigError, if the model has no such span or dtype, or the device
        no memory for it.
        """
        checkpoint.require(span)
        dtype = choose_dtype(checkpoint, dtype, device)
        try:
            return cls(checkpoint, span, dtype, device, quantiser, recorded)
        except torch.OutOfMemoryError as error:
            need = sum(checkpoint.stage_bytes(stage, dtype) for stage in span) / 2**30
            raise ConfigError(
                f"{device} has no memory for stages {span} in {dtype}, {need:.1f} GiB: serve fewer layers"
            ) from error

    def _pages(self) -> int:
        """How many pages of keys and values there may be."""
        free = free_bytes(str(self._model.device))
        row_bytes = self.hidden_size * ITEM_BYTES[self.dtype]
        return -(-default_kv_tokens(free, token_bytes(self._kv_bytes, row_bytes)) // PAGE)

    def kv_bytes_per_token(self) -> int:
        """Memory that one position of one session over the whole span takes (recurrent states are not counted)."""
        return self._kv_bytes

    def new_cache(self, span: Span, max_tokens: int | None = None) -> SpanCache:
        """An empty cache for one session of at most `max_tokens` over `span`, which is within the engine's span."""
        if not self.span.covers(span):
            raise LocalProtocolError(f"span {span} asked of an engine that holds {self.span}")
        pool = None if self._replay is None else self._replay.pool
        return self._model.new_cache(span, max_tokens, pool)

    @torch.inference_mode()
    def run(self, calls: Sequence[Call]) -> _Results:
        """See `node.compute.interfaces.Engine`.

        Calls of one row for the same stages are computed together where the family allows it, others one by one.
        Errors besides Malformed: UnsupportedModel, if a recurrent model is asked to go back; CacheFull, if the
        device has no memory left for a call.
        """
        results: _Results = [None] * len(calls)
        for group in self._groups(calls, results):
            if self._replays(group) and self._run_recorded(group, results):
                continue
            if len(group) > 1 and self._run_rows(group, results):
                continue
            for entered in group:
                results[entered.place] = self._run_alone(entered)
        return results

    def _groups(self, calls: Sequence[Call], results: _Results) -> Iterator[list[_Entered]]:
        """Calls that may be computed together; of those that cannot be, the errors are put in their places."""
        rows: dict[Span, list[_Entered]] = {}
        alone: list[_Entered] = []
        for place, call in enumerate(calls):
            try:
                entered = self._enter(place, call)
            except (Malformed, UnsupportedModel, CacheFull) as error:
                results[place] = error
                continue
            if self.batches and entered.inputs.shape[1] == 1 and not entered.want.states:
                rows.setdefault(entered.cache.span, []).append(entered)
            else:
                alone.append(entered)
        for group in rows.values():
            yield from (group[start : start + MOST_ROWS] for start in range(0, len(group), MOST_ROWS))
        yield from ([entered] for entered in alone)

    def _enter(self, place: int, call: Call) -> _Entered:
        """Check a call, and cut its cache. Raises: Malformed, UnsupportedModel, CacheFull."""
        cache, inputs = call.cache, call.inputs
        if not isinstance(cache, SpanCache):
            raise LocalProtocolError("a cache that this engine did not make")
        if not 0 <= call.position <= cache.length:
            raise Malformed(f"a step at position {call.position}, the cache ends at {cache.length}")
        if cache.span.start == 0:
            states = convert.ids_in(inputs, self.manifest.vocab_size)
        else:
            states = convert.hidden_in(inputs, self.hidden_size, self._model.dtype)
        check_context(call.position, inputs, self.manifest.context)
        if self._model.has_head(cache.span):
            check_want(call.want, self.manifest.vocab_size)
        cache.cut(call.position)
        cache.layers.reserve(call.position + inputs.rows)
        return _Entered(place, cache, call.position, states, call.want)

    def _replays(self, group: Sequence[_Entered]) -> bool:
        """Whether there are recordings for a group: of single rows through the whole span."""
        first = group[0]
        single = first.inputs.shape[1] == 1 and not first.want.states
        return self.records and first.cache.span == self.span and single

    def _run_recorded(self, group: Sequence[_Entered], results: _Results) -> bool:
        """One row of each session, recorded; False if that cannot be, and nothing is taken."""
        assert self._replay is not None
        head = self._model.has_head(self._replay.span)
        inputs = torch.cat([entered.inputs for entered in group])
        try:
            out = self._replay.run([entered.cache.layers for entered in group], inputs, logits=head)
            leave = self._leave if head else self._leave_hidden
            leave(group, out, results)
        except torch.OutOfMemoryError:
            self._make_room(group)
            return False
        except RuntimeError as error:
            logger.warning("steps are not recorded any more: %s", first_line(error))
            logger.debug("what failed", exc_info=True)
            self.records = False
            self._make_room(group)
            return False
        return True

    def _run_rows(self, group: Sequence[_Entered], results: _Results) -> bool:
        """One row of each session, together; False if there is no memory for that."""
        span, inputs = group[0].cache.span, torch.cat([entered.inputs for entered in group])
        wanted = [entered for entered in group if entered.want.kind != "nothing"]
        caches = self._model.together([entered.cache.layers for entered in group])
        try:
            if not self._model.has_head(span):
                hidden = self._model.hidden(span, caches, inputs.to(self._model.device))[:, 0]
                self._leave_hidden(group, hidden, results)
            elif not wanted:
                self._model.fill(span, caches, inputs.to(self._model.device))
            else:
                logits = self._model.logits(span, caches, inputs.to(self._model.device), 1)[:, 0]
                self._leave(group, logits, results)
        except torch.OutOfMemoryError:
            self._make_room(group)
            return False
        return True

    @staticmethod
    def _leave_hidden(group: Sequence[_Entered], hidden: torch.Tensor, results: _Results) -> None:
        """Rows of hidden states [sessions, hidden_size]."""
        for entered, row in zip(group, hidden.cpu(), strict=True):
            # Of its own: a view would keep the rows of all sessions for as long as one of them lasts.
            results[entered.place] = convert.hidden_out(row[None].clone())

    @staticmethod
    def _leave(group: Sequence[_Entered], logits: torch.Tensor, results: _Results) -> None:
        """Candidates of rows of logits [sessions, vocabulary], those that want the same at once."""
        alike: dict[Want, list[int]] = {}
        for row, entered in enumerate(group):
            if entered.want.kind != "nothing":
                alike.setdefault(entered.want, []).append(row)
        for want, rows in alike.items():
            found = head.of_each(logits[rows], want)
            for row, given in zip(rows, found, strict=True):
                results[group[row].place] = given

    def _run_alone(self, entered: _Entered) -> StepResult | Exception:
        try:
            return self._computed(entered)
        except torch.OutOfMemoryError:
            self._make_room([entered])
            return CacheFull("the memory of the device is full for now")
        except Exception as error:  # noqa: BLE001 - in its place: what others have computed cannot always be run again
            return error

    def _computed(self, entered: _Entered) -> StepResult:
        """Hidden states of every row, whatever is wanted, unless the span ends with the head. Raises: Malformed."""
        cache, want, inputs = entered.cache, entered.want, entered.inputs.to(self._model.device)
        # One row after the other, where the family would begin anew with several.
        singly = cache.length > 0 and not self._chunks
        pieces = inputs.split(1, dim=1) if singly else (inputs,)
        if not self._model.has_head(cache.span):
            found = [self._model.hidden(cache.span, cache.layers, piece)[0] for piece in pieces]
            return convert.hidden_out(torch.cat(found) if singly else found[0])
        if want.kind == "nothing":
            for piece in pieces:
                self._model.fill(cache.span, cache.layers, piece)
            return None
        rows = 0 if want.every else 1
        if want.states:
            both = [self._model.logits_and_states(cache.span, cache.layers, piece, rows) for piece in pieces]
            kept = both if want.every else both[-1:]
            logits, states = (torch.cat([each[part][0] for each in kept]) for part in (0, 1))
            return head.candidates(logits, want, states)
        found = [self._model.logits(cache.span, cache.layers, piece, rows)[0] for piece in pieces]
        return head.candidates(torch.cat(found) if want.every else found[-1], want)

    def _make_room(self, group: Sequence[_Entered]) -> None:
        """Take back what calls that failed have left; give back what torch keeps of the device's memory for later."""
        for entered in group:
            if entered.cache.layers.can_cut():
                entered.cache.cut(entered.position)
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class _Entered:
    """A call that can be: its place among the calls, and its cache, cut to where it begins."""

    place: int
    cache: SpanCache
    position: int
    inputs: torch.Tensor  # ids [1, tokens], int64, or states [1, tokens, hidden_size], on the CPU
    want: Want


def numerics_of(checkpoint: Checkpoint, dtype: str) -> Numerics:
    """What a span of `checkpoint` is computed in; the sums are torch's, so there is no version."""
    return Numerics(dtype if checkpoint.precision is None else checkpoint.precision.name)


def choose_dtype(checkpoint: Checkpoint, dtype: str | None, device: str) -> str:
    """`dtype`, or the checkpoint's own where the device computes in it natively. Raises: ConfigError."""
    if dtype is not None:
        if dtype not in ITEM_BYTES or dtype == "i32":
            raise ConfigError(f"there is no dtype {dtype!r}: f32, f16 or bf16")
        return dtype
    return suited_dtype(checkpoint.dtype or "f32", device)
