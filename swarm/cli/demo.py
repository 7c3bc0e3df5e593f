"""`swarm demo`: a swarm on this machine, questions that anybody can check, and a node killed in mid-answer."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
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
from swarm.cli.chat import converse
from swarm.cli.connection import working
from swarm.cli.coverage import by_model, render
from swarm.cli.demo_nodes import Demo, DemoNode
from swarm.cli.interrupts import leave
from swarm.cli.options import Verbose, readable
from swarm.cli.screen import Screen
from swarm.cli.terminal import Terminal, open_terminal
from swarm.cli.words import count, describe_answer

LAYERS: Final = 8  # of the model that ships
QUESTIONS: Final = (("What is 12 + 30?", "42"), ("What is the capital of France?", "Paris"))
COUNT: Final = "Count from 3 to 40."
COUNTED: Final = [str(number) for number in range(3, 41)]
# The node is killed when this much of the count is on the screen.
KILL_AFTER: Final = 10
MAX_NEW_TOKENS: Final = 300
# On a machine that is busy with other things a slow node may be taken for a lost one; it is back soon.
WAIT_S: Final = 30.0
# Of what a node tells, what it does meanwhile.
DOING: Final = ("opening", "joining", "loading", "serving", "ready")
# News of the last node to be ready is with all others within about a second.
SETTLED_WITHIN_S: Final = 5.0


def demo(
    kill: Annotated[
        bool, typer.Option("--kill", help="Kill a node with kill -9 in the middle of an answer.")
    ] = False,
    nodes: Annotated[int, typer.Option(min=1, max=16, help="How many node processes.")] = 4,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What to ask instead.", show_default=False)
    ] = None,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="End after the answers.")] = False,
    verbose: Verbose = 0,
) -> None:
    """Run a whole swarm on this machine: node processes, each with some layers of a small model, and a chat.

    Every layer is served twice, so any node may die; --kill shows it.

    ```
    swarm demo --kill
    ```
    """
    if kill and nodes < 2:
        raise ConfigError("--kill needs at least 2 nodes: somebody has to go on")
    terminal = open_terminal()
    model = swarm_demo.shipped_model()
    layers = swarm_demo.spread(LAYERS, nodes)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    with ExitStack() as stack:
        running = stack.enter_context(swarm_demo.start(model, layers))
        _wait_until_ready(running, terminal)
        screen = Screen(terminal, running.names)
        with working(terminal, "entering the swarm"):
            client = stack.enter_context(
                # Another release may bring other weights for the model that ships.
                blocking.connect(*running.doors, wait_s=WAIT_S, remember=False, on_event=screen.event)
            )
        screen.news.blocks = client.model.blocks
        Show(running, screen, client).play(kill, prompt, chat=sys.stdin.isatty() and not no_chat)


@dataclass(frozen=True, slots=True)
class Show:
    """What there is to see once the nodes are up."""

    running: Demo
    screen: Screen
    client: Client

    def play(self, kill: bool, prompt: str | None, chat: bool) -> None:
        """Raises: DemoWrong, if an answer is not what it should be; what asking raises."""
        self._coverage()
        with self.client.conversation(max_new_tokens=MAX_NEW_TOKENS) as talk:
            if prompt is not None:
                self._ask(talk, readable(prompt))
            else:
                for question, answer in QUESTIONS:
                    said = self._ask(talk, question)
                    self._judge(answer in said.text, f"it is {answer}")
            if kill:
                self._kill_in_mid_answer(talk)
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

    def _kill_in_mid_answer(self, talk: Conversation) -> None:
        talk.reset()
        killed: list[DemoNode] = []

        def watch(text: str) -> None:
            if not killed and text.count(",") >= KILL_AFTER:
                killed.append(self._kill(talk))

        said = self._ask(talk, COUNT, watch)
        sound = re.findall(r"\d+", said.text) == COUNTED and bool(killed)
        self._judge(
            sound, "every number from 3 to 40" + (", with a node lost on the way" if said.reroutes else "")
        )

    def _kill(self, talk: Conversation) -> DemoNode:
        used = [(hop.peer, hop.span) for hop in (talk.route or self.client.plan_route()).hops]
        node = swarm_demo.replaceable(self.running, used)
        node.kill()
        first, stop = node.layers
        self.screen.printer.remark(
            f"kill -9 {node.process.pid}: {node.name} with layers {first}:{stop} is dead", style="bold red"
        )
        return node

    def _judge(self, right: bool, what: str) -> None:
        if not right:
            raise DemoWrong(f"the answer is wrong: it should have been {what}")
        self.screen.terminal.remark(f"✓ {what}", "", style="green")


class DemoWrong(SwarmError):
    """The swarm answered, but not what it should have."""


def _wait_until_ready(running: Demo, terminal: Terminal) -> None:
    began = time.monotonic()
    doing = {node.name: "starting" for node in running.nodes}
    say = f"starting {count(len(running.nodes), 'node')} with layers of the model in {running.model.name}"
    terminal.remark(say, style="bold")
    with Live(console=terminal.out, refresh_per_second=10, transient=True) as live:
        for node, news in running.progress():
            if news.name in DOING:
                doing[node.name] = news.name
            if terminal.out.is_terminal:
                live.update(_progress(running, doing, terminal))
    terminal.remark(f"✓ all ready after {time.monotonic() - began:.1f} s", "", style="green")


def _progress(running: Demo, doing: dict[str, str], terminal: Terminal) -> Table:
    table = Table.grid(padding=(0, 1))
    for node in running.nodes:
        ready = doing[node.name] == "ready"
        mark: Any = Text(terminal.glyphs("✓"), style="green") if ready else _spinner(terminal)
        first, stop = node.layers
        table.add_row(mark, node.name, f"layers {first}:{stop}", Text(doing[node.name], style="dim"))
    return table


def _spinner(terminal: Terminal) -> Spinner:
    return Spinner("dots" if "utf" in terminal.out.encoding else "line")
