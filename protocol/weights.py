"""Which weights are the model's, where nodes of one model differ about a stage: pure.

The model digest binds everything but the bytes of the weights; of these a node announces a digest for each stage.
What counts is, in this order: the pin that the user gave; what this client has used before; and what the nodes say
that have answered, one vote for each origin, because identities cost nothing and blocks of addresses do.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, zip_longest
from typing import Final

from protocol.errors import ConfigError, NoRoute
from protocol.model import Span, describe_stages, weights_digest

# Of 64 hex digits: 128 bits cannot be met by trying.
PIN_DIGITS: Final = 32
# Nodes heard about one model: twice what a round of probes asks. Each costs a look at every stage of its span;
# origins take turns, so that a block with many nodes does not crowd out another.
WITNESSES: Final = 256
# Steps of the search for the weights that a pin names: about 0.2 s, which nobody has to wait for twice.
SEARCH_STEPS: Final = 2048
# Peers and ranges of stages named in one line.
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Witness:
    """What a node that has answered says its weights are; `origin` is the block of addresses where it was met."""

    peer: str
    origin: str
    span: Span
    weights: tuple[bytes, ...]  # one digest per stage

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return iter(zip(self.span, self.weights, strict=True))


@dataclass(frozen=True, slots=True)
class Pin:
    """The first hex digits of the digest of a whole model's weights."""

    digits: str

    def fits(self, stages: Sequence[bytes]) -> bool:
        """Whether these stages are the weights it names."""
        return weights_digest(stages).hex().startswith(self.digits)

    def __str__(self) -> str:
        return self.digits[:PIN_DIGITS]


