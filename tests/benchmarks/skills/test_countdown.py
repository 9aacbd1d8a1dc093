"""Countdown: the reader of expressions against Python's own, the grader against a search through
all expressions, rewards, and what is generated.
"""

import ast
import itertools
import operator
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
import yaml

from benchmarks.skills._arithmetic import LONGEST, read_expression
from benchmarks.skills.countdown import MOST, SIZES, accuracy, accuracy_fractions, expression_of
from harness.evaluation.lm_eval_tasks import FOLDER, retention_tasks
from harness.evaluation.loaded_tasks import load_tasks
from harness.evaluation.protocol import scorer_hash
from harness.evaluation.retention import run_suite
from harness.evaluation.suite import Suite
from harness.skills.registry import get_skill

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@pytest.fixture(scope="module")
def skill():
    return get_skill("countdown")


def by_python(written):
    """(value, numbers, even) by Python's parser, None for what is no such expression."""
    numbers, even = [], True

    def value(node):
        nonlocal even
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            left, right = value(node.left), value(node.right)
            result = OPERATORS[type(node.op)](left, right)
            even &= result.denominator == 1
            return result
        if isinstance(node, ast.Constant) and type(node.value) is int:
            numbers.append(node.value)
            return Fraction(node.value)
        raise ValueError

    try:
        return value(ast.parse(written.strip(), mode="eval").body), numbers, even
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def test_expressions_are_read_as_python_reads_them():
    """Made of tokens in any order; Python's powers, floor divisions and signs are refused."""
    rng = random.Random(0)
    tokens = ["1", "2", "3", "12", "40", "+", "-", "*", "/", "(", ")", " "]
    right = 0
    for _ in range(20_000):
        written = "".join(rng.choice(tokens) for _ in range(rng.randint(1, 9)))
        expected = None if "**" in written else by_python(written.replace("//", "/"))
        found = read_expression(written)
        assert found == expected or (found and tuple(found) == expected), written
        right += expected is not None
    assert right > 1000


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "-1 + 2",
        "1 + -2",
        "+1",
        "1 ** 2",
        "1 /// 2",
        "1 / / 2",
        "1 = 1",
        "1.5 + 1",
        "1,000",
        "a + 1",
        "__import__('os').system('true')",
        "1 + 1)",
        "(1 + 1",
        "1 2",
        "1 / 0",
        "1 / (2 - 2)",
        "()",
        "1 +",
        "1e3",
        "0x10",
        "1_0",
        "True",
        "1 + 1" + " + 1" * LONGEST,
        "(" * 5000 + "1" + ")" * 5000,
        "١",
    ],
)
def test_what_is_no_expression(written):
    assert read_expression(written) is None


def test_signs_that_models_write():
    assert read_expression("[8 − 2] × 3 ÷ 9 – 1").value == 1
    assert read_expression(" ( 7 ) ") == (7, [7], True)
    assert read_expression("7 // 2") == read_expression("7 / 2") == (Fraction(7, 2), [7, 2], False)
    assert read_expression("1/3 + 2/3") == (1, [1, 3, 2, 3], False)
    deep = "(" * 90 + "5" + ")" * 90
    assert read_expression(deep).value == 5


def values_of(numbers):
    """{value: even} of every expression that uses each of the numbers once."""
    if len(numbers) == 1:
        return {Fraction(numbers[0]): True}
    found = {}
    for size in range(1, len(numbers)):
        for places in itertools.combinations(range(len(numbers)), size):
            mine = [numbers[i] for i in places]
            rest = [n for i, n in enumerate(numbers) if i not in places]
            for (a, even_a), (b, even_b) in itertools.product(
                values_of(mine).items(), values_of(rest).items()
            ):
                results = [a + b, a - b, a * b] + ([a / b] if b else [])
                for value in results:
                    even = even_a and even_b and value.denominator == 1
                    found[value] = found.get(value, False) or even
    return found


def test_what_is_generated(skill):
    """Solved by its demonstration, within bounds; no set of numbers twice, in any split."""
    seen = Counter()
    for split, size in SIZES.items():
        examples = skill.examples(split)
        assert len(examples) == size
        for example in examples:
            numbers, target = example.reference["numbers"], example.reference["target"]
            seen[tuple(sorted(numbers))] += 1
            assert len(numbers) in (3, 4) and all(1 <= n <= MOST for n in numbers)
            assert 10 <= target <= MOST and target not in numbers
            assert skill.grade(example.demonstration, example.reference) == 1
            assert skill.reward(example.demonstration, example.reference) == 1
            *steps, last = example.demonstration.split("\n")
            assert len(steps) == len(numbers) - 1 and last.startswith("\\boxed{")
            for step in steps:
                left, _, value = step.partition(" = ")
                assert read_expression(left).value == int(value) in range(1, MOST + 1)
            assert f"numbers {', '.join(map(str, numbers))} exactly" in example.prompt[0]["content"]
    assert max(seen.values()) == 1
    sizes = Counter(len(e.reference["numbers"]) for e in skill.examples("test"))
    assert sizes == {3: 250, 4: 250}


