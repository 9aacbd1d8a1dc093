"""Which files of hashes a results folder should have and has no longer."""

from pathlib import Path

from harness.base.sums import SUMS, has_sums

SUMMED_FROM = 2  # version of results folders whose files have hashes
MOST_NAMED = 3


def gone_sums(folder: Path, version: int) -> list[str]:
    """Paths of each SHA256SUMS that is gone, from ``folder``, of a results folder of a version.

    A folder has one beside records.jsonl, in each committed stage, and beside a checkpoint.
    """
    if version < SUMMED_FROM:
        return []
    files = [folder / "records.jsonl", *sorted(folder.glob("runs/*/stage-*[0-9]/stage.json"))]
    files += sorted(folder.glob("runs/*/stage-*.partial/checkpoint/state.pt"))
    places = [file.parent for file in files if file.is_file() and not has_sums(file.parent)]
    return [(place.relative_to(folder) / SUMS).as_posix() for place in places]


def gone_sums_line(folder: Path, version: int) -> str | None:
    """One line on ``gone_sums``, None where nothing is gone."""
    gone = gone_sums(folder, version)
    if not gone:
        return None
    named = ", ".join(gone[:MOST_NAMED])
    more = f" and {len(gone) - MOST_NAMED} more" if len(gone) > MOST_NAMED else ""
    are = "is" if len(gone) == 1 else "are"
    return (
        f"{named}{more} {are} gone, which results of version {version} have: damage to the files "
        "beside would not be noticed"
    )
