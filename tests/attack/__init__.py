"""Strangers against a swarm of real nodes: what harm each attack may do at most.

Each attack is a function of `tests.attack.attacks`. A process of its own runs it, with free identities, over the real
transport or over bare UDP; it knows only what every stranger knows: addresses of nodes, the protocol, all constants.
Beside it honest clients ask for answers, one that stays and new ones, and `tests.attack.arena` measures them. An
attack is bounded, whatever it does, if while it runs and after it

- every honest answer is right, token for token the undisturbed one, and none fails;
- the median time to the first token is at most `TTFT_TIMES` that of the same run before the attack (what is below
  `TTFT_FLOOR_S` counts as fast on any machine); judged with `--thorough` only, which wants a machine to itself;
- the memory of no node grows by more than `MEMORY` while the attack runs, and by more than `MEMORY_LEFT` for good;
- a third party receives at most `REFLECTED_TIMES` the bytes that the attacker has sent;
- all nodes stay up, log no traceback, and in the end hold no session.

All peers are on one machine, so attackers come from the same block of addresses as honest peers do: what a defence
by blocks of addresses would add is not counted on here. What the attacks cannot reach is said by what is not in the
list: a node that computes wrong but finite numbers is believed, and whoever saturates the wire or a processor with
more packets than it can look at is not kept out by anything here.
"""
