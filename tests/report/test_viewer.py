"""The data of the viewer: complete, with the means on record, and no text is markup."""

import json
from pathlib import Path

import pytest

from harness.report import tables
from harness.report.data import ReportData
from harness.report.links import links
from harness.report.viewer import PAGE, _write_pages, as_script, right_choice, write_data

QUICKSTART = Path(__file__).parents[2] / "results/measured/quickstart"
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\u2029\ud800<!--"


def read(data: Path, name: str):
    text = (data / f"{name}.js").read_text(encoding="ascii")
    assert text.startswith(f'viewer.load("{name}",') and text.endswith(");\n")
    return json.loads(text[text.index(",") + 1 : -3])


def test_means_of_the_scores_are_the_values_on_record(tmp_path):
    results = ReportData([QUICKSTART])
    write_data(results, tmp_path)
    data = tmp_path / "data"
    index = read(data, "index")
    assert [method["name"] for method in index["methods"]] == list(results.series)
    count = 0
    for run in (run for method in index["methods"] for run in method["runs"]):
        for what, stage, value, n, name in read(data, run["file"]):
            head = read(data, name)
            questions = read(data, head["questions"])
            answers = [a for p in range(len(head["starts"])) for a in read(data, f"{name}-{p}")]
            assert len(answers) == len(head["scores"]) == len(questions["ids"]), (what, stage)
            weight = sum(head["weights"])
            pairs = zip(head["scores"], head["weights"], strict=True)
            assert sum(s * w for s, w in pairs) / weight == pytest.approx(value, abs=1e-6)
            assert n >= len(answers)
            count += 1
    assert count == 156  # 4 methods, 3 ends of stages, 13 measurements


def test_a_script_holds_texts_of_models_as_escapes():
    text = as_script([HOSTILE])
    assert text.isascii() and "<" not in text
    assert json.loads(text) == [HOSTILE]


def test_pages_hold_every_row_once_and_their_size(tmp_path):
    rows = [["x" * 900, number] for number in range(1000)]
    starts = _write_pages(tmp_path, "answers-0-a", rows)
    pages = [read(tmp_path, f"answers-0-a-{page}") for page in range(len(starts))]
    assert [row for page in pages for row in page] == rows
    assert [page[0][1] for page in pages] == starts
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) > 1 and max(sizes) < 1.05 * PAGE


@pytest.mark.parametrize(
    ("values", "margin", "right"),
    [([-1.0, -3.0], 2.0, 1), ([-1.0, -3.0, -4.0], -3.0, 3), ([-1.0, -1.0], 0.0, None)],
)
def test_the_margin_tells_the_right_choice(values, margin, right):
    assert right_choice(values, margin) == right


def test_cells_lead_to_their_method_skill_and_stage():
    results = ReportData([QUICKSTART])
    table = tables.main_table(results)
    link, columns = links(results, "main"), {column.key: column for column in table.columns}
    assert link("sdft", columns["elements/final"]).endswith("#n=elements&s=end&m=sdft")
    assert link("sdft", columns["elements/own"]).endswith("#n=elements&s=own&m=sdft")
    assert link("base", columns["elements/final"]).endswith("#n=elements&s=0&m=sft")
    assert link("sdft", columns["acc"]).endswith("#m=sdft")
    assert links(results, "cost")("sdft", columns["acc"]) == ""
