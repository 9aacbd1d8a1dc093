"""The page: complete in itself, and every number says how it was measured."""

import json
import re
from html import unescape

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


def test_completions_are_text_and_never_markup(reported):
    html = reported.page.read_text()
    assert "Show the &lt;b&gt;steps&lt;/b&gt; &amp; answer" in html
    assert "<b>steps</b>" not in html


def test_the_page_shows_the_order_as_it_was_resolved(reported):
    html = reported.page.read_text()
    order = re.search(r"the order as it was resolved</summary>.*?<pre>(.*?)</pre>", html, re.S)[1]
    results = json.loads((reported.folder / "results.json").read_text())
    assert json.loads(unescape(order)) == results
