"""Other models that a method or a part names: found, compared, on record; and old prompts."""

import copy
import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

import harness.runs.plan
from harness.base.errors import UserError
from harness.base.files import read_json
from harness.learning.lessons import Lesson
from harness.learning.trainer import TrainingConfig
from harness.models.load import load_model
from harness.models.others import check_vocabulary, load_other, model_checksum, weights_in
from harness.models.size import product_weights
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.runs.stage_run import SkillStage
from methods.parts.anchor import Anchor, AnchorConfig
from tests.conftest import read_lines, save_tiny, write_rows
from tests.learning.test_training import assert_near
from tests.methods.test_penalties import SETTINGS, Old, naive_divergence, naive_training, taught

GKD_OF = ("gkd", lambda name: {"teacher_model": name}, "files.teacher_model")
ANCHOR_OF = ("sft", lambda name: {"with": {"anchor": {"of": name}}}, "files.with.anchor.of")
TRL_OF = (
    "trl",
    lambda name: {"trainer": "GKDTrainer", "teacher_model": name},
    "files.teacher_model",
)
NAMING = pytest.mark.parametrize(("method", "options", "key"), [GKD_OF, TRL_OF, ANCHOR_OF])


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_an_anchor_to_another_model_is_that_of_a_loop_in_float64(tiny_model, tmp_path, kind):
    """It is of another size, and its head has rows that are no tokens."""
    base, tokenizer = tiny_model
    save_tiny(tmp_path / "other", seed=4, hidden_size=48, vocab_size=270)
    part = Anchor(AnchorConfig(beta=2.0, of=str(tmp_path / "other"), divergence=kind))
    config = TrainingConfig(**SETTINGS)
    live, stage, logs = taught(base, tokenizer, part, {}, config, tmp_path)
    other, _ = load_model(str(tmp_path / "other"), "float32", "cpu")
    other, width = other.double(), base.config.vocab_size

    class Cut:
        def __call__(self, ids):
            found = other(ids)
            found.logits = found.logits[..., :width]
            return found

    drawn, losses = stage.draws(), []

    def extra(naive, number):
        examples = [stage.examples[i] for i in drawn[4 * number : 4 * number + 4]]
        rows = stage.demonstration_rows(examples)
        total = sum(naive_divergence(naive, Cut(), row, kind, 1.0) for row in rows)
        losses.append(2 * total / sum(len(row.completion) for row in rows))
        return losses[-1]

    expected, _ = naive_training(base, stage, config, None, None, extra)
    for key, weight in live.named_parameters():
        assert_near(weight, expected[key])
    assert [log["anchor_loss"] for log in logs] == pytest.approx(
        [loss.item() for loss in losses], rel=1e-3
    )
    assert losses[0] > 0.1
    scored, sizes = stage.tokens - stage.learned, [product_weights(m) for m in (other, base)]
    assert scored > 0 and sizes[0] > 1.2 * sizes[1]
    assert stage.beside == pytest.approx(scored * (sizes[0] / sizes[1] - 1))


@NAMING
def test_a_folder_is_found_beside_the_order(
    order_file, tmp_path, monkeypatch, method, options, key
):
    """From whatever folder the command starts; the current one's comes second."""
    save_tiny(tmp_path / "beside", seed=4)
    elsewhere = tmp_path / "elsewhere"
    save_tiny(elsewhere / "beside", seed=5)
    save_tiny(elsewhere / "here", seed=6)
    monkeypatch.chdir(elsewhere)
    for name, folder in (("beside", tmp_path), ("./beside", tmp_path), ("here", elsewhere)):
        spec = read_order(order_file(methods={method: options(name)})).methods[method]
        ((found, checksum),) = spec.models().items()
        assert checksum == model_checksum(str(folder / name), "test")
        assert model_checksum(found, "test") == checksum
        assert spec.files == {key.removeprefix("files."): checksum}
        assert spec.written == {"teacher_model": name} or spec.parts[0].written == {"of": name}


