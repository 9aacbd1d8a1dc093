"""The other side of each row: TRL's trainers, and what a user would script from transformers and
TRL.

As a command it is one line of such a script: ``python -m benchmarks.speed.peers train|generate
...``. Of the harness it takes the data and the graders alone.
"""

import argparse
import json
import zlib

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from harness.skills.registry import get_skill
from harness.skills.templates import TEACHER_TEMPLATES

PAPER = TEACHER_TEMPLATES["paper"][0]["content"]
# TRL's names
PAPER = PAPER.replace("{question}", "{prompt}").replace("{demonstration}", "{privileged_context}")


def score(text):
    """A reward that differs for any two texts: every group of GRPO then has something to learn
    from.
    """
    return zlib.crc32(text.encode()) / 2**32


def load(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    return model.eval(), tokenizer


def trainer(
    kind,
    model,
    tokenizer,
    examples,
    folder,
    *,
    dtype,
    micro,
    rows,
    steps,
    tokens,
    group_size=1,
    forced=False,
    reward=None,
):
    """TRL's trainer of ``kind`` (sft, sdft, grpo) on the CPU, with the losses and settings that
    methods/ have by default.

    model: in float32; dtype: what its passes compute in (bfloat16 is autocast); micro: sequences of
    one pass; rows: of an optimizer step; tokens: the limit of an answer, and with ``forced`` its
    length. No gradient checkpointing, no shuffling: ``examples`` come in the order given, which the
    caller sorts by length so that little is padding.
    """
    common = dict(
        output_dir=str(folder),
        use_cpu=True,
        bf16=dtype == "bfloat16",
        fp16=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=0,
        max_steps=steps,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
        dataloader_pin_memory=False,
    )
    sampled = dict(
        max_completion_length=tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        shuffle_dataset=False,
        generation_kwargs={"min_new_tokens": tokens} if forced else None,
    )
    if kind == "sft":
        from trl import SFTConfig, SFTTrainer

        # As text, which TRL ends with the token that ends a turn; given messages, it would learn
        # the template's newline after it.
        data = [
            {
                "prompt": tokenizer.apply_chat_template(
                    e.prompt, tokenize=False, add_generation_prompt=True
                ),
                "completion": e.demonstration,
            }
            for e in examples
        ]
        return SFTTrainer(
            model,
            SFTConfig(
                **common,
                completion_only_loss=True,
                max_length=None,
                train_sampling_strategy="sequential",
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
        )
    if kind == "sdft":
        from trl.experimental.sdft import SDFTConfig, SDFTTrainer

        data = [{"prompt": e.prompt, "privileged_context": e.demonstration} for e in examples]
        return SDFTTrainer(
            model,
            SDFTConfig(
                **common,
                **sampled,
                distillation_alpha=0.0,
                distillation_mode="full_logits",
                num_loss_tokens_to_skip=3,
                teacher_model_kind="ema",
                teacher_update_rate=0.01,
                teacher_sync_steps=1,
                teacher_prompt_template=PAPER,
                max_prompt_length=None,
                num_generations=1,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
        )
    from trl import GRPOConfig, GRPOTrainer

    rewards = reward or (lambda completions, **_: [score(c[0]["content"]) for c in completions])
    data = [{"prompt": e.prompt, "reference": json.dumps(e.reference)} for e in examples]
    return GRPOTrainer(
        model,
        rewards,
        GRPOConfig(**common, **sampled, num_generations=group_size, beta=0.0, loss_type="dapo"),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )


class Watch(TrainerCallback):
    """Times each optimizer step of a trainer, its generation included, its logging not, and gives
    it to ``pause``.
    """

    def __init__(self, trainer, pause, clock):
        self.pause, self.clock, self.loss, self.seen = pause, clock, 0.0, 0
        step = trainer.training_step

        def summed(*args, **settings):  # what is logged is rounded
            value = step(*args, **settings)
            self.loss += float(value)
            return value

        trainer.training_step = summed
        trainer.add_callback(self)

    def on_step_begin(self, *_, **__):
        self.start, self.loss = self.clock(), 0.0

    def on_step_end(self, *_, **__):
        self.seconds = self.clock() - self.start

    def on_log(self, args, state, control, logs, **_):
        if "grad_norm" in logs:
            seen, self.seen = self.seen, logs.get("num_tokens", 0)
            self.pause(
                {
                    "seconds": self.seconds,
                    "loss": self.loss,
                    "grad_norm": float(logs["grad_norm"]),
                    "completion_tokens": logs.get("completions/mean_length"),
                    "tokens": self.seen - seen,
                }
            )


def replay(trainer, kind, completions):
    """Let ``trainer`` find ``completions`` ({prompt ids as a tuple: list of lists of ids}) where it
    would generate.
    """
    left = {prompt: list(answers) for prompt, answers in completions.items()}

    def answers(prompts):
        return [left[tuple(p)].pop(0) for p in prompts]

    if kind == "sdft":
        trainer._generate_transformers = lambda prompts: (prompts, answers(prompts))
    elif kind == "grpo":
        trainer._generate_single_turn = lambda prompts, *_: (answers(prompts), None)


@torch.inference_mode()
def generate(model, tokenizer, conversations, limit, batch_size, **settings):
    """Token ids of ``model.generate``'s answers to chat messages, sorted by length into batches
    padded on the left.
    """
    texts = [
        tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)
        for c in conversations
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = [None] * len(texts)
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
        for i, row in zip(chosen, out[:, batch["input_ids"].shape[1] :]):
            found[i] = row.tolist()
    return found


def evaluate(folder, dtype, skills, examples, batch_size):
    """{skill: accuracy} of greedy answers to the first ``examples`` test questions."""
    model, tokenizer = load(folder, dtype)
    found = {}
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
        found[name] = sum(skill.grade(t, e.reference) for t, e in zip(texts, chosen)) / len(chosen)
    return found


def train(kind, folder, out, skill, *, dtype, prompts, batch_size, tokens, group_size):
    """One stage of a user's script: the checkpoint in ``folder`` learns ``skill`` with TRL and is
    saved to ``out``.
    """
    skill = get_skill(skill)
    model, tokenizer = load(folder, "float32")
    rows = batch_size * (group_size if kind == "grpo" else 1)

    def reward(completions, reference, **_):
        return [
            skill.reward(c[0]["content"], json.loads(r)) for c, r in zip(completions, reference)
        ]

    made = trainer(
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
    made.train()
    made.save_model(str(out))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    learn, answer = commands.add_parser("train"), commands.add_parser("generate")
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
    args = parser.parse_args()
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
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(
                evaluate(args.model, args.dtype, args.skills, args.examples, args.batch_size), file
            )


if __name__ == "__main__":
    main()
