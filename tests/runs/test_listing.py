"""`python -m harness list`: all that is there, each with what it is, and quickly."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness import __main__ as command
from harness.base.registry import plugin_named
from harness.evaluation.suite import load_suite
from harness.learning.method import Method
from harness.runs.listing import LISTINGS
from harness.runs.reading import read_sections
from harness.skills.registry import get_skill
from harness.skills.signs import GRADERS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("what", LISTINGS)
def test_every_entry_has_a_description(what):
    entries = dict(LISTINGS[what]())
    assert entries
    for name, description in entries.items():
        assert len(description) > 15 and "\n" not in description, name


def test_every_name_is_one_that_an_order_can_give():
    for name, _ in LISTINGS["methods"]():
        plugin_named(ROOT / "methods", "methods", name, Method, "method", "here")
    assert dict(LISTINGS["graders"]()).keys() == GRADERS.keys()
    for name, _ in LISTINGS["suites"]():
        if name not in ("paper", "trace", "retaining"):  # these take lm-eval's whole index
            assert load_suite(name).tasks
    for name, description in LISTINGS["orders"]():
        assert read_sections(ROOT / "benchmarks/orders" / name).description == description
    for name, description in LISTINGS["skills"]():
        if name in ("bfcl_tools", "elements", "bulletins"):  # the others need data
            assert get_skill(name).description == description


@pytest.mark.parametrize("what", LISTINGS)
def test_the_table_fits_a_narrow_terminal(what, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command.main(["list", what])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    starts = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert starts == [name for name, _ in LISTINGS[what]()]


def test_a_description_is_no_markup(capsys, monkeypatch):
    monkeypatch.setitem(LISTINGS, "skills", lambda: iter([("[red]", "of [bold] and [/] things")]))
    command.main(["list", "skills"])
    assert capsys.readouterr().out.split() == ["[red]", "of", "[bold]", "and", "[/]", "things"]


@pytest.mark.parametrize("given", [[], ["list"], ["list", "wishes"], ["show", "skills"]])
def test_wrong_arguments_are_one_line(given, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(given)
    found = capsys.readouterr()
    assert caught.value.code == 2 and found.out == ""
    assert found.err.startswith("error: python -m harness") and found.err.count("\n") == 1


def test_as_a_command_without_pytorch():
    """Methods import PyTorch; their descriptions are read from the source."""
    code = (
        "import sys\n"
        "from harness.__main__ import main\n"
        "for what in ('methods', 'parts', 'skills', 'graders', 'suites', 'orders'):\n"
        "    main(['list', what])\n"
        "assert 'torch' not in sys.modules\n"
    )
    for arguments in (["-c", code], ["-m", "harness", "list", "methods"]):
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "sdft" in done.stdout and done.stderr == ""


def test_a_file_that_is_no_yaml_and_a_skill_that_cannot_be_imported(tmp_path, monkeypatch):
    """Neither hides the others."""
    (tmp_path / "benchmarks/orders").mkdir(parents=True)
    (tmp_path / "benchmarks/orders/a.yaml").write_text("{")
    (tmp_path / "benchmarks/orders/b.yaml").write_text("description: words\n")
    (tmp_path / "benchmarks/skills").mkdir()
    (tmp_path / "benchmarks/skills/no_such_skill.py").write_text("")
    monkeypatch.setattr("harness.runs.listing.ROOT", tmp_path)
    assert dict(LISTINGS["orders"]()) == {"a.yaml": "is not YAML", "b.yaml": "words"}
    ((name, description),) = LISTINGS["skills"]()
    assert name == "no_such_skill" and description.startswith("cannot be imported (")
