"""A model's text side: its tokenizer, chat template and special ids, from the small files of its checkpoint.

The files come from a stranger's node: whatever is wrong with them is that peer's fault and told in one line. What
they make the code here do may still take any time and memory, so it runs in the text process only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from tokenizers import Tokenizer

from protocol import limits
from protocol.errors import Malformed
from swarm.text.chat_template import ChatTemplate
from swarm.text.suggestions import read_suggestions
from swarm.text.tool_format import MARKS, NONE, tool_format

T = TypeVar("T")

# Where a config does not say how long a sequence may be.
CONTEXT: Final = 2048
_CONTEXT_NAMES: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


class TextModel:
    """Encodes prompts and conversations, decodes tokens. Raises: Malformed or TooLarge, the peer's fault.

    eos         ids that end an answer: of the config, the generation config and the tokenizer together
    bos         the id that begins a sequence, or None
    vocab_size  logits of one row, which may be more than the tokenizer has tokens
    context     the longest sequence in tokens that the config names
    chats       whether the model has a chat template
    silent      ids without text: special tokens
    suggested   how the generation config says that tokens are chosen
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._tokenizer = _tokenizer(files)
        config = _json(files, "config.json")
        # Models that see or hear as well keep what concerns text one level down.
        config = {**config, **_mapping(config.get("text_config"))}
        generation = _json(files, "generation_config.json")
        about = _json(files, "tokenizer_config.json")
        self._special = _special_tokens(about)
        self._template = _template(files, about)
        self._adds_bos = about.get("add_bos_token") is True
        self.chats = self._template is not None
        self.vocab_size = _count(config.get("vocab_size")) or self._tokenizer.get_vocab_size()
        self.context = next(filter(None, (_count(config.get(name)) for name in _CONTEXT_NAMES)), CONTEXT)
        self.bos = self._id_of("bos_token", config)
        ends = [config.get("eos_token_id"), generation.get("eos_token_id"), self._id_of("eos_token", {})]
        self.eos = frozenset(token for end in ends for token in _ids(end) if token < self.vocab_size)
        self.suggested = read_suggestions(generation)
        added = self._tokenizer.get_added_tokens_decoder()
        self.silent = frozenset(token for token, how in added.items() if how.special)

    def encode(self, text: str) -> list[int]:
        """The ids of a text to continue, with the special tokens that the model's tokenizer puts around it."""
        ids = self._encode(text, special=True)
        if self._adds_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The ids of a conversation up to where the assistant speaks next.

        Messages are maps of `role` ("system", "user", "assistant", "tool") and `content`; `tools` are what it may
        call. A model without a chat template gets plain lines. Raises: ConfigError, if the template refuses them.
        """
        if self._template is None:
            return self.encode(_plain(messages))
        return self._encode(self._template.render(messages, self._special, tools), special=False)

    def tools(self) -> tuple[str, dict[str, int]]:
        """How calls of tools are written (see `tool_format`), and the ids of those of its marks that have no text."""
        if self._template is None:
            return NONE, {}
        name = tool_format(self._template, self._special)
        ids = {mark: self._tokenizer.token_to_id(mark) for mark in MARKS.get(name, ())}
        return name, {mark: int(token) for mark, token in ids.items() if token in self.silent}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of all tokens at once, without special ones."""
        return _guarded(lambda: str(self._tokenizer.decode(list(ids), skip_special_tokens=True)), "decode")

    def _encode(self, text: str, special: bool) -> list[int]:
        # Text typed at a terminal of another encoding may hold lone surrogates, which no tokenizer takes.
        clean = text.encode(errors="replace").decode()
        return _guarded(lambda: list(self._tokenizer.encode(clean, add_special_tokens=special).ids), "encode")

    def _id_of(self, name: str, config: Mapping[str, Any]) -> int | None:
        token = self._special.get(name)
        found = None if token is None else self._tokenizer.token_to_id(token)
        return next(_ids(config.get(f"{name}_id")), None) if found is None else int(found)


def _tokenizer(files: Mapping[str, bytes]) -> Tokenizer:
    data = files.get("tokenizer.json")
    if data is None:
        raise Malformed("the model comes without tokenizer.json, which its nodes must hand out")
    tokenizer: Tokenizer = _guarded(lambda: Tokenizer.from_buffer(data), "load")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _guarded(call: Callable[[], T], doing: str) -> T:
    """`call()`; what the tokenizer's native code throws, panics too, becomes Malformed."""
    try:
        return call()
    except BaseException as error:
        # A panic is no Exception, so that nobody catches it by accident; its class cannot be imported.
        if isinstance(error, MemoryError):
            raise
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise Malformed(f"the model's tokenizer cannot {doing}: {error}") from error
        raise


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the model's {name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Malformed(f"the model's {name} is not a JSON object")
    return value


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    """A positive whole number within the protocol's bounds, else None."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return min(value, limits.VOCABULARY)
    return None


def _ids(value: object) -> Iterator[int]:
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < limits.VOCABULARY:
            yield entry


def _special_tokens(about: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like, as text; they are written as text or as a map with `content`."""
    named = ((name, value) for name, value in about.items() if name.endswith("_token"))
    texts = ((name, value.get("content") if isinstance(value, dict) else value) for name, value in named)
    return {name: text for name, text in texts if isinstance(text, str)}


def _template(files: Mapping[str, bytes], about: Mapping[str, Any]) -> ChatTemplate | None:
    """The chat template: a file of its own, or in tokenizer_config.json, alone or one of several by name."""
    source: object = about.get("chat_template")
    if "chat_template.jinja" in files:
        try:
            source = files["chat_template.jinja"].decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"the model's chat_template.jinja is not UTF-8: {error}") from error
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    return ChatTemplate(source) if isinstance(source, str) else None


def _plain(messages: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"{str(said.get('role', 'user')).capitalize()}: {said.get('content', '')}\n" for said in messages
    ]
    return "".join(lines) + "Assistant:"
