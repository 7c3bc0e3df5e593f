"""The mask process: where a grammar of the user's meets a stranger's tokenizer, and takes what time it takes.

It lives as the text process does (`worker`), beside it: a schema that takes long holds up no other's text. What it
is asked is a grammar and token ids, so whichever process is there can answer; what it keeps makes it quick.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from protocol.errors import ConfigError, Malformed
from swarm.text.wire import BLANKS
from swarm.text.worker import serve

try:
    import llguidance
except ImportError:  # told to whoever asks for it
    llguidance = None  # type: ignore[assignment]

# Sequences of which the state is kept: those of a line of answers, and of their drafts.
SEQUENCES: Final = 64
# Tokenizers that are made for other ids to end with take some hundred MiB each where vocabularies are large.
TOKENIZERS: Final = 2


def main(memory_bytes: int) -> None:
    """Answer requests until standard input ends."""
    serve(memory_bytes, lambda files: Masker(files).answer)


@dataclass(slots=True)
class _Sequence:
    """What a grammar has of a sequence; `tokens` are taken in."""

    grammar: bytes
    tokens: tuple[int, ...]
    matcher: Any


class Masker:
    """Masks by grammars, once the files are loaded."""

    def __init__(self, files: BinaryIO) -> None:
        self._files = files
        self._tokenizer = ""
        self._tokenizers: OrderedDict[tuple[int, tuple[int, ...]], Any] = OrderedDict()
        self._first: OrderedDict[bytes, Any] = OrderedDict()  # of each grammar, before any token
        self._sequences: list[_Sequence] = []  # the last one was used last

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one. Raises: SwarmError, which is told in its place."""
        if request["do"] == "load":
            return self._load(request["files"])
        if llguidance is None:
            raise ConfigError('answers by a grammar need more: pip install "inference-swarm[grammar]"')
        grammar = self._grammar(request)
        if grammar is None:
            return {"unknown": True}
        masks = [self._mask(grammar, tuple(array("I", place))) for place in request["places"]]
        size = request["mask_bytes"]
        return {
            "masks": b"".join(mask[:size] for mask, _ in masks),
            "whole": bytes(whole for _, whole in masks),
        }

    def _load(self, files: Sequence[tuple[str, int]]) -> dict[str, Any]:
        read = {name: self._files.read(size) for name, size in files}
        try:
            self._tokenizer = read["tokenizer.json"].decode()
        except (KeyError, UnicodeDecodeError) as error:
            raise Malformed(f"the model's tokenizer.json cannot be read: {error}") from error
        return {}

    def _grammar(self, request: dict[str, Any]) -> bytes | None:
        """The name of the grammar of a request; None, where it is to be said once more, with its source."""
        name: bytes = request["grammar"]
        if name in self._first:
            self._first.move_to_end(name)
            return name
        if "source" not in request:
            return None
        tokenizer = self._tokenizer_for(request["vocab_size"], tuple(array("I", request["eos"])))
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(
            tokenizer, _compiled(request["kind"], request["source"]), log_level=0, limits=limits
        )
        _check(matcher, "the grammar cannot be used")
        self._first[name] = matcher
        while len(self._first) > SEQUENCES:
            self._first.popitem(last=False)
        return name

    def _tokenizer_for(self, vocab_size: int, eos: tuple[int, ...]) -> Any:
        key = (vocab_size, eos)
        if key not in self._tokenizers:
            try:
                self._tokenizers[key] = _tokenizer(self._tokenizer, vocab_size, eos)
            except BaseException as error:
                # A panic of native code is no Exception.
                if isinstance(error, MemoryError):
                    raise
                if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                    raise Malformed(f"no grammar goes with the model's tokenizer: {error}") from error
                raise
            while len(self._tokenizers) > TOKENIZERS:
                self._tokenizers.popitem(last=False)
        return self._tokenizers[key]

    def _mask(self, grammar: bytes, tokens: tuple[int, ...]) -> tuple[bytes, bool]:
        """Which ids may follow, a bit each, and whether it may end there; none, where `tokens` are none of it."""
        matcher = self._matcher(grammar, tokens)
        if matcher is None:
            return bytes(len(self._first[grammar].compute_bitmask())), False
        mask: bytes = matcher.compute_bitmask()
        _check(matcher, "the answer takes too much to be held to its grammar")
        return mask, bool(matcher.is_accepting())

    def _matcher(self, grammar: bytes, tokens: tuple[int, ...]) -> Any | None:
        """The state after `tokens`: made of one that has the most of them."""
        best, held = None, 0
        for each in self._sequences:
            if each.grammar == grammar and (common := _common(each.tokens, tokens)) >= held:
                best, held = each, common
        if best is None or held == 0:
            found = _Sequence(grammar, (), self._first[grammar].deep_copy())
        elif held == len(best.tokens):
            self._sequences.remove(best)
            found = best
        else:
            found = _Sequence(grammar, best.tokens, best.matcher.deep_copy())
            found.matcher.rollback(len(best.tokens) - held)
        new = tokens[held:]
        if new and found.matcher.try_consume_tokens(list(new)) < len(new):
            return None
        found.tokens = tokens
        self._sequences.append(found)
        del self._sequences[:-SEQUENCES]
        return found.matcher


def _tokenizer(source: str, vocab_size: int, eos: Sequence[int]) -> Any:
    try:
        return llguidance.LLTokenizer(source, n_vocab=vocab_size, eos_token=list(eos))
    except ValueError:
        # It may have more tokens than the model has logits: what is past those is cut off the masks.
        made = llguidance.LLTokenizer(source, eos_token=list(eos))
        if made.vocab_size < vocab_size:
            raise
        return made


def _compiled(kind: str, source: str) -> str:
    made: str
    match kind:
        case "json_schema":
            made = llguidance.LLMatcher.grammar_from_json_schema(
                source, overrides={"whitespace_pattern": BLANKS}
            )
        case "regex":
            made = llguidance.LLMatcher.grammar_from_regex(source)
        case _:
            made = llguidance.LLMatcher.grammar_from_lark(source)
    return made


def _check(matcher: Any, what: str) -> None:
    if matcher.is_error():
        raise ConfigError(f"{what}: {matcher.get_error()}")


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(at for at in range(shorter) if one[at] != other[at])
