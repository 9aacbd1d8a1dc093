"""Presets of papers: every one builds, single keys go over it, and the record has all values."""

import pytest

from harness.base.errors import UserError
from harness.runs import presets
from harness.runs.presets import expanded, preset_files, read_preset
from harness.runs.reading import read_order


def test_every_preset_is_a_method_of_an_order(order_file):
    names = list(preset_files())
    assert {
        "opsd",
        "opd",
        "minillm",
        "sdpo",
        "gkd",
        "psft",
        "dapo",
        "rloo",
        "gspo",
        "cispo",
    } <= set(names)
    order = read_order(order_file(methods={name: {"preset": name} for name in names}))
    about = order.about()["methods"]
    for name in names:
        preset = read_preset(name)
        assert about[name]["method"] == preset["method"] and about[name]["preset"] == name
        assert len(preset["source"]) > 5
        for key, value in preset["settings"].items():
            if key == "parameters":
                for kind, options in value.items():
                    assert options.items() <= about[name]["parameters"][kind].items()
            elif key != "with":
                wanted = float(value) if isinstance(value, str) and value[0].isdigit() else value
                assert about[name]["config"][key] == wanted, (name, key)


def test_single_keys_go_over_a_preset(order_file):
    grid = {"mine": {"with.anchor.beta": [0.5, 2]}}
    methods = {
        "mine": {"preset": "lwf", "with": {"ewc": None}},
        "other": {"preset": "opsd", "entry_clip": 0.1},
    }
    order = read_order(order_file(methods=methods, grid=grid))
    found = order.methods["mine.with.anchor.beta-0.5"]
    parts = {part.name: part.config for part in found.parts}
    assert (parts["anchor"].beta, parts["anchor"].temperature) == (0.5, 2)
    assert set(parts) == {"anchor", "ewc"}
    other = order.methods["other"].config
    assert (other.entry_clip, other.teacher, other.learning_rate) == (0.1, "frozen", 5e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "opssd"}, "preset: unknown preset 'opssd'; did you mean 'opsd'?"),
        ({"preset": ["opsd"]}, "preset: unknown preset"),
        ({"preset": "opsd", "method": "grpo"}, "opsd is a preset of sdft, not of grpo"),
        ({"preset": "opsd", "file": "mine.py"}, "opsd is a preset of sdft, not of mine.py"),
        ({"preset": "opsd", "learning_rte": 1}, "learning_rte: unknown key"),
    ],
)
def test_what_is_wrong_is_said(order_file, options, said):
    with pytest.raises(UserError) as error:
        read_order(order_file(methods={"mine": options}))
    assert said in str(error.value)


@pytest.mark.parametrize("given", [False, None, 0, "", [], True])
@pytest.mark.parametrize("whole", [True, False])
def test_a_part_of_a_preset_is_not_switched_off_in_silence(order_file, given, whole):
    parts = given if whole else {"anchor": given}
    with pytest.raises(UserError) as error:
        read_order(order_file(methods={"mine": {"preset": "lwf", "with": parts}}))
    assert "is no mapping of options, and preset lwf has parts" in str(error.value)


def test_empty_options_keep_those_of_a_preset(order_file):
    methods = {
        "one": {"preset": "lwf", "with": {}},
        "two": {"preset": "lwf", "with": {"anchor": {}, "replay": {}}},
        "three": {"preset": "opsd", "with": {"ewc": None}},  # a preset without parts
    }
    read = read_order(order_file(methods=methods)).methods
    parts = {label: {part.name: part.config for part in s.parts} for label, s in read.items()}
    assert parts["one"]["anchor"].temperature == parts["two"]["anchor"].temperature == 2
    assert [list(each) for each in parts.values()] == [["anchor"], ["anchor", "replay"], ["ewc"]]


GOOD = "method: sft\nsource: mine\nsettings: {learning_rate: 1e-4}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"method: [", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"[]", "is no preset"),
        (b"method: sft\nsource: s\nsettings: null\n", "its settings is not a mapping"),
        (b"method: sft\nsource: s\nsettings: [1]\n", "its settings is not a mapping"),
        (b"method: null\nsource: s\nsettings: {}\n", "its method is not a text"),
        (b"method: sft\nsource: s\nsettings: {with: null}\n", "with is no mapping of parts"),
        (b"method: sft\nsource: s\nsettings: {with: {ewc: 1}}\n", "with is no mapping of parts"),
        (b"method: sft\nsource: s\nsettings: {method: grpo}\n", "its settings hold method"),
        (b"method: sft\nmethod: grpo\nsource: s\nsettings: {}\n", "key 'method' stands twice"),
        (b"method: sft\nsource: s\nsettings: {batch_size: 010}\n", "octal: write 8 or 10"),
    ],
)
def test_a_preset_of_ones_own_is_checked(order_file, tmp_path, monkeypatch, text, said):
    folder = tmp_path / "presets"
    folder.mkdir()
    monkeypatch.setattr(presets, "FOLDER", folder)
    (folder / "own.yaml").write_text(GOOD)
    order = read_order(order_file(methods={"mine": {"preset": "own"}}))
    assert order.methods["mine"].config.learning_rate == 1e-4
    (folder / "own.yaml").write_bytes(text)
    with pytest.raises(UserError) as error:
        read_order(order_file(methods={"mine": {"preset": "own"}}))
    assert said in str(error.value) and "own.yaml" in str(error.value)


def test_without_a_preset_options_are_as_they_are():
    assert expanded({"learning_rate": 1}, "order") == {"learning_rate": 1}
