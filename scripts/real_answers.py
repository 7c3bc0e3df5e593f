"""Whether a swarm says what transformers says: SmolLM2 from its GGUF file, through four processes, prompt by prompt.

    python scripts/real_answers.py [--model FILE.gguf] [--quant int8] [--tokens 64] [--quick] [--json FILE]

The swarm's nodes read the file themselves; transformers dequantises it by its own code (`pip install gguf`), chat
template and tokenizer too, and continues greedily in fp32. Without --model it is the file of `swarm demo --real`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))

from common import arguments, local_swarm, report, spans

from swarm import blocking
from swarm.cli.real_model import SMOLLM2, fetch, kept_in

NODES: Final = 4
PROMPTS: Final = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Write a haiku about the sea.",
    "List three uses of a paper clip.",
    "What is 7 times 8?",
    "Translate to French: I would like a cup of coffee.",
    "Who wrote Hamlet?",
    "Write a Python function that reverses a string.",
    "Give me a recipe for pancakes.",
    "What is the difference between a virus and a bacterium?",
    "Tell me a joke about cats.",
    "Erkläre kurz, was ein Leuchtturm ist. 🗼",
)


@dataclass(frozen=True)
class Said:
    """One answer."""

    prompt_tokens: int
    tokens: list[int]
    text: str
    tokens_s: float = 0.0


def by_transformers(model: Path, prompts: Sequence[str], most: int) -> tuple[int, list[Said]]:
    """How many layers there are, and the answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where: dict[str, Any] = {"pretrained_model_name_or_path": model.parent, "gguf_file": model.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    whole = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        turns = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        made = whole.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
        told = made[0, ids.shape[1] :].tolist()
        found.append(Said(ids.shape[1], told, tokenizer.decode(told, skip_special_tokens=True)))
    return whole.config.num_hidden_layers, found


def by_swarm(
    model: Path, layers: int, prompts: Sequence[str], most: int, options: Sequence[str]
) -> Iterator[Said]:
    """The answers of as many processes as there are, each with its own part of the layers."""
    with local_swarm(model, spans(layers, NODES), options) as nodes, blocking.connect(nodes.join) as client:
        for prompt in prompts:
            generation = client.generate(prompt, max_new_tokens=most, chat=True)
            for _ in generation:
                pass
            answer = generation.answer
            assert len(answer.route.hops) == NODES
            yield Said(answer.prompt_tokens, list(answer.tokens), answer.text, answer.tokens_per_s or 0.0)


def row(prompt: str, theirs: Said, ours: Said) -> dict[str, Any]:
    """A line of the table."""
    return {
        "prompt": prompt if len(prompt) <= 40 else f"{prompt[:39]}…",
        "prompt_tokens": f"{theirs.prompt_tokens}"
        if theirs.prompt_tokens == ours.prompt_tokens
        else "differ",
        "tokens": len(theirs.tokens),
        "same_tokens": next(
            (
                at
                for at, pair in enumerate(zip(theirs.tokens, ours.tokens, strict=False))
                if len(set(pair)) > 1
            ),
            min(len(theirs.tokens), len(ours.tokens)),
        ),
        "text": "equal" if theirs.text == ours.text else "differs",
        "tokens_s": ours.tokens_s,
    }


def main() -> None:
    """Ask both, print the table, write the JSON."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", type=Path, metavar="FILE", help="another GGUF file")
    parser.add_argument("--quant", choices=("none", "int8", "int4"), default="none")
    parser.add_argument("--tokens", type=int, default=64, help="the longest answer")
    options = parser.parse_args()
    if importlib.util.find_spec("gguf") is None:
        parser.error("transformers reads GGUF files with a package that is not here: pip install gguf")
    model = options.model or fetch(SMOLLM2, kept_in())
    prompts = PROMPTS[:3] if options.quick else PROMPTS
    layers, theirs = by_transformers(model, prompts, options.tokens)
    quant = [] if options.quant == "none" else ["--quant", options.quant]
    ours = by_swarm(model, layers, prompts, options.tokens, ["--threads", "1", *quant])
    rows = [row(*each) for each in zip(prompts, theirs, ours, strict=True)]
    equal = sum(line["text"] == "equal" for line in rows)
    report({"texts": float(len(rows)), "texts_equal": float(equal)}, rows, options.json)


if __name__ == "__main__":
    main()