def parse_pin(text: str) -> Pin:
    """A digest as nodes print it, or more of its digits. Raises: ConfigError."""
    digits = text.strip().lower()
    if not re.fullmatch(f"[0-9a-f]{{{PIN_DIGITS},64}}", digits):
        raise ConfigError(
            f"weights {text!r}: give {PIN_DIGITS} to 64 digits of their digest, or new to learn them anew"
        )
    return Pin(digits)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What counts now, and who says otherwise."""

    chosen: Mapping[int, bytes]
    used: frozenset[int] = frozenset()  # stages settled before anybody was heard
    witnesses: tuple[Witness, ...] = ()
    pin: Pin | None = None
    lost: bool = False  # no weights here are what the pin names, so nobody is accepted

    def accepts(self, span: Span, weights: Iterable[bytes]) -> bool:
        """Whether a node with these weights says nothing else at any stage than what counts."""
        return not self.lost and _agree(zip(span, weights, strict=True), self.chosen)

    def challenged_by(self, span: Span, weights: Iterable[bytes]) -> bool:
        """Whether these weights, if they were heard, might change what counts."""
        says = (
            (stage, digest) for stage, digest in zip(span, weights, strict=True) if stage not in self.used
        )
        return not _agree(says, self.chosen)

    @property
    def left_out(self) -> tuple[Witness, ...]:
        """Nodes that say something else at some stage."""
        return tuple(w for w in self.witnesses if not _agree(w, self.chosen))

    @property
    def disputed(self) -> frozenset[tuple[int, bytes]]:
        """What is said against what counts."""
        return frozenset((s, d) for w in self.left_out for s, d in w if self.chosen.get(s, d) != d)

    def whole(self, stages: int) -> bytes | None:
        """The digest of the weights of a model of so many stages, if every stage is settled."""
        digests = [self.chosen[stage] for stage in range(stages) if stage in self.chosen]
        return weights_digest(digests) if len(digests) == stages and not self.lost else None

    def describe(self, blocks: int) -> str | None:
        """One line about nodes that differ, if any do: which stages, who, and what settles it."""
        stages = {stage for stage, _ in self.disputed}
        if not stages or self.lost:
            return None
        what, against = _ranges(stages, blocks), _crowd(self.left_out)
        if self.pin is not None:
            return f"note: {against} serve other weights of {what} than the pinned ones, and are left out"
        if stages & self.used:
            return (
                f"warning: {against} serve other weights of {what} than this client has used before, and are left "
                "out; --weights new forgets what was used, --weights DIGEST pins what should be"
            )
        found = [w for w in self.witnesses if _agree(w, self.chosen) and any(s in stages for s in w.span)]
        return (
            f"warning: nodes differ about the weights of {what}: going with {_crowd(found)}, against {against}; "
            "--weights DIGEST, which a node with the whole model prints, settles it"
        )

    def explain(self, error: NoRoute, blocks: int) -> NoRoute:
        """The same error, which says so where there might be a route but for the weights."""
        if self.lost:
            return self._not_found(error, blocks)
        holes = {stage for pair in error.missing for stage in range(*pair)}
        out = [w for w in self.left_out if any(stage in w.span for stage in holes)]
        if not out:
            return error
        stages = {s for w in out for s, d in w if self.chosen.get(s, d) != d}
        if self.pin is not None:
            ours, way = "that are pinned", "nodes that serve those are needed"
        elif stages & self.used:
            ours, way = "that this client has used before", "--weights new takes what there is"
        else:
            ours, way = "that most here serve", "--weights DIGEST settles whose are right"
        return NoRoute(
            f"{error}, going by the weights {ours}: {_crowd(out)} serve other weights of {_ranges(stages, blocks)} "
            f"and are left out; {way}",
            error.missing,
        )

    def _not_found(self, error: NoRoute, blocks: int) -> NoRoute:
        served = self.used.union(*(w.span for w in self.witnesses))
        holes = [stage for stage in range(blocks + 2) if stage not in served]
        if holes:
            text = f"whether the weights here are {self.pin} shows when all stages are served"
            return NoRoute(f"nobody serves {_ranges(holes, blocks)}, and {text}", error.missing)
        nodes = f"{len(self.witnesses)} node{'s' * (len(self.witnesses) != 1)}"
        return NoRoute(f"no set of weights here is {self.pin}, of what {nodes} announce", error.missing)


@dataclass(slots=True)
class Trust:
    """What one client goes by for one model; a change of mind is not among what it can do.

    `used` grows with the routes that are opened, so that a session that is mended gets the weights it began with.
    """

    stages: int = 0  # of the model; needed where there is a pin
    pin: Pin | None = None
    used: dict[int, bytes] = field(default_factory=dict)
    given: Mapping[int, bytes] = field(default_factory=dict)  # stages whose weights are on this machine
    anew: bool = False  # what was kept of earlier runs is to be replaced
    _judged: tuple[tuple[Witness, ...], int, Verdict] | None = None

    def __post_init__(self) -> None:
        if self.pin is None:
            return
        kept = [self.used[stage] for stage in range(self.stages) if stage in self.used]
        if len(kept) != self.stages or not self.pin.fits(kept):
            self.used, self.anew = {}, True

    @property
    def found(self) -> bool:
        """Whether it is known which weights a pin names, if there is one."""
        return self.pin is None or len(self.used) == self.stages

    def judge(self, witnesses: Sequence[Witness], doors: Collection[str]) -> Verdict:
        """What counts by what `witnesses` say; `doors` are the nodes through which the user entered."""
        everybody = tuple(witnesses)
        if self._judged is not None and self._judged[:2] == (everybody, len(self.used)):
            return self._judged[2]
        heard = tuple(_in_turn(witnesses, doors))
        if not self.found:
            assert self.pin is not None
            fitting = find_pinned(self.pin, self.stages, witnesses, doors, self.given)
            if fitting is not None:
                self.used = dict(enumerate(fitting))
        if self.found:
            chosen = judge(heard, self.used, doors)
            verdict = Verdict(chosen, frozenset(self.used), heard, self.pin)
        else:
            verdict = Verdict({}, frozenset(self.given), heard, self.pin, lost=True)
        self._judged = everybody, len(self.used), verdict
        return verdict

    def use(self, stages: Iterable[int], verdict: Verdict) -> bool:
        """A route over these stages is open; whether anything is known now that was not kept before."""
        news = {s: verdict.chosen[s] for s in stages if s in verdict.chosen and s not in self.used}
        self.used.update(news)
        return bool(news) or self.anew


def judge(
    witnesses: Sequence[Witness], settled: Mapping[int, bytes], doors: Collection[str] = ()
) -> dict[int, bytes]:
    """The digest that counts at each stage: as `settled`, else what the most origins say.

    Of equals that of a door, then that of more nodes, then the higher one. Who is wrong about one stage has no say
    about any other, and what is clearest is settled first, so those who are left agree with each other.
    """
    chosen = dict(settled)
    # Once more with those silenced by somebody who was silenced after them, until every stage served is settled.
    while heard := [w for w in witnesses if _agree(w, chosen) and any(s not in chosen for s in w.span)]:
        tally = _Tally(heard, doors)
        while (stage := tally.clearest()) is not None:
            tally.settle(stage)
        chosen.update(tally.outcome())
    return chosen


def find_pinned(
    pin: Pin,
    stages: int,
    witnesses: Sequence[Witness],
    doors: Collection[str] = (),
    given: Mapping[int, bytes] | None = None,
) -> tuple[bytes, ...] | None:
    """The digests of all stages that `pin` names, put together from what nodes announce, if they are found.

    Tries first what takes at each step what most say; then each deviation from that, the fewer the sooner. A node's
    word is taken whole, so liars make the search longer only by saying many things about many spans.
    """
    here = given or {}
    claims = [Witness("", "", Span(stage, stage + 1), (digest,)) for stage, digest in here.items()]
    claims += _claims([w for w in witnesses if _agree(w, here)], doors)
    tie = count()
    heap: list[tuple[int, int, tuple[bytes, ...], list[tuple[bytes, ...]], int]] = []

    def push(deviations: int, reached: tuple[bytes, ...], ways: list[tuple[bytes, ...]], index: int) -> None:
        if index < len(ways):
            heapq.heappush(heap, (deviations, next(tie), reached, ways, index))

    push(0, (), _ways((), claims), 0)
    seen: set[tuple[bytes, ...]] = set()
    for _ in range(SEARCH_STEPS):
        if not heap:
            break
        deviations, _, before, ways, index = heapq.heappop(heap)
        push(deviations + 1, before, ways, index + 1)
        reached = before + ways[index]
        if reached in seen:
            continue
        seen.add(reached)
        if len(reached) == stages and pin.fits(reached):
            return reached
        if len(reached) < stages:
            push(deviations, reached, _ways(reached, claims), 0)
    return None


def _ways(reached: tuple[bytes, ...], claims: Sequence[Witness]) -> list[tuple[bytes, ...]]:
    """How to go on from there: what claims say of the next stages that agree about those before."""
    at = len(reached)
    fitting = (
        c.weights[at - c.span.start :]
        for c in claims
        if at in c.span and reached[c.span.start :] == c.weights[: at - c.span.start]
    )
    return list(dict.fromkeys(fitting))


def _claims(witnesses: Sequence[Witness], doors: Collection[str]) -> list[Witness]:
    """Each thing said once, the most credible first; of equals that about more stages.

    Origins take turns: who says a hundred things from one block does not stand a hundred times before another.
    """
    by_claim: dict[tuple[Span, tuple[bytes, ...]], list[Witness]] = {}
    for witness in witnesses:
        by_claim.setdefault((witness.span, witness.weights), []).append(witness)

    def credit(crowd: Sequence[Witness]) -> tuple[int, bool, int, int]:
        origins = len({w.origin for w in crowd})
        return origins, any(w.peer in doors for w in crowd), len(crowd), len(crowd[0].span)

    said: Counter[str] = Counter()
    turns: list[tuple[int, Witness]] = []
    for crowd in sorted(by_claim.values(), key=credit, reverse=True):
        origins = {w.origin for w in crowd}
        turns.append((min(said[origin] for origin in origins), crowd[0]))
        said.update(origins)
    return [witness for _, witness in sorted(turns, key=lambda turn: turn[0])]


class _Said:
    """Who says one thing about one stage."""

    __slots__ = ("doors", "nodes", "origins")

    def __init__(self) -> None:
        self.origins: Counter[str] = Counter()
        self.doors = 0
        self.nodes = 0

    def count(self, witness: Witness, door: bool, by: int) -> None:
        self.origins[witness.origin] += by
        if self.origins[witness.origin] == 0:
            del self.origins[witness.origin]
        self.doors += by * door
        self.nodes += by

    def weight(self) -> tuple[int, bool, int]:
        return len(self.origins), self.doors > 0, self.nodes


class _Tally:
    """What is said about each stage by those who still have a say."""

    def __init__(self, witnesses: Sequence[Witness], doors: Collection[str]) -> None:
        self._heard = list(witnesses)
        self._doors = doors
        self._said: dict[int, dict[bytes, _Said]] = {}
        for witness in witnesses:
            self._count(witness, 1)

    def clearest(self) -> int | None:
        """The stage at which one thing stands out most from all others, of those about which nodes differ."""
        disputed = (stage for stage, said in self._said.items() if len(said) > 1)
        return max(disputed, key=self._margin, default=None)

    def settle(self, stage: int) -> None:
        """Whoever says something else there than counts has no say any more."""
        best = {stage: self._ranked(stage)[0][1]}
        heard, self._heard = self._heard, []
        for witness in heard:
            if _agree(witness, best):
                self._heard.append(witness)
            else:
                self._count(witness, -1)

    def outcome(self) -> dict[int, bytes]:
        """What is said about each stage; nobody differs any more."""
        return {stage: next(iter(said)) for stage, said in self._said.items() if said}

    def _ranked(self, stage: int) -> list[tuple[tuple[int, bool, int], bytes]]:
        return sorted(((said.weight(), digest) for digest, said in self._said[stage].items()), reverse=True)

    def _margin(self, stage: int) -> tuple[int, int, int, int]:
        (best, _), (second, _) = self._ranked(stage)[:2]
        origins, door, nodes = (int(a) - int(b) for a, b in zip(best, second, strict=True))
        return origins, door, nodes, -stage

    def _count(self, witness: Witness, by: int) -> None:
        door = witness.peer in self._doors
        for stage, digest in witness:
            said = self._said.setdefault(stage, {})
            counted = said.setdefault(digest, _Said())
            counted.count(witness, door, by)
            if counted.nodes == 0:
                del said[digest]


def _agree(says: Iterable[tuple[int, bytes]], chosen: Mapping[int, bytes]) -> bool:
    return all(chosen.get(stage, digest) == digest for stage, digest in says)


def _in_turn(witnesses: Sequence[Witness], doors: Collection[str]) -> list[Witness]:
    """At most WITNESSES, one of each origin after another; doors first. Those without an origin share one."""
    by_origin: dict[str, list[Witness]] = {}
    for witness in sorted(witnesses, key=lambda w: w.peer not in doors):
        by_origin.setdefault(witness.origin, []).append(witness)
    turns = (w for turn in zip_longest(*by_origin.values()) for w in turn if w is not None)
    return [w for w, _ in zip(turns, range(WITNESSES), strict=False)]


def _ranges(stages: Collection[int], blocks: int) -> str:
    spans: list[Span] = []
    for stage in sorted(stages):
        if spans and spans[-1].stop == stage:
            spans[-1] = replace(spans[-1], stop=stage + 1)
        else:
            spans.append(Span(stage, stage + 1))
    names = [describe_stages(span, blocks) for span in spans[:_NAMED]]
    return " and ".join(names) + (" and more" if len(spans) > _NAMED else "")


def _crowd(witnesses: Sequence[Witness]) -> str:
    """ "2 nodes at 1 place (A, B)": a place is a block of addresses."""
    places = len({w.origin for w in witnesses})
    peers = [w.peer for w in witnesses]
    named = ", ".join(peers[:_NAMED]) + ", …" * (len(peers) > _NAMED)
    nodes = f"{len(peers)} node{'s' * (len(peers) != 1)}"
    return f"{nodes} at {places} place{'s' * (places != 1)} ({named})"
