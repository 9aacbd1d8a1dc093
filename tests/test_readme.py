"""The README and the docs say what is there."""

import dataclasses
import re
from pathlib import Path

from harness.evaluation.settings import KL, Evaluate, PassAtK
from harness.learning.trainer import TrainingConfig
from harness.runs.schema import Budget, Checkpoints, ModelSpec, Schema, SkillSpec
from harness.sampling.settings import Rollout
from methods.grpo import GRPOConfig
from methods.sdft import SDFTConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_examples_are_those_that_are_tested():
    for name in ("my_order.yaml", "l2_sft.py"):
        assert (ROOT / "docs" / "examples" / name).read_text().rstrip() in README


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_key_of_an_order_is_documented():
    text = (ROOT / "docs" / "order.md").read_text()
    for section in (
        Schema,
        ModelSpec,
        Budget,
        Rollout,
        Evaluate,
        PassAtK,
        KL,
        Checkpoints,
        SkillSpec,
    ):
        for field in dataclasses.fields(section):
            assert re.search(rf"\b{field.name}\b", text), field.name


def test_every_setting_of_a_method_is_documented_with_its_default():
    text = (ROOT / "docs" / "methods.md").read_text()
    for config in (TrainingConfig, SDFTConfig, GRPOConfig):
        for field in dataclasses.fields(config):
            # of several methods, perhaps
            found = [cell.strip() for cell in re.findall(rf"`{field.name}` \| ([^|]+) \|", text)]
            default = field.default
            if isinstance(default, float):
                assert any(
                    re.fullmatch(r"[\d.e-]+", cell) and float(cell) == default for cell in found
                ), field.name
            elif default is not None:
                assert str(default).lower() in found, field.name
            else:
                assert found, field.name


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@[A-Z]+@", README)
