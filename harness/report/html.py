"""Jinja2 for the pages: templates in files, everything escaped, style and script written into the page."""

from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).with_name("templates")


def environment(*folders: Path) -> jinja2.Environment:
    """An environment that finds templates in ``folders``, then in harness/report/templates.

    Every value is escaped; a name that a template misspells is an error.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
