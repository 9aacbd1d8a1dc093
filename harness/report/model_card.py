"""The card of an exported model: what it learned, numbers with intervals, protocols, licence."""

import json
import re

import yaml

from harness.report.data import ReportData
from harness.report.exports import markdown_text
from harness.report.leaderboard import leaderboard_row
from harness.report.measurements import RunId
from harness.report.names import EMBEDDED
from harness.report.table import Table
from harness.report.tables import main_table
from harness.results.folders import Json

DEQUANTISED = " Its weights come from a 4-bit file, dequantised: they are not the original ones."
UNKNOWN = "not stated here: that of the base model holds, and those of the data"


def model_card(results: ReportData, label: str, run: RunId, made: Json, licence: str | None) -> str:
    """README.md of the model that a method's run ends with: YAML for the hub, then Markdown.

    made: the run's run.json; licence: an id of the hub, by default that of an embedded base model.
    """
    head = results.heads[run.folder]
    model = head.get("model") or "model"  # older results have its name alone
    name = str(model.get("name") if isinstance(model, dict) else model)
    base, known = EMBEDDED.get(name, (name, None))
    licence = licence or known
    row = leaderboard_row(results, label)
    order = results.series[label].order_of(run.sequence)
    about = {
        **({"license": licence} if licence else {}),
        "base_model": base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["continual-learning", str(row["method"])],
        "model-index": [{"name": label, "results": _index(row)}],
    }
    parts = [
        f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---\n",
        f"# {markdown_text(label)}: {', '.join(map(markdown_text, order))}\n",
        f"{markdown_text(base)} after it has learned {len(order)} skills in turn, by the method "
        f"{markdown_text(str(row['method']))}, {markdown_text(run.text)}."
        f"{DEQUANTISED if name in EMBEDDED else ''}\n",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("PATH")\n'
        'tokenizer = AutoTokenizer.from_pretrained("PATH")\n```\n',
        "## Numbers\n",
        _numbers(results, label),
        _alone(results, label, run),
        "## Data\n",
        _data(head, order),
        "## Method\n",
        _code(yaml.safe_dump(_method(row), sort_keys=False, allow_unicode=True), "yaml"),
        "## Protocol\n",
        _protocols(row),
        "## Where it was made\n",
        _code(json.dumps(_provenance(made), indent=1, ensure_ascii=False), "json"),
        "## Licence\n",
        f"{markdown_text(licence or UNKNOWN)}\n",
    ]
    return "\n".join(parts)


def _index(row: Json) -> list[Json]:
    """The numbers as the hub reads them: the last value of each skill and retention task."""
    found = []
    for kind in ("skills", "retention"):
        for name, each in row[kind].items():
            if each["final"] is not None:
                value = {"type": each["metric"], "value": round(each["final"]["value"], 6)}
                found.append(
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": name, "type": name},
                        "metrics": [{**value, "name": f"{each['metric']}, n {each['n']}"}],
                    }
                )
    return found


def _numbers(results: ReportData, label: str) -> str:
    """The main table's rows of the base model and of the method."""
    table = main_table(results)
    rows = [row for row in table.rows if row[0] == label or row[0] in results.bases()]
    return Table(table.name, table.title, table.note, table.columns, rows).markdown()


def _alone(results: ReportData, label: str, run: RunId) -> str:
    """What the numbers are of, where they are not of this one model."""
    runs = len(results.runs[label])
    if runs < 2:
        return ""
    return f"Means over {runs} runs; the weights here are those of {run.text}.\n"


def _data(head: Json, order: tuple[str, ...]) -> str:
    of_name = {skill["name"]: skill for skill in head["skills"]}
    lines = [
        f"{place}. {markdown_text(name)}: {markdown_text(of_name[name].get('description') or '')}"
        f" ({_said(of_name[name], 'prompts')} prompts drawn, hash of the training data "
        f"{_said(of_name[name], 'train')})"
        for place, name in enumerate(order, 1)
    ]
    return "\n".join([*lines, ""])


def _said(entry: Json, key: str) -> str:
    return markdown_text(str(entry.get(key, "?")))


def _method(row: Json) -> Json:
    return {
        key: row[key]
        for key in ("method", "config", "with", "parameters", "budget")
        if row.get(key)
    }


def _protocols(row: Json) -> str:
    lines = ["| measured | metric | n | protocol |", "|---|---|---:|---|"]
    for kind in ("skills", "retention"):
        for name, each in row[kind].items():
            cells = (name, each["metric"], str(each["n"] or "–"), each["protocol"] or "–")
            lines.append("| " + " | ".join(map(markdown_text, cells)) + " |")
    text = "\n".join(lines)
    return (
        f"{text}\n\nNumbers compare with others of the same protocol alone. Rows of leaderboards "
        f"that may be ranked share the key `comparable`: {row['comparable']}.\n"
    )


def _provenance(made: Json) -> Json:
    keys = ("device", "dtype", "threads", "git", "python", "packages", "started")
    return {key: made[key] for key in keys if key in made}


def _code(text: str, language: str) -> str:
    """A block of code; a fence inside it does not end it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"
