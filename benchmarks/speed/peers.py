"""The other side of each row: TRL's trainers, and a user's script from transformers and TRL.

As a command it is one line of such a script:

    python -m benchmarks.speed.peers train|generate ...

Of the harness it takes the data and the graders alone.
"""

import argparse
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from harness.skills.registry import get_skill
from harness.skills.skill import Example
from harness.skills.templates import TEACHER_TEMPLATES

PAPER = (  # the teacher's template with TRL's names
    TEACHER_TEMPLATES["paper"][0]["content"]
    .replace("{question}", "{prompt}")
    .replace("{demonstration}", "{privileged_context}")
)


def score(text: str) -> float:
    """A reward that differs for any two texts, so that every group of GRPO learns something."""
    return zlib.crc32(text.encode()) / 2**32


def load(folder: str | Path, dtype: str) -> tuple[Any, Any]:
    """(model, tokenizer) as a user loads them."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.padding_side = "left"
    return model.eval(), tokenizer


def trainer(
    kind: str,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    folder: str | Path,
    *,
    dtype: str,
    micro: int,
    rows: int,
    steps: int,
    tokens: int,
    group_size: int = 1,
    forced: bool = False,
    reward: Callable[..., list[float]] | None = None,
) -> Any:
    """TRL's trainer of ``kind`` (sft, sdft, grpo) on the CPU.

    It has the losses and settings that methods/ have by default. model: in float32; dtype: what its
    passes compute in (bfloat16 is autocast); micro: sequences of one pass; rows: of an optimizer
    step; tokens: the limit of an answer, and with ``forced`` its length. No gradient checkpointing,
    no shuffling: ``examples`` come in their order, and the caller sorts them by length so that
    little is padding.
    """
    common = _common_settings(str(folder), dtype, micro, rows, steps)
    if kind == "sft":
        return _sft_trainer(model, tokenizer, examples, common)
    sampling = {
        "max_completion_length": tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "shuffle_dataset": False,
        "generation_kwargs": {"min_new_tokens": tokens} if forced else None,
    }
    if kind == "sdft":
        return _sdft_trainer(model, tokenizer, examples, common | sampling)
    grouped = common | sampling | {"num_generations": group_size}
    return _grpo_trainer(model, tokenizer, examples, grouped, reward or _scores)


def _common_settings(folder: str, dtype: str, micro: int, rows: int, steps: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": dtype == "bfloat16",
        "fp16": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "seed": 0,
        "max_steps": steps,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "dataloader_pin_memory": False,
    }


def _sft_trainer(
    model: Any, tokenizer: Any, examples: Sequence[Example], settings: dict[str, Any]
) -> Any:
    from trl import SFTConfig, SFTTrainer

    # As text, which TRL ends with the token that ends a turn. From messages it would learn the
    # template's newline after it.
    data = [
        {
            "prompt": tokenizer.apply_chat_template(
                example.prompt, tokenize=False, add_generation_prompt=True
            ),
            "completion": example.demonstration,
        }
        for example in examples
    ]
    config = SFTConfig(
        **settings,
        completion_only_loss=True,
        max_length=None,
        train_sampling_strategy="sequential",
    )
    return SFTTrainer(
        model, config, train_dataset=Dataset.from_list(data), processing_class=tokenizer
    )


def _sdft_trainer(
    model: Any, tokenizer: Any, examples: Sequence[Example], settings: dict[str, Any]
) -> Any:
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    data = [
        {"prompt": example.prompt, "privileged_context": example.demonstration}
        for example in examples
    ]
    config = SDFTConfig(
        **settings,
        distillation_alpha=0.0,
        distillation_mode="full_logits",
        num_loss_tokens_to_skip=3,
        teacher_model_kind="ema",
        teacher_update_rate=0.01,
        teacher_sync_steps=1,
        teacher_prompt_template=PAPER,
        max_prompt_length=None,
        num_generations=1,
    )
    return SDFTTrainer(
        model, config, train_dataset=Dataset.from_list(data), processing_class=tokenizer
    )


def _grpo_trainer(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    settings: dict[str, Any],
    reward: Callable[..., list[float]],
) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    data = [
        {"prompt": example.prompt, "reference": json.dumps(example.reference)}
        for example in examples
    ]
    return GRPOTrainer(
        model,
        reward,
        GRPOConfig(**settings, beta=0.0, loss_type="dapo"),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )


def _scores(completions: Sequence[Any], **_: Any) -> list[float]:
    return [score(completion[0]["content"]) for completion in completions]


class StepWatch(TrainerCallback):
    """Times each optimizer step of a trainer and gives its numbers to ``pause``.

    A step includes its generation, and not its logging.
    """

    def __init__(
        self, trainer: Any, pause: Callable[[Any], None], clock: Callable[[], float]
    ) -> None:
        self.pause = pause
        self.clock = clock
        self.start = self.seconds = self.loss = 0.0
        self.tokens = 0
        training_step = trainer.training_step

        def summed(*args: Any, **settings: Any) -> Any:
            value = training_step(*args, **settings)
            self.loss += float(value)  # what the trainer logs is rounded
            return value

        trainer.training_step = summed
        trainer.add_callback(self)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.loss = 0.0
        self.start = self.clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = self.clock() - self.start

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        if "grad_norm" in logs:
            tokens = logs.get("num_tokens", 0)
            numbers = {
                "seconds": self.seconds,
                "loss": self.loss,
                "grad_norm": float(logs["grad_norm"]),
                "completion_tokens": logs.get("completions/mean_length"),
                "tokens": tokens - self.tokens,
            }
            self.tokens = tokens
            self.pause(numbers)


def replay(trainer: Any, kind: str, completions: Mapping[tuple[int, ...], list[list[int]]]) -> None:
    """Lets ``trainer`` take ``completions`` where it would generate: token ids, by the prompt's."""
    remaining = {prompt: list(answers) for prompt, answers in completions.items()}

    def answers(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        return [remaining[tuple(prompt)].pop(0) for prompt in prompts]

    if kind == "sdft":
        trainer._generate_transformers = lambda prompts: (prompts, answers(prompts))
    elif kind == "grpo":
        trainer._generate_single_turn = lambda prompts, *_: (answers(prompts), None)


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Any],
    limit: int,
    batch_size: int,
    **settings: Any,
) -> list[list[int]]:
    """Token ids of ``model.generate``'s answers to chat messages.

    They are sorted by length into batches, which are padded on the left.
    """
    texts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers: list[list[int]] = [[] for _ in texts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [texts[i] for i in chosen], add_special_tokens=False, padding=True, return_tensors="pt"
        )
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=limit,
            pad_token_id=tokenizer.pad_token_id,
            **settings,
        )
        new_tokens = out[:, batch["input_ids"].shape[1] :]
        for i, row in zip(chosen, new_tokens, strict=True):
            answers[i] = row.tolist()
    return answers


