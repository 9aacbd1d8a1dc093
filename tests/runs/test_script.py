"""Order and run for scripts: the command's checks, folders and numbers; errors are exceptions."""

import signal
import subprocess
import sys

import pytest
import yaml

import run_sequence
from harness import Order, run
from harness.base.errors import UserError
from harness.base.leases import Leases
from harness.runs.reading import read_order
from tests.conftest import read_lines

FAST = {
    "methods": {"sft": {"learning_rate": 1e-3}},
    "budget": {"prompts": 4, "batch_size": 4},
    "evaluate": {},
}
NOT_NUMBERS = {"seconds"}  # of a record: what took how long


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("harness.base.console.Progress.say", lambda self, text: None)


def numbers(folder):
    rows = read_lines(folder / "records.jsonl")
    return [{key: row[key] for key in row if key not in NOT_NUMBERS} for row in rows]


def test_importing_the_package_loads_no_torch():
    code = "import harness, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_ends_in_the_numbers_of_the_command(order_file, tmp_path, monkeypatch):
    path = order_file(**FAST)
    results = run(Order(path), out=tmp_path / "script")
    words = ["run_sequence.py", str(path), "--out", str(tmp_path / "command")]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(run_sequence, "report", lambda out, progress: "")
    run_sequence.main()
    assert numbers(tmp_path / "script") == numbers(tmp_path / "command")
    assert results.matrix.shape == (3, 2) and list(results.data.series) == ["sft"]
    lease = Leases(tmp_path / "script" / "leases" / "runs").claim("sft-seed0")
    with pytest.raises(UserError, match="sft-seed0: another process"):
        run(Order(path), out=tmp_path / "script")
    lease.release()


def test_an_order_of_a_mapping_is_that_of_its_file(order_file, monkeypatch):
    path = order_file(**FAST)
    mapping = yaml.safe_load(path.read_text())
    before = yaml.safe_dump(mapping)
    monkeypatch.chdir(path.parent)
    made = Order(mapping, changes={"budget.prompts": 8, "methods.sft.learning_rate": 1e-4})
    changes = ["budget.prompts=8", "methods.sft.learning_rate=1e-4"]
    read = read_order(path, changes)
    assert {**made.about(), "name": ""} == {**read.about(), "name": ""}
    assert (made.name, made.place) == ("order", "order")
    assert yaml.safe_dump(mapping) == before  # the script's own mapping stays


def test_files_of_a_mapping_are_beside_the_path_that_it_comes_from(order_file):
    path = order_file(**FAST)
    made = Order(yaml.safe_load(path.read_text()), path)
    assert made.about() == read_order(path).about()


def test_methods_seeds_and_sequences_are_kept(order_file):
    path = order_file(orders={"a": ["vowels", "digits"], "b": ["digits", "vowels"]})
    order = Order(path, methods=["sdft"], seeds=[3, 4], sequences=["b"])
    assert [run.name for run in order.runs()] == ["sdft@b-seed3", "sdft@b-seed4"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"budget.promts": 8}, "order: budget: promts: unknown key; did you mean 'prompts'?"),
        ({"budget.prompts": "eight"}, "order: budget: prompts: must be a whole number or nothing"),
        ({"skills.consonants.prompts": 1}, "--set skills.consonants.prompts: there is no entry"),
    ],
)
def test_a_wrong_change_is_one_line(order_file, changes, line, monkeypatch):
    path = order_file(**FAST)
    monkeypatch.chdir(path.parent)
    with pytest.raises(UserError) as refused:
        Order(yaml.safe_load(path.read_text()), changes=changes)
    said = str(refused.value)
    assert "\n" not in said
    assert said.startswith(line.partition(" or nothing")[0])


@pytest.mark.parametrize("source", [[], 3, None])
def test_what_is_no_mapping_is_refused(source):
    with pytest.raises(UserError, match=r"^order: "):
        Order(source)


def test_an_out_that_is_a_file_is_refused_before_a_model_loads(order_file, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file; give a folder as `out`"):
        run(Order(order_file(**FAST)), tmp_path / "out")


BROKEN = """
from methods.sft import SFT


class Broken(SFT):
    def learn(self, stage):
        {fault}
"""


def test_a_run_that_fails_is_told_at_the_end_and_the_others_go_on(order_file, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN.format(fault="raise ValueError('so')"))
    methods = {"mine": {"file": "broken.py"}, **FAST["methods"]}
    path = order_file(**{**FAST, "methods": methods})
    with pytest.raises(UserError, match="1 of 2 runs failed, first mine-seed0") as failed:
        run(Order(path), tmp_path / "out")
    assert "ValueError" in str(failed.value)
    assert {row["method"] for row in numbers(tmp_path / "out") if row["stage"]} == {"sft"}


def test_an_exit_of_a_plug_in_is_an_error_and_signals_are_as_before(order_file, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN.format(fault="raise SystemExit(3)"))
    path = order_file(**{**FAST, "methods": {"mine": {"file": "broken.py"}}})
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match=r"calls sys\.exit"):
        run(Order(path), tmp_path / "out", fail_fast=True)
    assert signal.getsignal(signal.SIGTERM) is before
