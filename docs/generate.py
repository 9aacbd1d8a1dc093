"""Writes the generated pages of docs/reference and the order's JSON schema from the code, and runs
the notebooks of docs/examples.

    python docs/generate.py

Pages of plug-ins that are gone are removed. A test compares the pages with what this file makes of
the code, so that they cannot go stale.
"""

import json
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from generator.measured import Measured
from generator.notebook import executed
from generator.plugins import FOLDERS
from generator.plugins import pages as plugin_pages
from generator.text import NOTICE, cell, functions, grid, markdown, table

from harness.base import curves, metrics
from harness.evaluation.endpoint import EndpointConfig
from harness.evaluation.settings import KL, Drift, Evaluate, PassAtK
from harness.evaluation.suite import RetentionTask
from harness.models import size
from harness.report import continual
from harness.runs.order_schema import FILE, order_schema
from harness.runs.schema import (
    Budget,
    ChatTemplate,
    Checkpoints,
    ModelSpec,
    Power,
    Schema,
    SkillSpec,
)
from harness.sampling.settings import Rollout, VLLMConfig
from harness.skills.signs import GRADERS
from harness.skills.words import normalise

SECTIONS = {  # title of a section: (dataclass, one sentence)
    "The file": (Schema, "Keys at the top."),
    "model": (ModelSpec, "A mapping, or the name alone."),
    "chat_template": (
        ChatTemplate,
        "What the model's template is given ([how to](../how-to/my-model.md#the-chat-template)).",
    ),
    "skills": (SkillSpec, "A list; an entry is a mapping, or the name alone."),
    "budget": (Budget, "Exactly one of `prompts` and `epochs`."),
    "rollout": (Rollout, "Sampling while the model learns."),
    "evaluate": (Evaluate, "Evaluation of the skills."),
    "evaluate.pass_at_k": (PassAtK, "Answers sampled for pass@k."),
    "evaluate.kl": (KL, "KL to the base policy."),
    "evaluate.drift": (Drift, "KL from the base policy on prompts, along training."),
    "vllm": (VLLMConfig, "What vLLM may use, where it is an engine."),
    "judge": (EndpointConfig, "The judge's server, for skills with a rubric."),
    "power": (
        Power,
        "Differences that should be told ([power](../explanation/sensitivity.md#power)).",
    ),
    "checkpoints": (Checkpoints, "Resume and disk."),
}
EXAMPLE = """\
```yaml
name: mine
description: two skills, three methods
model: embedded
skills:
  - bfcl_tools
  - {name: elements, prompts: 320}
  - {name: my_skill, train: my_train.jsonl, test: my_test.jsonl, grader: contains}
budget: {prompts: 160, batch_size: 16}
methods: # label: settings
  sft: {learning_rate: 1e-5}
  sdft_frozen: {method: sdft, teacher: frozen} # the same method under another label
  mine: {file: my_method.py, learning_rate: 1e-5} # a method of your own
seeds: [0, 1, 2]
evaluate: {every_steps: 5, pass_at_k: {samples: 128}, kl: {prompts: 64}}
retention: embedded
grid:
  sft: {learning_rate: [5e-6, 1e-5, 5e-5]}
```
"""


def order_page() -> str:
    parts = [
        "# The task-order file\n",
        NOTICE,
        "YAML. Unknown keys, wrong types and impossible values are refused before anything loads, "
        "in one line, with exit code 2; what only the model or a trainer of TRL can tell, before "
        "anything is learned. Paths are looked up beside the order file, then in the "
        "current folder; that of `model` in the current folder alone. `--set` changes any key "
        "for one start ([commands](commands.md#run_sequencepy)). "
        "[In an editor](../how-to/editors.md) keys complete and explain themselves.\n",
        EXAMPLE,
    ]
    for title, (config, sentence) in SECTIONS.items():
        parts += [f"## {title}\n", sentence + "\n", table(config)]
    parts += [
        "## methods\n",
        "`label: settings`. The label is the method's name unless `method` names one, or `file` a "
        "Python file. Settings of every method: [methods](methods.md). `preset` names those of a "
        "paper ([presets](methods.md#presets)). `with: {part: options}` "
        "joins [parts](parts.md), also of a `file` of your own. `parameters: lora` or `parameters: "
        "{lora: {rank: 8}}` trains [other numbers](parameters.md) than all weights.\n",
        "## retention\n",
        "A suite of benchmarks/retention, or a list of lm-eval tasks "
        "([how to](../how-to/retention.md)), each a mapping or the name alone.\n",
        table(RetentionTask),
        "## grid\n",
        "`label: {setting: [values]}`, also `with.PART.OPTION` and `parameters.NAME.OPTION`. "
        "Validation accuracy selects among all combinations "
        "([grids](../how-to/many-seeds.md#grids)).\n",
    ]
    return "\n".join(parts)


