"""A stage that a trainer of TRL learns: its data, its clock, its checkpoints.

methods/trl.py says which trainer, with which arguments. TRL's loop calls back after each optimizer
step, and the stage's loop moves on with it: progress, evaluation and checkpoints are the stage's.
"""

from __future__ import annotations

import copy
import gc
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import PrinterCallback, TrainerCallback

from harness.base.errors import UserError, one_line
from harness.base.files import write_json
from harness.base.seeds import seed_for
from harness.learning.draws import seed_all
from harness.learning.stage import Stage
from harness.learning.trl_model import Views
from harness.sampling.sampler import Completion, Texts
from harness.skills.skill import Example

if TYPE_CHECKING:
    import datasets

LOGGED = {"completions/mean_length": "completion_tokens", "completions/clipped_ratio": "cut_off"}
NOT_LOGGED = ("epoch", "num_tokens", "step_time", "total_flos")
BESIDE = ("teacher_model", "ref_model")  # what trainers call the models beside the one that learns
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class TRLMethod(Protocol):
    """What a run asks of methods/trl.py."""

    @property
    def config(self) -> Any: ...

    @property
    def classes(self) -> tuple[Any, Any]: ...

    @property
    def asks(self) -> set[str]: ...

    @property
    def shows(self) -> str: ...

    @property
    def samples_each(self) -> int: ...

    def build_args(self, place: str, own: Mapping[str, Any]) -> Any: ...


