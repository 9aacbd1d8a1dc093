"""What an order says in the wrong place, and options that do nothing there."""

import pytest

from harness.base.errors import UserError
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from tests.runs.refusals import refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replay": {"ratio": 0.1}}, "sft: replay: 'replay' is a part; write with: {replay: {}}"),
        ({"lora": {}}, "'lora' is a parametrisation; write parameters: {lora: {}}"),
        ({"lwf": None}, "'lwf' is a preset; write preset: lwf"),
        ({"rank": 8}, "'rank' is no setting of the method, but of dora, lora, milora"),
        ({"fisher": "sampled"}, "but of ewc; write with: {ewc: {fisher: ...}}"),
        ({"learning_rat": 1}, "unknown key; did you mean 'learning_rate'?"),
        ({"with": {"lora": {}}}, "with.lora: 'lora' is a parametrisation; write parameters: {lora"),
        ({"with": {"lwf": {}}}, "'lwf' is a preset; write preset: lwf"),
        ({"with": {"grpo": {}}}, "'grpo' is a method; write method: grpo"),
        ({"with": {"ewk": {}}}, "unknown part 'ewk'; did you mean 'ewc'?"),
        ({"parameters": {"ewc": {}}}, "'ewc' is a part; write with: {ewc: {}}"),
        ({"parameters": "ewc"}, "'ewc' is a part; write with: {ewc: {}}"),
        ({"parameters": ""}, "'' is no name"),
        ({"with": {"my.part": {"file": "p.py"}}}, "'my.part' is no name"),
        ({"with": {"a|<i>": {"file": "p.py"}}}, "'a|<i>' is no name"),
        ({"method": "sft", "file": "p.py"}, "method and file both say what it is; leave one out"),
        ({"parameters": {"freeze": {"layers": ""}}}, "layers: '' is not as `last 4` or `8-15`"),
        ({"parameters": {"lora": {"targets": [1]}}}, "targets[0]: must be a text, not 1"),
        ({"parameters": {"lora": {"targets": [None]}}}, "targets[0]: must be a text, not nothing"),
        ({"with": {"ewc": {"strength": 1e300}}}, "strength: is too large a number"),
        ({"with": {"ewc": {"fisher": True}}}, "fisher: must be a text, not True"),
        ({"with": {"ewc": {"strength": 1e13}}}, "strength: must be at most 1000000000000.0"),
        ({"with": {"l2sp": {"strength": 1e13}}}, "strength: must be at most 1000000000000.0"),
        ({"with": {"anchor": {"beta": 1e18}}}, "beta: must be at most 1000000.0"),
        ({"with": {"anchor": {"temperature": 1e18}}}, "temperature: must be at most 1000"),
        (
            {"with": {"anchor": {"along": "old_prompts", "share": 1e6}}},
            "share: must be at most 100",
        ),
        ({"with": {"agem": {"share": 1e6}}}, "share: must be at most 100"),
        ({"with": {"matched_norm": {"norm": 1e18}}}, "norm: must be at most 1000000.0"),
        ({"with": {"ties": {"scale": 1e18}}}, "scale: must be at most 1000"),
        ({"with": {"dare": {"scale": 1e18}}}, "scale: must be at most 1000"),
        ({"parameters": {"lora": {"alpha": 1e18}}}, "alpha: must be at most 1000000.0"),
        ({"parameters": {"pissa": {"alpha": 1e18}}}, "alpha: must be at most 1000000.0"),
        ({"parameters": {"olora": {"lambda_1": 1e18}}}, "lambda_1: must be at most 1000000.0"),
        ({"method": "grpo", "kl_beta": 1e18}, "kl_beta: must be at most 1000000.0"),
        ({"method": "psft", "clip_low": 0.2}, "clip_low: unknown key; known: "),
    ],
)
def test_a_name_in_the_wrong_section_is_told_where_it_belongs(order_file, options, said):
    assert said in refused(order_file(methods={"sft": options}))


@pytest.mark.parametrize(
    ("label", "said"),
    [("ewc", "'ewc' is a part"), ("lora", "is a parametrisation"), ("lwf", "write preset: lwf")],
)
def test_a_label_that_is_no_method(order_file, label, said):
    assert said in refused(order_file(methods={label: {}}))


