"""Hashes of files: what was written is what is read, also while a writer comes or is killed."""

import json
import math
import subprocess

import pytest

from harness.base import sums
from harness.base.errors import UserError
from harness.base.files import locked, read_json, refuse_links, write_json, write_sealed, write_text
from harness.base.sums import check_sum, check_sums, sum_folder, write_summed


@pytest.mark.parametrize("value", [{}, {"a": 1.5, "b": ["ä", None]}])
def test_a_sealed_file_is_read_without_its_seal(value, tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_text()).keys() == {"file_sha256", *value}
    path.write_text(json.dumps(json.loads(path.read_text())))  # written again by another program
    with pytest.raises(UserError, match="is not what was written"):
        read_json(path)


def test_every_flipped_bit_of_a_sealed_file_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "a.json"
    value = {"name": "x", "values": [0.25, 17], "none": None}
    write_sealed(path, value)
    whole = path.read_bytes()
    noticed = 0
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = read_json(path)
        except UserError:
            noticed += 1
        else:  # The key of the seal is another one.
            assert value.items() <= found.items()
    assert noticed > 0.9 * 8 * len(whole)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": [math.nan, (math.inf, 1.0)], "b": {"c": -math.inf}})
    assert read_json(tmp_path / "a.json") == {"a": [None, [None, 1.0]], "b": {"c": None}}


def test_sums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "left").mkdir()
    for name in ("a", "in/b c", "left/out"):
        (tmp_path / name).write_text(name)
    sum_folder(tmp_path, without=["left"])
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
    assert "left" not in (tmp_path / "SHA256SUMS").read_text()
    for name in ("a", "in/b c"):
        check_sum(tmp_path / name, "mend", tmp_path)
    check_sums(tmp_path, "in", "mend")
    (tmp_path / "in/new").touch()
    with pytest.raises(UserError, match="SHA256SUMS: holds no hash of in/new; mend"):
        check_sums(tmp_path, "in", "mend")
    (tmp_path / "in/new").unlink()
    (tmp_path / "in/b c").unlink()
    with pytest.raises(UserError, match="in/b c: is not there; mend"):
        check_sums(tmp_path, "in", "mend")
    (tmp_path / "a").write_text("b")
    with pytest.raises(UserError, match=r"a: is not what was written .*; mend"):
        check_sum(tmp_path / "a", "mend")


def test_a_folder_without_sums_is_not_checked(tmp_path):
    check_sum(tmp_path / "absent", "mend")
    check_sums(tmp_path, "absent", "mend")


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_writer_killed_anywhere_leaves_a_file_that_is_right(last, tmp_path, monkeypatch):
    """Before, between and after the three renames of a change, and then once more."""
    path = tmp_path / "records.jsonl"
    write_summed(path, "old\n")
    real, calls = sums.write_file, 0

    def killed(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls >= last:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    for text in ("new\n", "newer\n"):
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(sums, "write_file", killed)
            with pytest.raises(KeyboardInterrupt):
                write_summed(path, text)
        check_sum(path, "mend")
    write_summed(path, "newest\n")
    check_sum(path, "mend")
    assert (tmp_path / "SHA256SUMS").read_text().count("\n") == 1


def test_nothing_is_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.json").symlink_to(victim)
    write_text(folder / "a.json", "mine")  # the link goes, not what it leads to
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(UserError, match=r"\.lock: is a symbolic link"), locked(folder):
        pass
    with pytest.raises(UserError, match=r"folder/\.lock: is a symbolic link"):
        refuse_links(folder)
    (tmp_path / "elsewhere").symlink_to(folder)
    (folder / ".lock").unlink()
    refuse_links(tmp_path / "elsewhere")
    assert victim.read_text() == "precious"
