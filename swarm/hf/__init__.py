"""A client in the place of a model of transformers, for code that calls `generate`. Needs torch and transformers.

with swarm.blocking.connect("/ip4/…") as client:
    model = swarm.hf.SwarmModel(client)
    ids = model.generate(**tokenizer("Why is the sky blue?", return_tensors="pt"), max_new_tokens=40)
"""

from swarm.hf.model import SwarmModel

__all__ = ["SwarmModel"]
