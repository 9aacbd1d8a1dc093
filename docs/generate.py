"""Writes the generated pages of docs/reference from the schema and the docstrings.

    python docs/generate.py

A test compares the pages with what this file makes of the code, so that they cannot go stale.
"""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
import textwrap
import typing
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.base import curves, metrics
from harness.base.registry import only_subclass
from harness.evaluation.endpoint import EndpointConfig
from harness.evaluation.settings import KL, Drift, Evaluate, PassAtK
from harness.evaluation.suite import RetentionTask
from harness.learning import low_rank, made_weights
from harness.learning.distillation import DistillationConfig
from harness.learning.method import Method
from harness.learning.parametrisation import Parametrisation
from harness.learning.part import Part, lacking
from harness.learning.trainer import TrainingConfig
from harness.runs.presets import preset_files, read_preset
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

NOTICE = "<!-- Made by docs/generate.py from the code; change it there. -->\n"
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
    "evaluate.drift": (Drift, "KL from the base policy on general prompts, along training."),
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


def cell(value: object) -> str:
    """A value of a setting as YAML would have it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value and abs(value) < 1e-3:
        return re.sub(r"e-0", "e-", f"{value:g}")
    return f"{value:g}" if isinstance(value, float) else str(value)


def kind(hint: object) -> str:
    """A type hint in words."""
    if typing.get_origin(hint) in (typing.Union, type(int | None)):
        return " or ".join(kind(h) for h in typing.get_args(hint) if h is not type(None))
    name = getattr(typing.get_origin(hint) or hint, "__name__", str(hint))
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    return {**words, "dict": "mapping", "list": "list"}.get(name, name)


def bounds(rules: typing.Mapping[str, typing.Any]) -> str:
    """What a setting may be, from the metadata of its ``option``."""
    if rules.get("choices"):
        return ", ".join(f"`{choice}`" for choice in rules["choices"])
    parts = [
        f"{word} {cell(rules[key])}"
        for key, word in (("min", "from"), ("above", "above"), ("max", "to"))
        if rules.get(key) is not None
    ]
    return " ".join(parts)


def default(field: dataclasses.Field[typing.Any]) -> str:
    """The default of a field, in words."""
    if field.default_factory is not dataclasses.MISSING:
        return cell(field.default_factory() or None)
    return "required" if field.default is dataclasses.MISSING else cell(field.default)


def table(config: type, without: frozenset[str] = frozenset()) -> str:
    """The settings of a dataclass as a Markdown table."""
    hints = typing.get_type_hints(config)
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(config):
        if field.name in without:
            continue
        values = bounds(field.metadata) or kind(hints[field.name])
        row = (f"`{field.name}`", default(field), values, field.metadata.get("help", ""))
        lines.append("| " + " | ".join(part.replace("|", "\\|") for part in row) + " |")
    return "\n".join(lines) + "\n"


def markdown(docstring: str | None) -> str:
    """A docstring as Markdown: paragraphs unwrapped, code in single backquotes."""
    text = inspect.cleandoc(docstring or "").replace("``", "`")
    text = re.sub(r":class:`([^`]+)`", r"`\1`", text)
    blocks = []
    for block in text.split("\n\n"):
        if block.startswith("    "):
            blocks.append("```\n" + textwrap.dedent(block) + "\n```")
            continue
        lines: list[str] = []
        for line in block.split("\n"):
            if lines and not re.match(r"\s*(\* |- |\d+\. )", line):
                lines[-1] += " " + line.strip()
            else:
                lines.append(line)
        blocks.append("\n".join(lines))
    text = "\n\n".join(blocks)
    return re.sub(r"(?<=[^\n])\n(?=\* )", "\n\n", text, count=0) if "\n* " in text else text


def order_page() -> str:
    parts = [
        "# The task-order file\n",
        NOTICE,
        "YAML. Unknown keys, wrong types and impossible values are refused before anything loads, "
        "in one line, with exit code 2; what only a model or a trainer of TRL can tell, when it is "
        "met. Paths are looked up beside the order file, then in the "
        "current folder; a model's folder in the current folder alone. `--set` changes any key "
        "for one start ([commands](commands.md#run_sequencepy)).\n",
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
        "([how to](../how-to/retention.md)).\n",
        "Its keys: "
        + ", ".join(f"`{field.name}`" for field in dataclasses.fields(RetentionTask))
        + ".\n",
        "## grid\n",
        "`label: {setting: [values]}`, also `with.PART.OPTION` and `parameters.NAME.OPTION`. "
        "Validation accuracy selects among all combinations "
        "([grids](../how-to/many-seeds.md#grids)).\n",
    ]
    return "\n".join(parts)


def methods_page() -> str:
    shared = frozenset(field.name for field in dataclasses.fields(TrainingConfig))
    distillation = frozenset(field.name for field in dataclasses.fields(DistillationConfig))
    parts = [
        "# Methods\n",
        NOTICE,
        "One file a method in `methods/`. All share the learning step of the harness: the order "
        "of the data, float32 master weights, AdamW, warm-up and schedule, gradient clipping, "
        "micro-batches, checkpoints. They differ in the loss. A method of your own: "
        "[how to](../how-to/my-method.md).\n",
        "## Settings of every method\n",
        table(TrainingConfig),
        "## Settings of distillation\n",
        "Of `sdft`, `sdpo`, `gkd`, `offline_distillation` and `sft_reinvoke`, beside those above. "
        "Formulas: "
        "[numerics](../explanation/numerics.md#estimators-of-the-divergence).\n",
        table(DistillationConfig, shared),
    ]
    for path in sorted((ROOT / "methods").glob("*.py")):
        if path.stem.startswith("_"):
            continue
        module = importlib.import_module(f"methods.{path.stem}")
        config = next(
            value.Config
            for value in vars(module).values()
            if isinstance(value, type)
            and value.__module__ == module.__name__
            and hasattr(value, "learn")
        )
        known = distillation if issubclass(config, DistillationConfig) else shared
        base = DistillationConfig if issubclass(config, DistillationConfig) else TrainingConfig
        defaults = {field.name: field.default for field in dataclasses.fields(base)}
        same = frozenset(
            field.name
            for field in dataclasses.fields(config)
            if field.name in known and field.default == defaults.get(field.name)
        )
        parts += [f"## {path.stem}\n", markdown(module.__doc__) + "\n"]
        if len(same) < len(dataclasses.fields(config)):
            parts.append(table(config, same))
    parts += [
        "## Presets\n",
        "`preset: NAME` gives a label the method and settings of a paper or code; single settings "
        "beside it go over them. Results hold the values. Files: `benchmarks/presets`.\n",
    ]
    for name in preset_files():
        preset = read_preset(name)
        settings = yaml.safe_dump(preset["settings"], sort_keys=False)
        parts += [f"### {name}\n", f"Method: `{preset['method']}`. {preset['source']}\n"]
        parts += [f"```yaml\n{settings}```\n"]
    return "\n".join(parts)


def plugins(folder: Path, package: str, base: type) -> typing.Iterator[tuple[str, type]]:
    """The classes of a folder's plug-ins, by the names of their files."""
    for path in sorted(folder.glob("*.py")):
        if not path.stem.startswith("_"):
            module = importlib.import_module(f"{package}.{path.stem}")
            yield path.stem, only_subclass(module, base, path.stem, path)


