"""Questions from articles, by a server on loopback that answers in the asked form, in a wrong one,
or not at all.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.make_knowledge import (
    FORMS,
    KINDS,
    make,
    passages,
    read_articles,
    read_pairs,
    shares,
    without_repeats,
)
from harness.base.errors import UserError
from harness.skills.graders import normalise
from tests.conftest import read_lines
from tests.evaluation.test_judge import completion, endpoint, serve  # noqa: F401 - serve is a fixture

ROOT = Path(__file__).resolve().parents[2]
ARTICLES = {
    "Flood of Borna": "\n\n".join(
        f"Paragraph {i} about Borna. " + "Water rose. " * 10 for i in range(6)
    ),
    "Storm of Celle": "\n\n".join(
        f"Paragraph {i} about Celle. " + "Wind blew. " * 10 for i in range(3)
    ),
}


def writer(prompt, _):
    """As many questions as are asked for; the last repeats the first in other words, and a line of
    prose stands before them. The second wording of a direct question is the first one's where its
    number is a multiple of 5.
    """
    count = int(re.search(r"Write (\d+) different", prompt)[1])
    kind = next(kind for kind, how in KINDS.items() if how in prompt)
    first = re.search(r"Paragraph (\d+) about (\w+)", prompt)
    rows = [
        {
            "question": f"{kind} question {n} about {first[2]} from {first[1]}?",
            "answer": f"Answer {n} of {kind} {first[1]} {first[2]}.",
        }
        for n in range(count - 1)
    ]
    rows.append(
        {
            "question": rows[0]["question"].replace("question", "Question, the"),
            "answer": rows[0]["answer"],
        }
        if rows
        else {"question": f"{kind} only {first[0]}?", "answer": "x"}
    )
    if kind == "direct":
        for n, row in enumerate(rows):
            row["again"] = (
                row["question"]
                if n % 5 == 0
                else f"In other words, what of {n} was said in {first[0]}?"
            )
    return "Here they are:\n```json\n" + "\n".join(json.dumps(r) for r in rows) + "\n```\n"


def test_the_set(serve, tmp_path):  # noqa: F811
    server = serve(writer)
    splits, left_out = make(
        ARTICLES, endpoint(server, tmp_path), count=40, size=320, test_share=0.25
    )
    prompts = [r["body"]["messages"][0]["content"] for r in server.requests]
    for title, text in ARTICLES.items():
        mine = [p for p in prompts if title in p]
        for how in KINDS.values():
            assert sum(int(re.search(r"Write (\d+) ", p)[1]) for p in mine if how in p) == 40
        for paragraph in text.split("\n\n"):  # every paragraph is shown once for each kind, whole
            assert sum(paragraph.strip() in p for p in mine) == len(KINDS)
    rows = [row for rows in splits.values() for row in rows]
    asked_again = splits["validation"] + splits["test"]
    assert left_out["repeated questions"] == len(prompts) and left_out[
        "lines that are no question"
    ] == len(prompts)
    assert len(splits["train"] + splits["ood"]) == 2 * 2 * 40 - len(prompts)
    assert len({normalise(r["question"]) for r in rows}) == len(rows)
    assert all(
        set(r) == {"question", "answer", "article"} and r["article"] in ARTICLES.values()
        for r in rows
    )
    assert all(r["question"].startswith("indirect") for r in splits["ood"])
    assert all(r["question"].startswith("direct") for r in splits["train"])
    assert all(r["question"].startswith("In other words") for r in asked_again)
    # every fact that is asked for was taught
    trained = {(r["answer"], r["article"]) for r in splits["train"]}
    assert all((r["answer"], r["article"]) in trained for r in asked_again) and len(
        {r["answer"] for r in asked_again}
    ) == len(asked_again)
    for text in ARTICLES.values():
        train, test, validation = (
            sum(r["article"] == text for r in splits[s]) for s in ("train", "test", "validation")
        )
        fresh = sum(
            int(r["answer"].split()[1]) % 5 > 0 for r in splits["train"] if r["article"] == text
        )
        assert (
            train > fresh and test == round(0.25 * fresh) > validation == round(0.125 * fresh) > 0
        )
    assert left_out["second wordings like the first"] == sum(
        int(r["answer"].split()[1]) % 5 == 0 for r in splits["train"]
    )
    again = endpoint(server, tmp_path)
    assert (
        make(ARTICLES, again, count=40, size=320, test_share=0.25)[0] == splits
        and "asked" not in again.counts
    )
    other, _ = make(ARTICLES, again, count=40, size=320, test_share=0.25, seed=1)
    assert (
        other["test"] != splits["test"]
        and other["ood"] == splits["ood"]
        and other["train"] == splits["train"]
    )


def test_passages_and_shares():
    text = "aaaa\n\nbb\n\n\n\ncc\n\n" + "d" * 30
    assert passages(text, 10) == ["aaaa\n\nbb\n\ncc", "d" * 30]
    assert passages("", 10) == [] and passages("x", 10) == ["x"]
    assert shares(10, ["a" * 30, "b" * 60, "c" * 10]) == [3, 6, 1]
    assert sum(shares(7, ["a" * 11, "b" * 13, "c" * 29])) == 7


def test_what_is_no_question_is_left_out():
    text = (
        '<think>{"question": "a", "answer": "b"}</think>\n```\n'
        '{"question": " Q? ", "answer": "A"}\n[1]\n{"question": "Q"}\n'
        '{"question": "Q", "answer": 5}\n{"question": "", "answer": "A"}\n1. Q?\n```'
    )
    assert read_pairs(text, FORMS["indirect"]) == ([{"question": "Q?", "answer": "A"}], 5)
    assert read_pairs(
        "[" * 100_000 + '\n{"question": "Q \\ud83d?", "answer": "A"}', FORMS["indirect"]
    ) == ([], 2)
    assert read_pairs(text, FORMS["direct"]) == ([], 6) and read_pairs("", FORMS["direct"]) == (
        [],
        0,
    )


def test_repeats():
    pairs = [
        {"question": q, "answer": a}
        for q, a in (
            ("Where did the flood strike?", "Borna"),
            ("where did flood strike", "In Celle"),
            ("Where did the big flood strike then?", "borna."),
            ("Which town did the water reach first?", "Borna"),
            ("Where did the big flood strike then?", "Celle"),
        )
    ]
    assert without_repeats(pairs) == [pairs[0], pairs[2], pairs[3]]
    close = [
        {"question": "Where did the great flood of June strike first?", "answer": "Borna"},
        {"question": "Where did the great flood of June strike at first?", "answer": "Borna."},
    ]
    assert without_repeats(close) == close[:1]


def command(*arguments, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.make_knowledge", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=300,
    )


def test_command_goes_on_where_it_stopped(serve, tmp_path):  # noqa: F811
    folder = tmp_path / "articles"
    folder.mkdir()
    for title, text in ARTICLES.items():
        (folder / f"{title}.txt").write_text(text)
    up = [False]
    server = serve(
        lambda prompt, number: (
            writer(prompt, number) if up[0] or number <= 2 else (401, {}, b"out of credit")
        )
    )
    settings = {
        "JUDGE_BASE_URL": server.url,
        "JUDGE_MODEL": "writer",
        "HARNESS_CACHE": str(tmp_path / "cache"),
    }
    arguments = [folder, "--out", tmp_path / "set", "--questions", 20, "--passage", 320]
    failed = command(*arguments, **settings)
    assert (
        failed.returncode == 2
        and "out of credit" in failed.stderr
        and "Traceback" not in failed.stderr
    )
    assert not (tmp_path / "set").exists()
    kept, before = len(list((tmp_path / "cache" / "replies").rglob("*.json"))), len(server.requests)
    up[0] = True
    done = command(*arguments, **settings)
    assert done.returncode == 0, done.stderr
    assert kept and f"{kept} of them kept from before" in done.stderr
    asked = {r["body"]["messages"][0]["content"] for r in server.requests}
    assert len(server.requests) - before == len(asked) - kept
    rows = {
        split: read_lines(tmp_path / "set" / f"{split}.jsonl")
        for split in ("train", "validation", "test", "ood")
    }
    assert (
        ", ".join(f"{split} {len(r)}" for split, r in rows.items()) in done.stdout
        and "repeated questions" in done.stdout
    )


def test_what_is_wrong_is_said(serve, tmp_path):  # noqa: F811
    for setup, said in (
        (lambda: None, "is not a folder"),
        (lambda: (tmp_path / "a").mkdir(), "holds no"),
        (lambda: (tmp_path / "a" / "x.txt").write_text(" \n"), "is empty"),
        (lambda: (tmp_path / "a" / "x.txt").write_bytes(b"\xff"), "UTF-8"),
    ):
        setup()
        with pytest.raises(UserError, match=said):
            read_articles(tmp_path / "a")
    (tmp_path / "a" / "x.txt").write_text("A text.")
    assert read_articles(tmp_path / "a") == {"x": "A text."}
    server = serve(lambda *_: (200, {}, completion("I would rather not.")))
    said = command(
        tmp_path / "a",
        "--out",
        tmp_path / "set",
        "--base-url",
        server.url,
        "--model",
        "m",
        HARNESS_CACHE=str(tmp_path / "cache"),
    )
    assert (
        said.returncode == 2
        and "gave no train question" in said.stderr
        and not (tmp_path / "set").exists()
    )
    said = command(tmp_path / "a", "--out", tmp_path / "set", "--test", 1)
    assert said.returncode == 2 and "--test" in said.stderr