@NAMING
def test_a_model_that_cannot_be_compared_is_refused(order_file, tmp_path, method, options, key):
    folder = save_tiny(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["and"])
    tokenizer.save_pretrained(folder)
    (tmp_path / "empty").mkdir()
    option = key.rpartition(".")[2]
    for name, said in (
        ("other", "has another tokenizer than"),
        ("empty", "is not a model folder"),
        ("./nowhere", "./nowhere is not a folder"),
        ("no-one/nothing", "no-one/nothing cannot be loaded"),
        ("stge", "there is no model 'stge'; did you mean 'stage'?"),
    ):
        with pytest.raises(UserError) as error:
            read_order(order_file(methods={method: options(name)}))
        line = str(error.value)
        assert said in line and f": {option}: " in line and "\n" not in line, line


@NAMING
def test_another_model_under_the_same_name_does_not_go_on(
    order_file, tmp_path, monkeypatch, method, options, key
):
    """Between two starts, for a further seed, and while a run goes on."""
    save_tiny(tmp_path / "other", seed=4)
    path, out = order_file(methods={method: options("other")}, evaluate={}), tmp_path / "out"
    learn = SkillStage.learn

    def struck(stage):
        if stage.number == 2:
            raise KeyboardInterrupt
        learn(stage)

    with monkeypatch.context() as patch:
        patch.setattr(SkillStage, "learn", struck)
        with pytest.raises(KeyboardInterrupt):
            run_order(read_order(path), out)
    about = read_json(out / "results.json")["methods"][method]
    name = key.removeprefix("files.")
    assert about["files"] == {name: model_checksum(str(tmp_path / "other"), "test")}
    anchor = about.get("with", {}).get("anchor", {})
    assert "other" in (about["config"].get("teacher_model"), anchor.get("of"))
    assert read_json(out / f"runs/{method}-seed0/run.json")["files"] == about["files"]
    before = (out / "results.json").read_bytes()
    shutil.move(tmp_path / "other", tmp_path / "first")
    save_tiny(tmp_path / "other", seed=5)
    for seeds in ((0,), (1,)):
        with pytest.raises(UserError, match=rf"`methods\.{method}\.files\.{name}` was"):
            run_order(read_order(path, seeds=seeds), out)
    assert (out / "results.json").read_bytes() == before
    assert not (out / f"runs/{method}-seed1").exists()
    shutil.rmtree(tmp_path / "other")
    shutil.copytree(tmp_path / "first", tmp_path / "other")
    order = read_order(path)  # and then the folder changes
    save_tiny(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match="other: has changed since the run started"):
        run_order(order, out)
    shutil.rmtree(tmp_path / "other")
    shutil.copytree(tmp_path / "first", tmp_path / "other")
    run_order(read_order(path), out)
    assert (out / f"runs/{method}-seed0/stage-2/stage.json").exists()


def test_a_base_model_needs_no_chat_template(tmp_path):
    """Its tokens and weights alone are used."""
    own, other = save_tiny(tmp_path / "own"), save_tiny(tmp_path / "other", seed=4)
    for folder in (own, other):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = None
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
    check_vocabulary(str(other), str(own), None, "here")
    like, _ = load_model(str(own), "float32", "cpu", template="plain")
    loaded = load_other(str(other), like, model_checksum(str(other), "here"))
    assert not torch.equal(loaded.lm_head.weight, like.lm_head.weight)


def test_config_and_weights_tell_a_model(tmp_path):
    folder = save_tiny(tmp_path / "one")
    first = model_checksum(str(folder), "test")
    (folder / "README.md").write_text("words")
    assert model_checksum(str(folder), "test") == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert model_checksum(str(folder), "test") != first


def test_start_words_are_never_folders(order_file, tmp_path):
    save_tiny(tmp_path / "run", seed=4)
    for name, found in (("run", {}), ("./run", {"with.anchor.of"})):
        spec = read_order(order_file(methods={"sft": ANCHOR_OF[1](name)})).methods["sft"]
        assert set(spec.files) == set(found)


