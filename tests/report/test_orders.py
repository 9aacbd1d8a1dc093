"""Reports of several sequences of the same skills: by the run's own sequence, and by skill."""

import json
import random
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pytest

from harness.base import intervals, metrics
from harness.base.errors import UserError
from harness.report import tables
from harness.report.build import write_report
from harness.report.crossing import OF_ORDERS, OF_RUNS, Crossing, crossing
from harness.report.data import ReportData
from harness.report.every_metric import every_metric
from harness.report.measurements import RunId
from harness.report.pictures import axis, source_of
from harness.report.pictures.accuracy_matrix import accuracy_matrices
from harness.results.folders import open_results
from tests.report.folders import row

SKILLS = ("a", "b", "c")
ORDERS = {"forward": ("a", "b", "c"), "backward": ("c", "b", "a")}
BASE = {"a": 0.1, "b": 0.2, "c": 0.3}
# Accuracy by [stage, skill a, b, c] after stages 1 to 3, seed 0; seed 1 has 0.02 more.
R = {
    "forward": [[0.5, 0.2, 0.3], [0.4, 0.6, 0.3], [0.3, 0.5, 0.9]],
    "backward": [[0.1, 0.25, 0.8], [0.1, 0.7, 0.7], [0.6, 0.6, 0.5]],
}
JOINT = {"a": 0.6, "b": 0.7, "c": 0.8}
SINGLE = {"b": 0.65}  # a and c begin a sequence


