"""The pages of methods, parts and parametrisations: one each, and three that list them."""

import dataclasses
import functools
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from generator import costs, refusals
from generator.measured import Measured
from generator.text import NOTICE, Doc, grid, markdown, names, papers, read_doc, table
from harness.base.files import ROOT
from harness.base.registry import only_subclass, plugin_names
from harness.learning import distillation, low_rank, made_weights
from harness.learning.distillation import DistillationConfig
from harness.learning.method import Method
from harness.learning.parametrisation import Parametrisation
from harness.learning.part import Part
from harness.learning.trainer import TrainingConfig
from harness.runs.presets import preset_files, read_preset
from harness.runs.references import check_followed

REFERENCE = ROOT / "docs" / "reference"
FURTHER = "Further"  # the group of what none of these names
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {  # by kind: what stands together on its list
    "methods": {
        "From demonstrations or texts": ("sft", "dft", "psft", "cpt"),
        "From rewards": ("grpo", "self_sft"),
        "On-policy distillation": ("sdft", "sdpo", "gkd", "sft_reinvoke"),
        "From a teacher's own answers": ("offline_distillation", "sft_from_teacher"),
        "Other trainers, or none": ("trl", "in_context"),
    },
    "parts": {
        "Replay": ("replay",),
        "Anchor": ("anchor",),
        "Penalty": ("ewc", "mas", "l2sp"),
        "Average": ("wise_ft", "sfa", "ema", "task_arithmetic", "ties", "dare"),
        "Projection": ("agem",),
        "Weighting of tokens and samples": ("stm", "talr", "eaft", "flow"),
        "Controls": ("random_mask", "matched_norm"),
    },
    "parameters": {
        "Weights themselves": ("all", "freeze"),
        "A low rank": ("lora", "dora", "pissa", "milora", "olora"),
        "A subspace": ("osf",),
    },
}
INSIDE = (
    "Evaluations inside a stage (`evaluate.every_steps`), and so inner points of learning curves, "
    "are of the live weights, before the merge."
)
FOLDERS = {"methods": "methods", "parts": "methods/parts", "parameters": "methods/parameters"}


@functools.cache
def plugins(kind: str) -> dict[str, Any]:
    """The classes of a kind by name."""
    bases = {"methods": Method, "parts": Part, "parameters": Parametrisation}
    folder = ROOT / FOLDERS[kind]
    found = {}
    for name in plugin_names(folder):
        module = importlib.import_module(f"{FOLDERS[kind].replace('/', '.')}.{name}")
        found[name] = only_subclass(module, bases[kind], name, folder / f"{name}.py")
    return found


def doc(plugin: type, name: str) -> Doc:
    return read_doc(sys.modules[plugin.__module__].__doc__, name)


# ---- one page each -------------------------------------------------------------------------------


def pages(measured: Measured) -> dict[Path, str]:
    """{path: text} of all pages of plug-ins."""
    made = {REFERENCE / f"{kind}.md": text for kind, text in lists().items()}
    for kind in FOLDERS:
        for name, plugin in plugins(kind).items():
            made[REFERENCE / kind / f"{name}.md"] = page(kind, name, plugin, measured)
    return made


def page(kind: str, name: str, plugin: Any, measured: Measured) -> str:
    """The page of one plug-in."""
    own = doc(plugin, name)
    about = [own.what, own.body]
    if kind == "parts" and plugin.has("merge"):
        about.append(INSIDE)
    sections = {
        "": "\n\n".join(filter(None, about)),
        "Source": source(kind, name, plugin),
        "Options": options(kind, plugin),
        "State": own.state,
        "Cost": "\n\n".join(filter(None, (own.cost, cost(kind, name, plugin)))).rstrip(),
        "What it refuses": refused(kind, name, plugin),
        "Example": f"```yaml\n{example(plugin) or measured.example(kind, name)}\n```",
        "What it did": measured.did(kind, name),
    }
    parts = [f"# {name}\n", NOTICE]
    for title, text in sections.items():
        parts += [f"## {title}\n"] * bool(title) + [text.rstrip() + "\n"]
    return "\n".join(parts)


def source(kind: str, name: str, plugin: type) -> str:
    """The papers that a docstring names, and the file."""
    path = f"{FOLDERS[kind]}/{name}.py"
    named = papers(sys.modules[plugin.__module__].__doc__)
    code = f"[{path}](../../../{path})"
    return (f"{', '.join(named)}. " if named else "") + f"Code: {code}."


