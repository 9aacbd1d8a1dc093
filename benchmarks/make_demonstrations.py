"""Worked answers to the hub's Science questions, which come without any.

    python -m benchmarks.make_demonstrations --out DIR

SFT and SDFT learn the skill `science` from them. The paper had GPT-4o answer each question up to 8
times and kept a correct answer (arXiv 2601.19897). Here a model on an OpenAI-compatible server
(JUDGE_BASE_URL, JUDGE_MODEL, JUDGE_API_KEY) is asked the question as the skill puts it, without the
solution: once at temperature 0, then at temperature 1 for as long as the skill's grader finds no
right answer. DIR gets train.jsonl, validation.jsonl and test.jsonl in the authors' columns, the
hub's split; `path: DIR` reads it. Replies are kept: the same command goes on where it stopped, and
pays for nothing twice.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.server import add_server_options, open_server, server_config
from harness.base.errors import Parser, UserError, reported
from harness.base.files import write_jsonl
from harness.base.places import check_folder
from harness.base.thoughts import THINK
from harness.evaluation.endpoint import Endpoint, Refused, Reply
from harness.skills.registry import get_skill
from harness.skills.skill import Example, Skill

# Replies are kept under this name. Whoever changes what is asked raises its number.
PURPOSE = "science demonstrations/1"


def demonstrations(
    skill: Skill,
    examples: Sequence[Example],
    endpoint: Endpoint,
    tries: int,
    say: Callable[[str], object] = lambda line: None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, str]:
    """{id: the first right answer} of the examples that get one in ``tries``.

    say: gets a line after each try; progress: ``f(done, of all)``. Raises EndpointDown.
    """
    answers: dict[str, str] = {}
    unanswered = list(examples)
    for number in range(1, tries + 1):
        if not unanswered:
            break
        replies = endpoint.ask_all(
            [_prompt(example) for example in unanswered],
            f"{PURPOSE}, try {number}",
            progress,
            temperature=int(number > 1),
        )
        for example, reply in zip(unanswered, replies, strict=True):
            answer = _answer(reply)
            if skill.metrics[skill.metric](answer, example.reference) == 1.0:
                answers[example.id] = answer
        unanswered = [example for example in unanswered if example.id not in answers]
        say(f"try {number}: {len(answers):,} of {len(examples):,} questions answered right")
    return answers


def _prompt(example: Example) -> str:
    return "\n\n".join(turn["content"].strip() for turn in example.prompt)


def _answer(reply: Reply | Refused) -> str:
    """The text after the reasoning of a reply; nothing where either was cut off."""
    if isinstance(reply, Refused) or reply.finish not in ("stop", None):
        return ""
    return "" if THINK.unfinished(reply.text) else THINK.answer(reply.text).strip()


def row(example: Example, split: str, answers: Mapping[str, str]) -> dict[str, Any]:
    """An example in the authors' columns.

    A test row has a prompt, the others messages and, where there is a right answer, the
    demonstration.
    """
    if split == "test":
        return {"prompt": example.prompt, "answer": example.reference}
    demonstration = {}
    if example.id in answers:
        demonstration["output_text"] = answers[example.id]
    return {"messages": example.prompt, **demonstration, "answer": example.reference}


def options() -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.make_demonstrations", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="gets train.jsonl, validation.jsonl and test.jsonl",
    )
    parser.add_argument(
        "--path", type=Path, metavar="FOLDER", help="with the hub's file; downloaded if left out"
    )
    parser.add_argument(
        "--tries",
        type=int,
        default=8,
        help="of a question, until an answer is right (default %(default)s)",
    )
    add_server_options(parser)
    return parser.parse_args()


def make(args: argparse.Namespace) -> str:
    """Writes the files; returns what is in them. Raises UserError."""
    if args.tries < 1:
        raise UserError("--tries", f"cannot be {args.tries}", "it is above 0")
    config = server_config(args, max_tokens=2048)
    place = {} if args.path is None else {"path": args.path}
    skill = get_skill("science", "SKILL", source="hub", **place)
    splits = {split: skill.examples(split) for split in ("train", "validation", "test")}
    answers: dict[str, dict[str, str]] = {"test": {}}
    with open_server(config) as (endpoint, progress):
        for split in ("train", "validation"):
            answers[split] = demonstrations(
                skill,
                splits[split],
                endpoint,
                args.tries,
                lambda line: progress.say(f"{split}, {line}"),
                lambda done, total: progress.show(f"requests {done}/{total}"),
            )
    if not answers["train"]:
        raise UserError(
            f"model {config.model}",
            "gave no right answer in the form that the skill asks for",
            "take a model that follows the form, or more --tries",
        )
    questions = len(splits["train"])
    # As in the paper, nothing is learned from a question without a right answer. One of validation
    # can still be graded.
    splits["train"] = [e for e in splits["train"] if e.id in answers["train"]]
    for split, examples in splits.items():
        rows = [row(example, split, answers[split]) for example in examples]
        write_jsonl(args.out / f"{split}.jsonl", rows)
    return (
        f"train {len(splits['train']):,} of {questions:,} questions, "
        f"validation {len(splits['validation']):,} "
        f"({len(answers['validation']):,} with a demonstration), "
        f"test {len(splits['test']):,}: {args.out}"
    )


def main() -> None:
    args = options()
    with reported(args.out):
        check_folder(args.out)
        print(make(args))


if __name__ == "__main__":
    main()
