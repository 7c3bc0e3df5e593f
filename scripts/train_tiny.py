"""Trains the small chat model that ships in the package, and its draft sibling, from data made right here.

    python -m scripts.train_tiny --out FOLDER
    python -m scripts.train_tiny --model tiny-draft --out FOLDER
    python -m scripts.train_tiny --eval-only swarm/models/tiny

With ``--steps`` the result depends only on the seed and on the arithmetic of the machine; with ``--minutes``
the learning rate follows the clock.  The held-out accuracy is printed and written to ``eval.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from scripts.tiny.scoring import Report, evaluate
from scripts.tiny.tokens import build_tokenizer
from scripts.tiny.training import SHAPES, Plan, Trained, log, new_model, save, train, write_json

DEFAULT_STEPS = {"tiny": 6000, "tiny-draft": 4000}
QUICK_STEPS = 60
CONTINUED_RATE = 0.35


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="tiny", help="which of the two to train")
    parser.add_argument("--out", type=Path, help="the model folder to write; only --quick goes without")
    parser.add_argument("--start", type=Path, metavar="DIR", help="go on from this model, at a lower rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="train for this many steps")
    parser.add_argument("--minutes", type=float, help="train by the clock instead of by steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0, help="how often to save and score")
    parser.add_argument("--per-task", type=int, default=60, help="held-out questions of each task")
    parser.add_argument("--quick", action="store_true", help="a smoke run of about a minute, no good model")
    parser.add_argument("--eval-only", type=Path, metavar="DIR", help="score this model again, train nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
    parser.add_argument("--show-wrong", type=int, default=0, metavar="N", help="print N wrong answers")
    arguments = parser.parse_args()
    if arguments.out is None and arguments.eval_only is None and not arguments.quick:
        parser.error("say where the model goes: --out DIR")
    return arguments


def score(model: LlamaForCausalLM, tokenizer: Tokenizer, per_task: int, show_wrong: int) -> Report:
    """Scores the model and prints the table."""
    report, wrong = evaluate(model, tokenizer, per_task)
    print(report.table(), flush=True)
    for turn, answer in wrong[:show_wrong]:
        print(f"{turn.task}: {turn.question!r} -> {answer!r}, not {turn.answer!r}", flush=True)
    return report


def train_model(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Trains one model into the folder and returns its report."""
    shape = SHAPES[arguments.model]
    start: Path | None = arguments.start
    tokenizer = Tokenizer.from_file(str(start / "tokenizer.json")) if start else build_tokenizer()
    rate = shape.rate
    if arguments.start is None:
        model = new_model(shape, tokenizer, arguments.seed)
    else:
        model = LlamaForCausalLM.from_pretrained(arguments.start, dtype=torch.float32)
        rate *= CONTINUED_RATE
    steps = arguments.steps or (QUICK_STEPS if arguments.quick else DEFAULT_STEPS[arguments.model])
    plan = Plan(arguments.seed, steps, arguments.minutes)
    per_task = 2 if arguments.quick else arguments.per_task
    parameters = model.num_parameters()
    log.info("%s: %d parameters, vocabulary %d", arguments.model, parameters, tokenizer.get_vocab_size())

    def earlier() -> dict[str, object]:
        if arguments.start is None:
            return {}
        before = json.loads((arguments.start / "eval.json").read_text(encoding="utf-8"))
        return {
            "started_from": {
                name: before[name] for name in ("seed", "steps", "tokens", "minutes", "accuracy")
            }
        }

    def describe(trained: Trained, report: Report) -> dict[str, object]:
        return {
            "model": arguments.model,
            "seed": arguments.seed,
            "parameters": parameters,
            "steps": trained.steps,
            "tokens": trained.tokens,
            "minutes": round(trained.minutes, 1),
            "loss": round(trained.loss, 4),
            **earlier(),
            **report.as_json(),
        }

    def keep(trained: Trained, questions: int) -> dict[str, object]:
        save(model, tokenizer, folder)
        report = describe(trained, score(model, tokenizer, questions, arguments.show_wrong))
        write_json(folder / "eval.json", report)
        return report

    trained = train(
        model,
        tokenizer,
        plan,
        rate,
        checkpoint=lambda so_far: keep(so_far, min(per_task, 12)),
        checkpoint_minutes=arguments.checkpoint_minutes,
    )
    return keep(trained, per_task)


def main() -> None:
    """Trains or scores, as the command line says."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    if arguments.eval_only is not None:
        model = LlamaForCausalLM.from_pretrained(arguments.eval_only, dtype=torch.float32)
        tokenizer = Tokenizer.from_file(str(arguments.eval_only / "tokenizer.json"))
        trained = json.loads((arguments.eval_only / "eval.json").read_text(encoding="utf-8"))
        report = trained | score(model, tokenizer, arguments.per_task, arguments.show_wrong).as_json()
    elif arguments.out is not None:
        report = train_model(arguments, arguments.out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report = train_model(arguments, Path(folder))
    if arguments.json is not None:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
