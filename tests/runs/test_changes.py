"""Keys that --set, --method and --seed change: what they find, and how they refuse."""

import pytest

from harness.base.errors import UserError
from harness.runs.reading import read_order, read_sections
from tests.runs.refusals import refused


@pytest.mark.parametrize(
    "change, said",
    [
        ("budget.promts=3", ["budget: promts: unknown key", "did you mean 'prompts'?"]),
        ("budget.prompts", ["--set budget.prompts: must be KEY=VALUE"]),
        ("budget.prompts=[", ["--set budget.prompts: its value is not YAML", "quote the value"]),
        (
            "budget.prompts=1" + 5000 * "0",
            ["--set budget.prompts: its value is not YAML (a whole number beyond 64 bits)"],
        ),
        ("name=" + 300 * "x", ["is no folder name", "at most 200"]),
        (
            "retention.embedded_facts.limit=8",
            ["retention: must be a text or a list, not a mapping"],
        ),
        ("budget.prompts=-1", ["budget: prompts: must be at least 1, not -1"]),
        ("name.first=x", ["name: must be a text, not a mapping"]),
        ("budget.prompts.x=3", ["--set budget.prompts.x: prompts holds a single value"]),
        ("skills.9.prompts=3", ["--set skills.9.prompts: there is no entry '9'"]),
        (f"skills.{5000 * '9'}.prompts=3", ["there is no entry '9999"]),
        ("skills.٠.prompts=3", ["there is no entry '٠'"]),
        ("skills.vowels=3", ["--set skills.vowels: points at a whole entry"]),
        ("methods.dpo.learning_rate=1", ["methods.dpo: unknown method 'dpo'"]),
        ("nonsense=1", ["nonsense: unknown key", "known: "]),
    ],
)
def test_wrong_change(change, said, order_file):
    line = refused(order_file(), changes=[change])
    for part in said:
        assert part in line, line


def test_wrong_method_option(order_file):
    assert refused(order_file(), methods=["sdtf"]) == (
        "--method sdtf: is not in the order; did you mean 'sdft'? known: grpo, sdft, sft"
    )


@pytest.mark.parametrize("seed", [-3, 10**400])
def test_wrong_seed(seed, order_file):
    assert refused(order_file(), seeds=[0, seed]).startswith("--seed: ")


def test_a_gpu_that_is_not_there(order_file, monkeypatch):
    path = order_file(model={"name": "embedded", "device": "cuda"})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert (
        "model: device: there is no cuda: this machine has no GPU that PyTorch sees; "
        "use auto or cpu" in refused(path)
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert read_order(path).model.device == "cuda"
    assert "there is no cuda:1: this machine has 1 GPU that" in refused(
        path, changes=["model.device=cuda:1"]
    )


@pytest.mark.parametrize("entry", ["embedded_facts", {"task": "embedded_facts", "limit": 3}])
def test_a_change_finds_its_retention_task(entry, order_file):
    order = read_order(
        order_file(retention=["embedded_commonsense", entry]),
        ["retention.embedded_facts.limit=8", "retention.0.limit=4"],
    )
    assert [(t.task, t.limit) for t in order.suite.tasks] == [
        ("embedded_commonsense", 4),
        ("embedded_facts", 8),
    ]


def test_a_change_finds_a_label_with_dots(order_file):
    methods = {
        "a": {"method": "sft", "learning_rate": 1.0},
        "a.b": {"method": "sft", "learning_rate": 1.0},
    }
    order = read_order(
        order_file(methods=methods), ["methods.a.b.learning_rate=0.5", "methods.a.weight_decay=0.1"]
    )
    found = {
        label: (m.config.learning_rate, m.config.weight_decay) for label, m in order.methods.items()
    }
    assert found == {"a": (1.0, 0.1), "a.b": (0.5, 0.0)}


@pytest.mark.parametrize(
    "text, prompts",
    [("07", 7), ("0", 0), ("1_000", 1000), ("0x1F", 31), ("0b11", 3), ("+5", 5), ("10", 10)],
)
def test_numbers_that_all_readers_of_yaml_take_alike_are_as_written(text, prompts, order_file):
    read = read_sections(order_file(), [f"seeds=[{text}]"])
    assert read.seeds == [prompts]


def test_numbers_of_other_bases_are_refused_in_a_change(order_file):
    for text, said in (("010", "octal: write 8 or 10"), ("1:30", "base of 60: write 90")):
        with pytest.raises(UserError, match=rf"--set budget.prompts: .*{said}"):
            read_order(order_file(), [f"budget.prompts={text}"])
    with pytest.raises(UserError, match=r"must be a whole number, not the text '1:30'"):
        read_order(order_file(), ["budget.prompts='1:30'"])  # in quotes it is a text


def test_changes_take_effect(order_file):
    changes = [
        "budget.prompts=7",
        "skills.digits.prompts=3",
        "methods.sft.learning_rate=1e-4",
        "evaluate.examples=2",
    ]
    order = read_order(order_file(), changes, ["sdft", "sft"], [3, 3, 1])
    assert [order.prompts(s) for s in order.skills] == [7, 3]
    assert order.methods["sft"].config.learning_rate == 1e-4 and order.evaluate.examples == 2
    assert [run.name for run in order.runs()] == [
        "sft-seed3",
        "sdft-seed3",
        "sft-seed1",
        "sdft-seed1",
    ]
