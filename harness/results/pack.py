"""A results folder as it is published: all that its report is made of, in little room.

Weights, checkpoints, what methods remember, leases and the log stay behind. Evaluations are
compressed, each one alone, so that a report or a reader still opens what it needs.
"""

import gzip
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import read_json, refuse_links
from harness.base.places import check_export
from harness.results.folders import open_results

MOST = 20_000_000  # bytes of answers that a repository should hold of one folder
KEPT = (
    "results.json",
    "protocols.json",
    "records.jsonl",
    "SHA256SUMS",
    "selection.json",
    "judge.json",
)
OF_RUN = ("run.json", "model.json", "failed.txt")
OF_STAGE = ("SHA256SUMS", "records.jsonl", "stage.json", "training.jsonl", "judged.jsonl")


def check_pack(folder: Path, out: Path) -> None:
    """Raises UserError where ``folder`` is no results folder, or ``out`` cannot be made."""
    open_results(folder)
    refuse_links(folder)
    if out.exists() or out.is_symlink():
        raise UserError(out, "is there already", "give another folder, or remove it")
    check_export(out)


def pack(
    folder: Path,
    out: Path,
    shown: Sequence[Path] = (),
    show: Callable[[str], object] = lambda what: None,
) -> int:
    """Write the folder ``out``, which must not be there yet; returns bytes of its evaluations.

    shown: files of a report, each of which keeps the name of its folder; show: is told what is
    being written.
    Raises UserError as ``check_pack`` does.
    """
    check_pack(folder, out)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.mkdir()  # not through a link that somebody left there
    except FileExistsError:
        raise UserError(partial, "is in the way", "remove it") from None
    (partial / "evaluations").mkdir()
    try:
        show("copies records")
        files = [folder / name for name in KEPT]
        files += [run / name for run in folder.glob("runs/*") for name in OF_RUN]
        files += [stage / name for stage in folder.glob("runs/*/stage-*[0-9]") for name in OF_STAGE]
        files += sorted(folder.glob("questions/*"))
        for file in files:
            if file.is_file():
                place = partial / file.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
        for file in shown:
            (partial / file.parent.name).mkdir(exist_ok=True)
            shutil.copyfile(file, partial / file.parent.name / file.name)
        evaluations = sorted(folder.glob("evaluations/*.json*"))
        for number, file in enumerate(evaluations):
            show(f"compresses evaluations {100 * number // len(evaluations)}%")
            read_json(file, remedy="remove it, or put back a whole copy")  # whole, and a file
            data = file.read_bytes()
            if file.suffix != ".gz":
                data = gzip.compress(data, mtime=0)
            name = file.name.removesuffix(".gz") + ".gz"
            (partial / "evaluations" / name).write_bytes(data)
        size = sum(file.stat().st_size for file in (partial / "evaluations").iterdir())
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return size
