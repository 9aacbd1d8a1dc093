"""Exports what a method has made: a model folder with its card, and its numbers for other tools.

    model files     as the run has kept them, to be loaded by transformers
    README.md       the model's card
    leaderboard.json   the method's row
    lm_eval/MODEL/results_DATE.json   the run's last model in lm-eval's form

A folder is pushed to the hub only on request.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.base.errors import UserError, did_you_mean, one_line
from harness.base.files import refuse_links
from harness.base.sums import SUMS, check_sums
from harness.report.build import made_beside
from harness.report.data import ReportData
from harness.report.leaderboard import leaderboard_row, lm_eval_file, lm_eval_results
from harness.report.measurements import RunId
from harness.report.model_card import model_card
from harness.results.folders import Json, ResultsFolder, open_results
from harness.results.formats import RUN, read_object

WEIGHTS = "weights"  # of a stage's folder
DAMAGED = "put back a whole copy, or run the stage again"
LOG_IN = "log in by `hf auth login`, name OWNER/NAME, and look at the network"


def export(
    folder: Path,
    label: str,
    out: Path | None = None,
    seed: int | None = None,
    sequence: str | None = None,
    licence: str | None = None,
    name: str | None = None,
    numbers_alone: bool = False,
    show: Callable[[str], object] = lambda what: None,
) -> Path:
    """Write the export of a method of a results folder; returns its place, by default
    FOLDER/export/LABEL.

    seed, sequence: of the run whose weights are taken, the first ones if left out; licence: as in
    ``model_card``; name: of the model on a hub; numbers_alone: leave the model and its card out;
    show: is told what is being made.
    Raises UserError for what is not there, and for weights that are damaged.
    """
    show("reads records")
    results = ReportData([folder])
    if label not in results.series:
        raise UserError(f"{folder}: {label}", "is no method", did_you_mean(label, results.series))
    run = _run(results, label, seed, sequence)
    kept = _run_folder(open_results(folder), results, label, run)
    made = read_object(kept / "run.json", RUN)
    stage = kept / f"stage-{len(results.series[label].order)}"
    out = out or folder / "export" / (re.sub(r"[^\w.-]", "_", label).strip(".") or "_")
    show("compares the model with its hashes")
    files = [] if numbers_alone else _weights(stage)
    path = name or out.resolve().name
    with made_beside(out) as partial:
        show("copies the model")
        for file in files:
            target = partial / file.relative_to(stage / WEIGHTS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        if files:
            card = model_card(results, label, run, made, licence).replace('"PATH"', f'"{path}"')
            (partial / "README.md").write_text(card, encoding="utf-8", errors="replace")
        show("writes the numbers")
        _write(partial / "leaderboard.json", leaderboard_row(results, label))
        place = partial / "lm_eval" / lm_eval_file(made, path)
        place.parent.mkdir(parents=True)
        _write(place, lm_eval_results(results, label, run, made, path))
    return out


def _write(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8", "replace")


def _run(results: ReportData, label: str, seed: int | None, sequence: str | None) -> RunId:
    """The run whose model is taken."""
    runs = results.runs[label]
    for run in runs:
        if seed in (None, run.seed) and sequence in (None, run.sequence):
            return run
    asked = " ".join(
        f"{key} {each}"
        for key, each in (("seed", seed), ("sequence", sequence))
        if each is not None
    )
    there = ", ".join(run.text for run in runs) or "no run yet"
    raise UserError(f"{label}: {asked or 'runs'}", "there is no such run", f"it has {there}")


def _run_folder(folder: ResultsFolder, results: ReportData, label: str, run: RunId) -> Path:
    there = {place for _, place in results.series[label].members}
    for each in folder.runs():
        if each.label in there and (each.seed, each.sequence) == (run.seed, run.sequence):
            return each.path
    raise UserError(folder.path, f"has no folder of {label}, {run.text}", DAMAGED)


def _weights(stage: Path) -> list[Path]:
    """The files of the model that a run's last stage has kept, whole. Raises UserError."""
    weights = stage / WEIGHTS
    if not weights.is_dir():
        raise UserError(
            weights,
            "is not there: the run is not over, or keeps no weights",
            "run it to its end with `checkpoints: {keep: last}`, or export --numbers alone",
        )
    refuse_links(weights)
    check_sums(stage, WEIGHTS, DAMAGED)
    return sorted(path for path in weights.rglob("*") if path.is_file() and path.name != SUMS)


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Push an exported folder to a model repository of the hub; returns its address.

    It is made where it is not there. Raises UserError for what the hub or the network refuses.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            folder_path=folder, repo_id=repository, commit_message=f"Export of {folder.name}"
        )
    except Exception as error:  # of the hub, of the network, of a name that is none
        said = one_line(str(error))[:200]
        raise UserError(
            f"--push {repository}", f"{type(error).__name__}: {said}", LOG_IN
        ) from error
    return str(address)