def write(folder, runs, orders=ORDERS, methods=("sft",), items=False):
    """A results folder of these (seed, sequence), with the references of each seed."""
    (folder / "evaluations").mkdir(parents=True)
    records = []

    def add(run, method, seed, stage, skill, name, value, **mark):
        key = f"{run}-{stage}-{name}".replace("@", "=") if stage else f"base-{name}"
        error = (value * (1 - value) / 99) ** 0.5
        records.append(
            {
                "run": run, "method": method, "seed": seed, "stage": stage, "skill": skill,
                "step": 4 * stage, "final": True, "kind": "skill", "name": name, "split": "test",
                "metric": "exact", "value": value, "stderr": error, "n": 100, "protocol": name,
                "evaluation": key, "prompts": 8 * stage, "tokens": 0, "seconds": 0.0, **mark,
            }
        )  # fmt: skip
        if items:
            right = [float(i < round(100 * value)) for i in range(100)]
            file = {"items": [{"id": str(i), "scores": {"exact": s}} for i, s in enumerate(right)]}
            (folder / "evaluations" / f"{key}.json").write_text(json.dumps(file))

    for method, (seed, name) in product(methods, runs):
        run = f"{method}@{name}-seed{seed}"
        for skill in SKILLS:
            add(run, method, seed, 0, None, skill, BASE[skill], sequence=name)
        for stage, values in enumerate(R[name], 1):
            taught = ORDERS[name][stage - 1]
            for skill, value in zip(SKILLS, values, strict=True):
                add(run, method, seed, stage, taught, skill, value + 0.02 * seed, sequence=name)
        (folder / "runs" / run).mkdir(parents=True)
    for method, seed in product(methods, dict.fromkeys(seed for seed, _ in runs)):
        for skill in SKILLS:
            mark = {"reference": "joint"}
            run = f"{method}.joint-seed{seed}"
            add(run, f"{method}.joint", seed, 1, "a + b + c", skill, JOINT[skill], **mark)
        run = f"{method}.single-2-seed{seed}"
        add(run, f"{method}.single-2", seed, 1, "b", "b", SINGLE["b"], reference="single")
    about = {
        "version": 1,
        "name": folder.name,
        "model": {"name": "tiny"},
        "skills": [{"name": name, "metric": "exact"} for name in SKILLS],
        "retention": [],
        "methods": {method: {"method": method, "config": {}} for method in methods},
        "seeds": sorted({seed for seed, _ in runs}),
        "orders": {name: list(of) for name, of in orders.items()},
        "references": list(methods),
    }
    (folder / "results.json").write_text(json.dumps(about))
    (folder / "protocols.json").write_text(json.dumps({name: {"name": name} for name in SKILLS}))
    (folder / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder


ALL = list(product((0, 1), ORDERS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("orders") / "orders", ALL)


@pytest.fixture(scope="module")
def results(folder):
    return ReportData([folder])


def test_measures_by_stage_are_computed_inside_each_run_and_then_averaged(results):
    cells = row(tables.main_table(results), "sft")
    # forward: a 0.3 - 0.5, b 0.5 - 0.6; backward: c 0.5 - 0.8, b 0.6 - 0.7. Seeds agree.
    forward, backward = (-0.2 - 0.1) / 2, (-0.3 - 0.1) / 2
    assert cells["bwt"].value == pytest.approx((forward + backward) / 2)
    assert cells["acc"].value == pytest.approx((1.7 / 3 + 1.7 / 3) / 2 + 0.01)
    # Chaudhry: the best before the last stage; forward a 0.5, b 0.6; backward c 0.8, b 0.7.
    assert cells["forgetting"].value == pytest.approx(((0.2 + 0.1) / 2 + (0.3 + 0.1) / 2) / 2)
    assert cells["seeds"] == "4/4"
    gains = row(tables.gain_table(results), "sft")
    # Just before its stage, less the base: b and c of forward, b and a of backward.
    fwt = [((0.2 - 0.2) + (0.3 - 0.3)) / 2, ((0.25 - 0.2) + (0.1 - 0.1)) / 2]
    assert gains["fwt"].value == pytest.approx(np.mean(fwt) + 0.01)
    la = [(0.5 + 0.6 + 0.9) / 3, (0.8 + 0.7 + 0.6) / 3]
    assert gains["la"].value == pytest.approx(np.mean(la) + 0.01)


def test_numbers_of_a_skill_are_its_own_wherever_it_stands(results):
    cells = row(tables.main_table(results), "sft")
    final = {name: (R["forward"][2][i] + R["backward"][2][i]) / 2 for i, name in enumerate(SKILLS)}
    own = {"a": (0.5 + 0.6) / 2, "b": (0.6 + 0.7) / 2, "c": (0.9 + 0.8) / 2}
    for name in SKILLS:
        assert cells[f"{name}/final"].value == pytest.approx(final[name] + 0.01)
        assert cells[f"{name}/own"].value == pytest.approx(own[name] + 0.01)
    gains = row(tables.gain_table(results), "sft")
    assert [gains[name].value for name in SKILLS] == pytest.approx(
        [own[name] - BASE[name] + 0.01 for name in SKILLS]
    )
    base = row(tables.main_table(results), "base")
    assert [base[f"{name}/final"].value for name in SKILLS] == pytest.approx(list(BASE.values()))


def test_references_are_those_of_the_seed_and_first_stages_stand_for_single_runs(results):
    gains = row(tables.gain_table(results), "sft")
    # Mean over skills of joint minus own stage; own stages have 0.02 more in seed 1.
    of_forward = np.mean([0.6 - 0.5, 0.7 - 0.6, 0.8 - 0.9])
    of_backward = np.mean([0.8 - 0.8, 0.7 - 0.7, 0.6 - 0.6])
    expected = (of_forward + of_backward) / 2 - 0.01
    assert gains["intransigence"].value == pytest.approx(expected)
    # Alone: a 0.5 (stage 1 of forward), b 0.65, c 0.8 (stage 1 of backward), a and c + 0.02.
    losses = []
    for seed in (0, 1):
        more = 0.02 * seed
        alone = {"a": 0.5 + more, "b": 0.65, "c": 0.8 + more}
        for name, order in ORDERS.items():
            values = np.array(R[name]) + more
            in_all = []
            for k, skill in list(enumerate(order))[1:]:
                i = SKILLS.index(skill)
                in_sequence = values[k, i] - values[k - 1, i]
                in_all.append(alone[skill] - BASE[skill] - in_sequence)
            losses.append(np.mean(in_all))
    assert gains["plasticity loss"].value == pytest.approx(np.mean(losses))
    main = tables.main_table(results)
    single, joint = row(main, "sft single"), row(main, "sft joint")
    assert [single[f"{name}/own"].value for name in SKILLS] == pytest.approx([0.51, 0.65, 0.81])
    assert [joint[f"{name}/final"].value for name in SKILLS] == pytest.approx([0.6, 0.7, 0.8])
    assert results.missing == [
        line for line in results.missing if "reference" not in line and "seed" not in line
    ]


def test_one_sequence_is_seen_as_if_it_were_alone(results):
    views = results.of_sequences
    assert list(views) == list(ORDERS)
    backward = views["backward"]
    assert backward.series["sft"].order == ORDERS["backward"] and not backward.of_sequences
    cells = row(tables.main_table(backward), "sft")
    assert (cells["seeds"], cells["bwt"].value) == ("2/2", pytest.approx((-0.3 - 0.1) / 2))
    matrix = accuracy_matrices(source_of(backward)).matrices[0]
    assert matrix.skills == ("c", "b", "a")
    assert matrix.values[1:] == pytest.approx((np.array(R["backward"])[:, [2, 1, 0]] + 0.01) * 100)


def test_every_metric_has_a_column_over_all_sequences_and_one_of_each(results):
    table = every_metric(results)
    keys = [column.key for column in table.columns]
    assert keys[2:] == ["base", "sft", "sft, forward", "sft, backward"]
    by_row = {(name, cells["metric"]): cells for name, cells in table.rows}
    bwt = by_row["all skills", "BWT over T - 1"]
    assert [bwt[key].value for key in keys[3:]] == pytest.approx([-0.175, -0.15, -0.2])
    of_c = by_row["c", "exact"]
    assert [of_c[key].value for key in keys[2:]] == pytest.approx([0.3, 0.71, 0.91, 0.51])
    after = by_row["all skills", "OP after stage 1"]
    assert [after[key].value for key in keys[3:]] == pytest.approx([0.66, 0.51, 0.81])
    assert "backward is c, b, a" in table.note


def right(value):
    return (np.arange(100) < round(100 * value)).astype(float)


def test_sequences_are_a_level_of_the_interval(tmp_path):
    """BWT of four runs: of forward a and b count, of backward c and b."""
    results = ReportData([write(tmp_path / "items", ALL, items=True)])
    table = tables.main_table(results)
    estimate = row(table, "sft")["bwt"]
    parts = {name: np.zeros((100, 2, 2)) for name in SKILLS}
    for (seed, more), (k, order) in product(enumerate((0, 0.02)), enumerate(ORDERS)):
        for stage, name in enumerate(ORDERS[order][:-1]):
            i = SKILLS.index(name)
            last, own = (right(R[order][row][i] + more) for row in (2, stage))
            parts[name][:, seed, k] = (last - own) / 2
    flips = [1 / 2 / 4] * 3
    by_hand = intervals.spread(list(parts.values()), ("seeds", "orders"), flips)
    assert estimate.value == pytest.approx(-0.175)
    assert estimate.spread.variance == pytest.approx(by_hand.variance)
    half = by_hand.quantile() * by_hand.stderr
    assert (estimate.low, estimate.high) == pytest.approx((-0.175 - half, -0.175 + half))
    # It is -0.15 and -0.2 by sequence and the same for both seeds.
    orders = estimate.spread.parts["orders"]
    assert (orders.size, orders.df) == (2, 1)
    assert orders.variance == pytest.approx(0.05**2 / 2 / 2)
    assert "mean of 2 seeds x 2 sequences" in estimate.how
    assert "seed 1 backward: -0.2" in estimate.how
    assert "Several sequences of the skills are a level beside the seeds" in table.note
    assert "More sequences of skills are not counted." in table.note


def test_without_scores_of_items_the_runs_alone_make_the_interval(results):
    estimate = row(tables.main_table(results), "sft")["bwt"]
    assert estimate.by == "seeds"
    assert estimate.spread.parts["orders"].variance == pytest.approx(0.05**2 / 4)
    # Two sequences: Student's t of one degree of freedom.
    assert estimate.high - estimate.value == pytest.approx(12.706 * 0.025, rel=1e-3)


def test_numbers_of_whole_runs_have_both_levels():
    values = np.array([[0.1, 0.4, 0.3], [0.2, 0.6, 0.3]])
    found = intervals.of_records(values, [], levels=("seeds", "orders"))
    by_hand = intervals.spread([values[None]], ("seeds", "orders"))
    assert found == by_hand
    mean = values.mean()
    both = values - values.mean(0) - values.mean(1)[:, None] + mean
    rest = (both**2).sum() / (1 * 2) / 6
    seeds = ((values.mean(1) - mean) ** 2).sum() / 1 / 2
    orders = ((values.mean(0) - mean) ** 2).sum() / 2 / 3
    assert found.variance == pytest.approx(max(0, seeds) + max(0, orders - rest))
    one = [0.2, 0.5, 0.6]
    assert intervals.of_records(np.array([one]), [], levels=("seeds", "orders")).quantile() == (
        pytest.approx(intervals.of_records(one, []).quantile())
    )


def runs(*keys):
    return [RunId(0, seed, name) for seed, name in keys]


def test_the_largest_crossing_counts():
    assert crossing([RunId(0, 0), RunId(1, 1)]) == Crossing([0, 1], (2,))
    assert crossing([]) == Crossing([], (0,))
    whole = runs((0, "x"), (0, "y"), (1, "x"), (1, "y"))
    assert crossing(whole) == Crossing([0, 1, 2, 3], (2, 2))
    assert crossing(whole[:3]) == Crossing([0, 1], (1, 2))
    assert crossing(runs((0, "x"), (1, "y"))) == Crossing([0, 1], (2,))
    many = runs((0, "x"), (0, "y"), (1, "x"), (2, "x"), (3, "x"))
    assert crossing(many) == Crossing([0, 2, 3, 4], (4, 1))


def test_where_more_runs_have_a_seed_and_a_sequence_of_their_own_these_count():
    keys = ((1, "x"), (0, "x"), (1, "y"), (2, "z"))
    assert crossing(runs(*keys)) == Crossing([1, 2, 3], (3,))
    assert crossing(runs(*keys)).levels == ("seeds",)
    assert crossing(runs(*keys, (0, "y"))) == Crossing([0, 2, 1, 4], (2, 2))  # more
    kinds = []
    for seed in range(40):  # against all subsets
        drawn = random.Random(seed).sample(list(product(range(4), "wxyz")), 3 + seed % 5)
        found = crossing(runs(*drawn))
        most = max(n for n in range(1, 5) if any(map(_apart, combinations(drawn, n))))
        assert len(found.places) >= most
        kinds.append(len(found.shape))
        if kinds[-1] == 1:
            assert len(found.places) == most and _apart([drawn[i] for i in found.places])
    assert kinds.count(1) > 5 and kinds.count(2) > 5


def _apart(keys):
    return all(len(set(of_one)) == len(keys) for of_one in zip(*keys, strict=True))


def test_runs_apart_are_called_so(tmp_path):
    """Their interval is over both: "seeds" alone would say less than is in it."""
    apart = ReportData([write(tmp_path / "a", [(0, "forward"), (1, "backward")], items=True)])
    table = tables.main_table(apart)
    assert OF_RUNS in table.note and OF_ORDERS not in table.note
    assert row(table, "sft")["acc"].how.startswith(
        "mean of 2 runs, each with a seed and a sequence of its own, 95% interval over"
    )
    for name, keys, of in (
        ("b", ALL, "2 seeds x 2 sequences"),
        ("c", [(0, "forward"), (1, "forward")], "2 seeds x 1 sequences"),
    ):
        crossed = tables.main_table(ReportData([write(tmp_path / name, keys, items=True)]))
        assert OF_RUNS not in crossed.note
        assert row(crossed, "sft")["acc"].how.startswith(f"mean of {of}, ")


def test_a_point_of_a_picture_and_its_interval_are_of_the_crossed_runs():
    kept = runs((0, "x"), (0, "y"), (1, "x"))
    point = SimpleNamespace(values=[0.1, 0.2, 0.9], stderrs=[0.0] * 3, runs=kept)
    half = 12.706 * 0.05  # of 0.1 and 0.2
    assert axis._mean(point, False) == pytest.approx((0.15, 0.15 - half, 0.15 + half), rel=1e-3)


def test_a_run_that_is_not_there_leaves_its_seed_out_and_is_told(tmp_path):
    folder = write(tmp_path / "some", ALL[:3])
    results = ReportData([folder])
    cells = row(tables.main_table(results), "sft")
    assert cells["seeds"] == "3/4"
    assert cells["acc"].value == pytest.approx(1.7 / 3)  # of seed 0 alone
    assert "sft: no records of seed 1 backward" in results.missing
    assert any(line.startswith("sft: means leave out seed 1 forward") for line in results.missing)
    views = results.of_sequences
    assert [row(tables.main_table(v), "sft")["seeds"] for v in views.values()] == ["2/2", "1/2"]


def test_methods_are_paired_by_seed_and_sequence(tmp_path):
    one = write(tmp_path / "one", ALL, methods=("sft", "sdft"))
    table = ReportData([one]).compare(
        ("sft", metrics.average_accuracy), ("sdft", metrics.average_accuracy)
    )
    assert table.value == 0 and "x 2 sequences" in table.how


def test_folders_of_different_sequences_or_seeds_are_pooled(tmp_path, folder):
    """One sequence a folder, as two machines make them."""
    parts = [
        write(tmp_path / name, [(0, name), (1, name)], orders={name: ORDERS[name]})
        for name in ORDERS
    ]
    pooled, whole = ReportData(parts), ReportData([folder])
    assert list(pooled.series) == ["sft"]
    assert pooled.series["sft"].orders == ORDERS
    for key in ("acc", "bwt", "forgetting", "a/own", "c/final"):
        both = [row(tables.main_table(data), "sft")[key] for data in (pooled, whole)]
        assert both[0].value == pytest.approx(both[1].value)
        assert (both[0].low, both[0].high) == pytest.approx((both[1].low, both[1].high))
    more = write(tmp_path / "more", [(2, name) for name in ORDERS])
    assert row(tables.main_table(ReportData([folder, more])), "sft")["seeds"] == "6/6"
    other = write(tmp_path / "other", [(2, "forward")], orders={"forward": ("b", "a", "c")})
    assert list(ReportData([folder, other]).series) == ["sft (orders)", "sft (other)"]


def test_the_report_draws_a_sequence_each(tmp_path, folder):
    out = tmp_path / "report"
    _, page = write_report([folder], out)
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert {"curves@forward", "curves@backward", "accuracy_matrix@forward"} <= figures
    assert "curves" not in figures and "accuracy_matrix" not in figures
    html = page.read_text()
    assert "Accuracy matrices, backward" in html and "The runs of backward: c, b, a." in html
    lines = (out / "tables/curves.csv").read_text().splitlines()
    assert lines[0].endswith("sequence") and {line.split(",")[-1] for line in lines[1:]} == {
        *ORDERS
    }
    assert "sequence" in (out / "tables/records.csv").read_text().splitlines()[0]


def test_a_folder_whose_sequences_are_none_is_refused(tmp_path):
    for orders, said in (
        ({**ORDERS, "forward": ("a", "b", "b")}, "`orders.forward` is not every skill once"),
        ({"forward": SKILLS}, "has records of sequence 'backward', which results.json does not"),
        ({}, "has records of sequence 'backward'"),
    ):
        place = write(tmp_path / str(len(orders)), ALL, orders=orders)
        with pytest.raises(UserError) as error:
            ReportData([place])
        assert said in str(error.value)


def test_folders_of_runs_know_their_sequence(folder):
    found = {(run.label, run.seed, run.sequence) for run in open_results(folder).runs()}
    assert found == {("sft", seed, name) for seed, name in ALL}
