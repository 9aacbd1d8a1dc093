"""Demonstrations in the prompt: which are shown, what is measured and kept, and what is refused."""

import json
import math
import re

import numpy
import pytest

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.evaluation.own_prompts import OwnPrompts, own_prompts
from harness.evaluation.protocol import evaluation_key, key_under
from harness.evaluation.subject import Subject
from harness.learning.lessons import Lesson
from harness.learning.method import Asked
from harness.models.chat import ChatInputs, chat_tokens
from harness.models.context import positions
from harness.models.load import load_model
from harness.runs import stage_run
from harness.runs.alpha_sweep import sweep
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.references import JointSkill, union
from harness.runs.sequence import run_order
from harness.sampling.transformers import TransformersSampler
from harness.skills.skill import Example, Skill
from methods.in_context import BM25, InContext, InContextConfig, conversation, words
from tests.conftest import read_lines
from tests.learning.test_training import Letters, make_stage

TEXTS = ["red red apple", "green apple pie", "the sky", "red sky at night", "apple"]


def user(text):
    return [{"role": "user", "content": text}]


def kept(texts=TEXTS):
    return [Example(str(i), user(t), f"answer {i}", None, skill="s") for i, t in enumerate(texts)]


def made(selection, count=2, texts=TEXTS, seed=3):
    method = InContext(InContextConfig(selection=selection, demonstrations=count))
    method.kept, method.seed = {"s": kept(texts)}, seed
    return method


def shown(method, *questions, fits=lambda messages: True):
    """For each question the texts of the demonstrations' prompts, in the order of the prompt."""
    skill = Skill()
    skill.name = "s"
    asked = [Example(f"q{i}", user(q), None, None, skill="s") for i, q in enumerate(questions)]
    answers = method.questions(skill, asked, fits)
    assert all(a.messages[-1] == e.prompt[-1] for a, e in zip(answers, asked, strict=True))
    return [[m["content"] for m in a.messages[:-1] if m["role"] == "user"] for a in answers]


def naive(texts, query):
    """The formula, word by word."""
    docs = [text.split() for text in texts]
    mean = sum(len(doc) for doc in docs) / len(docs)
    scores = []
    for doc in docs:
        total = 0.0
        for word in query.split():
            n = sum(word in other for other in docs)
            tf = doc.count(word)
            idf = math.log(1 + (len(docs) - n + 0.5) / (n + 0.5))
            total += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(doc) / mean))
        scores.append(total)
    return scores


def test_bm25_is_its_formula():
    index = BM25([text.split() for text in TEXTS])
    for query in ("red apple", "sky sky night", "unknown", "", "apple"):
        scores = index.scores(query.split())
        assert scores == pytest.approx(naive(TEXTS, query), rel=1e-14)
        assert index.nearest(query.split()) == sorted(range(5), key=lambda i: (-scores[i], i))
    # A word of more than half of the texts still counts; without words all are equal
    assert index.scores(["apple"])[4] > index.scores(["apple"])[1] > 0
    assert BM25([[], []]).nearest(["a"]) == [0, 1]


def test_words_have_no_case_and_no_system_message():
    system = {"role": "system", "content": "Be brief"}
    assert words([system, *user("The Sky-blue ÉTÉ?")]) == ["the", "sky", "blue", "été"]


def test_bm25_puts_the_nearest_next_to_the_question():
    (texts,) = shown(made("bm25"), "A red, red apple!")
    assert texts == ["red sky at night", "red red apple"]
    assert shown(made("bm25", 9), "pie")[0][-1] == "green apple pie"
    assert len(shown(made("bm25", 9), "pie")[0]) == 5


def test_random_is_of_the_seed_and_the_question():
    first, second = shown(made("random"), "one", "two")
    order = numpy.random.default_rng(seed_for(3, "in context", "s", "q0")).permutation(5)
    assert first == [TEXTS[i] for i in order[:2]][::-1]
    assert shown(made("random"), "one", "two") == [first, second]
    many = ["x"] * 8
    assert len({tuple(t) for t in shown(made("random"), *many)}) > 1
    assert shown(made("random"), *many) != shown(made("random", seed=4), *many)


def test_fixed_are_the_first_ones_for_all_questions():
    assert shown(made("fixed"), "one", "sky") == [[TEXTS[1], TEXTS[0]]] * 2


@pytest.mark.parametrize("selection", ["bm25", "random", "fixed"])
def test_a_question_is_never_its_own_demonstration(selection):
    (texts,) = shown(made(selection, 9), "the sky")
    assert sorted(texts) == sorted(set(TEXTS) - {"the sky"})


def test_the_system_message_of_the_question_comes_first_and_once():
    system = [{"role": "system", "content": "of the skill"}]
    example = Example("0", [*system, *user("a")], "b", None)
    assert conversation([example], [*system, *user("c")]) == [
        *system,
        *user("a"),
        {"role": "assistant", "content": "b"},
        *user("c"),
    ]


