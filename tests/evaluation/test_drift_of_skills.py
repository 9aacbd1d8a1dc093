"""KL(base || model) on the prompts of the skill just learned and of earlier ones."""

import numpy as np
import pandas as pd
import pytest
import torch

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.learning.packing import Row
from harness.models.load import load_model
from harness.report.build import write_report
from harness.report.data import ReportData
from harness.report.pictures import source_of
from harness.report.pictures.drift import drift_curves
from harness.runs.measurements import Measurements
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from tests.conftest import read_lines, write_rows

METHODS = {"sft": {"learning_rate": 1e-3}}


def ordered(order_file, along, **changes):
    evaluate = {"drift": {"prompts": 3, "max_new_tokens": 5, "along": along}}
    return order_file(methods=METHODS, evaluate=evaluate, **changes)


def k3(base, model, rows):
    """Schulman's k3 in float64 of each row, one pass without packing."""
    sums = []
    for row in rows:
        found = []
        for each in (base, model):
            with torch.no_grad():
                logits = each(torch.tensor([row.prompt + row.completion])).logits[0]
            of_row = logits[len(row.prompt) - 1 : -1].log_softmax(-1)
            found.append(of_row.gather(1, torch.tensor(row.completion)[:, None]))
        d = found[0] - found[1]
        sums.append(((-d).exp() - 1 + d).sum().item())
    return sums


def test_each_skill_is_new_and_then_old(order_file, tmp_path, monkeypatch):
    path = ordered(order_file, ["new", "old"], budget={"prompts": 4, "batch_size": 4})
    out = tmp_path / "out"
    for split in ("train", "validation", "test"):  # a third skill
        rows = [{"prompt": f"c {split} {i}?", "demonstration": f"c{i}", "reference": "c"}
                for i in range(4)]  # fmt: skip
        write_rows(tmp_path / f"letters-{split}.jsonl", rows)
    text = path.read_text().replace(
        "methods:",
        """
- {name: letters, train: letters-train.jsonl, validation: letters-validation.jsonl,
   test: letters-test.jsonl, grader: token_f1, max_new_tokens: 4}
methods:""",
    )
    path.write_text(text)
    order = read_order(path)
    said = plan(order, out)
    assert "drift from the base on 3 prompts of each kind (new, old): at most about" in said
    loaded, subject = [], Measurements._subject

    def spied(self, model, weights):
        loaded.append(model is self.live.model)
        return subject(self, model, weights)

    monkeypatch.setattr(Measurements, "_subject", spied)
    run_order(order, out)
    assert loaded and all(loaded)  # the base answered before anything was learned
    records = [r for r in read_lines(out / "records.jsonl") if r["kind"] == "drift"]
    tokens = [r for r in records if r["metric"].endswith("token")]
    assert [(r["stage"], r["name"], r["metric"]) for r in tokens] == [
        (1, "vowels", "new_kl_forward_token"),
        (2, "vowels", "old_kl_forward_token"),
        (2, "digits", "new_kl_forward_token"),
        (3, "vowels", "old_kl_forward_token"),
        (3, "digits", "old_kl_forward_token"),
        (3, "letters", "new_kl_forward_token"),
    ]
    assert all(r["stderr"] > 0 and r["n"] == 3 and r["split"] == "test" for r in records)

    # Of the last stage's weights, in float64
    base, tokenizer = load_model(order.model.name, "float32", "cpu")
    end, _ = load_model(str(out / "runs/sft-seed0/stage-3/weights"), "float32", "cpu")
    for record in (r for r in records if r["stage"] == 3):
        answers = next(
            e for file in (out / "evaluations").glob("*.json")
            if (e := read_json(file))["name"] == record["name"] and "logprobs" in e["items"][0]
        )  # fmt: skip
        limit = 4 if record["name"] == "letters" else 5
        assert max(len(item["token_ids"]) for item in answers["items"]) <= limit
        skill = next(s for s in order.skills if s.name == record["name"])
        prompts = [
            tokenizer.apply_chat_template(e.prompt, add_generation_prompt=True)
            for e in skill.examples("test")[:3]
        ]
        prompts = [p if isinstance(p, list) else p["input_ids"] for p in prompts]
        rows = [
            Row(p, item["token_ids"]) for p, item in zip(prompts, answers["items"], strict=True)
        ]
        sums = k3(base.double(), end.double(), rows)
        lengths = [len(row.completion) for row in rows]
        if record["metric"].endswith("token"):
            assert record["value"] == pytest.approx(sum(sums) / sum(lengths), rel=1e-3)
        else:
            assert record["value"] == pytest.approx(np.mean(sums), rel=1e-3)
            error = np.std(sums, ddof=1) / 3**0.5
            assert record["stderr"] == pytest.approx(error, rel=1e-3)

    data = ReportData([out])
    assert drift_curves(source_of(data)) is None  # general prompts were not asked for
    write_report(out)
    table = pd.read_csv(out / "report/tables/every_metric.csv")
    assert {"new_kl_forward_token", "old_kl_forward_sequence"} < set(table["metric"])
    values = {(r["stage"], r["metric"]): [] for r in tokens}
    for r in tokens:
        values[r["stage"], r["metric"]].append(r["value"])
    new = np.mean([values[k, "new_kl_forward_token"][0] for k in (1, 2, 3)])
    old = np.mean([np.mean(values[k, "old_kl_forward_token"]) for k in (2, 3)])
    for kind, value in (("new", new), ("old", old)):
        (row,) = table[table["measured"] == f"{kind} prompts"].to_dict("records")
        assert row["metric"] == "KL from the base a token, mean of the stages"
        assert row["sft"] == pytest.approx(value, rel=1e-3)


def test_general_prompts_alone_are_the_default_and_are_on_record_as_before(order_file):
    about = read_order(ordered(order_file, ["general"])).about()
    assert about["evaluate"]["drift"] == {"prompts": 3, "max_new_tokens": 5}
    about = read_order(ordered(order_file, ["general", "old"])).about()
    assert about["evaluate"]["drift"]["along"] == ["general", "old"]


@pytest.mark.parametrize(
    ("along", "said"),
    [
        ([], "along names general, new and old, each at most once"),
        (["new", "new"], "along names general, new and old, each at most once"),
        (["news"], "unknown value 'news'; did you mean 'new'?"),
        ("new", "must be a list, not the text 'new'"),
    ],
)
def test_what_is_wrong_is_said(order_file, along, said):
    with pytest.raises(UserError) as error:
        read_order(ordered(order_file, along))
    assert said in str(error.value) and "evaluate.drift" in str(error.value)


def test_an_order_of_one_skill_has_no_old_prompts(order_file):
    path = ordered(order_file, ["old"])
    one = read_order(path).path.read_text().split("- name: digits")
    text = one[0] + "methods:" + one[1].split("methods:")[1]
    path.write_text(text)
    with pytest.raises(UserError, match="along: an order of one skill has no earlier one"):
        read_order(path)
