"""SuperNI-15 (SAPT, arXiv 2401.08295): fifteen tasks of Super-NaturalInstructions (2204.07705).

A task is a folder with ``train.json`` and ``test.json`` in the form of Natural Instructions: one
object with ``Definition`` and ``Instances``, each with ``input`` and ``output`` (one right answer
or several). The repository circle-hit/SAPT holds them; they are fetched at a pinned commit and
checked against git's own ids. The tests have 16 to 100 questions.
"""

from pathlib import Path

from benchmarks.skills._measures import exact_match as same_words
from benchmarks.skills._measures import rouge_score_l
from benchmarks.skills._sources import read_value
from benchmarks.skills._suite import SuiteSkill
from harness.base.errors import UserError
from harness.skills.skill import Example

FOLDERS = {
    name.partition("_")[0]: name
    for name in (
        "task002_quoref_answer_generation",
        "task073_commonsenseqa_answer_generation",
        "task1290_xsum_summarization",
        "task1510_evalution_relation_extraction",
        "task1572_samsum_summary",
        "task1590_diplomacy_text_generation",
        "task1687_sentiment140_classification",
        "task1729_personachat_generate_next",
        "task181_outcome_extraction",
        "task363_sst2_polarity_classification",
        "task511_reddit_tifu_long_text_summarization",
        "task591_sciq_answer_generation",
        "task639_multi_woz_user_utterance_generation",
        "task748_glucose_reverse_cause_event_detection",
        "task875_emotion_classification",
    )
}


def rouge_l(completion: str, reference: list[str]) -> float:
    """ROUGE-L with a stemmer against the right answer that fits best, as in Super-NI."""
    return max(rouge_score_l(completion, answer, stemmer=True) for answer in reference)


def rouge_l_first(completion: str, reference: list[str]) -> float:
    """ROUGE-L with a stemmer against the first right answer; SAPT draws one of them at random."""
    return rouge_score_l(completion, reference[0], stemmer=True)


def exact_match(completion: str, reference: list[str]) -> float:
    """1 if the answer is a right one, without case and the punctuation of ASCII."""
    return max(same_words(completion, answer) for answer in reference)


class SuperNI(SuiteSkill):
    """One of the fifteen tasks; the prompt is one user turn, the demonstration the first answer."""

    suite = "superni"
    description = (
        "SuperNI-15: fifteen tasks of Natural Instructions (Apache-2.0) in SAPT's splits, with "
        "tests of 16 to 100 questions"
    )
    tasks = tuple(FOLDERS)
    folders = FOLDERS
    roots = ("", "SuperNI/", "CL_Benchmark/SuperNI/")
    repositories = ("circle-hit/SAPT",)
    commit = "52a52b920324c656bdb6dac08e43dc600ba22f21"
    max_new_tokens = 50
    metrics = {"rouge_l": rouge_l, "rouge_l_first": rouge_l_first, "exact_match": exact_match}

    def rows(self, file: Path):
        """Rows with the task's definition in each."""
        task = read_value(file)
        if not isinstance(task, dict):
            raise UserError(file, "is not a JSON object")
        instances, definition = task.get("Instances"), task.get("Definition")
        if isinstance(definition, list) and definition:
            definition = definition[0]
        if not isinstance(definition, str) or not isinstance(instances, list):
            raise UserError(file, "is no task of Natural Instructions", "Definition and Instances")
        for number, row in enumerate(instances, 1):
            if not isinstance(row, dict):
                raise UserError(f"{file}, row {number}", "is not a JSON object")
            yield number, {**row, "definition": definition.strip()}

    def example(self, row, split, number, place):
        given, answers = row.get("input"), row.get("output")
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(given, str) or not given.strip():
            raise UserError(f"{place}: input", "must be a text that is not empty")
        if not (
            isinstance(answers, list)
            and answers
            and all(isinstance(answer, str) for answer in answers)
        ):
            raise UserError(f"{place}: output", "must be one right answer or a list of them")
        answers = [answer for answer in answers if answer.strip()]
        if not answers:
            return None  # task511 has six train rows without an answer
        question = (
            f"Definition: {row['definition']}\n\nNow complete the following example -\n"
            f"Input: {given}\nOutput: "
        )
        prompt = [{"role": "user", "content": question}]
        return Example(str(number), prompt, answers[0], answers)

    def reference(self, row, place):
        """A list of right answers; one text stands for itself."""
        answers = super().reference(row, place)
        return [answers] if isinstance(answers, str) else answers
