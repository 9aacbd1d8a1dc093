"""DFT, CPT, SFT + re-invoke, offline distillation and SFT on teacher samples: losses against naive
ones in float64 and TRL's, what is sampled when, and runs through an order that are cut off and go
on.
"""

import copy
import dataclasses
import json
import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from harness.base.errors import UserError
from harness.base.sums import SUMS
from harness.learning import packing
from harness.learning.general_prompts import DEFAULT_PROMPTS, general_prompts
from harness.learning.lessons import Lesson
from harness.learning.method import get_method
from harness.learning.outlook import Outlook
from harness.learning.packing import Row
from harness.learning.trainer import Trainer, TrainingConfig
from harness.models.embedded import sha256
from harness.models.load import load_model
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.sampling import buffers
from harness.skills.registry import get_skill
from harness.skills.templates import TEACHER_CONTEXTS, TEACHER_TEMPLATES
from methods.cpt import CPT, CPTConfig, chunks, texts
from methods.dft import DFT
from methods.offline_distillation import OfflineConfig, OfflineDistillation
from methods.sft import SFT
from methods.sft_from_teacher import FromTeacherConfig, SFTFromTeacher
from methods.sft_reinvoke import ReinvokeConfig, SFTReinvoke
from tests.conftest import read_lines, write_rows
from tests.learning.test_training import Letters, assert_close, make_stage, naive
from tests.methods.test_methods import PLAIN, Learned, quiet

NEW = ("dft", "cpt", "sft_reinvoke", "offline_distillation", "sft_from_teacher")


def assert_cross_entropy(found, rows):
    """The first step's loss and gradients are those of the mean over all completion tokens."""
    count = sum(len(r.completion) for r in rows)
    wanted, gradients = naive(
        found.start,
        rows,
        lambda logits, row: (
            F.cross_entropy(logits, torch.tensor(row.completion), reduction="sum") / count
        ),
    )
    assert found.logs[0]["loss"] == pytest.approx(wanted, rel=1e-5)
    assert_close(found.gradients[0], gradients, 1e-4)


@pytest.fixture
def fresh(tiny_model):
    return copy.deepcopy(tiny_model[0]), tiny_model[1]


def tokens(tokenizer, question):
    return tokenizer(f"<|user|>{question}<|end|><|assistant|>")["input_ids"]


# ---- DFT ----------------------------------------------------------------------------------------


def test_dft_weights_the_token_by_its_probability(either, monkeypatch):
    found = Learned(DFT(TrainingConfig(**PLAIN, micro_batch_tokens=40)), *either, monkeypatch)
    rows = [
        Row(
            tokens(either[1], e.prompt[0]["content"]),
            either[1](e.demonstration + "<|end|>")["input_ids"],
        )
        for e in found.examples[0]
    ]
    count = sum(len(r.completion) for r in rows)

    def each(logits, row):
        prob = logits.softmax(-1)[range(len(row.completion)), row.completion]
        return -(prob.detach() * prob.log()).sum() / count

    wanted, gradients = naive(found.start, rows, each)
    assert found.logs[0]["loss"] == pytest.approx(wanted, rel=1e-5)
    assert_close(found.gradients[0], gradients, 1e-4)


def test_dft_is_trl_dft(fresh, monkeypatch, tmp_path):
    """Losses, gradient norms and weights of SFTTrainer with loss_type="dft" over three steps, its
    batches accumulated 2 + 2.
    """
    from trl import SFTConfig, SFTTrainer

    theirs = copy.deepcopy(fresh[0])
    found = Learned(
        DFT(
            TrainingConfig(
                **{**PLAIN, "learning_rate": 1e-3, "max_grad_norm": 1.0}, micro_batch_tokens=40
            )
        ),
        *fresh,
        monkeypatch,
        steps=3,
    )
    data = Dataset.from_list(
        [
            {"prompt": e.prompt, "completion": [{"role": "assistant", "content": e.demonstration}]}
            for step in found.examples
            for e in step
        ]
    )
    trainer = SFTTrainer(
        theirs,
        SFTConfig(
            **quiet(tmp_path),
            loss_type="dft",
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            warmup_steps=0,
            max_steps=3,
            max_grad_norm=1.0,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            train_sampling_strategy="sequential",
            weight_decay=0.0,
            completion_only_loss=True,
            max_length=None,
        ),
        train_dataset=data,
        processing_class=fresh[1],
    )
    trainer.train()
    logs = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert [line["loss"] for line in found.logs] == pytest.approx(
        [line["loss"] for line in logs], rel=1e-4
    )
    assert [line["grad_norm"] for line in found.logs] == pytest.approx(
        [line["grad_norm"] for line in logs], rel=1e-3
    )
    for (name, p), q in zip(theirs.named_parameters(), fresh[0].parameters(), strict=True):
        assert (p - q).abs().max() < 2e-5, name