def test_the_plan_counts_it_as_a_model_and_checks_its_positions(
    order_file, tiny_model, tmp_path, monkeypatch
):
    save_tiny(tmp_path / "other", seed=4)
    found, estimate = [], harness.runs.plan.estimate_order
    monkeypatch.setattr(
        harness.runs.plan, "estimate_order", lambda *a: found.append(estimate(*a)) or found[-1]
    )
    save_tiny(tmp_path / "large", seed=4, hidden_size=1024)
    peaks, seconds = [], []
    for of in ("stage", "other", "large"):
        anchor = {"anchor": {"of": of}}
        methods = {"sft": {"with": anchor}}
        plan(read_order(order_file(methods=methods)), tmp_path / "out")
        peaks.append(sum(found[-1].memory["sft"]))
        seconds.append(found[-1].seconds)
    assert peaks[0] == peaks[1]
    own, large = (weights_in(str(tmp_path / name)) for name in ("other", "large"))
    assert large > 20 * own and own == sum(w.numel() for w in tiny_model[0].parameters())
    assert (peaks[2] - peaks[1]) * 2**30 == pytest.approx(4 * (large - own), rel=0.05)
    assert seconds[2] > seconds[1]
    save_tiny(tmp_path / "short", seed=4, max_position_embeddings=20)
    with pytest.raises(UserError, match="do not fit the model's 20 positions"):
        plan(read_order(order_file(methods={"gkd": {"teacher_model": "short"}})), tmp_path / "s")


# ---- old prompts --------------------------------------------------------------------------------


def test_old_prompts_are_those_that_are_short_enough(tiny_model, tmp_path):
    base, tokenizer = tiny_model
    part = Anchor(AnchorConfig(along="old_prompts", share=2.0))
    old = Old()
    short = old.examples("train")[:2]
    start = {"stage": copy.deepcopy(base)}
    _, stage, _ = taught(
        base, tokenizer, part, start, TrainingConfig(**SETTINGS), tmp_path,
        earlier=[Lesson(old, 4, None, short)],
    )  # fmt: skip
    assert part.pool == short
    texts = [m["content"] for e in [*short, *stage.examples] for m in e.prompt]
    part.end(stage)
    assert part.kept_bytes() == sum(len(text.encode()) for text in texts)


def test_a_run_leaves_long_prompts_out_of_old_ones_and_counts_the_rest(
    order_file, tmp_path, monkeypatch
):
    anchored = {"learning_rate": 1e-3, "with": {"anchor": {"along": "old_prompts"}}}
    methods = {"a": {"method": "sft", **anchored}, "sft": {"learning_rate": 1e-3}}
    path = order_file(
        methods=methods,
        evaluate={},
        rollout={"max_prompt_tokens": 60},
        checkpoints={"keep": "all"},
    )
    file = tmp_path / "vowels-train.jsonl"
    rows = read_lines(file)
    rows[3]["prompt"] += " é" * 200
    write_rows(file, rows)
    pools, begin = [], Anchor.begin

    def spied(part, stage):
        begin(part, stage)
        pools.append([example.id for example in part.pool])

    monkeypatch.setattr(Anchor, "begin", spied)
    run_order(read_order(path), tmp_path / "out")
    assert [len(pool) for pool in pools] == [0, 11] and "4" not in pools[1]
    kept = {
        label: [
            read_json(tmp_path / f"out/runs/{label}-seed0/stage-{k}/stage.json") for k in (1, 2)
        ]
        for label in methods
    }
    first, last = (kept["a"][k]["kept_bytes"] - kept["sft"][k]["kept_bytes"] for k in (0, 1))
    texts = sum(len(row["prompt"].encode()) for i, row in enumerate(rows) if i != 3)
    state = [
        (tmp_path / f"out/runs/{label}-seed0/stage-1/method.pt").stat().st_size for label in methods
    ]
    assert first == texts + state[0] - state[1] and last == 0
    assert all(stage["gold_rows"] == 0 for stage in kept["a"])  # prompts have no answers
