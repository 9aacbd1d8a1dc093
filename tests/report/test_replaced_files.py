"""What a new report does to the files of an earlier one in the same folder."""

import pytest

from harness.report.build import made_beside


def test_stale_files_go_from_the_folders_that_the_report_writes_into(tmp_path):
    out = tmp_path / "report"
    for name in ("data/measured_1.csv", "data/mine.csv", "other/measured_2.csv", "measured_3.csv"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    with made_beside(out, stale=r"measured_\d\.csv") as partial:
        (partial / "data").mkdir()
        (partial / "data" / "measured_4.csv").write_text("new")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {
        "data/measured_4.csv",
        "data/mine.csv",
        "other/measured_2.csv",
        "measured_3.csv",
    }


def test_a_report_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), made_beside(tmp_path / "report"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
