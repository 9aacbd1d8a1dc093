"""The first seconds of run_sequence.py: something is on the screen before PyTorch is imported."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.models.embedded import EMBEDDED
from harness.runs import schema

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 1.5  # seconds to the first line
HEAVY = ("torch", "transformers", "numpy", "lm_eval")


def python(*arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def quickest_first_line(*arguments, tries=3):
    """(the first line on stderr, the fewest seconds to it): other processes may use the cores."""
    seconds = []
    for _ in range(tries):
        start = time.monotonic()
        process = python("run_sequence.py", *arguments)
        line = process.stderr.readline()
        seconds.append(time.monotonic() - start)
        process.kill()
        process.communicate()
        if seconds[-1] < LONGEST:
            break
    return line, min(seconds)


@pytest.mark.parametrize(
    "arguments, line",
    [
        (
            ["benchmarks/orders/quickstart.yaml", "--plan"],
            "reads benchmarks/orders/quickstart.yaml\n",
        ),
        (["nowhere.yaml"], "error: nowhere.yaml: is not a file; give a task-order file, "),
        (["README.md"], "error: README.md"),
        (
            ["benchmarks/orders/quickstart.yaml", "--set", "budget.promts=3"],
            "error: benchmarks/orders/quickstart.yaml: budget: promts: unknown key; did you mean ",
        ),
        (
            ["benchmarks/orders/quickstart.yaml", "--out", "README.md"],
            f"error: {ROOT}/README.md: is a file; give a folder with --out\n",
        ),
    ],
)
def test_the_first_line_comes_at_once(arguments, line):
    found, seconds = quickest_first_line(*arguments)
    found = re.sub(r"^[\d-]{10} [\d:]{8} ", "", found)
    assert found.startswith(line) and seconds < LONGEST, (found, seconds)


def test_help_is_help_alone():
    process = python("run_sequence.py", "--help")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    said = " ".join(out.split())
    listing = "methods|parts|parameters|presets|skills|graders|suites|orders"
    assert f"python -m harness list {listing}" in said


def test_sections_are_read_without_anything_heavy(order_file):
    """YAML, changes and schema, for every order of the project."""
    orders = [str(path) for path in sorted((ROOT / "benchmarks/orders").rglob("*.yaml"))]
    code = (
        "import json, sys\n"
        "from harness.runs.reading import read_sections\n"
        "orders, heavy = json.loads(sys.argv[1])\n"
        "names = [read_sections(order, ['seeds=[5]']).seeds for order in orders]\n"
        "print(json.dumps([names, [name for name in heavy if name in sys.modules]]))\n"
    )
    process = python("-c", code, json.dumps([[*orders, str(order_file())], HEAVY]))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out) == [[[5]] * (len(orders) + 1), []]


def test_the_schema_names_the_embedded_model():
    """It spells the name itself: the module that knows the model imports PyTorch."""
    assert schema.EMBEDDED == EMBEDDED
