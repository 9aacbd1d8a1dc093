"""The report's page in a browser: pointing, sorting, keys, paper, narrow screens, accessibility."""

import itertools
import json
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from harness.report.build import write_report
from harness.report.data import ReportData
from harness.report.pictures import PICTURES, source_of
from harness.report.style import FIXED, MARKERS, NARROW, STYLE, looks
from tests.fabricate import METHODS, fabricate
from tests.report.folders import TWO

HOSTILE = "<img src=x onerror=alert(1)>"
PAPER = 1032  # CSS pixels of A4 across without its margins


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of two seeds of three methods, one of which has markup for a name; its page."""
    folder = tmp_path_factory.mktemp("page") / "made"
    methods = {**TWO, HOSTILE: METHODS["grpo"]}
    fabricate(folder, methods=methods, seeds=(0, 1), n=20, inside=1)
    return folder, write_report(folder)[1]


@pytest.fixture
def page(made, opened):
    return opened(made[1])


def awake(page, name="curves"):
    """The figure ``name`` once its numbers are drawn."""
    figure = page.locator(f"#{name}")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector(f"#{name} .panel .u-over")
    return figure


def panels_of(page, name="curves"):
    return json.loads(page.locator(f"#live-{name}").text_content())


def point(page, figure, panel, line, place):
    """Points at a point of a line; returns what is said of it."""
    over = figure.locator(".u-over").nth(0)
    box = over.bounding_box()

    def share(values, value, room):
        low, high = min(values), max(values)
        pad = (high - low) * room
        return (value - low + pad) / (high - low + 2 * pad)

    every = panel["lines"]
    of_y = [y for each in every for key in ("y", "low", "high") for y in each[key]]
    of_y += [level for _, level in panel["levels"]]
    x = share([x for each in every for x in each["x"]], line["x"][place], 0.03)
    y = share([y for y in of_y if y is not None], line["y"][place], 0.06)
    page.mouse.move(box["x"] + x * box["width"], box["y"] + (1 - y) * box["height"])
    return figure.locator(".tip").nth(0)


def test_the_first_screen_holds_sentences_table_and_picture(page):
    awake(page, "plane")
    page.evaluate("scrollTo(0, 0)")
    for part in (".verdicts", "#summary table", "#plane .live"):
        box = page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= 800, part


def test_a_point_says_its_value_its_interval_and_n(page):
    figure, panel = awake(page), panels_of(page)[0]
    line = panel["lines"][0]
    place = line["ends"][1]
    tip = point(page, figure, panel, line, place)
    text = tip.text_content()
    assert text.startswith("sft\n")
    value, low, high = (line[key][place] for key in ("y", "low", "high"))
    for number in (value, low, high):
        assert re.search(rf"\b{number:.1f}\b", text), (text, number)
    assert text.endswith(", n = 20\n2 runs")
    page.mouse.move(0, 0)
    assert tip.is_hidden()


NO_ANSWERS = ("training", "accuracy_matrix")  # the first has none, the other is no lines


def test_every_point_has_its_n(made, page):
    """n of a mean: the questions of all that it is of."""
    results = ReportData([made[0]])
    names = [task for task, counts in results.tasks_in_mean.items() if counts]
    prior = sum(results.n["retention", name] for name in names)
    for picture in page.locator(".live").evaluate_all("all => all.map(box => box.dataset.of)"):
        name = picture.removeprefix("live-")
        for panel in panels_of(page, name):
            for line in [] if name in NO_ANSWERS else panel["lines"]:
                assert len(line["n"]) == len(line["x"]) and None not in line["n"], panel["title"]
                assert panel["title"] != "mean change" or set(line["n"]) == {prior}
    (plane,) = panels_of(page, "plane")
    assert {n for line in plane["lines"] for n in line["n"]} == {3 * 20}
    assert {n for line in plane["lines"] for n in line["n_across"]} == {prior}
    figure = awake(page, "plane")
    figure.locator(".panel").focus()
    page.keyboard.press("ArrowRight")
    text = figure.locator(".tip").text_content()
    assert f", n = {prior}\n" in text and ", no interval, n = 60" in text


def test_a_cell_of_the_matrix_says_what_it_rests_on_and_leads_to_its_answers(made, page):
    results = ReportData([made[0]])
    figure = page.locator("#accuracy_matrix")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("#accuracy_matrix .heat a")
    panel = figure.locator(".panel", has=page.get_by_role("heading", name="sft", exact=True))
    stage, skill = 2, next(iter(results.skills))
    cell = panel.locator(f"a[data-place='{stage} 0']")
    value = 100 * results.R["sft"][:, stage, 0].mean()
    assert cell.text_content() == f"{value:.1f}"
    cell.hover()
    head, number, runs = panel.locator(".tip").text_content().split("\n")
    assert head == f"{skill}, after 2 {list(results.skills)[1]}" and runs == "2 runs"
    low, high = map(float, re.search(r"\[(\S+), (\S+)\], n = 20$", number).groups())
    assert number.startswith(f"accuracy (%) {value:.1f} [") and low < value < high
    page.mouse.move(0, 0)
    assert panel.locator(".tip").is_hidden()
    panel.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.place") == "2 0"
    assert panel.locator(".tip").is_visible()
    page.keyboard.press("Enter")
    page.wait_for_selector("#list a")
    one = 100 * results.R["sft"][0, stage, 0]
    text = page.locator("#sum").text_content()
    assert skill in text and f"stage {stage}" in text and f"{one:.1f}" in text


def test_what_is_logged_in_training_can_be_pointed_at(made, page):
    table = ReportData([made[0]]).training
    panels = {panel["title"]: panel for panel in panels_of(page, "training")}
    assert {"loss", "grad norm"} <= set(panels)
    for line in panels["loss"]["lines"]:
        rows = table[table["label"] == line["label"]]
        means = rows.groupby("step")["loss"].mean()
        assert line["x"] == means.index.tolist() and len(means) <= 40  # so short, not smoothed
        assert line["y"] == pytest.approx(means.tolist(), rel=1e-4)
    figure = awake(page, "training")
    figure.locator(".panel").first.focus()
    page.keyboard.press("ArrowRight")
    text = figure.locator(".tip").first.text_content()
    assert re.fullmatch(r"\S+\noptimizer steps \S+\nloss \S+", text)


def test_a_method_is_hidden_by_its_name_and_comes_back(page):
    figure, panel = awake(page), panels_of(page)[0]
    line = panel["lines"][0]
    before = figure.locator("canvas").first.evaluate("c => c.toDataURL()")
    key = figure.get_by_role("button", name="sft", exact=True)
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    page.wait_for_function(
        "before => document.querySelector('#curves canvas').toDataURL() !== before", arg=before
    )
    tip = point(page, figure, panel, line, line["ends"][1])
    assert tip.is_hidden() or not tip.text_content().startswith("sft\n")
    page.keyboard.press("Enter")
    assert key.get_attribute("aria-pressed") == "true"


def test_the_arrow_keys_read_the_points(page):
    figure, panel = awake(page), panels_of(page)[0]
    figure.locator(".panel").first.focus()
    page.keyboard.press("ArrowRight")
    assert figure.locator(".tip").first.text_content().startswith("sft\n")
    page.keyboard.press("ArrowDown")
    assert figure.locator(".tip").first.text_content().startswith(f"{panel['lines'][1]['label']}\n")


MARKS = """async name => {
    const {u} = plots.find(each => document.getElementById(name).contains(each.u.root)), seen = [];
    const draw = stamp;
    stamp = (ctx, marker, x, y, size) => {
        if (marker !== '*') seen.push([ctx.fillStyle, marker, x, y]); // the base model's
        draw(ctx, marker, x, y, size);
    };
    u.redraw();
    await new Promise(requestAnimationFrame);
    stamp = draw;
    const lines = JSON.parse(document.getElementById(`live-${name}`).textContent)[0].lines;
    const told = lines.flatMap(line => line.x.map((x, k) =>
        [u.valToPos(x, 'x', true), u.valToPos(line.y[k], 'y', true)]));
    const [looks, places] = [[0, 2], [2, 4]].map(part => seen.map(mark => mark.slice(...part)));
    return [places.flat(), told.flat(), looks];
}"""


def test_where_both_axes_are_measured_marks_stand_at_their_values(page):
    """Along training lines are set apart; in the plane that would be another number."""
    awake(page, "plane")
    seen, told, _ = page.evaluate(MARKS, "plane")
    assert len(seen) == 2 * 3 * 4 and seen == pytest.approx(told)
    awake(page)
    seen, told, _ = page.evaluate(MARKS, "curves")
    assert seen[1::2] == pytest.approx(told[1::2]) and seen[::2] != pytest.approx(told[::2])


def test_a_method_s_marker_repeats_the_difference_of_colours(page):
    awake(page)
    drawn = page.evaluate(MARKS, "curves")[2]
    look = looks([*TWO, HOSTILE])
    wanted = {(each.colour.lower(), each.marker) for each in look.values()}
    assert set(map(tuple, drawn)) == wanted and len(dict(wanted)) == len(look)
    assert page.locator("#curves .keys polygon").count() == len(look)
    known = page.evaluate("Object.keys(SHAPES)")
    assert {*MARKERS, *(marker for _, marker in FIXED.values())} <= set(known)


WRITTEN = """async name => {
    const {u} = plots.find(each => document.getElementById(name).contains(each.u.root)), seen = [];
    const write = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
        const wide = this.measureText(text).width;
        const left = this.textAlign === 'center' ? x - wide / 2 : x;
        if (this.textBaseline === 'middle' && this.fillStyle === tint('--ink'))
            seen.push([text, left, left + wide, y - 5, y + 5]);
        write.call(this, text, x, y);
    };
    u.redraw();
    await new Promise(requestAnimationFrame);
    CanvasRenderingContext2D.prototype.fillText = write;
    const at = (x, y) => [u.valToPos(x, 'x', true), u.valToPos(y, 'y', true)];
    const lines = JSON.parse(document.getElementById(`live-${name}`).textContent)[0].lines;
    const drawn = lines.flatMap(({x, y, low, high, left, right, ends}) => [
        ...x.slice(1).map((_, k) => [at(x[k], y[k]), at(x[k + 1], y[k + 1])]),
        ...ends.map(k => [at(x[k], low[k]), at(x[k], high[k])]),
        ...(left.length ? ends.map(k => [at(left[k], y[k]), at(right[k], y[k])]) : [])]);
    return [seen, drawn];
}"""


@pytest.mark.parametrize("name", ["plane", "retention"])
def test_no_line_crosses_a_name(page, name):
    awake(page, name)
    names, drawn = page.evaluate(WRITTEN, name)
    assert sorted(text for text, *_ in names) == sorted(["sft", "sdft", "base", HOSTILE[:13] + "…"])
    ways = np.array(drawn)[:, :1] + np.linspace(0, 1, 400)[:, None] * np.diff(drawn, axis=1)
    for text, left, right, top, bottom in names:
        x, y = ways[..., 0], ways[..., 1]
        assert not ((x > left) & (x < right) & (y > top) & (y < bottom)).any(), text
    for one, other in itertools.combinations(names, 2):
        apart = one[1] >= other[2] or other[1] >= one[2] or one[3] >= other[4] or other[3] >= one[4]
        assert apart, (one, other)


def test_what_is_a_name_is_never_markup(page):
    figure = awake(page)
    assert figure.get_by_role("button", name=HOSTILE).count() == 1
    assert page.locator("img[src=x]").count() == 0


def test_the_picture_shows_what_the_page_draws(made, page):
    """The numbers in the page are those of the curves on disk, in per cent."""
    curves = pd.read_csv(made[1].parent / "tables" / "curves.csv")
    for panel in panels_of(page):
        for line in panel["lines"]:
            rows = curves[(curves["name"] == panel["title"]) & (curves["label"] == line["label"])]
            rows = rows.sort_values("x")
            for key, column in (("x", "x"), ("n", "n"), ("runs", "seeds")):
                assert line[key] == pytest.approx(rows[column].tolist())
            for key, column in (("y", "value"), ("low", "low"), ("high", "high")):
                assert line[key] == pytest.approx((100 * rows[column]).tolist(), rel=1e-4)


def column(page, place):
    cells = page.locator(f"table.sorts >> nth=0 >> tbody tr td:nth-child({place + 1})")
    return [text.partition(" ±")[0].replace("−", "-") for text in cells.all_text_contents()]


def test_tables_sort_by_click_and_by_key(page):
    head = page.locator("table.sorts >> nth=0 >> thead th").nth(1)
    first = column(page, 1)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    known = [float(text) for text in column(page, 1) if text != "–"]
    assert known == sorted(known, reverse=True) and column(page, 1)[-1] == "–"
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in column(page, 1) if text != "–"] == known[::-1]
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert column(page, 1) == first


def test_cells_are_reached_by_keys_and_say_what_they_are(page):
    row = page.locator("table.sorts >> nth=0 >> tbody tr", has_text=re.compile("^sft"))
    cell = row.locator("a.cell").first
    cell.focus()
    page.keyboard.press("ArrowRight")
    now = page.evaluate("document.activeElement.closest('td').cellIndex")
    assert now == cell.evaluate("a => a.closest('td').cellIndex") + 1
    assert "95% interval" in page.locator("#why").text_content()
    page.keyboard.press("Escape")
    assert page.locator("#why").is_hidden()
    unreached = "td[data-note]:not([tabindex]):not(:has(a))"
    assert page.locator(unreached).count() == 0


def test_on_paper_nothing_is_cut_off(made, opened):
    page = opened(made[1], width=PAPER)
    awake(page)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden() and page.locator(".live").first.is_hidden()
    assert page.locator("#curves img").is_visible()
    cut = page.evaluate(
        """width => [...document.querySelectorAll('table, figure img')]
        .filter(node => node.checkVisibility() && node.getBoundingClientRect().right > width + 1)
        .map(node => node.outerHTML.slice(0, 80))""",
        PAPER,
    )
    assert not cut
    wide = page.locator("table:has(+ .part)")
    columns = "table => table.tBodies[0].rows[0].cells.length - 1"
    assert wide.count() and wide.first.is_hidden()
    parts = page.locator(".scroll:has(> .parted) >> nth=0 >> .part")
    shown = sum(part.evaluate(columns) for part in parts.all())
    assert parts.count() > 1 and shown == wide.first.evaluate(columns)
    breaks = "getComputedStyle(document.querySelector('h3')).breakAfter"
    assert page.evaluate(breaks) == "avoid"


def test_a_narrow_screen_has_pictures_of_its_own_with_letters_of_ten_pixels(made, opened):
    page = opened(made[1], width=390, bypass_csp=True)
    page.add_style_tag(content=".still{display:block!important}")  # as where no script runs
    picture = page.locator("#accuracy_matrix img")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#accuracy_matrix img').complete")
    assert picture.evaluate("img => img.currentSrc").endswith("narrow/accuracy_matrix.svg")
    drawn = picture.bounding_box()["width"] / (NARROW.width * 96)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    source = source_of(ReportData([made[0]]))
    shown = [(picture, picture.select(source)) for picture in PICTURES]
    with matplotlib.rc_context(STYLE):
        figures = [picture.draw(numbers, NARROW) for picture, numbers in shown if numbers]
    assert len(figures) > 4
    for figure in figures:
        texts = [text for text in figure.findobj(Text) if text.get_text()]
        assert min(text.get_fontsize() for text in texts) * 96 / 72 * drawn >= 10
        assert figure.get_figwidth() == pytest.approx(NARROW.width)


def test_alt_texts_are_short_and_have_numbers(page):
    texts = page.locator("figure img").evaluate_all("all => all.map(img => img.alt)")
    assert len(texts) > 4
    for text in texts:
        assert len(text) < 200 and re.search(r"\d", text), text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("address", ["index.html", "viewer/index.html#m=sft&n=science"])
def test_axe_finds_no_serious_fault(made, opened, address, scheme, width):
    name, _, hash_ = address.partition("#")
    how = {"color_scheme": scheme, "bypass_csp": True}  # axe adds a style
    page = opened(made[1].parent / name, f"#{hash_}" * bool(hash_), width, **how)
    if not hash_:
        awake(page)
    # All rules twice; where the others were looked at already, what colours and width change.
    assert not serious_faults(page, all_rules=(width, scheme) in ((1280, "light"), (390, "dark")))


def serious_faults(page, all_rules=True):
    """What axe finds on a page with all its folds open: (rule, pieces of the page)."""
    reason = "axe-playwright-python is not installed"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason)
    options = {"resultTypes": ["violations"], "preload": False}  # a disk has no styles to fetch
    if not all_rules:
        options["runOnly"] = ["color-contrast", "scrollable-region-focusable", "link-in-text-block"]
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
    page.wait_for_timeout(50)  # until the folds have told that they are open
    found = axe.Axe().run(page, options=options).response["violations"]
    return [
        (fault["id"], [node["html"][:160] for node in fault["nodes"][:3]])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
