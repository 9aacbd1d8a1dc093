"""Which completions the page shows."""

import json

from harness.report.data import ReportData
from harness.report.samples import EACH, TEXT, choose, cut
from tests.fabricate import SKILLS, fabricate
from tests.report.folders import ONE_SKILL, TWO


def set_scores(folder, key, scores):
    """Gives the first items of an evaluation these scores, and all others 1."""
    path = folder / "evaluations" / f"{key}.json"
    evaluation = json.loads(path.read_text())
    for i, item in enumerate(evaluation["items"]):
        item["scores"]["exact"] = scores[i] if i < len(scores) else 1.0
    path.write_text(json.dumps(evaluation))


def test_items_whose_score_changed_come_first(tmp_path):
    skills = dict(list(SKILLS.items())[:2])
    folder = fabricate(tmp_path / "few", skills, methods=TWO, retention={}, n=8, inside=0)
    # Item 1 is never learned, item 2 is lost again, item 3 is learned and kept.
    set_scores(folder, "tooluse-base", [1.0, 0.0, 0.0, 0.0])
    set_scores(folder, "tooluse-sft-seed0-12", [1.0, 0.0, 1.0, 1.0])
    set_scores(folder, "tooluse-sft-seed0-24", [1.0, 0.0, 0.0, 1.0])
    group = choose(ReportData([folder]))[0]
    assert (group["label"], group["skill"], group["seed"]) == ("sft", "tooluse", 0)
    assert [item["id"] for item in group["items"]] == ["tooluse-3", "tooluse-2", "tooluse-1"]
    answers = group["items"][1]["answers"]
    assert [answer["name"] for answer in answers] == ["base", "tooluse", "science"]
    assert [answer["score"] for answer in answers] == [0.0, 1.0, 0.0]


def test_every_skill_and_method_has_a_few_questions(reported):
    groups = choose(ReportData([reported.folder]))
    assert len(groups) == 9
    assert all(len(group["items"]) == EACH for group in groups)


def test_without_evaluations_there_are_no_samples(tmp_path):
    folder = fabricate(
        tmp_path / "few", ONE_SKILL, methods=TWO, retention={}, n=8, inside=0, items=False
    )
    assert choose(ReportData([folder])) == []


def test_long_texts_are_cut_and_other_values_are_texts():
    assert cut("x" * (TEXT + 5)) == "x" * TEXT + " … (5 more letters)"
    assert (cut("x" * TEXT), cut(None), cut(4)) == ("x" * TEXT, "", "4")
