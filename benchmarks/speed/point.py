"""One point of the memory and growth rows, in a process of its own.

    python -m benchmarks.speed.point JSON

Prints JSON: seconds, peak_mib (largest resident set), base_mib (before the first step, the model
loaded), used_mib (their difference).
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

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


def random_model(vocabulary: int, width: int, layers: int) -> LlamaForCausalLM:
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
    """A skill whose texts are never read."""

    name = "nothing"
    metrics: ClassVar = {"none": lambda completion, reference: 0.0}

    def load(self, split: str) -> list[Example]:
        prompt = [{"role": "user", "content": ""}]
        return [Example(str(i), prompt, "", i) for i in range(64)]


class Replayed(Stage):
    """A stage whose prompts and completions are random tokens: the learning alone, no sampling.

    size: lengths and vocabulary, as SIZE has them.
    """

    def __init__(self, size: Mapping[str, int], **settings: Any) -> None:
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

    def _tokens(self, count: int, *key: Any) -> list[int]:
        generator = torch.Generator().manual_seed(seed_for(*key))
        return torch.randint(self.size["vocabulary"], (count,), generator=generator).tolist()

    def prompt_tokens(self, example: Example) -> list[int]:
        return self._tokens(self.size["prompt"], example.id)

    def teacher_tokens(self, example: Example, context: Any = None) -> list[int]:
        return self._tokens(2 * self.size["prompt"], example.id, "teacher")

    def sample(self, prompts: Any, *, seed: int, n: int = 1, **_: Any) -> list[list[Completion]]:
        tokens = [self._tokens(self.size["completion"], seed, i) for i in range(len(prompts))]
        return [[Completion(t, [0.0] * len(t), False, "")] for t in tokens]


class Bare(Method):
    """SDFT's step without a loss: the same passes over the same tokens, and no more.

    There is no head and no tensor of the vocabulary's size.
    """

    Config = SDFTConfig

    def learn(self, stage: Stage) -> None:
        with learning(stage, self.config) as trainer:
            teacher = Teacher(stage, self.config.ema_alpha, trainer.limit)
            for step in stage.steps():
                prompts = [stage.prompt_tokens(example) for example in step.examples]
                rows, teacher_rows = [], []
                groups = stage.sample(prompts, seed=step.seed)
                for example, prompt, (answer,) in zip(step.examples, prompts, groups, strict=True):
                    rows.append(Row(prompt, answer.token_ids))
                    teacher_rows.append(Row(stage.teacher_tokens(example), answer.token_ids))
                targets = teacher.states(teacher_rows)
                for group in micro_batches(trainer.model, rows, trainer.limit):
                    states, _ = completion_states(trainer.model, rows, group)
                    states.backward(torch.ones_like(states))
                del targets
                trainer.update()
                teacher.follow(trainer.masters)


def learn(kind: str, size: Mapping[str, int]) -> tuple[float, float]:
    """(seconds, memory before) of SDFT or Bare on a random model, ``rows`` examples a step.

    One more step comes first and is not timed.
    """
    model = random_model(size["vocabulary"], size["width"], size["layers"])
    base = peak_mib()
    seconds: list[float] = []
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


def order(skills: int, folder: str) -> tuple[float, float]:
    """(seconds, memory before) of a whole order of small skills.

    It has one method, and evaluates all skills after each stage. folder: of the tokenizer.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        random_model(len(tokenizer), 64, 2).save_pretrained(place / "model")
        tokenizer.save_pretrained(place / "model")
        mapping = {
            "model": {"name": str(place / "model"), "dtype": "float32", "device": "cpu"},
            "skills": [small_skill(place, i) for i in range(skills)],
            "methods": {"sft": {}},
            "budget": {"prompts": 8, "batch_size": 8},
        }
        small_order = Order(mapping, place / "growth.yaml")
        base, start = peak_mib(), time.perf_counter()
        run_order(small_order, place / "results")
        return time.perf_counter() - start, base


def small_skill(place: Path, number: int) -> dict[str, Any]:
    """Writes a skill of eight examples a split; returns its entry in the order."""
    entry: dict[str, Any] = {"name": f"s{number}", "grader": "token_f1", "max_new_tokens": 16}
    for split in ("train", "test"):
        rows = [
            {
                "prompt": f"{split} {number}, {j}?",
                "demonstration": f"{number}",
                "reference": f"{number}",
            }
            for j in range(8)
        ]
        entry[split] = f"s{number}-{split}.jsonl"
        write_jsonl(place / entry[split], rows)
    return entry


def main() -> None:
    what = json.loads(sys.argv[1])
    folder, kind = what.pop("folder", None), what.pop("kind")
    seconds, base = order(what["skills"], folder) if kind == "order" else learn(kind, SIZE | what)
    peak = peak_mib()
    numbers = {"seconds": seconds, "peak_mib": peak, "base_mib": base, "used_mib": peak - base}
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
