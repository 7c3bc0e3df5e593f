"""The options of those commands that answer: which swarm, how tokens are chosen, when an answer ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args, get_type_hints

import typer

from protocol.errors import ConfigError
from swarm.cli.options import (
    ANSWER,
    NETWORK,
    ORIGINS,
    Join,
    Model,
    NoReuse,
    Precision,
    Wait,
    Weights,
    Where,
    readable,
)
from swarm.cli.origins import MODEL, Origin, Origins, Rank, rank_of
from swarm.decoding import AUTO, DRAWING, NAMES, PRESETS, Grammar, Sampling, Speculative, parse_strategy
from swarm.request import Request

T = TypeVar("T", bound="AnswerOptions")

CHOICE: Final = "Which tokens"
# What says in /set that an option is as it was when the chat began.
DEFAULT: Final = "default"


def _option(help_: str, *names: str, panel: str = CHOICE, **how: Any) -> Any:
    return typer.Option(*names, help=help_, rich_help_panel=panel, **how)


MaxNewTokens = Annotated[int, _option("The longest answer.", "--max-new-tokens", "-n", panel=ANSWER, min=1)]


@dataclass(frozen=True, kw_only=True)
class WhereOptions:
    """Which swarm, as it is typed; see `swarm.cli.options.taking`."""

    join: Join = None
    model: Model = None
    weights: Weights = None
    precision: Precision = "any"
    wait: Wait = 10.0
    no_reuse: NoReuse = False
    amateur: Annotated[
        str | None,
        _option(
            "A smaller model of the same tokenizer, by its name in the swarm or as a checkpoint here: the strategy "
            "contrastive needs one.",
            metavar="MODEL",
            panel=NETWORK,
            show_default=False,
        ),
    ] = None
    draft: Annotated[
        str | None,
        _option(
            "A small model of the same tokenizer that drafts what comes next, likewise: the tokens are the same, in "
            "fewer trips.",
            metavar="MODEL",
            panel=NETWORK,
            show_default=False,
        ),
    ] = None

    @property
    def where(self) -> Where:
        """The same, as it is used."""
        join = tuple(self.join or ())
        return Where(join, self.model, self.wait, self.weights, self.precision, not self.no_reuse)


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(WhereOptions):
    """How to answer, as it is typed. What has the name of a field of `Sampling` means that."""

    max_new_tokens: MaxNewTokens = 256
    stop: Annotated[
        list[str] | None,
        _option("End before this text; can be repeated.", panel=ANSWER, show_default=False),
    ] = None
    stream: Annotated[
        bool, _option("Show the answer as it comes, or all at its end.", "--stream/--no-stream", panel=ANSWER)
    ] = True
    max_seconds: Annotated[
        float | None, _option("End after so long, wherever it is.", panel=ANSWER, show_default=False)
    ] = None
    min_new_tokens: Annotated[int, _option("No end before it has so many tokens.", panel=ANSWER)] = 0
    strategy: Annotated[
        str,
        _option(
            f"The way to decode: {', '.join(NAMES)}; auto is greedy or drawn, by the temperature, with "
            "drafts where they pay. Parameters follow a colon, as in beam_search:beams=4,length_penalty=0.8 or "
            "best_of:answers=8.",
            metavar="NAME[:PARAMETERS]",
        ),
    ] = AUTO
    mode: Annotated[
        str | None,
        _option(
            "How to draw, by a name: near the best tokens, or from all that are likely. What is said of drawing "
            "beside it, in the same place or a nearer one, counts more.",
            metavar="|".join(PRESETS),
            show_default=False,
        ),
    ] = None
    temperature: Annotated[float, _option("0 takes the best token always.", "--temperature", "-t")] = 0.0
    top_k: Annotated[int, _option("Draw from the K best tokens only; 0 is off.")] = 0
    top_p: Annotated[float, _option("Draw from the best tokens that reach this probability.")] = 1.0
    min_p: Annotated[float, _option("Draw from tokens at least so probable, times the best one.")] = 0.0
    typical_p: Annotated[
        float, _option("Draw from the tokens nearest to the expected surprise that reach this probability.")
    ] = 1.0
    repetition_penalty: Annotated[float, _option("Above 1 makes tokens that occurred less likely.")] = 1.0
    presence_penalty: Annotated[float, _option("Is taken from the logits of tokens that were answered.")] = (
        0.0
    )
    frequency_penalty: Annotated[float, _option("Is taken from them once for each time.")] = 0.0
    no_repeat_ngram: Annotated[int, _option("No so many tokens in a row occur twice; 0 is off.")] = 0
    logit_bias: Annotated[
        list[str] | None,
        _option("Is added to a token's logit; can be repeated.", metavar="ID=VALUE", show_default=False),
    ] = None
    allowed: Annotated[
        list[str] | None, _option("Only these tokens: ids, with commas.", metavar="IDS", show_default=False)
    ] = None
    banned: Annotated[
        list[str] | None,
        _option("None of these tokens: ids, with commas.", metavar="IDS", show_default=False),
    ] = None
    json_schema: Annotated[
        str | None,
        _option(
            "The answer is JSON of the schema in this file.", metavar="FILE", panel=ANSWER, show_default=False
        ),
    ] = None
    seed: Annotated[int | None, _option("The same seed gives the same text.", show_default=False)] = None
    origins: Origins = field(default_factory=dict, compare=False)

    def request(self, top_logprobs: int = 0) -> Request:
        """What they ask for as they stand; see `settled`. Raises: ConfigError."""
        given = {field.name: getattr(self, field.name) for field in fields(Sampling)}
        given["logit_bias"] = dict(_biases(self.logit_bias or ()))
        given["allowed"] = None if self.allowed is None else frozenset(_ids("allowed", self.allowed))
        given["banned"] = frozenset(_ids("banned", self.banned or ()))
        return Request(
            self.max_new_tokens,
            Sampling(**given),
            parse_strategy(self.strategy),
            tuple(map(readable, self.stop or ())),
            max_seconds=self.max_seconds,
            top_logprobs=top_logprobs,
            grammar=None if self.json_schema is None else _schema(self.json_schema),
        )


def checked(options: T, top_logprobs: int = 0) -> T:
    """The options without other models that the strategy has no use for, unless these were typed.

    Raises: ConfigError, for what could not be whatever the model suggests; it says where that came from.
    """
    try:
        strategy = settled(options, _ALL_SUGGESTED).request(top_logprobs).chosen_strategy()
    except ConfigError as error:
        name = str(error).partition(" ")[0].rstrip(":")
        origin = options.origins.get(name)
        if origin is None or origin.rank == Rank.FLAG:
            raise
        raise ConfigError(f"{origin.text}: {error}") from error
    typed = [name for name in ("amateur", "draft") if rank_of(options.origins, name) >= Rank.FLAG]
    amateur = options.amateur if "amateur" in typed or strategy.needs_amateur is not False else None
    draft = options.draft if "draft" in typed or isinstance(strategy, Speculative) else None
    return replace(options, amateur=amateur, draft=draft)


def settled(options: T, suggested: Mapping[str, float]) -> T:
    """The options as they hold for a model that suggests this; each value from the nearest place that says it.

    Below what is said outright in a place stands what its mode says. Where the strategy denies what was said of
    drawing in farther places, that is left out; where it draws and nobody gave a temperature, that is 1.
    Raises: ConfigError, for a mode that there is not.
    """
    held = _follow({name: (value, MODEL) for name, value in suggested.items()}, options)
    if held.mode is not None:
        if held.mode not in PRESETS:
            raise ConfigError(f"mode {held.mode!r}: there are {', '.join(PRESETS)}")
        origin = held.origins.get("mode", _TYPED).through(f"mode {held.mode}")
        preset = {"strategy": AUTO, **PRESETS[held.mode]}
        held = _follow({name: (value, origin) for name, value in preset.items()}, held)
    strategy = Origin(rank_of(held.origins, "strategy"), f"strategy {held.strategy}")
    off = {name: (value, strategy) for name, value in DRAWING.items()}
    tried = [held, _follow(off, held)]
    if rank_of(held.origins, "temperature") == Rank.USUAL:
        tried.append(replace(held, temperature=1.0, origins={**held.origins, "temperature": strategy}))
    return next((each for each in tried if _fits(each)), held)


# Of options that nobody parsed: a caller has given them.
_TYPED: Final = Origin(Rank.FLAG, "given")
# What a model suggests that leaves nothing for a strategy to ask for.
_ALL_SUGGESTED: Final = {"temperature": 1.0, "top_k": 1, "top_p": 0.5}
_SWITCH: Final = {"true": True, "false": False}


def _follow(said: Mapping[str, tuple[Any, Origin]], options: T) -> T:
    """With the values that come from nearer places than those that the options have."""
    nearer = {name: each for name, each in said.items() if each[1].rank > rank_of(options.origins, name)}
    values: dict[str, Any] = {name: value for name, (value, _) in nearer.items()}
    origins = {**options.origins, **{name: origin for name, (_, origin) in nearer.items()}}
    return replace(options, **values, origins=origins)


def _fits(options: AnswerOptions) -> bool:
    """Whether the strategy and the settings go together."""
    try:
        options.request()
    except ConfigError:
        return False
    return True


def _schema(file: str) -> Grammar:
    """The grammar of a file. Raises: ConfigError."""
    try:
        return Grammar.json_schema(Path(file).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--json-schema {readable(file)}: it cannot be read: {error}") from error


def settings_of(options: AnswerOptions) -> dict[str, Any]:
    """What `set_option` can change, and how it stands."""
    others = {field.name for field in fields(WhereOptions)} | {ORIGINS}
    names = [field.name for field in fields(AnswerOptions) if field.name not in others]
    return {name: getattr(options, name) for name in names}


def set_option(
    options: T, name: str, text: str, begun: T | None = None, suggested: Mapping[str, float] | None = None
) -> T:
    """The options with one of them said otherwise; a mode takes the place of what was said before of what it says.

    begun: how they were at first, which DEFAULT goes back to; None: their usual values.
    Raises: ConfigError, also where the whole cannot be then.
    """
    name = name.replace("-", "_")
    known = settings_of(options)
    if name not in known:
        raise ConfigError(f"there is no setting {name!r}; there are {', '.join(known)}")
    back = [name, *(("strategy", *PRESETS[text]) if name == "mode" and text in PRESETS else ())]
    changed = _as_begun(options, back, begun)
    if text != DEFAULT:
        said: dict[str, Any] = {name: _read(name, text)}
        changed = replace(changed, **said, origins={**changed.origins, name: Origin(Rank.CHAT, "/set")})
    settled(changed, suggested or {}).request()
    return changed


def _as_begun(options: T, names: Sequence[str], begun: T | None) -> T:
    """With some options, and where they came from, as they were."""
    usual: dict[str, Any] = {field.name: field.default for field in fields(options)}
    origins = dict(options.origins)
    values: dict[str, Any] = {}
    for name in names:
        values[name] = usual[name] if begun is None else getattr(begun, name)
        origins.pop(name, None)
        if begun is not None and name in begun.origins:
            origins[name] = begun.origins[name]
    return replace(options, **values, origins=origins)


def _read(name: str, text: str) -> Any:
    """What is typed after /set, as the command line would have it."""
    hint = _hints()[name]
    kinds = set(get_args(hint) or (hint,)) - {type(None)}
    if kinds == {list[str]}:
        return [text]
    [kind] = kinds
    if kind is bool:
        if text not in _SWITCH:
            raise ConfigError(f"{name} is {' or '.join(_SWITCH)}, not {text!r}")
        return _SWITCH[text]
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(
            f"{name} is {'a whole number' if kind is int else 'a number'}, not {text!r}"
        ) from error


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(AnswerOptions)


def _biases(given: Sequence[str]) -> Iterator[tuple[int, float]]:
    for each in given:
        token, _, value = each.partition("=")
        try:
            yield int(token), float(value)
        except ValueError as error:
            raise ConfigError(f"logit_bias {readable(each)!r}: it is ID=VALUE, as 13=-2.5") from error


def _ids(name: str, given: Sequence[str]) -> Iterator[int]:
    for each in given:
        try:
            yield from map(int, each.replace(",", " ").split())
        except ValueError as error:
            raise ConfigError(f"{name} {readable(each)!r}: it is ids of tokens, as 13,198") from error
