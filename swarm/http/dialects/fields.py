"""Fields that dialects have in common; and of the others, what is known and cannot be honoured is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from protocol.errors import ConfigError
from swarm.decoding import AUTO, Grammar, Sampling, Strategy, parse_strategy
from swarm.decoding.grammar import check_depth
from swarm.http import limits
from swarm.http.asking import Conversation, Message
from swarm.http.errors import ApiError, bad_request, unsupported
from swarm.http.tools import Tools
from swarm.request import Request as AnswerRequest

T = TypeVar("T")

# Below this a temperature is meant as none: clients divide by it, and send something for zero.
COLDEST: Final = 0.001
_ROLES: Final = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class Fields(BaseModel):
    """The body of a request. A field that is null is absent; those that nobody knows are ignored.

    `refused` names fields that are known and cannot be honoured, with the values that ask for nothing.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    _suggested: Mapping[str, float] = PrivateAttr(default_factory=dict)

    def go_by(self, suggested: Mapping[str, float]) -> None:
        """Settings that hold where the request says nothing of them: those that the model suggests."""
        self._suggested = suggested

    @model_validator(mode="before")
    @classmethod
    def _known(cls, body: object) -> object:
        if not isinstance(body, dict):
            return body
        given = {name: value for name, value in body.items() if value is not None}
        for name, harmless in cls.refused.items():
            if name in given and given[name] not in harmless:
                raise unsupported(name, "this server cannot do that")
        return given


class SwarmFields(Fields):
    """Our own additions.

    events    asks a stream for the route, and for what befalls it
    strategy  how to decode, as `swarm generate --strategy` takes it
    """

    events: bool = False
    strategy: str | None = None


