"""README and docs say what is there, and generated pages are those of the code."""

import ast
import dataclasses
import re
import runpy
from pathlib import Path

import pytest

from harness.evaluation.settings import KL, Evaluate, PassAtK
from harness.learning.trainer import TrainingConfig
from harness.runs.schema import Budget, Checkpoints, ModelSpec, Power, Schema, SkillSpec
from harness.sampling.settings import Rollout
from methods.grpo import GRPOConfig
from methods.sdft import SDFTConfig

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + DOCS
WORDS_OF_A_CELL, WORDS_OF_A_PARAGRAPH = 20, 90


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
    for path, text in runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]().items():
        assert path.read_text() == text, f"{path.name} is old: python docs/generate.py"


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
    text = (ROOT / "docs" / "reference" / "methods.md").read_text()
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