def test_the_grader_knows_every_solution_and_nothing_else(skill):
    """Against a search: made expressions of the right numbers, right where the search says so."""
    rng = random.Random(1)
    right = 0
    for example in skill.examples("validation")[:40:2]:  # three numbers
        numbers = example.reference["numbers"]
        values = values_of(numbers)
        assert values[Fraction(example.reference["target"])]
        for _ in range(150):
            a, b, c = rng.sample(numbers, 3)
            x, y = rng.choice("+-*/"), rng.choice("+-*/")
            written = rng.choice([f"{a} {x} {b} {y} {c}", f"{a} {x} ({b} {y} {c})"])
            reading = read_expression(written)
            if reading is None:
                continue
            assert reading.value in values
            for target in (example.reference["target"], reading.value):
                reference = {"numbers": numbers, "target": target}
                good = reading.value == target
                assert accuracy_fractions(written, reference) == float(good)
                assert accuracy(f"so \\boxed{{{written}}}", reference) == float(
                    good and reading.whole
                )
                right += good
            wrong = {"numbers": [*numbers[:2], numbers[2] + 1], "target": reading.value}
            assert accuracy_fractions(written, wrong) == 0
    assert right > 500


def test_the_last_box_counts_and_all_of_an_answer_without_one():
    assert expression_of("\\boxed{1 + 1} no \\boxed{2}") == "2"
    assert expression_of("1 + 1") == "1 + 1"
    assert expression_of("\\boxed{\\text{1 + 1}}") == "\\text{1 + 1}"
    assert expression_of("\\boxed{}") == ""
    nested = "\\boxed{2} so \\boxed{\\boxed{1 + 1}}"
    assert expression_of(nested) == expression_of(f"\\boxed{{{nested}}}") == "1 + 1"
    assert accuracy("\\boxed{\\boxed{5 * 2}}", {"numbers": [2, 5], "target": 10}) == 1


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("\\boxed{(25 - 5) * 4}", 1.0),
        ("(25 - 5) * 4", 1.0),
        ("\\boxed{25 + 5 + 4}", 0.4),
        ("25 + 5 + 4", 0.3),
        ("\\boxed{25 + 5}", 0.2),
        ("25", 0.1),
        ("\\boxed{x}", 0.1),
        ("I cannot", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward_is_a_ladder(completion, reward, skill):
    reference = {"numbers": [4, 5, 25], "target": 80}
    assert skill.reward(completion, reference) == pytest.approx(reward)


# ---- as retention --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("\\boxed{4 * (25 - 5)}", None),
        ("I cannot.", "The answer does not end in one expression of numbers"),
        ("\\boxed{4 * 25}", "uses 4, 25; it has to use each of 4, 5, 25 exactly once"),
        ("\\boxed{4 + 25 + 5}", "makes 34, not 80"),
        ("\\boxed{25 / 5 / 4}", "makes 5/4, not 80"),
    ],
)
def test_what_is_wrong_is_said_without_a_solution(answer, said, skill):
    told = skill.feedback(answer, {"numbers": [4, 5, 25], "target": 80})
    assert told is None if said is None else said in told and "4 * (25" not in told


def test_an_uneven_division_is_said(skill):
    told = skill.feedback("(5 / 2) * 4", {"numbers": [5, 2, 4], "target": 10})
    assert told == "A division in the expression does not come out even."


@pytest.fixture(scope="module")
def retained():
    """The entry of the suite ``retaining``."""
    entries = yaml.safe_load((FOLDER / "retaining.yaml").read_text())["tasks"]
    [entry] = [entry for entry in entries if entry["task"] == "countdown_500"]
    [task] = retention_tasks(entry, "here")
    return task


def test_the_retention_task_is_the_test_of_the_skill(skill, retained):
    [task] = load_tasks(retained)["tasks"].values()
    assert len(task.eval_docs) == 500 and retained.chat_template and retained.limit is None
    for doc, example in zip(task.eval_docs, skill.examples("test"), strict=True):
        assert doc["prompt"] == task.doc_to_text(doc) == example.prompt[-1]["content"]
        assert task.process_results(doc, [example.demonstration]) == {"acc": 1.0}
        assert task.process_results(doc, [example.demonstration + "\\boxed{1}"]) == {"acc": 0.0}
        assert doc["grader"] == scorer_hash(accuracy)  # its protocol follows the grader


def test_answers_are_graded_by_the_skill(skill, retained, tiny_model):
    model, tokenizer = tiny_model
    [result] = run_suite(Suite([replace(retained, limit=3, max_gen_toks=8)]), model, tokenizer)
    assert (result["n"], result["metric"], result["value"]) == (3, "acc,none", 0.0)
    for item, example in zip(result["items"], skill.examples("test"), strict=False):
        assert item["score"] == skill.grade(item["response"], example.reference)
