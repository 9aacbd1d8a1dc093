"""Questions of retention tasks: kept once, within bounds, and refused where they are damaged."""

import gzip
import json

import pytest

from harness.base.errors import UserError
from harness.results import questions
from harness.results.folders import ResultsFolder
from harness.results.questions import read_questions, save_questions

ASKED = [
    {"id": "0", "prompt": "Water is", "choices": [" wet", " dry"], "reference": " wet"},
    {"id": "1", "prompt": "half of a pair: \ud83d, a separator: \u2028"},
]


def long(number):
    """Questions of letters that do not compress."""
    letters = [f"{i * 7919 % 99991:05d}" for i in range(1000 * number)]
    return [
        {"id": str(i), "prompt": "".join(letters[1000 * i : 1000 * (i + 1)])} for i in range(number)
    ]


def test_what_was_asked_is_read_as_it_was_kept(tmp_path):
    save_questions(tmp_path, "abc", ASKED)
    assert read_questions(tmp_path, "abc") == {asked["id"]: asked for asked in ASKED}
    assert ResultsFolder(tmp_path, {}).questions("abc")["0"] == ASKED[0]
    for other in ("none", None, "../abc", 3):
        assert read_questions(tmp_path, other) == {}


def test_the_first_copy_stays_and_two_runs_write_the_same_bytes(tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two"):
        save_questions(folder, "abc", ASKED)
    file = tmp_path / "one/questions/abc.json.gz"
    data = file.read_bytes()
    assert data == (tmp_path / "two/questions/abc.json.gz").read_bytes()
    save_questions(tmp_path / "one", "abc", ASKED[:1])
    assert file.read_bytes() == data


def test_a_large_file_is_cut_to_its_bound_and_keeps_the_end_of_prompts(tmp_path, monkeypatch):
    asked = long(3)
    asked[0] |= {"choices": ["c" * 5000, "d"], "reference": "short"}
    monkeypatch.setattr(questions, "MOST_OF_A_FILE", 1200)
    save_questions(tmp_path, "abc", asked)
    assert (tmp_path / "questions/abc.json.gz").stat().st_size <= 1200
    kept = read_questions(tmp_path, "abc")
    assert kept["1"]["prompt"] == f"(4,700 letters left out) … {asked[1]['prompt'][-300:]}"
    assert kept["0"]["choices"] == ["c" * 300 + " … (4,700 letters left out)", "d"]
    assert kept["0"]["reference"] == "short"


def test_what_has_no_room_is_left_out_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "MOST_OF_A_FILE", 30)
    save_questions(tmp_path, "abc", ASKED)
    assert read_questions(tmp_path, "abc") == {}
    monkeypatch.undo()
    save_questions(tmp_path, "abc", ASKED)
    size = (tmp_path / "questions/abc.json.gz").stat().st_size
    monkeypatch.setattr(questions, "MOST_OF_ALL", 2 * size - 1)
    save_questions(tmp_path, "def", ASKED)
    assert not (tmp_path / "questions/def.json.gz").exists()
    monkeypatch.setattr(questions, "MOST_OF_ALL", 2 * size)
    save_questions(tmp_path, "def", ASKED)
    assert read_questions(tmp_path, "def")


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[]", "is damaged or too large"),
        (packed(b"[{"), "is damaged or too large"),
        (packed(json.dumps(ASKED).encode())[:-9], "is damaged or too large"),
        (packed(b" " * 3000), "is damaged or too large"),
        (packed(b"{}"), "is not a list"),
        (packed(b'[{"id": 3, "prompt": ""}]'), "`[0].id` is 3, not a text"),
        (packed(b'[{"id": "3"}]'), "`[0].prompt` is null, not a text"),
    ],
    ids=["no gzip", "no JSON", "cut", "long", "no list", "id", "prompt"],
)
def test_a_file_of_another_form_is_named(tmp_path, monkeypatch, data, said):
    monkeypatch.setattr(questions, "MOST_UNPACKED", 1000)
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions/abc.json.gz").write_bytes(data)
    with pytest.raises(UserError) as refused:
        read_questions(tmp_path, "abc")
    assert "abc.json.gz" in str(refused.value) and said in str(refused.value)
