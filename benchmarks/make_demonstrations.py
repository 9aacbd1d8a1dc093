"""Worked answers to the hub's Science questions, which come without any: what SFT and SDFT learn
the skill `science` from.

    python -m benchmarks.make_demonstrations --out DIR

The paper had GPT-4o answer each question up to 8 times and kept a correct answer (arXiv
2601.19897). Here a model on an OpenAI-compatible server (JUDGE_BASE_URL, JUDGE_MODEL,
JUDGE_API_KEY) is asked the question as the skill puts it, without the solution: once at temperature
0, then at temperature 1 for as long as the skill's grader finds no right answer. DIR gets
train.jsonl, validation.jsonl and test.jsonl in the authors' columns, the hub's split; `path: DIR`
reads it. Replies are kept: the same command goes on where it stopped, and pays for nothing twice.
"""

import sys
from pathlib import Path

from harness.base.console import Progress
from harness.base.errors import Parser, UserError, reported
from harness.base.files import write_jsonl
from harness.evaluation.endpoint import EndpointDown, Refused, endpoint_config
from harness.evaluation.judge import open_endpoint
from harness.skills.registry import get_skill

PURPOSE = "science demonstrations/1"  # its number is raised by whoever changes what is asked


def demonstrations(skill, examples, endpoint, tries, say=lambda line: None, progress=None):
    """{id: the first right answer} of the examples that got one in ``tries``. Raises EndpointDown."""
    found, open_ = {}, list(examples)
    for number in range(1, tries + 1):
        if not open_:
            break
        prompts = ["\n\n".join(turn["content"].strip() for turn in e.prompt) for e in open_]
        replies = endpoint.ask_all(
            prompts, f"{PURPOSE}, try {number}", progress, temperature=int(number > 1)
        )
        for example, reply in zip(open_, replies):
            answer = _answer(reply)
            if skill.metrics[skill.metric](answer, example.reference) == 1.0:
                found[example.id] = answer
        open_ = [e for e in open_ if e.id not in found]
        say(f"try {number}: {len(found):,} of {len(examples):,} questions answered right")
    return found


def _answer(reply):
    """What follows the reasoning of a reply; nothing where either was cut off."""
    if isinstance(reply, Refused) or reply.finish not in ("stop", None):
        return ""
    answer = reply.text.rpartition("</think>")[2].strip()
    return "" if "<think>" in answer else answer


def row(example, split, found):
    """In the authors' columns: a test row has a prompt, the others messages and, where one was
    found, the demonstration.
    """
    if split == "test":
        return {"prompt": example.prompt, "answer": example.reference}
    shown = {"output_text": found[example.id]} if example.id in found else {}
    return {"messages": example.prompt, **shown, "answer": example.reference}


def main():
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
    parser.add_argument("--base-url", help="default: $JUDGE_BASE_URL")
    parser.add_argument("--model", help="default: $JUDGE_MODEL; the key is $JUDGE_API_KEY")
    args = parser.parse_args()
    with reported(args.out):
        if args.tries < 1:
            raise UserError("--tries", f"cannot be {args.tries}", "it is above 0")
        given = {k: v for k, v in (("base_url", args.base_url), ("model", args.model)) if v}
        config = endpoint_config({"max_tokens": 2048, **given}, "server")
        skill = get_skill(
            "science", "SKILL", source="hub", **({} if args.path is None else {"path": args.path})
        )
        splits = {split: skill.examples(split) for split in ("train", "validation", "test")}
        endpoint, progress, made = open_endpoint(config), Progress(), {"test": {}}
        try:
            for split in ("train", "validation"):
                made[split] = demonstrations(
                    skill,
                    splits[split],
                    endpoint,
                    args.tries,
                    lambda line: progress.say(f"{split}, {line}"),
                    lambda done, total: progress.show(f"requests {done}/{total}"),
                )
        except EndpointDown as down:
            raise UserError(
                f"server {config.base_url}",
                f"gives no answers ({down})",
                "what it has answered is kept; start the same command again when it is back",
            ) from None
        finally:
            progress.say(endpoint.summary())
        if not made["train"]:
            raise UserError(
                f"model {config.model}",
                "gave no right answer in the form that the skill asks for",
                "take a model that follows the form, or more --tries",
            )
        asked = len(splits["train"])
        # As in the paper, nothing is learned from a question without a right answer; one of
        # validation can still be graded.
        splits["train"] = [e for e in splits["train"] if e.id in made["train"]]
        for split, examples in splits.items():
            write_jsonl(args.out / f"{split}.jsonl", [row(e, split, made[split]) for e in examples])
        print(
            f"train {len(splits['train']):,} of {asked:,} questions, validation {len(splits['validation']):,} "
            f"({len(made['validation']):,} with a demonstration), test {len(splits['test']):,}: {args.out}"
        )


if __name__ == "__main__":
    sys.exit(main())
