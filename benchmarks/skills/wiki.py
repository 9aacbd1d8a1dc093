"""Knowledge of arXiv 2601.19897 (section 4, table 1): Wikipedia articles on disasters of 2025.

A row has ``question``, ``answer`` and ``article`` (the source text; wanted in train). The authors'
set is not released, so the data come from a folder: train, test, and optionally validation and
``ood`` (indirect questions). The paper grades with a judge model (docs/how-to/judge.md); the
graders here need none.
"""

from benchmarks.skills._sources import PaperSkill, answer_text, on_answer, text
from harness.skills.signs import contains, normalised_match, token_f1
from harness.skills.skill import Example


class Wiki(PaperSkill):
    """reference: ``{"question", "answer"}``; source: the article."""

    name = "wiki"
    description = (
        "Knowledge of the paper: questions about Wikipedia articles on disasters of 2025, from a "
        "folder"
    )
    judge = "knowledge"
    metrics = {g.__name__: on_answer(g) for g in (contains, normalised_match, token_f1)}
    wanted = "train.jsonl, test.jsonl and optionally ood.jsonl"

    def example(self, row, split, number, place):
        question, answer = text(row, ["question"], place), answer_text(row, ["answer"], place)
        article = (
            text(row, ["article"], place)
            if split == "train" or row.get("article") is not None
            else None
        )
        return Example(
            f"{split}/{number}",
            [{"role": "user", "content": question}],
            answer,
            {"question": question, "answer": answer},
            article,
        )
