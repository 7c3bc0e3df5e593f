"""Which of the models that a swarm serves is meant; pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Final

from protocol.errors import ConfigError, NoRoute
from protocol.records import Announcement

# Models named in an error.
MODELS_NAMED: Final = 8
# Digits of a digest that are shown, at least.
DIGITS: Final = 8


def choose_model(
    answered: Sequence[Announcement], name: str | None, doors: Container[str], complaint: str
) -> Announcement:
    """What a node says of the model asked for: by name, or by the first digits of its digest.

    Where several are called so, or nothing was asked for, that of the first door among those that `answered`.
    Raises: ConfigError, naming the models there are; NoRoute, with the `complaint`, if nobody serves any.
    """
    models: dict[bytes, Announcement] = {}
    for said in answered:
        models.setdefault(said.digest, said)
    if not models:
        raise NoRoute("nobody in this swarm serves a model yet" + (f"; {complaint}" if complaint else ""))
    wanted = [said for said in models.values() if name is None or is_called(name, said)]
    if len(wanted) == 1 or (wanted and wanted[0].peer in doors):
        return wanted[0]
    if not wanted:
        raise ConfigError(f"nobody serves the model {name!r}; this swarm serves {_listed(models.values())}")
    raise ConfigError(f"several models could be meant, {_listed(wanted)}: choose one by more of its digits")


def is_called(name: str, said: Announcement) -> bool:
    """Whether a node's model has this name, with or without its owner's, or a digest that begins so."""
    hexadecimal = len(name) >= 4 and said.digest.hex().startswith(name.lower())
    return hexadecimal or name in (said.model, said.model.rsplit("/", 1)[-1])


def _listed(models: Iterable[Announcement]) -> str:
    """Names and as many digits as tell the models apart."""
    said = sorted(models, key=lambda a: (a.model, a.digest))
    digests = [a.digest.hex() for a in said]
    digits = next(n for n in range(DIGITS, 65) if len({d[:n] for d in digests}) == len(digests))
    names = [f"{a.model} ({digest[:digits]})" for a, digest in zip(said, digests, strict=True)]
    more = f" and {len(names) - MODELS_NAMED} more" if len(names) > MODELS_NAMED else ""
    return ", ".join(names[:MODELS_NAMED]) + more
