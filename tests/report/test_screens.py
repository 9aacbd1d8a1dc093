"""The page and the viewer as they look: wide and narrow, light, dark and on paper.

References are in tests/report/screens, a quarter as large and grey: letters may differ by a shade,
a table that falls apart may not. After a change that is meant, look at what this writes:

    SCREENS=write python -m pytest tests/report/test_screens.py

Where the browser's letters have other widths than those of the references nothing is compared.
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.report.build import write_report
from tests.fabricate import fabricate
from tests.report.folders import TWO
from tests.report.test_page_browser import PAPER, awake

SCREENS = Path(__file__).parent / "screens"
LETTERS = SCREENS / "letters.json"
HEIGHT, SCALE = 2400, 4  # pixels from the top that count, and how many become one
SHADE, MOST = 24, 0.01  # of 255; the share of pixels that may differ by more
WRITES = os.environ.get("SCREENS") == "write"
VIEWS = {
    "page": "index.html",
    "answers": "viewer/index.html#m=sft&n=science",
    "question": "viewer/index.html#m=sft&n=science&i=science-0",
}
LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
# A wide screen shows the first question beside the answers.
CASES = [(view, *look) for view in VIEWS for look in LOOKS if (view, look[0]) != ("question", 1280)]
CASES.append(("page", PAPER, "print"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screens") / "made"
    fabricate(folder, methods=TWO, seeds=(0, 1), n=20, inside=1)
    return write_report(folder)[1].parent


def screen(page, view, scheme):
    """The top of the page as numbers [height, width] from 0 to 255."""
    if scheme == "print":
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
    clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": HEIGHT}
    image = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("L")
    return np.asarray(image.reduce(SCALE), dtype=int)


def letters(page):
    """How wide the page's letters are."""
    text = "Every number says how it was measured: 0123456789 ± −"
    width: float = page.evaluate(
        """text => {const span = document.body.appendChild(document.createElement('span'));
        span.textContent = text; span.style.whiteSpace = 'nowrap'; span.style.position = 'absolute';
        const wide = span.getBoundingClientRect().width; span.remove(); return wide}""",
        text,
    )
    return round(width, 1)


@pytest.mark.parametrize(("view", "width", "scheme"), CASES)
def test_it_looks_as_it_did(report, opened, view, width, scheme):
    name, _, address = VIEWS[view].partition("#")
    how = {"color_scheme": "light" if scheme == "print" else scheme}
    page = opened(report / name, f"#{address}" * bool(address), width, **how)
    if view == "page":
        awake(page, "plane")
        page.evaluate("scrollTo(0, 0)")
    path, wide = SCREENS / f"{view}-{width}-{scheme}.png", letters(page)
    shown = screen(page, view, scheme)
    if WRITES:
        Image.fromarray(shown.astype(np.uint8)).save(path, optimize=True)
        LETTERS.write_text(json.dumps(wide) + "\n")
        return
    if wide != json.loads(LETTERS.read_text()):
        pytest.skip("the browser has other letters than the references")
    wanted = np.asarray(Image.open(path), dtype=int)
    assert shown.shape == wanted.shape
    off = (abs(shown - wanted) > SHADE).mean()
    assert off <= MOST, f"{off:.1%} of {path.name} differ: look at it, then SCREENS=write"
