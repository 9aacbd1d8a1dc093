"""The figures and tables of arXiv 2601.19897 as items: what each shows, and how it is drawn.

To add one: write its function in benchmarks.paper.measured, an Item here, and the name of its
experiment in experiments.yaml, which is what an order may name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.paper import measured
from benchmarks.paper.form import Number
from benchmarks.paper.pictures import Looks, bars, lines, plane, sequence_lines
from benchmarks.paper.signs import Contrast, Sign, contrast_signs, model_size_signs
from benchmarks.paper.training import training_curves
from harness.report.data import ReportData
from harness.report.style import Form

CURVES_ONLY = "the paper shows curves and prints no numbers"


@dataclass(frozen=True)
class Item:
    """One figure or table of the paper."""

    key: str  # of its files and of its place on the page
    title: str
    experiment: str  # of the orders whose results it shows
    description: str
    measure: Callable[[ReportData], Iterable[Number]]
    draw: Callable[[pd.DataFrame, Looks, Form], Figure] | None = None  # None: it is a table
    joined: bool = False  # results of several orders go into one picture or table
    absent: str = ""  # why the published side is not drawn
    contrasts: tuple[Contrast, ...] = ()
    # Its numbers are differences, in the paper from the smallest to the largest model.
    by_model_size: bool = False

    def signs(self, published: pd.DataFrame, measured: pd.DataFrame) -> list[Sign]:
        """The signs of the measured differences beside the published ones."""
        if self.by_model_size:
            return model_size_signs(published, measured)
        return contrast_signs(self.contrasts, published, measured)


def draw_in_context(frame: pd.DataFrame, looks: Looks, form: Form) -> Figure:
    """Figure 2 right: a panel a measure, a bar a model."""
    return bars(frame, looks, form, panel="x", bar="series")


def draw_sequence(frame: pd.DataFrame, looks: Looks, form: Form) -> Figure:
    """Figure 3: a panel a skill, with the stages of the sequence."""
    return sequence_lines(frame, looks, form, training_curves(frame["results"].iloc[0]))


def draw_bars_by_x(frame: pd.DataFrame, looks: Looks, form: Form) -> Figure:
    """Figures 5 left and 7: a panel a task, a bar a model or a context."""
    return bars(frame, looks, form, panel="panel", bar="x")


def draw_pass_at_k(frame: pd.DataFrame, looks: Looks, form: Form) -> Figure:
    """Figure 5 right."""
    return lines(frame, looks, form, "k", "pass@k (%)", log=True)


def draw_generations(frame: pd.DataFrame, looks: Looks, form: Form) -> Figure:
    """Figure 6."""
    return lines(frame, looks, form, "answers sampled to learn from")


def draw_teacher_weights(frame: pd.DataFrame, looks: Looks, form: Form) -> Figure:
    """Figure 8."""
    return lines(frame, looks, form, "optimizer steps")


SKILL_CONTRASTS = (Contrast("sdft", "sft", "new_task"), Contrast("sdft", "sft", "prior_avg"))
_ALL = (
    Item(
        key="figure_2_right",
        title="Figure 2 right",
        experiment="figure_2_right",
        description=(
            "Distance to the base policy of the demonstration-conditioned teacher and of trained "
            "models; and the teacher's accuracy (section 3.2)."
        ),
        measure=measured.in_context,
        draw=draw_in_context,
        contrasts=(Contrast("teacher", "base", "accuracy"),),
    ),
    Item(
        key="figure_3",
        title="Figure 3",
        experiment="figure_3",
        description=(
            "One model learns the skills in turn. Accuracy of each skill, linear, 0 = base model, "
            "1 = the highest point of any compared method's mean curve on that skill. Dashed: "
            "stage borders; shaded: the stage that teaches the panel's skill."
        ),
        measure=measured.sequence,
        draw=draw_sequence,
        absent=CURVES_ONLY,
    ),
    Item(
        key="figure_4",
        title="Figure 4",
        experiment="table_5",
        description=(
            "New task against prior capabilities, after learning one task; the dashed cross is "
            "the base model. The numbers are those of table 5."
        ),
        measure=measured.skill_learning,
        draw=plane,
        joined=True,
        contrasts=SKILL_CONTRASTS,
    ),
    Item(
        key="figure_5_left",
        title="Figure 5 left",
        experiment="figure_5_left",
        description=(
            "Accuracy on the new task, SDFT minus SFT, by model. Where the models are of several "
            "families, or their budgets differ, nothing is said about size."
        ),
        measure=measured.model_size,
        draw=draw_bars_by_x,
        joined=True,
        by_model_size=True,
    ),
    Item(
        key="figure_5_right",
        title="Figure 5 right",
        experiment="figure_5_right",
        description="pass@k, the unbiased estimator.",
        measure=measured.pass_at_k,
        draw=draw_pass_at_k,
        absent=CURVES_ONLY,
    ),
    Item(
        key="figure_6",
        title="Figure 6",
        experiment="figure_6",
        description=(
            "On-policy or not: accuracy by the number of answers sampled to learn from. SDFT "
            "samples its own along training; the others learn from a fixed set of the "
            "teacher's, a point a run, at the same number of optimizer steps."
        ),
        measure=measured.generations,
        draw=draw_generations,
        absent=CURVES_ONLY,
    ),
    Item(
        key="figure_7",
        title="Figure 7",
        experiment="figure_7",
        description="New knowledge by what the teacher is shown.",
        measure=measured.teacher_context,
        draw=draw_bars_by_x,
        contrasts=(
            Contrast("text and answer", "text only"),
            Contrast("text only", "answer only"),
        ),
    ),
    Item(
        key="figure_8",
        title="Figure 8",
        experiment="figure_8",
        description=(
            "Weights of the teacher: average, frozen base, live student. The paper finds the "
            "frozen teacher stable and worse, and that the live one diverges."
        ),
        measure=measured.teacher_weights,
        draw=draw_teacher_weights,
        absent=CURVES_ONLY,
    ),
    Item(
        key="table_1",
        title="Table 1",
        experiment="table_1",
        description="New knowledge.",
        measure=measured.knowledge,
        joined=True,
        contrasts=(
            Contrast("sdft", "sft", "strict"),
            Contrast("sdft", "sft", "ood"),
            Contrast("sft", "cpt", "strict"),
        ),
    ),
    Item(
        key="table_2",
        title="Table 2",
        experiment="table_2",
        description="A reasoning model learns from demonstrations that are answers alone.",
        measure=measured.reasoning,
        joined=True,
        contrasts=(Contrast("sdft", "sft", "accuracy"), Contrast("sft", "base", "accuracy")),
    ),
    Item(
        key="table_5",
        title="Table 5",
        experiment="table_5",
        description="One model a task: accuracy on the task and on prior capabilities.",
        measure=measured.skill_learning,
        joined=True,
        contrasts=SKILL_CONTRASTS,
    ),
)
ITEMS = {item.key: item for item in _ALL}
