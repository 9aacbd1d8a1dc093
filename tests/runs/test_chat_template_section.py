"""The section ``chat_template`` of an order, and what a run makes of a model's chat template."""

import json
import shutil

import pytest
import yaml

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.models.chat import DATE, chat_tokens
from harness.models.load import load_tokenizer
from harness.results.writer import ResultsWriter
from harness.runs.engines import evaluator_for
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.runs.stage_run import SkillStage
from tests.conftest import TEMPLATE, write_rows
from tests.runs.refusals import refused

THINKS = TEMPLATE.replace(
    "<|assistant|>{% endif",
    "<|assistant|>{{ '' if enable_thinking is false else '<think>' }}{% endif",
)
DATED = "<|system|>{{ strftime_now('%d %b %Y') }}<|end|>" + TEMPLATE
# It takes one question, and no system turn.
STRICT = (
    "{% if messages | length > 2 or messages[0].role == 'system' %}"
    "{{ raise_exception('one question') }}{% endif %}" + TEMPLATE
)


class Killed(Exception):
    """A process that ends where a stage begins to learn."""


@pytest.fixture
def ordered(tiny, tmp_path, order_file):
    """A function that writes an order for the tiny model with another chat template."""

    def write(template, **changes):
        folder = tmp_path / "model"
        if not folder.exists():
            shutil.copytree(tiny, folder)
        (folder / "chat_template.jinja").write_text(template)
        model = {"name": str(folder), "dtype": "float32", "device": "cpu"}
        return order_file(**{"model": model, "evaluate": {}, **changes})

    return write


def checked(path):
    order = read_order(path)
    return order.check_prompts(load_tokenizer(order.model.name)[0])


def test_the_keys(ordered):
    arguments = {"arguments": {"a": 1, "b": 2}, "teacher": {"b": 3}, "evaluate": {"c": [4]}}
    order = read_order(ordered(TEMPLATE, chat_template={"date": "2020-02-29", **arguments}))
    inputs = [order.chat_template.inputs(part) for part in ("student", "teacher", "evaluate")]
    assert {i.date for i in inputs} == {"2020-02-29"}
    assert [i.arguments for i in inputs] == [
        {"a": 1, "b": 2},
        {"a": 1, "b": 3},
        {"a": 1, "b": 2, "c": [4]},
    ]
    assert order.about()["chat_template"] == {
        "date": "2020-02-29",
        "arguments": {"a": 1, "b": 2},
        "student": {},
        "teacher": {"b": 3},
        "evaluate": {"c": [4]},
    }


def test_a_date_without_quotes(ordered):
    path = ordered(TEMPLATE)
    path.write_text(path.read_text() + "chat_template: {date: 2020-02-29}\n")
    assert read_order(path).chat_template.date == "2020-02-29"


def test_an_order_without_the_section_is_on_record_as_before(ordered):
    for section in ({}, {"chat_template": {}}, {"chat_template": {"date": DATE}}):
        assert "chat_template" not in read_order(ordered(TEMPLATE, **section)).about()


@pytest.mark.parametrize(
    "section, words",
    [
        ({"date": "2020-02-30"}, "date must be a day as 2024-07-26"),
        ({"date": "20200229"}, "date must be a day"),
        ({"date": "today"}, "date must be a day"),
        ({"date": 2020}, "must be a text"),
        ({"arguments": {"a": float("nan")}}, "arguments must hold texts"),
        ({"teacher": "x"}, "must be a mapping"),
        ({"rollout": {}}, "unknown key"),
    ],
)
def test_wrong_values(ordered, section, words):
    line = refused(ordered(TEMPLATE, chat_template=section))
    assert "chat_template" in line and words in line


