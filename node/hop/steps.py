"""What a step may be, what becomes of its result. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property

from node.compute.call import BadOutput
from node.compute.interfaces import StepResult
from node.compute.kv import room_for
from protocol import limits
from protocol.candidates import NOTHING, Candidates, Want, join_candidates
from protocol.errors import CacheFull, Malformed, UnsupportedModel
from protocol.messages import Error, Lane, Output, Step
from protocol.model import Manifest, Span
from protocol.tensors import ITEM_BYTES, Tensor, concat_rows
from protocol.transport.limits import STREAM_WINDOW

# What a frame holds besides its tensor: the other fields, and the ids that a step asks for, of 5 bytes each.
FRAME_EXTRA_BYTES = 32 * 1024
# What Python takes for one of those ids: an int and its place in a tuple.
ASKED_ID_BYTES = 40
# A session's own objects (tasks, streams, cache slots, the ids that its journal remembers), and what comes in one
# piece with the end of a frame from each of its two streams.
SESSION_BYTES = 512 * 1024 + 2 * STREAM_WINDOW
# The ids that a journal remembers: those of the widest want, and of the one after it.
JOURNAL_IDS = 2 * limits.ASKED_IDS


class BadWant(Malformed):
    """A step wants what cannot be given: the fault of the client, whoever brought the step."""


@dataclass(frozen=True)
class Shape:
    """The sizes of one session's steps. Each is found once, and asked for with every step."""

    span: Span
    manifest: Manifest
    dtype: str
    max_tokens: int

    @cached_property
    def takes_tokens(self) -> bool:
        """Whether inputs are token ids."""
        return self.span.start == 0

    @cached_property
    def has_head(self) -> bool:
        """Whether results are candidates."""
        return self.span.stop == self.manifest.stages

    @cached_property
    def blocks(self) -> int:
        """Transformer blocks in the span."""
        return len(self.span) - self.takes_tokens - self.has_head

    @cached_property
    def frame_bytes(self) -> int:
        """The largest frame that a step needs."""
        rows = min(self.max_tokens, limits.STEP_TOKENS)
        return min(limits.FRAME_BYTES, rows * self._input_row_bytes + FRAME_EXTRA_BYTES)

    @cached_property
    def waiting_rows(self) -> int:
        """Rows that may wait to be computed and sent on, all steps together."""
        least = 2 * limits.STEP_TOKENS
        return min(self.max_tokens, max(least, limits.WAITING_BYTES // self._row_bytes))

    @cached_property
    def answer_bytes(self) -> int:
        """What the answers of all steps that are held may take, with the ids they ask for."""
        row_bytes = 8 * self.manifest.vocab_size if self.has_head else 0
        return max(limits.ANSWER_BYTES, row_bytes + (4 + ASKED_ID_BYTES) * limits.ASKED_IDS)

    @cached_property
    def journal_bytes(self) -> int:
        """What the whole journal takes, or the answers that are kept in its place."""
        return self.answer_bytes if self.has_head else self.max_tokens * self._output_row_bytes

    @cached_property
    def buffer_bytes(self) -> int:
        """The most that the session has in motion.

        Rows that wait, answers that wait and those that are kept, a frame coming in on each of its two streams, one
        going out and the rows that it is made of.
        """
        frames, answers = 4 * self.frame_bytes, 2 * self.answer_bytes
        return self.waiting_rows * self._row_bytes + answers + frames + SESSION_BYTES

    @cached_property
    def _row_bytes(self) -> int:
        return self._input_row_bytes + self._output_row_bytes

    @cached_property
    def _input_row_bytes(self) -> int:
        return ITEM_BYTES["i32"] if self.takes_tokens else self.manifest.hidden_size * ITEM_BYTES["f32"]

    @cached_property
    def _output_row_bytes(self) -> int:
        return 0 if self.has_head else self.manifest.hidden_size * ITEM_BYTES[self.dtype]

    def check(self, step: Step, named: int = 0) -> None:
        """Raises Malformed for a step that this session cannot have, wherever it stands; so many rows of it are named
        and come before its inputs."""
        rows, dims = named + step.inputs.rows, step.inputs.shape[1:]
        if not 1 <= rows <= limits.STEP_TOKENS:
            raise Malformed(f"a step of {rows} rows; 1 to {limits.STEP_TOKENS} are allowed")
        if self.takes_tokens and (step.inputs.dtype != "i32" or dims):
            raise Malformed("a span that begins with the embedding takes int32 [tokens]")
        if not self.takes_tokens and (step.inputs.dtype == "i32" or dims != (self.manifest.hidden_size,)):
            raise Malformed(f"this span takes hidden states [tokens, {self.manifest.hidden_size}]")
        stop = step.position + rows
        if step.lanes:
            stop = max(lane.position + lane.rows for lane in step.lanes)
            if (
                named
                or sum(lane.rows for lane in step.lanes) != rows
                or not all(each.rows for each in step.lanes)
            ):
                raise Malformed(f"lanes that do not share out {rows} rows")
        if stop > self.max_tokens:
            raise Malformed(f"position {stop} is past the {self.max_tokens} tokens asked for")

    def check_want(self, step: Step, held_bytes: int) -> None:
        """Raises BadWant for an answer that cannot be given or sent, or that takes too much while it is held."""
        if held_bytes > self.answer_bytes:
            raise BadWant("the step wants more than a session may; ask for fewer rows or fewer candidates")
        if step.inputs.rows * self._output_row_bytes > limits.FRAME_BYTES - FRAME_EXTRA_BYTES:
            raise BadWant("what the step gives does not fit a frame; send fewer rows")
        if self.has_head and max(step.want.ids, default=0) >= self.manifest.vocab_size:
            raise BadWant(f"logits wanted of an id outside the vocabulary of {self.manifest.vocab_size}")

    def held_bytes(self, step: Step) -> int:
        """What a step takes while it is held, besides its rows: its candidates, and the ids it asks for."""
        want = step.want
        asked_bytes = ASKED_ID_BYTES * len(want.ids)
        if not self.has_head or want.kind != "candidates" or step.fill_until is not None:
            return asked_bytes
        vocab_size = self.manifest.vocab_size
        a_row = 8 * min(want.top or vocab_size, vocab_size) + 4 * len(want.ids)
        a_row += self.manifest.hidden_size * ITEM_BYTES["f32"] if want.states else 0
        return asked_bytes + a_row * (step.inputs.rows if want.every else len(step.parts))


@dataclass(frozen=True, slots=True)
class _Held:
    """Of a lane: where it began, and how far it goes."""

    begin: int = 0
    stop: int = 0


class Gate:
    """Follows the numbers of a session's steps, and the positions of its lanes, as they arrive."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self.received = 0  # the highest number plus one
        self._lanes = {0: _Held()}

    @property
    def tokens(self) -> int:
        """Positions of all lanes: of several in whole pages, and what they share counts for each."""
        if len(self._lanes) == 1:
            return self._lanes[0].stop
        return sum(room_for(lane.stop, self._shape.max_tokens) for lane in self._lanes.values())

    @property
    def lanes(self) -> int:
        """How many there are."""
        return len(self._lanes)

    def begin_at(self, number: int, length: int) -> None:
        """The first `length` tokens are there, by steps below `number`."""
        self.received, self._lanes = number, {0: _Held(0, length)}

    def admit(self, step: Step, named: int = 0) -> bool:
        """Whether the step is new; False for one that came before. So many rows of it are named and come before its
        inputs. Raises: Malformed."""
        if step.number < self.received:
            return False
        self._shape.check(step, named)
        if step.lanes or step.ended:
            self._lanes = self._after(step)
        else:
            length = self._lanes[0].stop
            if step.position > length:
                raise Malformed(f"position {step.position}, but only {length} tokens came before")
            self._lanes[0] = _Held(0, step.position + named + step.inputs.rows)
        self.received = step.number + 1
        return True

    def _after(self, step: Step) -> dict[int, _Held]:
        """The lanes after a step. Raises: Malformed."""
        if 0 in step.ended:
            raise Malformed("lane 0 ends with its session")
        before = {name: held for name, held in self._lanes.items() if name not in step.ended}
        after = dict(before)
        for lane in step.parts:
            is_new = lane.parent is not None
            held = before.get(lane.name if lane.parent is None else lane.parent)
            if held is None or (is_new and lane.name in (0, lane.parent)):
                raise Malformed(f"lane {lane.name} goes on from none that there is")
            if not held.begin + is_new <= lane.position <= held.stop:
                raise Malformed(
                    f"lane {lane.name} at position {lane.position}, not in {held.begin}:{held.stop}"
                )
            begin = lane.position if is_new else held.begin
            after[lane.name] = _Held(begin, lane.position + lane.rows)
        if len({lane.name for lane in step.parts}) < len(step.parts) or len(after) > limits.LANES:
            raise Malformed(f"a lane twice, or more than {limits.LANES}")
        return after


def effective_want(step: Step, *, has_head: bool) -> Want:
    """What the engine is asked for: fills and hidden states need no candidates."""
    if has_head and step.fill_until is None and step.want.kind == "candidates":
        return step.want
    return NOTHING


def piece_want(want: Want, *, last: bool) -> Want:
    """What a piece of a step is asked for: the last row of the step is in its last piece."""
    return want if last or want.every else NOTHING


def join(parts: list[StepResult]) -> StepResult:
    """The result of a step from those of its pieces."""
    if len(parts) == 1:
        return parts[0]
    hidden = [part for part in parts if isinstance(part, Tensor)]
    if hidden:
        return concat_rows(hidden)
    return join_candidates([part for part in parts if isinstance(part, Candidates)])


def explain(error: Exception, *, from_client: bool) -> Error:
    """What a client is told of a step that failed: whose fault it is, and whether another node may do better."""
    if isinstance(error, BadWant):
        return Error(
            "bad_step", str(error), elsewhere=False
        )  # whoever brought it: a want is the client's own
    if isinstance(error, Malformed):
        return Error("bad_step" if from_client else "bad_hidden", str(error), elsewhere=not from_client)
    if isinstance(error, BadOutput):
        return Error("bad_output", str(error), elsewhere=True)
    if isinstance(error, CacheFull):
        return Error("busy", str(error), elsewhere=True)
    if isinstance(error, UnsupportedModel):
        return Error("unsupported", str(error), elsewhere=False)
    return Error("engine", f"the engine failed: {type(error).__name__}", elsewhere=True)


@dataclass(frozen=True, slots=True)
class Named:
    """The first rows of a result that the next hop may know by their mark."""

    rows: int
    mark: bytes


@dataclass(frozen=True, slots=True)
class Computed:
    """A step's result, with what decides where it goes."""

    number: int
    position: int
    want: Want
    fill_until: int | None
    result: StepResult
    named: Named | None = None
    lanes: tuple[Lane, ...] = ()
    ended: tuple[int, ...] = ()


def output_of(done: Computed, *, bridged: bool) -> Output | None:
    """What goes back to the client where there is no next hop.

    Raises: Malformed, if the step wants candidates of a span that has no head.
    """
    if done.fill_until is not None:
        return None
    if isinstance(done.result, Tensor):
        return _hidden_output(_lane_0(done, done.result), bridged=bridged)
    if done.want.kind == "hidden":
        raise Malformed("this hop ends with the head: it returns candidates, not hidden states")
    if done.want.kind == "nothing" or done.result is None:
        return None
    return Output(done.number, done.position, candidates=done.result)


def _lane_0(done: Computed, hidden: Tensor) -> Computed | None:
    """What a client carries of a step: the rows of lane 0, if it has any."""
    start = 0
    for lane in done.lanes:
        if lane.name == 0:
            rows = hidden.row_slice(start, start + lane.rows)
            return replace(done, position=lane.position, result=rows, lanes=())
        start += lane.rows
    return None if done.lanes else done


def _hidden_output(done: Computed | None, *, bridged: bool) -> Output | None:
    if done is None:
        return None
    hidden = done.result
    assert isinstance(hidden, Tensor)
    if bridged or (done.want.kind == "hidden" and done.want.every):
        return Output(done.number, done.position, hidden=hidden)
    if done.want.kind == "nothing":
        return None
    if done.want.kind == "candidates":
        raise Malformed("this hop ends before the head: it returns hidden states, not candidates")
    last = hidden.rows - 1
    return Output(done.number, done.position + last, hidden=hidden.row_slice(last, last + 1))


class KeptOutputs:
    """The last candidates, to be sent again when their steps are; bounded in number and in bytes."""

    def __init__(self, most_bytes: int, most: int = limits.OUTPUTS_KEPT) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[int, Output] = OrderedDict()

    def keep(self, output: Output) -> None:
        """Remember an output; the oldest make room, the newest always stays."""
        self._bytes += size_of(output) - size_of(self._kept.pop(output.number, None))
        self._kept[output.number] = output
        while len(self._kept) > 1 and (len(self._kept) > self._most or self._bytes > self._most_bytes):
            self._bytes -= size_of(self._kept.popitem(last=False)[1])

    def find(self, number: int) -> Output | None:
        """The output of step `number`, if it is remembered."""
        return self._kept.get(number)

    def since(self, number: int) -> list[Output]:
        """Those of step `number` and later ones, in order."""
        return [output for kept, output in self._kept.items() if kept >= number]


def size_of(output: Output | None) -> int:
    """Bytes of an output's rows."""
    if output is None:
        return 0
    if output.hidden is not None:
        return len(output.hidden.data)
    found = output.candidates
    if found is None:
        return 0
    states = 0 if found.states is None else found.states.nbytes
    return found.ids.nbytes + found.logits.nbytes + found.lse.nbytes + found.asked.nbytes + states


def as_fill(step: Step) -> Step:
    """A fill wants nothing, whatever it says."""
    return step if step.fill_until is None else replace(step, want=NOTHING)
