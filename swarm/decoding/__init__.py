"""How tokens are chosen: generators that ask for steps and yield tokens. Knows no network and no torch."""

from swarm.decoding.asks import (
    AMATEUR,
    DRAFT,
    Ask,
    Begin,
    Continuation,
    Decoding,
    Ending,
    Landed,
    Next,
    OutOfTime,
    Strategy,
    Task,
    Together,
    Token,
)
from swarm.decoding.beams import BeamSearch
from swarm.decoding.best_of import BestOf
from swarm.decoding.contrastive import Contrastive
from swarm.decoding.grammar import Grammar
from swarm.decoding.presets import PRESETS
from swarm.decoding.sampling import DRAWING, Sampling
from swarm.decoding.search import ContrastiveSearch
from swarm.decoding.single import Greedy, Sample
from swarm.decoding.speculative import Speculative
from swarm.decoding.table import AUTO, NAMES, STRATEGIES, choose_strategy, parse_strategy

__all__ = [
    "AMATEUR",
    "AUTO",
    "DRAFT",
    "DRAWING",
    "NAMES",
    "PRESETS",
    "STRATEGIES",
    "Ask",
    "BeamSearch",
    "Begin",
    "BestOf",
    "Continuation",
    "Contrastive",
    "ContrastiveSearch",
    "Decoding",
    "Ending",
    "Grammar",
    "Greedy",
    "Landed",
    "Next",
    "OutOfTime",
    "Sample",
    "Sampling",
    "Speculative",
    "Strategy",
    "Task",
    "Together",
    "Token",
    "choose_strategy",
    "parse_strategy",
]
