"""README and docs say what is there, and generated pages are those of the code."""

import ast
import dataclasses
import gzip
import json
import re
import runpy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from harness.evaluation.settings import KL, Evaluate, PassAtK
from harness.learning.trainer import TrainingConfig
from harness.report import continual
from harness.results.questions import MOST_OF_A_FILE, MOST_OF_ALL
from harness.runs.methods import build_method
from harness.runs.schema import Budget, Checkpoints, ModelSpec, Power, Schema, SkillSpec
from harness.sampling.settings import Rollout
from methods.grpo import GRPOConfig
from methods.sdft import SDFT, SDFTConfig
from methods.sft import SFT
from tests.fabricate import METHODS, fabricate

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + DOCS
WORDS_OF_A_CELL, WORDS_OF_A_PARAGRAPH = 20, 90


KINDS = ("methods", "parts", "parameters")


@cache
def generate():
    """docs/generate.py, and the modules that it is made of."""
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    from generator import costs, measured, plugins

    return SimpleNamespace(**made, costs=costs, measured=measured, plugins=plugins)


def test_notebooks_print_what_is_committed():
    made = generate()
    paths = sorted((ROOT / "docs" / "examples").glob("*.ipynb"))
    assert paths
    for path in paths:
        assert made.executed(path) == path.read_text(encoding="utf-8"), (
            f"{path.name} is old: python docs/generate.py"
        )


@cache
def plugin_pages():
    """{(kind, name): text} as committed."""
    folder = ROOT / "docs" / "reference"
    return {
        (kind, path.stem): path.read_text()
        for kind in KINDS
        for path in sorted((folder / kind).glob("*.md"))
    }


