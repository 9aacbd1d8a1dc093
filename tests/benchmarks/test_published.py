"""Published numbers of the suites: every row has a source, and stands beside measured ones."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.published import __main__ as published
from benchmarks.published import numbers
from harness.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SUITES = sorted(path.stem for path in numbers.FOLDER.glob("*.csv"))


@pytest.mark.parametrize("suite", SUITES)
def test_every_number_has_a_source_and_says_how_it_was_read(suite):
    found = numbers.published_numbers(suite)
    assert set(found["read"]) <= set(numbers.READ)
    for row in found.to_dict("records"):
        assert re.search(r"arXiv \d{4}\.\d{5}|issue \d+|audit", row["source"]), row
        assert row["method"] and row["model"] and row["column"] and -100 <= row["value"] <= 100
    assert not found.duplicated(subset=[*numbers.KEYS, "column"]).any()


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


def test_the_retyped_changes_of_general_ability_add_up():
    """Table 2 of the TRACE paper; two changes are misprints there, which their notes say."""
    found = numbers.published_numbers("trace")
    found = found[found["source"].str.endswith("tables 1 and 2")]
    change, notes = "mean change of these", {}
    for row in found[found["column"] == change].to_dict("records"):
        notes[row["model"], row["method"]] = row["note"]
    general = ("MMLU", "GSM8K", "BBH", "TyDiQA", "BoolQ", "PIQA")
    table = found.pivot(index=["model", "method"], columns="column", values="value")
    assert len(table) == 5 * 5 and len(notes) == 5 * 3
    for (model, method), note in notes.items():
        learned, base = table.loc[(model, method)], table.loc[(model, "base")]
        printed = float(note.split()[-1]) if note else learned[change]
        assert np.mean([learned[c] - base[c] for c in general]) == pytest.approx(printed, abs=0.011)


@pytest.mark.parametrize(
    ("source", "orders", "methods"), [("2512.23017", "4-6", 11), ("2504.07097", "1-3", 4)]
)
def test_the_retyped_means_over_orders_add_up(source, orders, methods):
    rows = [row for row in published.published_rows("cl") if source in row["source"]]
    means = [row for row in rows if row["order"] == orders and row["method"] != "multi-task"]
    assert len(means) == methods
    for mean in means:
        mine = [float(r["OP"]) for r in rows if r["method"] == mean["method"] and r is not mean]
        assert len(mine) == 3
        assert sum(mine) / 3 == pytest.approx(float(mean["OP"]), abs=0.1)


def test_a_suite_is_printed_without_a_table_of_nothing(capsys):
    published.main(["superni"])
    published.main(["retaining"])
    text = capsys.readouterr().out
    assert len(re.findall("^order ", text, re.MULTILINE)) == 2
    assert re.search(r"^1 .* GainLoRA \(InfLoRA\) .* 46\.21 +2\.40$", text, re.MULTILINE)
    assert re.search(r"^Countdown .* GRPO .* 60\.40 +-0\.50$", text, re.MULTILINE)


def test_gain_and_drop_are_those_of_the_report():
    folder = ROOT / "results/measured/quickstart"
    means = pd.read_csv(folder / "tables/summary.csv", index_col="method")
    rows = published.measured_rows(folder)
    assert len(rows) == 4
    for row in rows:
        mean = 100 * means.loc[row["method"]]
        assert float(row["Gain"].split()[0]) == pytest.approx(mean["mean gain"], abs=0.006)
        assert float(row["Drop"].split()[0]) == pytest.approx(-mean["Retention Δ"], abs=0.006)


def test_a_file_with_other_columns_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(numbers, "FOLDER", tmp_path)
    columns = {name: ["1"] for name in numbers.COLUMNS}
    pd.DataFrame({**columns, "read": ["memory"]}).to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(UserError, match="has other columns than"):
        numbers.published_numbers("x")


def test_measured_numbers_stand_beside(capsys):
    """Of a committed folder, the same numbers as its report has."""
    folder = ROOT / "results/measured/paper_embedded/figure_3"
    published.main(["trace", str(folder)])
    text = capsys.readouterr().out
    assert re.search(r"^1 .* on-policy replay 10% +text +\[1\] +-0\.65$", text, re.MULTILINE)
    assert f"] {folder}\n" in text  # among the sources, by number
    [row] = [row for row in published.measured_rows(folder) if row["method"] == "sft"]
    assert re.fullmatch(r"52\.\d\d ±6\.\d", row["OP"]) and row["BWT"].startswith("-4.")
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