def example(plugin: type) -> str:
    """The row of an order that a docstring shows, if any."""
    text = sys.modules[plugin.__module__].__doc__ or ""
    found = re.search(r"^    (\w+: \{.*\})$", text, re.MULTILINE)
    return f"methods:\n  {found[1]}" if found else ""


def options(kind: str, plugin: Any) -> str:
    """The options table, for a method of what differs from those of every method."""
    config = plugin.Config
    if kind != "methods":
        return table(config) if dataclasses.fields(config) else "None."
    base = DistillationConfig if issubclass(config, DistillationConfig) else TrainingConfig
    known = {field.name: field.default for field in dataclasses.fields(base)}
    same = frozenset(
        field.name
        for field in dataclasses.fields(config)
        if field.name in known and field.default == known[field.name]
    )
    others = ["[settings of every method](../methods.md#settings-of-every-method)"]
    if base is DistillationConfig:
        others.append("[those of distillation](../methods.md#settings-of-distillation)")
    own = table(config, same) if len(same) < len(dataclasses.fields(config)) else ""
    beside = " and ".join(others) if plugin.trains else "no settings that train"
    return f"{own}\nBeside these: {beside}." if own else f"None of its own, but {beside}."


def cost(kind: str, name: str, plugin: Any) -> str:
    """What --plan counts, of symbols."""
    if kind == "methods":
        return costs.method_cost(name, plugin)
    return costs.part_cost(name, plugin) if kind == "parts" else costs.parameters_cost(plugin)


def refused(kind: str, name: str, plugin: Any) -> str:
    """What cannot go together, and the errors of the plug-in's own code."""
    together = [f"* {entry}." for entry in apart(kind, name, plugin)]
    shared = (TrainingConfig, DistillationConfig)
    errors = refusals.errors_of(plugin, shared)
    if kind == "parts" and plugin.has("follows"):
        errors += refusals.errors_in(check_followed, plugin, set())
    own = [f"* {entry}." for entry in errors]
    what = {"methods": "methods", "parts": "parts", "parameters": "parametrisations"}
    blocks = [
        "In one line, before anything is learned"
        + (f"; {refusals.UNKNOWN} is a value of the order." if own else "."),
        *(["With the defaults it does not join:", "\n".join(together)] if together else []),
        *(["In an order:", "\n".join(own)] if own else []),
    ]
    return "\n\n".join(blocks) if together or own else f"Nothing beyond what all {what[kind]} do."


def apart(kind: str, name: str, plugin: Any) -> list[str]:
    """Entries: what a plug-in does not join, and why."""
    if kind == "parts":
        of_methods = {m: refusals.joins(plugin, cls)[1] for m, cls in plugins("methods").items()}
        trained = plugins("parameters")
        of_trained = {p: refusals.goes_with(plugin, cls)[1] for p, cls in trained.items()}
        found = refusals.entries(of_methods) + refusals.entries(of_trained)
        return found + refusals.beside(name, plugins("parts"))
    parts = plugins("parts")
    if kind == "methods":
        found = refusals.entries({p: refusals.joins(cls, plugin)[1] for p, cls in parts.items()})
        if plugin.has_own_loop:
            found.append("parametrisations: " + own_loop(plugin))
        return found
    found = refusals.entries({p: refusals.goes_with(cls, plugin)[1] for p, cls in parts.items()})
    methods = {m: own_loop(cls) for m, cls in plugins("methods").items() if cls.has_own_loop}
    return refusals.entries(methods) + found


def own_loop(method: type[Method]) -> str:
    """Why no parametrisation joins a method that the harness does not train."""
    return "it trains all weights in a loop of its own" if method.trains else "it trains no weights"


# ---- the lists -----------------------------------------------------------------------------------


def lists() -> dict[str, str]:
    """The three pages that list plug-ins, by kind."""
    return {"methods": methods_page(), "parts": parts_page(), "parameters": parameters_page()}


def groups(kind: str) -> Iterator[tuple[str, list[str]]]:
    """(title, names) of the groups of a kind, with what no group names at the end."""
    left = list(plugins(kind))
    for title, members in GROUPS[kind].items():
        yield title, [name for name in members if name in left]
        left = [name for name in left if name not in members]
    if left:
        yield FURTHER, left


def listed(kind: str) -> str:
    """A table of a kind's groups, with a line for each plug-in."""
    rows = [
        (title if name == members[0] else "", f"[{name}]({kind}/{name}.md)", _what(kind, name))
        for title, members in groups(kind)
        for name in members
    ]
    return grid(("group", "name", "what"), rows)