def section(text, title):
    """What stands below a heading of a page."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip()


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_tutorial_holds_the_example_that_is_tested():
    order = (ROOT / "docs" / "examples" / "my_order.yaml").read_text().rstrip()
    assert order in (ROOT / "docs" / "tutorial.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_cells_and_paragraphs_are_short(page):
    for block in re.split(r"\n\s*\n", without_code(page.read_text())):
        if block.lstrip().startswith("|"):
            for line in block.splitlines():
                for cell in re.split(r"(?<!\\)\|", line):
                    assert len(cell.split()) <= WORDS_OF_A_CELL, cell
        else:  # an entry of a list is a paragraph
            for paragraph in re.split(r"\n(?=\s*(?:[*-]|\d+\.) )", block):
                assert len(paragraph.split()) <= WORDS_OF_A_PARAGRAPH, paragraph


def test_paths_of_the_code_that_the_docs_name_are_there():
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(r"`((?:harness|methods|benchmarks|tests|docs)/[\w./-]+)`", text):
            assert (ROOT / path).exists() or "NAME" in path, f"{page.name}: {path}"


def test_python_in_the_docs_is_python():
    for page in DOCS:
        for code in re.findall(
            r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("harness"):
                    for alias in node.names:
                        exec(f"from {node.module} import {alias.name}", {})


def test_generated_pages_are_those_of_the_code():
    made = generate().pages()
    for path, text in made.items():
        assert path.is_file() and path.read_text() == text, (
            f"{path.name} is old: python docs/generate.py"
        )
    assert generate().stale(made) == []


def test_every_key_of_an_order_is_documented():
    text = (ROOT / "docs" / "reference" / "order.md").read_text()
    sections = (
        Schema,
        ModelSpec,
        Budget,
        Rollout,
        Evaluate,
        PassAtK,
        KL,
        Power,
        Checkpoints,
        SkillSpec,
    )
    for section in sections:
        for field in dataclasses.fields(section):
            assert re.search(rf"\b{field.name}\b", text), field.name


def test_every_setting_of_a_method_is_documented_with_its_default():
    names = ("methods.md", "methods/sdft.md", "methods/grpo.md")
    text = "".join((ROOT / "docs" / "reference" / name).read_text() for name in names)
    for config in (TrainingConfig, SDFTConfig, GRPOConfig):
        for field in dataclasses.fields(config):
            cells = re.findall(rf"`{field.name}` \| ([^|]+) \|", text)
            defaults = [cell.strip() for cell in cells]
            default = field.default
            if isinstance(default, float):
                numbers = [float(d) for d in defaults if re.fullmatch(r"[\d.e-]+", d)]
                assert default in numbers, field.name
            elif default is not None:
                assert str(default).lower() in defaults, field.name
            else:
                assert defaults, field.name


# ---- what was measured ---------------------------------------------------------------------------

MEASURED = ROOT / "results" / "measured"


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_what_pages_of_skills_say_of_the_quickstart_is_on_record():
    pages = {page.stem: page.read_text() for page in DOCS if page.parent.name == "skills"}
    head = json.loads((MEASURED / "quickstart" / "results.json").read_text())
    order = [skill["name"] for skill in head["skills"]]
    assert set(order) == {name for name, text in pages.items() if "results/measured" in text}
    for own, skill in enumerate(order, 1):
        at = {
            r["stage"]: r
            for r in records(MEASURED / "quickstart")
            if (r["method"], r["name"], r["metric"], r["final"]) == ("sft", skill, "accuracy", True)
        }
        end = f", at the end of the order {at[2]['value']:.2f}" if own < len(order) else ""
        assert (
            f"After {at[own]['step'] - at[own - 1]['step']} steps of SFT in the quickstart the "
            f"test accuracy is {at[own]['value']:.2f}{end} (base {at[0]['value']:.2f}, "
            f"{at[own]['n']} questions; `results/measured/quickstart`)."
        ) in " ".join(pages[skill].split())


def evaluations(folder):
    """Texts of the evaluations of a committed folder; all are packed."""
    assert not list(folder.glob("evaluations/*.json")), f"python -m harness pack {folder} DIR"
    return [gzip.decompress(path.read_bytes()).decode() for path in folder.glob("evaluations/*")]


def test_the_list_of_what_was_measured_names_the_folders_with_answers():
    text = (MEASURED / "README.md").read_text()
    (said,) = re.findall(r"^Answers are in (.+?)\.$", text, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([^`]+)`", said))
    for path in MEASURED.rglob("results.json"):
        name = re.sub(r"^(stream8_\w+)/.*", r"\1", str(path.parent.relative_to(MEASURED)))
        has_answers = any('"completion"' in text for text in evaluations(path.parent))
        assert (name in named) == has_answers, path


@pytest.mark.parametrize("page", ["README.md", "results/measured/README.md"])
def test_the_command_that_makes_the_committed_page_is_said(page):
    said = re.findall(
        r"report\.py (results/measured/\S+) --out results/", (ROOT / page).read_text()
    )
    assert "results/measured/quickstart" in said
    assert all((ROOT / folder / "results.json").is_file() for folder in said)


def test_committed_answers_are_within_their_bounds():
    for path in MEASURED.rglob("results.json"):
        sizes = [file.stat().st_size for file in path.parent.glob("evaluations/*")]
        assert max(sizes, default=0) <= MOST_OF_A_FILE and sum(sizes) <= MOST_OF_ALL, path


# ---- a page for each method, part and parametrisation --------------------------------------------

SECTIONS = "Source Options State Cost What it refuses Example What it did"


def test_each_plugin_has_a_page_with_all_sections():
    there = {
        kind: {p.stem for p in (ROOT / folder).glob("*.py") if not p.stem.startswith("_")}
        for kind, folder in generate().plugins.FOLDERS.items()
    }
    assert set(plugin_pages()) == {(kind, name) for kind in KINDS for name in there[kind]}
    for (kind, name), text in plugin_pages().items():
        titles = re.findall(r"^## (.+)$", without_code(text), re.MULTILINE)
        assert " ".join(titles) == SECTIONS, name
        assert all(section(text, title) for title in titles), name
        listed = (ROOT / "docs" / "reference" / f"{kind}.md").read_text()
        assert f"[{name}]({kind}/{name}.md)" in listed
        if name != "trl":  # whose loss is that of TRL's trainer
            assert "\n```\n" in text.partition("\n## Source")[0], f"{name} has no formula"


def test_pages_of_plugins_that_are_gone_are_removed(tmp_path, monkeypatch):
    folder = tmp_path / "docs" / "reference"
    for path in ("parts/gone.md", "parts/there.md", "skills/mine.md"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("old")
    inside = generate().write.__globals__
    monkeypatch.setitem(inside, "ROOT", tmp_path)
    pages = {folder / "parts" / "there.md": "new", folder / "methods" / "sft.md": "page"}
    monkeypatch.setitem(inside, "pages", lambda: pages)
    generate().write()
    left = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.md")}
    assert left == {"parts/there.md": "new", "methods/sft.md": "page", "skills/mine.md": "old"}


def test_a_docstring_without_state_and_cost_is_told():
    from generator.text import read_doc

    with pytest.raises(ValueError, match="mine: no paragraph of its docstring is `State"):
        read_doc("Does this.\n\nState: nothing.", "mine")
    doc = read_doc(
        "What.\n\nHeads\n* one\n  two\n* three\n\nState: nothing\nkept. Cost: theta* once.", "mine"
    )
    assert doc == ("What.", "**Heads**\n\n* one two\n* three", "Nothing kept.", "theta* once.")


def test_examples_of_pages_are_taken():
    for (kind, name), text in plugin_pages().items():
        (code,) = re.findall(r"```yaml\n(.*?)```", section(text, "Example"), re.DOTALL)
        for label, entry in yaml.safe_load(code)["methods"].items():
            spec = build_method(label, entry, "docs", [], Path)
            named = {
                "methods": [spec.method],
                "parts": [part.name for part in spec.parts],
                "parameters": [spec.parameters.name if spec.parameters else "all"],
            }
            assert name in named[kind]


def test_costs_are_those_of_work_in_symbols():
    """Against sums by hand: 6 N for a learned token, 2 N for one that is scored or sampled."""
    costs, parts = generate().costs, generate().plugins.plugins("parts")

    def shown(work):
        return {name: str(value + costs.Terms()) for name, value in costs.rows(work).items()}

    learned, flops = (
        "tokens in passes forward and backward",
        "FLOPs / N: 6 a learned token, 2 any other",
    )
    sft, sdft = shown(costs.work_of(SFT)), shown(costs.work_of(SDFT))
    assert (sft[learned], sft[flops]) == ("P + D", "6 P + 6 D")
    assert (sdft[learned], sdft["tokens sampled"]) == ("P + A", "A")
    assert sdft[flops] == "8 P + 10 A + 2 Q"  # 6 (P + A) + 2 (Q + A, scored; P, read; A, sampled)
    assert sdft["copies of the model in memory"] == "1"
    ewc = shown(costs.work_of(SFT, parts["ewc"]))  # 128 sequences for F, each sampled first
    assert ewc[learned] == "2 P + D + A" and ewc[flops] == "14 P + 6 D + 8 A"
    assert ewc["prompts drawn beside the budget, in all"] == "128"
    assert ewc["bytes kept for the next stage"] == "4 N"
    replay = shown(costs.work_of(SFT, parts["replay"]))  # 13 of the 128 of the first skill
    assert replay[learned] == "1.1 P + 1.1 D"
    assert replay["prompts drawn beside the budget, in all"] == "13"
    assert (costs.Terms(A=1) * 2 + 1) / 2 < costs.Terms(A=2) and not costs.Terms(A=0)


def test_pages_say_what_the_code_refuses():
    said = {name: section(text, "What it refuses") for (_, name), text in plugin_pages().items()}
    assert "* give ratio or rows, not both." in said["replay"]
    assert "* `score` without selection: best_scored." in said["replay"]
    assert "none leave" not in said["replay"] and "leave none for the skill" in said["replay"]
    assert "`in_context`: trains no weights." in said["replay"]
    assert "rollout.top_p: … cuts; set rollout.top_p to 1" in said["sdpo"]  # of a shared function
    assert "its stages begin at the base model; take begin: merged" in said["dare"]
    assert "beside it: both make the weights with which a stage ends" in said["dare"]
    assert "along: demonstrations wants a method that learns" in said["anchor"]
    assert "… is above the … of the largest target; lower it" in said["lora"]
    assert "parametrisations: it trains all weights in a loop of its own" in said["trl"]


def test_the_table_of_what_joins_what():
    text = (ROOT / "docs" / "reference" / "parts.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section(text, "What joins what").splitlines()
        if line.startswith("|")
    ]
    heads = rows[0]
    cells = {
        (row[0].partition("]")[0][1:], name): cell
        for row in rows[2:]
        for names, cell in zip(heads[1:], row[1:], strict=True)
        for name in names.split(", ")
    }
    wanted = {
        ("replay", "cpt"): "no",
        ("replay", "sft"): "",
        ("anchor", "cpt"): "some",
        ("anchor", "grpo"): "",
        ("eaft", "grpo"): "no",
        ("flow", "self_sft"): "no",
        ("dare", "lora"): "some",
        ("dare", "freeze"): "",
        ("wise_ft", "lora"): "",
    }
    assert {key: cells[key] for key in wanted} == wanted
    assert len({name for _, name in cells}) == 12 + 8  # all but in_context and trl
    assert len(heads) < 12


def test_pages_of_merging_parts_say_that_evaluations_inside_a_stage_are_before_the_merge():
    said = {name for (_, name), text in plugin_pages().items() if "before the merge" in text}
    assert said == {"dare", "ema", "task_arithmetic", "ties", "wise_ft"}


# ---- what it did ---------------------------------------------------------------------------------


def did_rows(text):
    """{label: cells} of a table of what a plug-in did."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines[2:]}


