"""pass@k, KL to the base policy and the teacher's accuracy: against enumeration, and where they
stand on record.
"""

import copy
import functools
import hashlib
import itertools
import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch
import yaml

from harness.base.errors import UserError
from harness.base.files import ROOT, read_json
from harness.base.metrics import mean_and_stderr
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.kl import sequence_kl
from harness.evaluation.protocol import scorer_hash
from harness.evaluation.settings import KL, Evaluate, PassAtK
from harness.learning.packing import Row
from harness.models.chat import chat_tokens, stop_tokens
from harness.models.checkpoint import model_fingerprint
from harness.models.load import load_model
from harness.report.build import write_report
from harness.results.writer import ResultsWriter
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.runs.teacher_check import check_teacher
from harness.sampling.transformers import TransformersSampler
from harness.skills.files import FileSkill
from harness.skills.registry import get_skill
from harness.skills.templates import TEACHER_TEMPLATES
from tests.conftest import read_lines, save_tiny, write_rows

# a lone letter is what a random model gets right now and then
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """Another random model of the same shape."""
    return load_model(str(save_tiny(tmp_path_factory.mktemp("other"), seed=1)), "float32", "cpu")[0]


def asked(folder, prompts, limit, **settings):
    """(Evaluator on results in ``folder``, skill) for a list of prompts, whose answer is right if
    it holds a letter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": p, "demonstration": "d", "reference": LETTERS} for p in prompts]
    path = write_rows(folder / "rows.jsonl", rows)
    skill = FileSkill("letters", {"train": path, "test": path}, "contains")
    return Evaluator(
        ResultsWriter(folder / "out"),
        None,
        Evaluate(**settings),
        {"letters": limit},
        {"letters": "paper"},
    ), skill


# ---- KL ------------------------------------------------------------------------------------------


def exact_kl(p, q, prompt_p, prompt_q, stops):
    """KL of answers cut after two tokens, by enumeration of the first token, in float64."""
    p, q = _double(p), _double(q)
    with torch.no_grad():
        first_p, first_q = (
            m(torch.tensor([i])).logits[0, -1].log_softmax(-1)
            for m, i in ((p, prompt_p), (q, prompt_q))
        )
        total = (first_p.exp() * (first_p - first_q)).sum()
        live = [v for v in range(len(first_p)) if v not in stops]
        second_p, second_q = (
            m(torch.tensor([[*i, v] for v in live])).logits[:, -1].log_softmax(-1)
            for m, i in ((p, prompt_p), (q, prompt_q))
        )
        total += (first_p[live].exp() * (second_p.exp() * (second_p - second_q)).sum(-1)).sum()
        length = 2 - first_p[sorted(stops)].exp().sum()  # expected tokens of p's answers
    return total.item(), length.item()


def _double(model):
    return copy.deepcopy(model).double()


def test_sums_along_a_completion_are_those_of_a_naive_loop(tiny_model, other_model):
    rows_p = [Row([1, 2, 3], [4, 5, 6, 7]), Row([9], [8]), Row([5, 5, 5, 5], [1, 2, 3])]
    # another prompt, as a teacher's
    rows_q = [Row([7, 7], [4, 5, 6, 7]), Row([9], [8]), Row([1, 2], [1, 2, 3])]
    found = sequence_kl(tiny_model[0], rows_p, other_model, rows_q)
    p, q, wanted = _double(tiny_model[0]), _double(other_model), []
    for a, b in zip(rows_p, rows_q, strict=True):
        total = 0.0
        for t in range(len(a.completion)):
            with torch.no_grad():
                log_p, log_q = (
                    m(torch.tensor([r.prompt + r.completion[:t]])).logits[0, -1].log_softmax(-1)
                    for m, r in ((p, a), (q, b))
                )
            total += (log_p.exp() * (log_p - log_q)).sum().item()
        wanted.append(total)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert sequence_kl(p, rows_p, p, rows_p) == [0, 0, 0]


def test_a_scorer_is_all_the_source_that_it_needs():
    """A grader its own file; one wrapped by another file that file as well."""
    graders = (ROOT / "harness" / "skills" / "graders.py").read_bytes()
    elements, wiki = (
        get_skill("elements").metrics["accuracy"],
        get_skill("wiki").metrics["contains"],
    )
    assert scorer_hash(elements) == hashlib.sha256(graders).hexdigest()[:8]
    wrapper = (ROOT / "benchmarks" / "skills" / "_sources.py").read_bytes()
    bulletins = (ROOT / "benchmarks" / "skills" / "bulletins.py").read_bytes()
    words = (ROOT / "harness" / "skills" / "words.py").read_bytes()
    # calls it
    assert (
        scorer_hash(get_skill("bulletins").metrics["strict"])
        == hashlib.sha256(bulletins + words).hexdigest()[:8]
    )
    assert scorer_hash(functools.partial(elements)) == scorer_hash(elements)
    signs = (ROOT / "harness" / "skills" / "signs.py").read_bytes()
    assert scorer_hash(wiki) == hashlib.sha256(wrapper + graders + signs + words).hexdigest()[:8]


@pytest.mark.parametrize("teacher", [False, True])
def test_kl_is_that_of_all_answers(teacher, tiny_model, other_model, tmp_path):
    """400 sampled answers of at most two tokens to one question, against the enumeration of them
    all.
    """
    base, tokenizer = tiny_model
    model = base if teacher else other_model
    measure, skill = asked(tmp_path, ["hi?"] * 400, 2, kl=KL())
    key, protocol, found = measure.kl(model, base, tokenizer, skill, "test", teacher=teacher)
    question = chat_tokens(tokenizer, skill.examples("test")[0].prompt)
    shown = (
        chat_tokens(tokenizer, skill.teacher_prompt(skill.examples("test")[0]))
        if teacher
        else question
    )
    stops = stop_tokens(base, tokenizer)[1]
    prefix = "teacher_" if teacher else ""
    for direction, (p, q, prompt_p, prompt_q) in {
        "forward": (base, model, question, shown),
        "reverse": (model, base, shown, question),
    }.items():
        exact, length = exact_kl(p, q, prompt_p, prompt_q, stops)
        value, stderr = found["metrics"][f"{prefix}kl_{direction}_sequence"]
        assert exact > 0.05 and 0 < stderr < 0.2 * exact and abs(value - exact) < 4 * stderr
        value, stderr = found["metrics"][f"{prefix}kl_{direction}_token"]
        assert stderr > 0 and abs(value - exact / length) < 4 * stderr
        sums = [item[direction] for item in found["items"]]
        tokens = [item[f"{direction}_tokens"] for item in found["items"]]
        assert found["metrics"][f"{prefix}kl_{direction}_sequence"] == mean_and_stderr(sums)
        assert value == pytest.approx(sum(sums) / sum(tokens))
    assert found["n"] == 400 and found["sampled_tokens"] == sum(
        i["forward_tokens"] + i["reverse_tokens"] for i in found["items"]
    )
    meaning = read_json(tmp_path / "out" / "protocols.json")[protocol]
    assert meaning["measure"] == "KL to the base policy" and found["base"] == model_fingerprint(
        base
    )
    # its text, not its name
    assert meaning.get("teacher_template") == (TEACHER_TEMPLATES["paper"] if teacher else None)
    assert key.startswith(model_fingerprint(model)[:16])


def test_the_base_answers_once_for_all_models(tiny_model, other_model, tmp_path, monkeypatch):
    base, tokenizer = tiny_model
    third = _double(other_model).float()
    third.model.norm.weight.data.mul_(1.1)
    measure, skill = asked(tmp_path, ["a?", "b?"], 3, kl=KL())
    drawn, real = [], TransformersSampler.sample
    monkeypatch.setattr(
        TransformersSampler,
        "sample",
        lambda self, *a, **k: drawn.append(self.model) or real(self, *a, **k),
    )
    one = measure.kl(other_model, base, tokenizer, skill, "test")[2]
    two = measure.kl(third, base, tokenizer, skill, "test")[2]
    again = measure.kl(other_model, base, tokenizer, skill, "test")[2]
    assert drawn == [base, other_model, third]
    assert json.loads(json.dumps(one)) == again and [i["forward"] for i in one["items"]] != [
        i["forward"] for i in two["items"]
    ]


# ---- pass@k --------------------------------------------------------------------------------------


def test_pass_at_k_of_a_model_by_all_subsets(tiny_model, tmp_path):
    model, tokenizer = tiny_model
    measure, skill = asked(
        tmp_path, [f"{i}?" for i in range(8)], 1, pass_at_k=PassAtK(samples=6, prompts=5)
    )
    found = measure.pass_at_k(
        model, tokenizer, TransformersSampler(model, tokenizer), model_fingerprint(model), skill
    )[2]
    assert list(found["metrics"]) == ["pass@1", "pass@2", "pass@4", "pass@6"] and found["n"] == 5
    right = [[c["score"] for c in item["completions"]] for item in found["items"]]
    assert 0 < sum(map(sum, right)) < 30
    for k in (1, 2, 4, 6):
        each = [
            np.mean([any(subset) for subset in itertools.combinations(scores, k)])
            for scores in right
        ]
        assert found["metrics"][f"pass@{k}"] == pytest.approx(mean_and_stderr(each))
    for item in found["items"]:
        assert [c["score"] for c in item["completions"]] == [
            skill.grade(c["completion"], LETTERS) for c in item["completions"]
        ]


def test_answers_do_not_depend_on_how_many_are_sampled_at_once(tiny_model):
    model, tokenizer = tiny_model
    drawn = [
        TransformersSampler(model, tokenizer, size).sample(
            [[1, 2, 3], [4]], n=6, max_new_tokens=4, top_p=0.95, seed=3
        )
        for size in (48, 6, 4, 1)
    ]
    texts = [[[c.token_ids for c in group] for group in groups] for groups in drawn]
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert len({tuple(ids) for ids in texts[0][0]}) > 1 and texts[0][0] != texts[0][1]


def test_decoding_is_part_of_the_protocol(tiny_model, tmp_path):
    model, tokenizer = tiny_model
    hashes = set()
    for i, how in enumerate(
        ({}, {"samples": 3}, {"top_p": 1.0}, {"temperature": 0.5}, {"prompts": 1})
    ):
        measure, skill = asked(
            tmp_path / str(i), ["a?", "b?"], 1, pass_at_k=PassAtK(**{"samples": 2, **how})
        )
        hashes.add(
            measure.pass_at_k(
                model, tokenizer, TransformersSampler(model, tokenizer), "0" * 32, skill
            )[1]
        )
    assert len(hashes) == 5


def test_of_several_chat_templates_the_default_counts(tiny_model, tmp_path):
    """Every evaluation that hashes the template has the protocol of a tokenizer with that one
    alone.
    """
    model, tokenizer = tiny_model
    several = copy.deepcopy(tokenizer)
    several.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages }}"}
    found = []
    for i, each in enumerate((tokenizer, several)):
        measure, skill = asked(
            tmp_path / str(i), ["a?", "b?"], 1, pass_at_k=PassAtK(samples=2), kl=KL()
        )
        sampler = TransformersSampler(model, each)
        found.append(
            [
                measure.skill(model, each, sampler, "0" * 32, skill, "test")[:2],
                measure.kl(model, model, each, skill, "test")[:2],
                measure.pass_at_k(model, each, sampler, "0" * 32, skill)[:2],
            ]
        )
    assert found[0] == found[1]
    several.chat_template = {"tool_use": "{{ messages }}"}
    with pytest.raises(UserError, match="chat template fails"):
        chat_tokens(several, [{"role": "user", "content": "a?"}])


# ---- on record -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def further():
    return {"pass_at_k": {"samples": 3, "prompts": 2}, "kl": {"prompts": 3}, "teacher": True}


def test_what_is_measured_when(order_file, further, tmp_path):
    order, out = (
        read_order(order_file(methods={"sft": {"learning_rate": 1e-2}}, evaluate=further)),
        tmp_path / "out",
    )
    run_order(order, out)
    records, where = read_lines(out / "records.jsonl"), defaultdict(list)
    for r in records:
        where[r["metric"]].append((r["stage"], r["name"], r["split"]))
    both = ("vowels", "digits")
    own = [(1, "vowels", "test"), (2, "digits", "test")]
    for k in (1, 2, 3):
        assert where[f"pass@{k}"] == [(0, name, "test") for name in both] + own
    for metric in (
        "kl_forward_token",
        "kl_reverse_token",
        "kl_forward_sequence",
        "kl_reverse_sequence",
    ):
        assert where[metric] == own
        assert where[f"teacher_{metric}"] == [(0, name, "validation") for name in both]
        assert all(r["value"] > 0 for r in records if r["metric"] == metric)
    assert where["teacher_accuracy"] == [(0, name, "validation") for name in both]
    assert [w for w in where["token_f1"] if w[2] == "validation"] == [
        (0, name, "validation") for name in both
    ]
    rows = {row["skill"]: row for row in check_teacher(order, tmp_path / "check")}
    for r in records:
        if r["metric"] == "teacher_accuracy":
            assert r["value"] == rows[r["name"]]["teacher"] and r["n"] == 4
        elif r["metric"] == "token_f1" and r["split"] == "validation":
            assert r["value"] == rows[r["name"]]["base"]
    seconds = read_json(out / "runs/sft-seed0/stage-1/stage.json")["seconds"]  # what it cost
    assert seconds["kl"] > 0 and seconds["pass_at_k"] > 0
    assert "measured" in plan(order, out)

    before = [{k: v for k, v in r.items() if k != "seconds"} for r in records]
    # a resumed run ends in the same numbers
    for part in ("runs/sft-seed0/stage-2", "runs/sft-seed0/stage-1"):
        shutil.rmtree(out / part)
    shutil.rmtree(out / "evaluations")
    run_order(order, out)
    assert [
        {k: v for k, v in r.items() if k != "seconds"} for r in read_lines(out / "records.jsonl")
    ] == before
    _, page = write_report([out])
    table = (page.parent / "tables" / "every_metric.csv").read_text()
    assert "pass@3" in table and "kl_forward_token" in table and "teacher_accuracy" in table


def one_skill(tiny, folder, skill, **evaluate):
    """An order of one skill for the tiny model."""
    (folder / "one.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"name": str(tiny), "dtype": "float32", "device": "cpu"},
                "skills": [skill],
                "methods": {"sft": {}},
                "budget": {"prompts": 2, "batch_size": 2},
                "evaluate": evaluate,
            }
        )
    )
    return read_order(folder / "one.yaml")


def test_oracle_puts_each_source_before_its_question(tiny, tiny_model, tmp_path):
    """Of a project's skill, on test and ood: against completions sampled and graded by hand."""
    order, out = (
        one_skill(tiny, tmp_path, "bulletins", examples=4, max_new_tokens=40, oracle=True),
        tmp_path / "out",
    )
    run_order(order, out)
    records, skill, protocols = (
        read_lines(out / "records.jsonl"),
        order.skills[0],
        read_json(out / "protocols.json"),
    )
    mine = {(r["split"], r["metric"]): r for r in records if r["metric"].startswith("oracle_")}
    assert set(mine) == {
        (s, f"oracle_{m}")
        for s in ("test", "ood")
        for m in ("strict", "lenient", "response_tokens")
    }
    assert {r["stage"] for r in mine.values()} == {0} and len(mine) == len(
        [r for r in records if r["metric"].startswith("oracle")]
    )
    for split in ("test", "ood"):
        record, examples = mine[split, "oracle_lenient"], skill.examples(split)[:4]
        # every fact that is asked for stands in the source, in ood both of them
        for example in examples:
            assert all(fact in example.source for fact in example.reference["parts"].values())
        assert split == "test" or max(len(e.reference["parts"]) for e in skill.examples(split)) == 2
        prompts = [
            [{"role": "user", "content": f"{e.source}\n\n{e.prompt[0]['content']}"}]
            for e in examples
        ]
        items = read_json(out / "evaluations" / f"{record['evaluation']}.json")["items"]
        assert [i["prompt"] for i in items] == [f"[user] {p[0]['content']}" for p in prompts]
        drawn = TransformersSampler(*tiny_model).sample(
            [chat_tokens(tiny_model[1], p) for p in prompts], max_new_tokens=40, temperature=0
        )
        assert [i["completion"] for i in items] == [d.text for (d,) in drawn]
        lenient = skill.metrics["lenient"]
        pairs = zip(drawn, examples, strict=True)
        scores = [lenient(answer.text, example.reference) for (answer,), example in pairs]
        assert (record["value"], record["n"]) == (np.mean(scores), 4)
        plain = next(
            r
            for r in records
            if r["stage"] == 0 and r["split"] == split and r["metric"] == "lenient"
        )
        oracle, base = protocols[record["protocol"]], protocols[plain["protocol"]]
        assert record["protocol"] != plain["protocol"]
        assert (
            oracle.pop("oracle_template") == [{"role": "user", "content": "{source}\n\n{question}"}]
            and oracle == base
        )
    text = plan(order, tmp_path / "planned")
    assert "oracle retrieval: once, at the base, 8 answers; about" in text


