"""What came of an ask, and how it came about: numbers and names that every dialect carries beside the text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from protocol.model import describe_stages
from swarm.answer import Answer
from swarm.events import Altered, Bridged, Event, Noticed, Rerouted, Waiting
from swarm.http.answering import Begun, Ended, Happened, HopTime, Named, Said, Text
from swarm.routing.route import Hop, Route


@dataclass(slots=True)
class Outcome:
    """All that came of an ask."""

    begun: list[Begun] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    happened: list[Happened] = field(default_factory=list)
    tokens: dict[int, list[Named]] = field(default_factory=dict)  # by answer, where they were asked for

    def note(self, said: Said) -> None:
        """Take up what is said; the text is in the answer too."""
        match said:
            case Begun():
                self.begun.append(said)
            case Ended():
                self.ended.append(said)
            case Happened():
                self.happened.append(said)
            case Text():
                self.tokens.setdefault(said.index, []).extend(said.tokens)

    def begun_of(self, index: int) -> Begun:
        """How an answer began."""
        return next(begun for begun in self.begun if begun.index <= index < begun.index + begun.count)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(begun.prompt_tokens for begun in self.begun)

    @property
    def held(self) -> int:
        """Tokens of them that were in sessions already."""
        return sum(begun.held for begun in self.begun)

    @property
    def new_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(ended.answer.tokens) for ended in self.ended)


def timings(begun: Begun, answer: Answer) -> dict[str, Any]:
    """As llama.cpp has them; times in milliseconds."""
    new, decoding_ms = len(answer.tokens), 1000 * (answer.seconds - answer.ttft_s)
    prompt_ms = 1000 * answer.ttft_s
    asked = begun.prompt_tokens - begun.held
    return {
        "cache_n": begun.held,
        "prompt_n": asked,
        "prompt_ms": round(prompt_ms, 3),
        "prompt_per_second": round(1000 * asked / prompt_ms, 2) if prompt_ms > 0 else 0.0,
        "predicted_n": new,
        "predicted_ms": round(decoding_ms, 3),
        "predicted_per_second": round(answer.tokens_per_s, 2),
    }


def hop_fields(ended: Ended, blocks: int) -> list[dict[str, Any]]:
    """The route of an answer: who, which layers, and the milliseconds of a step there."""
    return [
        {
            "peer": hop.peer,
            "layers": describe_stages(hop.span, blocks),
            "stages": [hop.span.start, hop.span.stop],
            "ms": None if hop.ms is None else round(hop.ms, 3),
        }
        for hop in ended.hops
    ]


def route_fields(route: Route) -> list[dict[str, Any]]:
    """A route before anything was computed along it."""
    return [
        {
            "peer": hop.peer,
            "layers": describe_stages(hop.span, route.blocks),
            "stages": [hop.span.start, hop.span.stop],
            "expected_ms": round(hop.expected_ms, 3),
        }
        for hop in route.hops
    ]


def event_fields(event: Event, blocks: int) -> dict[str, Any]:
    """Something that befell a session, or the client."""
    match event:
        case Rerouted():
            return {
                "kind": "rerouted",
                "lost": event.lost,
                "layers": describe_stages(event.stages, blocks),
                "stages": [event.stages.start, event.stages.stop],
                "reason": event.reason,
                "fault": event.fault,
                "replacements": list(event.replacements),
                "seconds": round(event.seconds, 4),
            }
        case Altered():
            return {
                "kind": "altered",
                "layers": describe_stages(event.stages, blocks),
                "before": str(event.before),
                "after": str(event.after),
            }
        case Bridged():
            return {"kind": "bridged", "peers": list(event.peers), "reason": event.reason}
        case Waiting():
            return {
                "kind": "waiting",
                "missing": [list(span) for span in event.missing],
                "text": event.text,
                "seconds": round(event.seconds, 1),
            }
        case Noticed():
            return {"kind": "noticed", "text": event.text}


def how(begun: Begun, ended: Ended) -> dict[str, Any]:
    """All of it, for the field `swarm` of an answer."""
    answer = ended.answer
    blocks = begun.route.blocks
    return {
        "route": hop_fields(ended, blocks),
        "reroutes": [event_fields(each, blocks) for each in answer.reroutes],
        "altered": [event_fields(each, blocks) for each in answer.altered],
        "steps": ended.steps,
        "seconds": round(answer.seconds, 4),
        "ttft_s": round(answer.ttft_s, 4),
        "tokens_per_s": round(answer.tokens_per_s, 2),
    }


def route_header(hops: Iterable[Hop | HopTime]) -> dict[str, str]:
    """The field of a response that names the hops and their stages."""
    return {"x-swarm-route": ", ".join(f"{hop.peer} {hop.span.start}:{hop.span.stop}" for hop in hops)}