IDLE = [
    ({"with": {"replay": {"score": "logprob"}}}, "score", {"selection": "best_scored"}),
    ({"with": {"replay": {"temperature": 0.1}}}, "temperature", {"content": "own"}),
    ({"with": {"anchor": {"share": 0.5}}}, "share", {"along": "old_prompts"}),
    ({"with": {"random_mask": {"share": 0.2, "of": "run"}}}, "of", {"share": None}),
    ({"with": {"random_mask": {"share": 0.2, "threshold": 3}}}, "threshold", {"share": None}),
    ({"method": "sdft", "teacher": "frozen", "ema_alpha": 0.1}, "ema_alpha", {"teacher": "ema"}),
    ({"method": "sdpo", "teacher": "live", "ema_alpha": 0.1}, "ema_alpha", {"teacher": "ema"}),
    ({"method": "sdft", "mixture_weight": 0.1}, "mixture_weight", {"divergence": "mixture"}),
    ({"method": "sdft", "top_k": 5}, "top_k", {"estimator": "top_k"}),
    ({"method": "sdft", "tail": False}, "tail", {"estimator": "top_k"}),
    ({"method": "trl", "trainer": "GRPOTrainer", "answers": 8}, "answers", {}),
    (
        {"method": "grpo", "clip": "cispo", "inner_batches": 2, "clip_low": 0.1},
        "clip_low",
        {"clip": "ppo"},
    ),
    ({"method": "grpo", "clip_low": 0.1}, "clip_low", {"inner_batches": 2}),
    ({"method": "grpo", "clip_high": 0.3}, "clip_high", {"inner_epochs": 2}),
    ({"method": "grpo", "clip": "cispo"}, "clip", {"inner_batches": 2}),
    ({"method": "grpo", "ratio": "sequence"}, "ratio", {"inner_epochs": 2}),
    ({"preset": "gspo", "inner_batches": 1}, "clip_high", {"inner_epochs": 2}),
    ({"method": "psft", "inner_batches": 1, "clip_high": 0.3}, "clip_high", {"inner_epochs": 2}),
]


@pytest.mark.parametrize(("options", "name", "with_it"), IDLE)
def test_an_option_that_does_nothing_is_refused(order_file, options, name, with_it):
    line = refused(order_file(methods={"sft": options}))
    assert f": {name} does something with " in line and line.endswith("alone; leave it out")
    if parts := options.get("with"):
        ((part, own),) = parts.items()
        fits = {**options, "with": {part: {**own, **with_it}}}
    else:
        fits = {**options, **with_it}
    if with_it:
        assert read_order(order_file(methods={"sft": fits})).methods


def test_one_value_of_a_grid_may_leave_another_option_idle(order_file):
    methods = {"a": {"method": "sft", "with": {"replay": {"temperature": 0.5}}}}
    grid = {"a": {"with.replay.content": ["gold", "own"]}}
    points = read_order(order_file(methods=methods, grid=grid)).methods.values()
    assert [spec.parts[0].config.temperature for spec in points] == [0.5, 0.5]


def matched(like, **others):
    return {"a": {"method": "sft", "with": {"matched_norm": {"like": like}}}, **others}


STM = {"method": "sft", "with": {"stm": {}, "matched_norm": {}}}


@pytest.mark.parametrize(
    ("methods", "grid", "said"),
    [
        (matched("a"), {}, "'a' is the method itself"),
        (matched("b", b=STM), {}, "'b' runs after 'a'; write b before it"),
        ({"b": {"method": "sft"}, **matched("b")}, {}, "'b' has no such part; give it `with: {mat"),
        ({"b": STM, **matched("b.typo")}, {}, "the order has no method 'b.typo'; known: a, b"),
        ({"b": STM, **matched("b")}, {"b": {"epochs": [1, 2]}}, "'b' is a grid; name points of it"),
        ({"b": STM, **matched("b.epochs-1")}, {"b": {"epochs": [1]}}, "points of a grid come last"),
        (matched(""), {}, "the order has no method ''"),
        ({"b": {**STM, "batch_size": 2}, **matched("b")}, {}, "'b' makes [6, 6] steps in its sta"),
        ({"b": {**STM, "epochs": 2}, **matched("b")}, {}, "give both the same budget and batch"),
        ({"b": STM, "a": {**matched("b")["a"], "method": "psft"}}, {}, "set inner_batches and inn"),
        (  # what is followed makes several updates a step
            {"b": {"method": "psft", "with": {"matched_norm": {}}}, **matched("b")},
            {},
            "with.matched_norm: 'b': like wants one update for each step",
        ),
        (  # steps that a part adds behind the others
            {"b": {**STM, "with": {**STM["with"], "replay": {"mix": "after"}}}, **matched("b")},
            {},
            "'b' makes [3, 4] steps in its stages, 'a' [3, 3]",
        ),
    ],
)
def test_a_method_follows_one_that_runs_before_it(order_file, methods, grid, said):
    line = refused(order_file(methods=methods, grid=grid))
    assert said in line and "with.matched_norm: " in line


