"""Results folders of others: whatever their files hold, a report or one line, and no markup."""

import gzip
import json
import os

import pytest

import harness.base.files as files
from harness.base.errors import UserError
from harness.base.files import read_json, read_jsonl
from harness.report.build import write_report
from harness.report.publish import export
from harness.results.pack import pack
from tests.fabricate import fabricate
from tests.report.test_publish import fabricated

TWO = {"sft": (0.6, 0.1, 0.02), "sdft": (0.5, 0.05, 0.01)}
HUGE = "1" + 400 * "0"


@pytest.fixture
def folder(tmp_path):
    return fabricate(tmp_path / "foreign", methods=TWO, n=20, inside=0)


def unsealed(path, change):
    """The file as another program would have written it: without a seal."""
    value = json.loads(path.read_text())
    value.pop("file_sha256", None)
    change(value)
    path.write_text(json.dumps(value))


def changed_records(folder, change):
    for path in (folder / "records.jsonl", *folder.glob("runs/*/stage-*/records.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            change(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for sums in folder.rglob("SHA256SUMS"):
        sums.unlink()


@pytest.mark.parametrize("value", [None, [1], "x"])
def test_a_skill_without_any_number_is_said_and_the_others_are_drawn(folder, tmp_path, value):
    name = json.loads((folder / "results.json").read_text())["skills"][0]["name"]
    changed_records(folder, lambda row: row.update(value=value) if row["name"] == name else None)
    write_report([folder], tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "curves.png").is_file()
    main = (tmp_path / "out" / "tables" / "main.md").read_text()
    assert "| sft | 0/1 | – | – | – |" in main and "| 55.0 ±20.0 |" in main


def test_what_may_be_left_out_may_be_null(folder, tmp_path):
    unsealed(folder / "results.json", lambda head: head.update(evaluate=None))
    write_report([folder], tmp_path / "out")
    unsealed(folder / "results.json", lambda head: head.pop("evaluate"))
    write_report([folder], tmp_path / "out")
    unsealed(folder / "results.json", lambda head: head.update(skills=[]))
    with pytest.raises(UserError, match=r"results\.json: `skills` is empty"):
        write_report([folder], tmp_path / "out")


def test_a_number_without_a_float_is_none(folder, tmp_path):
    head = folder / "results.json"
    unsealed(head, lambda value: value.update(seeds=[int(HUGE)]))
    with pytest.raises(UserError, match=r"results\.json: holds a whole number of 401 digits"):
        write_report([folder], tmp_path / "out")
    path = tmp_path / "text.json"
    path.write_text(json.dumps({"answer": HUGE, "n": 10**300}))  # a text may hold any digits
    assert read_json(path) == {"answer": HUGE, "n": 10**300}


@pytest.mark.parametrize("key", ["value", "n", "seed", "seconds"])
def test_a_record_with_one_is_unreadable_and_counted(folder, tmp_path, key):
    record = folder / "records.jsonl"
    lines = record.read_text().splitlines()
    lines[5] = json.dumps({**json.loads(lines[5]), key: int(HUGE)})
    record.write_text("\n".join(lines) + "\n")
    for sums in folder.glob("SHA256SUMS"):
        sums.unlink()
    text = write_report([folder], tmp_path / "out")
    assert "1 unreadable line(s) in records.jsonl left out" in text[0]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_plain_file_is_not_read(folder, tmp_path, kind):
    odd = tmp_path / "odd.json"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    else:
        odd = "/dev/zero"
    for read in (read_json, lambda path: list(read_jsonl(path))):
        with pytest.raises(UserError, match="is no plain file"):
            read(odd)


def test_a_compressed_file_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_UNPACKED", 1000)
    path = tmp_path / "answers.json.gz"
    path.write_bytes(gzip.compress(b'{"items": []' + b" " * 900 + b"}"))
    assert read_json(path) == {"items": []}
    path.write_bytes(gzip.compress(b'{"items": []' + b" " * 10**6 + b"}"))
    with pytest.raises(UserError, match=r"answers\.json\.gz: unpacks to more than 1,000 bytes"):
        read_json(path)


def test_pack_goes_through_no_link_and_reads_what_it_packs(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "results.json").write_text("precious")
    (tmp_path / ".out.partial").symlink_to(victim)
    with pytest.raises(UserError, match=r"\.out\.partial: is in the way; remove it"):
        pack(folder, tmp_path / "out")
    assert (victim / "results.json").read_text() == "precious"
    for name, make in (
        ("torn.json", lambda path: path.write_text('{"items": [')),
        ("pipe.json", os.mkfifo),
        ("folder.json", os.mkdir),
    ):
        odd = folder / "evaluations" / name
        make(odd)
        with pytest.raises(UserError, match=name):
            pack(folder, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        odd.rmdir() if name == "folder.json" else odd.unlink()


def test_a_card_shows_foreign_text_as_text(tmp_path):
    folder = fabricated(tmp_path / "one")
    name = json.loads((folder / "results.json").read_text())["skills"][0]["name"]

    def change(head):
        head["skills"][0] |= {"train": "<img src=x>", "prompts": "![](http://evil/x)"}
        head["methods"]["sft"]["method"] = "x` <img src=y> `"
        head["methods"]["sft"]["config"] = {"note": "```\n~~~~~~\n<img src=z>"}

    unsealed(folder / "results.json", change)
    card = (export(folder, "sft", tmp_path / "out") / "README.md").read_text()
    body = card.split("---\n", 2)[2]
    outside = body.split("## Method")[0]
    assert name in outside and r"\<img src=x\>" in outside and r"!\[\](http://evil/x)" in outside
    assert r"x\` \<img src=y\> \`" in outside and "````yaml" in body


def test_an_export_of_odd_records_has_no_count(tmp_path):
    folder = fabricated(tmp_path / "one")
    changed_records(folder, lambda row: row.update(n=None))
    for run in folder.glob("runs/*/run.json"):
        unsealed(run, lambda made: made.update(started="0001-01-01T00:00:00"))
    unsealed(
        folder / "protocols.json",
        lambda all_of: [each.update(num_fewshot=["x"]) for each in all_of.values()],
    )
    out = export(folder, "sft", tmp_path / "out")
    found = json.loads(next(out.rglob("results_*.json")).read_text())
    assert {each["original"] for each in found["n-samples"].values()} == {None}
    assert set(found["n-shot"].values()) == {0}
