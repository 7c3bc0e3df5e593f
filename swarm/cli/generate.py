"""`swarm generate`: one answer, for a person or a script."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from protocol.errors import ConfigError
from swarm.cli.connection import open_client
from swarm.cli.options import (
    ANSWER,
    Join,
    Json,
    MaxNewTokens,
    Model,
    NoReuse,
    Precision,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    Verbose,
    Wait,
    Weights,
    Where,
    readable,
)
from swarm.cli.screen import Screen
from swarm.cli.streams import read_input
from swarm.cli.terminal import open_terminal
from swarm.cli.words import answer_fields, describe_answer
from swarm.decoding import Sampling


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The question; - reads it from standard input.")
    ],
    join: Join = None,
    model: Model = None,
    weights: Weights = None,
    precision: Precision = "any",
    wait: Wait = 10.0,
    no_reuse: NoReuse = False,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="End before this text; can be repeated.", show_default=False, rich_help_panel=ANSWER
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Continue the prompt as it stands. Otherwise it is a question, put by the model's chat template "
            "if it has one.",
            rich_help_panel=ANSWER,
        ),
    ] = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Answer one question. Standard output gets the text and nothing else.

    ```
    swarm generate "What is 12 + 30?" --join ADDRESS
    git diff | swarm generate - -n 400 --json | jq .tokens_per_s
    ```
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    screen = Screen(open_terminal())
    text = read_input() if prompt == "-" else readable(prompt)
    if not text:
        raise ConfigError("the prompt is empty: there is nothing to answer")
    terminal, printer = screen.terminal, screen.printer
    where = Where(tuple(join or ()), model, wait, weights, precision, not no_reuse)
    with open_client(where, terminal, screen.event) as client:
        screen.news.blocks = client.model.blocks
        generation = client.generate(
            text,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=tuple(map(readable, stop or ())),
            chat=client.text.chats and not raw,
        )
        try:
            for piece in generation:
                if not as_json:
                    printer.write(piece.text)
        finally:
            printer.end()
        answer = generation.answer
        if as_json:
            print(json.dumps(answer_fields(answer, client.model.name, client.model.blocks)))
        elif terminal.err.is_terminal:
            terminal.remark(describe_answer(answer))
