"""One point of the memory and growth rows, in a process of its own: ``python -m
benchmarks.speed.point JSON``.

Prints JSON: seconds, peak_mib (largest resident set), base_mib (before the first step, the model
loaded), used_mib (their difference).
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.speed.timing import peak_mib
from harness.base.files import write_jsonl
from harness.base.seeds import seed_for
from harness.learning.method import Method
from harness.learning.packing import Row, completion_states, micro_batches
from harness.learning.stage import Stage
from harness.learning.teacher import Teacher
from harness.learning.trainer import learning
from harness.runs.order import Order
from harness.runs.sequence import run_order
from harness.sampling.sampler import Completion
from harness.skills.skill import Example, Skill
from methods.sdft import SDFT, SDFTConfig

SIZE = {
    "vocabulary": 8192,
    "width": 256,
    "layers": 2,
    "prompt": 64,
    "completion": 128,
    "rows": 4,
    "examples": 12,
}


def random_model(vocabulary, width, layers):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    ).eval()


class Nothing(Skill):
    name, metrics = "nothing", {"none": lambda completion, reference: 0.0}

    def load(self, split):
        return [Example(str(i), [], "", i) for i in range(64)]


class Replayed(Stage):
    """A stage whose prompts and completions are random tokens of given lengths: the learning alone,
    no sampling.
    """

    def __init__(self, size, **settings):
        super().__init__(
            tokenizer=None,
            sampler=None,
            skill=Nothing(),
            seed=0,
            index=1,
            max_new_tokens=size["completion"],
            **settings,
        )
        self.size = size

    def _tokens(self, count, *key):
        generator = torch.Generator().manual_seed(seed_for(*key))
        return torch.randint(self.size["vocabulary"], (count,), generator=generator).tolist()

    def prompt_tokens(self, example):
        return self._tokens(self.size["prompt"], example.id)

    def teacher_tokens(self, example, context=None):
        return self._tokens(2 * self.size["prompt"], example.id, "teacher")

    def sample(self, prompts, *, seed, n=1, **_):
        tokens = [self._tokens(self.size["completion"], seed, i) for i in range(len(prompts))]
        return [[Completion(t, [0.0] * len(t), False, "")] for t in tokens]


class Bare(Method):
    """SDFT's step without a loss on top: the same passes over the same tokens, no head and no
    vocabulary-sized tensor.
    """

    Config = SDFTConfig

    def learn(self, stage):
        with learning(stage, self.config) as trainer:
            teacher = Teacher(stage, self.config.ema_alpha, trainer.limit)
            for step in stage.steps():
                answers = [
                    c
                    for (c,) in stage.sample(
                        [stage.prompt_tokens(e) for e in step.examples], seed=step.seed
                    )
                ]
                rows, shown = (
                    [Row(tokens(e), c.token_ids) for e, c in zip(step.examples, answers)]
                    for tokens in (stage.prompt_tokens, stage.teacher_tokens)
                )
                targets = teacher.states(shown)
                for group in micro_batches(trainer.model, rows, trainer.limit):
                    states, _ = completion_states(trainer.model, rows, group)
                    states.backward(torch.ones_like(states))
                del targets
                trainer.update()
                teacher.follow(trainer.masters)


def learn(kind, size):
    """SDFT or Bare on a random model, ``rows`` examples a step; one more step comes first and is
    not timed.
    """
    model = random_model(size["vocabulary"], size["width"], size["layers"])
    base, seconds = peak_mib(), []
    method = {"sdft": SDFT, "bare": Bare}[kind](SDFTConfig(warmup_steps=0))
    method.learn(
        Replayed(
            size,
            model=model,
            prompts=size["examples"] + size["rows"],
            batch_size=size["rows"],
            on_step=lambda stage, step: seconds.append(step.logged["seconds"]),
        )
    )
    return sum(seconds[1:]), base


def order(skills, folder):
    """A whole order of ``skills`` small skills, one method, all of them evaluated after each stage."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        random_model(len(tokenizer), 64, 2).save_pretrained(place / "model")
        tokenizer.save_pretrained(place / "model")
        for i in range(skills):
            for split in ("train", "test"):
                rows = [
                    {"prompt": f"{split} {i}, {j}?", "demonstration": f"{i}", "reference": f"{i}"}
                    for j in range(8)
                ]
                write_jsonl(place / f"s{i}-{split}.jsonl", rows)
        entries = [
            {
                "name": f"s{i}",
                "train": f"s{i}-train.jsonl",
                "test": f"s{i}-test.jsonl",
                "grader": "token_f1",
                "max_new_tokens": 16,
            }
            for i in range(skills)
        ]
        made = Order(
            {
                "model": {"name": str(place / "model"), "dtype": "float32", "device": "cpu"},
                "skills": entries,
                "methods": {"sft": {}},
                "budget": {"prompts": 8, "batch_size": 8},
            },
            place / "growth.yaml",
        )
        base, start = peak_mib(), time.perf_counter()
        run_order(made, place / "results")
        return time.perf_counter() - start, base


def main():
    what = json.loads(sys.argv[1])
    folder, kind = what.pop("folder", None), what.pop("kind")
    seconds, base = order(what["skills"], folder) if kind == "order" else learn(kind, SIZE | what)
    peak = peak_mib()
    print(
        json.dumps(
            {"seconds": seconds, "peak_mib": peak, "base_mib": base, "used_mib": peak - base}
        )
    )


if __name__ == "__main__":
    main()
