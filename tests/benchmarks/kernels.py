"""Kernels of a Qwen2 on the strict device: what the cost model of a GPU counts."""

from functools import partial
from unittest import mock

import torch

from benchmarks import strict_device
from tests.conftest import tiny_tokenizer

DEVICE = strict_device.NAME


def begin():
    torch.set_num_threads(1)
    strict_device.register()


def _model(layers):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64},
        **{"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2},
        bos_token_id=0,
        eos_token_id=0,
    )
    return Qwen2ForCausalLM(config).to(torch.bfloat16).to(DEVICE).eval()


def kernels(layers, masters, chunk=14, limit=256, recomputes=False, moments="float32"):
    """{phase: kernels} of a model of so many layers; of a step those of all 16 rows."""
    from benchmarks.gpu_check.material import make_rows, make_stage
    from harness.learning import moments as in_8_bits
    from harness.learning import packing
    from harness.learning.distillation import distil
    from harness.learning.packing import Row
    from harness.learning.teacher import Teacher
    from harness.learning.trainer import Trainer
    from methods.sdft import SDFTConfig

    found = {}

    def counted(name, work):
        strict_device.reset_counts()
        result = work()
        found[name] = strict_device.counts()["kernels"]
        return result

    model, tokenizer = _model(layers), tiny_tokenizer()
    stage = make_stage(model, tokenizer, deterministic=False)
    stage.sampler.stops = {-1}
    for name, lengths in (("token", [9] * 6), ("masked token", [9, 8, 9, 7, 9, 9])):
        prompts = [[i + 5, *range(9, 8 + length)] for i, length in enumerate(lengths)]
        stage.sampler.sample(prompts, max_new_tokens=1)  # asks what the model can do
        for limit_of in (2, 12):
            answer = partial(stage.sampler.sample, prompts, max_new_tokens=limit_of, seed=1)
            counted(limit_of, answer)
        found[name] = (found.pop(12) - found.pop(2)) / 10
    options = {"micro_batch_tokens": limit, "gradient_checkpointing": recomputes}
    config = SDFTConfig(masters=masters, moments=moments, **options)
    rows = [
        Row([t - 300 for t in row.prompt], [t - 300 for t in row.completion])
        for row in make_rows(600, [16] * 16, 16)
    ]
    seen = [Row([5, 6, *row.prompt], row.completion) for row in rows]
    with (
        mock.patch.dict(packing.VOCABULARY_CHUNK, {True: chunk * 300}),
        mock.patch.object(in_8_bits, "SMALLEST", 0),
    ):
        trainer = Trainer(stage, config)
        teacher = Teacher(stage, config.ema_alpha, trainer.limit, trainer.place)
        for _ in range(2):  # the first makes what is kept
            counted("step", lambda: distil(trainer, teacher, rows, seen, config))
            counted("update", trainer.update)
            counted("average", lambda: teacher.follow(trainer.masters))
        trainer.close()
    found["weights"] = len(list(model.parameters()))
    return found
