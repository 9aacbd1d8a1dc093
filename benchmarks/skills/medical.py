"""Medical of arXiv 2601.19897 (section 4): HuatuoGPT-o1's questions in English, arXiv 2412.18925.

Train rows have a question and a response: ``question``, ``response``; on the hub ``Question``,
``Response``, without ``Complex_CoT``, as in the paper; or ``messages`` [user, assistant]. The other
rows have a question and an answer: ``question``, ``answer``; on the hub ``Open-ended Verifiable
Question``, ``Ground-True Answer``. The paper grades with a judge model (docs/how-to/judge.md); the
graders here need none.
"""

from benchmarks.skills._sources import (
    PaperSkill,
    answer_text,
    chat,
    draw,
    on_answer,
    question_of,
    read_rows,
    text,
)
from harness.base.errors import UserError
from harness.skills.signs import contains, normalised_match, token_f1
from harness.skills.skill import Example
from harness.skills.words import normalise

QUESTION = ("question", "Question", "Open-ended Verifiable Question")
RESPONSE = ("response", "Response")
ANSWER = ("answer", "Ground-True Answer", *RESPONSE)
TRAIN, VERIFIABLE = "medical_o1_sft.json", "medical_o1_verifiable_problem.json"
# Drawn from the verifiable questions. The paper names no size of the validation split.
SIZES = {"test": 1000, "validation": 500}


class Medical(PaperSkill):
    """About 20,000 questions with responses to train on, and other, verifiable ones as the test."""

    name = "medical"
    description = "Medical of the paper: HuatuoGPT-o1's questions in English (Apache-2.0)"
    judge = "medical"
    metrics = {g.__name__: on_answer(g) for g in (contains, normalised_match, token_f1)}
    hub = {
        TRAIN: (
            "FreedomIntelligence/medical-o1-reasoning-SFT",
            "fc2c9e8a37b38f38da6d449564a8c350b244aef4",
        ),
        VERIFIABLE: (
            "FreedomIntelligence/medical-o1-verifiable-problem",
            "46d5175eb74fdef3516d51d52e8c40db04bbdf35",
        ),
    }

    def example(self, row, split, number, place):
        if row.get("messages") is not None:
            question, response = (
                turn["content"] for turn in chat(row, "messages", (["user", "assistant"],), place)
            )
            row = {"question": question, "response": response}
        question = text(row, QUESTION, place)
        answer = answer_text(row, RESPONSE if split == "train" else ANSWER, place)
        response = (
            text(row, RESPONSE, place) if any(row.get(n) is not None for n in RESPONSE) else None
        )
        return Example(
            f"{split}/{number}",
            [{"role": "user", "content": question}],
            response,
            {"question": question, "answer": answer},
        )

    def from_hub(self, split):
        file = self.hub_file(TRAIN if split == "train" else VERIFIABLE)
        rows = [
            self.example(row, split, number, f"{file}, row {number}")
            for number, row in read_rows(file)
        ]
        if split == "train":
            return rows
        # The responses were written for a part of the verifiable questions. These are no test.
        trained = {normalise(question_of(e)) for e in self.examples("train")}
        rows = {question_of(e): e for e in rows if normalise(question_of(e)) not in trained}
        questions = draw(rows)
        test, total = SIZES["test"], sum(SIZES.values())
        if len(questions) < total:
            raise UserError(
                file,
                f"{len(questions)} of its questions are not in the train split, {total} are wanted",
                "give the files of the pinned revisions",
            )
        return [rows[q] for q in (questions[:test] if split == "test" else questions[test:total])]