def number(cell):
    return float(cell.replace("−", "-").split(" ")[0])


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_what_it_did_is_read_from_results(tmp_path, seeds):
    labels = {"sft": "sft", "sft_ewc": "sdft", "sdft": "sdft", "sdft_replay": "grpo"}
    folder = fabricate(
        tmp_path / "methods",
        methods={label: METHODS[law] for label, law in labels.items()},
        seeds=seeds,
        steps={"sft_ewc": 6},
    )
    measured = generate().measured.Measured(folder)
    text = measured.did("parts", "ewc")
    rows = did_rows(text)
    assert list(rows) == ["sft", "sft_ewc"]
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    order = ["tooluse", "science", "medical"]
    for label, cells in rows.items():
        R = np.zeros((len(seeds), 4, 3))
        for r in records:
            mine = r["method"] == label and r["metric"] == "exact" and r["final"]
            if mine and r["stage"]:
                R[r["seed"], r["stage"], order.index(r["name"])] = r["value"]
        acc = 100 * R[:, 3].mean()
        bwt = 100 * np.mean([R[:, 3, i] - R[:, i + 1, i] for i in range(2)])
        assert number(cells[0]) == pytest.approx(acc, abs=0.051) and " ±" in cells[0]
        assert number(cells[1]) == pytest.approx(bwt, abs=0.051) and " ±" in cells[1]
        assert " ±" in cells[2]
    times = [cells[3] for cells in rows.values()]
    each = " ±0.000" if len(seeds) > 1 else ""  # of one run there is no interval
    assert times == [f"1.000{each}", f"{6 * 4.8 / (12 * 1.7):.3f}{each}"]
    assert list(did_rows(measured.did("parts", "replay"))) == ["sft", "sdft", "sdft_replay"]
    assert list(did_rows(measured.did("methods", "sdft"))) == ["sft", "sdft"]
    assert list(did_rows(measured.did("parameters", "all"))) == ["sft"]
    assert "Not measured yet" in measured.did("parts", "ties")


