"""The API beside a node: `swarm serve` in a process of its own, started again when it has ended.

Apart from the node, so that no request takes the interpreter from a token on its way, and whatever HTTP brings is
parsed where neither the node's key nor its weights are.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from swarm.cli.children import Child, Children, Restarts
from swarm.cli.node_process import serve_command
from swarm.cli.sources import without_settings
from swarm.cli.telling import Tell, event, relay


class ApiBeside:
    """A context manager: the process has ended when it is left. `tell` gets its events, in another thread."""

    def __init__(self, words: Sequence[str], tell: Tell) -> None:
        self._words = list(words)
        self._tell = tell
        self._children = Children()
        self._restarts = Restarts()
        self._join: Sequence[str] = ()
        self._left = threading.Event()

    def __enter__(self) -> ApiBeside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._children.news.put(None)
        self._children.stop()

    def start(self, join: Sequence[str]) -> None:
        """Begin, by these doors of the swarm."""
        self._join = join
        self._launch()
        threading.Thread(target=self._watch, name="api", daemon=True).start()

    def _launch(self) -> Child:
        return self._children.start(
            "api", serve_command(self._join, self._words), without_settings(os.environ)
        )

    def _watch(self) -> None:
        while (news := self._children.news.get()) is not None:
            if news.event is not None:
                self._tell(news.event)
            elif news.line is not None:
                relay("api", news.line)
            elif not self._again(news.child):
                return

    def _again(self, child: Child) -> bool:
        how = child.how_it_ended()
        pause_s = self._restarts.pause_s(time.monotonic())
        if pause_s is None:
            self._tell(event("gaveup", f"the API {how}, too often: it is not started again"))
            return False
        self._tell(event("lost", f"the API {how}; it is started again in {pause_s:.0f} s"))
        if self._left.wait(pause_s):
            return False
        self._launch()
        return True