def test_references_of_a_method_that_follows_another_come_behind_those_of_that_one(order_file):
    methods = {"b": STM, **matched("b")}
    grid = {"a": {"learning_rate": [1e-4, 1e-3]}}
    assert len(read_order(order_file(methods=methods, grid=grid)).methods) == 3
    order = read_order(order_file(methods=methods, references=["b", "a"]))
    assert order.references == ["b", "a"]
    for labels in (["a"], ["a", "b"]):
        line = refused(order_file(methods=methods, references=labels))
        assert "references[0]: with.matched_norm of 'a' reads the same references of 'b'" in line


def test_numbers_are_labels_and_set_reaches_a_parametrisation_without_options(order_file):
    methods = {1: {"method": "sft"}, "b": {"method": "sft", "parameters": "lora"}}
    path = order_file(methods=methods, references=[1])
    order = read_order(path, ["methods.b.parameters.lora.rank=4"])
    assert order.methods["b"].parameters.config.rank == 4 and order.references == ["1"]


PART = """
from dataclasses import dataclass
from harness.learning.part import Part, PartConfig
{code}

class Mine(Part):
    Config = MyConfig

    def end(self, stage):
        pass
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("class MyConfig: pass", "its Config fails"),
        ("@dataclass\nclass MyConfig(PartConfig):\n    share: 'Nothing' = 1", "its Config fails"),
        (
            "@dataclass\nclass MyConfig(PartConfig):\n    share: float = 1.0\n"
            "    def __post_init__(self):\n        assert False, 'mine'",
            "AssertionError: mine",
        ),
        (
            "class MyConfig(PartConfig):\n    share: float = 1.0",
            "unknown key; MyConfig has no options, or no @dataclass above it",
        ),
    ],
)
def test_options_of_a_users_part_that_cannot_be_made(order_file, tmp_path, code, said):
    (tmp_path / "mine.py").write_text(PART.format(code=code))
    parts = {"mine": {"file": "mine.py", "share": 0.5}}
    line = refused(order_file(methods={"sft": {"with": parts}}))
    assert said in line and "with.mine: " in line


def test_one_part_joins_a_method_once(order_file, tmp_path):
    code = "from harness.learning.part import Part\nclass Mine(Part):\n    def end(self, s): pass\n"
    (tmp_path / "mine.py").write_text(code)
    parts = {"one": {"file": "mine.py"}, "two": {"file": "mine.py"}}
    line = refused(order_file(methods={"sft": {"with": parts}}))
    assert "with.two: cannot join beside one: both are the same part; leave one out" in line


def test_a_new_label_that_would_learn_nothing_is_refused_before_a_started_folder(
    order_file, tmp_path
):
    sft = {"sft": {"learning_rate": 1e-3}}
    run_order(read_order(order_file(methods=sft)), tmp_path / "out")
    before = (tmp_path / "out/results.json").read_bytes()
    for bad in ({"freeze": {"layers": "last 99"}}, {"lora": {"rank": 1000}}):
        methods = {**sft, "other": {"method": "sft", "parameters": bad}}
        with pytest.raises(UserError, match=r"methods\.other: parameters"):
            run_order(read_order(order_file(methods=methods)), tmp_path / "out")
        assert (tmp_path / "out/results.json").read_bytes() == before
        assert not (tmp_path / "out/runs/other-seed0").exists()
