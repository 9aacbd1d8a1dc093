"""The data of the viewer: complete, with the means on record, and no text is markup."""

import json
from pathlib import Path

import pytest

from harness.report import tables
from harness.report.build import write_report
from harness.report.comparisons import comparison_table
from harness.report.data import ReportData
from harness.report.links import answer_link, links
from harness.report.viewer import (
    PAGE,
    ViewedQuestion,
    ViewerData,
    as_script,
    best_choice,
    right_choice,
    write_viewer,
)
from harness.results.questions import save_questions
from tests.fabricate import METHODS, fabricate
from tests.report.folders import ONE_SKILL, TWO, raw, rewrite

QUICKSTART = Path(__file__).parents[2] / "results/measured/quickstart"
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\u2029\ud800<!--"


def read(viewer: Path, name: str):
    text = (viewer / "data" / f"{name}.js").read_text(encoding="ascii")
    assert text.startswith(f'viewer.load("{name}",') and text.endswith(");\n")
    return json.loads(text[text.index(",") + 1 : -3])


def rows(viewer: Path, name: str):
    """All rows of the pages of a file."""
    return [
        row for p in range(len(read(viewer, name)["starts"])) for row in read(viewer, f"{name}-{p}")
    ]


def runs(viewer: Path):
    """(name of the method, its run's numbers)."""
    for method in read(viewer, "index")["methods"]:
        for run in method["runs"]:
            yield method["name"], read(viewer, run["file"])


def test_means_of_the_scores_are_the_values_on_record(tmp_path):
    results = ReportData([QUICKSTART])
    write_viewer(results, tmp_path)
    index = read(tmp_path, "index")
    assert [method["name"] for method in index["methods"]] == list(results.series)
    count = 0
    for _, numbers in runs(tmp_path):
        for what, stage, value, n, name in numbers:
            head = read(tmp_path, name)
            questions = read(tmp_path, head["questions"])
            answers = rows(tmp_path, name)
            lengths = {*map(len, (answers, head["scores"], head["briefs"], questions["ids"]))}
            assert lengths == {len(questions["briefs"])}, (what, stage)
            weight = sum(head["weights"])
            pairs = zip(head["scores"], head["weights"], strict=True)
            assert sum(s * w for s, w in pairs) / weight == pytest.approx(value, abs=1e-6)
            assert n >= len(answers)
            count += 1
    assert count == 156  # 4 methods, 3 ends of stages, 13 measurements
    heads = [*(tmp_path / "data").glob("questions-[0-9]*-0.js")]
    assert len(heads) == 13  # questions once, whoever answered


def test_a_script_holds_texts_of_models_as_escapes():
    text = as_script([HOSTILE])
    assert text.isascii() and "<" not in text
    assert json.loads(text) == [HOSTILE]


def test_pages_hold_every_row_once_and_their_size(tmp_path):
    (tmp_path / "data").mkdir()
    given = [["x" * 900, number] for number in range(1000)]
    starts = ViewerData(None, tmp_path / "data").write_pages("answers-0", given)
    pages = [read(tmp_path, f"answers-0-{page}") for page in range(len(starts))]
    assert [row for page in pages for row in page] == given
    assert [page[0][1] for page in pages] == starts
    sizes = [file.stat().st_size for file in (tmp_path / "data").iterdir()]
    assert len(sizes) > 1 and max(sizes) < 1.05 * PAGE


@pytest.mark.parametrize(
    ("values", "margin", "right"),
    [([-1.0, -3.0], 2.0, 1), ([-1.0, -3.0, -4.0], -3.0, 3), ([-1.0, -1.0], 0.0, None)],
)
def test_the_margin_tells_the_right_choice(values, margin, right):
    assert right_choice(values, margin) == right


@pytest.mark.parametrize(
    ("choices", "metric", "best"),
    [
        (None, "acc,none", 1),
        ([" a", " bbbb"], "acc,none", 1),
        ([" a", " bbbb"], "acc_norm,none", 2),  # -2 a letter, -1 a letter
        (None, "acc_norm,none", None),
    ],
)
def test_the_choice_is_that_of_the_metric(choices, metric, best):
    assert best_choice([-2.0, -4.0], choices, metric) == best


@pytest.mark.parametrize(
    ("prompt", "choices", "reference", "brief"),
    [
        (
            "[system] Be brief.\n[user] What is the symbol of gold?",
            None,
            "Au",
            "What is the symbol of gold?",
        ),
        ("Q: Who wrote it?\nA:\n\n", None, "She", "Q: Who wrote it? A:"),
        ("x" * 100, None, None, "x" * 89 + "…"),
        ("", [" They are.", " They is."], " They are.", "They are."),
        (None, None, "A text that is measured.", "A text that is measured."),
        (None, None, None, ""),
    ],
)
def test_a_question_in_a_line_is_its_end(prompt, choices, reference, brief):
    assert ViewedQuestion("0", prompt, reference, choices).brief == brief


def test_questions_of_a_retention_task_come_from_the_folder(tmp_path):
    task = {"arc": ("acc", True, None, 0.5)}
    folder = fabricate(tmp_path / "few", ONE_SKILL, TWO, n=4, inside=0, retention=task)
    protocol = raw(folder, name="arc")[0]["protocol"]
    asked = [
        {"id": str(i), "prompt": f"Q{i}", "choices": [" no", " yes"], "reference": " yes"}
        for i in range(4)
    ]
    save_questions(folder, protocol, asked)

    def answer(evaluation):
        for item in evaluation["items"]:
            item["response"] = [-1.5, -0.5]
            item["scores"] = {"margin": 1.0}

    rewrite(folder / "evaluations/arc-base.json", answer)
    write_viewer(ReportData([folder]), tmp_path / "viewer")
    numbers = next(runs(tmp_path / "viewer"))[1]
    [name] = [name for what, stage, _, _, name in numbers if (what, stage) == (1, 0)]
    head = read(tmp_path / "viewer", name)
    assert rows(tmp_path / "viewer", head["questions"]) == [
        [f"Q{i}", " yes", [" no", " yes"]] for i in range(4)
    ]
    assert head["fields"] == ["response", "margin", "choice", "right choice"]
    assert rows(tmp_path / "viewer", name) == [[[-1.5, -0.5], 1.0, 2, 2]] * 4
    assert head["briefs"] == ["yes"] * 4


