"""Standard CL (4 tasks) and Long Sequence (15): label words, asked as in O-LoRA (2310.14152).

A task is a folder with ``train.json``, ``test.json`` (rows with ``sentence`` and ``label``) and
``labels.json``. The authors' repository holds all of them (cmnfriend/O-LoRA, MIT; the data have
licences of their own); they are fetched at a pinned commit and checked against git's own ids.
"""

from typing import NamedTuple

from benchmarks.skills._measures import exact_match
from benchmarks.skills._sources import read_value, text
from benchmarks.skills._suite import SuiteSkill
from harness.base.errors import UserError, did_you_mean
from harness.skills.skill import Example

NO_LABEL = "-"  # of a sentence on whose label the annotators of MNLI did not agree
CHOOSE = "Choose one from the option.\n"
INSTRUCTIONS = {  # of a group, which is the task's first folder; COPA's sentence asks by itself
    "TC": f"What is the topic of the following paragraph? {CHOOSE}",
    "SC": f"What is the sentiment of the following paragraph? {CHOOSE}",
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"? '
    + CHOOSE,
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning? '
    + CHOOSE,
    "BoolQA": "According to the following passage, is the question true or false? " + CHOOSE,
    "MultiRC": "According to the following passage and question, is the candidate answer true or "
    f"false? {CHOOSE}",
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both "
    f"sentence? {CHOOSE}",
}
FOLDERS = {
    "agnews": "TC/agnews",
    "amazon": "SC/amazon",
    "boolq": "BoolQA/BoolQA",
    "cb": "NLI/CB",
    "copa": "COPA/COPA",
    "dbpedia": "TC/dbpedia",
    "imdb": "SC/IMDB",
    "mnli": "NLI/MNLI",
    "multirc": "MultiRC/MultiRC",
    "qqp": "QQP/QQP",
    "rte": "NLI/RTE",
    "sst2": "SC/SST-2",
    "wic": "WiC/WiC",
    "yahoo": "TC/yahoo",
    "yelp": "SC/yelp",
}


def exact_first_line(completion: str, reference: str) -> float:
    """``exact_match`` of the first line that is not blank: what follows does not count."""
    lines = completion.strip().split("\n")
    return exact_match(lines[0], reference)


class LabelQuestion(NamedTuple):
    """A test question for scoring by likelihood: the prompt, the label words, the right one."""

    prompt: str
    labels: list[str]
    right: int


class LabelWords(SuiteSkill):
    """One of the fifteen tasks; the prompt is one user turn, the demonstration the label."""

    suite = "cl"
    description = (
        "fifteen text-classification tasks (4 of Standard CL, 15 of Long Sequence) as released "
        "with O-LoRA (MIT; the data have licences of their own)"
    )
    tasks = tuple(FOLDERS)
    folders = FOLDERS
    roots = ("", "CL_Benchmark/")
    repositories = ("cmnfriend/O-LoRA",)
    further = ("labels",)
    commit = "07117e1fc4a5f5ad9308a815a42cee8f46502dc8"
    max_new_tokens = 50
    metrics = {"exact_match": exact_match, "exact_first_line": exact_first_line}

    def labels(self) -> list[str]:
        """The label words, in the order of the option list."""
        file = self.file("labels")
        labels = read_value(file)
        if not (isinstance(labels, list) and labels and all(isinstance(x, str) for x in labels)):
            raise UserError(file, "is not a list of label words")
        return labels

    @property
    def chance(self):
        return 1 / len(self.labels())

    def rows(self, file):
        self._labels = self.labels()
        return super().rows(file)

    def example(self, row, split, number, place):
        sentence, label = text(row, ["sentence"], place), text(row, ["label"], place)
        if label == NO_LABEL:
            return None
        if label not in self._labels:
            raise UserError(
                f"{place}: label",
                f"{label[:80]!r} is not in labels.json",
                did_you_mean(label, self._labels),
            )
        question = f"{sentence}\nAnswer:"
        if instruction := INSTRUCTIONS.get(self.folders[self.task].partition("/")[0]):
            question = f"{instruction}Option: {', '.join(self._labels)} \n{question}"
        return Example(str(number), [{"role": "user", "content": question}], label, label)

    def questions(self) -> list[LabelQuestion]:
        """The test questions with their label words."""
        examples = self.examples("test")
        labels = self.labels()
        return [
            LabelQuestion(e.prompt[0]["content"], labels, labels.index(e.reference))
            for e in examples
        ]
