"""The files, the page and the command."""

import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

import report
from benchmarks.paper import write
from benchmarks.paper.collect import collect
from benchmarks.paper.form import COLUMNS
from benchmarks.paper.items import ITEMS
from benchmarks.paper.write import write_paper
from harness.base.errors import UserError
from tests.benchmarks.paper.folders import T2, skill_folder
from tests.conftest import without_progress
from tests.report.test_page_browser import PAPER, serious_faults

ROOT = Path(__file__).resolve().parents[3]


def test_everything_with_results_is_drawn_beside_the_published_and_every_link_leads_somewhere(
    drawn,
):
    summary, index = drawn
    html, out = index.read_text(), index.parent
    assert "no results" not in summary
    for key, item in ITEMS.items():
        if item.draw is None:
            assert (out / "tables" / f"measured_{key}.tex").stat().st_size > 100
        else:
            assert (out / "figures" / f"measured_{key}.png").stat().st_size > 5000
        assert list(pd.read_csv(out / "data" / f"measured_{key}.csv")) == COLUMNS
        assert f"published_{key}" in html or item.absent
    targets = re.findall(r"""(?:src|href|srcset)=["']([^"']+)["']""", html)
    assert len(targets) > 80
    ids = re.findall(r"""id=["']([^"']+)["']""", html)
    places = {target for target in targets if target.startswith("#")}
    assert {place[1:] for place in places} <= set(ids)
    assert not [target for target in set(targets) - places if not (out / target).is_file()]
    assert "Independent reproductions" in html


def test_the_page_compares_signs(drawn):
    html = drawn[1].read_text()
    assert (
        "elements: sdft − sft on new task is -10.0 (no interval: scores of the same examples are "
        "not at hand), in the paper +4.0 to +7.4: another sign than the paper"
    ) in html
    # Paired by seed; the methods' own seeds lie further apart.
    half = 100 * T2 * np.std([0.3, 0.2, 0.4], ddof=1) / 3**0.5
    assert (
        f"tools: sdft − sft on new task is +30.0 [{30 - half:+.1f}, {30 + half:+.1f}], "
        "in the paper +4.0 to +7.4: the same sign"
    ) in html


def test_the_page_begins_with_the_table_of_signs(drawn):
    html, tables = drawn[1].read_text(), drawn[1].parent / "tables"
    assert html.index('id="signs"') < html.index('class="warn"') < html.index("id='figure_2_right'")
    rows = pd.read_csv(tables / "signs.csv").set_index("difference")
    other = rows.loc["Figure 4 and Table 5, elements: sdft − sft on new task"]
    assert other["sign"] == "other sign" and other["measured"] == pytest.approx(-0.1)
    assert pd.isna(other["told from 0"]) and other["in the paper"].endswith("+4.0 to +7.4")
    same = rows.loc["Figure 4 and Table 5, tools: sdft − sft on new task"]
    assert same["sign"] == "same sign" and same["told from 0"] == "yes"
    ranks = rows["sign"].map({"same sign": 0, "other sign": 2}).fillna(1)
    assert rows.index.is_unique and ranks.is_monotonic_increasing


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_no_serious_fault(drawn, opened, width, scheme):
    page = opened(drawn[1], width=width, color_scheme=scheme, bypass_csp=True)
    assert not serious_faults(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_letters_of_a_picture_are_as_large_as_they_were_drawn(drawn, opened):
    page = opened(drawn[1])
    for picture in page.locator("figure img").all():
        picture.scroll_into_view_if_needed()
        picture.evaluate("img => img.decode()")
        shown, whole = picture.evaluate("img => [img.width, parseFloat(img.style.maxWidth)]")
        assert shown >= 0.95 * whole, picture.get_attribute("src")


def test_on_paper_nothing_is_cut_off(drawn, opened):
    page = opened(drawn[1], width=PAPER)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER


def test_captions_say_what_was_run(drawn):
    html = drawn[1].read_text()
    for part in (
        "SmolLM2-135M-Instruct (float32)",
        "elements (160 prompts, 10 steps)",
        "offline, teacher, grpo, sft: 160 prompts, 10 steps; short: 80 prompts, 10 steps)",
        "seeds 0, 1, 2",
        "n = 50",
        "greedy",
        "KL direction: sdft forward",
    ):
        assert part in html


def test_what_cannot_be_drawn_is_refused(tmp_path):
    plain = skill_folder(
        tmp_path / "plain",
        {"sft": [0.5], "sdft": [0.4]},
        {"sft": [0.6], "sdft": [0.8]},
        experiment=[],
    )
    (tmp_path / "empty").mkdir()
    for folder, problem in (
        (plain, "does not say which figure"),
        (tmp_path / "empty", "holds no results"),
        (tmp_path / "absent", "is not a folder"),
    ):
        with pytest.raises(UserError, match=problem):
            write_paper([folder])
    skill_folder(tmp_path / "good", {"sft": [0.5], "sdft": [0.4]}, {"sft": [0.6], "sdft": [0.8]})
    assert collect([tmp_path / "good", plain]).without_experiment == [plain]


@pytest.mark.parametrize(
    "text, problem",
    [
        ('{"experiment": ["table_', "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"experiment": "table_5"}', '`experiment` is "table_5", not a list'),
    ],
)
def test_a_broken_results_file_is_named(text, problem, tmp_path):
    """Also beside a whole one, whose figures could be drawn without it."""
    skill_folder(tmp_path / "good", {"sft": [0.5], "sdft": [0.4]}, {"sft": [0.6], "sdft": [0.8]})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text(text)
    with pytest.raises(UserError, match=rf"broken/results\.json: {problem}"):
        write_paper([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path, monkeypatch):
    out = tmp_path / "out"
    mine = ("data/mine.csv", "figures/measured_by_me.png", "mine.txt")
    old = (
        "data/measured_table_5_2.csv",
        "tables/measured_table_5.tex",
        "figures/dark/measured_figure_8.svg",
    )
    for name in old + mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    (tmp_path / ".out.partial" / "of a killed one").mkdir(parents=True)
    write_paper(out=out)
    assert not any((out / name).exists() for name in old)
    assert all((out / name).read_text() == "old" for name in mine)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "data" / "published_table_5.csv").is_file()
    html = (out / "index.html").read_text()
    monkeypatch.setattr(write, "save", Mock(side_effect=OSError("full")))
    # A report that fails leaves the earlier one whole, and nothing where there was none.
    for place in (out, tmp_path / "new"):
        with pytest.raises(OSError, match="full"):
            write_paper(out=place)
    assert (out / "index.html").read_text() == html
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ([], "RESULTS_DIR: is missing"),
        (["--published", "x"], "--published: takes no RESULTS_DIR"),
        (["nowhere", "--paper"], "nowhere: is not a folder"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, problem, capsys):
    with pytest.raises(SystemExit) as stopped:
        report.main(arguments)
    (line,) = without_progress(capsys.readouterr().err)
    assert stopped.value.code == 2
    assert problem in line


def test_it_needs_neither_torch_nor_transformers():
    code = (
        "import sys, benchmarks.paper.write; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
