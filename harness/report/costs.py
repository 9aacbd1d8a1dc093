"""What runs cost and how they trained, from the files of their stages."""

from collections import defaultdict

import pandas as pd

from harness.results.folders import Json, RunFolder, read_stages, read_training
from harness.results.pooling import Pool


def provenance(pool: Pool) -> list[Json]:
    """run.json of every run that has one, with the index of its ``folder`` added."""
    return [
        {**run, "folder": index}
        for index, folder in enumerate(pool.folders)
        for run in folder.provenance()
    ]


def stages(pool: Pool) -> pd.DataFrame:
    """One row a finished stage.

    Columns: label, folder, seed, sequence, stage, steps, prompts, tokens,
    peak_memory_gib, where they are on record kept_bytes, learned_tokens, flops, gold_rows,
    ``change_OF_norm`` and ``change_OF_share`` since the start of the stage and the run, and
    ``seconds_PART`` for every part of a stage that took time.
    """
    rows = []
    for label, folder, run in _runs(pool):
        for stage in read_stages(run.path):
            seconds = stage.pop("seconds", None) or {}
            changes = stage.pop("change", None) or {}
            where = {"label": label, "folder": folder, "seed": run.seed, "sequence": run.sequence}
            further = {f"seconds_{part}": s for part, s in seconds.items()}
            for of, change in changes.items():
                further |= {f"change_{of}_{what}": value for what, value in (change or {}).items()}
            rows.append(where | stage | further)
    return pd.DataFrame(rows)


def base_costs(pool: Pool, bases: dict[str, str]) -> dict[str, list[dict[str, float]]]:
    """{base model: seconds per part of measuring it, one dict a folder}.

    bases: {row label: label of a series that starts from it}. A folder measures its base model
    once, in whichever run comes first; that may be one that a grid did not select. So the seconds
    are summed over all its runs.
    """
    costs = {}
    for row, label in bases.items():
        members = [
            member
            for series in pool.series.values()
            if series.model == pool.series[label].model
            for member in series.members
        ]
        folders = dict.fromkeys(index for index, _ in members)
        costs[row] = [_base_seconds(pool, index) for index in folders]
    return costs


def _base_seconds(pool: Pool, index: int) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for stage in pool.folders[index].base_stages():
        for part, seconds in (stage.get("seconds") or {}).items():
            total[part] += seconds or 0
    return total


def training(pool: Pool, most: int) -> pd.DataFrame:
    """One row an optimizer step: label, seed, stage, step and the method's diagnostics.

    At most about ``most`` rows a stage, evenly spaced.
    """
    parts = [
        table.assign(label=label, seed=run.seed, stage=stage)
        for label, _, run in _runs(pool)
        for stage, table in read_training(run.path, most)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _runs(pool: Pool) -> list[tuple[str, int, RunFolder]]:
    """(label of the series, folder index, run) of every run on disk that counts."""
    labels = pool.labels()
    return [
        (labels[index, run.label], index, run)
        for index, folder in enumerate(pool.folders)
        for run in folder.runs()
        if (index, run.label) in labels and pool.sequence in (None, run.sequence)
    ]
