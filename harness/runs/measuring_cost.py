"""What the measurements of an order cost before it runs, in seconds."""

from collections.abc import Iterable, Mapping

from transformers import PreTrainedTokenizerBase

from harness.base.errors import UserError
from harness.evaluation.loaded_tasks import GENERATED_TOKENS, think_end_token
from harness.evaluation.suite import Suite
from harness.learning.outlook import Outlook
from harness.results.writer import ResultsWriter
from harness.runs.cost import Machine, Memory
from harness.runs.order import Order
from harness.runs.order_cost import SkillCost
from harness.skills.skill import Skill
from harness.skills.templates import ORACLE_TEMPLATE

GENERAL_PROMPT = 40  # tokens of a prompt of the drift with its chat template


def example_count(skill: Skill, split: str, most: int | None) -> int:
    """Examples of a split that are measured: the first ``most``, or all."""
    count = len(skill.examples(split))
    return count if most is None else min(count, most)


class MeasuringCost:
    """Seconds of each kind of measurement of a model.

    outlooks: what is known of each skill, by its name.
    """

    def __init__(
        self, order: Order, machine: Machine, memory: Memory, outlooks: Mapping[str, Outlook]
    ) -> None:
        self.order = order
        self.machine = machine
        self.memory = memory
        self.outlooks = outlooks

    def skill(self, skill: Skill) -> SkillCost:
        settings = self.order.evaluate
        answers = self._answers(skill, self.order.splits(skill))
        reading = self.outlooks[skill.name].reading(answers, self._evaluated_at_once(skill))
        return SkillCost(
            answers=answers,
            evaluation=self.machine.forward(reading) + self._sampling(skill, answers),
            pass_at_k=self._pass_at_k(skill),
            kl=self._kl(skill),
            teacher=self._teacher(skill) if settings.teacher else 0.0,
            oracle=self._oracle(skill) if settings.oracle else 0.0,
            oracle_answers=self._answers(skill, self.order.reported(skill))
            if settings.oracle
            else 0,
        )

    def _answers(self, skill: Skill, splits: Iterable[str]) -> int:
        most = self.order.evaluate.examples
        return sum(example_count(skill, split, most) for split in splits)

    def _sampling(self, skill: Skill, rows: int, prompt: float | None = None) -> float:
        """Seconds of so many answers; prompt: tokens of what is asked, if not the skill's own."""
        at_once = self._evaluated_at_once(skill, prompt)
        return self.machine.sample(rows, self.order.limit(skill), at_once)

    def _evaluated_at_once(self, skill: Skill, prompt: float | None = None) -> int:
        """Answers of an evaluation that are sampled at once; prompt: as in ``_sampling``."""
        prompt = self.outlooks[skill.name].prompt if prompt is None else prompt
        limit = self.order.limit(skill)
        return self.order.evaluate.batch_size or self.memory.rows_at_once(prompt, limit)

    def _pass_at_k(self, skill: Skill) -> float:
        pass_at_k = self.order.pass_at_k
        if pass_at_k is None:
            return 0.0
        rows = example_count(skill, self.order.evaluate.split, pass_at_k.prompts)
        return self._sampling(skill, rows * pass_at_k.samples)

    def _kl(self, skill: Skill) -> float:
        """The model's answers, and four passes over them and over those of the base.

        The base's answers are sampled once for all models.
        """
        kl = self.order.kl
        if kl is None:
            return 0.0
        rows = example_count(skill, self.order.evaluate.split, kl.prompts)
        length = self.outlooks[skill.name].prompt + self.order.limit(skill)
        return self._sampling(skill, rows) + self.machine.forward(4 * rows * length)

    def drift_after(self, learned: list[Skill]) -> float:
        """Seconds of one measurement of the drift in the stage of the last of these skills."""
        order = self.order
        if order.drift is None:
            return 0.0
        skills = learned[-1:] * ("new" in order.drifts) + learned[:-1] * ("old" in order.drifts)
        tokens = sum(self._drift_tokens(skill) for skill in skills)
        if "general" in order.drift.along:
            tokens += self._drift_tokens(None)
        return self.machine.forward(tokens)

    def _drift_rows(self, skill: Skill | None) -> tuple[int, float, int]:
        """(answers of the base, tokens of a prompt, of an answer) of a skill, or general ones."""
        drift = self.order.drift
        assert drift is not None
        if skill is None:
            return drift.prompts, GENERAL_PROMPT, drift.max_new_tokens
        rows = example_count(skill, self.order.evaluate.split, drift.prompts)
        limit = min(drift.max_new_tokens, self.order.limit(skill))
        return rows, self.outlooks[skill.name].prompt, limit

    def _drift_tokens(self, skill: Skill | None) -> float:
        rows, prompt, limit = self._drift_rows(skill)
        return rows * (prompt + limit)

    def base_answers(self) -> float:
        """Seconds of the base's answers for the drift, which are sampled and scored once."""
        order = self.order
        if order.drift is None:
            return 0.0
        asked: list[Skill | None] = list(order.skills) if order.drifts else []
        asked += [None] * ("general" in order.drift.along)
        seconds = 0.0
        for skill in asked:
            rows, prompt, limit = self._drift_rows(skill)
            at_once = order.evaluate.batch_size or self.memory.rows_at_once(prompt, limit)
            seconds += self.machine.sample(rows, limit, at_once)
            seconds += 2 * self.machine.forward(rows * (prompt + limit))
        return seconds

    def _teacher(self, skill: Skill) -> float:
        order, machine = self.order, self.machine
        outlook = self.outlooks[skill.name]
        teacher_prompt = outlook.teacher_prompt()
        split = order.teacher_split(skill)
        rows = example_count(skill, split, order.evaluate.examples)
        seconds = self._sampling(skill, rows, teacher_prompt)
        seconds += machine.forward(rows * teacher_prompt)
        if split not in order.splits(skill):  # the model without the demonstration, beside it
            seconds += self._sampling(skill, rows) + machine.forward(rows * outlook.prompt)
        if order.kl:  # answers of the base and of the teacher, and two passes over each
            rows = example_count(skill, split, order.kl.prompts)
            length = outlook.prompt + teacher_prompt + 2 * order.limit(skill)
            seconds += self._sampling(skill, rows) + self._sampling(skill, rows, teacher_prompt)
            seconds += machine.forward(2 * rows * length)
        return seconds

    def _oracle(self, skill: Skill) -> float:
        seconds = 0.0
        for split in self.order.reported(skill):
            rows = example_count(skill, split, self.order.evaluate.examples)
            prompt = self.outlooks[skill.name].teacher_prompt(template=ORACLE_TEMPLATE, split=split)
            seconds += self._sampling(skill, rows, prompt) + self.machine.forward(rows * prompt)
        return seconds

    def retention(
        self, tokenizer: PreTrainedTokenizerBase, results: ResultsWriter
    ) -> tuple[float, str | None]:
        """(seconds of the suite on one model, why they are unknown or None).

        From the suite's own requests, of which a few are made.
        """
        suite, machine = self.order.suite, self.machine
        if suite is None:
            return 0.0, None
        chat = self.order.chat_template.inputs("evaluate")
        lengths = answer_lengths(suite, tokenizer, results)
        try:
            read, generated = suite.work(tokenizer, chat=chat, lengths=lengths)
        except UserError as error:
            return 0.0, str(error).partition(";")[0]
        at_once = self.memory.rows_at_once(*GENERATED_TOKENS)
        answers = sum(
            machine.sample(of_task.answers, of_task.tokens, at_once, of_task.longest)
            for of_task in generated
        )
        return machine.forward(read) + answers, None


def answer_lengths(
    suite: Suite, tokenizer: PreTrainedTokenizerBase, results: ResultsWriter
) -> dict[str, list[int]]:
    """{task: tokens of each answer of the base model, its end included}, where on record.

    Left out are tasks that keep a part of an answer alone, by a filter or behind the model's
    thoughts.
    """
    whole = {entry.task for entry in suite.tasks if entry.metric.rpartition(",")[2] == "none"}
    if think_end_token(tokenizer) is not None:
        return {}
    for stage in sorted(results.folder.glob("runs/*/stage-0")):
        if not results.committed(stage.parent.name, 0):
            continue
        lengths = {}
        for row in results.rows(stage, "records.jsonl"):
            if row.get("kind") != "retention" or row.get("name") not in whole:
                continue
            evaluation = results.evaluation(str(row.get("evaluation")))
            texts = [item.get("response") for item in evaluation["items"]] if evaluation else []
            if texts and all(isinstance(text, str) for text in texts):
                ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
                lengths[row["name"]] = [len(of_text) + 1 for of_text in ids]
        return lengths  # The base model of all runs is the same.
    return {}
