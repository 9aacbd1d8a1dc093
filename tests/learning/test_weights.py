"""Teacher, masters and checkpoints are paired with parameters by name, some of them frozen."""

import copy

import pytest
import torch

from harness.learning.teacher import Teacher
from harness.learning.trainer import Trainer, TrainingConfig, learning
from harness.learning.weights import check_names
from methods.sdft import SDFT, SDFTConfig
from tests.learning.test_training import CONFIG, make_stage, some_rows, through_disk, token_mean

ALPHA = 0.3


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def half_frozen(tiny_model, request):
    """The tiny model with its first layer and its embeddings frozen, and the tokenizer."""
    model = copy.deepcopy(tiny_model[0]).to(request.param)
    model.get_input_embeddings().requires_grad_(False)
    model.model.layers[0].requires_grad_(False)
    return model, tiny_model[1]


def frozen_names(model):
    return [name for name, p in model.named_parameters() if not p.requires_grad]


def test_an_average_follows_the_masters_by_name(half_frozen):
    """A frozen weight stays what it is; every other one is the closed form of its own master."""
    model, tokenizer = half_frozen
    stage = make_stage(model, tokenizer)
    with learning(stage, TrainingConfig(**CONFIG)) as trainer:
        teacher = Teacher(stage, ALPHA, 2048, trainer.place)
        start = {n: numbers.detach().clone() for n, numbers in teacher.average.items()}
        assert all(torch.equal(p, start[n].to(p.dtype)) for n, p in model.named_parameters())
        assert all(torch.equal(m, start[n]) for n, m in trainer.masters.items())
        wanted = copy.deepcopy(start)
        for _ in stage.steps():
            trainer.backward(some_rows(), token_mean(some_rows()))
            trainer.update()
            teacher.follow(trainer.masters)
            for name, master in trainer.masters.items():
                wanted[name] = (1 - ALPHA) * wanted[name] + ALPHA * master.detach()
        assert set(start) - set(trainer.masters) == set(frozen_names(model)) and trainer.masters
    for name, param in teacher.model.named_parameters():
        assert torch.allclose(teacher.average[name], wanted[name], atol=1e-6), name
        assert torch.equal(param, teacher.average[name].to(param.dtype)), name
        assert torch.equal(wanted[name], start[name]) == (name in frozen_names(model)), name


def test_a_resumed_stage_with_frozen_weights_ends_in_the_same_bits(half_frozen):
    model, tokenizer = half_frozen
    method = SDFT(SDFTConfig(**CONFIG, ema_alpha=ALPHA))
    resumed = copy.deepcopy(model)
    saved, logs = {}, []

    def on_step(stage, step):
        logs.append({k: v for k, v in step.logged.items() if k != "seconds"})
        if stage.step == 2:
            state = {"model": stage.model.state_dict(), "stage": stage.state_dict()}
            saved.update(through_disk(state))

    method.learn(make_stage(model, tokenizer, prompts=15, on_step=on_step))
    whole = logs[:]
    del logs[2:]
    checkpoint = dict(saved)
    resumed.load_state_dict(checkpoint["model"])
    method.learn(
        make_stage(resumed, tokenizer, prompts=15, on_step=on_step, restored=checkpoint["stage"])
    )
    assert logs == whole and len(logs) == 4
    for (name, p), q in zip(model.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_a_checkpoint_holds_weights_and_moments_by_name(half_frozen):
    model, tokenizer = half_frozen
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    stage = make_stage(model, tokenizer)
    with learning(stage, TrainingConfig(**CONFIG)) as trainer:
        teacher = Teacher(stage, ALPHA, 2048, trainer.place)
        assert trainer.state_dict()["moments"] == {}  # before the first step
        next(stage.steps())
        trainer.backward(some_rows(), token_mean(some_rows()))
        trainer.update()
        state = trainer.state_dict()
        assert list(state["masters"]) == list(state["moments"]) == trained
        assert set(state["moments"][trained[0]]) == {"step", "exp_avg", "exp_avg_sq"}
        assert list(teacher.state_dict()["weights"]) == [n for n, _ in model.named_parameters()]


def test_names_that_do_not_agree_are_refused(half_frozen):
    """By the first name that is missing, before a weight is changed."""
    model, tokenizer = half_frozen
    stage = make_stage(model, tokenizer)
    with learning(stage, TrainingConfig(**CONFIG)) as trainer:
        teacher = Teacher(stage, ALPHA, 2048, trainer.place)
        masters = dict(trainer.masters)
        name, *others = masters
        with pytest.raises(ValueError, match="the teacher's average has no weight 'extra'"):
            teacher.follow({**masters, "extra": masters[name]})
        state = trainer.state_dict()
        fewer = {n: state["masters"][n] for n in others}
        with pytest.raises(ValueError, match=f"checkpoint of the trainer has no weight '{name}'"):
            trainer.load_state_dict({**state, "masters": fewer})
        with pytest.raises(ValueError, match="checkpoint of the optimizer has no weight"):
            trainer.load_state_dict({**state, "moments": {name: {}}})
        weights = {**teacher.state_dict()["weights"], "extra": masters[name]}
        with pytest.raises(ValueError, match="checkpoint of the teacher has a weight 'extra'"):
            teacher.load_state_dict({"weights": weights})
        for name, param in trainer.params.items():
            assert torch.equal(param, masters[name].to(param.dtype))


def test_check_names():
    check_names(["a", "b"], ["b", "a"], "x")
    with pytest.raises(ValueError, match="x has no weight 'c'"):
        check_names(["a"], ["a", "c", "d"], "x")
    with pytest.raises(ValueError, match="x has a weight 'b', which is unknown here"):
        check_names(["a", "b"], ["a"], "x")


def test_masters_are_the_parameters_where_they_can_be(tiny_model):
    model = copy.deepcopy(tiny_model[0])
    trainer = Trainer(make_stage(model, tiny_model[1]), TrainingConfig(**CONFIG))
    assert list(trainer.masters) == list(trainer.params) == [n for n, _ in model.named_parameters()]
    assert all(trainer.masters[name] is param for name, param in trainer.params.items())
