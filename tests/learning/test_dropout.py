"""Dropout acts where demonstrations are learned and nowhere else; what weight decay leaves out."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, Qwen3Config
from transformers.trainer import Trainer as TransformersTrainer

from harness.learning.trainer import TrainingConfig, cross_entropy, decayed_names, learning
from harness.models.load import load_model
from harness.models.segments import can_take_segments
from methods.grpo import GRPO, GRPOConfig
from methods.sdft import SDFT, SDFTConfig
from methods.sft import SFT
from methods.sft_reinvoke import ReinvokeConfig, SFTReinvoke
from tests.conftest import save_tiny
from tests.learning.test_training import CONFIG, fresh, make_stage, some_rows  # noqa: F401


@pytest.fixture(scope="module")
def dropping(tmp_path_factory):
    """(a tiny model with dropout, its tokenizer)."""
    folder = save_tiny(tmp_path_factory.mktemp("dropout"), attention_dropout=0.5)
    model, tokenizer = load_model(str(folder), "float32", "cpu")
    can_take_segments(model)  # is asked in eval mode, as at the start of a run
    return model, tokenizer


def passes(model, learn):
    """Whether the model was in training mode in each pass through its first layer."""
    found = []
    layer = model.model.layers[0]
    hook = layer.register_forward_pre_hook(lambda *_: found.append(model.training))
    learn()
    hook.remove()
    assert not model.training
    return found


@pytest.mark.parametrize("dropout", ["keep", "none"])
@pytest.mark.parametrize(
    "method, config, acts",
    [
        (SFT, TrainingConfig, True),
        (SDFT, SDFTConfig, False),
        (GRPO, GRPOConfig, False),
    ],
)
def test_dropout_is_off_while_sampling_scoring_and_learning_own_samples(
    method, config, acts, dropout, dropping
):
    model, tokenizer = copy.deepcopy(dropping[0]), dropping[1]
    stage = make_stage(model, tokenizer)
    made = method(config(**CONFIG, dropout=dropout))
    found = passes(model, lambda: made.learn(stage))
    assert found and set(found) == {acts and dropout == "keep"}


def test_a_phase_on_samples_follows_one_on_demonstrations(dropping, tmp_path):
    model, tokenizer = copy.deepcopy(dropping[0]), dropping[1]
    stage = make_stage(model, tokenizer, phases=[8, 8], folder=tmp_path)
    made = SFTReinvoke(ReinvokeConfig(**CONFIG, reinvoke_prompts=8))
    found = passes(model, lambda: made.learn(stage))
    changes = [a for a, b in zip(found, [*found[1:], None], strict=True) if a != b]
    assert changes == [True, False]


def test_dropout_changes_the_loss_and_repeats_with_its_seed(dropping):
    losses = {}
    for dropout in ("keep", "none"):
        for again in range(2):
            stage = make_stage(copy.deepcopy(dropping[0]), dropping[1])
            with learning(stage, TrainingConfig(**CONFIG, dropout=dropout)) as trainer:
                for _ in stage.steps():
                    logged = trainer.token_mean(some_rows(), cross_entropy)
                    losses.setdefault((dropout, again), []).append(logged["loss"])
    assert losses["keep", 0] == losses["keep", 1] and losses["none", 0] == losses["none", 1]
    assert len(set(losses["none", 0])) == 1 < len(set(losses["keep", 0]))


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=16, attention_bias=True, mlp_bias=True),
    "qwen3": Qwen3Config(**SMALL, intermediate_size=16, head_dim=8),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_head=2, n_layer=2),
    "opt": OPTConfig(**SMALL, ffn_dim=16, word_embed_proj_dim=16),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_decayed_weights_are_those_of_transformers(name):
    """TRL's trainers are transformers' one in this."""
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    theirs = TransformersTrainer.get_decay_parameter_names(None, model)
    mine = [n for n, _ in model.named_parameters()]
    assert decayed_names(model) == set(theirs) & set(mine)
    assert 0 < len(decayed_names(model)) < len(mine)


def test_norms_and_biases_do_not_decay(fresh):  # noqa: F811
    """With a rate times decay of 0.1 and no gradient, decayed weights shrink by a tenth."""
    model, stage = fresh[0], make_stage(*fresh)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    config = TrainingConfig(
        learning_rate=0.1, weight_decay=1.0, warmup_steps=0, schedule="constant"
    )
    with learning(stage, config) as trainer:
        next(stage.steps())
        trainer.update()
    for name, param in model.named_parameters():
        shrinks = "norm" not in name
        assert torch.allclose(param, before[name] * (0.9 if shrinks else 1.0)), name
