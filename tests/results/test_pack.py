"""A packed results folder gives the same report, in less room."""

import gzip
import json

import pytest

from harness.__main__ import main
from harness.base.errors import UserError
from harness.report.build import write_report
from harness.results.folders import open_results
from harness.results.pack import pack
from harness.results.writer import ResultsWriter
from tests.fabricate import fabricate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("results") / "one", seeds=(0, 1), n=20)


def tables(out):
    return {path.name: path.read_text() for path in (out / "tables").iterdir()}


def test_a_packed_folder_gives_the_same_report(folder, tmp_path, capsys):
    stage = folder / "runs" / "sft-seed0" / "stage-3"
    (stage / "weights").mkdir()
    (stage / "weights" / "model.safetensors").write_bytes(b"0" * 1000)
    (folder / "log.txt").write_text("what was said")
    for kept in ("judge.json", "runs/sft-seed0/stage-3/judged.jsonl"):
        (folder / kept).write_text("{}")
    packed = tmp_path / "packed"
    main(["pack", str(folder), str(packed)])
    assert f"packed: {packed}, with 0." in capsys.readouterr().out
    write_report([folder], tmp_path / "a")
    write_report([packed], tmp_path / "b")
    assert {**tables(tmp_path / "a"), "records.csv": ""} == {
        name: text.replace("packed", "one") if name != "records.csv" else ""
        for name, text in tables(tmp_path / "b").items()
    }
    assert (packed / "judge.json").exists() and list(packed.rglob("stage-3/judged.jsonl"))
    assert not (packed / "log.txt").exists() and not list(packed.rglob("weights"))
    assert (packed / "tables" / "main.csv").read_text() == tables(tmp_path / "a")["main.csv"]
    assert list((packed / "figures").glob("*.png"))
    assert not list(packed.glob("evaluations/*.json"))
    own, other = open_results(folder), open_results(packed)
    assert own.evaluation_keys() == other.evaluation_keys()
    for key in own.evaluation_keys():
        assert own.evaluation(key) == other.evaluation(key) != {}
    page = (tmp_path / "b" / "index.html").read_text()
    assert "/evaluations/" in page and ".json.gz" in page


def test_a_packed_evaluation_is_measured_anew_in_its_place(folder, tmp_path):
    packed = tmp_path / "packed"
    assert pack(folder, packed) < sum(f.stat().st_size for f in folder.glob("evaluations/*")) / 2
    writer = ResultsWriter(packed)
    key = sorted(open_results(packed).evaluation_keys())[0]
    evaluation = writer.evaluation(key)
    assert evaluation is not None and writer.evaluation_path(key).suffix == ".gz"
    writer.save_evaluation(key, {**evaluation, "n": 7})
    assert [path.name for path in packed.glob(f"evaluations/{key}*")] == [f"{key}.json"]
    assert writer.evaluation(key)["n"] == 7


def test_a_damaged_packed_evaluation_is_one_line(folder, tmp_path):
    packed = tmp_path / "packed"
    pack(folder, packed)
    file = sorted(packed.glob("evaluations/*.gz"))[0]
    whole = file.read_bytes()
    text = json.dumps({"items": 3}).encode()
    for data in (whole[:-20], b"no gzip", whole[:30] + b"0" * 40 + whole[70:], gzip.compress(text)):
        file.write_bytes(data)
        with pytest.raises(UserError, match=file.name):
            open_results(packed).evaluation(file.name.removesuffix(".json.gz"))


def test_what_is_there_stays_and_what_is_none_is_refused(folder, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there: is there already; give another folder"):
        pack(folder, tmp_path / "there")
    with pytest.raises(UserError, match="is not a results folder"):
        pack(tmp_path / "there", tmp_path / "new")
    with pytest.raises(UserError, match="lies among the files of the runs"):
        pack(folder, folder / "runs" / "packed")
    assert not (tmp_path / "new").exists() and not (folder / "runs" / "packed").exists()
