"""How tokens are chosen: generators that ask for steps and yield tokens. Knows no network and no torch."""

from swarm.decoding.sampling import Sampling
from swarm.decoding.strategy import Ask, Emit, decode

__all__ = ["Ask", "Emit", "Sampling", "decode"]