def test_an_argument_that_the_template_does_not_read(ordered, tmp_path):
    """It is refused before anything loads, in the plan too."""
    path = ordered(THINKS, chat_template={"evaluate": {"enable_thinkin": False}})
    words = "chat_template.enable_thinkin: .* did you mean 'enable_thinking'"
    with pytest.raises(UserError, match=words):
        checked(path)
    with pytest.raises(UserError, match=words):
        plan(read_order(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def prompts_of(monkeypatch):
    """The prompts that are sampled from and learned, as they are: filled while an order runs."""
    from harness.learning.stage import Stage
    from harness.sampling.transformers import TransformersSampler

    seen = {"learned": set(), "teacher": set(), "sampled": set()}
    rows, teacher = Stage.demonstration_rows, Stage.teacher_tokens
    sample = TransformersSampler.sample

    def watched_rows(self, examples):
        found = rows(self, examples)
        seen["learned"] |= {self.tokenizer.decode(row.prompt + row.completion) for row in found}
        return found

    def watched_teacher(self, *args):
        tokens = teacher(self, *args)
        seen["teacher"].add(self.tokenizer.decode(tokens))
        return tokens

    def watched_sample(self, prompts, **settings):
        seen["sampled"] |= {self.tokenizer.decode(prompt) for prompt in prompts}
        return sample(self, prompts, **settings)

    monkeypatch.setattr(Stage, "demonstration_rows", watched_rows)
    monkeypatch.setattr(Stage, "teacher_tokens", watched_teacher)
    monkeypatch.setattr(TransformersSampler, "sample", watched_sample)
    return seen


def test_student_teacher_and_evaluation_apart(ordered, tmp_path, monkeypatch):
    """The student thinks neither in its prompts nor in its demonstrations, the teacher does, and
    an evaluation has its own.
    """
    seen = prompts_of(monkeypatch)
    path = ordered(
        THINKS,
        chat_template={"student": {"enable_thinking": False}},
        methods={"sft": {"learning_rate": 1e-3}, "sdft": {"learning_rate": 1e-3}},
        budget={"prompts": 2, "batch_size": 2},
    )
    mapping = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**mapping, "skills": mapping["skills"][:1]}))
    run_order(read_order(path), tmp_path / "out")
    assert seen["learned"] and all("think>" not in text for text in seen["learned"])
    assert seen["teacher"] and all(text.endswith("<think>") for text in seen["teacher"])
    rollouts = {text for text in seen["sampled"] if "train" in text}
    assert rollouts and all(text.endswith("<|assistant|>") for text in rollouts)
    tested = {text for text in seen["sampled"] if " test " in text}
    assert tested and all(text.endswith("<|assistant|><think>") for text in tested)
    protocols = read_json(tmp_path / "out" / "protocols.json")
    assert all(p["thoughts"] == "<think>...</think> taken off" for p in protocols.values())
    assert not any("template_arguments" in p for p in protocols.values())
    # The random model closes no thought: no answer, and the item keeps what it wrote.
    files = (tmp_path / "out" / "evaluations").glob("*.json")
    items = [item for file in files for item in read_json(file)["items"]]
    assert items and all(item["answer"] == "" and item["completion"] for item in items)
    assert all(item["scores"]["token_f1"] == 0 for item in items)
    run = read_json(tmp_path / "out/runs/sft-seed0/run.json")
    assert run["chat_template"]["student"] == {"enable_thinking": False}
    assert run["chat_template"]["date"] == DATE


@pytest.mark.parametrize(
    "template, changed, key, values",
    [
        (DATED, {"date": "2025-01-31"}, "date", [DATE, "2025-01-31"]),
        (
            THINKS,
            {"evaluate": {"enable_thinking": False}},
            "template_arguments",
            [None, {"enable_thinking": False}],
        ),
        (THINKS, {"date": "2025-01-31"}, "date", [None, None]),  # the template reads no date
    ],
)
def test_what_the_template_is_given_is_part_of_the_protocol(
    ordered, tmp_path, template, changed, key, values
):
    meanings = []
    for section in ({}, changed):
        order = read_order(ordered(template, chat_template=section))
        evaluator = evaluator_for(order, ResultsWriter(tmp_path / "out"))
        assert evaluator.chat == order.chat_template.inputs("evaluate")
        tokenizer, _ = load_tokenizer(order.model.name)
        skill = order.skills[0]
        text = evaluator.skill_protocol(skill, "test", "float32", tokenizer.chat_template, {})
        meanings.append(text)
        prompt = tokenizer.decode(
            chat_tokens(tokenizer, skill.examples("test")[0].prompt, inputs=evaluator.chat)
        )
        if template == DATED:
            day = {DATE: "26 Jul 2024"}.get(order.chat_template.date, "31 Jan 2025")
            assert prompt.startswith(f"<|system|>{day}<|end|>")
    assert [meaning.pop(key, None) for meaning in meanings] == values
    assert meanings[0] == meanings[1]


