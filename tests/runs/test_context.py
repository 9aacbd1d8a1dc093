"""Rows beyond the model's positions: refused before any weights load, or left out for everybody."""

from dataclasses import replace
from pathlib import Path

import pytest

import run_sequence
from harness.base.errors import UserError
from harness.models.load import load_tokenizer
from harness.runs.context import check_context
from harness.runs.methods import build_method
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.skills.skill import examples_fingerprint
from tests.conftest import read_lines, save_tiny, write_rows

POSITIONS = 128


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Folder of a tiny model with 128 positions. Its tokens are bytes."""
    return save_tiny(tmp_path_factory.mktemp("short"), max_position_embeddings=POSITIONS)


@pytest.fixture
def order_with(order_file, short, tmp_path):
    """A function that reads an order in which two rows of a file have other texts."""

    def read(file="vowels-test.jsonl", methods=("sft",), model=short, seeds=(), **row):
        seldom = {key: row.pop(key) for key in [*row] if key not in ("prompt", "demonstration")}
        order = {
            "model": {"name": str(model), "dtype": "float32", "device": "cpu"},
            "methods": {name: {} for name in methods},
            **seldom,
        }
        path = order_file(**order)
        rows = read_lines(tmp_path / file)
        for i in (1, 2):
            rows[i] = {**rows[i], **{key: f"{value}{i}" for key, value in row.items()}}
        write_rows(tmp_path / file, rows)
        return read_order(path, methods=list(methods))

    return read


def checked(order):
    tokenizer, source = load_tokenizer(order.model.name)
    return check_context(order, tokenizer, source)


def refusal(order):
    with pytest.raises(UserError) as caught:
        checked(order)
    return str(caught.value)


def test_what_a_template_says_of_itself_counts(order_with, tmp_path):
    folder = save_tiny(tmp_path / "talks", max_position_embeddings=1600)
    assert checked(order_with(model=folder, evaluate={"max_new_tokens": 500})) == []
    tokenizer, _ = load_tokenizer(str(folder))
    tokenizer.chat_template = "x" * 1200 + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    order = order_with(model=folder, evaluate={"max_new_tokens": 500})
    assert "rows do not fit the model's 1600 positions" in refusal(order)


def test_a_long_question_is_refused(order_with):
    order = order_with(prompt="x" * 150)
    line = refusal(order)
    assert line.startswith(
        "skill vowels, split test: 2 of 4 rows do not fit the model's 128 positions: a prompt and "
        "its answer takes up to 159 tokens (row 2); lower max_new_tokens, "
    )
    assert line.endswith("or set too_long: leave_out")
    with pytest.raises(UserError, match="do not fit the model's 128 positions"):
        plan(order, "nowhere")


def test_the_border_is_exact(order_with):
    """A prompt of n letters has n + 4 tokens (<|user|> ... 1 <|end|> <|assistant|>); the last of
    the 6 tokens of an answer is not read."""
    fits = POSITIONS - 4 - 5
    assert checked(order_with(prompt="x" * fits)) == []
    assert "takes up to 129 tokens" in refusal(order_with(prompt="x" * (fits + 1)))


@pytest.mark.parametrize(
    "methods, row, tokens",
    [
        (("sft",), {"demonstration": "y" * 150}, True),
        (("dft",), {"demonstration": "y" * 150}, True),
        (("sdft",), {"demonstration": "y" * 150}, True),  # the teacher sees it
        (("grpo",), {"demonstration": "y" * 150}, False),
        (("grpo",), {"prompt": "y" * 150}, True),
        (("sft",), {"prompt": "y" * 115, "rollout": {"max_new_tokens": 60}}, False),
        (("grpo",), {"prompt": "y" * 115, "rollout": {"max_new_tokens": 60}}, True),
        (("grpo",), {"prompt": "y" * 150, "rollout": {"max_prompt_tokens": 100}}, False),
    ],
)
def test_training_rows_by_what_a_method_reads(methods, row, tokens, order_with, tmp_path):
    order = order_with("vowels-train.jsonl", methods, **row)
    if methods == ("sdft",):  # whose template alone is longer than this model reads
        order.specs["vowels"].teacher_template = [
            {"role": "user", "content": "{question}{demonstration}"}
        ]
        order.specs["digits"].teacher_template = order.specs["vowels"].teacher_template
    if tokens:
        assert "skill vowels, split train: 2 of 12 rows do not fit" in refusal(order)
    else:
        assert checked(order) == []


@pytest.mark.parametrize("chunk, fits", [(128, True), (129, False)])
def test_texts_of_cpt_are_cut_to_chunks(chunk, fits, order_with):
    order = order_with("vowels-train.jsonl", ("sft",))
    spec = build_method("cpt", {"chunk_tokens": chunk}, "place", [], Path)
    order.methods = {"cpt": spec}
    for skill in order.skills:
        examples = [replace(e, source="z" * 500) for e in skill.examples("train")]
        skill.keep("train", examples)
    assert checked(order) == [] if fits else "12 of 12 rows do not fit" in refusal(order)


def test_general_prompts_and_further_prompts(order_with):
    """The project's own general prompts are up to some 100 letters long."""
    line = refusal(order_with(methods=("sft_reinvoke",), rollout={"max_new_tokens": 100}))
    assert "methods.sft_reinvoke: " in line and "further prompts do not fit" in line
    assert checked(order_with(methods=("sft_reinvoke",), rollout={"max_new_tokens": 2})) == []


