"""Jinja2 for the pages: templates in files, every value escaped, style and script in the page."""

from pathlib import Path

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")


def environment(*folders: Path) -> jinja2.Environment:
    """An environment that finds templates in ``folders``, then in harness/report/templates.

    Every value is escaped; a name that a template misspells is an error. Templates know ``style``
    and ``script``, which layout.html writes into the page: a page loads nothing from elsewhere.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["style"] = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    templates.globals["script"] = Markup((TEMPLATES / "script.js").read_text(encoding="utf-8"))
    return templates
