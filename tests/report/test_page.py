"""The page: complete in itself, and every number says how it was measured."""

import json
import re
from html import unescape

import pytest

from harness.report.html import lead_and_rest
from tests.report.folders import raw

PICTURES = ("curves", "curves_normalised", "plane", "retention", "accuracy_matrix", "training")


def test_the_page_needs_nothing_from_elsewhere_and_all_its_links_lead_somewhere(reported):
    html = reported.page.read_text()
    place = reported.page.parent
    targets = re.findall(r"""(?:src|href|srcset)=["']([^"']+)["']""", html)
    assert len(targets) > 50
    assert not [target for target in targets if re.match(r"(https?:)?//", target)]
    assert not re.search(r"@import|url\(", html)
    for target in targets:
        if target.startswith("#"):
            assert f'id="{target[1:]}"' in html
        else:
            assert (place / target.partition("#")[0]).is_file(), target
    for name in PICTURES:
        assert f"figures/{name}.svg" in html
        assert (place / "figures" / f"{name}.png").stat().st_size > 5000


def test_the_page_says_of_a_number_how_it_was_measured(reported):
    html = reported.page.read_text()
    note = re.search(r'title="(sdft, science final:[^"]+)"', html)[1]
    for part in (
        "mean of 3 seeds",
        "seed 2: ",
        "split test",
        "metric exact",
        "greedy",
        "n = 40",
        raw(reported.folder, name="science")[0]["protocol"],
    ):
        assert part in note


def test_a_note_is_one_sentence_and_a_fold(reported):
    html = reported.page.read_text()
    notes = re.findall(
        r'<(?:(p|div) class="(?:note|muted)"|(figcaption))>(.*?)</(?:\1|\2)>', html, re.S
    )
    assert len(notes) > 15
    for *_, note in notes:
        text = re.sub(r"<details.*?</details>|<[^>]+>", "", note, flags=re.S).strip()
        assert len(re.findall(r"[.!?]\s+\S", text)) <= (" · " in text), text


@pytest.mark.parametrize(
    ("text", "lead"),
    [
        ("In per cent. Joint: all at once.", "In per cent."),
        ("In per cent. sft: at 1e-4. More.", "In per cent."),
        ("In per cent. ±: half.", "In per cent."),
        ("The mean of 0.5 (Riemer et al. 2019). 5 of 6.", "The mean of 0.5 (Riemer et al. 2019)."),
        ("One alone.", "One alone."),
    ],
)
def test_a_note_folds_what_is_behind_its_first_sentence(text, lead):
    assert lead_and_rest(text) == (lead, text.removeprefix(lead).strip())


def test_completions_are_text_and_never_markup(reported):
    html = reported.page.read_text()
    assert "Show the &lt;b&gt;steps&lt;/b&gt; &amp; answer" in html
    assert "<b>steps</b>" not in html


def test_the_page_shows_the_order_as_it_was_resolved(reported):
    html = reported.page.read_text()
    order = re.search(r"the order as it was resolved</summary>.*?<pre>(.*?)</pre>", html, re.S)[1]
    results = json.loads((reported.folder / "results.json").read_text())
    assert json.loads(unescape(order)) == results
