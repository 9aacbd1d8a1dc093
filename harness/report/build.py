"""Tables, pictures and a page from results folders, from their files alone: neither torch nor
transformers is needed.
"""

import os
import re
import shutil
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import locked
from harness.report import page, tables
from harness.report.data import ReportData
from harness.report.figures import Drawer


def write_report(folders, out=None):
    """Writes the report of one or several results folders into ``out`` (``report`` in the first one
    by default).

    Tables go to ``tables/`` (CSV, Markdown, LaTeX), pictures to ``figures/`` (PNG, SVG), the page
    is ``index.html``. Returns (the main table as terminal text, path of the page). Raises UserError
    for a folder that is no results folder of this version, for records that must not be compared,
    and for an ``out`` that cannot be written. All is made in a temporary folder beside ``out`` and
    moved at the end, so that what cannot be reported leaves nothing half-written.
    """
    folders = [Path(f) for f in ([folders] if isinstance(folders, str | Path) else folders)]
    results = ReportData(list({f.resolve(): f for f in folders}.values()))
    out = Path(out) if out else results.folders[0] / "report"
    with made_beside(out) as partial:
        table = _write(results, partial, out)
    return _terminal(results, table), out / "index.html"


@contextmanager
def made_beside(out, stale=None):
    """A new folder beside ``out`` whose files, once all are made, go to their places in ``out``,
    over those of an earlier report.

    stale: pattern of the names of files that an earlier report may have and this one may not: these
    go. What else lies in ``out`` stays. One process at a time makes a report for ``out``; runs that
    write into the same results folder do not wait for it. Raises UserError if ``out`` cannot be a
    folder.
    """
    place = out.resolve()
    # a fixed name, so that what a killed report left is found and replaced
    partial = place.parent / f".{place.name}.partial"
    new = not place.exists()
    with ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            if new:  # At the end, once the lock file is gone.
                stack.callback(_remove_if_empty, place)
            stack.enter_context(locked(place, remove=True))
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(
                out,
                f"cannot be a folder for the report ({error.strerror})",
                "give another with --out",
            ) from None
        try:
            yield partial
            _move(partial, out, stale)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _remove_if_empty(folder):
    with suppress(OSError):
        folder.rmdir()


def _write(results, partial, out):
    """Makes all files in ``partial``, with links as from ``out``; returns the main table."""
    (partial / "tables").mkdir()
    made = [tables.main_table(results), tables.gain_table(results)]
    made += [tables.retention_table(results)] * bool(results.retention)
    made += [tables.cost_table(results), tables.every_metric(results)]
    for table in made:
        for end, text in (("csv", table.csv()), ("md", table.markdown()), ("tex", table.latex())):
            (partial / "tables" / f"{table.name}.{end}").write_text(text, encoding="utf-8")
    tables.records_used(results).to_csv(partial / "tables" / "records.csv", index=False)
    drawer = Drawer(results, partial / "figures")
    pictures = drawer.all()
    drawer.curves.drop(columns="std", errors="ignore").to_csv(
        partial / "tables" / "curves.csv", index=False
    )
    to_folder = [
        os.path.relpath(folder.resolve(), out.resolve()).replace(os.sep, "/")
        for folder in results.folders
    ]
    (partial / "index.html").write_text(
        page.render(results, made, pictures, drawer.look, to_folder), encoding="utf-8"
    )
    return made[0]


def _move(partial, out, stale):
    files = sorted(partial.rglob("*"))
    for file in files:
        place = out / file.relative_to(partial)
        if file.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    made = {out / file.relative_to(partial) for file in files}
    for folder in {file.parent for file in made} - {out} if stale else ():
        for file in folder.iterdir():
            if file not in made and re.fullmatch(stale, file.name):
                file.unlink()


def _terminal(results, table):
    text, left_out = table.terminal()
    lines = [
        f"{' and '.join(results.names)}: per cent, split {results.split}",
        "",
        text,
        "",
        tables.interval_note(table.rows),
    ]
    if left_out:
        lines.append(f"Left out here, in the report: {left_out}.")
    if results.missing:
        lines += (
            ["Missing:"]
            + [f"  {line}" for line in results.missing[:8]]
            + [f"  ... and {len(results.missing) - 8} more"] * (len(results.missing) > 8)
        )
    return "\n".join(lines)
