"""What happened, in one line each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from protocol.model import Span, describe_stages
from swarm.answer import Answer
from swarm.decoding import Token
from swarm.events import Altered, Bridged, Event, Noticed, Rerouted, Waiting
from swarm.routing.route import Hop

Names = Mapping[str, str]  # peer id -> what the user knows it by


def name_of(peer: str, names: Names | None = None) -> str:
    """A peer in a few letters; ids begin alike, so the last ones tell."""
    return (names or {}).get(peer) or f"…{peer[-6:]}"


def with_names(text: str, names: Names | None = None) -> str:
    """`text` with the peers in it as the user knows them."""
    return re.sub(r"12D3KooW\w{44}", lambda found: name_of(found[0], names), text)


def count(number: int, word: str) -> str:
    """A number and its noun."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def describe_size(size_bytes: int | None) -> str:
    """Bytes in binary units; what is not known, or has no meaning, is empty."""
    if size_bytes is None:
        return ""
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.3g} {units[0]}"


def describe_event(event: Event, blocks: int | None = None, names: Names | None = None) -> str:
    """One line about something that happened beside the answer."""
    match event:
        case Rerouted():
            what = describe_stages(event.stages, blocks) if blocks else f"stages {event.stages}"
            by = " and ".join(name_of(peer, names) for peer in event.replacements)
            lost = name_of(event.lost, names)
            reason = with_names(event.reason, names)
            return f"↻ lost {lost} ({reason}); {what} now at {by}, after {event.seconds:.2f} s"
        case Altered():
            what = describe_stages(event.stages, blocks) if blocks else f"stages {event.stages}"
            return (
                f"↻ {what} now in {event.after}, before in {event.before}: the answer may differ from here on"
            )
        case Bridged():
            first, second = (name_of(peer, names) for peer in event.peers)
            reason = with_names(event.reason, names)
            return f"↻ {first} cannot reach {second} ({reason}); carrying for them"
        case Waiting():
            return f"… {with_names(event.text, names)}; waiting up to {event.seconds:.0f} s more"
        case Noticed():
            return with_names(event.text, names)


class News:
    """Events as lines, each thing once: of a wait that goes on only the beginning is told."""

    def __init__(self, names: Names | None = None) -> None:
        self.names = names
        self.blocks: int | None = None  # of the model, once it is known
        self._waiting = ""

    def line(self, event: Event) -> str | None:
        """What to say about it, if anything."""
        waiting = event.text if isinstance(event, Waiting) else ""
        known, self._waiting = self._waiting, waiting
        return None if waiting and waiting == known else describe_event(event, self.blocks, self.names)


def describe_answer(answer: Answer) -> str:
    """Time, speed and way of an answer: the dim line under it."""
    parts = [f"{answer.seconds:.2f} s"]
    if answer.tokens_per_s:
        parts.append(f"{answer.tokens_per_s:.1f} tok/s")
    parts.append(f"TTFT {answer.ttft_s:.2f} s")
    parts.append(f"{count(len(answer.route.hops), 'hop')} via {count(len(answer.route.peers), 'peer')}")
    if answer.reroutes:
        parts.append(count(len(answer.reroutes), "reroute"))
    if answer.finish_reason == "length":
        parts.append(f"cut at {count(len(answer.tokens), 'token')}")
    if answer.finish_reason == "time":
        parts.append("out of time")
    if answer.finish_reason == "cancelled":
        parts.append("stopped")
    return " · ".join(parts)


def hop_fields(hop: Hop, blocks: int) -> dict[str, Any]:
    """A hop for --json."""
    return {
        "peer": hop.peer,
        "stages": span_fields(hop.span),
        "serves": describe_stages(hop.span, blocks),
        "numerics": str(hop.numerics) if hop.numerics is not None else None,
        "expected_ms": round(hop.expected_ms, 3),
    }


def answer_fields(answer: Answer, model: str, blocks: int) -> dict[str, Any]:
    """An answer for --json. Times in seconds."""
    return {
        "model": model,
        "text": answer.text,
        **chosen_fields(answer.chosen),
        "prompt_tokens": answer.prompt_tokens,
        "finish_reason": answer.finish_reason,
        "seconds": round(answer.seconds, 4),
        "ttft_s": round(answer.ttft_s, 4),
        "tokens_per_s": round(answer.tokens_per_s, 2),
        "route": [hop_fields(hop, blocks) for hop in answer.route.hops],
        "peers": list(answer.peers),
        "reroutes": [
            {
                "lost": rerouted.lost,
                "stages": span_fields(rerouted.stages),
                "reason": rerouted.reason,
                "replacements": list(rerouted.replacements),
                "seconds": round(rerouted.seconds, 4),
            }
            for rerouted in answer.reroutes
        ],
        "altered": [
            {
                "stages": span_fields(altered.stages),
                "before": str(altered.before),
                "after": str(altered.after),
            }
            for altered in answer.altered
        ],
        "score": answer.score,
        "alternatives": [
            {
                "text": other.text,
                **chosen_fields(other.chosen),
                "finish_reason": other.finish_reason,
                "score": other.score,
            }
            for other in answer.alternatives
        ],
    }


def chosen_fields(tokens: Sequence[Token]) -> dict[str, Any]:
    """Tokens for --json, with log-probabilities; of the best at each place, where there are any."""
    best = [[list(pair) for pair in token.best] for token in tokens]
    return {
        "tokens": [token.id for token in tokens],
        "logprobs": [round(token.logprob, 6) for token in tokens],
        **({"top_logprobs": best} if any(best) else {}),
    }


def span_fields(span: Span) -> list[int]:
    """A span for --json: half-open."""
    return [span.start, span.stop]
