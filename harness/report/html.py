"""Jinja2 for the pages: templates in files, every value escaped."""

from pathlib import Path

import jinja2

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
    made.globals |= {"metric_name": metric_name, "measure_name": measure_name}
    return made