def evaluate(
    folder: str | Path, dtype: str, skills: Sequence[str], examples: int, batch_size: int
) -> dict[str, float]:
    """{skill: accuracy} of greedy answers to the first ``examples`` test questions."""
    model, tokenizer = load(folder, dtype)
    accuracies = {}
    for name in skills:
        skill = get_skill(name)
        chosen = skill.examples("test")[:examples]
        answers = generate(
            model,
            tokenizer,
            [e.prompt for e in chosen],
            skill.max_new_tokens,
            batch_size,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        grades = [
            skill.grade(text, example.reference)
            for text, example in zip(texts, chosen, strict=True)
        ]
        accuracies[name] = sum(grades) / len(chosen)
    return accuracies


def train(
    kind: str,
    folder: str | Path,
    out: str | Path,
    name: str,
    *,
    dtype: str,
    prompts: int,
    batch_size: int,
    tokens: int,
    group_size: int,
) -> None:
    """One stage of a user's script: the checkpoint in ``folder`` learns a skill with TRL.

    The result is saved to ``out``; name: of the skill.
    """
    skill = get_skill(name)
    model, tokenizer = load(folder, "float32")
    rows = batch_size * (group_size if kind == "grpo" else 1)

    def reward(completions: Sequence[Any], reference: Sequence[str], **_: Any) -> list[float]:
        return [
            skill.reward(completion[0]["content"], json.loads(text))
            for completion, text in zip(completions, reference, strict=True)
        ]

    peer = trainer(
        kind,
        model,
        tokenizer,
        skill.examples("train")[:prompts],
        out,
        dtype=dtype,
        micro=rows,
        rows=rows,
        steps=prompts // batch_size,
        tokens=tokens,
        group_size=group_size,
        reward=reward,
    )
    peer.train()
    peer.save_model(str(out))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train")
    answer = commands.add_parser("generate")
    for each in (learn, answer):
        each.add_argument("--model", required=True)
        each.add_argument("--dtype", required=True)
        each.add_argument("--batch-size", type=int, required=True)
        each.add_argument("--out", required=True)
    learn.add_argument("--method", required=True)
    learn.add_argument("--skill", required=True)
    learn.add_argument("--prompts", type=int, required=True)
    learn.add_argument("--tokens", type=int, required=True)
    learn.add_argument("--group-size", type=int, required=True)
    answer.add_argument("--skills", nargs="+", required=True)
    answer.add_argument("--examples", type=int, required=True)
    return parser.parse_args()


def main() -> None:
    args = options()
    if args.command == "train":
        train(
            args.method,
            args.model,
            args.out,
            args.skill,
            dtype=args.dtype,
            prompts=args.prompts,
            batch_size=args.batch_size,
            tokens=args.tokens,
            group_size=args.group_size,
        )
    else:
        accuracies = evaluate(args.model, args.dtype, args.skills, args.examples, args.batch_size)
        Path(args.out).write_text(json.dumps(accuracies), encoding="utf-8")


if __name__ == "__main__":
    main()
