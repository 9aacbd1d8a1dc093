"""Results folders and the browser that several test files of the report share."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.report.build import write_report
from tests.fabricate import fabricate

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Reported(NamedTuple):
    """A results folder, and the terminal text and the page of its report."""

    folder: Path
    text: str
    page: Path


@pytest.fixture(scope="session")
def three(tmp_path_factory) -> Path:
    """Three seeds of three methods, of which one takes more steps."""
    folder = tmp_path_factory.mktemp("results") / "three"
    return fabricate(folder, seeds=(0, 1, 2), steps={"sdft": 18}, n=40)


@pytest.fixture(scope="session")
def reported(three) -> Reported:
    text, page = write_report(three)
    return Reported(three, text, page)


@pytest.fixture(scope="session")
def browser():
    reason = "playwright is not installed"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as running:
        if path is None and not os.path.exists(running.chromium.executable_path):
            pytest.skip("no Chromium is installed")
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """A function that opens a file; at the end nothing was asked for elsewhere or went wrong."""
    problems, contexts = [], []

    def open_file(path, address="", width=1280, **how):
        context = browser.new_context(viewport={"width": width, "height": 800}, **how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: m.type in ("error", "warning") and problems.append(m.text))
        page.on("request", lambda r: r.url.startswith("file:") or problems.append(r.url))
        page.on("dialog", lambda dialog: problems.append(dialog.message) or dialog.dismiss())
        page.goto(path.as_uri() + address)
        if path.parent.name == "viewer":
            settle(page)
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not problems


def settle(page):
    """Waits until a page of the viewer shows its address."""
    page.wait_for_function(
        """() => {const main = document.getElementById('main');
        return main && main.dataset.shown === location.hash && main.ariaBusy === 'false'}"""
    )
