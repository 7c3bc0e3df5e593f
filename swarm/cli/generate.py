"""`swarm generate`: one answer or several, for a person or a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from protocol.errors import SwarmError
from swarm import blocking
from swarm.answers import Answered, Several
from swarm.cli.answering import AnswerOptions, checked, settled
from swarm.cli.connection import open_beside, open_client
from swarm.cli.options import ANSWER, OUTPUT, Json, Verbose, taking
from swarm.cli.prompts import Given, one_line_of, read_prompts
from swarm.cli.screen import Screen
from swarm.cli.terminal import open_terminal
from swarm.cli.words import answer_fields, describe_answer
from swarm.client import EACH
from swarm.request import Request

SEVERAL = "Several prompts"


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(AnswerOptions):
    """As they are typed; see `swarm.cli.options.taking`."""

    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT...",
            help="The question, or several; - reads one from standard input.",
            show_default=False,
        ),
    ] = None
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='A prompt on each line, or {"prompt": TEXT, "id": ANYTHING}; - is standard input.',
            rich_help_panel=SEVERAL,
            show_default=False,
        ),
    ] = None
    at_once: Annotated[
        int, typer.Option(help="The most answers that are under way.", rich_help_panel=SEVERAL)
    ] = EACH.at_once
    routes: Annotated[
        int,
        typer.Option(
            help="Over how many routes without a common peer, as far as there are so many.",
            rich_help_panel=SEVERAL,
        ),
    ] = EACH.routes
    as_they_come: Annotated[
        bool,
        typer.Option("--as-they-come", help="Answers as they come, not in order.", rich_help_panel=SEVERAL),
    ] = False
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
    """Answer one question, or several. Standard output gets the text and nothing else: of several one line each, in
    which a line break is written \\n.

    ```
    swarm generate "What is 12 + 30?" --join ADDRESS
    swarm generate "Name a colour." --strategy beam_search:beams=4
    git diff | swarm generate - -n 400 --json | jq .tokens_per_s
    swarm generate --prompts questions.txt --at-once 16 --json > answers.jsonl
    ```
    """
    options = checked(options, options.top_logprobs)
    several = Several(options.at_once, not options.as_they_come, options.routes)
    given = read_prompts(options.prompt or (), options.prompts)
    screen = Screen(open_terminal())
    with (
        open_client(options.where, screen.terminal, screen.event) as client,
        open_beside(client, options.where, options.amateur, screen.terminal) as amateur,
        open_beside(client, options.where, options.draft, screen.terminal) as draft,
    ):
        screen.news.blocks = client.model.blocks
        request = settled(options, client.text.about.suggested).request(options.top_logprobs)
        request = replace(request, amateur=amateur, draft=draft)
        if len(given) == 1 and options.prompts is None:
            _answer(options, client, given[0].text, request, screen)
        else:
            _answer_each(options, client, given, several, request, screen)


def _chats(options: GenerateOptions, client: blocking.Client) -> bool:
    return client.text.chats and not options.raw


def _answer(
    options: GenerateOptions, client: blocking.Client, text: str, request: Request, screen: Screen
) -> None:
    """One, as it comes."""
    generation = client.generate(text, request=request, chat=_chats(options, client))
    try:
        for piece in generation:
            if options.stream and not options.as_json:
                screen.printer.write(piece.text)
        if not options.stream and not options.as_json:
            screen.printer.write(generation.answer.text)
    finally:
        screen.printer.end()
    answer = generation.answer
    if options.as_json:
        print(json.dumps(answer_fields(answer, client.model.name, client.model.blocks)))
    elif screen.terminal.err.is_terminal:
        screen.terminal.remark(describe_answer(answer))


def _answer_each(
    options: GenerateOptions,
    client: blocking.Client,
    given: Sequence[Given],
    several: Several,
    request: Request,
    screen: Screen,
) -> None:
    """Several, a line each. Raises: SwarmError, in the end, if any has failed."""
    texts = [each.text for each in given]
    failed: list[Answered] = []
    for answered in client.generate(texts, several=several, request=request, chat=_chats(options, client)):
        if options.as_json:
            print(json.dumps(_fields(answered, given[answered.number], client)))
            sys.stdout.flush()
        else:
            screen.printer.write(one_line_of(answered.answer.text) + "\n")
        if answered.error is not None:
            failed.append(answered)
    if failed:
        first = failed[0]
        raise SwarmError(
            f"{len(failed)} of {len(given)} prompts failed, first number {first.number + 1}: {first.error}"
        ) from first.error


def _fields(answered: Answered, given: Given, client: blocking.Client) -> dict[str, object]:
    """What became of a prompt, for --json."""
    return {
        "number": answered.number + 1,
        **({} if given.id is None else {"id": given.id}),
        "error": None if answered.error is None else str(answered.error),
        **answer_fields(answered.answer, client.model.name, client.model.blocks),
    }


generate = taking(GenerateOptions, _generate)
