"""Text in and out: encoding, conversations, incremental detokenisation, stop strings."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from protocol.errors import ConfigError, Malformed, RemoteProtocolError
from swarm.cli.demo_nodes import shipped_model
from swarm.text.model import TextModel
from swarm.text.stream import WINDOW, StopStrings, TextStream
from tests.swarm.tokenizers import byte_level, metaspace, model_files

BYTE_LEVEL, METASPACE = TextModel(model_files(byte_level())), TextModel(model_files(metaspace()))
SHIPPED = TextModel(
    {path.name: path.read_bytes() for path in shipped_model().iterdir() if path.suffix != ".safetensors"}
)
TEXTS = pytest.mark.parametrize(
    "text", [BYTE_LEVEL, METASPACE, SHIPPED], ids=["byte-level", "metaspace", "shipped"]
)
WORDS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("hello  日本é😀👨‍👩‍👧▁\n")),
    max_size=60,
)


def streamed(text: TextModel, ids: Sequence[int]) -> list[str]:
    return streamed_by(text.decode, ids, text.silent)


def streamed_by(
    decode: Callable[[Sequence[int]], str], ids: Sequence[int], silent: Collection[int] = ()
) -> list[str]:
    """What a stream gives for each token, and at the end."""

    async def decoded(windows: Sequence[Sequence[int]]) -> list[str]:
        return [decode(window) for window in windows]

    async def pushed() -> list[str]:
        stream = TextStream(decoded, silent)
        return [*[await stream.push(token) for token in ids], await stream.flush()]

    return trio.run(pushed)


@TEXTS
@settings(max_examples=150, deadline=None)
@given(words=WORDS)
def test_streaming_gives_the_text_of_all_tokens(text: TextModel, words: str) -> None:
    """In sum it is the tokenizer's own decoding; no piece shows half a character."""
    ids = text.encode(words)
    pieces = streamed(text, ids)
    assert "".join(pieces) == text.decode(ids)
    assert "".join(pieces).count("\ufffd") == words.count("\ufffd")


@settings(max_examples=150, deadline=None)
@given(words=WORDS, data=st.data())
def test_any_cut_of_the_bytes_gives_the_same_text(words: str, data: st.DataObject) -> None:
    """Tokens may hold any run of bytes, also ends and beginnings of two characters."""
    encoded = words.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)), max_size=20)) | {0, len(encoded)})
    parts = [encoded[a:b] for a, b in pairwise(cuts)]
    pieces = streamed_by(
        lambda ids: b"".join(parts[i] for i in ids).decode(errors="replace"), range(len(parts))
    )
    assert "".join(pieces) == words


@TEXTS
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_tokens_are_taken(text: TextModel, data: st.DataObject) -> None:
    """Also those of a model gone mad: nothing fails, and byte-level text is that of all tokens still."""
    ids = data.draw(st.lists(st.integers(0, 290), max_size=150))
    pieces = streamed(text, ids)
    if text is not METASPACE and len(ids) <= WINDOW:
        assert "".join(pieces) == text.decode(ids)


@TEXTS
def test_the_window_stays_small(text: TextModel) -> None:
    """Work per token does not grow with the text, neither for words nor for endless broken bytes."""
    sizes: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        sizes.append(len(ids))
        return text.decode(ids)

    for ids, most in [
        (text.encode("hello 日本語 😀 world " * 50), 24),
        ([text.encode("😀")[-1]] * 500, WINDOW + 1),
    ]:
        pieces = streamed_by(decode, ids)
        assert max(sizes) <= most
        assert "".join(pieces)
        sizes.clear()


def test_borders_inside_every_character() -> None:
    """Tokens that always end within a character: text still comes before the end, and all of it."""
    encoded = ("日本語" * 60).encode()
    parts = [encoded[:1], *(encoded[i : i + 3] for i in range(1, len(encoded), 3))]
    pieces = streamed_by(
        lambda ids: b"".join(parts[i] for i in ids).decode(errors="replace"), range(len(parts))
    )
    assert pieces[1:4] == ["日", "本", "語"]
    assert "".join(pieces) == "日本語" * 60


def test_special_tokens_are_silent_and_leave_spaces_alone() -> None:
    """A special token in the middle does not make the next word lose its leading space."""
    ids = [*METASPACE.encode("hello"), 2, 3, *METASPACE.encode("hello")[1:]]
    assert "".join(streamed(METASPACE, ids)) == METASPACE.decode(ids) == "hello hello"


@settings(max_examples=300, deadline=None)
@given(
    words=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.sets(st.integers(0, 30)),
)
def test_stop_strings_do_not_depend_on_the_pieces(words: str, stops: list[str], cuts: set[int]) -> None:
    """However text is cut: the same comes out, it holds no stop string, and what is let through is never undone."""

    def through(borders: list[int]) -> tuple[str, str | None]:
        stop = StopStrings(stops)
        out = "".join(
            stop.push(words[a:b]) for a, b in zip([0, *borders], [*borders, len(words)], strict=True)
        )
        return out + stop.flush(), stop.found

    out, found = through(list(range(1, len(words))))
    assert through([cut for cut in sorted(cuts) if cut <= len(words)]) == (out, found)
    assert words.startswith(out)
    assert all(stop not in out for stop in stops)
    assert (found is None) == all(stop not in words for stop in stops)
    assert found is None or words.startswith(out + found)


def test_stop_strings_hold_back_only_what_they_must() -> None:
    """Text that can no longer become a stop string comes at once."""
    stop = StopStrings(["\nUser:", "</s>"])
    assert [stop.push(piece) for piece in ["hi\n", "Us", "ual <", "/s", "> more", "x"]] == [
        "hi", "", "\nUsual ", "", "", "",
    ]  # fmt: skip
    assert (stop.found, stop.stopped, stop.flush()) == ("</s>", True, "")
    with pytest.raises(ConfigError):
        StopStrings([""])


