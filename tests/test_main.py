"""main.py: the defaults of the paper's command, the model and the records that it leaves, and how
it refuses.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import main
from harness.base.files import read_json
from harness.models.checkpoint import model_fingerprint
from harness.models.load import load_model
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from tests.conftest import read_lines, write_rows

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path):
    """A skill of one's own: a folder with JSONL files, one training question of which is long."""
    skill = tmp_path / "shelves"
    skill.mkdir()
    for split, count in (("train", 10), ("test", 3)):
        write_rows(
            skill / f"{split}.jsonl",
            [
                {
                    "prompt": f"{split} {i}?" + " well" * 20 * (i == 7),
                    "demonstration": f"d{i}",
                    "reference": list("abcdefghijklmnop"),
                }
                for i in range(count)
            ],
        )
    return skill


def command(tiny, dataset, out, *more):
    return [
        "--model_name",
        str(tiny),
        "--dataset_name",
        str(dataset),
        "--output_dir",
        str(out),
        "--learning_rate",
        "1e-3",
        "--num_prompts_per_batch",
        "4",
        "--max_completion_length",
        "6",
        *more,
    ]


def test_defaults_are_those_of_the_authors():
    order = main.order_of(main.arguments(["--output_dir", "x", "--dataset_name", "elements"]))
    config, steps = order.methods["sdft"].config, -(-order.prompts(order.skills[0]) // 32)
    assert (order.model.name, order.model.dtype, order.seeds) == (
        "Qwen/Qwen2.5-7B-Instruct",
        "auto",
        [42],
    )
    assert (order.budget.epochs, order.budget.batch_size, order.batch_size(config)) == (1, 32, 32)
    assert (config.learning_rate, config.schedule, config.weight_decay, config.max_grad_norm) == (
        2e-5,
        "cosine",
        0,
        1,
    )
    assert config.warmup_steps == -(-steps // 10)
    assert (
        config.divergence,
        config.teacher,
        config.ema_alpha,
        config.skip_tokens,
        config.rollouts,
    ) == ("forward", "ema", 0.01, 3, 1)
    assert (
        order.rollout.temperature,
        order.rollout.max_new_tokens,
        order.rollout.max_prompt_tokens,
    ) == (1, 1024, 1024)
    assert (
        order.limit(order.skills[0]) == order.skills[0].max_new_tokens
        and order.evaluate.split == "test"
    )
    assert main.arguments(["--output_dir", "x"]).dataset_name == "tooluse"


def test_the_teacher_reads_the_prompt_of_the_authors_code(folder):
    """Where a skill has the paper's; a skill with one of its own keeps it."""
    order = main.order_of(main.arguments(["--output_dir", "x", "--dataset_name", str(folder)]))
    skill = order.skills[0]
    example = skill.examples("train")[0]
    shown = skill.teacher_prompt(example, order.template(skill))
    assert shown == [
        {
            "role": "user",
            "content": "\ntrain 0?\n\nThis is an example for a response to the question:\nd0\n\n"
            "Now answer with a response of your own, including the thinking process.\n",
        }
    ]
    assert order.about()["skills"][0]["teacher_template"] == "released"
    order = main.order_of(main.arguments(["--output_dir", "x", "--dataset_name", "elements"]))
    assert order.about()["skills"][0]["teacher_template"] == "three_turn"


def test_a_skill_without_data_of_its_own_takes_a_folder(tmp_path):
    """The paper's teacher reads an article and the answer."""
    for split in ("train", "test", "ood"):
        write_rows(
            tmp_path / f"{split}.jsonl",
            [{"question": f"{split}?", "answer": "d", "article": "The text."}],
        )
    order = main.order_of(
        main.arguments(
            [
                "--output_dir",
                "x",
                "--dataset_name",
                "wiki",
                "--dataset_path",
                str(tmp_path),
                "--masters",
                "host",
            ]
        )
    )
    config, skill = order.methods["sdft"].config, order.skills[0]
    assert (config.teacher_context, config.masters) == ("both", "host")
    shown = skill.teacher_prompt(
        skill.examples("train")[0], order.template(skill), config.teacher_context
    )
    assert "The text." in shown[-1]["content"] and "\nd\n" in shown[-1]["content"]


def test_a_folder_with_the_name_of_a_skill(tmp_path, monkeypatch):
    """NAME is the skill, ./NAME the folder, which is no skill of the paper."""
    monkeypatch.chdir(tmp_path)
    for name in ("wiki", "elements"):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            write_rows(
                tmp_path / name / f"{split}.jsonl",
                [{"prompt": "q", "demonstration": "d", "reference": "d"}],
            )
    order = main.order_of(main.arguments(["--output_dir", "x", "--dataset_name", "./wiki"]))
    assert (
        order.methods["sdft"].config.teacher_context is None
        and order.about()["skills"][0]["name"] == "wiki"
    )
    assert len(order.skills[0].examples("train")) == 1
    assert (
        len(
            main.order_of(main.arguments(["--output_dir", "x", "--dataset_name", "elements"]))
            .skills[0]
            .examples("train")
        )
        > 1
    )


def test_help_states_every_default(capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, value in vars(main.arguments(["--output_dir", "x"])).items():
        entry = text.split(f"--{name} ", 2)[2].split(" --")[0]
        assert name == "output_dir" or (
            "if left out" in entry if value is None else f"; default {value}" in entry
        ), name
    assert "in tokens" in text and "passes over" in text and "up to 1" in text


def test_trains_and_leaves_a_model_that_transformers_loads(tiny, tmp_path):
    """On a skill of the project; the records are those of the order with the same settings."""
    out = tmp_path / "out"
    given = command(tiny, "elements", out, "--num_train_epochs", "0.03", "--eval_examples", "3")
    main.main(given)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out).chat_template
    last = [r for r in read_lines(out / "records.jsonl") if r["stage"] == 1]
    loaded = model_fingerprint(load_model(str(out), device="cpu")[0])
    assert last and all(r["evaluation"].startswith(loaded[:16]) for r in last)
    assert (
        model_fingerprint(load_model(str(tiny), device="cpu")[0])
        != loaded
        == model_fingerprint(model)
    )
    assert not list(out.rglob("weights")) and (out / "report" / "index.html").exists()

    order = main.order_of(main.arguments(given))
    (tmp_path / "same.yaml").write_text(
        yaml.safe_dump(
            {
                "model": str(tiny),
                "skills": ["elements"],
                "seeds": [42],
                "budget": {"epochs": 0.03, "batch_size": 4},
                "methods": {
                    "sdft": {
                        "learning_rate": 1e-3,
                        "warmup_steps": order.methods["sdft"].config.warmup_steps,
                    }
                },
                "rollout": {"max_new_tokens": 6, "max_prompt_tokens": 1024},
                "evaluate": {"examples": 3},
            }
        )
    )
    run_order(read_order(tmp_path / "same.yaml"), tmp_path / "same")
    mine, theirs = (
        [{k: v for k, v in r.items() if k != "seconds"} for r in read_lines(f / "records.jsonl")]
        for f in (out, tmp_path / "same")
    )
    assert mine == theirs
    assert (
        read_json(out / "results.json")["methods"]
        == read_json(tmp_path / "same" / "results.json")["methods"]
    )


def test_started_again_it_goes_on(tiny, folder, tmp_path, monkeypatch, capsys):
    given, out = command(tiny, folder, tmp_path / "out", "--grader", "contains"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("main.take_out", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit) as caught:
            main.main(given)
    assert caught.value.code == 130 and not (out / "config.json").exists()
    weights = out / "runs/sdft-seed42/stage-1/weights"
    # as a kill in the middle of the move leaves it
    (weights / "config.json").rename(out / "config.json")
    main.main(given)
    load_model(str(out), device="cpu")
    before = (out / "model.safetensors").stat().st_mtime_ns
    main.main(given)
    assert (out / "model.safetensors").stat().st_mtime_ns == before and not weights.exists()
    assert {r["metric"] for r in read_lines(out / "records.jsonl")} == {
        "contains",
        "response_tokens",
    }
    for change, said in (
        (["--seed", "7"], "holds the model of seed 42; give another --output_dir"),
        (
            ["--ref_model_mixup_alpha", "0.5"],
            "`--ref_model_mixup_alpha` was 0.01 and is now 0.5; give another --output_dir\n",
        ),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main.main([*given, *change])
        assert caught.value.code == 2 and said in capsys.readouterr().err
    assert read_json(out / "results.json")["seeds"] == [42]


def test_long_questions_are_left_out(tiny, folder, tmp_path, monkeypatch, capsys):
    from harness.learning.stage import Stage

    seen, real = [], Stage.steps

    def watching(self):
        for step in real(self):
            seen.extend(e.id for e in step.examples)
            yield step

    monkeypatch.setattr(Stage, "steps", watching)
    main.main(command(tiny, folder, tmp_path / "out", "--max_prompt_length", "60"))
    # row 8 is the long one
    assert len(seen) == 10 and set(seen) == {str(i) for i in range(1, 11)} - {"8"}
    assert (
        "1 of 10 training examples are left out, their prompts are longer than 60 tokens"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit) as caught:
        main.main(command(tiny, folder, tmp_path / "none", "--max_prompt_length", "5"))
    assert caught.value.code == 2
    assert (
        "skill shelves: no training example has a prompt of at most 5 tokens"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "change, said",
    [
        (
            ["--dataset_name", "elementz"],
            "--dataset_name: unknown skill 'elementz'; did you mean 'elements'?",
        ),
        (["--dataset_name", "."], "train.jsonl is not a file; give the path of a JSONL file"),
        (["--dataset_name", "wiki"], "set `path` to a folder"),
        (["--dataset_path", "."], "elements takes no `path`; leave it out"),
        (
            ["--learning_rate", "fast"],
            "main.py: argument --learning_rate: invalid float value: 'fast'; main.py --help",
        ),
        (["--learning_rate", "-1"], "--learning_rate: must be at least 0, not -1.0"),
        (["--ref_model_mixup_alpha", "0"], "--ref_model_mixup_alpha: must be above 0, not 0.0"),
        (["--num_prompts_per_batch", "0"], "--num_prompts_per_batch: must be at least 1, not 0"),
        (["--num_train_epochs", "0"], "--num_train_epochs: must be above 0, not 0.0"),
        (
            ["--num_train_epochs", "1e308"],
            "--num_train_epochs: is too large a number; give one below 2^63",
        ),
        (
            ["--max_prompt_length", "1" + 400 * "0"],
            "--max_prompt_length: is too large a number; give one below 2^63",
        ),
        (["--warmup_ratio", "0.5"], "--warmup_ratio: must be from 0 to 0.2, not 0.5"),
        (["--seed", "-1"], "--seed: must be at least 0, not -1"),
        (["--eval_examples", "0"], "--eval_examples: must be at least 1, not 0"),
        (
            ["--retention", "embeded"],
            "--retention: unknown retention suite 'embeded'; did you mean 'embedded'?",
        ),
        (["--model_name", "./nowhere"], "--model_name: ./nowhere is not a folder"),
        (["--grader", "exact_match"], "--grader: is of a folder's answers, and elements has one"),
        (["--epochs", "3"], "main.py: unrecognized arguments: --epochs 3"),
    ],
)
def test_wrong_arguments_end_in_one_line(change, said, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main.main(
            [
                "--model_name",
                "embedded",
                "--dataset_name",
                "elements",
                "--output_dir",
                str(out),
                *change,
            ]
        )
    line = capsys.readouterr().err
    assert (
        caught.value.code == 2
        and line.startswith("error: ")
        and line.count("\n") == 1
        and said in line
        and not any(key in line for key in ("budget", "rollout", "methods."))
    ), line
    assert not out.exists()


def test_as_a_command(tiny, folder, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *command(tiny, folder, tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.splitlines()[-2:] == ["report: out/report/index.html", "model: out"]
        and "sdft" in done.stdout
    )
