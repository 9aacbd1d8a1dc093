"""The page of 50 skills, 10 methods and 5 seeds: how large it is, and how soon it is there.

python -m tests.report.large_page [--skills N] [--methods N] [--seeds N] [--answers] [--keep DIR]

Records are made up, without their items unless --answers asks for them, which makes the viewer as
large as it gets. The browser is the system's Chromium.
"""

import argparse
import tempfile
import time
from pathlib import Path

from harness.report.build import write_report
from tests.fabricate import RETENTION, fabricate

LAW = (1.0, 0.97, 0.001)


def opening_seconds(page: Path, width: int) -> tuple[float, float]:
    """(until it is drawn, until a picture that one can point at is there), in seconds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": width, "height": 900})
        start = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="load")
        tab.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        drawn = time.perf_counter() - start
        tab.locator("#plane").scroll_into_view_if_needed()
        tab.wait_for_selector("#plane .u-over")
        alive = time.perf_counter() - start
        browser.close()
    return drawn, alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("skills", 50), ("methods", 10), ("seeds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--answers", action="store_true", help="with 40 answers of every evaluation"
    )
    parser.add_argument("--keep", type=Path, help="a new folder for the results and the report")
    options = parser.parse_args()
    skills = {f"skill_{i}": (0.1 + 0.005 * i, 0.5) for i in range(options.skills)}
    methods = {f"method_{i}": LAW for i in range(options.methods)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "large"
        start = time.perf_counter()
        fabricate(
            folder, skills, methods, range(options.seeds), n=40, inside=0, items=options.answers,
            retention=RETENTION,
        )  # fmt: skip
        print(f"made up in {time.perf_counter() - start:.0f} s", flush=True)
        start = time.perf_counter()
        _, page = write_report(folder)
        print(f"report in {time.perf_counter() - start:.0f} s", flush=True)
        pictures = sum(path.stat().st_size for path in (page.parent / "figures").rglob("*.svg"))
        viewer = sum(path.stat().st_size for path in (page.parent / "viewer").rglob("*"))
        print(
            f"page {page.stat().st_size / 1e6:.2f} MB, all SVG {pictures / 1e6:.2f} MB, "
            f"viewer {viewer / 1e6:.2f} MB"
        )
        for width in (1280, 390):
            drawn, alive = opening_seconds(page, width)
            print(f"{width} pixels: drawn in {drawn:.2f} s, first picture alive {alive:.2f} s")


if __name__ == "__main__":
    main()
