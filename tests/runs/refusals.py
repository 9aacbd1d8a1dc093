"""What the tests of refused orders share: the one line, damaged models, the command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.runs.reading import read_order

ROOT = Path(__file__).resolve().parents[2]


def refused(path, **kwargs):
    """The one line that read_order refuses ``path`` with."""
    with pytest.raises(UserError) as caught:
        read_order(path, **kwargs)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    return line


def at(mapping, keys, value):
    *path, last = keys
    for key in path:
        mapping = mapping[key]
    if value is DROP:
        del mapping[last]
    else:
        mapping[last] = value


DROP = object()


ROW = {"prompt": "p", "demonstration": "d", "reference": "r"}


TEMPLATES = {
    "broken template": "{% for m in messages %}",
    "template that refuses": "{{ raise_exception('no user here') }}",
    "template that adds": "{{ messages[0].content + none }}",
    "no system": "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ m.content }}{% endfor %}",
}


CONFIGS = {
    "a list": None,
    "nothing": None,
    "unknown type": {"model_type": "no-such-model"},
    "t5": {"model_type": "t5"},
    "negative size": {"hidden_size": -1},
    "no size": {"hidden_size": "wide"},
}


def damaged(tiny, folder, how):
    shutil.copytree(tiny, folder)
    weights = folder / "model.safetensors"
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "half weights":
        weights.write_bytes(weights.read_bytes()[:9000])
    elif how == "other sizes":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    elif how in ("a layer more", "a layer less"):
        config = json.loads((folder / "config.json").read_text())
        layers = config["num_hidden_layers"] + (1 if how == "a layer more" else -1)
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    elif how == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
    elif how == "no chat template":
        (folder / "chat_template.jinja").unlink()
    elif how in TEMPLATES:
        (folder / "chat_template.jinja").write_text(TEMPLATES[how])
    elif how in CONFIGS:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps(
                {**config, **CONFIGS[how]} if CONFIGS[how] else [] if how == "a list" else {}
            )
        )
    return folder


def start(*arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run_sequence.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
