"""An order measures its products once; whoever goes on in its folder takes what is kept."""

import io
import json
from dataclasses import asdict

import pytest
import torch
import yaml

from harness.base.console import Progress
from harness.base.errors import UserError
from harness.base.files import read_json
from harness.models import products
from harness.models.products import PACKED, PIN, PLAIN, WEIGHTS_FIRST, Products, products_of
from harness.results.writer import ResultsWriter
from harness.runs import engines, sequence
from harness.runs.engines import take_products
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.runs.teacher_check import check_teacher
from tests.conftest import read_lines

FOLDERS = ("whole", "cut")
MEASURED = Products("bfloat16", PACKED, 2.5, {PLAIN: 3.0, PACKED: 2.0})


@pytest.fixture
def measuring(monkeypatch):
    """bfloat16 pays and packed weights as well; returns a list with an entry for each measuring."""
    monkeypatch.delenv(PIN)
    measured = []

    def gain():
        measured.append("dtype")
        return 2.5

    def seconds(model):
        measured.append("sampling")
        return MEASURED.seconds

    monkeypatch.setattr(products, "bfloat16_gain", gain)
    monkeypatch.setattr(products, "time_products", seconds)
    return measured


@pytest.fixture
def read(order_file, tiny):
    """A function that reads the order of one skill with the dtype left open."""

    def read(dtype="auto", **changes):
        path = order_file()
        order = yaml.safe_load(path.read_text()) | {
            "model": {"name": str(tiny), "dtype": dtype, "device": "cpu"},
            "methods": {"sft": {"learning_rate": 1e-3}},
            "budget": {"prompts": 4, "batch_size": 4},
            "evaluate": {},
            **changes,
        }
        order["skills"] = order["skills"][:1]
        path.write_text(yaml.safe_dump(order, sort_keys=False))
        return read_order(path)

    return read


@pytest.fixture
def started(monkeypatch):
    """Runs are not made; returns the models that they would have started with."""
    models = []

    def run_stages(order, results, run, first, fresh_model, *others, **settings):
        models.append((fresh_model or engines.load_order_model(order))[0])

    monkeypatch.setattr(sequence, "run_stages", run_stages)
    return models


def begin(folder, order, **changes):
    """The folder as a first start leaves it, with ``changes`` of results.json."""
    writer = ResultsWriter(folder)
    writer.open(order.about() | changes)
    return folder / "results.json"


def numbers(folder):
    """What the records of all runs say, without times."""
    rows = read_lines(folder / "records.jsonl")
    return [{key: row[key] for key in ("run", "step", "name", "metric", "value")} for row in rows]


def test_what_is_measured_is_kept_and_said(read, measuring, started, tmp_path):
    screen = io.StringIO()
    run_order(read(), tmp_path / "out", Progress(stream=screen))
    about = read_json(tmp_path / "out" / "results.json")
    assert about["model"]["dtype"] == "bfloat16"
    assert about["products"] == {
        "dtype": "bfloat16",
        "sampling": "packed",
        "bfloat16": 2.5,
        "seconds": {"plain": 3.0, "packed": 2.0},
    }
    assert (
        "products: bfloat16 is 2.5 times as fast as float32: bfloat16; sampling takes packed "
        "products (1.5 times as fast)" in screen.getvalue()
    )
    [model] = started
    assert (model.dtype, products_of(model)) == (torch.bfloat16, PACKED)


def test_a_resume_measures_nothing_and_ends_in_the_same_numbers(
    read, measuring, tmp_path, monkeypatch
):
    run_order(read(), tmp_path / "whole")
    begin(tmp_path / "cut", read(), products=asdict(MEASURED))
    monkeypatch.setattr(products, "bfloat16_gain", lambda: 1.0)
    monkeypatch.setattr(products, "time_products", lambda _: pytest.fail("is measured again"))
    assert read().dtype() == torch.float32  # what a new folder would get
    assert "(0M parameters, bfloat16)" in plan(read(), tmp_path / "cut")
    run_order(read(), tmp_path / "cut")
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    steps = [read_lines(tmp_path / f / "runs/sft-seed0/stage-1/training.jsonl") for f in FOLDERS]
    assert [s["loss"] for s in steps[0]] == [s["loss"] for s in steps[1]]


