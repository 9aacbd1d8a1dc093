"""The published side."""

import numpy as np
import pandas as pd

from benchmarks.paper.published import published_numbers, reproduced_numbers
from benchmarks.paper.write import write_paper
from harness.runs.sections import known_experiments
from tests.benchmarks.paper.folders import value


def test_the_published_numbers_are_drawn_and_the_summary_names_what_is_not(tmp_path):
    summary, index = write_paper(out=tmp_path)
    lines = dict(line.split(":", 1) for line in summary.splitlines())
    assert list(lines) == [
        "Figure 2 right",
        "Figure 3",
        "Figure 4",
        "Figure 5 left",
        "Figure 5 right",
        "Figure 6",
        "Figure 7",
        "Figure 8",
        "Table 1",
        "Table 2",
        "Table 5",
    ]
    for title in ("Figure 3", "Figure 5 right", "Figure 6", "Figure 8"):
        assert "not drawn" in lines[title]
        assert f"<h2>{title}</h2>" in index.read_text()
    for name in ("figure_2_right", "figure_4", "figure_5_left", "figure_7"):
        assert (tmp_path / "figures" / f"published_{name}.png").stat().st_size > 5000
        assert (tmp_path / "figures" / f"published_{name}.svg").is_file()
    assert "science: sdft,0.702," in (tmp_path / "tables" / "published_table_5.csv").read_text()
    table_1 = (tmp_path / "tables" / "published_table_1.md").read_text()
    assert "| sdft | 89.0 | 100.0 | 98.0 |" in table_1
    figure_5_left = pd.read_csv(tmp_path / "data" / "published_figure_5_left.csv")
    assert value(figure_5_left, x="Qwen2.5 3B")["value"] == -3.3


def test_the_retyped_table_5_agrees_with_itself():
    retyped, reproduced = published_numbers(), reproduced_numbers()
    assert set(retyped["experiment"]) | set(reproduced["experiment"]) <= set(known_experiments())
    table = retyped[retyped["experiment"] == "table_5"].pivot(
        index=["panel", "series"], columns="x", values="value"
    )
    assert len(table) == 15
    assert not table.isna().any(axis=None)
    six = ["hellaswag", "humaneval", "ifeval", "mmlu", "truthfulqa", "winogrande"]
    off = np.abs(table[six].mean(axis=1) - table["prior_avg"])  # the paper rounds to a tenth
    # The paper prints it so; published.csv has a note.
    assert off[off > 0.11].index.tolist() == [("tooluse", "sft")]
    assert (retyped["source"].str.len() > 5).all()
    assert set(retyped["unit"]) == {"%", "points", "nats", "tokens"}
