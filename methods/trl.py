"""Any trainer of TRL as a method: its loss and its loop on the order's data, rewards and budget.

    grpo_trl: {method: trl, trainer: GRPOTrainer, args: {num_generations: 4, beta: 0.04}}

``args`` are those of the trainer's config in the pinned TRL. They are validated before anything
loads, and tried in one step on a model of no size before a run begins. Those that are the order's,
or settings of every method here, are refused: steps, epochs, batches, seeds, learning rate and
schedule, limits and temperature of rollouts, output, logging.

What a trainer gets
* the live model, in place, and the tokenizer with the order's arguments of the chat template;
* one limit of a rollout: a run that learns all skills at once has the largest of theirs;
* the prompts that every method draws, in their order, once each, and as many optimizer steps;
* ``SFTTrainer``: prompts and demonstrations;
* one with rewards (``GRPOTrainer``, ``RLOOTrainer``, ``SDPOTrainer``, ``OnlineDPOTrainer``):
  prompts, and the reward of the skill;
* ``SDFTTrainer``: prompts, and demonstrations as what the teacher is shown; its template is in
  ``args``;
* one with a teacher (``GKDTrainer``, ``DistillationTrainer``, ``GOLDTrainer``): ``teacher_model``,
  a hub id or a folder, or the model at the start of the run if it is left out, which has nothing to
  teach in the first stage. It has the model's tokenizer; of GOLDTrainer another one that ``args:
  {teacher_tokenizer_name_or_path: ...}`` names;
* ``DPOTrainer``, ``CPOTrainer``, ``ORPOTrainer``: pairs of the best and the worst of ``answers``
  that the model gives at the start of the stage; a prompt whose answers are all worth the same
  gives its place to another;
* any other trainer, also one that a later TRL brings: what its constructor's parameters ask for.

A reference model (``beta`` of GRPO, RLOO and DPO), and a teacher that begins as the student (of
SDFTTrainer and SDPOTrainer), is the model at the start of the stage, as in our own methods. TRL
alone would load the model that the weights came from.

How a row of it differs from the other methods
* A bfloat16 model gets float32 weights while it learns, and TRL's autocast computes in bfloat16.
  They begin as our masters do (harness/learning/dither.py). ``args: {bf16: true}`` does so for a
  float32 model. ``trl.json`` in the stage's folder records versions, precision and optimizer.
* Each batch of prompts gets one update, as many as every method makes. So the ratio to the policy
  that answered is 1 and no clip of TRL's acts; `grpo` with ``inner_epochs`` and its presets clip.
* The warm-up begins at rate 0, and sampling is that of ``generate``. The mean over micro-batches is
  TRL's. ``rows_per_pass`` sets their size. TRL's gradient checkpointing is off.
* Tokens on record are those that the models read, in every pass and with padding.
* ``dropout``, ``masters``, ``moments``, ``micro_batch_tokens`` and ``gradient_checkpointing`` do
  not reach TRL and are refused.
* No part joins: a part acts through the harness's own trainer.

A killed stage goes on from TRL's own checkpoint, which is written whenever the stage's is. On a CPU
and in float32 it ends in the same weights to the bit, for each trainer named above but CPOTrainer:
tests/methods/test_trl.py cuts them off. Weights that TRL moves beside the model, as the average of
SDPO, are kept too.

State: nothing between stages. Cost: a second copy of the weights in a stage's checkpoints.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import tempfile
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.base.errors import UserError, did_you_mean, one_line
from harness.base.settings import build, only_with, option
from harness.learning.method import Method, OrderView
from harness.learning.options import TeacherModelOption
from harness.learning.outlook import Lengths, Outlook, Work
from harness.learning.stage import Stage
from harness.learning.trainer import TrainingConfig
from harness.learning.trl_run import TRLRun
from harness.learning.trl_trial import trial_error
from harness.models.chat import ChatInputs
from harness.models.others import STARTS, check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Arguments of TRL's configs that follow from the order or from settings of every method.
ORDERS = {
    "epochs and steps": ("max_steps", "num_train_epochs"),
    "the budget's batch_size, and rows_per_pass": (
        "per_device_train_batch_size", "gradient_accumulation_steps", "generation_batch_size",
        "auto_find_batch_size", "dataloader_drop_last",
    ),
    "the budget, which gives an update to each batch of prompts": (
        "steps_per_generation", "num_iterations",
    ),
    "settings of every method": (
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
        "warmup_ratio", "weight_decay", "max_grad_norm",
    ),
    "the order's seeds and draws": (
        "seed", "data_seed", "shuffle_dataset", "train_sampling_strategy", "full_determinism",
    ),
    "the order's rollout": (
        "temperature", "top_p", "max_completion_length", "max_new_tokens", "generation_kwargs",
    ),
    "the order's model": (
        "model_init_kwargs", "use_cpu", "teacher_model_name_or_path", "teacher_model_init_kwargs",
    ),
    "the results folder": (
        "output_dir", "run_name", "report_to", "project", "trackio_space_id", "disable_tqdm",
        "log_level", "log_completions", "resume_from_checkpoint", "load_best_model_at_end",
    ),
}  # fmt: skip
ANSWERS = {"OnlineDPOTrainer": 2}  # to a prompt, where no argument says it
PAIRED = ("DPOTrainer", "CPOTrainer", "ORPOTrainer")
SERVED = ("Async", "Server")  # how trainers begin that ask a server
UNFIT = {
    "RewardTrainer": "learns to judge, not to answer",
    "KTOTrainer": "learns from labels, which no skill has",
    "PRMTrainer": "learns to judge, not to answer",
}
PREFIXES = {
    "push_to_": "the results folder",
    "hub_": "the results folder",
    "save_": "the results folder",
    "logging_": "the results folder",
    "eval_": "the order's evaluate",
    "do_": "the order",
}


UNREACHED = ("dropout", "masters", "moments", "micro_batch_tokens", "gradient_checkpointing")


@dataclass
class TRLMethodConfig(TeacherModelOption, TrainingConfig):
    trainer: str = option("SFTTrainer", "a trainer of trl or trl.experimental")
    args: dict = option({}, "arguments of its config, by name")
    rows_per_pass: int | None = option(
        None,
        "rows of a micro-batch; the largest divisor of a step's rows up to 8 if left out",
        min=1,
    )
    answers: int = option(4, "of DPOTrainer: answers of which a pair is made", min=2, max=10_000)

    def __post_init__(self) -> None:
        for name in UNREACHED:
            default = next(f.default for f in fields(TrainingConfig) if f.name == name)
            if getattr(self, name) != default:
                raise ValueError(f"{name} does not reach a trainer of TRL; leave it out")

    def check_effects(self) -> None:
        only_with(self, self.trainer in PAIRED, " or ".join(PAIRED), "answers")


class TRL(Method):
    Config = TRLMethodConfig
    config: TRLMethodConfig
    needs = ()  # ``check`` asks for demonstrations where the trainer learns from them
    joins = ()
    has_own_loop = True

    # ---- before anything loads -----------------------------------------------------------------

    @cached_property
    def classes(self) -> tuple[type, type]:
        """(the trainer, its config). Raises ValueError for a name that TRL does not have."""
        import trl

        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        name = self.config.trainer
        home = trl
        if name not in trainers():
            raise ValueError(
                f"trainer: TRL {trl.__version__} has no {name!r}; " + did_you_mean(name, trainers())
            )
        if not hasattr(trl, name):
            home = importlib.import_module(f"trl.experimental.{trainers()[name]}")
        return getattr(home, name), getattr(home, name.removesuffix("Trainer") + "Config")

    @cached_property
    def asks(self) -> set[str]:
        """Names of the parameters of the trainer's constructor."""
        return set(inspect.signature(self.classes[0]).parameters)

    @property
    def shows(self) -> str:
        """What rows hold: ``pairs``, ``prompts``, ``shown``, ``messages`` or ``turns``."""
        import trl

        trainer = self.classes[0]
        if self.config.trainer in PAIRED:
            return "pairs"
        if self.config.trainer == "SDFTTrainer":
            return "shown"
        if issubclass(trainer, trl.SFTTrainer):
            return "messages" if "teacher_model" in self.asks else "turns"
        return "prompts"

    def check(self, order: OrderView, place: str) -> None:
        try:
            assert self.classes
        except ValueError as error:
            raise UserError(place, str(error)) from None
        except ImportError as error:
            raise UserError(place, f"{self.config.trainer} cannot be imported ({error})") from None
        if why := UNFIT.get(self.config.trainer):
            raise UserError(f"{place}: trainer", f"{self.config.trainer} {why}")
        names = {field.name for field in fields(self.classes[1])}
        if order.rollout.engine != "transformers" and "use_vllm" in names:
            raise UserError(
                place,
                f"rollout.engine: {order.rollout.engine} does not reach {self.config.trainer}, "
                "which samples by itself",
                "set rollout.engine to transformers, and args: {use_vllm: true} for TRL's own",
            )
        self._check_teacher(order, f"{place}: teacher_model")
        batch = order.batch_size(self.config)
        self._check_args(f"{place}: args", batch)
        if self.shows in ("turns", "messages", "shown"):
            for skill in order.skills:
                for example in skill.examples("train"):
                    if example.demonstration is None:
                        raise UserError(
                            place,
                            f"{self.config.trainer} needs demonstrations; skill {skill.name}, "
                            f"example {example.id} has none",
                        )
        for skill in order.skills:
            prompts = order.prompts(skill, self.config)
            if self.samples and prompts % batch:
                raise UserError(
                    place,
                    f"{prompts} prompts of skill {skill.name} are no whole number of steps of "
                    f"{batch}, and {self.config.trainer} makes no smaller step",
                    "choose a budget that batch_size divides",
                )
        rows = batch * self.samples_each
        if self.config.rows_per_pass and rows % self.config.rows_per_pass:
            raise UserError(f"{place}: rows_per_pass", f"must divide the {rows} rows of a step")

    def _check_teacher(self, order: OrderView, place: str) -> None:
        """Raises UserError for a teacher that the trainer has not, or that reads other tokens."""
        teacher = self.config.teacher_model
        if teacher and "teacher_model" not in self.asks:
            raise UserError(place, f"{self.config.trainer} has no teacher", "leave it out")
        if self.config.of not in STARTS and not self._argument("teacher_tokenizer_name_or_path"):
            check_vocabulary(self.config.of, order.model.name, order.model.revision, place)

    def notes(self) -> list[str]:
        return self.config.notes() if "teacher_model" in self.asks else []

    def _check_args(self, place: str, batch: int) -> None:
        """Raises UserError for arguments that the config does not have or that are the order's."""
        cls = self.classes[1]
        known = [field.name for field in fields(cls) if field.init]
        for name in map(str, self.config.args):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                remedy = f"did you mean {near[0]!r}? " if near else ""
                raise UserError(
                    f"{place}: {name}", "unknown key", f"{remedy}trl.{cls.__name__} lists them all"
                )
            owner = next((who for who, names in ORDERS.items() if name in names), None)
            owner = owner or next(
                (w for start, w in PREFIXES.items() if name.startswith(start)), None
            )
            if owner:
                beside = any(field.name == name for field in fields(self.config))
                remedy = f"write {name} beside args" if beside else "leave it out"
                raise UserError(f"{place}: {name}", f"follows from {owner}", remedy)
        with tempfile.TemporaryDirectory() as folder:
            rows = {"per_device_train_batch_size": batch * self.samples_each}
            on_cpu = not torch.cuda.is_available()
            own = {"output_dir": folder, "report_to": "none", "use_cpu": on_cpu, **rows}
            self.build_args(place, own)

    def build_args(self, place: str, own: Mapping[str, Any]) -> Any:
        """The trainer's config. Raises UserError where it refuses an argument.

        own: what the order sets, of which a config gets what it knows.
        """
        cls = self.classes[1]
        known = {field.name for field in fields(cls) if field.init}
        defaults = {"bf16": False, "fp16": False, "gradient_checkpointing": False}
        hints = typing.get_type_hints(cls)
        given = {
            name: value
            for name, value in {**defaults, **own}.items()
            if name in known and (value is not None or type(None) in typing.get_args(hints[name]))
        }
        try:
            return build(cls, {**given, **self.config.args}, place)
        except UserError:
            raise
        except Exception as error:  # of a __post_init__ of TRL
            raise UserError(
                place, f"{cls.__name__} refuses them ({one_line(str(error))})"
            ) from None

    @property
    def samples(self) -> bool:
        """Whether the trainer samples several answers to each prompt."""
        return "num_generations" in {field.name for field in fields(self.classes[1])}

    @property
    def samples_each(self) -> int:
        """Rows of a step for each of its prompts."""
        if not self.samples:
            return 1
        default: Any = next(
            f.default for f in fields(self.classes[1]) if f.name == "num_generations"
        )
        asked = self.config.args.get("num_generations", default)
        return asked if isinstance(asked, int) else int(default)  # the config refuses any other

    def precision(self, dtype: torch.dtype) -> str:
        """As TRLRun hands the model over, with TRL's autocast and optimizer."""
        args = self.config.args
        is_bfloat16 = args.get("bf16", dtype == torch.bfloat16 and not args.get("fp16"))
        mixed = "bfloat16" if is_bfloat16 else "float16" if args.get("fp16") else ""
        found = "float32 weights" + (f", autocast to {mixed}" if mixed else "")
        return f"{found}, by TRL's {self._argument('optim')}"

    def try_out(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chat: ChatInputs | None,
        place: str,
    ) -> None:
        """Raises UserError for arguments that TRL refuses in or before a trainer's first step.

        They are tried on a model of no size. Servers are not asked, and vLLM is not started, which
        takes memory and minutes.
        """
        asks_a_server = self.config.trainer.startswith(SERVED)
        if asks_a_server or (self.config.args.get("use_vllm") and find_spec("vllm")):
            return
        config = replace(self.config, rows_per_pass=None)
        each = {"num_generations": self.samples_each} if self.samples else {}
        plain = TRL(replace(config, args=each)) if self.config.args else None
        if said := trial_error(TRL(config), plain, model, tokenizer, chat):
            what, problem = ("args", "refuses them") if plain else ("trainer", "cannot be built")
            raise UserError(f"{place}: {what}", f"{self.config.trainer} {problem} ({said})")

    # ---- a stage -------------------------------------------------------------------------------

    def learn(self, stage: Stage) -> None:
        TRLRun(stage, self).train()

    def longest(self, lengths: Lengths) -> int:
        answer = max(lengths.demonstration, lengths.limit)
        return lengths.prompt + answer - 1

    def work(self, outlook: Outlook) -> Work:
        if self.shows == "turns":
            return Work(learned=outlook.prompt + outlook.demonstration)
        is_paired, given = self.shows == "pairs", "teacher_model" in self.asks
        teacher = self._argument("teacher_model_kind")  # of a trainer that makes one of its model
        each = ANSWERS.get(self.config.trainer, self.samples_each)
        tokens = (2 if is_paired else each) * (outlook.prompt + outlook.answer)
        done = Work(
            learned=tokens,
            scored=tokens
            * (given * outlook.size_of(self.config.of) + bool(teacher) + self._has_reference),
            read=outlook.prompt,
            answers=0 if is_paired else each,
            beforehand=self.config.answers * is_paired,
            sampled=outlook.answer,
            copies=self._has_reference + (teacher not in (None, "live")),
        )
        return done.with_start(self.config.of, outlook) if given else done

    def _argument(self, name: str) -> Any:
        """An argument of the trainer's config as the order has it; None where there is none."""
        default = next((f.default for f in fields(self.classes[1]) if f.name == name), None)
        return self.config.args.get(name, default)

    @property
    def _has_reference(self) -> bool:
        """Whether TRL scores with a reference model as well."""
        is_penalised = "reward_funcs" in self.asks and self._argument("beta")
        return "ref_model" in self.asks or bool(is_penalised)


@cache
def trainers() -> dict[str, str]:
    """The trainers of the installed TRL: {name: folder of trl.experimental, "" for trl itself}."""
    import trl

    found = {}
    for folder in sorted((Path(trl.__file__).parent / "experimental").iterdir()):
        for path in folder.glob("*_trainer.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.startswith("class ") and "Trainer(" in line:
                    found[line.removeprefix("class ").split("(")[0]] = folder.name
    stable = {name: "" for name in dir(trl) if name.endswith("Trainer")}
    return {name: home for name, home in {**found, **stable}.items() if not name.startswith("_")}
