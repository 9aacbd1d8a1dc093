"""Jinja2 for the pages: templates in files, every value escaped."""

import re
from pathlib import Path

import jinja2
from markupsafe import Markup

from harness.report.names import measure_name, metric_name

TEMPLATES = Path(__file__).with_name("templates")


def environment(*folders: Path) -> jinja2.Environment:
    """An environment that finds templates in ``folders``, then in harness/report/templates.

    Every value is escaped, so that what a model wrote is never markup. A name that a template
    misspells is an error. Templates know the names for people (harness.report.names). layout.html
    is the frame of a page: it writes style.css and script.js into it, since a page loads nothing
    from elsewhere.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "metric_name": metric_name,
        "measure_name": measure_name,
        "sentences": lead_and_rest,
        "uplot": _uplot,
    }
    return made


def lead_and_rest(text: str) -> tuple[str, str]:
    """The first sentence of a text, and the others, which may begin with a method's name."""
    lead, *rest = re.split(r"(?<=[.!?])(?<!et al\.)\s+", text.strip(), maxsplit=1)
    return lead, "".join(rest)


def _uplot(name: str) -> Markup:
    """A file of uPlot, which draws the pictures that one can point at, as it is."""
    return Markup((TEMPLATES / "uplot" / name).read_text(encoding="utf-8"))
