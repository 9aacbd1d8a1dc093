"""The viewer in a browser: what people click and type, from files on the disk alone."""

import json
import re
from pathlib import Path

import pytest

from harness.report import page as report_page
from harness.report import tables
from harness.report.data import ReportData
from harness.report.style import looks
from harness.report.viewer import write_viewer
from harness.results.questions import save_questions
from tests.conftest import settle
from tests.fabricate import METHODS, fabricate
from tests.report.folders import ONE_SKILL, TWO, raw, rewrite
from tests.report.test_continual import add_references

QUICKSTART = Path(__file__).parents[2] / "results/measured/quickstart"
SKILL = "bfcl_tools"
MARKUP = "</script><script>pwned=1</script><img src=x onerror=pwned=1>\u2028<!-- {{x}} &amp;"


def click(page, selector):
    page.locator(selector).first.click()
    settle(page)


def press(page, key):
    page.keyboard.press(key)
    settle(page)


def choose(page, selector, value):
    page.locator(selector).select_option(value)
    settle(page)


def texts(page, selector):
    return page.locator(selector).all_text_contents()


def state(page):
    return page.evaluate("() => Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def write(folder, out):
    """The page with its main table and samples, and the viewer; pictures take too long here."""
    results = ReportData([folder])
    main = tables.main_table(results)
    text = report_page.render(results, [main], [], looks(results.series), [".."])
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(text, "utf-8", "replace")
    write_viewer(results, out / "viewer")
    return out / "viewer/index.html"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    return write(QUICKSTART, tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def answers():
    """A function (method, stage) -> {id: item} of SKILL, read from the results folder itself."""
    results = ReportData([QUICKSTART])

    def of(method, stage, name=SKILL, kind="R"):
        names = results.series[method].order if kind == "R" else list(results.retention)
        key = results.keys[kind, method][0, stage, names.index(name)]
        return {item["id"]: item for item in results.evaluation(0, key)["items"]}

    return of


def right(items):
    return {name for name, item in items.items() if item["scores"]["accuracy"] >= 0.5}


def shown_ids(page):
    return [link.get_attribute("title") for link in page.locator("#list a").all()]


# -- what people do


def test_three_clicks_from_the_page_to_an_answer_that_was_right_and_is_wrong(
    quickstart, opened, answers
):
    own, end = answers("sft", 1), answers("sft", 2)
    page = opened(quickstart.parents[1] / "index.html")
    page.locator(f"a.cell[href$='#n={SKILL}&s=end&m=sft']").first.click()
    settle(page)
    click(page, "text=Forgotten since stage 1")
    click(page, "#list a")
    name = state(page)["i"]
    assert name in right(own) - right(end)
    assert texts(page, "#item .answer h3") == [
        "✓ sft, after stage 1, bfcl_tools",
        "✗ sft, after stage 2, elements",
    ]
    assert texts(page, "#item .answer pre") == [own[name]["completion"], end[name]["completion"]]
    assert texts(page, "#item > pre")[0] == end[name]["prompt"]


def test_filters_count_and_list_what_the_answers_say(quickstart, opened, answers):
    own, end = right(answers("sft", 1)), right(answers("sft", 2))
    page = opened(quickstart, f"#m=sft&n={SKILL}&s=end")
    every = set(answers("sft", 2))
    wanted = {
        "all": every,
        "right": end,
        "wrong": every - end,
        "lost": own - end,
        "gained": end - own,
    }
    for name, ids in wanted.items():
        click(page, f"#f-{name}")
        assert page.locator(f"#f-{name} span").text_content() == str(len(ids))
        listed = set(shown_ids(page))
        assert listed <= ids and len(listed) == min(50, len(ids))
    base = right(answers("sft", 0))
    choose(page, "#vs", "0")
    click(page, "#f-lost")
    assert set(shown_ids(page)) == base - end
    assert page.locator("#f-lost").text_content().startswith("Forgotten since the base model")


def test_what_is_right_in_part_is_a_class_of_its_own_and_every_fall_is_forgotten(
    quickstart, opened, answers
):
    task = "embedded_following"  # with several instructions in a question
    now, base = (answers("sft_5e-4", stage, task, "D") for stage in (2, 0))
    scores = {name: (now[name]["score"], base[name]["score"]) for name in now}
    page = opened(quickstart, f"#m=sft_5e-4&n={task}&s=end&vs=0")
    wanted = {
        "all": set(scores),
        "right": {name for name, (x, _) in scores.items() if x == 1},
        "partly": {name for name, (x, _) in scores.items() if 0 < x < 1},
        "wrong": {name for name, (x, _) in scores.items() if x == 0},
        "lost": {name for name, (x, y) in scores.items() if x < y},
        "gained": {name for name, (x, y) in scores.items() if x > y},
    }
    assert wanted["partly"] and sum(len(wanted[k]) for k in ("right", "partly", "wrong")) == len(
        now
    )
    for name, ids in wanted.items():
        assert page.locator(f"#f-{name} span").text_content() == str(len(ids)), name
    click(page, "#f-partly")
    assert set(shown_ids(page)) == wanted["partly"]
    assert page.locator("#list .marks > :last-child [aria-label='partly right']").count()


def test_two_methods_stand_side_by_side_on_one_item(quickstart, opened, answers):
    page = opened(quickstart, f"#m=sft&n={SKILL}&s=end&vm=sdft&vs=end")
    click(page, "#f-lost")
    assert page.locator("#f-lost").text_content().startswith("Worse than sdft")
    sft, sdft = answers("sft", 2), answers("sdft", 2)
    assert set(shown_ids(page)) == right(sdft) - right(sft)
    click(page, "#list a")
    name = state(page)["i"]
    expected = [sft[name]["completion"], sdft[name]["completion"]]
    assert texts(page, "#item .answer pre") == expected
    press(page, "x")
    assert texts(page, "#item .answer pre") == expected[::-1]
    assert state(page)["m"] == "sdft"
    cells = page.locator("#elsewhere tbody tr").count(), page.locator("#elsewhere td a").count()
    assert cells == (4, 12)  # methods; with the base model and two stages each
    choose(page, "#vm", "")
    assert texts(page, "#item .answer pre") == expected[1:]


def test_search_reads_questions_references_and_answers(quickstart, opened, answers):
    page = opened(quickstart, f"#m=sft&n={SKILL}&s=end&vs=none")
    items = answers("sft", 2)
    for words in ("BURGER", "get_time", "no answer says this", "live_simple_24-5-2"):
        page.locator("#q").fill(words)
        page.wait_for_function(
            "words => location.hash.includes(new URLSearchParams({q: words}))", arg=words
        )
        settle(page)
        wanted = {
            name
            for name, item in items.items()
            if words.lower()
            in "\n".join(
                [
                    name,
                    item["prompt"],
                    item["completion"],
                    json.dumps(item["reference"], indent=1, ensure_ascii=False),
                ]
            ).lower()
        }
        total = int(page.locator("#f-all span").text_content())
        assert total == len(wanted)
        assert set(shown_ids(page)) <= wanted
    assert total == 1


def test_answers_are_sorted_by_score_and_by_what_was_lost(quickstart, opened):
    page = opened(quickstart, "#m=sft_5e-4&n=text_prose&s=end&vs=0")
    assert "lower is better" in page.locator("#sum").text_content()
    assert re.search(r"1\.\d{3}, n = 26", page.locator("#sum").text_content())
    assert all(len(text) > 40 for text in texts(page, "#list .brief"))

    def bits(place):
        return [
            float(texts(page.locator(f"#list li:nth-child({k})"), ".marks span")[place])
            for k in (1, 2, 26)
        ]

    choose(page, "#o", "worst")
    here = bits(1)
    assert here == sorted(here, reverse=True)
    choose(page, "#o", "best")
    here = bits(1)
    assert here == sorted(here)
    choose(page, "#o", "lost")
    changes = [here - base for base, here in zip(bits(0), bits(1), strict=True)]
    assert changes == sorted(changes, reverse=True)
    assert page.locator("#f-right").count() == 0
    click(page, "#f-lost")
    assert page.locator("#f-lost").text_content().startswith("Worse than the base model")


def test_the_keyboard_does_what_clicks_do(quickstart, opened):
    page = opened(quickstart, f"#m=sft&n={SKILL}&s=end")
    ids = shown_ids(page)
    press(page, "j")
    assert state(page)["i"] == ids[1]
    press(page, "j")
    press(page, "k")
    assert state(page)["i"] == ids[1]
    assert page.locator("#list a[aria-current]").get_attribute("title") == ids[1]
    press(page, "3")
    assert state(page)["f"] == "wrong"
    press(page, "[")
    assert state(page)["s"] == "1"
    press(page, "]")
    assert state(page)["s"] == "2"
    press(page, "/")
    page.keyboard.type("jk")  # letters of a search are no keys
    page.wait_for_function("() => location.hash.includes('q=jk')")
    settle(page)
    press(page, "Escape")
    press(page, "?")
    assert page.locator("#keys").get_attribute("open") is not None
    press(page, "u")
    assert page.locator("#overview").is_visible()
    page.go_back()
    settle(page)
    assert page.locator("#answers").is_visible()


def test_a_permanent_link_shows_the_same_in_another_window(quickstart, opened):
    page = opened(quickstart, f"#m=sft&n={SKILL}&s=end&f=lost&o=text")
    click(page, "#list a")
    link = page.locator("#permanent").get_attribute("href")
    other = opened(quickstart, link)
    assert texts(other, "#item pre") == texts(page, "#item pre")
    assert texts(other, "#item h2") == texts(page, "#item h2")


def test_an_address_of_something_else_says_so(quickstart, opened):
    page = opened(quickstart)
    said_of = [
        ("#m=nobody&n=elements", "no method nobody"),
        ("#m=sft&r=7", "no run 7"),
        ("#m=sft&n=nothing", "Nothing in this report is called nothing"),
        ("#m=sft&n=elements&s=9", "no answers to elements after stage 9"),
        ("#m=sft&n=elements&i=<b>x", "no question <b>x"),
        (
            "#m=constructor&n=__proto__&s=toString&f=constructor&o=valueOf&vm=x&vs=y&p=-3",
            "no method",
        ),
        ("#%%%&&==", ""),
    ]
    for address, said in said_of:
        page.evaluate("address => { location.hash = address; }", address)
        settle(page)
        assert said in page.locator("#message").text_content()
        assert page.locator("#overview").is_visible() or page.locator("#list a").count()


def test_the_overview_has_every_number_and_each_leads_to_its_answers(quickstart, opened):
    page = opened(quickstart)
    assert page.locator("#overview td a").count() == 13 * 3
    assert page.locator("#overview tbody tr").first.locator("a").all_text_contents()[1] == "41.0 %"
    click(page, "#overview tbody tr:nth-child(2) a")
    assert state(page) == {"n": "elements", "s": "0"}
    assert page.locator("#list a").count() == 50
    click(page, "#page-next")
    assert page.locator("#count").text_content().startswith("51 to 100 of 100")


def test_a_narrow_page_shows_the_list_or_one_answer(quickstart, opened):
    page = opened(quickstart, f"#m=sft&n={SKILL}&s=end", width=390)
    assert page.locator("#list").is_visible() and not page.locator("#item").is_visible()
    click(page, "#list li:nth-child(20) a")
    assert page.locator("#item").is_visible() and not page.locator("#list").is_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    overflow = "all => all.map(each => getComputedStyle(each).textOverflow)"
    assert set(page.locator("select").evaluate_all(overflow)) == {"ellipsis"}
    click(page, "#back")
    assert page.locator("#list li:nth-child(20)").is_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390


def test_a_tap_on_a_number_shows_its_note_with_the_way_to_its_answers(quickstart, opened):
    page = opened(quickstart.parents[1] / "index.html", width=390, has_touch=True, is_mobile=True)
    page.locator(f"a.cell[href$='#n={SKILL}&s=own&m=sft']").first.tap()
    assert f"{SKILL} own stage: " in page.locator("#why").text_content()
    page.locator("#why a").tap()
    settle(page)
    assert state(page) == {"n": SKILL, "s": "own", "m": "sft"}


# -- other folders


def test_what_a_model_wrote_is_never_markup(tmp_path, opened):
    folder = fabricate(
        tmp_path / "few", ONE_SKILL, {"sft+x=1α": METHODS["sft"]}, n=6, inside=0, retention={}
    )

    def hostile(evaluation):
        for number, item in enumerate(evaluation["items"]):
            item |= {
                "id": f"<b>{number}\u2028&i=#",
                "prompt": MARKUP,
                "completion": MARKUP,
                "reference": MARKUP,
            }
            item |= {"verdict": MARKUP, "<i>field": MARKUP}

    for file in (folder / "evaluations").iterdir():
        rewrite(file, hostile)
    rewrite(folder / "results.json", lambda value: value | {"name": MARKUP})
    viewer = write(folder, tmp_path / "out")
    page = opened(tmp_path / "out/index.html")
    page.locator("#samples details:not(.more) > summary").first.click()
    page.locator("#samples a").first.click()
    settle(page)
    assert page.locator("#item h2").text_content().startswith("<b>")
    fields = ["completion", "verdict", "<i>field"]
    assert texts(page, "#item pre") == [MARKUP, MARKUP, *[MARKUP] * 2 * len(fields)]
    assert texts(page, "#item h4") == ["the judge's verdict", "<i>field"] * 2
    page.locator("#q").fill("onerror")
    page.wait_for_function("() => location.hash.includes('onerror')")
    settle(page)
    assert page.locator("#list a").count() == 6
    assert page.evaluate("() => typeof pwned") == "undefined"
    for element in ("script:not([src])", "img", "b", "i"):
        assert page.locator(f"body {element}").count() == 0
    page = opened(viewer, "#m=sft%2Bx%3D1%CE%B1&n=tooluse&q=<img src=x onerror=pwned=1>")
    assert page.evaluate("() => typeof pwned") == "undefined"


def test_a_folder_without_answers_says_so(tmp_path, opened):
    folder = fabricate(tmp_path / "bare", ONE_SKILL, TWO, n=6, inside=0, retention={}, items=False)
    viewer = write(folder, tmp_path / "out")
    page = opened(viewer)
    assert "Answers are not kept in this results folder" in page.locator("#overview").text_content()
    click(page, "#overview td a")
    assert "are not kept in the results folder" in page.locator("#message").text_content()
    assert "before training" in page.locator("#sum").text_content()


def test_retention_items_have_their_questions_and_choices(tmp_path, opened):
    task = {"arc": ("acc", True, None, 0.5)}
    folder = fabricate(tmp_path / "few", ONE_SKILL, TWO, n=6, inside=0, retention=task)
    asked = [
        {"id": str(i), "prompt": f"Question {i}:", "choices": [" no", " yes"], "reference": " yes"}
        for i in range(6)
    ]

    def answer(evaluation):
        for item in evaluation["items"]:
            item |= {"response": [-1.5, -0.5], "score": 1.0, "scores": {"margin": 1.0}}

    for file in (folder / "evaluations").glob("arc-*"):
        rewrite(file, answer)
    viewer = write(folder, tmp_path / "old")
    page = opened(viewer, "#m=sft&n=arc&i=2&vs=none")
    assert "before questions of retention tasks were kept" in page.locator("#item").text_content()
    save_questions(folder, raw(folder, name="arc")[0]["protocol"], asked)
    viewer = write(folder, tmp_path / "new")
    page = opened(viewer, "#m=sft&n=arc&i=2&vs=none")
    assert texts(page, "#item pre") == ["Question 2:", " yes"]
    assert texts(page, "#item .answer td") == ["no", "−1.50", "", "yes", "−0.50", "chosen, right"]
    assert texts(page, "#list .said") == ["yes"] * 6


def test_own_is_the_stage_that_taught_the_skill(tmp_path, opened):
    folder = fabricate(tmp_path / "few", methods=TWO, n=6, inside=0, retention={})
    add_references(folder, alone="sdft")
    viewer = write(folder, tmp_path / "out")
    page = opened(viewer, "#m=sft&n=science&s=own&vs=0")
    assert "after stage 2, science" in page.locator("#sum").text_content()
    assert "before training" in page.locator("#sum").text_content()
    choose(page, "#m", "sft joint")
    assert "sft joint after all skills at once" in page.locator("#sum").text_content()
    choose(page, "#m", "sft single")
    assert "sft single after this skill alone" in page.locator("#sum").text_content()
    assert page.locator("#list a").count() == 6


def test_a_click_takes_less_than_300_ms_among_50000_answers(tmp_path, opened):
    """At most three tries, since other work may run beside the tests."""
    folder = fabricate(
        tmp_path / "many", ONE_SKILL, TWO, n=16_700, inside=0, retention={}, training=False
    )
    write_viewer(ReportData([folder]), tmp_path / "viewer")
    clicks = ("#f-wrong", "#page-next", "#list li:nth-child(7) a", "#f-lost", "#f-all", "#next")
    took = {}
    for _ in range(3):
        page = opened(tmp_path / "viewer/index.html", "#m=sft&n=tooluse&s=1")
        assert page.locator("#f-all span").text_content() == "16,700"
        for selector in clicks:
            took.setdefault(selector, []).append(
                timed(page, f"document.querySelector('{selector}').click()")
            )
        for change in ("o: 'worst'", "o: 'text'", "m: 'sdft'", "vm: 'sft', vs: '1'"):
            took.setdefault(change, []).append(timed(page, f"go({{{change}}})"))
        took.setdefault("search again", []).append(search_twice(page))
        slow = {name: times for name, times in took.items() if min(times) > 300}
        if not slow:
            break
    assert not slow


def timed(page, action):
    """Milliseconds from an action until the page shows what it asks for."""
    return page.evaluate(
        f"""async () => {{
        const main = document.getElementById('main'), before = location.hash;
        const start = performance.now();
        {action};
        while (location.hash === before || main.dataset.shown !== location.hash)
            await new Promise(requestAnimationFrame);
        return performance.now() - start;
    }}"""
    )


def search_twice(page):
    timed(page, "go({q: 'question 77'})")  # reads all pages
    return timed(page, "go({q: 'question 777'})")
