"""Exported models: the files as the run has kept them, a card, a row, and lm-eval's form."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from harness.__main__ import main
from harness.base.files import ROOT
from harness.base.sums import sum_folder
from harness.report.data import ReportData
from harness.report.leaderboard import _more_is_better
from harness.report.publish import export
from harness.results import open_results
from tests.conftest import without_progress
from tests.fabricate import fabricate

FILES = {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fabricated(tmp_path_factory.mktemp("publish") / "one")


def fabricated(place, **how):
    folder = fabricate(place, seeds=(0, 1), n=20, inside=0, **how)
    for seed in (0, 1):
        stage = folder / "runs" / f"sft-seed{seed}" / "stage-3"
        (stage / "weights").mkdir()
        for name, text in FILES.items():
            (stage / "weights" / name).write_text(f"{text}")
        sum_folder(stage)
    return folder


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory):
    return export(folder, "sft", tmp_path_factory.mktemp("out") / "model")


def data_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_model_is_there_as_it_was_kept(out):
    for name, text in FILES.items():
        assert (out / name).read_text() == text
    there = {path.name for path in out.iterdir()}
    assert there == {*FILES, "README.md", "leaderboard.json", "lm_eval"}


def test_the_card_has_data_method_numbers_protocols_and_licence(folder, out):
    card = (out / "README.md").read_text()
    main_table = open_results(folder).tables["main"]
    acc = main_table.loc["sft", "ACC"]
    half = (main_table.loc["sft", "ACC high"] - main_table.loc["sft", "ACC low"]) / 2
    assert f"{100 * acc:.1f} ±{100 * half:.1f}" in card
    assert "| base |" in card and "| sdft |" not in card
    assert "Means over 2 runs; the weights here are those of seed 0." in card
    assert "learning_rate: 2.0e-05" in card and "tooluse: fabricated questions" in card
    for protocol in ReportData([folder]).protocol_of.values():
        assert protocol in card
    assert "not stated here" in card.split("## Licence")[1]
    assert 'from_pretrained("model")' in card
    data = data_of(card)
    assert data["base_model"] == "smol-135m" and "license" not in data
    results = data["model-index"][0]["results"]
    final = open_results(folder).matrix.loc["sft"].groupby("stage").mean().loc[3]
    by_name = {each["dataset"]["name"]: each["metrics"][0]["value"] for each in results}
    assert by_name["science"] == pytest.approx(final["science"], abs=1e-6)


def test_the_hub_reads_the_card(out):
    from huggingface_hub import ModelCard

    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    assert {each.metric_type for each in card.data.eval_results} == {
        "exact",
        "acc",
        "bits_per_byte",
    }


def test_a_licence_is_that_of_the_embedded_model_or_the_one_that_is_named(tmp_path):
    folder = fabricated(tmp_path / "embedded", model="embedded")
    card = (export(folder, "sft") / "README.md").read_text()
    assert (folder / "export" / "sft" / "leaderboard.json").is_file()
    assert data_of(card)["license"] == "apache-2.0"
    assert data_of(card)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "4-bit file" in card
    other = export(folder, "sft", tmp_path / "other", licence="mit", seed=1)
    named = (other / "README.md").read_text()
    assert data_of(named)["license"] == "mit" and "are those of seed 1" in named


# ---- numbers for other tools ---------------------------------------------------------------------


def test_a_row_has_the_reports_numbers_and_every_protocol(folder, out):
    row = json.loads((out / "leaderboard.json").read_text())
    results = open_results(folder)
    main_table = results.tables["main"]
    for key, heading in (("acc", "ACC"), ("bwt", "BWT"), ("retention_change", "Retention Δ")):
        number = row["numbers"][key]
        assert number["value"] == main_table.loc["sft", heading]
        assert number["low"] == main_table.loc["sft", f"{heading} low"]
        assert number["high"] == main_table.loc["sft", f"{heading} high"]
    assert list(row["skills"]) == row["order"] == ["tooluse", "science", "medical"]
    for name, skill in row["skills"].items():
        assert skill["final"]["value"] == main_table.loc["sft", f"{name} final"]
        assert skill["own_stage"]["value"] == main_table.loc["sft", f"{name} own stage"]
        assert skill["protocol"] == results.data.protocol_of["skill", name] and skill["n"] == 20
    task = row["retention"]["wikitext"]
    retention = results.tables["retention"]
    heading = "wikitext (bits_per_byte, lower is better)"
    assert task["change"]["value"] == retention.loc["sft", f"{heading} Δ"]
    assert task["higher_is_better"] is False
    assert row["runs"] == ["seed 0", "seed 1"] and row["method"] == "sft"


def test_rows_that_may_be_ranked_share_a_key(tmp_path, folder):
    def row(of, label):
        place = tmp_path / f"{of.name}-{label}"
        return json.loads(
            (export(of, label, place, numbers_alone=True) / "leaderboard.json").read_text()
        )

    other = fabricate(tmp_path / "other", n=20, inside=0, limit=65)  # another protocol
    assert row(folder, "sft")["comparable"] == row(folder, "grpo")["comparable"]
    assert row(folder, "sft")["comparable"] != row(other, "sft")["comparable"]


@pytest.mark.parametrize(
    ("kind", "name", "metric", "wanted"),
    [
        ("skill", "bfcl_tools", "accuracy", True),
        ("skill", "bfcl_tools", "response_tokens", None),
        ("retention", "text_prose", "bits_per_byte,none", False),
        ("retention", "embedded_grammar", "margin", True),
        ("retention", "embedded_grammar", "length", None),
    ],
)
def test_only_a_yardstick_has_a_direction(kind, name, metric, wanted):
    results = ReportData([ROOT / "results/measured/quickstart"])
    of_name = results.records[results.records["name"] == name]
    assert (metric in set(of_name["metric"])) == (metric != "length")
    assert _more_is_better(results, {"kind": kind, "name": name, "metric": metric}) is wanted


def test_lm_eval_reads_the_results(folder, out):
    from lm_eval.result_schema import EvalResults
    from lm_eval.utils import (
        get_latest_filename,
        get_results_filenames,
        make_table,
        sanitize_model_name,
    )

    files = [str(path) for path in out.rglob("*")]
    found = get_results_filenames(files)
    assert get_latest_filename(found) == found[0] and len(found) == 1
    path = Path(found[0])
    assert path.relative_to(out).parts == (
        "lm_eval",
        "model",
        "results_2026-01-05T10-00-00.000000.json",
    )
    results = json.loads(path.read_text())
    assert set(results) <= set(EvalResults.__annotations__)
    assert sanitize_model_name("a/b") == "a__b"
    values = open_results(folder).matrix.loc[("sft", "one", 0, "", 3)]
    table = make_table(results)
    for name in ("tooluse", "science", "medical"):
        assert results["results"][name]["exact,none"] == values[name]
        (line,) = [line for line in table.splitlines() if line.startswith(f"|{name} ")]
        assert results["versions"][name] in line
    assert f"{values['medical']:.4f}" in table
    assert results["results"]["wikitext"]["bits_per_byte,none"] > 0
    assert results["higher_is_better"]["wikitext"] == {"bits_per_byte": False}
    assert "↓" in next(line for line in table.splitlines() if "bits_per_byte" in line)
    directions = results["higher_is_better"]
    assert directions["science"] == {"exact": True}
    assert results["n-samples"]["science"] == {"original": 20, "effective": 20}


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sfd"], "is no method; did you mean 'sft'?"),
        (["sft", "--seed", "7"], "sft: seed 7: there is no such run; it has seed 0, seed 1"),
        (["grpo"], "stage-3/weights: is not there: the run is not over, or keeps no weights; "),
        (
            ["sft", "--numbers", "--push", "a/b"],
            "--push: pushes a model, and --numbers leaves",
        ),
        (["sft", "--private"], "--private: goes with --push"),
    ],
)
def test_what_is_not_there_is_one_line(folder, words, line, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["export", str(folder), *words, "--out", str(tmp_path / "out")])
    (said,) = without_progress(capsys.readouterr().err)
    assert caught.value.code == 2 and line in said
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_not_exported(tmp_path):
    folder = fabricated(tmp_path / "damaged")
    (folder / "runs/sft-seed0/stage-3/weights/model.safetensors").write_text("weightz")
    with pytest.raises(Exception, match=r"model\.safetensors"):
        export(folder, "sft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_where(folder, tmp_path, capsys):
    main(["export", str(folder), "sdft", "--numbers", "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert said.out == f"exported: {tmp_path}/out\n"
    assert not without_progress(said.err)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"leaderboard.json", "lm_eval"}


# ---- a hub ---------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push of small files asks for."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, body))
        address = f"http://localhost:{self.server.server_port}/me/mine"
        if self.path == "/api/repos/create":
            return self.answer({"url": address, "name": "me/mine", "id": "me/mine"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            how = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": file["path"], **how} for file in files]})
        if "/commit/" in self.path:
            oid = "0" * 40
            commit = {"commitUrl": f"{address}/commit/{oid}", "commitOid": oid, "success": True}
            return self.answer(commit)
        return self.answer({}, 404)

    def do_GET(self):
        self.server.asked.append((self.path, b""))
        return self.answer({"error": "nothing here"}, 404)

    def answer(self, value, status=200):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words):
        pass


@pytest.fixture
def hub():
    server = HTTPServer(("localhost", 0), Hub)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def push(folder, out, endpoint, home):
    words = ["export", str(folder), "sft", "--out", str(out), "--push", "me/mine", "--private"]
    settings = {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
    settings |= {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "localhost"}
    return subprocess.run(
        [sys.executable, "-m", "harness", *words],
        env={**os.environ, **settings},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_a_push_sends_every_file(folder, hub, tmp_path):
    endpoint = f"http://localhost:{hub.server_port}"
    said = push(folder, tmp_path / "out", endpoint, tmp_path / "home")
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[-1] == f"pushed: {endpoint}/me/mine"
    (made,) = [json.loads(body) for path, body in hub.asked if path == "/api/repos/create"]
    assert made["name"] == "mine" and made["visibility"] == "private"
    (commit,) = [body for path, body in hub.asked if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }
    assert {*FILES, "README.md", "leaderboard.json"} <= set(sent)
    assert sent["model.safetensors"] == b"weights"
    assert b'from_pretrained("me/mine")' in sent["README.md"]


def test_a_hub_that_cannot_be_reached_is_one_line(folder, tmp_path):
    said = push(folder, tmp_path / "out", "http://localhost:9", tmp_path / "home")
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1].startswith("error: --push me/mine: ")
    assert (tmp_path / "out" / "README.md").is_file()
