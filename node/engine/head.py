"""Candidates from logits: the best of each row, those asked for, and the normaliser."""

from __future__ import annotations

import torch

from protocol.candidates import Candidates, Want
from protocol.errors import Malformed


def of_each(logits: torch.Tensor, want: Want) -> list[Candidates | Malformed]:
    """What `want` asks of each row of logits [rows, vocabulary], in arrays of its own; or why it has none."""
    try:
        found = candidates(logits, want)
    except Malformed as error:
        if len(logits) == 1:
            return [error]
        return [given for row in logits for given in of_each(row[None], want)]
    rows = (slice(row, row + 1) for row in range(len(logits)))
    return [
        Candidates(
            found.ids[row].copy(), found.logits[row].copy(), found.lse[row].copy(), found.asked[row].copy()
        )
        for row in rows
    ]


def candidates(logits: torch.Tensor, want: Want, states: torch.Tensor | None = None) -> Candidates:
    """What `want` asks of logits [rows, vocabulary], with the states [rows, hidden] that they were made of if it asks
    for these. Ties go to the lower id, on every machine alike.

    Raises: Malformed, if the states that came in are so large that the logits overflow.
    """
    logits = logits.float()
    scaled = logits if want.temperature == 1.0 else logits / want.temperature
    lse = torch.logsumexp(scaled, 1)
    if not bool(lse.isfinite().all()):
        raise Malformed("the hidden states lead to logits that are not finite")
    vocab_size = logits.shape[1]
    top = min(want.top or vocab_size, vocab_size)
    if top == 1:
        ids = logits.argmax(1, keepdim=True)  # torch: the first of equal ones
    elif top == vocab_size:
        ids = logits.sort(dim=1, descending=True, stable=True).indices
    else:
        ids = _top(logits, top)
    asked = logits[:, list(want.ids)] if want.ids else logits[:, :0]
    return Candidates(
        ids.to(torch.int32).cpu().numpy(),
        logits.gather(1, ids).cpu().numpy(),
        lse.cpu().numpy(),
        asked.cpu().numpy(),
        None if states is None else states.float().cpu().numpy(),
    )


def _top(logits: torch.Tensor, top: int) -> torch.Tensor:
    """Ids [rows, top]. topk leaves open which of equal logits it takes, so it only gives the threshold."""
    least = logits.topk(top, dim=1, sorted=False).values.amin(1, keepdim=True)
    rows = []
    for row, bar in zip(logits, least, strict=True):
        ids = (row >= bar).nonzero()[:, 0]  # rising
        order = row[ids].sort(descending=True, stable=True).indices[:top]
        rows.append(ids[order])
    return torch.stack(rows)
