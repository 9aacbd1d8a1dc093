"""Test questions of benchmarks/skills/cl.py with their label words, for scoring by likelihood.

The source of a function that a YAML file names with ``!function`` is part of the protocol of its
task.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def documents(task, data=None, **_):
    """{"test": documents with text, choices and answer (an index)} of one of the fifteen tasks.

    data: {suite: path of its data}, as an order says.
    """
    from datasets import Dataset

    if str(ROOT) not in sys.path:  # lm-eval's own command may run from anywhere
        sys.path.append(str(ROOT))
    from benchmarks.skills.cl import LabelWords

    rows = [
        {"text": question.prompt, "choices": question.labels, "answer": question.right}
        for question in LabelWords(task, (data or {}).get(LabelWords.suite)).questions()
    ]
    return {"test": Dataset.from_list(rows)}
