"""YAML files are read in one way: what would be lost, or read as another number, is an error."""

import re
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.base.strict_yaml import parse_yaml, read_yaml

ROOT = Path(__file__).resolve().parents[2]
WRONG = [
    (b"tasks: [a]\ntasks: [b]\n", ", line 2: is not YAML (key 'tasks' stands twice)"),
    (b"tasks:\n- {limit: 1, limit: 2}\n", ", line 2: is not YAML (key 'limit' stands twice)"),
    (b"{1: a, 1.0: b}", "key '1.0' stands twice, as '1'"),
    (b"{yes: a, true: b}", "key yes is True in YAML 1.1: write 'yes'"),
    (b"{~: a}", "key ~ is None in YAML 1.1: write '~'"),
    (b"{1.50: a}", "key 1.50 is 1.5 in YAML 1.1: write '1.50'"),
    (
        b"a: &a " + b"x" * 100_000 + b"\nb: [" + b"*a, " * 101 + b"]\n",
        "more than 10,000,000 letters, aliases counted",
    ),
    (b"limit: 0100\n", ", line 1: is not YAML (0100 is 64 in YAML 1.1, octal: write 64 or 100)"),
    (b"limit: 1:40\n", "1:40 is 100 in YAML 1.1, to the base of 60: write 100 or '1:40'"),
    (b"limit: 1" + 30 * b"0", "a whole number beyond 64 bits"),
    (b"a: &a [*a]\n", "an alias that contains itself"),
    (b"a: [\n", ", line 2: is not YAML ("),
    (b"\xff\xfe", ": is not YAML (not UTF-8)"),
    (b"day: 2024-13-45\n", "month must be in 1..12"),
    (b"count: !!int ''\n", ", line 1: is not YAML (no int stands there"),
    (b"count: !!float [1]\n", ", line 1: is not YAML ("),
    (b"count: !!map [1]\n", ", line 1: is not YAML (expected a mapping node, but found sequence"),
    (b"count: !!set x\n", ", line 1: is not YAML (expected a mapping node, but found scalar"),
    (b"day: !!timestamp x\n", ", line 1: is not YAML (no timestamp stands there"),
    (b"flag: !!bool maybe\n", ", line 1: is not YAML (no bool stands there"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_what_is_no_yaml_here(text, said, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes(text)
    for place, start in ((None, str(path)), ("retention/own.yaml", "retention/own.yaml")):
        with pytest.raises(UserError) as error:
            read_yaml(path, "see the page", place)
        line = str(error.value)
        assert line.startswith(start) and said in line and line.endswith("; see the page")
        assert "\n" not in line


def test_what_stays_as_it_was(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "a: [0, 10, -7, 1_000, 1e-4, 1.5, '010', 0x1f, 'é']\nb: &x {c: null}\nd: *x\n"
        "e: {<<: *x, 1: f, '1.50': g}\n"
    )
    assert read_yaml(path, "") == {
        "a": [0, 10, -7, 1000, "1e-4", 1.5, "010", 31, "é"],
        "b": {"c": None},
        "d": {"c": None},
        "e": {"c": None, 1: "f", "1.50": "g"},
    }
    assert parse_yaml("3") == 3 and parse_yaml("") is None


def test_nothing_in_the_harness_reads_yaml_beside_it():
    """But for the one question whether YAML takes a word for something else than a text."""
    readers = {
        str(path.relative_to(ROOT)): re.findall(r"yaml\.(?:safe_load|load|full_load)\(", text)
        for path in (ROOT / "harness").rglob("*.py")
        if "yaml" in (text := path.read_text(encoding="utf-8"))
    }
    found = {path: len(calls) for path, calls in readers.items() if calls}
    assert found == {"harness/base/settings.py": 1, "harness/base/strict_yaml.py": 1}
