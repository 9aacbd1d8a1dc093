"""A tiny model, two skills and an order for it, in which every method runs in seconds."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu_check.material import LETTERS, save_small_model
from harness.base.files import write_text
from harness.learning.method import get_method

METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dft": {},
    "cpt": {},
    "sdft": {"ema_alpha": 0.2},
    "grpo": {"group_size": 4},
    "sft_from_teacher": {"generations": 9},
    "offline_distillation": {"generations": 9},
    "sft_reinvoke": {"reinvoke_prompts": 6},
    "self_sft": {"answers": 2},
    "sdpo": {"group_size": 2},
    "gkd": {},
    "psft": {"inner_batches": 2},
    "trl": {"trainer": "SFTTrainer"},
    "in_context": {"demonstrations": 2},
}
ROWS = {"train": 14, "validation": 3, "test": 5}


def make_material(folder: Path) -> None:
    """Write the model and the skills' files into ``folder``."""
    save_small_model(folder / "model", tiny=True)
    for skill in ("vowels", "digits"):
        for split, count in ROWS.items():
            generator = random.Random(f"{skill} {split}")
            rows = []
            for i in range(count):
                answer = generator.choice(LETTERS)
                rows.append(
                    {
                        "prompt": f"{skill} {split} {i}?",
                        "demonstration": answer,
                        "reference": list(LETTERS),  # so that answers of random weights are right
                        "source": f"{skill} {i // 2}",
                    }
                )
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            write_text(folder / f"{skill}-{split}.jsonl", lines)


def order_of(folder: Path, methods: list[str], **changes: Any) -> dict[str, Any]:
    """An order of ``methods`` on what ``make_material`` wrote into ``folder``."""
    return {
        "name": "tiny",
        "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
        "skills": [
            {
                "name": skill,
                **{split: f"{skill}-{split}.jsonl" for split in ROWS},
                "grader": "contains",
                "max_new_tokens": 6,
            }
            for skill in ("vowels", "digits")
        ],
        "methods": {
            name: {**({"learning_rate": 1e-3} if get_method(name).trains else {}), **METHODS[name]}
            for name in methods
        },
        "budget": {"prompts": 14, "batch_size": 4},
        "evaluate": {"every_steps": 3},
        "checkpoints": {"minutes": 0, "keep": "all"},
        **changes,
    }


def write_order(folder: Path, name: str, order: dict[str, Any]) -> Path:
    """The order as ``folder/NAME.yaml``."""
    path = folder / f"{name}.yaml"
    write_text(path, yaml.safe_dump(order, sort_keys=False))
    return path