def test_what_was_not_measured_says_the_command(tmp_path):
    measured = generate().measured.Measured(tmp_path / "none")
    line = measured.did("parts", "ties")
    assert line == (
        "Not measured yet: `python run_sequence.py benchmarks/orders/methods.yaml --method sft "
        "sft_ties --out results/measured/methods`, then `python docs/generate.py`."
    )
    assert measured.did("methods", "gkd").endswith("methods.yaml) has no row of it.")
    assert measured.example("methods", "gkd") == "methods:\n  gkd: {}"


def test_metrics_are_headed_by_what_the_report_calls_them():
    source = "".join(p.read_text() for p in (ROOT / "harness" / "report").glob("*.py"))
    names = dict(generate().REPORT_NAMES)
    assert names.pop("prompts_to_reach") == f"prompts to {continual.SHARE:.0%} of the single result"
    assert names.pop("transitions") == "items lost, items gained" and "items {what} since" in source
    assert names.pop("pass_at_k") == "pass@k" and 'startswith("pass@")' in source
    for name in names.values():
        assert re.search(rf'[" ]{re.escape(name)}"', source), name
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    assert "\n## BWT over T (TRACE): `backward_transfer_trace`\n" in page
    for heading in ("prompts to relearn it", "TFLOPs", "norm of the change"):
        assert f"\n## {heading}" in page
    assert '"prompts to relearn it' in source and '"TFLOPs"' in source
