"""Options that several methods have, each a dataclass for a method's Config to inherit from."""

from dataclasses import dataclass

from harness.base.settings import Checked, option
from harness.learning.moments import FLOAT32, MOMENTS
from harness.models.others import STARTS
from harness.skills.templates import TEACHER_CONTEXTS

SELF_TAUGHT = (
    "its teacher is the model itself as it began: where the two are one there is nothing to teach, "
    "and AdamW makes whole steps of rounding; teacher_model names another"
)
MASTERS = ("device", "host_moments", "host")  # places of a GPU's masters and moments


@dataclass
class TrainingConfig(Checked):
    """Hyperparameters that every method has.

    Defaults are those of arXiv 2601.19897, section 4 and appendix.
    """

    learning_rate: float = option(2e-5, "peak learning rate of AdamW", min=0)
    batch_size: int | None = option(
        None, "prompts per optimizer step; the order's budget.batch_size if left out", min=1
    )
    epochs: float | None = option(
        None,
        "passes over the training examples of each skill; the order's budget if left out",
        above=0,
    )
    schedule: str = option(
        "cosine", "learning rate after the warm-up", choices=("cosine", "linear", "constant")
    )
    warmup_steps: int = option(
        10, "optimizer steps of linear warm-up in each stage, a fifth of the stage at most", min=0
    )
    weight_decay: float = option(
        0.0, "AdamW's decoupled weight decay, of all but biases and norms", min=0
    )
    dropout: str = option(
        "keep",
        "the model's own dropout where it learns from demonstrations or texts; samples of a step "
        "are always learned without",
        choices=("keep", "none"),
    )
    max_grad_norm: float = option(1.0, "gradients are scaled down to this global L2 norm", above=0)
    masters: str = option(
        "device",
        "where a GPU's masters, averages and AdamW's moments are: all there, the moments in host "
        "memory, or all in it",
        choices=MASTERS,
    )
    moments: str = option(
        FLOAT32,
        "AdamW's two moments: float32, or 8bit (2 bytes a number for 8, other numbers), which no "
        "GPU has run yet",
        choices=MOMENTS,
    )
    micro_batch_tokens: int | None = option(
        None,
        "tokens of one pass, padding included; 1,024 on a CPU and up to 8,192 on a GPU if left out",
        min=1,
    )
    gradient_checkpointing: bool | str = option(
        "auto",
        "on, off, or auto: whether layers are computed again, for less memory; auto where a pass "
        "would not fit",
        choices=("auto",),
    )

    @property
    def recomputes(self) -> bool | None:
        """``gradient_checkpointing``, whose on and off YAML reads as booleans; None for auto."""
        wanted = self.gradient_checkpointing
        return wanted if isinstance(wanted, bool) else None


@dataclass
class ImportanceOption:
    """For methods that learn from completions of the student."""

    importance_cap: float | None = option(
        None,
        "cap of the importance weights; if left out 2 where vLLM samples, else no weights; "
        "0: never",
        min=0,
    )


@dataclass
class TeacherOption:
    """For methods with a teacher that sees more than the student."""

    teacher_context: str | None = option(
        None,
        "what the teacher is shown; what its template shows if left out",
        choices=TEACHER_CONTEXTS,
    )


@dataclass
class TeacherModelOption:
    """For methods whose teacher is another model, or the one that learns as it was at a start."""

    teacher_model: str | None = option(
        None,
        "hub id or folder of the teacher; the model at the start of the run if left out",
        model=True,
    )

    @property
    def of(self) -> str:
        """What the teacher is, as ``Stage.start`` takes it."""
        return self.teacher_model or "run"

    def notes(self) -> list[str]:
        """A line where the model is its own teacher."""
        return [SELF_TAUGHT] if self.of in STARTS else []


@dataclass
class TeacherSamplesOptions(TeacherOption):
    """For methods that learn from answers which the teacher samples before the first step."""

    generations: int | None = option(
        None, "answers sampled from the teacher in a stage; one a prompt drawn if left out", min=1
    )

    def answers_per_prompt(self, prompts: int) -> float:
        """Answers that the teacher samples for each of ``prompts`` draws, at most one."""
        return min(1, (self.generations or prompts) / prompts)
