"""Protocol hashes of a small fixed set-up: what is measured keeps its name from edition to edition.

The hashes were computed with the first edition. The entry ``scorer`` is left out: it follows the
source of the graders and the version of lm-eval, which may change. So are ``tokenizer`` and
``generation``, which version 2 of the results folder has added.
"""

import json
import shutil

import pytest

from harness.base.files import read_json
from harness.evaluation import protocol
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.protocol import protocol_hash
from harness.evaluation.settings import KL, Evaluate, PassAtK
from harness.evaluation.suite import load_suite
from harness.models.checkpoint import model_fingerprint, reading_and_ending, save_checkpoint
from harness.models.load import load_model
from harness.results.writer import ResultsWriter
from harness.sampling.transformers import TransformersSampler
from harness.skills.files import FileSkill
from tests.conftest import write_rows

FIRST_EDITION = {
    "skill": "d9325b127210",
    "teacher": "a1f8350f65a7",
    "oracle": "ceddd9286a52",
    "pass@k": "1dcf27b60194",
    "kl": "c39d4f9ce0a5",
    "kl of the teacher": "7cb7fd130264",
    "embedded_facts": "ab1cc2ef66c7",
    "embedded_code": "bae5eb81a9c0",
}


@pytest.fixture
def protocols(tiny_model, tmp_path):
    """{measurement: what its protocol depends on}, as protocols.json holds it."""
    rows = [
        {
            "prompt": f"question {i}?",
            "demonstration": f"d{i}",
            "reference": ["a", "b", str(i)],
            "source": f"text {i}",
        }
        for i in range(6)
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    skill = FileSkill("letters", {"train": path, "test": path}, "contains")
    suite = load_suite(
        [
            {"task": "embedded_facts", "metric": "acc,none", "limit": 6},
            {"task": "embedded_code", "metric": "bits_per_byte,none", "limit": 4},
        ]
    )
    evaluator = Evaluator(
        ResultsWriter(tmp_path / "out"),
        suite,
        Evaluate(examples=5, pass_at_k=PassAtK(samples=6, prompts=4), kl=KL(prompts=3)),
        {"letters": 7},
        {"letters": "paper"},
    )
    model, tokenizer = tiny_model
    sampler = TransformersSampler(model, tokenizer)
    weights = model_fingerprint(model)
    subject = (model, tokenizer, sampler, weights)
    found = {
        "skill": evaluator.skill(*subject, skill, "test"),
        "teacher": evaluator.skill(*subject, skill, "test", teacher=True),
        "oracle": evaluator.skill(*subject, skill, "test", oracle=True),
        "pass@k": evaluator.pass_at_k(*subject, skill),
        "kl": evaluator.kl(model, model, tokenizer, skill, "test"),
        "kl of the teacher": evaluator.kl(model, model, tokenizer, skill, "test", teacher=True),
    }
    found |= {m.evaluation["name"]: m for m in evaluator.retention(model, tokenizer, weights)}
    on_record = read_json(tmp_path / "out" / "protocols.json")
    assert all(protocol_hash(meaning) == key for key, meaning in on_record.items())
    return {name: on_record[measurement.protocol] for name, measurement in found.items()}


def test_protocols_are_those_of_the_first_edition(protocols):
    later = ("tokenizer", "generation")
    first = {
        name: {key: value for key, value in meaning.items() if key not in ("scorer", *later)}
        for name, meaning in protocols.items()
    }
    assert {n: protocol_hash(meaning) for n, meaning in first.items()} == FIRST_EDITION
    assert all(set(later) <= meaning.keys() for meaning in protocols.values())
    # Where no grader is part of it, they are all that is new.
    assert protocols["kl"].keys() == {*first["kl"], *later}


def test_where_the_checkout_stands_does_not_change_a_scorers_hash(tmp_path, monkeypatch):
    """A grader of the user's that calls one of the project: before or behind it in the alphabet."""
    hashes = set()
    for place in ("/aaa", "/zzz"):
        own = tmp_path / place.strip("/") / "checkout"
        other = tmp_path / "mmm"
        files = [own / "harness/skills/graders.py", own / "benchmarks/a.py", other / "mine.py"]
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.name)
        monkeypatch.setattr(protocol, "ROOT", own)
        placed = sorted(protocol._placed(str(path)) for path in files)
        hashes.add("".join(text for _, text in placed))
    assert hashes == {"a.pygraders.pymine.py"}


def test_a_model_is_told_apart_by_more_than_its_weights(tiny, tmp_path):
    """Config, end tokens, penalties, tokenizer: each is another fingerprint or protocol; what a
    folder's name, padding or a saved copy change is none."""

    def identity(model, tokenizer):
        return model_fingerprint(model), reading_and_ending(model, tokenizer)

    def load(name="model"):
        return load_model(str(tmp_path / name), "float32", "cpu")

    shutil.copytree(tiny, tmp_path / "model")
    first = identity(*load())
    save_checkpoint(*load(), tmp_path / "copy")
    model, tokenizer = load("copy")
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert identity(model, tokenizer) == first
    found = [first]
    for name, key, value in (
        ("config.json", "rms_norm_eps", 1e-5),
        ("generation_config.json", "eos_token_id", [256, 257]),
        ("generation_config.json", "repetition_penalty", 1.3),
    ):
        path = tmp_path / "model" / name
        whole = path.read_text()
        path.write_text(json.dumps({**json.loads(whole), key: value}))
        found.append(identity(*load()))
        path.write_text(whole)
    model, tokenizer = load()
    tokenizer.add_tokens(["new"])
    found.append(identity(model, tokenizer))
    assert len({json.dumps(each) for each in found}) == len(found)
    assert found[2][1]["generation"] == {"ends": [256, 257]}
    assert found[3][1]["generation"]["repetition_penalty"] == 1.3
    assert [each[0] == first[0] for each in found] == [True, False, True, True, True]