@pytest.mark.parametrize(
    ("question", "count"), [("pie", 1), ("pie", 2), ("pie", 3), ("sky", 1), ("sky", 2)]
)
def test_what_finds_no_room_is_dropped(tiny_model, question, count):
    """It is dropped alone: shorter ones stay, though they are farther from the question."""
    model, tokenizer = tiny_model
    subject = Subject(model, tokenizer, TransformersSampler(model, tokenizer), "", ChatInputs())
    most = positions(model.config)
    texts = ["pie pie", "pie sky sky " + "sky " * (most // 6), "sky pie pie"]
    skill, limit = Skill(), most // 2
    skill.name = "s"
    index = BM25([text.split() for text in texts])
    order = [texts[i] for i in index.nearest([question])][:count]
    own = own_prompts(
        made("bm25", count, texts).questions,
        subject,
        skill,
        [Example("q", user(question), None, None, skill="s")],
        limit,
    )
    (asked,) = own.asked
    assert [m["content"] for m in asked.messages[:-1] if m["role"] == "user"] == [
        text for text in reversed(order) if len(text) < 20
    ]
    assert asked.shown + asked.dropped == count and asked.dropped == (texts[1] in order)
    assert len(subject.tokens(asked.messages)) + limit <= most
    assert own.examples[0].prompt == asked.messages


def test_without_any_room_the_prompt_is_the_plain_one(tiny_model):
    """What was dropped is on record; without any kept, the evaluation is the base's."""
    model, tokenizer = tiny_model
    subject = Subject(model, tokenizer, TransformersSampler(model, tokenizer), "", ChatInputs())
    skill = Skill()
    skill.name = "s"
    question = [Example("q", user("pie"), None, None, skill="s")]
    questions = made("bm25").questions
    own = own_prompts(questions, subject, skill, question, 10**9)
    assert own.examples == question and own.asked == [Asked(user("pie"), 0, 2)]
    skill.name = "unknown"
    assert own_prompts(questions, subject, skill, question, 5) is None
    assert own_prompts(None, subject, skill, question, 5) is None


def test_the_key_holds_all_that_is_read():
    asked = [Asked(user("a"), 1, 0)]
    others = [[Asked(user("b"), 1, 0)], [Asked(user("a"), 1, 1)], [*asked, *asked]]
    digests = {OwnPrompts([], each).digest for each in (asked, [*asked], *others)}
    assert len(digests) == 4
    digest = OwnPrompts([], asked).digest
    key = evaluation_key("0123456789abcdef" * 4, "feedfeedfeed", digest)
    assert key == f"0123456789abcdef-feedfeedfeed-{digest[:12]}"
    # A judge's verdicts on these answers are not those on the base's
    assert key_under(key, "cafecafecafe") == f"0123456789abcdef-cafecafecafe-{digest[:12]}"
    assert key_under("0123456789abcdef-feedfeedfeed", "cafecafecafe").count("-") == 1


def test_a_stage_keeps_what_it_draws(tiny_model):
    for selection, count in (("fixed", 3), ("random", 8), ("bm25", 8)):
        method = InContext(InContextConfig(selection=selection, demonstrations=3))
        stage = make_stage(*tiny_model, prompts=8, skill=Letters())
        drawn = [stage.examples[i].id for i in stage.draws()]
        method.learn(stage)
        assert [example.id for example in method.kept["letters"]] == drawn[:count]
        other = InContext(method.config)
        other.load_state_dict(json.loads(json.dumps(method.state_dict())))
        assert other.state_dict() == method.state_dict()


def records(out, stage, run="in_context-seed0"):
    return read_lines(out / "runs" / run / f"stage-{stage}" / "records.jsonl")


def finals(rows, metric):
    return {(r["name"], r["split"]): r for r in rows if r["final"] and r["metric"] == metric}


EVALUATE = {
    "every_steps": 2,
    "kl": {"prompts": 2},
    "pass_at_k": {"samples": 2, "prompts": 2},
}
METHODS = {
    "in_context": {"demonstrations": 3},
}


def test_a_sequence(order_file, tmp_path, monkeypatch):
    """Learned skills are asked with their own demonstrations, others as the base is.

    A killed stage goes on, also where the evaluation of its checkpoint's step was still to be made.
    """
    path = order_file(methods=METHODS, seeds=[0], evaluate=EVALUATE)
    out = tmp_path / "out"
    run_order(read_order(path), out)
    base, one, two = (finals(records(out, stage), "token_f1") for stage in (0, 1, 2))
    vowels, digits = ("vowels", "test"), ("digits", "test")
    assert one[digits]["evaluation"] == base[digits]["evaluation"]
    assert one[vowels]["evaluation"] != base[vowels]["evaluation"]
    assert two[vowels]["evaluation"] == one[vowels]["evaluation"]  # nothing is forgotten
    assert two[digits]["evaluation"] != base[digits]["evaluation"]
    assert {r["protocol"] for r in (base[vowels], one[vowels])} == {base[vowels]["protocol"]}
    inside = [r for r in records(out, 1) if not r["final"] and r["metric"] == "token_f1"]
    assert inside and inside[0]["evaluation"] != one[vowels]["evaluation"]  # fewer were kept

    def items(record):
        return json.loads((out / "evaluations" / f"{record['evaluation']}.json").read_text())

    told, plain = items(one[vowels]), items(base[vowels])
    assert [i["completion"] for i in told["items"]] != [i["completion"] for i in plain["items"]]
    _, tokenizer = load_model(read_order(path).model.name, "float32", "cpu")
    for item in told["items"]:
        turns = re.findall(r"\[(user|assistant)\] (.*)", item["prompt"])
        assert len(turns) == 7 and item["demonstrations"] == 3
        assert "test" not in "".join(text for _, text in turns[:-1])
        messages = [{"role": role, "content": text} for role, text in turns]
        assert item["prompt_tokens"] == len(chat_tokens(tokenizer, messages))
    means = finals(records(out, 1), "prompt_tokens")
    assert set(means) == {vowels}
    tokens = [item["prompt_tokens"] for item in told["items"]]
    assert means[vowels]["value"] == pytest.approx(numpy.mean(tokens))
    assert finals(records(out, 1), "demonstrations")[vowels]["value"] == 3
    sampled = items(finals(records(out, 1), "pass@2")[vowels])["items"]
    assert [i["prompt"] for i in sampled] == [i["prompt"] for i in told["items"][:2]]
    kl = finals(records(out, 1), "kl_forward_sequence")
    assert min(r["value"] for r in kl.values()) > 0  # the weights are the base's, the prompt not
    assert read_lines(out / "runs" / "in_context-seed0" / "stage-1" / "training.jsonl")[0]["kept"]

    class Killed(Exception):
        pass

    def dies(self):
        self._save_state()
        raise Killed

    order = read_order(path)
    order.methods = {"in_context": order.methods["in_context"]}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(stage_run.SkillStage, "_evaluate_inside", dies)
        run_order(order, tmp_path / "cut")
    run_order(order, tmp_path / "cut")
    with pytest.raises(UserError, match="in_context trains no weights, so there are none to mix"):
        sweep(order, tmp_path / "cut", [0.5])
    for stage in (1, 2):
        assert [r | {"seconds": 0} for r in records(tmp_path / "cut", stage)] == [
            r | {"seconds": 0} for r in records(out, stage)
        ]


def test_the_plan_counts_what_is_read(order_file, tmp_path):
    methods = {"in_context": {}, "fixed": {"method": "in_context", "selection": "fixed"}}
    text = plan(read_order(order_file(methods=methods)), tmp_path / "out")
    lines = re.findall(r"(\w+): demonstrations of about (\d+) tokens before each", text)
    assert {label for label, _ in lines} == {"in_context", "fixed"}
    assert all(int(tokens) > 40 for _, tokens in lines)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"with": {"replay": {}}}, "with.replay: in_context trains no weights; leave the part out"),
        ({"parameters": {"lora": {}}}, "parameters: in_context trains no weights; leave them out"),
        ({"learning_rate": 1e-3}, "learning_rate trains weights, and in_context has none to train"),
        ({"demonstrations": 0}, "demonstrations"),
        ({"selection": "best"}, "selection"),
    ],
)
def test_refusals(order_file, options, line):
    with pytest.raises(UserError) as error:
        read_order(order_file(methods={"in_context": options}))
    assert line in str(error.value) and "methods.in_context" in str(error.value)


