"""Sizes that nothing can hold, and names that are one name, are refused at the order."""

import pytest
import yaml

from harness.base.errors import UserError
from harness.base.files import LONGEST_ROW, read_jsonl, spelling
from harness.runs.reading import read_order
from tests.conftest import read_lines, write_rows
from tests.runs.refusals import at, refused

HUGE = 9_000_000_000_000_000_000


@pytest.mark.parametrize(
    "keys, value, said",
    [
        (["budget", "prompts"], HUGE, "budget: prompts: must be at most 10000000, not 9"),
        (["budget"], {"epochs": 1e300}, "budget: epochs: is too large a number"),
        (["budget"], {"epochs": 1e9}, "methods.grpo: draws 12,000,000,000 prompts of skill vowels"),
        (["methods", "sft", "epochs"], 1e9, "methods.sft: draws 12,000,000,000 prompts of skill"),
        (["skills", 0, "prompts"], HUGE, "skills[0]: prompts: must be at most"),
        (["skills", 0, "max_new_tokens"], HUGE, "skills[0]: max_new_tokens: must be at most"),
        (["rollout"], {"max_new_tokens": HUGE}, "rollout: max_new_tokens: must be at most"),
        (["evaluate", "max_new_tokens"], HUGE, "evaluate: max_new_tokens: must be at most"),
        (["evaluate", "pass_at_k"], {"samples": HUGE}, "pass_at_k: samples: must be at most"),
        (["methods", "grpo", "group_size"], HUGE, "methods.grpo: group_size: must be at most"),
        (["methods", "sdft", "rollouts"], HUGE, "methods.sdft: rollouts: must be at most"),
        (
            ["grid"],
            {"sft": {key: list(range(1, 102)) for key in ("warmup_steps", "batch_size")}},
            "grid.sft: has 10,201 points; give at most 1,000",
        ),
        (["description"], "x" * 2_000_000, " has more than 1,000,000 bytes"),
    ],
)
def test_impossible_sizes(keys, value, said, order_file):
    path = order_file()
    order = yaml.safe_load(path.read_text())
    at(order, keys, value)
    path.write_text(yaml.safe_dump(order))
    assert said in refused(path)


def test_a_second_phase_counts(order_file):
    path = order_file(methods={"sft_reinvoke": {"reinvoke_prompts": HUGE}})
    assert "methods.sft_reinvoke: draws 9,000,000,000,000,000,012 prompts" in refused(path)


def bomb(levels):
    text = "&b0 [x, x, x, x, x, x, x, x, x]"
    for i in range(1, levels):
        text = f"&b{i} [{text}{f', *b{i - 1}' * 8}]"
    return text


@pytest.mark.parametrize(
    "line, said",
    [
        (f"description: {bomb(9)}", "more than 100,000 entries, aliases counted"),
        (f"judge: {{model: {bomb(12)}}}", "more than 100,000 entries, aliases counted"),
        (f"description: {bomb(3)}", "description: must be a text, not a list"),
        ("description: &a [*a]", "an alias that contains itself"),
        ("judge: &a {model: *a}", "an alias that contains itself"),
    ],
)
def test_aliases(line, said, order_file):
    path = order_file()
    path.write_text(path.read_text() + line + "\n")
    assert said in refused(path)
    path = order_file()
    key, _, value = line.partition(": ")
    assert said in refused(path, changes=[f"{key}={value}"])


def test_a_row_that_no_model_reads(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * LONGEST_ROW + '"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl, row 2: has more than 10,000,000 characters"):
        list(read_jsonl(path))


def test_spelling():
    assert spelling("Straße") == spelling("STRASSE") == spelling("strasse")
    assert spelling("é") == spelling("e\u0301") == spelling("É")
    assert spelling("ｓｆｔ") == spelling("SFT") and spelling("sft") != spelling("sft1")


@pytest.mark.parametrize("other", ["SFT", "Sft"])
def test_labels_of_one_spelling(other, order_file):
    path = order_file(methods={"sft": {}, other: {"method": "sft"}})
    assert f"methods.{other}: '{other}' and 'sft' are one folder on some file systems" in (
        refused(path)
    )


def test_a_label_is_read_as_it_is_written(order_file):
    path = order_file(methods={"1": {"method": "sft"}, "0x1": {"method": "dft"}})
    path.write_text(path.read_text().replace("'0x1'", "0x1"))
    assert "key 0x1 is 1 in YAML 1.1: write '0x1'" in refused(path)


def test_points_of_a_grid_and_labels_beside_them(order_file):
    point = "SFT.batch_size-2"
    path = order_file(
        methods={"sft": {}, point: {"method": "sft"}}, grid={"sft": {"batch_size": [1, 2]}}
    )
    assert "grid.sft: sft.batch_size-2 stands twice" in refused(path)


@pytest.mark.parametrize("other", ["Vowels", "ｖowels"])
def test_skills_of_one_spelling(other, order_file):
    path = order_file()
    order = yaml.safe_load(path.read_text())
    order["skills"][1]["name"] = other
    path.write_text(yaml.safe_dump(order, allow_unicode=True))
    assert f"skills[1]: skill '{other}' stands twice, also as 'vowels'" in refused(path)


@pytest.mark.parametrize(
    "ids, said",
    [
        (["a", "b", "a", "c"], "examples 1 and 3 have the id 'a'"),
        ([2, "2", "x", "y"], "examples 1 and 2 have the id '2'"),
        (["3", None, None, None], "examples 1 and 3 have the id '3'"),  # the number of a row
        ([None] * 4, None),
        ([4, 3, 2, 1], None),
    ],
)
def test_equal_ids(ids, said, order_file, tmp_path):
    path = order_file()
    file = tmp_path / "vowels-test.jsonl"
    rows = [{**row, "id": i} for row, i in zip(read_lines(file), ids, strict=True)]
    write_rows(file, rows)
    if said:
        assert f"skill vowels, split test: {said}; give each an `id` of its own" in refused(path)
    else:
        read_order(path)
