"""`swarm generate`: one answer, for a person or a script."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from protocol.errors import ConfigError
from swarm.cli.answering import AnswerOptions
from swarm.cli.connection import open_amateur, open_client
from swarm.cli.options import ANSWER, OUTPUT, Json, Verbose, readable, taking
from swarm.cli.screen import Screen
from swarm.cli.streams import read_input
from swarm.cli.terminal import open_terminal
from swarm.cli.words import answer_fields, describe_answer


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(AnswerOptions):
    """As they are typed; see `swarm.cli.options.taking`."""

    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The question; - reads it from standard input.")
    ]
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Continue the prompt as it stands. Otherwise it is a question, put by the model's chat template "
            "if it has one.",
            rich_help_panel=ANSWER,
        ),
    ] = False
    as_json: Json = False
    top_logprobs: Annotated[
        int,
        typer.Option(
            help="With --json: the log-probabilities of so many of the best tokens at each place.",
            rich_help_panel=OUTPUT,
        ),
    ] = 0
    verbose: Verbose = 0


def _generate(options: GenerateOptions) -> None:
    """Answer one question. Standard output gets the text and nothing else.

    ```
    swarm generate "What is 12 + 30?" --join ADDRESS
    swarm generate "Name a colour." --strategy beam_search:beams=4
    git diff | swarm generate - -n 400 --json | jq .tokens_per_s
    ```
    """
    request = options.request(options.top_logprobs)
    screen = Screen(open_terminal())
    text = read_input() if options.prompt == "-" else readable(options.prompt)
    if not text:
        raise ConfigError("the prompt is empty: there is nothing to answer")
    terminal, printer = screen.terminal, screen.printer
    with (
        open_client(options.where, terminal, screen.event) as client,
        open_amateur(client, options.where, options.amateur, terminal) as amateur,
    ):
        screen.news.blocks = client.model.blocks
        request = replace(request, amateur=amateur)
        generation = client.generate(text, request=request, chat=client.text.chats and not options.raw)
        try:
            for piece in generation:
                if not options.as_json:
                    printer.write(piece.text)
        finally:
            printer.end()
        answer = generation.answer
        if options.as_json:
            print(json.dumps(answer_fields(answer, client.model.name, client.model.blocks)))
        elif terminal.err.is_terminal:
            terminal.remark(describe_answer(answer))


generate = taking(GenerateOptions, _generate)
