"""Tries every family of transformers that is named in shapes.py, as a tiny random model.

python -m benchmarks.families                    # all, some 40 seconds
python -m benchmarks.families falcon mamba       # these
python -m benchmarks.families --page             # and writes docs/reference/families.md
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from benchmarks.families.shapes import FAMILIES
from benchmarks.families.trial import LENGTHS, NEW_TOKENS, Trial, tried
from harness.base.errors import Parser, UserError, did_you_mean, reported
from harness.base.files import write_text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "families.md"
HEAD = ("family", "trains", "sampler", "shares prompts", "sampling", "training", "seconds")
WAYS = {"buffers": "own", "generate": "`generate`"}


def cells(trial: Trial) -> tuple[str, ...]:
    """A row of the table."""
    if trial.problem:
        return (trial.name, "no", "–", "–", "–", "–", f"{trial.seconds:.1f}")
    way = trial.way.replace("generate", "`generate`").replace("buffers", "own")
    shares = "yes" if trial.shares else "no"
    numbers = f"{trial.sampling:.0e}", f"{trial.training:.0e}", f"{trial.seconds:.1f}"
    return (trial.name, "yes", way, shares, *numbers)


def page(trials: Sequence[Trial], seconds: float) -> str:
    """docs/reference/families.md."""
    works = [trial for trial in trials if not trial.problem]
    refused = [trial for trial in trials if trial.problem]
    own = sum(trial.way == "buffers" for trial in works)
    lines = [
        "# Families of models",
        "",
        "<!-- Made by python -m benchmarks.families --page. -->",
        "",
        f"{len(trials)} causal families of transformers {transformers.__version__}, each a random "
        f"model of two layers in float32: {len(works)} train and sample, {own} of them by the "
        f"harness's own sampler, the others by transformers' `generate` with the model's own cache "
        "([how it is chosen](../how-to/my-model.md#families)). A hub model loads the same classes.",
        "",
        f"Prompts of {', '.join(map(str, LENGTHS))} tokens got two sampled answers each, of up to "
        f"{NEW_TOKENS} tokens; windows are 8 tokens. `sampling` and `training` are the largest "
        "distances, in nats, from the model's own pass over each row alone, without padding and "
        f"cache. The command took {seconds:.0f} s on one CPU core.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---|---|---|---|--:|--:|--:|",
        *("| " + " | ".join(cells(trial)) + " |" for trial in works),
        "",
        "## Refused",
        "",
        "In one line, before anything is measured.",
        "",
        "| family | why |",
        "|---|---|",
        *(f"| {trial.name} | {_reason(trial)} |" for trial in refused),
    ]
    return "\n".join(lines) + "\n"


def _reason(trial: Trial) -> str:
    """The problem without the family's name and without the remedy."""
    text = trial.problem.partition("; ")[0].removeprefix(f"{trial.name} ")
    text = text.removeprefix(f"({trial.model}) ").replace("|", "\\|").replace("<", "&lt;")
    words = text.split(" ")
    return " ".join(words[:19]) + (" …" if len(words) > 19 else "")


def main(words: list[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        prog="python -m benchmarks.families",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="all if left out")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.name}; of all families")
    with reported():
        args = parser.parse_args(words)
        for name in args.names:
            if name not in FAMILIES:
                raise UserError("FAMILY", f"unknown {name!r}", did_you_mean(name, FAMILIES))
        transformers.logging.set_verbosity_error()
        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        start = time.perf_counter()
        trials = []
        for name in args.names or FAMILIES:
            trial = tried(name)
            trials.append(trial)
            print("  ".join(f"{cell:<16}" for cell in cells(trial)), trial.problem, flush=True)
        seconds = time.perf_counter() - start
        works = sum(not trial.problem for trial in trials)
        print(f"{works} of {len(trials)} train and sample, {seconds:.0f} s")
        if args.page and not args.names:
            write_text(PAGE, page(trials, seconds))


if __name__ == "__main__":
    main()
