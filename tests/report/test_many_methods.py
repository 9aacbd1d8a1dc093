"""Pictures of more methods than colours: the best are in colour, the others grey, all ranked."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from harness.report import style
from harness.report.build import write_report
from harness.report.data import ReportData
from harness.report.pictures import by_accuracy, curves, plane, source_of
from harness.report.pictures.ranking import RANKING, ranking
from harness.report.tables import headline
from tests.fabricate import fabricate
from tests.report.folders import TWO

# Of the three with a fixed look, sft is among the worst: it has its colour all the same.
LAWS = {f"part_{i:02}": (0.5 + 0.03 * i, 0.6 + 0.03 * i, 0.004) for i in range(12)}
MANY = {**LAWS, "sft": (0.4, 0.5, 0.03)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "many"
    return fabricate(folder, methods=MANY, n=40, inside=1)


@pytest.fixture(scope="module")
def made(folder):
    """Its page."""
    return write_report(folder)[1]


@pytest.fixture(scope="module")
def source(folder):
    return source_of(ReportData([folder]))


def test_the_best_and_those_with_a_fixed_look_are_in_colour(source):
    results = source.results
    ends = {label: results.R[label][:, -1].mean() for label in MANY}
    rank = by_accuracy(results)
    assert [ends[label] for label in rank] == sorted(ends.values(), reverse=True)
    others = [label for label in rank if label != "sft"]
    in_colour = {label for label, look in source.looks.items() if look != style.FURTHER}
    assert in_colour == {"sft", *others[: style.MOST_COLOURED - 1]}
    marks = {source.looks[label][:2] for label in in_colour}
    assert len(marks) == style.MOST_COLOURED, "two share colour and mark"


def test_any_labels_differ_in_colour_or_mark():
    for names in (map(str, range(40)), "abcdefghijkl", ["sft", *"nopqrstuvwx"]):
        look = [each for each in style.looks(list(names)).values() if each != style.FURTHER]
        assert len({each[:2] for each in look}) == len(look) == style.MOST_COLOURED


def test_grey_lines_are_thin_without_whiskers_and_one_entry_of_the_legend(source):
    shown = curves.accuracy_curves(source)
    with matplotlib.rc_context(style.STYLE):
        figure = curves.draw_accuracy(shown, style.WIDE)
    axes = figure.axes[0]
    grey = [line for line in axes.lines if to_hex(line.get_color()) == style.GREY]
    assert len(grey) == len(MANY) - style.MOST_COLOURED
    assert {line.get_linewidth() for line in grey} == {style.FINE}
    assert len(axes.collections) == style.MOST_COLOURED  # whiskers
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries[-2:] == [f"{len(grey)} others", "base"]
    assert len(entries) == style.MOST_COLOURED + 2


def test_the_plane_shows_where_grey_ones_end_and_no_way(source):
    shown = plane.plane(source)
    with matplotlib.rc_context(style.STYLE):
        (axes,) = plane.draw(shown, style.WIDE).axes
    grey = [line for line in axes.lines if to_hex(line.get_color()) == style.GREY]
    found = sorted(tuple(np.ravel(line.get_xydata())) for line in grey)
    ends = [
        path.stages[-1] * 100 for path in shown.paths if shown.looks[path.label] == style.FURTHER
    ]
    assert np.array(found) == pytest.approx(np.array(sorted(map(tuple, ends))))


def test_the_ranking_has_all_methods_with_the_numbers_of_the_table(source):
    shown = ranking(source)
    assert list(shown.rows) == by_accuracy(source.results)
    assert shown.columns == ["acc", "bwt", "retention"]
    with matplotlib.rc_context(style.STYLE):
        figure = RANKING.draw(shown, style.WIDE)
    for axes, key in zip(figure.axes, shown.columns, strict=True):
        points = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 1]
        marks = {y: x for ((x, y),) in points}
        for place, label in enumerate(shown.rows):
            value = headline(source.results, label)[key].value
            assert marks[place] == pytest.approx(100 * value)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == list(shown.rows)


def test_few_methods_have_no_ranking(tmp_path):
    few = fabricate(tmp_path / "few", methods=TWO, n=10, items=False)
    assert ranking(source_of(ReportData([few]))) is None


def test_a_page_of_many_shows_few_on_request(made, opened):
    page = opened(made)
    figure = page.locator("#curves")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("#curves .panel .u-over")
    keys = figure.locator(".keys button")
    assert keys.count() == len(MANY) + 2
    figure.get_by_text("hide all").click()
    assert figure.locator("[aria-pressed=true]").count() == 0
    keys.filter(has_text="part_00").click()
    keys.filter(has_text="part_11").click()
    assert figure.locator("[aria-pressed=true]").count() == 2
    figure.get_by_text("show all").click()
    assert figure.locator("[aria-pressed=true]").count() == len(MANY)


@pytest.mark.parametrize("width", [390, 1280])
def test_panels_keep_to_their_places(made, opened, width):
    """Each as wide as its column, though the first is drawn while others are to come."""
    page = opened(made)
    page.set_viewport_size({"width": width, "height": 900})
    page.reload()
    page.locator("#curves").scroll_into_view_if_needed()
    page.wait_for_selector("#curves .panel:nth-child(3) .u-over")
    boxes = page.evaluate("""() => [...document.querySelectorAll('#curves .panel')].map(panel =>
        [panel, panel.querySelector('canvas')].map(each => each.getBoundingClientRect().width))""")
    assert len(boxes) == 3
    for panel, canvas in boxes:
        assert canvas <= panel + 1