def test_teacher_and_oracle_prompts_are_measured_too(order_with):
    assert "the teacher's prompt takes up to" in refusal(order_with(evaluate={"teacher": True}))


def test_rows_that_are_not_measured_do_not_count(order_with):
    assert checked(order_with(prompt="x" * 150, evaluate={"examples": 1})) == []
    assert "split test" in refusal(
        order_with(prompt="x" * 150, evaluate={"examples": 1, "kl": {"prompts": 2}})
    )


def test_rows_are_left_out_for_all_methods(order_with):
    """Whatever --method says: grpo alone would read the long demonstrations of no row."""
    found = []
    for methods in (("sft",), ("grpo",)):
        order = order_with(
            "vowels-train.jsonl", ("sft", "grpo"), too_long="leave_out", demonstration="y" * 150
        )
        order.methods = {name: order.methods[name] for name in methods}
        assert checked(order) == [
            "skill vowels, split train: 2 of 12 rows are left out, with up to 169 tokens they do "
            "not fit the model's 128 positions"
        ]
        examples = order.skills[0].examples("train")
        assert [e.id for e in examples] == [str(i) for i in (1, *range(4, 13))]
        assert order.about()["skills"][0]["train"] == examples_fingerprint(examples)[:12]
        found.append(order.about()["skills"])
    assert found[0] == found[1]


def test_nothing_left_is_refused(order_with):
    order = (
        order_with(too_long="leave_out", skills=None)
        if False
        else order_with(too_long="leave_out", evaluate={"max_new_tokens": 500})
    )
    assert refusal(order).startswith(
        "skill vowels, split test: no row fits the model's 128 positions; lower max_new_tokens"
    )


def test_a_model_without_a_limit_takes_all(order_with, tmp_path):
    from transformers import AutoModelForCausalLM, BloomConfig

    from tests.conftest import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    assert checked(order_with(model=tmp_path / "bloom", prompt="x" * 5000)) == []


def test_the_command_refuses_and_leaves_out(order_with, tmp_path, monkeypatch, capsys):
    path = order_with(prompt="x" * 150, budget={"prompts": 4, "batch_size": 4}, evaluate={}).path
    words = ["run_sequence.py", str(path), "--out", str(tmp_path / "out"), "--method", "sft"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(run_sequence, "report", lambda out, progress: "")
    with pytest.raises(SystemExit) as caught:
        run_sequence.main()
    assert caught.value.code == 2 and not (tmp_path / "out").exists()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: skill vowels, split test: 2 of 4 rows do not fit")
    monkeypatch.setattr("sys.argv", [*words, "--set", "too_long=leave_out"])
    run_sequence.main()
    assert "skill vowels, split test: 2 of 4 rows are left out" in capsys.readouterr().err
    counts = {r["name"]: r["n"] for r in read_lines(tmp_path / "out/records.jsonl")}
    assert counts == {"vowels": 2, "digits": 4}


LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 100,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
}
SHOWN = [{"role": "user", "content": "{question}{demonstration}"}]


@pytest.fixture(scope="module")
def longrope(tmp_path_factory):
    """Folder of a tiny model whose rotary positions change behind 100 tokens."""
    folder = tmp_path_factory.mktemp("longrope")
    return save_tiny(folder, max_position_embeddings=2000, rope_parameters=LONG)


@pytest.mark.parametrize(
    "file, methods, row, said",
    [
        ("test", ("sft",), {"prompt": "x" * 94}, "split test (a prompt and its answer)"),
        ("train", ("sdft",), {"prompt": "x" * 94}, "split train (a prompt and its rollout)"),
        ("train", ("sft",), {"demonstration": "y" * 94}, ""),  # read, and not sampled
        (
            "train",
            ("sft_from_teacher",),
            {"demonstration": "y" * 78},
            "(the teacher's prompt and its",
        ),
        ("test", ("sft",), {"prompt": "x" * 120}, ""),  # beyond the border from its first token
    ],
)
def test_rows_that_cross_a_border_of_rotary_positions(
    file, methods, row, said, order_with, longrope
):
    order = order_with(f"vowels-{file}.jsonl", methods, longrope, **row)
    for spec in order.specs.values():
        spec.teacher_template = SHOWN
    if said:
        line = refusal(order)
        assert said in line and "new ones crosses the length at which" in line, line
    else:
        assert checked(order) == []


def test_the_teachers_prompts_of_an_evaluation_cross_it(order_with, longrope):
    shown = {"demonstration": "z" * 74, "evaluate": {"teacher": True}}
    order = order_with("vowels-validation.jsonl", model=longrope, **shown)
    for spec in order.specs.values():
        spec.teacher_template = SHOWN
    line = refusal(order)
    assert (
        "split validation (the teacher's prompt): a prompt of 98 tokens with 6 new ones cross"
        in line
    )


def test_dynamic_ntk_has_no_long_side(order_with, tmp_path):
    model = save_tiny(
        tmp_path / "dynamic",
        max_position_embeddings=100,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    )
    assert "dynamic" in refusal(order_with(model=model, prompt="x" * 150))
