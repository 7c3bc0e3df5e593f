"""What those are told who watch answers come: along which hops, how many tokens so far; never what is said in them.

In the trio loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from swarm.http import limits
from swarm.http.answering import Begun, Ended, Happened, Said, Send, Text
from swarm.http.outcome import hop_fields, route_fields
from swarm.routing.route import Route


@dataclass(slots=True)
class _Answer:
    id: int
    route: Route
    tokens: int = 0
    told: float = 0.0  # when its tokens were told last, by trio's clock


class UnderWay:
    """All answers that come now; `tell` gets what changes about one, by its number."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._answers: dict[int, _Answer] = {}
        self._number = 0

    @property
    def fields(self) -> list[dict[str, Any]]:
        """Which there are, and where they go."""
        return [{"id": each.id, "route": route_fields(each.route)} for each in self._answers.values()]

    @contextmanager
    def heard(self, send: Send) -> Iterator[Send]:
        """`send` for the answers to one request; those that have not ended when this does were left."""
        answers: dict[int, _Answer] = {}

        async def sending(said: Said) -> None:
            self._note(answers, said)
            await send(said)

        try:
            yield sending
        finally:
            for answer in answers.values():
                if self._answers.pop(answer.id, None) is not None:
                    self._say("left", answer, tokens=answer.tokens)

    def _note(self, answers: dict[int, _Answer], said: Said) -> None:
        match said:
            case Begun():
                for index in range(said.index, said.index + said.count):
                    self._number += 1
                    answer = answers[index] = _Answer(self._number, said.route)
                    self._answers[answer.id] = answer
                    self._say("began", answer, route=route_fields(said.route))
            case Text():
                self._count(answers[said.index], said.count)
            case Happened():
                answer = answers[said.index]
                answer.route = said.route
                self._say("moved", answer, route=route_fields(said.route))
            case Ended():
                self._end(answers[said.index], said)

    def _count(self, answer: _Answer, tokens: int) -> None:
        answer.tokens += tokens
        now = trio.current_time()
        if now - answer.told >= limits.PROGRESS_S:
            answer.told = now
            self._say("tokens", answer, tokens=answer.tokens)

    def _end(self, answer: _Answer, said: Ended) -> None:
        del self._answers[answer.id]
        took = said.answer
        self._say(
            "ended",
            answer,
            tokens=len(took.tokens),
            seconds=round(took.seconds, 4),
            ttft_s=round(took.ttft_s, 4),
            tokens_per_s=round(took.tokens_per_s, 2),
            reroutes=len(took.reroutes),
            route=hop_fields(said, answer.route.blocks),
        )

    def _say(self, kind: str, answer: _Answer, **fields: Any) -> None:
        self._tell({"kind": kind, "id": answer.id, **fields})
