"""Ollama's API, as far as it is about asking a model."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from swarm.client import Model
from swarm.decoding import Grammar
from swarm.http.answering import Begun, Called, Ended, Said, Text
from swarm.http.asking import Ask, Conversation, checked_stop
from swarm.http.dialects.fields import Fields, cleaned, messages_of, request_of, sampling_of, schema_of
from swarm.http.dialects.openai import FINISH
from swarm.http.errors import ApiError, unsupported
from swarm.http.forms import LINES, line, ollama_error
from swarm.http.outcome import Outcome, how
from swarm.http.tools import functions_of

# Ollama's words for settings, and ours.
_WORDS: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "seed": "seed",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_NS: Final = 1_000_000_000


class OptionFields(Fields):
    """How tokens are chosen; what concerns Ollama's own memory and threads is ignored."""

    refused: ClassVar = {"mirostat": (0,), "tfs_z": (1, 1.0)}
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    num_predict: int | None = None
    stop: str | list[str] | None = None

    @property
    def most(self) -> int | None:
        """The most tokens; below 1 is Ollama's way to say that there is no bound."""
        return self.num_predict if self.num_predict is not None and self.num_predict > 0 else None


class OllamaFields(Fields):
    """What chats and prompts have in common."""

    refused: ClassVar = {
        "images": ([],),
        "logprobs": (False,),
        "think": (False,),
    }
    model: str | None = None
    stream: bool = True
    options: OptionFields = OptionFields()
    format: str | dict[str, Any] | None = None  # "json", or a schema

    @property
    def grammar(self) -> Grammar | None:
        """What the text has to be. Raises: ApiError, 400."""
        if isinstance(self.format, dict):
            return schema_of(self.format, "format")
        if self.format not in (None, "", "json"):
            raise unsupported("format", "it is json, or a JSON schema")
        return Grammar.json_object() if self.format else None

    def made(self, prompt: str | Conversation) -> Ask:
        """An ask with these options. Raises: ApiError, 400."""
        given = self.options.model_dump(include=set(_WORDS), exclude_none=True)
        sampling = sampling_of({_WORDS[name]: value for name, value in given.items()}, self._suggested)
        stop = checked_stop(self.options.stop, "options.stop")
        request = request_of(sampling, stop, grammar=self.grammar)
        return Ask(prompt, request, self.options.most, grammar_field="format")


class ChatFields(OllamaFields):
    """The body of `/api/chat`."""

    messages: list[Any] = []  # noqa: RUF012 - pydantic copies it
    tools: list[Any] = []  # noqa: RUF012

    def ask(self) -> Ask | None:
        """The same as any dialect asks it; None, if it is only asked that the model be there."""
        if not self.messages:
            return None
        if self.tools and self.format:
            raise unsupported("format", "it does not go with tools; give one of them")
        return self.made(messages_of(self.messages, tools=functions_of(self.tools) if self.tools else None))


class GenerateFields(OllamaFields):
    """The body of `/api/generate`."""

    refused: ClassVar = {
        **OllamaFields.refused,
        "tools": ([],),
        "suffix": ("",),
        "template": ("",),
        "context": ([],),
    }
    prompt: str = ""
    system: str | None = None
    raw: bool = False

    def ask(self) -> Ask | None:
        """The same as any dialect asks it; None, if it is only asked that the model be there."""
        if not self.prompt:
            return None
        if self.raw:
            return self.made(cleaned(self.prompt))
        said = [{"role": "user", "content": self.prompt}]
        if self.system:
            said.insert(0, {"role": "system", "content": self.system})
        return self.made(messages_of(said))


class ShowFields(Fields):
    """The body of `/api/show`."""

    model: str | None = None
    name: str | None = None


class OllamaWriter:
    """A reply in lines, or one."""

    media_type = LINES

    def __init__(self, model: str, *, chat: bool) -> None:
        self._outcome = Outcome()
        self._model = model
        self._chat = chat

    def whole(self, outcome: Outcome) -> dict[str, Any]:
        """See `Writer`."""
        [ended] = outcome.ended
        said = self._said(ended.text)
        if ended.calls:
            said["message"]["tool_calls"] = [*map(_call, ended.calls)]
        return {**said, **_figures(outcome.begun_of(0), ended)}

    def loaded(self) -> dict[str, Any]:
        """The reply where nothing was asked."""
        return {**self._said(""), "done": True, "done_reason": "load"}

    def frames(self, said: Said) -> Iterable[str]:
        """See `Writer`."""
        self._outcome.note(said)
        match said:
            case Text():
                yield line({**self._said(said.text), "done": False})
            case Called():
                told = self._said("")
                told["message"]["tool_calls"] = [_call(said)]
                yield line({**told, "done": False})
            case Ended():
                yield line({**self._said(""), **_figures(self._outcome.begun_of(0), said)})

    def broken(self, error: ApiError) -> str:
        """See `Writer`."""
        return line(ollama_error(error))

    def _said(self, text: str) -> dict[str, Any]:
        held = {"message": {"role": "assistant", "content": text}} if self._chat else {"response": text}
        return {"model": self._model, "created_at": _now(), **held}


def _call(called: Called) -> dict[str, Any]:
    """A call in Ollama's words."""
    return {"function": {"name": called.call.name, "arguments": json.loads(called.call.arguments)}}


def _figures(begun: Begun, ended: Ended) -> dict[str, Any]:
    """What the last line tells; times in nanoseconds."""
    answer = ended.answer
    return {
        "done": True,
        "done_reason": FINISH[answer.finish_reason],
        "total_duration": round(answer.seconds * _NS),
        "load_duration": 0,
        "prompt_eval_count": begun.prompt_tokens,
        "prompt_eval_duration": round(answer.ttft_s * _NS),
        "eval_count": len(answer.tokens),
        "eval_duration": round((answer.seconds - answer.ttft_s) * _NS),
        "swarm": how(begun, ended),
    }


def tags(model: Model, name: str) -> dict[str, Any]:
    """The reply of `/api/tags`."""
    return {
        "models": [
            {
                "name": name,
                "model": name,
                "modified_at": _now(),
                "size": 0,
                "digest": model.digest.hex(),
                "details": _details(),
            }
        ]
    }


def show(model: Model, *, chats: bool) -> dict[str, Any]:
    """The reply of `/api/show`."""
    return {
        "modelfile": "",
        "parameters": "",
        "template": "{{ .Prompt }}" if chats else "",
        "details": _details(),
        "model_info": {
            "general.architecture": "swarm",
            "swarm.block_count": model.blocks,
            "swarm.context_length": model.context,
            "swarm.embedding_length": model.manifest.hidden_size,
        },
        "capabilities": ["completion"],
    }


def _details() -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "swarm",
        "family": "swarm",
        "families": ["swarm"],
        "parameter_size": "",
        "quantization_level": "",
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