def test_every_run_and_worker_takes_what_is_kept(read, measuring, started, tmp_path, monkeypatch):
    begin(tmp_path / "out", read(), products=asdict(MEASURED))
    monkeypatch.setattr(products, "time_products", lambda _: pytest.fail("is measured again"))
    run_order(read(seeds=[0, 1]), tmp_path / "out")
    assert [(m.dtype, products_of(m)) for m in started] == [(torch.bfloat16, PACKED)] * 2
    assert read_json(tmp_path / "out" / "results.json")["products"] == asdict(MEASURED)


def test_a_teacher_is_checked_as_the_runs_compute(read, measuring, tmp_path, monkeypatch):
    begin(tmp_path / "out", read(), products=asdict(MEASURED))
    monkeypatch.setattr(products, "bfloat16_gain", lambda: 1.0)
    order = read()
    check_teacher(order, tmp_path / "out" / "teacher_check")
    assert order.products == MEASURED and order.dtype() == torch.bfloat16


def test_a_named_dtype_is_not_measured(read, measuring, started, tmp_path):
    run_order(read("float32"), tmp_path / "out")
    about = read_json(tmp_path / "out" / "results.json")
    assert measuring == ["sampling"]
    assert (about["model"]["dtype"], about["products"]["dtype"]) == ("float32", "float32")
    assert about["products"]["bfloat16"] is None and about["products"]["sampling"] == "packed"


@pytest.mark.parametrize("capability, way", [("AVX2", WEIGHTS_FIRST), ("AVX512", PLAIN)])
def test_a_folder_from_before_keeps_its_dtype_and_products(
    capability, way, read, measuring, started, tmp_path, monkeypatch
):
    """``auto`` was float32 there; in a new folder it would be bfloat16."""
    path = begin(tmp_path / "out", read("float32"))
    about = read_json(path)
    about["model"]["dtype"] = "float32"
    assert "products" not in about
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    order = read()
    assert order.dtype() == torch.bfloat16
    run_order(order, tmp_path / "out")
    assert "sampling" not in measuring
    [model] = started
    assert (model.dtype, products_of(model)) == (torch.float32, way)
    kept = read_json(path)
    assert kept["model"]["dtype"] == "float32" and kept["products"]["sampling"] == way


def test_who_begins_a_folder_at_the_same_time_takes_what_the_first_keeps(
    read, measuring, started, tmp_path, monkeypatch
):
    monkeypatch.setattr(products, "bfloat16_gain", lambda: 1.0)  # what the second one finds
    real = engines.load_order_model
    first = read()
    first.products = MEASURED

    def load(order, *args):
        loaded = real(order, *args)
        begin(tmp_path / "out", first)
        return loaded

    monkeypatch.setattr(sequence, "load_order_model", load)
    run_order(read(), tmp_path / "out")
    [model] = started
    assert (model.dtype, products_of(model)) == (torch.bfloat16, PACKED)
    assert read_json(tmp_path / "out" / "results.json")["products"] == asdict(MEASURED)


@pytest.mark.parametrize("products_, problem", [
    ({"dtype": "bfloat16", "sampling": "packed", "seconds": {}}, "began with bfloat16, which this"),
    ({"dtype": "float32", "sampling": "packed", "seconds": {}}, "began with weights packed by"),
    ({"dtype": "float32", "sampling": "new", "seconds": {}}, "products of an unknown kind ('new')"),
    ({"dtype": "float32", "sampling": 3, "seconds": {}}, "`products.sampling` is 3, not a text"),
    ({"dtype": "float32"}, "`products.sampling` is null, not a text"),
    ([], "`products` is [], not an object"),
])  # fmt: skip
def test_what_cannot_be_computed_so_is_refused(products_, problem, read, tmp_path, monkeypatch):
    out = tmp_path / "out"
    begin(out, read(), products=products_)
    monkeypatch.setattr(products, "has_bfloat16", lambda: False)
    if isinstance(products_, dict) and products_["dtype"] == "float32":
        monkeypatch.setattr(products, "_can_pack", lambda: False)
    before = (out / "results.json").read_text()
    with pytest.raises(UserError) as refused:
        run_order(read(), out)
    line = str(refused.value)
    assert line.startswith(f"{out / 'results.json'}: ") and problem in line and "\n" not in line
    assert (out / "results.json").read_text() == before


def test_a_gpu_is_left_alone(read, tmp_path, monkeypatch):
    order = read()
    order.model.device = "cuda"
    (tmp_path / "results.json").write_text(json.dumps({"model": {"dtype": "bfloat16"}}))
    take_products(order, tmp_path)
    engines.measure_products(order, None)
    assert order.products is None
