"""Runs one attack until it is killed: `python -m tests.attack.attacker NAME ADDRESSES OPTIONS`, the last two in JSON.

It prints "begun" once it knows its victims, and may print what it achieves.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import trio

from tests.attack.attacks import ATTACKS
from tests.attack.survey import ending_with_parent, survey


async def attack(name: str, addrs: list[str], options: dict[str, Any]) -> None:
    """Learn what the nodes say of themselves, then attack them."""
    field = await survey(addrs, **options)
    print("begun", flush=True)
    async with ending_with_parent():
        await ATTACKS[name](field)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(attack, sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]))