def test_oracle_wants_a_source_for_every_question(tiny, tmp_path):
    rows = [{"question": "q?", "answer": "a", "article": "text"}]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", rows)
    write_rows(tmp_path / "ood.jsonl", [*rows, {"question": "q?", "answer": "a"}])
    with pytest.raises(
        UserError,
        match=r"skill wiki, split ood: example ood/2 has no source, "
        r"and `evaluate\.oracle` shows it; give every",
    ):
        one_skill(tiny, tmp_path, {"name": "wiki", "path": "."}, oracle=True)
    with pytest.raises(UserError, match=r"skill elements, split test: example .* has no source"):
        one_skill(tiny, tmp_path, "elements", oracle=True)


def test_plan_says_what_they_cost(order_file, further, tmp_path):
    text = plan(read_order(order_file(evaluate=further)), tmp_path / "out")
    assert "pass@k: 3 answers to each of 2 prompts; about" in text
    assert (
        "KL to the base policy: a second copy" in text and "accuracy of the teacher: once" in text
    )
    assert "pass@k" not in plan(read_order(order_file()), tmp_path / "out")


def test_an_order_without_them_is_on_record_as_before(order_file):
    about = read_order(order_file()).about()
    assert (
        not {"pass_at_k", "kl", "teacher", "oracle"} & set(about["evaluate"])
        and "max_prompt_tokens" not in about["rollout"]
    )
    asked_for = read_order(order_file(evaluate={"pass_at_k": {}, "kl": {}})).about()["evaluate"]
    assert asked_for["pass_at_k"] == {
        "samples": 128,
        "prompts": None,
        "temperature": 1.0,
        "top_p": 0.95,
    }
    assert asked_for["kl"] == {"prompts": None}
