"""What --plan foretells: counted activations against a real pass, the bytes of every weight,
verdicts and retention by hand.
"""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from harness.base.errors import UserError
from harness.base.files import read_json, write_json, write_jsonl
from harness.base.power import Variation
from harness.evaluation.lm_eval_model import LiveModel, unchanged
from harness.evaluation.suite import FOLDER, Suite, load_suite
from harness.learning.outlook import Outlook, Work
from harness.learning.trainer import TrainingConfig
from harness.models.forward import hidden_states
from harness.results.writer import ResultsWriter
from harness.runs import measuring_cost
from harness.runs.cost import Machine, Memory, activations
from harness.runs.plan import plan
from harness.runs.power import TYPICAL
from harness.runs.reading import read_order
from harness.runs.sequence import run_order

SHAPES = {
    "llama": LlamaConfig(
        **{"vocab_size": 300, "hidden_size": 96, "intermediate_size": 200},
        **{"num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2},
    ),
    "qwen2": Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_what_a_real_pass_saves(name, dtype):
    with init_empty_weights():
        shape = AutoModelForCausalLM.from_config(SHAPES[name], dtype=dtype)
    real = AutoModelForCausalLM.from_config(SHAPES[name], dtype=dtype).train()
    saved, tokens = {}, 512

    def count(tensor):
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, torch.nn.Parameter):
            saved[base.untyped_storage().data_ptr()] = base
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        hidden_states(real, torch.ones(4, tokens // 4, dtype=torch.long))
    assert activations(shape) * tokens == pytest.approx(
        sum(t.nbytes for t in saved.values()), rel=0.1
    )


def test_bytes_of_every_weight():
    """bfloat16 with a moving average: 2 + 2 for the two models; 8 AdamW, 4 masters, 4 gradients, 4
    average, here or in host memory.
    """
    with init_empty_weights():
        shape = AutoModelForCausalLM.from_config(SHAPES["llama"], dtype=torch.bfloat16)
    weights = sum(p.numel() for p in shape.parameters())
    sdft = Work(scored=1, copies=1, averaged=True)
    memory = Memory(shape, torch.bfloat16, "cpu")

    def of(work, cached=0, length=10, rows=1000, **config):
        return [
            round(part * 2**30)
            for part in memory.of(TrainingConfig(**config), work, length, cached, rows)
        ]

    def passing(tokens, tensors):
        return tokens * memory.token + 300 * 96 * 4 + tensors * 4 * tokens * 300

    assert of(sdft) == [round(weights * (4 + 20) + passing(1024, 6)), 0]
    assert of(sdft, masters="host") == [round(weights * 4 + passing(1024, 6)), weights * 20]
    assert of(Work(), micro_batch_tokens=2048) == [round(weights * 18 + passing(2048, 3)), 0]
    # a step has fewer tokens than a micro-batch may have; a row has more
    assert of(Work(), rows=8) == [round(weights * 18 + passing(80, 3)), 0]
    assert of(Work(), rows=8, length=3000) == [round(weights * 18 + passing(3000, 3)), 0]
    # one token, whose logits are less than the head's gradient
    token = memory.token + 300 * 96 * (4 + 2)
    assert of(Work(), rows=1, length=1) == [round(weights * 18 + token), 0]
    # the rollouts are the larger
    assert of(Work(), cached=10**8)[0] == round(weights * 18 + 10**8 * 2 * 3 * 2 * 16 * 2)
    # no masters apart from the weights, and no gradient of the head apart from theirs
    full = Memory(shape, torch.float32, "cpu")
    assert full.of(TrainingConfig(), sdft, 10, 0)[0] * 2**30 == pytest.approx(
        weights * (8 + 8 + 4) + 1024 * full.token + 6 * 4 * 1024 * 300
    )


def test_a_chunk_of_logits_has_its_limit():
    with init_empty_weights():
        shape = AutoModelForCausalLM.from_config(SHAPES["llama"], dtype=torch.float32)
    memory = Memory(shape, torch.float32, "cpu")
    memory.vocabulary = 2**20
    few, many = (
        memory.of(TrainingConfig(), Work(), tokens, 0, rows=1)[0] * 2**30 - tokens * memory.token
        for tokens in (16, 32)
    )
    assert few == pytest.approx(many) and few > 3 * 4 * 2**24


def test_verdicts_are_counted_or_what_grades_instead_is_said(order_file, tmp_path, monkeypatch):
    """Three methods, two stages with one evaluation inside and one at the end, and the base: 13
    evaluations of 4 examples.
    """
    for name in ("JUDGE_BASE_URL", "JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    judge, judged = (
        {"base_url": "http://127.0.0.1:9/v1", "model": "judge-1"},
        ["skills.vowels.judge=knowledge"],
    )
    text = plan(read_order(order_file(judge=judge), judged), tmp_path / "out")
    assert (
        "judge judge-1: at most 52 verdicts (vowels test 52)" in text
        and "evaluations: 13, 104 answers in all\n" in text
    )
    assert "judge: none is configured; vowels is graded by token_f1\n" in plan(
        read_order(order_file(), judged), tmp_path / "out"
    )
    assert "judge" not in plan(read_order(order_file()), tmp_path / "out")


def test_retention_is_counted_where_its_data_are(order_file, tiny_model, tmp_path, monkeypatch):
    """The tokens of cloze sentences by hand (a byte is a token); the answers to instructions."""
    suite = load_suite(
        [
            {"task": "embedded_commonsense", "limit": 6},
            {"task": "embedded_instructions", "chat_template": True},
        ]
    )
    rows = [
        json.loads(line)
        for line in (FOLDER / "tasks/data/commonsense.jsonl").read_text().splitlines()
    ][:6]
    by_hand = sum(
        len(row["text"].encode())
        + sum(len(f" {c}".encode()) for c in [row["answer"], *row["distractors"]])
        for row in rows
    )
    found, generated = Suite(suite.tasks[:1]).work(tiny_model[1], sample=6)
    assert (found, generated) == (by_hand, [])
    assert [of_task.answers for of_task in suite.work(tiny_model[1])[1]] == [32]
    order = read_order(order_file(retention=[{"task": "embedded_commonsense"}]))
    text = plan(order, tmp_path / "out")
    assert (
        "answers in all; 1 retention task after each stage, about 0:00" in text
        and "not counted" not in text
    )
    assert "; of 1 also margin (nats) and probability, from the same passes" in text

    def missing(*_):
        raise UserError(
            "retention task embedded_commonsense",
            "lm-eval cannot load it (no network)",
            "its data must be there",
        )

    monkeypatch.setattr(Suite, "load", missing)
    text = plan(order, tmp_path / "out")
    assert (
        "after each stage, not counted (retention task embedded_commonsense: "
        "lm-eval cannot load it (no network))" in text
    )
    assert "measured), retention not counted\n" in text


def test_answers_are_as_long_as_on_record_or_as_the_task_says_or_as_they_may_be(
    order_file, tiny_model, tmp_path, monkeypatch
):
    tokenizer = tiny_model[1]
    task = {"task": "embedded_instructions", "chat_template": True}

    def generated(lengths=None, **more):
        ((answers, tokens, longest),) = load_suite([task | more]).work(tokenizer, lengths=lengths)[
            1
        ]
        return answers, tokens, longest

    assert generated() == (32, 23, 56)
    assert generated(max_gen_toks=9) == (32, 9, 9)
    assert generated({"embedded_instructions": [4, 6, 57]}) == (32, 22, 56)
    assert generated({"another": [4]}) == (32, 23, 56)
    monkeypatch.setattr("harness.evaluation.suite._USUAL", "none")
    assert generated() == (32, 56, 56)
    machine = object.__new__(Machine)
    machine.parameters, machine.flops, machine.step = 10, 5.0, 3.0
    # two batches of 16: as many steps as the longest answer has; tokens as the mean answer
    assert machine.sample(32, 22, 16, 56) == 2 * 56 * 3 + 2 * 10 * 32 * 22 / 5
    assert machine.sample(32, 22, 16) == machine.sample(32, 22, 16, 22)
    assert machine.sample(0, 22, 16, 56) == 0

    out, order = tmp_path / "out", read_order(order_file(retention=[task]))
    results = ResultsWriter(out)
    results.open(order.about())
    texts = ["seven b", "", "x" * 80]  # a byte is a token, and there is the end
    stage = out / "runs/sft-seed0/stage-0.partial"
    record = {"run": "sft-seed0", "stage": 0, "kind": "retention", "evaluation": "a-b"}
    write_jsonl(stage / "records.jsonl", [record | {"name": "embedded_instructions"}])
    write_json(stage / "stage.json", {"seconds": {}})
    results.commit(stage, "sft-seed0", 0)
    items = [{"id": str(i), "response": text} for i, text in enumerate(texts)]
    evaluation = dict.fromkeys(("protocol", "kind", "name", "split", "n", "metrics"), 0)
    results.save_evaluation("a-b", {**evaluation, "items": items})
    found = measuring_cost.answer_lengths(order.suite, tokenizer, results)
    assert found == {"embedded_instructions": [8, 1, 81]}
    # a filter keeps a part of an answer, likelihoods are no answer, and another model has no record
    filtered = replace(order.suite.tasks[0], metric="inst_level_loose_acc,last")
    assert measuring_cost.answer_lengths(Suite([filtered]), tokenizer, results) == {}
    items[0]["response"] = [-1.0, -2.0]
    results.save_evaluation("a-b", {**evaluation, "items": items})
    assert measuring_cost.answer_lengths(order.suite, tokenizer, results) == {}
    assert (
        measuring_cost.answer_lengths(order.suite, tokenizer, ResultsWriter(tmp_path / "no")) == {}
    )


def test_rows_go_by_prompt_and_answer(order_file, tiny_model, tmp_path, monkeypatch):
    """As the samplers take them: of rollouts and evaluations a skill's prompt and its limit, of the
    suite what lm-eval's model counts with; the teacher's prompt where that is asked.
    """
    asked = []
    monkeypatch.setattr(Memory, "rows_at_once", lambda self, *lengths: asked.append(lengths) or 64)
    task = {"task": "embedded_instructions", "chat_template": True}
    path = order_file(methods={"sdft": {}}, retention=[task])
    order = read_order(path, ["evaluate.teacher=true", "rollout.max_new_tokens=9"])
    plan(order, tmp_path / "out")
    wanted = {(1024, 1024)}
    for skill in order.skills:
        outlook = Outlook(tiny_model[1], skill, order.template(skill), 9, 12)
        wanted |= {(outlook.prompt, order.limit(skill, rollout=True)), (outlook.prompt, 6)}
        wanted.add((outlook.teacher_prompt(), 6))
    assert set(asked) == wanted
    with unchanged(*tiny_model):
        assert LiveModel(*tiny_model).batch_size == 64
    assert measuring_cost.GENERATED_TOKENS == (1024, 1024)


def test_moments_in_8_bits_are_explained_and_counted(order_file, tmp_path):
    """A byte and a 64th for each of the two of 17 thousand numbers."""
    order = read_order(
        order_file(methods={"sft": {}, "less": {"method": "sft", "moments": "8bit"}})
    )
    text = plan(order, tmp_path / "out")
    assert (
        "moments of less: 8 bits, 2.03 bytes a number for 8; numbers near AdamW's, not its own\n"
        in text
    )
    assert "moments of sft" not in text
    config = order.about()["methods"]
    # folders from before the option go on
    assert "moments" not in config["sft"]["config"]
    assert config["less"]["config"]["moments"] == "8bit"
    with init_empty_weights():
        shape = AutoModelForCausalLM.from_config(SHAPES["llama"], dtype=torch.float32)
    memory = Memory(shape, torch.float32, "cpu")
    usual, less = (
        memory.of(TrainingConfig(moments=kind), Work(), 10, 0)[0] for kind in ("float32", "8bit")
    )
    weights = sum(p.numel() for p in shape.parameters())
    assert (usual - less) * 2**30 == pytest.approx(weights * (8 - 2.03125))


def test_a_folder_of_another_order_gives_no_times(order_file, tmp_path):
    order = read_order(order_file())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(json.dumps(order.about()))
    assert "2 stages each" in plan(order, tmp_path / "out")
    with pytest.raises(UserError, match=r"budget\.prompts"):
        plan(read_order(order_file(), ["budget.prompts=77"]), tmp_path / "out")


@pytest.mark.parametrize(
    "text, said", [("", "is not JSON"), ("{}", "has no `seconds`"), ("[]", "is not a JSON object")]
)
def test_a_damaged_stage_is_named(text, said, order_file, tmp_path):
    place = tmp_path / "out/runs/sft-seed0/stage-1/stage.json"
    place.parent.mkdir(parents=True)
    place.write_text(text)
    with pytest.raises(UserError, match=f"{place}: {said}; "):
        plan(read_order(order_file()), tmp_path / "out")


def test_a_common_beginning_is_read_once_for_a_batch(order_file, tiny_model):
    skill = read_order(order_file()).skills[0]
    texts = [
        tiny_model[1].apply_chat_template(e.prompt, tokenize=False, add_generation_prompt=True)
        for e in skill.examples("train")
    ]
    prompts = [tiny_model[1](text)["input_ids"] for text in texts]
    shared = next(i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)
    assert 10 < shared < min(map(len, prompts))
    outlook = Outlook(tiny_model[1], skill, None, 4, 12)
    mean = sum(map(len, prompts)) / len(prompts)
    assert outlook.reading(12, 5) == pytest.approx(12 * (mean - shared) + 3 * shared)
    assert outlook.reading(12, 1) == pytest.approx(12 * mean)


def power_of(text):
    """{what: (points that would be told, the rest of the line, the line below)}."""
    lines = text.splitlines()
    found = {}
    for line, below in pairwise(lines):
        if match := re.match(r"power: (.*) of ([0-9.]+) points would be told \((.*)\)$", line):
            found[match[1]] = float(match[2]), match[3], below.strip()
    return found


PAIR = "mean accuracy between two methods"


def typical(key, share, count):
    way = TYPICAL[key]
    return Variation(way.items * share, way.seeds**2, way.both * share, count)


def test_power_is_foretold_for_accuracies_of_half_or_by_the_base_model(order_file, tmp_path):
    """Two skills of four questions each, right half of the time."""
    suite = [{"task": "embedded_commonsense", "limit": 6}]
    order = read_order(order_file(retention=suite), ["seeds=[0, 1, 2]"])
    told, basis, below = power_of(plan(order, tmp_path / "out"))[PAIR]
    share = 2 * 0.25 / 4 / 4
    wide = typical("skills", share, 8)
    assert told == pytest.approx(100 * wide.detectable(3), abs=0.05)
    assert basis.endswith("accuracies of 50%; typical spread of changes")
    assert below.startswith("half of it: ") and "times the questions" in below
    assert "the tests have" in below

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(json.dumps(order.about()))
    task = {"name": "embedded_commonsense", "metric": "acc,none", "value": 0.9}
    record = json.dumps({"stage": 0, "split": "test", **task})
    (tmp_path / "out" / "records.jsonl").write_text(record)
    told, basis, _ = power_of(plan(order, tmp_path / "out"))["retention Δ"]
    right = (0.9 * 6 + 1) / (6 + 2)
    known = typical("retention", right * (1 - right) / 6, 6)
    assert told == pytest.approx(100 * known.detectable(3), abs=0.05)
    assert basis.startswith("80%, two-sided 5%; base model's accuracies;")

    measured = {"skills": (Variation(0.001, 0.0001, 0.0, 8), 3)}
    told, basis, _ = power_of(plan(order, tmp_path / "out", measured))[PAIR]
    assert told == pytest.approx(100 * measured["skills"][0].detectable(3), abs=0.05)
    assert "by 3 seeds of this folder" in basis


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_power_is_foretold_where_the_base_model_is_right_nowhere_or_everywhere(
    order_file, tmp_path, accuracy
):
    suite = [{"task": "embedded_commonsense", "limit": 6}]
    order = read_order(order_file(retention=suite))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(json.dumps(order.about()))
    task = {"name": "embedded_commonsense", "metric": "acc,none", "value": accuracy}
    record = json.dumps({"stage": 0, "split": "test", **task})
    (tmp_path / "out" / "records.jsonl").write_text(record)
    told, _, _ = power_of(plan(order, tmp_path / "out"))["retention Δ"]
    known = typical("retention", 7 / 64 / 6, 6)
    assert told == pytest.approx(100 * known.detectable(len(order.seeds)), abs=0.05)


def test_one_seed_says_what_more_would_tell_with_what_a_seed_changes(order_file, tmp_path):
    """The number of one seed leaves that out, and may be below the one of three."""
    told, basis, _ = power_of(plan(read_order(order_file(), ["seeds=[0]"]), tmp_path / "out"))[PAIR]
    three, _, _ = power_of(plan(read_order(order_file(), ["seeds=[0, 1, 2]"]), tmp_path / "out"))[
        PAIR
    ]
    said = re.search(
        r"what another seed changes is not in it, with it 3 seeds tell ([0-9.]+)", basis
    )
    assert float(said[1]) == three != told


def test_an_order_asks_for_power_and_the_plan_proposes_budgets(order_file, tmp_path):
    measured = {
        "skills": (Variation(0.0005, 0.0001, 0.0001, 400), 3),
        "retention": (Variation(0.0, 0.0001, 0.0, 400), 3),
    }
    order = read_order(
        order_file(retention=[{"task": "embedded_commonsense", "limit": 6}]),
        ["seeds=[0, 1, 2]", "power={skills: 4, retention: 50}"],
    )
    found = power_of(plan(order, tmp_path / "out", measured))
    _, _, below = found[PAIR]
    assert below.startswith("4 points: ")
    for way in below.split(", or "):
        seeds = re.search(r"(\d+) seeds", way)
        times = re.search(r"([0-9.]+) times the questions", way)
        budget = int(seeds[1]) if seeds else 3, float(times[1]) + 0.05 if times else 1.0
        assert seeds or times
        assert measured["skills"][0].detectable(*budget) <= 0.04
    assert found["retention Δ"][2] == "50 points: told by this order as it is"
    order = read_order(order_file(), ["seeds=[0]", "power={skills: 0.001}"])
    _, basis, below = power_of(plan(order, tmp_path / "out"))[PAIR]
    assert "what another seed changes is not in it" in basis
    assert below == "0.001 points: not within 40 seeds or 40 times the questions"


@pytest.mark.parametrize("power", ["{skills: 0}", "{skills: 101}", "{retention: much}", "{bwt: 1}"])
def test_power_that_makes_no_sense_is_refused(power, order_file):
    with pytest.raises(UserError, match="power"):
        read_order(order_file(), [f"power={power}"])


def test_a_model_without_an_end_of_turn_is_refused(tiny, order_file, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "model")
    template = "{% for m in messages %}{{ m.content }}[DONE] {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=r"model: no token ends a turn: .* writes '.DONE.'"):
        plan(read_order(order_file(model=str(folder))), tmp_path / "out")


DRAWING = {  # parts that draw prompts beside the budget, and gold rows kept of 8 drawn
    "share": (
        {"replay": {"rows": 4, "share": 0.5, "selection": "reservoir"}, "ewc": {"examples": 5}},
        {"replay": 4, "ewc": 0},
    ),
    "after": (
        {"replay": {"ratio": 0.5, "mix": "after"}, "agem": {"rows": 7}},
        {"replay": 4, "agem": 7},
    ),
    "inside": (
        {"replay": {"rows": 3, "extra": "inside", "mix": "after", "content": "own"}},
        {"replay": 3},
    ),
    "best": ({"replay": {"rows": 20, "selection": "best_scored"}}, {"replay": 8}),
}


def test_the_plans_prompts_and_kept_rows_are_those_of_the_run(order_file, tmp_path):
    """Replayed prompts and those outside the steps are in its column, as in stage.json."""
    methods = {label: {"method": "sft", "with": parts} for label, (parts, _) in DRAWING.items()}
    methods["in_context"] = {"demonstrations": 2}
    budget = {"prompts": 8, "batch_size": 4}
    order = read_order(order_file(methods=methods, budget=budget, evaluate={"examples": 1}))
    out = tmp_path / "out"
    text = plan(order, out)
    rows = [line.split() for line in text.splitlines()]
    run_order(order, out)
    for label in methods:
        stages = [read_json(out / f"runs/{label}-seed0/stage-{k}/stage.json") for k in (1, 2)]
        planned = [int(row[2]) for row in rows if row[:1] == [label] and len(row) > 6]
        assert planned[:2] == [stage["prompts"] for stage in stages], label
        kept = {"in_context": 16} if label == "in_context" else DRAWING[label][1]
        assert stages[1]["gold_rows"] == sum(kept.values())
        size = 0.0
        for holder, count in kept.items():
            said = re.search(
                rf"^{label}: {holder} keeps about ([\d.]+) MiB between stages(.*)$", text, re.M
            )
            assert said[2] == (f", {count} rows with gold answers" if count else "")
            size += float(said[1])
        assert size == pytest.approx(stages[0]["kept_bytes"] / 2**20, rel=0.3, abs=0.01)


def test_what_keeps_nothing_is_not_told(order_file, tmp_path):
    methods = {"sft": {"with": {"l2sp": {}}, "parameters": {"lora": {"adapter": "continued"}}}}
    text = plan(read_order(order_file(methods=methods)), tmp_path / "out")
    assert "sft: lora keeps about" in text and "gold answers" not in text
    assert "l2sp keeps" not in text


def test_references_of_one_skill_are_told_to_be_none(order_file, tmp_path):
    skills = read_order(order_file()).skill_specs[:1]
    one = [{k: v for k, v in vars(spec).items() if v is not None} for spec in skills]
    asked = {"references": ["sft"], "relearning": ["sft", "sdft"]}
    text = plan(read_order(order_file(skills=one, **asked)), tmp_path / "out")
    assert "references: nothing runs for sft: an order of one skill has none" in text
    assert "relearning: nothing runs for sft, sdft: an order of one skill has none" in text
    assert "nothing runs" not in plan(read_order(order_file(**asked)), tmp_path / "out")