class SamplingFields(Fields):
    """How tokens are chosen, in the words that most dialects share."""

    temperature: float | None = Field(None, ge=0, le=1000, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram: int | None = None
    logit_bias: dict[int, float] | None = Field(None, max_length=limits.BIASES)
    min_new_tokens: int | None = None
    seed: int | None = None
    swarm: SwarmFields = SwarmFields()

    def sampling(self) -> Sampling:
        """The same as the client takes it. Raises: ApiError, 400."""
        return sampling_of(self.model_dump(include=set(SAMPLING), exclude_none=True), self._suggested)

    def decoded(self, stop: tuple[str, ...] = (), name: str | None = None, **more: Any) -> AnswerRequest:
        """How to answer: by the strategy of that `name`, or by the one in `swarm`. Raises: ApiError, 400."""
        param = "swarm.strategy" if name is None else "strategy"
        strategy = strategy_of(name or self.swarm.strategy, param)
        return request_of(self._sampling_by(strategy), stop, strategy=strategy, **more)

    def _sampling_by(self, strategy: Strategy | str) -> Sampling:
        """Settings; where a strategy that draws nothing was asked for, without the temperature that is usual."""
        if isinstance(strategy, str) or self.temperature is not None:
            return self.sampling()
        given = self.model_dump(include=set(SAMPLING), exclude_none=True)
        usual = {} if getattr(strategy, "name", "") in ("sample", "best_of") else {"temperature": 0.0}
        return sampling_of({**usual, **given}, self._suggested)


SAMPLING: Final = tuple(name for name in SamplingFields.model_fields if name != "swarm")


def sampling_of(settings: Mapping[str, Any], suggested: Mapping[str, float]) -> Sampling:
    """Settings of which those that are absent are as suggested, or else as usual: drawn at temperature 1.

    Raises: ApiError, 400.
    """
    found: dict[str, Any] = {"temperature": 1.0, **suggested, **settings}
    if found["temperature"] < COLDEST or found.get("top_p") == 0:  # the best token alone
        found["temperature"] = 0.0
        for name in ("top_p", "top_k", "min_p", "typical_p"):  # clients send them all the same
            found.pop(name, None)
    found["top_k"] = max(0, found.get("top_k", 0))
    if "seed" in found:
        found["seed"] %= 2**63
    return blamed(lambda: Sampling(**found), found)


def grammar_of(given: Mapping[str, Any] | None, param: str) -> Grammar | None:
    """What `response_format` asks of the text, in OpenAI's words; None is a text of any kind. Raises: ApiError."""
    match given:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return Grammar.json_object()
        case {"type": "json_schema", "json_schema": {"schema": schema}} | {
            "type": "json_schema",
            "schema": schema,
        }:
            return schema_of(schema, param)
        case {"type": "json_schema"}:
            raise bad_request(f"{param}.json_schema.schema: it is missing", param)
    raise unsupported(param, "its type is text, json_object or json_schema")


def schema_of(schema: object, param: str) -> Grammar:
    """JSON of a schema. Raises: ApiError, 400."""
    if not isinstance(schema, dict):
        raise bad_request(f"{param}: a JSON schema is an object", param)
    try:
        return Grammar.json_schema(schema)
    except ConfigError as error:
        raise bad_request(f"{param}: {error}", param) from error


def request_of(sampling: Sampling, stop: tuple[str, ...] = (), **more: Any) -> AnswerRequest:
    """How to answer. Raises: ApiError, 400."""
    return blamed(lambda: AnswerRequest(sampling=sampling, stop=stop, **more), more)


def strategy_of(text: str | None, param: str) -> Strategy | str:
    """The strategy of that name; AUTO, where nothing is said. Raises: ApiError, 400."""
    try:
        return parse_strategy(text or AUTO)
    except ConfigError as error:
        raise bad_request(str(error), param) from error


def blamed(make: Callable[[], T], names: Collection[str]) -> T:
    """What is made; a value that cannot be is 400, and blamed on the field that the error names first."""
    try:
        return make()
    except ConfigError as error:
        name = str(error).split(" ", 1)[0].rstrip(":")
        raise bad_request(str(error), name if name in names else None) from error


def text_of(content: object, param: str) -> str:
    """What a message says: a text, or parts that are texts. Raises: ApiError, 400."""
    if isinstance(content, str):
        return cleaned(content)
    if not isinstance(content, list):
        raise bad_request(f"{param}: a text, or a list of parts", param)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text"):
            raise unsupported(f"{param}[{index}]", "parts are texts: {type: text, text: ...}")
        if not isinstance(part.get("text"), str):
            raise bad_request(f"{param}[{index}].text: a text", f"{param}[{index}].text")
        texts.append(cleaned(part["text"]))
    return "\n".join(texts)


def cleaned(text: str) -> str:
    """Without lone surrogates, which JSON can spell and no tokenizer takes."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def messages_of(
    messages: Sequence[object], param: str = "messages", tools: Tools | None = None
) -> Conversation:
    """A conversation as chat templates take it, in which `tools` may be called. Raises: ApiError, 400."""
    if not 1 <= len(messages) <= limits.MESSAGES:
        raise bad_request(f"{param}: from 1 to {limits.MESSAGES} messages", param)
    said = tuple(_message(each, f"{param}[{index}]") for index, each in enumerate(messages))
    called = any(each["role"] == "tool" or "tool_calls" in each for each in said)
    return Conversation(said, tools or (Tools(()) if called else None))


def _message(message: object, param: str) -> Message:
    if not isinstance(message, dict):
        raise bad_request(f"{param}: a message is an object with role and content", param)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise unsupported(f"{param}.role", f"one of {', '.join(_ROLES)}")
    if message.get("function_call"):
        raise unsupported(f"{param}.function_call", "functions are called as tools: give tool_calls")
    content, calls = message.get("content"), message.get("tool_calls")
    if role == "tool":
        return {"role": role, "content": text_of(content, f"{param}.content"), **_named(message)}
    if role == "assistant" and calls:
        text = "" if content is None else text_of(content, f"{param}.content")
        return {"role": role, "content": text, "tool_calls": _calls(calls, f"{param}.tool_calls")}
    if calls:
        raise bad_request(f"{param}.tool_calls: only the assistant calls tools", f"{param}.tool_calls")
    return {"role": _ROLES[role], "content": text_of(content, f"{param}.content")}


def _named(message: dict[str, Any]) -> dict[str, str]:
    """What a result is of: the call, and the tool's name, as far as it is told."""
    name = message.get("name", message.get("tool_name"))
    said = {"tool_call_id": message.get("tool_call_id"), "name": name}
    return {field: cleaned(value) for field, value in said.items() if isinstance(value, str)}


def _calls(calls: object, param: str) -> list[dict[str, Any]]:
    """Calls that were made before, with their arguments as objects, as chat templates take them."""
    found = []
    for index, each in enumerate(calls if isinstance(calls, list) else [calls]):
        function = each.get("function") if isinstance(each, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            raise bad_request(f"{param}[{index}]: a call has a function with a name", f"{param}[{index}]")
        where = f"{param}[{index}].function.arguments"
        arguments = function.get("arguments") or {}
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            check_depth(arguments)
        except (ValueError, RecursionError, ConfigError) as error:
            raise bad_request(f"{where}: JSON of an object", where) from error
        if not isinstance(arguments, dict):
            raise bad_request(f"{where}: JSON of an object", where)
        given = each.get("id")
        said = {"id": cleaned(given)} if isinstance(given, str) else {}
        found.append(
            {**said, "type": "function", "function": {"name": cleaned(name), "arguments": arguments}}
        )
    return found


def check_model(asked: str | None, served: str) -> None:
    """See that the model asked for is the one that is served. Raises: ApiError, 404."""
    if asked in (None, "", "default", served, f"{served}:latest"):
        return
    raise ApiError(
        404,
        f"the model {asked[:100]!r} is not served here; there is {served!r}",
        "model_not_found",
        param="model",
    )