class TRLRun:
    """One stage of a trainer of TRL.

    folder: of TRL's checkpoints, which is removed when the stage is learned.
    """

    def __init__(self, stage: Stage, method: TRLMethod) -> None:
        self.stage, self.method, self.config = stage, method, method.config
        self.folder = stage.folder / "trl"
        self.examples: list[Example] = [stage.examples[i] for i in stage.draws()]
        self.pairs: dict[str, list[str]] = {}
        self.resumed = 0  # step of TRL's checkpoint to go on from
        self.moving: dict[str, dict[str, torch.Tensor]] = {}  # weights beside the model's
        self.texts = Texts(stage.tokenizer)
        self.trainer: Any = None
        self.views = Views(stage)
        stage.keep(trl=self)

    def train(self) -> None:
        """Learn what is left of the stage."""
        stage = self.stage
        if self.method.shows == "pairs" and not self.pairs:
            self._make_pairs()
        if stage.step == stage.steps_in_all:
            return
        with self.views.handed_over():
            if self.resumed:  # TRL copies teachers from the model that it gets, then reads its own
                stage.model.load_state_dict(stage.start("stage").state_dict())
            self.trainer = self._trainer()
            for name, weights in self.moving.items():
                getattr(self.trainer, name).load_state_dict(weights)
            self.trainer.remove_callback(PrinterCallback)
            clock = Clock(stage, self.trainer, self.views)
            self.trainer.add_callback(clock)
            self._record()
            try:
                self.trainer.train(resume_from_checkpoint=self._checkpoint())
            finally:
                clock.close()
            # Takes off what mixed precision has put around the model's forward pass
            self.trainer.accelerator.unwrap_model(self.trainer.model, keep_fp32_wrapper=False)
        self.trainer = None
        stage.let_go(self)
        gc.collect()  # a trainer refers to itself, and holds its optimizer
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- the trainer ---------------------------------------------------------------------------

    def _trainer(self) -> Any:
        stage, method = self.stage, self.method
        arguments = {
            "model": stage.model,
            "args": method.build_args("args", self._arguments()),
            "train_dataset": self._data(),
            "processing_class": self._tokenizer(),
        }
        if "reward_funcs" in method.asks:
            arguments["reward_funcs"] = self._reward
        if "teacher_model" in method.asks:
            arguments["teacher_model"] = stage.start(method.config.of)
        if method.shows == "pairs" and "ref_model" in method.asks:
            arguments["ref_model"] = stage.start("stage")
        try:
            with quiet():
                trainer = method.classes[0](**arguments)
        except (ImportError, TypeError, ValueError) as error:
            raise UserError(f"trainer {self.config.trainer}", one_line(str(error))) from error
        for name in BESIDE:
            other = getattr(trainer, name, None)
            if isinstance(other, torch.nn.Module) and other not in (
                trainer.model,
                arguments.get(name),
            ):
                # TRL has read it from where the live model was loaded: it knows no other start.
                other.load_state_dict(stage.start("stage").state_dict())
        return trainer

    def _arguments(self) -> dict[str, Any]:
        """What the order says, by TRL's names."""
        stage, config = self.stage, self.config
        rows = stage.batch_size * self.method.samples_each
        fitting = [size for size in range(1, 9) if rows % size == 0]
        each = config.rows_per_pass or fitting[-1]
        return {
            "output_dir": str(self.folder),
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "disable_tqdm": True,
            "bf16": self.views.dtype == torch.bfloat16 and not config.args.get("fp16"),
            "use_cpu": stage.model.device.type == "cpu",
            "dataloader_pin_memory": stage.model.device.type != "cpu",
            "seed": seed_for(stage.seed, stage.index, "trl") % 2**31,
            "max_steps": stage.steps_in_all,
            "per_device_train_batch_size": each,
            "gradient_accumulation_steps": -(-rows // each),
            "learning_rate": config.learning_rate,
            "lr_scheduler_type": SCHEDULES[config.schedule],
            "warmup_steps": min(config.warmup_steps, stage.steps_in_all // 5),
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.max_grad_norm,
            "train_sampling_strategy": "sequential",
            "shuffle_dataset": False,
            "max_length": None,
            "max_prompt_length": None,
            "max_completion_length": stage.max_new_tokens,
            "max_new_tokens": stage.max_new_tokens,
            "temperature": stage.temperature,
            "top_p": stage.top_p,
        }

    def _tokenizer(self) -> Any:
        """A copy of the tokenizer whose chat template gets what the order says."""
        tokenizer = copy.deepcopy(self.stage.tokenizer)
        chat = self.stage.chat
        variables = chat.variables(tokenizer.get_chat_template()) if chat else {}
        if variables:
            plain = tokenizer.apply_chat_template
            tokenizer.apply_chat_template = lambda *args, **given: plain(
                *args, **{**variables, **given}
            )
        return tokenizer

    def _record(self) -> None:
        """Write down how TRL computes, which is not how the other methods do."""
        import trl

        args, stage = self.trainer.args, self.stage
        mixed = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
        write_json(
            stage.folder / "trl.json",
            {
                "trl": trl.__version__,
                "trainer": self.config.trainer,
                "args": dict(self.config.args),
                "model": str(self.views.dtype).removeprefix("torch."),
                "weights": str(stage.model.dtype).removeprefix("torch."),
                "autocast": mixed,
                "optimizer": str(getattr(args.optim, "value", args.optim)),
                "betas": [args.adam_beta1, args.adam_beta2],
                "rows_per_pass": args.per_device_train_batch_size,
                "passes": args.gradient_accumulation_steps,
            },
        )

    # ---- data and rewards ----------------------------------------------------------------------

    def _data(self) -> datasets.Dataset:
        import datasets  # takes seconds, and only TRL's trainers need it

        return datasets.Dataset.from_list([self._row(i, e) for i, e in enumerate(self.examples)])

    def _row(self, number: int, example: Example) -> dict[str, Any]:
        """A row of the trainer's data, in TRL's formats."""
        prompt, shows = list(example.prompt), self.method.shows
        if shows == "pairs":
            example = self._paired(number, example)
            chosen, rejected = map(answer_turn, self.pairs[example.id])
            return {"prompt": list(example.prompt), "chosen": chosen, "rejected": rejected}
        if shows == "prompts":
            return {"prompt": prompt, "number": number}
        if shows == "shown":
            return {"prompt": prompt, "privileged_context": example.demonstration}
        turn = answer_turn(str(example.demonstration))
        if shows == "messages":
            return {"messages": [*prompt, *turn]}
        return {"prompt": prompt, "completion": turn}

    def _reward(
        self, completion_ids: Sequence[Sequence[int]], number: Sequence[int], **_: Any
    ) -> list[float]:
        """The rewards of completions by the skill."""
        rewards = []
        for tokens, place in zip(completion_ids, number, strict=True):
            example, tokens = self.examples[place], list(tokens)
            text, whole = self.texts.of(self.stage.prompt_tokens(example), tokens)
            answer = Completion(tokens, [], True, text, whole)
            rewards.append(self.stage.reward(example, answer))
        return rewards

    def _make_pairs(self) -> None:
        """The best and the worst answer to each prompt, where they are not worth the same."""
        stage, size = self.stage, 256
        examples = list({example.id: example for example in self.examples}.values())
        for first in range(0, len(examples), size):
            block = examples[first : first + size]
            seed = seed_for(stage.seed, stage.index, "pairs", first)
            groups = stage.answers(block, n=self.config.answers, seed=seed)
            for example, group in zip(block, groups, strict=True):
                order = sorted(group, key=lambda c: stage.reward(example, c))
                worst, best = order[0], order[-1]
                if stage.reward(example, best) > stage.reward(example, worst):
                    self.pairs[example.id] = [best.text, worst.text]
            stage.show("pairs", first + len(block), len(examples))
        if not self.pairs:
            raise UserError(
                f"skill {stage.skill.name}",
                "all answers to each prompt have one reward, so there are no pairs",
                "raise answers, or give a finer reward",
            )

    def _paired(self, number: int, example: Example) -> Example:
        """The example, or another one in its place where it has no pair."""
        if example.id in self.pairs:
            return example
        random_place = random.Random(seed_for(self.stage.seed, self.stage.index, "pair", number))
        other = random_place.choice(sorted(self.pairs))
        return next(each for each in self.examples if each.id == other)

    # ---- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The step of TRL's checkpoint, which is written beside, and what that does not hold."""
        trainer = self.trainer
        if trainer is not None and trainer.state.global_step:
            with self.views.theirs():
                self._save(trainer.state.global_step)
            args = trainer.args
            follows = {
                "teacher_model": getattr(args, "teacher_model_kind", None) == "ema",
                "ref_model": getattr(args, "sync_ref_model", False),
            }
            self.moving = {
                name: dict(getattr(trainer, name).state_dict())
                for name, moves in follows.items()
                if moves
            }
        return {"step": self.stage.step, "pairs": dict(self.pairs), "moving": dict(self.moving)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.resumed, self.pairs = state["step"], dict(state["pairs"])
        self.moving = dict(state["moving"])

    def _path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    def _save(self, step: int) -> None:
        """Write TRL's checkpoint of a step, and remove those before the last one."""
        if (self._path(step) / "trainer_state.json").exists():
            return
        kept = sorted(self.folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        self.trainer._save_checkpoint(self.trainer.model, None)
        # A pickle of the arguments, which nothing reads: a results folder holds no code.
        (self._path(step) / "training_args.bin").unlink(missing_ok=True)
        for path in kept[:-1]:  # the stage's own checkpoint still names the last one
            shutil.rmtree(path)

    def _checkpoint(self) -> str | None:
        """The folder of TRL's checkpoint to go on from."""
        if not self.resumed:
            return None
        path = self._path(self.resumed)
        if not path.is_dir():
            raise UserError(
                path,
                "TRL's checkpoint is gone",
                f"remove {self.stage.folder.parent / 'checkpoint'}: the stage starts over",
            )
        return str(path)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress lines of data sets."""
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()


def answer_turn(text: str) -> list[dict[str, str]]:
    """An answer as chat messages."""
    return [{"role": "assistant", "content": text}]


class Clock(TrainerCallback):
    """Moves the stage on with TRL's optimizer steps, and counts what its models read."""

    def __init__(self, stage: Stage, trainer: Any, views: Views) -> None:
        self.stage, self.views = stage, views
        self.learns = True  # and not the harness, which evaluates
        models = (getattr(trainer, name, None) for name in ("model", *BESIDE))
        self.hooks = [
            model.register_forward_pre_hook(self._count, with_kwargs=True)
            for model in {id(each): each for each in models}.values()
            if isinstance(model, torch.nn.Module)
        ]
        self.steps = stage.steps()
        self.step = next(self.steps, None)

    def _count(self, _: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Add the tokens that a model reads, padding included."""
        tokens = given.get("input_ids", args[0] if args else None)
        if self.learns and isinstance(tokens, torch.Tensor):
            self.stage.tokens += tokens.numel()
            self.stage.learned += tokens.numel() * torch.is_grad_enabled()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """TRL has restored the generators of its own checkpoint by now."""
        if self.step is not None:
            seed_all(self.step.seed)

    def on_log(self, args: Any, state: Any, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        """TRL logs each step once, and the whole training at its end."""
        if self.step is None or state.global_step <= self.stage.step:
            return
        # Of TRL's optimizer: where no answer had an advantage it changes nothing.
        self.stage.updates = (self.stage.updates or 0) + 1
        self.step.log(
            **{
                LOGGED.get(name, name): value
                for name, value in logs.items()
                if isinstance(value, int | float) and name not in NOT_LOGGED
            }
        )
        self.learns = False
        with self.views.ours():
            self.step = next(self.steps, None)
        self.learns = True

    def close(self) -> None:
        """Count no more."""
        for hook in self.hooks:
            hook.remove()
