"""Test questions of benchmarks/skills/countdown.py, whose grader scores the answers.

The source of a function that a YAML file names with ``!function`` is part of the protocol of its
task, and so are the documents, which name the grader by the hash of its source.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def _skill():
    if str(ROOT) not in sys.path:  # lm-eval's own command may run from anywhere
        sys.path.append(str(ROOT))
    from benchmarks.skills.countdown import Countdown

    return Countdown()


def documents(**_):
    """{"test": documents with prompt, answer, numbers, target and grader}."""
    from datasets import Dataset

    skill = _skill()
    from harness.evaluation.protocol import scorer_hash

    grader = scorer_hash(skill.metrics[skill.metric])
    rows = [
        {"prompt": e.prompt[-1]["content"], "answer": e.demonstration, **e.reference}
        for e in skill.examples("test")
    ]
    return {"test": Dataset.from_list([{**row, "grader": grader} for row in rows])}


def solved(doc, results):
    """{"acc": 1.0 where the answer makes the target, by the skill's metric that counts}."""
    reference = {"numbers": doc["numbers"], "target": doc["target"]}
    return {"acc": _skill().grade(results[0], reference)}