# ---- CPT ----------------------------------------------------------------------------------------


class Articles(Letters):
    """The twelve questions, four to an article; the articles differ in length."""

    def load(self, split):
        return [
            dataclasses.replace(e, source="abc " * (2 + 9 * (i // 4)) + "\n")
            for i, e in enumerate(super().load(split))
        ]


@pytest.mark.parametrize("size", [2, 5, 8, 100])
def test_chunks_learn_every_token_once(tiny_model, size):
    tokenizer = tiny_model[1]
    text = "The flood struck Oakmere."
    ids = tokenizer(text)["input_ids"] + [256]
    rows = chunks(tokenizer, text, size, 256)
    assert [t for r in rows for t in r.completion] == ids[1:]
    assert [r.prompt for r in rows] == [[ids[at]] for at in range(0, len(ids) - 1, size)]
    assert [len(r.completion) for r in rows[:-1]] == [size] * (len(rows) - 1)


def test_a_tokenizer_that_begins_texts_has_its_token_predict_the_first(tiny_model):
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_model[1])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A",
        special_tokens=[("<|system|>", tokenizer.convert_tokens_to_ids("<|system|>"))],
    )
    ids = tokenizer("abcd", add_special_tokens=False)["input_ids"] + [256]
    (row,) = chunks(tokenizer, "abcd", 10, 256)
    assert (
        row.prompt == tokenizer("")["input_ids"] and len(row.prompt) == 1 and row.completion == ids
    )


def test_cpt_is_the_token_mean_over_distinct_articles(either, monkeypatch, tmp_path):
    assert texts(Articles().examples("train")) == [("abc " * n).strip() for n in (2, 11, 20)]
    found = Learned(
        CPT(CPTConfig(**PLAIN, chunk_tokens=20, micro_batch_tokens=50)),
        *either,
        monkeypatch,
        steps=2,
        skill=Articles(),
        folder=tmp_path,
    )
    # a byte a token, the first without loss, the end with it
    length = [4 * n - 1 for n in (2, 11, 20)]
    corpus = json.loads((tmp_path / "corpus.json").read_text())
    assert corpus == {
        "texts": 3,
        "chunks": sum(-(-n // 20) for n in length),
        "tokens": sum(length),
        "passes": 8 / 8,
    }
    drawn = [r for step in found.examples for r in step]
    # one pass holds every chunk
    assert len(drawn) == 8 and sum(len(r.completion) for r in drawn) == sum(length)
    rows = found.examples[0]
    assert_cross_entropy(found, rows)


# ---- teacher samples ----------------------------------------------------------------------------


def teacher_of(found):
    """By example: the tokens of its teacher's prompt and of its question, spelled out here."""
    paper = TEACHER_TEMPLATES["paper"][0]["content"]
    out = {}
    for e in Letters().examples("train"):
        question = e.prompt[0]["content"]
        shown = paper.replace("{question}", question).replace("{demonstration}", e.demonstration)
        out[e.id] = tokens(found.stage.tokenizer, shown), tokens(found.stage.tokenizer, question)
    return out


def samples_in(folder):
    return [
        row for path in sorted(folder.glob("teacher_samples-*.jsonl")) for row in read_lines(path)
    ]


def test_offline_distillation_is_the_naive_loss(either, monkeypatch, tmp_path):
    """In the second step: the student has moved, teacher and answers have not."""
    config = OfflineConfig(**PLAIN, micro_batch_tokens=100)
    found = Learned(
        OfflineDistillation(config), *either, monkeypatch, steps=3, folder=tmp_path, temperature=0.8
    )
    rows, prompts = samples_in(tmp_path), teacher_of(found)
    assert len(found.rollouts) == 1 and len(rows) == 12  # all at once, before the first step
    assert found.rollouts[0][0] == [prompts[row["example"]][0] for row in rows]
    # as every method sees them
    assert [r["example"] for r in rows] == [e.id for step in found.examples for e in step]
    start, student = (copy.deepcopy(found.start).double() for _ in range(2))
    student.load_state_dict({n: p.double() for n, p in found.weights[0].items()}, strict=False)
    second = {id(r["token_ids"]): r["example"] for r in rows[4:8]}

    def each(logits, row):
        with torch.no_grad():
            shown = prompts[second[id(row.completion)]][0] + row.completion
            q = (
                start(torch.tensor([shown])).logits[0, -len(row.completion) - 1 : -1] / 0.8
            ).log_softmax(-1)
        kl = (q.exp() * (q - (logits / 0.8).log_softmax(-1))).sum(-1)
        return kl[3:].sum() / max(1, len(kl) - 3) / 4

    wanted, gradients = naive(
        student, [Row(prompts[r["example"]][1], r["token_ids"]) for r in rows[4:8]], each
    )
    assert found.logs[1]["loss"] == pytest.approx(wanted, rel=1e-4)
    assert_close(found.gradients[1], gradients, 1e-3)


def test_sft_from_teacher_is_sft_on_its_answers(either, monkeypatch, tmp_path):
    found = Learned(
        SFTFromTeacher(FromTeacherConfig(**PLAIN)), *either, monkeypatch, folder=tmp_path
    )
    prompts = teacher_of(found)
    rows = [Row(prompts[r["example"]][1], r["token_ids"]) for r in samples_in(tmp_path)]
    assert_cross_entropy(found, rows)


@pytest.mark.parametrize("generations, made", [(None, 24), (5, 5), (12, 12), (1000, 24)])
def test_a_fixed_number_of_generations(fresh, tmp_path, generations, made):
    """24 draws of 12 examples; with fewer answers these come again, each as often as any other."""
    from harness.learning.teacher_samples import TeacherSamples

    stage = make_stage(*fresh, prompts=24, folder=tmp_path)
    samples = TeacherSamples(stage, generations)
    assert len(samples_in(tmp_path)) == len(samples.pairs) == made
    drawn = [stage.examples[i].id for i in stage.draws()]
    chosen = [[(e.id, tuple(answer)) for e, answer in samples.of(step)] for step in stage.steps()]
    assert [len(c) for c in chosen] == [4] * 6
    first = [pair for c in chosen for pair in c]
    assert [name for name, _ in first[:made]] == drawn[:made]
    times = Counter(first)
    assert (
        set(times) == {(e.id, tuple(a)) for e, a in samples.pairs}
        and max(times.values()) - min(times.values()) <= 1
    )


def test_an_answer_of_the_teacher_has_the_limit_of_its_skill(fresh, tmp_path):
    """Where a run teaches two skills at once; with one limit nothing differs."""
    from harness.learning.teacher_samples import TeacherSamples

    class Short(Letters):
        name = "short"

    mixed = [*Letters().examples("train")[:6], *Short().examples("train")[:6]]
    found = {}
    for limit in (10, 3):
        stage = make_stage(*fresh, folder=tmp_path / str(limit))
        stage.folder.mkdir()
        stage.examples = mixed
        stage.add_lesson(Lesson(Short(), limit), own=True)
        found[limit] = TeacherSamples(stage).pairs
    assert max(len(a) for e, a in found[3] if e.skill == "short") == 3
    assert max(len(a) for e, a in found[3] if e.skill == "letters") > 3
    assert max(len(a) for _, a in found[10]) > 3


def test_teacher_samples_go_on_where_they_were_cut_off(fresh, tmp_path):
    """Block by block: the same answers, the same count of tokens, nothing is sampled twice."""
    from harness.learning.teacher_samples import TeacherSamples

    whole = make_stage(*fresh, folder=tmp_path / "whole")
    wanted = TeacherSamples(whole, block=5).pairs
    cut = make_stage(*fresh, folder=tmp_path / "cut")
    real, calls = cut.sampler.sample, []

    def sample(prompts, **settings):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(prompts, **settings)

    cut.sampler.sample = sample
    with pytest.raises(KeyboardInterrupt):
        TeacherSamples(cut, block=5)
    again = make_stage(*fresh, folder=tmp_path / "cut")
    again.sampler.sample = sample
    assert [(e.id, a) for e, a in TeacherSamples(again, block=5).pairs] == [
        (e.id, a) for e, a in wanted
    ]
    assert calls == [5, 5, 5, 2] and again.tokens == whole.tokens > 0


# ---- SFT + re-invoke ----------------------------------------------------------------------------


@pytest.fixture
def reinvoked(fresh, monkeypatch, tmp_path):
    """Three steps of SFT, then two and a half of distillation; the rate falls in each."""
    config = ReinvokeConfig(
        **{**PLAIN, "schedule": "linear", "max_grad_norm": 1e9},
        reinvoke_prompts=10,
        micro_batch_tokens=200,
    )
    method = SFTReinvoke(config)
    return Learned(
        method,
        *fresh,
        monkeypatch,
        steps=3,
        folder=tmp_path,
        phases=method.phases(12),
        temperature=0.8,
    )


def test_reinvoke_begins_with_plain_sft(reinvoked, monkeypatch):
    alone = Learned(
        SFT(TrainingConfig(**{**PLAIN, "schedule": "linear"}, micro_batch_tokens=200)),
        copy.deepcopy(reinvoked.start),
        reinvoked.stage.tokenizer,
        monkeypatch,
        steps=3,
    )
    assert (
        len(reinvoked.logs) == 6 and [line["phase"] for line in reinvoked.logs] == [1] * 3 + [2] * 3
    )
    for found, wanted in zip(reinvoked.weights[:3], alone.weights, strict=True):
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert reinvoked.stage.prompts_drawn == 22 and [len(e) for e in reinvoked.examples] == [
        4,
        4,
        4,
        4,
        4,
        2,
    ]


def test_reinvoke_pulls_back_to_the_start_of_the_stage(reinvoked):
    """Reverse KL on the student's own answers to general prompts, to the weights before SFT, in
    float64.
    """
    assert len(reinvoked.rollouts) == 3
    prompts, groups = reinvoked.rollouts[1]
    asked = {line["prompt"] for line in read_lines(DEFAULT_PROMPTS)}
    assert [m[0]["content"] in asked for m in reinvoked.examples[4]] == [True] * 4
    assert prompts == [
        tokens(reinvoked.stage.tokenizer, m[0]["content"]) for m in reinvoked.examples[4]
    ]
    base, student = (copy.deepcopy(reinvoked.start).double() for _ in range(2))
    student.load_state_dict({n: p.double() for n, p in reinvoked.weights[3].items()}, strict=False)

    def each(logits, row):
        with torch.no_grad():
            q = (
                base(torch.tensor([row.prompt + row.completion])).logits[
                    0, -len(row.completion) - 1 : -1
                ]
                / 0.8
            ).log_softmax(-1)
        p = (logits / 0.8).log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean() / 4

    wanted, gradients = naive(
        student, [Row(p, c.token_ids) for p, (c,) in zip(prompts, groups, strict=True)], each
    )
    assert reinvoked.logs[4]["loss"] == pytest.approx(wanted, rel=1e-4) and wanted > 1e-3
    assert_close(reinvoked.gradients[4], gradients, 1e-3)


def test_the_second_phase_is_a_training_of_its_own(reinvoked):
    """Its schedule begins again, and so do AdamW's averages: a new optimizer on the recorded
    gradients takes the same steps.
    """
    assert [line["learning_rate"] for line in reinvoked.logs] == pytest.approx(
        [1e-2, 1e-2 * 2 / 3, 1e-2 / 3] * 2
    )
    params = {n: p.clone().requires_grad_() for n, p in reinvoked.weights[2].items()}
    adamw = torch.optim.AdamW(params.values(), weight_decay=0.0)
    for line, gradient, after in list(
        zip(reinvoked.logs, reinvoked.gradients, reinvoked.weights, strict=True)
    )[3:]:
        for name, p in params.items():
            p.grad = gradient[name].clone()
        adamw.param_groups[0]["lr"] = line["learning_rate"]
        adamw.step()
        for name, p in params.items():
            assert (p - after[name]).abs().max() < 1e-6, name


def test_general_prompts():
    own = general_prompts(None)
    assert len({m[0]["content"] for m in own}) == len(own) >= 100 and all(len(m) == 1 for m in own)


def test_general_prompts_ask_nothing_that_retention_measures():
    """Or the method that learns from them would be the only one to see it: no prompt has two words
    of substance of an item.
    """

    def words(text):
        return {word.rstrip("s") for word in re.findall("[a-z]{5,}", text.lower())} - {"write"}

    data = DEFAULT_PROMPTS.parent.parent / "benchmarks/retention/tasks/data"
    items = [
        words(f"{row['text']} {row['answer']}")
        for name in ("facts", "commonsense")
        for row in read_lines(data / f"{name}.jsonl")
    ]
    assert len(items) > 100
    for prompt in general_prompts(None):
        assert max(len(words(prompt[0]["content"]) & item) for item in items) < 2, prompt


def test_a_file_of_general_prompts(order_file, tmp_path):
    write_rows(
        tmp_path / "mine.jsonl",
        [{"prompt": "Hello?"}, {"prompt": [{"role": "user", "content": "And?"}]}],
    )
    order = read_order(order_file(methods={"sft_reinvoke": {"general_prompts": "mine.jsonl"}}))
    assert general_prompts(order.methods["sft_reinvoke"].config.general_prompts)[1] == [
        {"role": "user", "content": "And?"}
    ]
    write_rows(tmp_path / "wrong.jsonl", [{"prompt": "Hello?"}, {"question": "And?"}])
    for file, said in (
        ("wrong.jsonl", "wrong.jsonl, row 2: `prompt` must be a text or chat messages"),
        (
            "none.jsonl",
            "methods.sft_reinvoke: general_prompts: none.jsonl is not a file; "
            "JSONL file with `prompt`",
        ),
    ):
        with pytest.raises(UserError, match=said):
            read_order(order_file(methods={"sft_reinvoke": {"general_prompts": file}}))


# ---- what the teacher is shown ------------------------------------------------------------------


@pytest.mark.parametrize("style", ["paper", "three_turn"])
def test_teacher_contexts_show_what_they_say(style):
    skill = get_skill("bulletins")
    e = skill.examples("train")[0]
    for context in TEACHER_CONTEXTS:
        # the style counts, whatever the template shows itself
        for template in (style, f"{style}_source", f"{style}_both"):
            turns = skill.teacher_prompt(e, template, context)
            text = "\n".join(t["content"] for t in turns)
            assert (e.source in text) == (context != "demonstration") and (
                e.demonstration in text
            ) == (context != "source")
            assert turns[-1]["role"] == "user" and e.prompt[-1]["content"] in turns[-1]["content"]
            assert "{" not in text
    assert skill.teacher_prompt(e, style, "demonstration") == skill.teacher_prompt(e, style)
    assert skill.teacher_prompt(e, context="both") == skill.teacher_prompt(e)  # the skill's own


@pytest.mark.parametrize("method", ["sdft", "offline_distillation", "sft_from_teacher"])
def test_contexts_that_cannot_be_had_are_refused(order_file, method):
    path = order_file(methods={method: {"teacher_context": "both"}})
    with pytest.raises(
        UserError, match=f"methods.{method}: skill vowels, example 1: has no source"
    ):
        read_order(path)
    with pytest.raises(
        UserError, match=f"methods.{method}: skill vowels: its teacher_template is written out"
    ):
        written = "[{role: user, content: '{question} {source}'}]"
        read_order(path, [f"skills.vowels.teacher_template={written}"])


def test_cpt_wants_sources(order_file):
    with pytest.raises(
        UserError, match=r"methods\.cpt: cpt needs sources; skill vowels, example 1 has none"
    ):
        read_order(order_file(methods={"cpt": {}}))


# ---- through an order, cut off and resumed ------------------------------------------------------


@pytest.fixture
def sourced(order_file, tmp_path):
    """A function to an order of two skills with sources, whose demonstrations are longer than a
    rollout may be.
    """

    def write(**changes):
        path = order_file(**{"checkpoints": {"minutes": 0, "keep": "last"}, **changes})
        for skill in ("vowels", "digits"):
            write_rows(
                tmp_path / f"{skill}-train.jsonl",
                [
                    {
                        "prompt": f"{skill} train {i}?",
                        "demonstration": f"{skill[0]}{i % 10}" * 5,
                        "reference": "r",
                        "source": f"All that is known of {skill}, part {i // 2}.",
                    }
                    for i in range(12)
                ],
            )
        return path

    return write


def what_it_left(folder):
    """Records and training logs without their times, method files, and the weights' checksums."""
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".jsonl":
            out[name] = [
                {k: v for k, v in row.items() if k != "seconds"} for row in read_lines(path)
            ]
        elif path.name == SUMS:  # files that it lists: their hashes cover seconds as well
            out[name] = [line.split()[1] for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors" or path.parent.name == "method":
            out[name] = sha256(path)
    return out


@pytest.mark.parametrize(
    "method, options",
    [
        *((m, {}) for m in NEW),
        ("offline_distillation", {"generations": 5}),
        ("sft_reinvoke", {"reinvoke_prompts": 5}),
        ("sdft", {"estimator": "rao_blackwell", "teacher_context": "both"}),
    ],
)
def test_cut_off_and_resumed_is_the_same_run(sourced, tmp_path, monkeypatch, method, options):
    order = read_order(sourced(methods={method: {"learning_rate": 1e-3, **options}}))
    run_order(order, tmp_path / "alone")
    real, calls = Trainer.update, []
    steps = sum(
        -(-p // 4) for p in order.methods[method].cls(order.methods[method].config).phases(12)
    )

    def update(trainer):
        calls.append(1)
        # before the first step, within phases, at and after their borders
        if len(calls) in (1, 3, 6, 8, steps + 9):
            raise KeyboardInterrupt
        return real(trainer)

    monkeypatch.setattr(Trainer, "update", update)
    for _ in range(6):
        try:
            run_order(order, tmp_path / "cut")
        except KeyboardInterrupt:
            continue
        break
    alone, cut = what_it_left(tmp_path / "alone"), what_it_left(tmp_path / "cut")
    assert alone.keys() == cut.keys() and [n for n in alone if alone[n] != cut[n]] == []
    assert len(calls) > 2 * steps + 3
    assert [
        r["step"] for k in (1, 2) for r in alone[f"runs/{method}-seed0/stage-{k}/training.jsonl"]
    ] == [*range(1, 2 * steps + 1)]


@pytest.mark.parametrize(
    "method, options",
    [(m, {}) for m in NEW]
    + [("offline_distillation", {"generations": 4}), ("sft_reinvoke", {"reinvoke_prompts": 8})],
)
def test_plan_knows_the_work(sourced, tmp_path, monkeypatch, method, options):
    """Steps and prompts exactly; tokens within a sixth of those that the run counts, its answers
    being as long as they may.

    The plan counts every prompt in full, so here what prompts have in common is not shared.
    """
    monkeypatch.setattr(packing, "can_share_prompts", lambda model: False)
    monkeypatch.setattr(buffers, "can_share_prompts", lambda model: False)
    write_rows(tmp_path / "general.jsonl", [{"prompt": f"What is {i}?"} for i in range(9)])
    if method == "sft_reinvoke":
        options = {**options, "general_prompts": "general.jsonl"}
    order = read_order(sourced(methods={method: options}, evaluate={"examples": 1}))
    text = plan(order, tmp_path / "out")
    run_order(order, tmp_path / "out")
    stage = json.loads((tmp_path / f"out/runs/{method}-seed0/stage-1/stage.json").read_text())
    line = next(line.split() for line in text.splitlines() if line.startswith(method))[1:]
    assert line[0] == "vowels" and [int(n) for n in (line[1], line[3])] == [
        stage["prompts"],
        stage["steps"],
    ]
    skill, spec = order.skills[0], order.methods[method]
    _, tokenizer = load_model(order.model.name, "float32", "cpu")
    work = spec.cls(spec.config).work(
        Outlook(tokenizer, skill, order.template(skill), order.limit(skill, rollout=True), 12)
    )
    guess = 12 * (
        work.learned + work.scored + work.read + (work.answers + work.beforehand) * work.sampled
    )
    assert stage["tokens"] == pytest.approx(guess, rel=1 / 6)


def test_every_method_file_is_one_method():
    for name in (*NEW, "sft", "sdft", "grpo"):
        cls = get_method(name)
        assert cls.__module__ == f"methods.{name}" and cls(cls.Config()).phases(8)[0] == 8
