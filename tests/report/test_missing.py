"""What the report says of results that are not complete."""

import json

import numpy as np
import pandas as pd

from harness.report.build import write_report
from harness.report.data import ReportData
from tests.fabricate import SKILLS, fabricate
from tests.report.folders import TWO, raw, rewrite


def test_partial_results_are_reported_with_what_is_missing(tmp_path):
    folder = fabricate(tmp_path / "part", seeds=(0, 1), n=20)
    present = [
        json.dumps(record)
        for record in raw(folder)
        if record["method"] == "sft"
        or ((record["method"], record["seed"]) == ("sdft", 0) and record["stage"] < 3)
    ]
    killed_while_it_wrote = present[0][:50]
    (folder / "records.jsonl").write_text("\n".join([*present, killed_while_it_wrote]))
    text, page = write_report(folder, tmp_path / "out")
    html = page.read_text()
    for line in (
        "1 unreadable line",
        "sdft: no records of seed 1",
        "sdft, seed 0: 2 of 3 stages finished",
        "grpo: no records of seed 0, 1",
    ):
        assert line in text
        assert line in html
    main = pd.read_csv(tmp_path / "out" / "tables" / "main.csv").set_index("method")
    assert np.isnan(main.loc["sdft", "ACC"])
    assert main.loc["sdft", "science own stage"] > 0
    assert main.loc["sft", "seeds"] == "2/2"


def test_answers_that_wait_for_a_judge_are_no_unfinished_stages(tmp_path):
    folder = fabricate(tmp_path / "judged", methods=TWO, n=20)
    judge = {"rubric": "knowledge", "metrics": ["judged_strict"]}
    rewrite(folder / "results.json", lambda head: head["skills"][0].update(judge=judge))
    first = next(iter(SKILLS))
    with (folder / "records.jsonl").open("a") as file:
        for record in raw(folder, stage=0, name=first, metric="exact"):
            verdict = {**record, "metric": "judged_strict", "protocol": "judged"}
            file.write(json.dumps(verdict) + "\n")
    missing = ReportData([folder]).missing
    line = "sft, seed 0: answers of stage 1, 2, 3 have no verdicts yet: python -m harness.judge"
    assert any(f"{line} {folder}" in m for m in missing)
    assert not any("stages finished" in m for m in missing)


def test_gaps_that_the_order_asks_for_are_no_unfinished_stages(tmp_path):
    folder = fabricate(tmp_path / "own", methods=TWO, n=20, items=False)
    sparse = [r for r in raw(folder) if (r["stage"], r["name"]) != (2, "medical")]
    (folder / "records.jsonl").write_text("\n".join(json.dumps(r) for r in sparse))
    line = "sft, seed 0: skills not all measured after stage 2"
    assert line in ReportData([folder]).missing
    rewrite(folder / "results.json", lambda head: head["evaluate"].update(skills="own"))
    assert line not in ReportData([folder]).missing


def test_records_of_unknown_methods_and_protocols_are_named(tmp_path):
    folder = fabricate(tmp_path / "strange", methods=TWO, n=8, inside=0, items=False)
    record = raw(folder)[0] | {"method": "strange", "run": "strange-seed0"}
    with (folder / "records.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    rewrite(folder / "protocols.json", lambda protocols: protocols.pop(record["protocol"]) and None)
    missing = ReportData([folder]).missing
    assert "records of strange left out: results.json does not list the method" in missing
    assert f"protocols.json does not say what {record['protocol']} stands for" in missing