def _what(kind: str, name: str) -> str:
    return doc(plugins(kind)[name], name).what


def methods_page() -> str:
    parts = [
        "# Methods\n",
        NOTICE,
        "One file a method in `methods/`. All share the learning step of the harness: the order "
        "of the data, float32 master weights, AdamW, warm-up and schedule, gradient clipping, "
        "micro-batches, checkpoints. They differ in the loss. A method of your own: "
        "[how to](../how-to/my-method.md).\n",
        listed("methods"),
        "What joins them: [parts](parts.md#what-joins-what), [parametrisations](parameters.md).\n",
        "## Settings of every method\n",
        table(TrainingConfig),
        "## Settings of distillation\n",
        "Of "
        + names(m for m, cls in plugins("methods").items() if _distils(cls))
        + ", beside those above.\n",
        table(DistillationConfig, _fields(TrainingConfig)),
        "### Divergences and estimators\n",
        markdown(distillation.__doc__).partition("\n\n")[2] + "\n",
        "## Presets\n",
        "`preset: NAME` gives a label the method and settings of a paper or code; single settings "
        "beside it go over them. Results hold the values. Files: `benchmarks/presets`.\n",
    ]
    for name in preset_files():
        preset = read_preset(name)
        settings = yaml.safe_dump(preset["settings"], sort_keys=False)
        method = preset["method"]
        parts += [f"### {name}\n", f"Method: [{method}](methods/{method}.md). {preset['source']}\n"]
        parts += [f"```yaml\n{settings}```\n"]
    return "\n".join(parts)


def _distils(method: type[Method]) -> bool:
    return issubclass(method.Config, DistillationConfig)


def _fields(config: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(config))


def parts_page() -> str:
    parts = plugins("parts")
    without = [method for method, cls in plugins("methods").items() if cls.has_own_loop]
    merging = [name for name, part in parts.items() if part.has("merge")]
    return "\n".join(
        [
            "# Parts\n",
            NOTICE,
            "What joins a method under `with` ([how to](../how-to/my-part.md)). Every option has "
            "a default, so that `{}` runs.\n",
            listed("parts"),
            "## What joins what\n",
            "With the defaults; a blank says that it joins.\n",
            joined_table(),
            "No: refused in one line, before anything loads. Some: with other options than the "
            "defaults; the part's page says which. No part joins " + names(without) + ". Parts may "
            "join one method together, but of " + names(merging) + ", which make the weights with "
            "which a stage ends, only one.\n",
        ]
    )


def joined_table() -> str:
    """Part x method x parametrisation, with those that answer alike in one column."""
    parts = plugins("parts")
    columns = columns_of(plugins("methods"), refusals.joins)
    columns += columns_of(plugins("parameters"), refusals.goes_with)
    rows = [
        [f"[{name}](parts/{name}.md)", *(answers[i] for _, answers in columns)]
        for i, name in enumerate(parts)
    ]
    return grid(["part", *(", ".join(alike) for alike, _ in columns)], rows)


def columns_of(others: Mapping[str, Any], ask: Any) -> list[tuple[list[str], tuple[str, ...]]]:
    """[(names that answer alike, an answer for each part)], without those that no part joins."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, other in others.items():
        answers = tuple(ask(part, other)[0] for part in plugins("parts").values())
        found.setdefault(answers, []).append(name)
    return [(alike, answers) for answers, alike in found.items() if set(answers) != {"no"}]


def parameters_page() -> str:
    without = [method for method, cls in plugins("methods").items() if cls.has_own_loop]
    return "\n".join(
        [
            "# Parametrisations\n",
            NOTICE,
            "What a method trains, under `parameters` ([how to](../how-to/adapters.md)): a name, "
            "or a name with options. All weights learn if it is left out.\n",
            listed("parameters"),
            "## What joins what\n",
            "Every parametrisation joins every [method](methods.md) but "
            + names(without)
            + ", which the harness does not train. Which [parts](parts.md#what-joins-what) join "
            "is in their table.\n",
            "Also refused are `coupled: false` of penalties, and parts of your own with "
            "`gradient`, `update` or `project`, with every parametrisation but `all` and `freeze`. "
            "Parts that make the weights with which a stage ends go with `adapter: merged` alone; "
            "task vectors with `begin: merged`.\n",
            "## Weights made of numbers\n",
            markdown(made_weights.__doc__) + "\n",
            "### By a low rank\n",
            markdown(low_rank.__doc__) + "\n",
        ]
    )
