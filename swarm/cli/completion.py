"""`swarm completion`: what makes a shell complete commands and options; and which command is being typed.

A shell asks at every TAB, so only the module of the command that is being typed is imported, or none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final

import typer
from rich.text import Text
from typer._completion_classes import completion_init
from typer._completion_shared import get_completion_script

from swarm.cli.terminal import open_terminal

# What a shell sets when it asks.
VARIABLE: Final = "_SWARM_COMPLETE"
_WORDS: Final = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")  # bash's; zsh's and fish's


class Shell(StrEnum):
    """Those that it is written for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(help="Which shell is to complete.", show_default=False)],
) -> None:
    """Print what makes a shell complete commands and options.

    ```
    swarm completion bash >> ~/.bashrc
    swarm completion zsh >> ~/.zshrc
    swarm completion fish > ~/.config/fish/completions/swarm.fish
    ```
    """
    script = get_completion_script(prog_name="swarm", complete_var=VARIABLE, shell=shell.value)
    # Read by the shell itself, and not found by its name.
    open_terminal().show(Text(script.replace("#compdef swarm\n\n", "")))


def asked_by_shell(commands: Sequence[str]) -> tuple[str, ...] | None:
    """Of these the one whose options a shell asks for, none while it asks for a command; None if no shell asks."""
    if VARIABLE not in os.environ:
        return None
    completion_init()
    typed = next((os.environ[name] for name in _WORDS if name in os.environ), "")
    # The last word is still being typed, unless a blank stands behind it.
    words = typed.split()[1:] if typed.endswith((" ", "\n")) else typed.split()[1:-1]
    return tuple(word for word in words[:1] if word in commands)