@pytest.mark.parametrize(
    "changes, place",
    [
        (
            {"methods": {"sdft": {"learning_rate": 1e-3}}, "template": "three_turn"},
            "methods.sdft",
        ),
        (
            {"methods": {"sft": {}}, "template": "three_turn", "evaluate": {"teacher": True}},
            "teach",
        ),
        ({"methods": {"offline_distillation": {}}, "template": "three_turn"}, "methods.offline"),
        ({"methods": {"sft_reinvoke": {"general_prompts": "general.jsonl"}}}, "methods.sft_re"),
    ],
)
def test_further_prompts_are_tried_before_anything_starts(ordered, tmp_path, changes, place):
    rows = [
        {"prompt": "Hm?"},
        {"prompt": [{"role": r, "content": "x"} for r in ("system", "user")]},
    ]
    write_rows(tmp_path / "general.jsonl", rows)
    template = changes.pop("template", "paper")
    path = ordered(STRICT, **changes)
    text = path.read_text().replace(
        "max_new_tokens: 6", f"max_new_tokens: 6\n  teacher_template: {template}"
    )
    path.write_text(text)
    with pytest.raises(UserError, match=rf"{place}.*one question"):
        checked(path)
    path.write_text(text.replace("three_turn", "paper").replace("general.jsonl", "plain.jsonl"))
    write_rows(tmp_path / "plain.jsonl", rows[:1])
    assert checked(path) == []


def test_which_form_of_a_turn_is_learned_is_said_once(ordered, tmp_path):
    """In the plan, and in a run before anything is loaded."""
    path = ordered(THINKS)
    notes = checked(path)
    assert (
        len(notes) == 2 and "skill vowels: 12 of 12 demonstrations are learned as live" in notes[0]
    )
    assert notes[0] in plan(read_order(path), tmp_path / "out")
    assert checked(ordered(TEMPLATE)) == []


def test_the_plan_leaves_out_a_system_turn_where_the_run_does(ordered, tmp_path, monkeypatch):
    """lm-eval puts a task's description into a system turn, and drops it where the template refuses
    it.
    """
    from harness.evaluation.loaded_tasks import sample_requests
    from harness.evaluation.suite import load_suite

    strict = STRICT.replace("messages | length > 2 or ", "")
    tokenizer, _ = load_tokenizer(read_order(ordered(strict)).model.name)
    suite = load_suite([{"task": "embedded_facts", "chat_template": True}])
    task = suite.load(suite.tasks[0])["tasks"]["embedded_facts"]
    task.set_config("description", "Answer.")
    [request, *_] = sample_requests(task, suite.tasks[0], 1, tokenizer)
    assert request.args[0].startswith("<|user|>") and "Answer." not in request.args[0]


CHANGES = [
    ({"template": "x" + DATED}, "another chat template"),
    ({"tokenizer": {"normalizer": {"type": "Lowercase"}}}, "another tokenizer"),
    ({"ends": [5]}, r"another set of end tokens or penalties \(.*\{\"ends\": \[5, "),
    ({"date": "2020-01-01"}, r"another `date` \(\"\d{4}-\d\d-\d\d\"\) than it would be now"),
]


def test_what_reads_and_ends_texts_must_not_change_between_two_starts(
    ordered, tmp_path, monkeypatch
):
    """For the run itself and for a later one, before either learns; what was put back goes on."""
    learned = []

    def learn(stage):
        learned.append(stage.live.run.label)
        raise Killed

    monkeypatch.setattr(SkillStage, "learn", learn)

    def go(label, template=DATED, tokenizer=None, ends=(), date=DATE):
        path = ordered(template, methods={label: {}}, chat_template={"date": date})
        for name, more in (("tokenizer.json", tokenizer or {}), ("generation_config.json", {})):
            file = tmp_path / "model" / name
            kept = file.with_suffix(".kept")
            if not kept.exists():
                shutil.copy(file, kept)
            value = json.loads(kept.read_text()) | more
            if name.startswith("generation") and ends:
                value["eos_token_id"] = [*ends, value["eos_token_id"]]
            file.write_text(json.dumps(value))
        run_order(read_order(path), tmp_path / "out")

    with pytest.raises(Killed):
        go("sft")
    for change, said in CHANGES:
        with pytest.raises(UserError, match=rf"sft-seed0/stage-0/records.jsonl: .*{said}"):
            go("sft", **change)
    with pytest.raises(UserError, match="another chat template"):
        go("dft", template="x" + DATED)
    assert learned == ["sft"]
    for label in ("sft", "dft"):
        with pytest.raises(Killed):
            go(label)
    assert learned == ["sft", "sft", "dft"]
