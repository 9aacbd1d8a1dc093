"""Writes a report: tables, pictures and a page, from the files of results folders alone.

Neither torch nor transformers is needed.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import locked
from harness.base.places import check_export
from harness.report import page, tables
from harness.report.comparisons import comparison_table, holm_table
from harness.report.continuous import continuous_table
from harness.report.cost_table import cost_table
from harness.report.data import ReportData
from harness.report.every_metric import every_metric
from harness.report.exports import link, write_csv
from harness.report.frontier import frontier_table, frontiers
from harness.report.pictures import draw_pictures, source_of
from harness.report.power import power_note
from harness.report.summary import summary_table
from harness.report.table import Table
from harness.report.training_table import training_table
from harness.report.viewer import STALE, write_viewer

Folder = str | Path
MOST_MISSING = 8  # lines in the terminal
ANY_TEXT = "replace"  # half of a pair in a model's answer is no character


def write_report(
    folders: Folder | Iterable[Folder],
    out: Folder | None = None,
    show: Callable[[str], object] = lambda what: None,
    further: Callable[[ReportData], list[Table]] = lambda results: [],
) -> tuple[str, Path]:
    """Writes the report of one or several results folders into ``out``.

    By default ``out`` is the folder ``report`` in the first of them. Tables go to ``tables/`` (CSV,
    Markdown, LaTeX), pictures to ``figures/`` (PNG, SVG), the answers behind the numbers to
    ``viewer/``; the page is ``index.html``. All files are made in a temporary folder beside ``out``
    and moved at the end, so that a report that fails leaves nothing half-written. Returns (the main
    table as terminal text, path of the page). show: is told what is being made; further: gives
    tables of a client of the report's. Raises UserError for a folder that is no results folder of a
    known version, for damaged files, for records that must not be compared, and for an ``out`` that
    cannot be written.
    """
    if isinstance(folders, str | Path):
        folders = [folders]
    by_place = {Path(folder).resolve(): Path(folder) for folder in folders}
    show("reads records")
    results = ReportData(list(by_place.values()))
    if not out and (results.folders[0] / "report").is_symlink():
        raise _link(results.folders[0] / "report")
    out = Path(out) if out else results.folders[0] / "report"
    with made_beside(out, STALE) as partial:
        main = _write(results, further(results), partial, out, show)
    return _terminal(results, main), out / "index.html"


@contextmanager
def made_beside(out: Path, stale: str | None = None) -> Iterator[Path]:
    """A new folder beside ``out``; at the end its files go to their places in ``out``.

    They replace those of an earlier report; what else lies in ``out`` stays. stale: a pattern of
    file names that an earlier report may have and this one may not: such files are deleted from the
    folders that this report writes into. One process at a time makes a report for ``out``; runs
    that write into the same results folder do not wait for it. Raises UserError if ``out`` cannot
    be a folder.
    """
    check_export(out)
    place = out.resolve()
    # A fixed name, so that the next report replaces what a killed one left.
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


def _link(path: Path) -> UserError:
    return UserError(
        path,
        "is a symbolic link, and no report is written through one",
        "remove it, or give another folder with --out",
    )


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _write(
    results: ReportData,
    further: list[Table],
    partial: Path,
    out: Path,
    show: Callable[[str], object],
) -> Table:
    """Makes all files in ``partial``, with links as from ``out``; returns the main table."""
    show("computes tables")
    all_tables = [*_all_tables(results), *further]
    (partial / "tables").mkdir()
    for table in all_tables:
        texts = {"csv": table.csv(), "md": table.markdown(), "tex": table.latex()}
        for ending, text in texts.items():
            (partial / "tables" / f"{table.name}.{ending}").write_text(text, "utf-8", ANY_TEXT)
    write_csv(tables.records_used(results), partial / "tables" / "records.csv")
    source = source_of(results)
    write_csv(source.curves, partial / "tables" / "curves.csv")
    show("draws pictures")
    pictures = draw_pictures(source, partial / "figures")
    to_folder = [
        link(os.path.relpath(folder.resolve(), out.resolve()).replace(os.sep, "/"))
        for folder in results.folders
    ]
    text = page.render(results, all_tables, pictures, source.looks, to_folder)
    (partial / "index.html").write_text(text, "utf-8", ANY_TEXT)
    show("writes the answers for the viewer")
    write_viewer(results, partial / "viewer")
    return all_tables[1]


def _all_tables(results: ReportData) -> list[Table]:
    """All tables in the page's order: the summary, the main one, then the others."""
    main, gains = tables.main_table(results), tables.gain_table(results)
    cost = cost_table(results)
    all_tables = [summary_table(main, gains, cost), main]
    if len(results.series) > 1:
        all_tables.append(comparison_table(results))
    if len(results.series) > 2:
        all_tables.append(holm_table(all_tables[-1]))
    all_tables += [frontier_table(shown) for shown in frontiers(results)]
    all_tables.append(gains)
    if results.retention:
        all_tables.append(tables.retention_table(results))
    if results.continuous:
        all_tables.append(continuous_table(results))
    return [*all_tables, cost, training_table(results), every_metric(results)]


def _move(partial: Path, out: Path, stale: str | None) -> None:
    """Moves every file to its place in ``out`` and deletes the ``stale`` ones beside them."""
    files = sorted(partial.rglob("*"))
    for file in files:  # before any takes its place
        place = out / file.relative_to(partial)
        if file.is_dir() and place.is_symlink():
            raise _link(place)
        if place.exists() and place.is_dir() != file.is_dir():
            problem = f"is {'a file' if file.is_dir() else 'a folder'}, and the report has another"
            raise UserError(place, problem, "move it away, or give another folder with --out")
    for file in files:
        place = out / file.relative_to(partial)
        if file.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    if stale is None:
        return
    new = {out / file.relative_to(partial) for file in files}
    for folder in {file.parent for file in new} - {out}:
        for file in folder.iterdir():
            if file not in new and re.fullmatch(stale, file.name):
                file.unlink()


def _terminal(results: ReportData, main: Table) -> str:
    """The main table for a terminal, and what is missing."""
    text, omission = main.terminal()
    power = power_note(results, main.columns, main.rows)
    lines = [
        f"{' and '.join(results.names)}: per cent, split {results.split}",
        "",
        text,
        "",
        f"{tables.interval_note(main.rows)} {power}".rstrip(),
    ]
    if omission:
        lines.append(f"Left out here, in the report: {omission}.")
    if results.overlaps:
        lines.append("Questions that were taught and tested:")
        lines += [f"  {line}" for line in results.overlaps[:MOST_MISSING]]
    if len(results.overlaps) > MOST_MISSING:
        lines.append(f"  ... and {len(results.overlaps) - MOST_MISSING} more")
    if results.missing:
        lines.append("Missing:")
        lines += [f"  {line}" for line in results.missing[:MOST_MISSING]]
    if len(results.missing) > MOST_MISSING:
        lines.append(f"  ... and {len(results.missing) - MOST_MISSING} more")
    text = "\n".join(lines)
    # A name in a folder of somebody else may hold what moves the cursor.
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
