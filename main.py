"""Self-distillation fine-tuning (SDFT) on one skill: the command of arXiv 2601.19897, with the
defaults of its authors' code.

It is an order of one method and one stage, run by the code that runs all orders: the same records,
tables and page in --output_dir, and beside them the trained model, as transformers loads it.
Started again, it goes on where it stopped.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import Parser, UserError, exit_if_failed, reported

if TYPE_CHECKING:  # imports PyTorch
    from harness.base.console import Progress
    from harness.runs.order import Order

GRADER = "normalised_match"
OPTION_OF = {  # keys of the order that the options make
    "model": "--model_name",
    "skills": "--dataset_name",
    "methods.sdft.learning_rate": "--learning_rate",
    "methods.sdft.ema_alpha": "--ref_model_mixup_alpha",
    "methods.sdft.masters": "--masters",
    "budget.epochs": "--num_train_epochs",
    "budget.batch_size": "--num_prompts_per_batch",
    "rollout.max_prompt_tokens": "--max_prompt_length",
    "rollout.max_new_tokens": "--max_completion_length",
    "evaluate.examples": "--eval_examples",
    "seeds": "--seed",
    "retention": "--retention",
}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = Parser(prog="main.py", description=__doc__)

    def add(flag: str, default: Any, meaning: str, metavar: str = "N", **how: Any) -> None:
        ending = "" if default is None else f"; default {default}"
        parser.add_argument(flag, default=default, metavar=metavar, help=meaning + ending, **how)

    _add_data_options(add)
    _add_training_options(add)
    _add_length_options(add)
    _add_other_options(add)
    return parser.parse_args(words)


def _add_data_options(add: Callable[..., None]) -> None:
    add(
        "--model_name",
        "Qwen/Qwen2.5-7B-Instruct",
        "a hub id, a local folder, or `embedded`",
        "NAME",
    )
    add(
        "--dataset_name",
        "tooluse",
        "a skill of benchmarks/skills (tooluse, science, medical, wiki, ...), or a folder with "
        "train.jsonl, test.jsonl and perhaps validation.jsonl, whose rows docs/how-to/my-data.md "
        "describes (./NAME where a skill is called so too)",
        "NAME",
    )
    add(
        "--dataset_path",
        None,
        "folder of the skill's data, as its page in docs/reference/skills "
        "describes; from the hub if left out, where the skill has a source there",
        "DIR",
    )
    add(
        "--grader",
        None,
        f"one of harness/skills/graders.py, for a folder's answers; {GRADER} if left out",
        "NAME",
    )
    add(
        "--output_dir",
        None,
        "folder of the trained model, the records and the report; must be given",
        "DIR",
        required=True,
    )


def _add_training_options(add: Callable[..., None]) -> None:
    add(
        "--learning_rate",
        2e-5,
        "peak of the learning rate of AdamW, which falls to 0 along a cosine",
        "RATE",
        type=float,
    )
    add(
        "--warmup_ratio",
        0.1,
        "share of the optimizer steps along which the rate rises, from 0 to 0.2",
        "SHARE",
        type=float,
    )
    add("--num_train_epochs", 1.0, "passes over the training examples", type=float)
    add(
        "--num_prompts_per_batch",
        32,
        "prompts of an optimizer step, with one completion each",
        type=int,
    )
    add(
        "--ref_model_mixup_alpha",
        0.01,
        "the student's share in the teacher's average of weights after each optimizer step, "
        "above 0, up to 1",
        "ALPHA",
        type=float,
    )


def _add_length_options(add: Callable[..., None]) -> None:
    add(
        "--max_prompt_length",
        1024,
        "in tokens; training examples with a longer question are left out, none is cut",
        type=int,
    )
    add(
        "--max_completion_length",
        1024,
        "limit of a completion sampled in training, in tokens; at evaluation the skill's own holds",
        type=int,
    )


def _add_other_options(add: Callable[..., None]) -> None:
    add(
        "--masters",
        "device",
        "where float32 masters, AdamW's moments and the teacher's average are: `device` (22 bytes "
        "a weight on the GPU in all), `host_moments` (12 on the GPU, 8 in host memory), or `host` "
        "(8 and 12)",
        "PLACE",
        choices=("device", "host_moments", "host"),
    )
    add("--seed", 42, "of the data's order and of sampling, a whole number", type=int)
    add("--eval_examples", None, "evaluate the first N test examples; all if left out", type=int)
    add(
        "--retention",
        None,
        "a suite of benchmarks/retention, evaluated before and after; none if left out",
        "SUITE",
    )


def dataset(args: argparse.Namespace) -> dict[str, Any]:
    """The order's entry for --dataset_name.

    A name of benchmarks/skills is the skill, also beside a folder of that name: that is ./NAME.
    Raises UserError for what is neither a skill nor a folder of one.
    """
    from harness.skills.registry import get_skill

    folder = Path(os.path.expanduser(args.dataset_name))
    try:
        get_skill(args.dataset_name, "--dataset_name")
    except UserError:
        if not folder.is_dir():
            raise
    else:
        if args.grader:
            problem = f"is of a folder's answers, and {args.dataset_name} has one"
            raise UserError("--grader", problem, "leave it out")
        entry = {"name": args.dataset_name}
        if args.dataset_path:
            entry["path"] = str(Path(os.path.expanduser(args.dataset_path)).resolve())
        return entry
    if args.dataset_path:
        raise UserError(
            "--dataset_path",
            "belongs to a skill by name",
            "leave it out: --dataset_name is a folder itself",
        )
    return _folder_entry(folder.resolve(), args.grader or GRADER)


def _folder_entry(folder: Path, grader: str) -> dict[str, Any]:
    """A folder of JSONL files as a skill of the user's own."""
    files = {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
    if not files["validation"].exists():
        del files["validation"]
    paths = {split: str(path) for split, path in files.items()}
    return {"name": folder.name, **paths, "grader": grader}


def order_of(args: argparse.Namespace) -> "Order":
    """The order of one stage that the arguments describe. Raises UserError."""
    if not 0 <= args.warmup_ratio <= 0.2:
        raise UserError("--warmup_ratio", f"must be from 0 to 0.2, not {args.warmup_ratio}")
    mapping = _order_mapping(args, dataset(args))
    from harness.runs.order import Order

    order = Order(mapping, "main.py")
    skill = order.skills[0]
    if skill.teacher_template == "paper":  # the authors' code ends it with a full stop
        order.specs[skill.name].teacher_template = "released"
    steps = math.ceil(order.prompts(skill) / args.num_prompts_per_batch)
    order.methods["sdft"].config.warmup_steps = math.ceil(args.warmup_ratio * steps)
    return order


def _order_mapping(args: argparse.Namespace, skill: dict[str, Any]) -> dict[str, Any]:
    sdft = {
        "learning_rate": args.learning_rate,
        "ema_alpha": args.ref_model_mixup_alpha,
        "masters": args.masters,
    }
    if args.dataset_name == "wiki":  # the paper's teacher sees article and answer
        sdft["teacher_context"] = "both"
    return {
        "name": "main",
        "description": "SDFT on one skill, with the settings of the authors' command",
        "model": args.model_name,
        "skills": [skill],
        "budget": {"epochs": args.num_train_epochs, "batch_size": args.num_prompts_per_batch},
        "methods": {"sdft": sdft},
        "seeds": [args.seed],
        "rollout": {
            "max_prompt_tokens": args.max_prompt_length,
            "max_new_tokens": args.max_completion_length,
        },
        "evaluate": {"examples": args.eval_examples},
        "retention": args.retention,
    }


def take_out(out: Path, run: str) -> None:
    """Move the trained model from the folder of its stage into ``out``, where a user looks for it.

    A move that was cut short goes on where it stopped.
    """
    weights = out / "runs" / run / "stage-1" / "weights"
    if not weights.is_dir():
        return
    for path in sorted(weights.iterdir()):
        os.replace(path, out / path.name)
    weights.rmdir()


@contextmanager
def said_of_options() -> Iterator[None]:
    """Turn a UserError about a key of the order into one about the option that has set it."""
    try:
        yield
    except UserError as error:
        place, problem = error.place, error.problem
        where = f"{place}: {problem}".removeprefix("main.py: ")
        for key, option in OPTION_OF.items():
            written = ": ".join(key.rsplit(".", 1))
            if where.startswith(f"{written}: "):
                place, problem = option, where.removeprefix(f"{written}: ")
        raise UserError(place, _with_options(problem), _with_options(error.remedy)) from None


def _with_options(text: str) -> str:
    """A text with options in place of dotted keys, and of those of other commands."""
    for key, option in OPTION_OF.items():
        text = text.replace(key, option) if "." in key else text
    return "give another --output_dir" if text.endswith(" with --out") else text


def learn(args: argparse.Namespace, progress: "Progress", failed: dict[str, str]) -> str:
    """Run the order that the arguments describe; returns what is printed at the end.

    failed: gets the run's name and the reason, if it fails.
    """
    out = Path(args.output_dir)
    order = order_of(args)
    from harness.models.load import load_tokenizer
    from harness.report.build import write_report
    from harness.results.writer import ResultsWriter
    from harness.runs.context import check_context
    from harness.runs.sequence import run_order

    seeds = ResultsWriter(out).check(order.about())["seeds"]
    if seeds != [args.seed]:
        other = next(seed for seed in seeds if seed != args.seed)
        raise UserError(out, f"holds the model of seed {other}", "give another --output_dir")
    tokenizer, source = load_tokenizer(order.model.name, place="main.py: model")
    for note in order.check_prompts(tokenizer) + check_context(order, tokenizer, source):
        progress.say(note)
    run_order(order, out, progress, on_failure=failed.__setitem__)
    if failed:
        return ""
    take_out(out, order.runs()[0].name)
    table, page = write_report([out], show=progress.show)
    progress.reported(page)
    return f"{table}\nreport: {os.path.relpath(page)}\nmodel: {os.path.relpath(out)}"


def main(words: list[str] | None = None) -> None:
    """The command."""
    args = arguments(words)
    failed: dict[str, str] = {}
    with reported(goes_on=True):
        from harness.base.console import Progress
        from harness.watch.log import LogFile

        with Progress() as progress:
            progress.listeners.append(LogFile())
            progress.show("imports PyTorch and transformers")
            with said_of_options():
                said = learn(args, progress, failed)
        if said:
            print(said)
    exit_if_failed(failed, 1)


if __name__ == "__main__":
    main()