def test_special_ids_and_sizes() -> None:
    """eos is the union of what config, generation config and tokenizer name; sizes are the config's."""
    text = BYTE_LEVEL
    assert (text.eos, text.bos, text.vocab_size, text.context, text.chats) == (
        frozenset({1, 2}),
        0,
        400,
        128,
        True,
    )
    nested = {
        "text_config": {"vocab_size": 500, "n_positions": 64, "eos_token_id": [3, 999_999, -1, True, "x"]}
    }
    files = model_files(config=nested, generation_config={}, tokenizer_config={})
    text = TextModel(files)
    assert (text.eos, text.bos, text.vocab_size, text.context, text.chats) == (
        frozenset({3}),
        None,
        500,
        64,
        False,
    )


def test_encoding_adds_what_the_tokenizer_adds() -> None:
    """A post-processor's tokens, and the bos that only tokenizer_config.json asks for, once."""
    assert METASPACE.encode("he")[0] == 0
    assert 0 not in BYTE_LEVEL.encode("he")
    about = {"bos_token": "<s>", "add_bos_token": True}
    for tokenizer in (byte_level(), metaspace()):
        ids = TextModel(model_files(tokenizer, tokenizer_config=about)).encode("he")
        assert ids.count(0) == 1
        assert ids[0] == 0


def test_truncation_and_padding_are_switched_off() -> None:
    """A tokenizer that was saved with them does not cut prompts."""
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    text = TextModel(model_files(tokenizer))
    assert text.encode("abcdef") == BYTE_LEVEL.encode("abcdef")


def test_a_conversation_is_rendered_and_encoded() -> None:
    """Template tokens become special ids, none is added twice; without a template there are plain lines."""
    talk = [{"role": "user", "content": " hi "}]
    tokenizer = byte_level()
    expected = tokenizer.encode("<s><|user|>hi</s>\n<|assistant|>", add_special_tokens=False).ids
    assert BYTE_LEVEL.encode_chat(talk) == expected
    assert expected[:2] == [0, 2]
    plain = TextModel(model_files(tokenizer_config={}))
    assert plain.decode(plain.encode_chat(talk)) == "User:  hi \nAssistant:"


def test_the_shipped_model_reads_as_in_transformers() -> None:
    """Prompts and conversations become the ids that transformers makes of them."""
    reference = AutoTokenizer.from_pretrained(shipped_model())
    talk = [
        {"role": "user", "content": "What is 12 + 30?"},
        {"role": "assistant", "content": "12 + 30 = 42."},
        {"role": "user", "content": " Spell 'café' 😀 \n"},
    ]
    expected = reference.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert SHIPPED.encode_chat(talk) == expected
    for words in ("What is 12 + 30?", " é😀\n\n日本", ""):
        assert SHIPPED.encode(words) == reference.encode(words)
    assert SHIPPED.eos == {reference.eos_token_id}
    assert (SHIPPED.bos, SHIPPED.context, SHIPPED.chats) == (reference.bos_token_id, 512, True)


def test_where_templates_are_found() -> None:
    """A file of its own wins; of several in tokenizer_config.json the default is taken."""
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    files = model_files(tokenizer_config={"chat_template": named})
    assert TextModel(files).decode(TextModel(files).encode_chat([])) == "yes"
    files["chat_template.jinja"] = "file ☃".encode()
    assert TextModel(files).decode(TextModel(files).encode_chat([])) == "file ☃"


def test_lone_surrogates_from_a_terminal_are_taken() -> None:
    """What a terminal of another encoding typed becomes question marks, not an error."""
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode("a\udce9\ud800b")) == "a??b"


@pytest.mark.parametrize(
    "broken",
    [
        {"tokenizer.json": None},
        {"tokenizer.json": b""},
        {"tokenizer.json": b"{}"},
        {"tokenizer.json": b"\xff\xfe"},
        {"config.json": b"{"},
        {"config.json": b"[1]"},
        {"config.json": b"[" * 100_000},
        {"generation_config.json": b"\xff"},
        {"chat_template.jinja": b"\xff"},
        {"chat_template.jinja": b"{% if %}"},
        {"chat_template.jinja": b"{{ " + b"(" * 5000 + b")" * 5000 + b" }}"},
    ],
    ids=str,
)
def test_broken_files_are_the_peers_fault(broken: dict[str, bytes | None]) -> None:
    """One line that names the file; never another exception."""
    files = {name: data for name, data in {**model_files(), **broken}.items() if data is not None}
    with pytest.raises(RemoteProtocolError) as caught:
        TextModel(files)
    assert "model" in str(caught.value) or "template" in str(caught.value)


def test_odd_values_in_configs_are_ignored() -> None:
    """Values of the wrong kind count as absent."""
    odd = {"vocab_size": "many", "max_position_embeddings": -5, "eos_token_id": {"a": 1}, "text_config": 3}
    text = TextModel(
        model_files(config=odd, generation_config={"eos_token_id": None}, tokenizer_config={"bos_token": 7})
    )
    assert (text.eos, text.bos, text.context) == (frozenset(), None, 2048)
    assert text.vocab_size == byte_level().get_vocab_size()


def test_a_tokenizer_that_fails_later_is_malformed_too() -> None:
    """A vocabulary without the token that the model's parts need fails on use, in one line."""
    data = json.loads(byte_level().to_str())
    data["model"]["unk_token"] = "missing"
    data["model"]["vocab"] = {"a": 300}
    data["model"]["merges"] = []
    text = TextModel(model_files(Tokenizer.from_str(json.dumps(data))))
    with pytest.raises(Malformed):
        text.encode("b")
