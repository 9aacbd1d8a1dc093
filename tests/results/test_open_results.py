"""Results in Python: frames that equal the report's numbers, and answers read when asked for."""

import csv
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from harness.base import metrics
from harness.base.errors import UserError
from harness.report import tables
from harness.report.data import ReportData
from harness.report.table import Column, Table
from harness.results import open_results
from harness.results.folders import ResultsFolder
from tests.fabricate import fabricate

SKILLS = ["tooluse", "science", "medical"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("frames") / "one", seeds=(0, 1), n=20)


@pytest.fixture(scope="module")
def results(folder):
    return open_results(folder)


def test_it_loads_no_torch(folder):
    code = (
        "import sys; from harness.results import open_results; r = open_results(sys.argv[1]); "
        "assert len(r.records) and len(r.matrix) and len(r.answers); "
        "sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_records_are_all_that_was_measured(folder, results):
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len(results.records) == len(lines)
    assert list(results.records["value"]) == [line["value"] for line in lines]
    assert list(results.records["label"]) == [line["method"] for line in lines]
    assert set(results.records["folder"]) == {"one"}
    assert repr(results) == (
        "<Results of one: 6 runs; methods sft, sdft, grpo; skills tooluse, science, medical>"
    )


def test_the_matrix_has_each_run(folder, results):
    assert results.matrix.shape == (3 * 2 * 4, 3)
    assert list(results.matrix.columns) == SKILLS
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        if line["final"] and line["metric"] == "exact":
            row = (line["method"], "one", line["seed"], "", line["stage"])
            assert results.matrix.loc[row, line["name"]] == line["value"]
    mean = results.matrix.loc["sdft"].groupby("stage").mean()
    R = ReportData([folder]).R["sdft"].mean(axis=0)
    np.testing.assert_allclose(mean, R)
    assert list(results.retention.columns[:2]) == ["hellaswag", "winogrande"]
    first = results.retention.loc[("grpo", "one", 1, "", 3)]
    task = next(
        line["value"]
        for line in lines
        if line["run"] == "grpo-seed1" and line["stage"] == 3 and line["name"] == "hellaswag"
    )
    assert first["hellaswag"] == task


def test_estimates_are_the_reports(folder, results):
    data = ReportData([folder])
    wanted = data.estimate("sft", metrics.backward_transfer, difference=True)
    found = results.estimates.query("table == 'main' and row == 'sft' and column == 'BWT'")
    (row,) = found.to_dict("records")
    assert (row["value"], row["low"], row["high"]) == (wanted.value, wanted.low, wanted.high)
    assert (row["by"], row["how"]) == ("both", wanted.how)
    for name in ("main", "retention", "comparisons", "own_stage", "every_metric"):
        assert (results.estimates["table"] == name).any()


def test_tables_are_those_of_the_files(folder, results):
    table = tables.main_table(ReportData([folder]))
    head, *rows = csv.reader(table.csv().splitlines())
    frame = results.tables["main"]
    assert list(frame.columns) == head[1:]
    assert list(frame.index) == ["base", "sft", "sdft", "grpo"]  # no row of examples
    for row in rows[:4]:
        for heading, cell in zip(head[1:], row[1:], strict=True):
            value = frame.loc[row[0], heading]
            if heading == "seeds":
                assert (value == cell) if cell else pd.isna(value)
            else:
                assert value == pytest.approx(float(cell), rel=1e-5) if cell else np.isnan(value)
    assert {"main", "comparisons", "retention", "cost", "every_metric"} <= set(results.tables)


def test_a_table_with_two_columns_of_one_heading():
    columns = [Column("a", "ACC"), Column("b", "ACC")]
    from harness.report.frames import table_frame

    frame = table_frame(Table("x", "x", "", columns, [("one", {"a": 1.0, "b": 2.0}), ("no", {})]))
    assert frame.values.tolist() == [[1.0, 2.0]] and list(frame.columns) == ["ACC", "ACC"]


def test_curves_are_those_of_the_report(results):
    curves = results.curves
    at_end = curves[(curves["label"] == "sft") & (curves["name"] == "science")]
    mean = results.matrix.loc["sft"].groupby("stage").mean()
    assert at_end["value"].iloc[-1] == pytest.approx(mean.loc[3, "science"])
    assert {"x", "low", "high", "seeds", "stage"} <= set(curves.columns)
    assert len(at_end) == 1 + 3 * 4  # the base, and four points a stage


def test_answers_are_read_when_they_are_collected(results, monkeypatch):
    read = []
    evaluation = ResultsFolder.evaluation

    def counted(self, key):
        read.append(key)
        return evaluation(self, key)

    monkeypatch.setattr(ResultsFolder, "evaluation", counted)
    chosen = results.answers.where(label="sft", name="science", final=True, stage=[2, 3])
    assert len(chosen) == 4 and not read  # two seeds, two stages; two metrics have one file
    answers = chosen.collect()
    assert len(read) == 4 and len(answers) == 4 * 20
    assert {"prompt", "completion", "scores.exact", "scores.lenient"} <= set(answers.columns)
    means = answers.groupby(["seed", "stage"])["scores.exact"].mean()
    for (seed, stage), mean in means.items():
        assert mean == pytest.approx(
            results.matrix.loc[("sft", "one", seed, "", stage), "science"], abs=1e-12
        )
    assert [len(frame) for frame in chosen] == [20] * 4
    assert results.answers.where(name="absent").collect().empty


def test_a_column_that_answers_have_not(results):
    with pytest.raises(UserError, match=r"answers: metod: there is no such column; .*known: "):
        results.answers.where(metod="sft")


def test_answers_that_were_not_kept_are_left_out(tmp_path):
    bare = open_results(fabricate(tmp_path / "bare", n=8, inside=0, items=False))
    assert len(bare.answers) > 0 and bare.answers.collect().empty


def test_folders_are_pooled(tmp_path, folder):
    other = fabricate(tmp_path / "two", seeds=(2,), n=20)
    both = open_results(folder, other)
    assert set(both.records["folder"]) == {"one", "two"}
    assert sorted(set(both.matrix.loc["sft"].index.get_level_values("seed"))) == [0, 1, 2]
    of_two = both.answers.where(folder="two", stage=3, final=True, name="medical").collect()
    assert set(of_two["seed"]) == {2} and len(of_two) == 3 * 20


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        open_results(tmp_path / "absent")
    with pytest.raises(UserError, match="wants a folder"):
        open_results()
    with pytest.raises(ImportError):
        from harness.results import no_such_name  # noqa: F401
