"""Protocol hashes of a small fixed set-up: what is measured keeps its name from edition to edition.

The hashes were computed with the first edition. The entry ``scorer`` is left out: it follows the
source of the graders and the version of lm-eval, which may change.
"""

import pytest

from harness.base.files import read_json
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.protocol import protocol_hash
from harness.evaluation.settings import KL, Evaluate, PassAtK
from harness.evaluation.suite import load_suite
from harness.models.checkpoint import model_fingerprint
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
    without_scorer = {
        name: {key: value for key, value in meaning.items() if key != "scorer"}
        for name, meaning in protocols.items()
    }
    assert {n: protocol_hash(meaning) for n, meaning in without_scorer.items()} == FIRST_EDITION
    # Where no grader is part of it, the whole hash is that of the first edition.
    assert protocols["kl"] == without_scorer["kl"]
    assert protocol_hash(protocols["kl"]) == "c39d4f9ce0a5"
