"""`swarm chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Final

import typer

from protocol.errors import ConfigError, SwarmError
from protocol.plain import plain
from swarm.blocking import Client, Conversation
from swarm.cli.answering import (
    DEFAULT,
    AnswerOptions,
    MaxNewTokens,
    checked,
    set_option,
    settings_of,
    settled,
)
from swarm.cli.connection import a_door, copyable, open_beside, open_client
from swarm.cli.coverage import render
from swarm.cli.lines import Lines
from swarm.cli.options import ANSWER, Verbose, readable, taking
from swarm.cli.reading import open_lines
from swarm.cli.route import route_table
from swarm.cli.screen import Screen
from swarm.cli.sibling import Sibling
from swarm.cli.terminal import open_terminal
from swarm.cli.words import count, describe_answer
from swarm.coverage import by_model
from swarm.decoding import Speculative

_HELP: Final = (
    "/route   the hops that answer",
    "/status  who serves which layers",
    "/set     how the next answers are made; /set NAME VALUE changes it, VALUE default takes it back",
    "/reset   forget what was said",
    "/quit    leave; so does Ctrl-D. Ctrl-C stops an answer.",
)
# Commands that every chat has, beside those of its own.
_ANYWHERE: Final = ("/help", "/quit")


@dataclass(frozen=True, kw_only=True)
class ChatOptions(AnswerOptions):
    """As they are typed; see `swarm.cli.options.taking`."""

    max_new_tokens: MaxNewTokens = 512
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A system message.", show_default=False, rich_help_panel=ANSWER),
    ] = None
    verbose: Verbose = 0


def _chat(options: ChatOptions) -> None:
    """Chat with the model that a swarm serves. Needs an address, and nothing of the model on this machine.

    Ctrl-C stops an answer; /help lists what else there is, and the keys; /set changes how the next answers are made.
    What is typed is kept from one chat to the next. Piped input is taken a line at a time.

    ```
    swarm chat --join ADDRESS
    swarm chat --temperature 0.7 --top-p 0.9 --system "Answer briefly."
    ```
    """
    options = checked(options)
    screen = Screen(open_terminal())
    with (
        open_client(options.where, screen.terminal, screen.event) as client,
        open_beside(client, options.where, options.amateur, screen.terminal) as amateur,
        open_beside(client, options.where, options.draft, screen.terminal) as draft,
    ):
        request = replace(
            settled(options, client.text.about.suggested).request(), amateur=amateur, draft=draft
        )
        talk = client.conversation(system=readable(options.system or "") or None, request=request)
        with talk as entered:
            screen.news.blocks = client.model.blocks
            converse(screen, client, entered, options=options)


chat = taking(ChatOptions, _chat)


@dataclass(slots=True)
class _Chat:
    screen: Screen
    client: Client
    talk: Conversation
    person: bool
    begun: AnswerOptions
    options: AnswerOptions  # as /set has changed them
    sibling: Sibling | None  # drafts for a person who has named nothing that does

    @property
    def settled(self) -> AnswerOptions:
        """How the next turns are answered."""
        return settled(self.options, self.client.text.about.suggested)

    def answer(self, line: str) -> None:
        """Put one turn and stream the answer. To a person a failure is told, and the chat goes on."""
        printer, terminal = self.screen.printer, self.screen.terminal
        if self.sibling is not None and isinstance(self.talk.request.chosen_strategy(), Speculative):
            self.talk.request = replace(self.talk.request, draft=self.sibling.model)
        generation = self.talk.say(line)
        try:
            for piece in generation:
                if self.settled.stream:
                    printer.write(piece.text)
            if not self.settled.stream:
                printer.write(generation.answer.text)
        except SwarmError as error:
            printer.end()
            if not self.person:
                raise
            terminal.fail(copyable(error, self.client))
            if isinstance(error, ConfigError) and self.talk.messages:
                terminal.remark("/reset forgets what was said and makes room")
            return
        except KeyboardInterrupt:
            generation.close()
            if not self.person:
                raise
        finally:
            printer.end()
        if generation.answer.route.hops:  # else it was stopped before there was anything to tell of
            terminal.remark(describe_answer(generation.answer))

    def show_route(self) -> None:
        """/route"""
        planned = self.talk.route or self.client.plan_route()
        self.screen.terminal.show(
            route_table(planned, self.client, self.screen.terminal, self.screen.news.names)
        )

    def show_status(self) -> None:
        """/status"""
        self.client.refresh()
        said = [a for a in self.client.nodes if a.digest == self.client.model.digest]
        terminal = self.screen.terminal
        weights = {self.client.model.digest: self.client.weights}
        for coverage in by_model(said, self.client.rtt_ms, weights, self.client.precisions):
            terminal.show(*render(coverage, terminal, a_door(self.client), self.screen.news.names))

    def show_settings(self) -> None:
        """/set"""
        options = self.settled
        for name, value in settings_of(options).items():
            origin = options.origins.get(name)
            where = f"  ({origin.text})" if origin is not None else ""
            self.screen.terminal.remark(f"{name} {_written(value)}{where}")

    def set(self, name: str, value: str) -> None:
        """/set NAME VALUE, for the next turns."""
        suggested = self.client.text.about.suggested
        self.options = set_option(self.options, name, value, self.begun, suggested)
        before = self.talk.request
        draft = before.draft if self.sibling is None else None
        self.talk.request = replace(self.settled.request(), amateur=before.amateur, draft=draft)

    def reset(self) -> None:
        """/reset"""
        self.talk.reset()
        self.screen.terminal.remark("forgotten")

    def help(self, lines: Lines) -> None:
        """/help"""
        self.screen.terminal.remark(*_HELP, *lines.keys)


Commands = dict[str, Callable[[], object]]


def converse(
    screen: Screen,
    client: Client,
    talk: Conversation,
    more: Commands | None = None,
    options: AnswerOptions | None = None,
) -> None:
    """Turn by turn, until the input ends or somebody leaves; `more` are further commands.

    options: what `talk` was begun with; /set changes them.
    """
    person = sys.stdin.isatty()
    options = options or AnswerOptions(max_new_tokens=talk.request.max_new_tokens)
    is_left_to_us = person and talk.request.draft is None
    sibling = Sibling(client.model.manifest.tokenizer) if is_left_to_us else None
    chatting = _Chat(screen, client, talk, person, options, options, sibling)
    commands: Commands = {
        **(more or {}),
        "/route": chatting.show_route,
        "/status": chatting.show_status,
        "/set": chatting.show_settings,
        "/reset": chatting.reset,
    }
    if person:
        _greet(screen, client)
    with open_lines(screen, (*commands, *_ANYWHERE)) as lines, screen.beside(lines.beside):
        commands["/help"] = partial(chatting.help, lines)
        while True:
            try:
                line = lines.read()
            except KeyboardInterrupt:
                if not person:
                    raise
                screen.terminal.remark("Ctrl-D or /quit leaves")
                continue
            if line is None or line.strip() in ("/quit", "/exit"):
                return
            try:
                with lines.acting():
                    _turn(chatting, commands, line.strip())
            except KeyboardInterrupt:
                if not person:
                    raise


def _turn(chatting: _Chat, commands: Commands, line: str) -> None:
    """One message of somebody's: a command, or something to answer."""
    terminal = chatting.screen.terminal
    if not line.startswith("/"):
        if line:
            chatting.answer(line)
        return
    word, *said = line.split(maxsplit=2)
    command = commands.get(word)
    if command is None:
        terminal.remark(f"there is no command {word}; /help lists them")
        return
    try:
        if word == "/set" and said:
            chatting.set(said[0], said[1] if len(said) > 1 else "")
        else:
            command()
    except SwarmError as error:
        terminal.fail(str(error))


def _written(value: object) -> str:
    """A setting as it is typed."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return DEFAULT if value is None else str(value)


def _greet(screen: Screen, client: Client) -> None:
    client.refresh()  # the door may suffice, and then nobody else was met yet
    said = [a for a in client.nodes if a.digest == client.model.digest]
    model = client.model
    where = f"{count(model.blocks, 'layer')} on {count(len(said), 'node')}"
    screen.terminal.remark(f"{plain(model.name)} · {where} · /help for commands, Ctrl-D leaves", style="bold")
    if not client.text.chats:
        screen.terminal.remark("this model has no chat template: it continues text rather than answers")
