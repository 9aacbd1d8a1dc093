"""Published numbers of the suites: every row has a source, and stands beside measured ones."""

import re
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.published import __main__ as published
from harness.base.errors import UserError

SUITES = sorted(path.stem for path in published.FOLDER.glob("*.csv"))


@pytest.mark.parametrize("suite", SUITES)
def test_every_number_has_a_source_and_says_how_it_was_read(suite):
    numbers = published.published_numbers(suite)
    assert set(numbers["read"]) <= set(published.READ)
    for row in numbers.to_dict("records"):
        assert re.search(r"arXiv \d{4}\.\d{5}|issue \d+|audit", row["source"]), row
        assert row["method"] and row["model"] and row["column"] and -100 <= row["value"] <= 100
    assert not numbers.duplicated(subset=[*published.KEYS, "column"]).any()


def test_a_row_a_source_and_method():
    rows = published.published_rows("trace")
    [row] = [row for row in rows if row["method"] == "on-policy replay 10%"]
    assert row["BWT/T"] == "-0.65" and row["read"] == "text" and "2605.29495" in row["source"]
    [row] = [row for row in rows if row["method"] == "O-LoRA" and row["model"] == "LLaMA-2-7B"]
    assert (row["OP"], row["BWT"]) == ("41.30", "-6.20")
    of_order = {row["method"]: row for row in rows if row["order"] == "2"}
    assert of_order["sequential SFT"]["BWT"] == "-5.30 (sd 0.59)"


def test_the_retyped_tables_of_trace_add_up():
    """OP is the mean of the tasks at the end, as far as two decimals tell."""
    rows = [row for row in published.published_rows("trace") if "trace_fomc" in row]
    assert len(rows) == 6
    for row in rows:
        tasks = [float(v.split()[0]) for name, v in row.items() if name.startswith("trace_")]
        assert len(tasks) == 8
        if "OP" in row:
            assert sum(tasks) / 8 == pytest.approx(float(row["OP"]), abs=0.011)


def test_the_retyped_means_over_orders_add_up():
    rows = [row for row in published.published_rows("cl") if "2512.23017" in row["source"]]
    for mean in [row for row in rows if row["order"] == "4-6" and row["method"] != "multi-task"]:
        mine = [float(r["OP"]) for r in rows if r["method"] == mean["method"] and r is not mean]
        assert len(mine) == 3
        assert sum(mine) / 3 == pytest.approx(float(mean["OP"]), abs=0.1)


def test_a_file_with_other_columns_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    columns = {name: ["1"] for name in published.COLUMNS}
    pd.DataFrame({**columns, "read": ["memory"]}).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(UserError, match="has other columns than"):
        published.published_numbers("x")


def test_measured_numbers_stand_beside(capsys):
    """Of a committed folder, the same numbers as its report has."""
    folder = Path("results/measured/paper_embedded/figure_3")
    root = Path(__file__).resolve().parents[2]
    published.main(["trace", str(root / folder)])
    text = capsys.readouterr().out
    assert re.search(r"^1 .* on-policy replay 10% +text +\[1\] +-0\.65$", text, re.MULTILINE)
    assert f"] {root / folder}\n" in text  # among the sources, by number
    [row] = [row for row in published.measured_rows(root / folder) if row["method"] == "sft"]
    assert re.fullmatch(r"43\.\d\d ±5\.\d", row["OP"]) and row["BWT"].startswith("-6.")
    ratio = float(row["BWT/T"].split()[0]) / float(row["BWT"].split()[0])
    assert ratio == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "said"), [(["wishes"], "invalid choice"), (["trace", "/nowhere"], "/nowhere")]
)
def test_wrong_arguments_are_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        published.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and len(error.splitlines()) == 1