def test_a_task_named_as_a_skill_has_an_address_of_its_own(tmp_path):
    task = {"tooluse": ("acc", True, None, 0.5)}
    folder = fabricate(
        tmp_path / "same", ONE_SKILL, TWO, n=4, inside=0, retention=task, items=False
    )
    results = ReportData([folder])
    write_viewer(results, tmp_path / "viewer")
    names = [what["name"] for what in read(tmp_path / "viewer", "index")["measured"]]
    assert names == ["tooluse", "tooluse (retention)"]
    columns = {column.key: column for column in tables.main_table(results).columns}
    assert "n=tooluse&" in links(results, "main")("sft", columns["tooluse/final"])
    assert "n=tooluse+%28retention%29&" in links(results, "retention")(
        "sft", columns["tooluse/final"]
    )


def test_what_is_not_on_disk_has_no_answers_and_a_number_all_the_same(tmp_path):
    folder = fabricate(tmp_path / "bare", ONE_SKILL, TWO, n=4, inside=0, retention={}, items=False)
    write_viewer(ReportData([folder]), tmp_path / "viewer")
    assert read(tmp_path / "viewer", "index")["answers"] == 0
    for _, numbers in runs(tmp_path / "viewer"):
        assert [(what, stage, name) for what, stage, _, _, name in numbers] == [
            (0, 0, None),
            (0, 1, None),
        ]


def test_answers_behind_tables_come_first_where_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.report.viewer.MOST", 15)
    folder = fabricate(tmp_path / "many", methods=TWO, n=4, inside=0, retention={})
    write_viewer(ReportData([folder]), tmp_path / "viewer")
    names = {
        (method, stage, what): name
        for method, numbers in runs(tmp_path / "viewer")
        for what, stage, _, _, name in numbers
    }
    assert [name for key, name in names.items() if key[1] == 0] == [
        "answers-0",
        "answers-1",
        "answers-2",
    ] * 2
    assert names["sft", 1, 0] == "answers-3"
    assert {name for name in names.values() if name not in {f"answers-{k}" for k in range(4)}} == {
        ""
    }


def test_a_new_report_leaves_no_data_of_an_earlier_one(tmp_path):
    folder = fabricate(
        tmp_path / "few", ONE_SKILL, TWO, n=4, inside=0, retention={}, training=False
    )
    data = tmp_path / "few/report/viewer/data"
    data.mkdir(parents=True)
    for name in ("run-7.js", "answers-99-3.js", "questions-12.js", "mine.js"):
        (data / name).touch()
    write_report(folder)
    names = {file.name for file in data.iterdir()}
    assert "mine.js" in names and not names & {"run-7.js", "answers-99-3.js", "questions-12.js"}
    assert {"index.js", "run-0.js", "answers-0.js", "answers-0-0.js", "questions-0-0.js"} <= names


def test_cells_lead_to_their_method_skill_and_stage():
    results = ReportData([QUICKSTART])
    table = tables.main_table(results)
    link, columns = links(results, "main"), {column.key: column for column in table.columns}
    assert link("sdft", columns["elements/final"]).endswith("#n=elements&s=end&m=sdft")
    assert link("sdft", columns["elements/own"]).endswith("#n=elements&s=own&m=sdft")
    assert link("base", columns["elements/final"]).endswith("#n=elements&s=0&m=sft")
    assert link("sdft", columns["acc"]).endswith("#m=sdft")
    assert links(results, "cost")("sdft", columns["acc"]) == ""
    pairs = {column.key: column for column in comparison_table(results).columns}
    of_pair = links(results, "comparisons")("sdft − sft", pairs["elements"])
    assert of_pair.endswith("#n=elements&s=end&m=sdft&vm=sft&vs=end")
    task = links(results, "retention")("sdft", pairs["embedded_grammar/delta"])
    assert task.endswith("#n=embedded_grammar&s=end&vs=0&m=sdft")


def test_letters_of_names_do_not_end_an_address():
    link = answer_link("a&b=c#d", 3, "back/forth", "skill", "<id>\u2028\ud800")
    assert link == (
        "viewer/index.html#n=skill&s=end&m=a%26b%3Dc%23d&r=3%40back%2Fforth&i=%3Cid%3E%E2%80%A8%3F"
    )


def test_every_number_of_every_table_leads_to_the_viewer(tmp_path):
    folder = fabricate(tmp_path / "two", methods=dict(list(METHODS.items())[:2]), n=4, inside=0)
    results = ReportData([folder])
    for make in (tables.main_table, tables.gain_table, tables.retention_table, comparison_table):
        table = make(results)
        html = str(table.html(link=links(results, table.name)))
        filled = [
            cell
            for cell in html.partition("<tbody>")[2].split("<td")[1:]
            if not cell.partition(">")[2].startswith("–")
        ]
        assert all('<a class="cell" href="viewer/index.html#' in cell for cell in filled), (
            table.name
        )
        assert len(filled) > len(table.rows)
