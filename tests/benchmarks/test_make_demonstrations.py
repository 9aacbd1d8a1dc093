"""Worked answers to the hub's questions, by a server on loopback that is right at once, later,
never, or not there.
"""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.make_demonstrations import demonstrations
from benchmarks.skills._sources import question_of
from harness.skills.registry import get_skill
from tests.benchmarks.skills.test_paper_skills import hub_rows
from tests.conftest import read_lines, write_rows
from tests.evaluation.test_judge import completion, endpoint, serve  # noqa: F401 - serve is a fixture

ROOT = Path(__file__).resolve().parents[2]


def index(question):
    return int(question.rsplit("Which ", 1)[1].split("?")[0])


def solver(request):
    """Question i is answered right at temperature 0, at temperature 1, never, or right in another
    form, as i % 4 says.
    """
    body = request["body"]
    i = index(body["messages"][0]["content"])
    right, wrong = "ABCD"[i % 4], "ABCD"[(i + 1) % 4]
    letter = {0: right, 1: right if body["temperature"] else wrong, 2: wrong, 3: right}[i % 4]
    return f"It is {letter}." if i % 4 == 3 else f"<think>hm {wrong}</think>\n{answer(i, letter)}\n"


def answer(i, letter):
    return f"<reasoning>\nno {i}\n</reasoning>\n<answer>\n{letter}\n</answer>"


def serve_solver(serve, up=lambda number: True):  # noqa: F811
    server = serve(
        lambda _, number: (
            solver(server.requests[number - 1]) if up(number) else (401, {}, b"out of credit")
        )
    )
    return server


def test_the_first_right_answer_is_kept(serve, tmp_path):  # noqa: F811
    write_rows(tmp_path / "sciknoweval_chemistry_test.jsonl", hub_rows(40))
    skill = get_skill("science", path=tmp_path, source="hub")
    examples, server, said = skill.examples("train"), serve_solver(serve), []
    found = demonstrations(
        skill, examples, endpoint(server, tmp_path / "cache", concurrency=1), 3, said.append
    )
    by_kind = [[e for e in examples if index(question_of(e)) % 4 == kind] for kind in range(4)]
    assert set(found) == {e.id for kind in (0, 1) for e in by_kind[kind]} and all(by_kind)
    for example in by_kind[0] + by_kind[1]:
        assert found[example.id] == answer(index(question_of(example)), example.reference)
    asked = [r["body"] for r in server.requests]
    never = len(by_kind[2]) + len(by_kind[3])
    assert [b["temperature"] for b in asked] == [0] * 30 + [1] * (len(by_kind[1]) + 2 * never)
    assert len(said) == 3 and said[0] == f"try 1: {len(by_kind[0])} of 30 questions answered right"
    prompts = {b["messages"][0]["content"] for b in asked}
    assert prompts == {
        e.prompt[0]["content"].strip() + "\n\n" + e.prompt[1]["content"] for e in examples
    }


def test_what_was_cut_off_is_no_answer(serve, tmp_path):  # noqa: F811
    """Neither a reply that ends by its length nor reasoning that quotes the form."""
    write_rows(tmp_path / "sciknoweval_chemistry_test.jsonl", hub_rows(40))
    skill = get_skill("science", path=tmp_path, source="hub")
    examples = skill.examples("train")[:4]
    for finish, text in (
        ("length", "<answer>\n{}\n</answer> because"),
        ("stop", "<think>the form is <answer>\n{}\n</answer>"),
    ):
        for letter in "ABCD":
            body = completion(text.format(letter), finish)
            server = serve(lambda *_, body=body: (200, {}, body))
            assert (
                demonstrations(skill, examples, endpoint(server, tmp_path / finish / letter), 1)
                == {}
            )


def command(*arguments, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.make_demonstrations", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=300,
    )


def test_command_writes_what_the_skill_reads(serve, tmp_path):  # noqa: F811
    """After a server that broke off, too; what was answered is not paid for again."""
    (tmp_path / "hub").mkdir()
    write_rows(tmp_path / "hub" / "sciknoweval_chemistry_test.jsonl", hub_rows(40))
    up = [False]
    server = serve_solver(serve, lambda number: up[0] or number <= 9)
    settings = {
        "JUDGE_BASE_URL": server.url,
        "JUDGE_MODEL": "solver",
        "HARNESS_CACHE": str(tmp_path / "cache"),
    }
    arguments = ["--out", tmp_path / "made", "--path", tmp_path / "hub", "--tries", 2]
    failed = command(*arguments, **settings)
    assert (
        failed.returncode == 2
        and "out of credit" in failed.stderr
        and "Traceback" not in failed.stderr
    )
    assert not (tmp_path / "made").exists()
    up[0], before = True, len(server.requests)
    done = command(*arguments, **settings)
    assert done.returncode == 0, done.stderr
    assert "kept from before" in done.stderr and " 0 of them" not in done.stderr
    hub, made = (
        get_skill("science", path=tmp_path / "hub"),
        get_skill("science", path=tmp_path / "made"),
    )
    assert made.splits == ("train", "validation", "test")
    for split in made.splits:
        wanted = {question_of(e): e for e in hub.examples(split)}
        found = made.examples(split)
        right = [q for q in wanted if index(q) % 4 < 2]
        assert [question_of(e) for e in found] == (right if split == "train" else list(wanted))
        for e in found:
            assert (
                e.prompt == wanted[question_of(e)].prompt
                and e.reference == wanted[question_of(e)].reference
            )
            assert (e.demonstration is not None) is (split != "test" and question_of(e) in right)
            assert (
                e.demonstration is None
                or made.metrics["accuracy"](e.demonstration, e.reference) == 1.0
            )
    tested = {question_of(e) for e in hub.examples("test")}
    assert not any(
        question in r["body"]["messages"][0]["content"]
        for question in tested
        for r in server.requests
    )
    total = len(server.requests)
    assert (
        total > before
        and command(*arguments, **settings).returncode == 0
        and len(server.requests) == total
    )
    assert read_lines(tmp_path / "made" / "test.jsonl")[0].keys() == {"prompt", "answer"}


def test_a_model_that_is_never_right_writes_nothing(serve, tmp_path):  # noqa: F811
    (tmp_path / "hub").mkdir()
    write_rows(tmp_path / "hub" / "sciknoweval_chemistry_test.jsonl", hub_rows(8))
    server = serve(lambda *_: "I do not know.")
    failed = command(
        "--out",
        tmp_path / "made",
        "--path",
        tmp_path / "hub",
        "--tries",
        1,
        JUDGE_BASE_URL=server.url,
        JUDGE_MODEL="x",
        HARNESS_CACHE=str(tmp_path / "cache"),
    )
    assert (
        failed.returncode == 2
        and "gave no right answer in the form" in failed.stderr
        and not (tmp_path / "made").exists()
    )