def code(value: object) -> str:
    """A value of a table in Markdown: a text as it is, anything else as JSON, in code type."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.replace("\n", "⏎").replace("|", "\\|")
    marks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    blank = " " if len(marks) > 1 or text[:1] in ("", " ") else ""
    kind = " (JSON)" if isinstance(value, bool | int | float) else ""
    return f"{marks}{blank}{text}{blank}{marks}{kind}" if text else "nothing"


def graders_page() -> str:
    source = ROOT / "docs" / "reference" / "graders.yaml"
    parts = [
        "# What graders accept\n",
        NOTICE,
        "Answers, references and scores, one by one. A test grades each of them. `⏎` is a line "
        "break. The source is [graders.yaml](graders.yaml).\n",
        "For a JSONL skill ([how to](../how-to/my-data.md)) a reference of which a grader sees "
        "nothing is refused with file and row: null, an empty text or list, and where words are "
        "compared a text without any. Nothing equals nothing.\n",
        "## Words\n",
        markdown(normalise.__doc__) + "\n",
        "This is `normalise`, by which `normalised_match`, `contains` and `token_f1` compare. "
        "A character that stands for several words (½, ℃, ㍿) is one word to them, equal to its "
        "long form.\n",
    ]
    for name, rows in yaml.safe_load(source.read_text(encoding="utf-8")).items():
        lines = [
            f"| {code(answer)} | {code(reference)} | {cell(float(score))} |\n"
            for answer, reference, score in rows
        ]
        title = name.replace(".", ": ")
        parts.append(
            f"## {title}\n\n| answer | reference | score |\n|---|---|---:|\n" + "".join(lines)
        )
    return "\n".join(parts)


# What the report calls the numbers of metrics.py and curves.py; the others are steps on the way.
REPORT_NAMES = {
    "average_accuracy": "ACC",
    "own_stage_accuracy": "own stage",
    "learning_accuracy": "LA",
    "own_stage_gain": "mean gain",
    "backward_transfer": "BWT over T - 1",
    "forward_transfer": "FWT",
    "forgetting": "Forgetting",
    "overall_performance": "OP after the last stage (ACC)",
    "anytime_accuracy": "anytime accuracy",
    "backward_transfer_trace": "BWT over T (TRACE)",
    "intransigence": "intransigence",
    "plasticity_loss": "plasticity loss",
    "forward_transfer_single": "FWT against single runs",
    "holm": "p-values by Holm",
    "retention_delta": "Retention Δ",
    "pass_at_k": "pass@k",
    "learning_curve_area": "area under the learning curve",
    "prompts_to_reach": "prompts to 90% of the single result",
    "transitions": "items lost, items gained",
    "hypervolume": "area",
}


def metrics_page() -> str:
    parts = [
        "# Metrics\n",
        NOTICE,
        markdown(metrics.__doc__) + "\n",
        "A heading is what the report calls it, then the function.\n",
    ]
    for module in (metrics, curves):
        for function in functions(module):
            name = function.__name__
            title = f"{REPORT_NAMES[name]}: `{name}`" if name in REPORT_NAMES else f"`{name}`"
            parts += [f"## {title}\n", markdown(function.__doc__) + "\n"]
    parts += [
        "## prompts to relearn it\n",
        markdown(continual.relearning.__doc__) + "\n",
        "In points after 1, 2, 4, 8, ... steps ([how to](../how-to/many-seeds.md#relearning)).\n",
        "## TFLOPs: `operations`\n",
        markdown(size.operations.__doc__) + "\n",
        markdown(size.product_weights.__doc__) + "\n",
        "## norm of the change, share of changed entries: `change`\n",
        markdown(size.change.__doc__) + "\n",
        markdown(size.Change.__doc__) + " Of the model in its own dtype, since the start of the "
        "stage and of the run.\n",
        "## Graders\n",
        "For skills from JSONL files ([how to](../how-to/my-data.md)). "
        "[What they accept](graders.md) is a page of its own.\n",
    ]
    rows = [(f"`{name}`", markdown(each.__doc__).splitlines()[0]) for name, each in GRADERS.items()]
    return "\n".join([*parts, grid(("grader", "score"), rows)])


def pages(measured: Measured | None = None) -> dict[Path, str]:
    """The generated pages: {path: text}; measured: what plug-ins did, as committed if left out."""
    folder = ROOT / "docs" / "reference"
    return {
        folder / "order.md": order_page(),
        **plugin_pages(measured or Measured()),
        folder / "metrics.md": metrics_page(),
        folder / "graders.md": graders_page(),
        FILE: json.dumps(order_schema(), indent=1, ensure_ascii=False) + "\n",
    }


def stale(made: dict[Path, str]) -> list[Path]:
    """Pages of plug-ins that ``pages`` does not make."""
    folders = [ROOT / "docs" / "reference" / kind for kind in FOLDERS]
    return sorted(p for folder in folders for p in folder.glob("*.md") if p not in made)


def write() -> None:
    """Bring docs/reference to what the code says."""
    made = pages()
    for page, text in made.items():
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")
        print(page.relative_to(ROOT))
    for path in sorted((ROOT / "docs" / "examples").glob("*.ipynb")):
        path.write_text(executed(path), encoding="utf-8")
        print(path.relative_to(ROOT))
    for page in stale(made):
        page.unlink()
        print(f"removed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    write()