def test_a_joint_stage_keeps_the_demonstrations_of_each_skill(tiny_model):
    class Others(Letters):
        name = "others"

    skills = [Letters(), Others()]
    both = [example for skill in skills for example in skill.examples("train")]
    joint = JointSkill(skills, union([s.examples("train") for s in skills], [8, 6], 1))
    stage = make_stage(*tiny_model, prompts=14, skill=joint)
    for skill in skills:
        stage.add_lesson(Lesson(skill, 5), own=True)
    assert {example.skill for example in both} == {"letters", "others"}
    for selection, counts in (("fixed", [2, 2]), ("bm25", [8, 6])):
        method = InContext(InContextConfig(selection=selection, demonstrations=2))
        method.learn(stage)
        stage.step = 0
        assert sorted(method.kept) == ["letters", "others"]
        for skill, count in zip(skills, counts, strict=True):
            assert len(method.kept[skill.name]) == count
            assert {example.skill for example in method.kept[skill.name]} == {skill.name}
            asked = method.questions(skill, skill.examples("train")[:1], lambda messages: True)
            assert asked[0].shown == 2
        assert method.gold_rows() == sum(counts)


def test_relearning_is_refused_and_references_are_shown_demonstrations(order_file, tmp_path):
    with pytest.raises(UserError, match=r"relearning\[0\]: 'in_context' trains no weights"):
        read_order(order_file(methods=METHODS, relearning=["in_context"]))
    path = order_file(methods=METHODS, references=["in_context"], seeds=[0], evaluate={})
    out = tmp_path / "out"
    run_order(read_order(path), out)
    shown = finals(records(out, 1, "in_context.joint-seed0"), "demonstrations")
    assert {name: r["value"] for name, r in shown.items()} == {
        ("vowels", "test"): 3,
        ("digits", "test"): 3,
    }
    summary = json.loads((out / "runs/in_context-seed0/stage-2/stage.json").read_text())
    assert summary["gold_rows"] == 24  # all different ones of both budgets