def parts_page() -> str:
    methods = dict(plugins(ROOT / "methods", "methods", Method))
    joined = dict(plugins(ROOT / "methods" / "parts", "methods.parts", Part))
    lines = ["| part | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for name, part in joined.items():
        default = part(part.Config())
        cells = (
            "no" if lacking(part, method) else "some" if default.refuses(method) else "yes"
            for method in methods.values()
        )
        lines.append(f"| [{name}](#{name}) | " + " | ".join(cells) + " |")
    pages = [
        "# Parts\n",
        NOTICE,
        "What joins a method under `with` ([how to](../how-to/my-part.md)). Every option has a "
        "default, so that `{}` runs.\n",
        "## What joins what\n",
        "\n".join(lines) + "\n",
        "No: refused in one line, before anything loads. Some: with other options than the "
        "defaults, which the part's section names. Parts may join one method together, but of "
        + ", ".join(f"`{name}`" for name, part in joined.items() if part.has("merge"))
        + ", which make the weights with which a stage ends, only one.\n",
    ]
    for name, part in joined.items():
        doc = sys.modules[part.__module__].__doc__
        pages += [f"## {name}\n", markdown(doc) + "\n", table(part.Config)]
    return "\n".join(pages)


def parameters_page() -> str:
    methods = dict(plugins(ROOT / "methods", "methods", Method))
    trained = dict(plugins(ROOT / "methods" / "parameters", "methods.parameters", Parametrisation))
    joined = dict(plugins(ROOT / "methods" / "parts", "methods.parts", Part))
    lines = ["| part | " + " | ".join(trained) + " |", "|---" * (len(trained) + 1) + "|"]
    for name, part in joined.items():
        why = part(part.Config()).wants_weights()
        cells = ("no" if each.makes and why else "yes" for each in trained.values())
        lines.append(f"| [{name}](parts.md#{name}) | " + " | ".join(cells) + " |")
    pages = [
        "# Parametrisations\n",
        NOTICE,
        "What a method trains, under `parameters` ([how to](../how-to/adapters.md)): a name, or a "
        "name with options. All weights learn if it is left out.\n",
        "## What joins what\n",
        "Every parametrisation joins every [method](methods.md) but "
        + " and ".join(f"`{name}`" for name, each in methods.items() if each.has_own_loop)
        + ", which the harness does not train. With [parts](parts.md) at their defaults:\n",
        "\n".join(lines) + "\n",
        "No: refused in one line, before anything loads. So are `coupled: false` of penalties, and "
        "parts of your own with `gradient`, `update` or `project`, with every parametrisation but "
        "`all` and `freeze`. Parts that make the weights with which a stage ends "
        "go with `adapter: merged` alone; task vectors with `begin: merged`.\n",
        "## Weights made of numbers\n",
        markdown(made_weights.__doc__) + "\n",
        "### By a low rank\n",
        markdown(low_rank.__doc__) + "\n",
    ]
    for name, parametrisation in trained.items():
        doc = sys.modules[parametrisation.__module__].__doc__
        pages += [f"## {name}\n", markdown(doc) + "\n"]
        if dataclasses.fields(parametrisation.Config):
            pages.append(table(parametrisation.Config))
    return "\n".join(pages)


def functions(module: object) -> typing.Iterator[typing.Callable[..., object]]:
    """The public functions that a module defines, in their order in the file."""
    for node in ast.parse(inspect.getsource(module)).body:  # type: ignore[arg-type]
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield getattr(module, node.name)


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


def metrics_page() -> str:
    parts = ["# Metrics\n", NOTICE, markdown(metrics.__doc__) + "\n"]
    for module in (metrics, curves):
        for function in functions(module):
            parts += [f"## {function.__name__}\n", markdown(function.__doc__) + "\n"]
    parts += [
        "## Graders\n",
        "For skills from JSONL files ([how to](../how-to/my-data.md)). "
        "[What they accept](graders.md) is a page of its own.\n",
    ]
    parts.append(
        "| grader | score |\n|---|---|\n"
        + "".join(
            f"| `{name}` | {markdown(grader.__doc__).splitlines()[0]} |\n"
            for name, grader in GRADERS.items()
        )
    )
    return "\n".join(parts)


def pages() -> dict[Path, str]:
    """The generated pages: {path: text}."""
    folder = ROOT / "docs" / "reference"
    return {
        folder / "order.md": order_page(),
        folder / "methods.md": methods_page(),
        folder / "parts.md": parts_page(),
        folder / "parameters.md": parameters_page(),
        folder / "metrics.md": metrics_page(),
        folder / "graders.md": graders_page(),
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
        print(page.relative_to(ROOT))
