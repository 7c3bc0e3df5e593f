"""`swarm up`: nodes and the API on this machine in one go."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from swarm import entry
from swarm.cli import local
from swarm.cli.children import News, Restarts, own_environment
from swarm.cli.connection import working
from swarm.cli.local_nodes import LocalNode, LocalNodes, Place, failed, with_port
from swarm.cli.node_process import Told
from swarm.cli.options import taking
from swarm.cli.serve import listening
from swarm.cli.telling import Tell, event, relay, teller
from swarm.cli.terminal import open_terminal
from swarm.cli.up_options import Plan, UpOptions, plan
from swarm.client import Client
from swarm.events import OnEvent
from swarm.portal import Portal

if TYPE_CHECKING:
    from swarm.http.settings import Settings

# Of what a node tells while it starts, what is shown of several.
_SHOWN: Final = ("fetching", "fetched", "metrics", "serving", "warned", "noted")


def _up(options: UpOptions) -> None:
    """Run a model on this machine: nodes, the API, and the page, all at once.

    All layers are on one node if the memory allows it; what does not fit is left to other machines, which join by
    the line that is printed. A node that dies is started again. Ctrl-C ends everything.

    ```
    swarm up
    swarm up Qwen/Qwen3-8B --quant int8
    swarm up --join ADDRESS
    ```
    """
    options.check()
    settings = options.settings()
    with working(open_terminal(), f"looking at {options.model}") if options.model else ExitStack():
        planned = plan(options)
    tell = teller(options.as_json or options.log_json)
    tell(event("planned", planned.line, whole=planned.whole))
    if planned.whole and (model := planned.tasks[0].model) is not None:
        local.fetch(model)
    nodes = LocalNodes(options.doors, own_environment())
    nodes.on_line = relay
    everything = Up(options, planned, nodes, tell)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: everything.end())
    try:
        everything.run(settings)
    finally:
        nodes.stop()


# A function with the name of the command.
up = taking(UpOptions, _up)


class Up:
    """All that runs, from the start of the nodes until they have been told to end."""

    def __init__(self, options: UpOptions, planned: Plan, nodes: LocalNodes, tell: Tell) -> None:
        self._options = options
        self._plan = planned
        self._nodes = nodes
        self._tell = tell
        self._served = trio.Event()  # by nodes that are ready; set in the loop of the client
        self._digest: str | None = None
        self._addrs: list[str] = []  # of the first node
        self._restarts: dict[LocalNode, Restarts] = {}
        self._ending = False

    def end(self) -> None:
        """Have `run` return soon. Safe in any thread and between any two instructions, as in a signal's handler."""
        self._ending = True
        self._nodes.children.news.put(None)  # which may be entered again while it is entered

    def run(self, settings: Settings) -> None:
        """Return when it is told to end. Raises: ConfigError; NodeFailed, if a node cannot be kept running."""
        from swarm.http.serve import serve

        with Portal() as portal, serve(portal, self._enter, settings) as found:
            found.ended.add_done_callback(lambda _: self.end())
            at_once, for_clients = listening(found.url, settings)
            self._tell(at_once)
            self._launch()
            self._wait_until_ready()
            if not self._ending:
                portal.soon(self._served.set)
                self._say_where(found.url)
                self._tell(for_clients)
                self._keep()
            if found.ended.done():
                found.ended.result()

    @asynccontextmanager
    async def _enter(self, on_event: OnEvent) -> AsyncIterator[Client]:
        await self._served.wait()
        async with entry.connect(
            *self._nodes.doors,
            model=self._digest,
            # The nodes that are ours have the weights that were meant, whatever was served here before.
            remember=bool(self._options.doors),
            on_event=on_event,
        ) as client:
            yield client

    # --- starting

    def _launch(self) -> None:
        beside = self._options.listen
        extra = [*["--log-json"] * self._options.log_json, *["-v"] * self._options.verbose]
        for number, task in enumerate(self._plan.tasks, 1):
            place = Place(f"node {number}", self._options.folder / f"up-{number}", with_port(beside))
            metrics = self._options.metrics_of(number - 1)
            self._nodes.launch(place, task.with_options(*extra, *metrics))
            beside = _any_port(place.listen)

    def _wait_until_ready(self) -> None:
        """Return when all are, or when it was told to end. Raises: NodeFailed."""
        several = len(self._plan.tasks) > 1
        with working(open_terminal(), "starting"):
            for node, news in self._nodes.progress(None):
                self._learn(node, news)
                if news.name in _SHOWN or (not several and news.name != "invitation"):
                    self._tell(_named(news, node if several else None))

    def _learn(self, node: LocalNode, news: Told) -> None:
        if news.name == "serving":
            self._digest = news.fields["digest"]
        if news.name == "ready" and node is self._nodes.nodes[0]:
            self._addrs = news.fields["addrs"]

    def _say_where(self, url: str) -> None:
        far = [addr for addr in self._addrs if not addr.startswith(("/ip4/127.", "/ip6/::1/"))]
        door = (far or self._addrs)[0]
        self._tell(event("join", f"others join with:  swarm node --join {door}", address=door))
        self._tell(event("chat", f"others chat with:  swarm chat --join {door}", address=door))
        self._tell(event("up", f"the page:  {url}/", url=f"{url}/"))

    # --- running

    def _keep(self) -> None:
        """Start what ends again, until it is told to end. Raises: NodeFailed."""
        due: dict[LocalNode, float] = {}
        while True:
            wait_s = max(0.0, min(due.values()) - time.monotonic()) if due else None
            try:
                news = self._nodes.children.news.get(timeout=wait_s)
            except queue.Empty:
                for ready in [node for node, at in due.items() if at <= time.monotonic()]:
                    del due[ready]
                    self._nodes.relaunch(ready)
                continue
            if news is None:
                return
            node = self._nodes.node_of(news.child)
            if node is None:  # of a process that was replaced
                continue
            if (pause_s := self._hear(node, news)) is not None:
                due[node] = time.monotonic() + pause_s
            elif not due and not any(other.running for other in self._nodes.nodes):
                raise failed(node, "and all others have ended too often to be started again")

    def _hear(self, node: LocalNode, news: News) -> float | None:
        """Pass it on; after how long to start the node again, if it has ended."""
        if news.line is not None:
            relay(node.name, news.line)
        if news.event is not None and news.event.name in ("ready", "warned", "noted"):
            self._tell(_named(news.event, node))
        if not news.ended:
            return None
        how = news.child.how_it_ended()
        pause_s = self._restarts.setdefault(node, Restarts()).pause_s(time.monotonic())
        if pause_s is not None:
            self._tell(event("lost", f"{node.name} {how}; it is started again in {pause_s:.0f} s"))
            return pause_s
        self._tell(event("lost", f"{node.name} {how}, too often: it is not started again"))
        return None


def _named(news: Told, node: LocalNode | None) -> Told:
    if node is None:
        return news
    return Told(news.name, f"{node.name}: {news.text}", {**news.fields, "node": node.name})


def _any_port(listen: str) -> str:
    """The same address with any port."""
    before, _, after = listen.partition("/udp/")
    return f"{before}/udp/0/{after.partition('/')[2]}"
