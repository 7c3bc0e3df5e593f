"""A model's text side as the client holds it: numbers that were read once, and requests to the text process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from protocol import limits
from protocol.errors import LocalProtocolError, Malformed, TooLarge
from protocol.fields import FLAG, Rule, optional, parse_fields, uint, wire, word
from swarm.text.masks import Masks, Rules
from swarm.text.process import TextProcess
from swarm.text.stream import TextStream
from swarm.text.suggestions import SUGGESTIONS
from swarm.text.tool_format import MARKS, NONE, UNKNOWN
from swarm.text.wire import END_IDS, SILENT_IDS, TOKEN_TEXT_CHARS, WINDOWS, pack_ids, parse_ids

_ID = uint(limits.VOCABULARY - 1)


def _ids(most: int) -> Rule:
    """A set of at most `most` token ids."""
    return Rule(pack_ids, lambda value: frozenset(parse_ids(value, most)))


@dataclass(frozen=True, slots=True)
class About:
    """What a model's small files say.

    eos         ids that end an answer: of the config, the generation config and the tokenizer together
    bos         the id that begins a sequence, or None
    vocab_size  logits of one row, which may be more than the tokenizer has tokens
    context     the longest sequence in tokens that the config names
    chats       whether the model has a chat template
    silent      ids without text: special tokens
    suggested   how the generation config says that tokens are chosen, by the names of `Sampling`'s fields
    """

    eos: frozenset[int] = wire(_ids(END_IDS))
    bos: int | None = wire(optional(_ID))
    vocab_size: int = wire(uint(limits.VOCABULARY))
    context: int = wire(uint(limits.VOCABULARY))
    chats: bool = wire(FLAG)
    silent: frozenset[int] = wire(_ids(SILENT_IDS))
    suggested: Mapping[str, float] = wire(SUGGESTIONS)


def _marks(value: Any) -> dict[str, int]:
    """Marks and their ids."""
    known = {mark for marks in MARKS.values() for mark in marks}
    if not isinstance(value, dict) or not value.keys() <= known:
        raise Malformed("the text process gave no marks")
    return {mark: _ID.parse(token) for mark, token in value.items()}


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes calls of tools.

    format  one of `tool_format.MARKS`, or NONE, or UNKNOWN
    marks   those of its marks that are special tokens, which have no text otherwise, with their ids
    """

    format: str = wire(word(*MARKS, NONE, UNKNOWN))
    marks: Mapping[str, int] = wire(Rule(dict, _marks))


class Text:
    """Encodes prompts and conversations, decodes tokens, all in the text process. Made by `load_text`.

    What a stranger's files make of it is bounded in time, memory and size. Raises, besides what is said below:
    Malformed or TooLarge, the fault of whoever made the files.
    """

    def __init__(self, process: TextProcess, about: About, masks: TextProcess | None = None) -> None:
        self._process = process
        self._masks = masks
        self._tools: ToolFormat | None = None
        self.about = about

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self.about.eos

    @property
    def suggested(self) -> Mapping[str, float]:
        """Settings of `Sampling` that the checkpoint's generation_config.json says; see `swarm.text.suggestions`."""
        return self.about.suggested

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return self.about.chats

    async def encode(self, text: str) -> list[int]:
        """The ids of a text to continue, with the special tokens that the model's tokenizer puts around it."""
        return await self._encoded({"do": "encode", "text": text})

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The ids of a conversation up to where the assistant speaks next.

        Messages are maps of `role` ("system", "user", "assistant", "tool") and `content`; `tools` are what it may
        call. A model without a chat template gets plain lines. Raises: ConfigError, if the template refuses them.
        """
        # As JSON: calls and schemas hold numbers that msgpack has not.
        said = {"messages": [dict(each) for each in messages], "tools": list(tools) if tools else None}
        return await self._encoded({"do": "chat", "said": json.dumps(said, ensure_ascii=False)})

    async def tools(self) -> ToolFormat:
        """How the model writes calls of tools; found out once."""
        if self._tools is None:
            self._tools = parse_fields(ToolFormat, await self._process.ask({"do": "tools"}))
        return self._tools

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of all tokens at once, without special ones."""
        [text] = await self._decoded([ids])
        return text

    def stream(self, marks: Mapping[int, str] = MappingProxyType({})) -> TextStream:
        """A stream that takes tokens one at a time and gives the text that is certain, and `marks` as they are."""
        return TextStream(self._decoded, self.about.silent, marks)

    def masks(self, rules: Rules) -> Masks:
        """What a grammar leaves, in the mask process. Raises, when it is asked: ConfigError, for a bad grammar."""
        if self._masks is None:
            raise LocalProtocolError("no mask process runs here")
        return Masks(self._masks, rules)

    async def _encoded(self, request: dict[str, Any]) -> list[int]:
        reply = await self._process.ask(request)
        return parse_ids(reply.get("ids"), limits.SESSION_TOKENS)

    async def _decoded(self, windows: Sequence[Sequence[int]]) -> list[str]:
        assert len(windows) <= WINDOWS
        reply = await self._process.ask({"do": "decode", "windows": windows})
        texts = reply.get("texts")
        if not isinstance(texts, list) or len(texts) != len(windows):
            raise Malformed("the text process gave no texts")
        for ids, text in zip(windows, texts, strict=True):
            if not isinstance(text, str):
                raise Malformed("the text process gave no texts")
            if len(text) > TOKEN_TEXT_CHARS * len(ids):
                raise TooLarge(f"the model's tokenizer makes {len(text)} characters of {len(ids)} tokens")
        return texts


async def load_text(
    process: TextProcess, files: Mapping[str, bytes], masks: TextProcess | None = None
) -> Text:
    """The text side of the model whose small files these are; `masks` runs beside it, if there may be grammars.

    Raises: Malformed or TooLarge, the peer's fault.
    """
    if masks is not None:
        masks.give(files)
    return Text(process, parse_fields(About, await process.load(files)), masks)
