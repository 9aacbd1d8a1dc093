"""Retention: lm-eval's own command on the saved checkpoint is the reference; and what a suite
refuses before anything loads.
"""

import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
import yaml

from harness.base.errors import UserError
from harness.base.files import ROOT
from harness.evaluation import lm_eval_tasks, retention
from harness.evaluation import suite as suite_module
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.lm_eval_context import quiet
from harness.evaluation.lm_eval_tasks import _indexed
from harness.evaluation.loaded_tasks import sample_requests, task_definition
from harness.evaluation.retention import _evaluate, _question, jackknife, run_suite
from harness.evaluation.settings import Evaluate
from harness.evaluation.suite import FOLDER, load_suite
from harness.models.chat import ChatInputs
from harness.results.questions import read_questions
from harness.results.writer import ResultsWriter
from tests.conftest import save_tiny, tiny_tokenizer

EMBEDDED = [t["name"] for t in load_suite("embedded").summary()]
TASKS = {t["name"]: t for name in ("embedded_1", "embedded") for t in load_suite(name).summary()}


def entries(names, **changes):
    return [{"task": n, "metric": TASKS[n]["metric"], **changes} for n in names]


def load(folder, dtype=torch.float32):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def command(folder, names, limit, out, *options):
    """lm-eval's own command; {task: (value, {document: (score, responses)})} of the metric that
    counts.
    """
    subprocess.run(
        [
            sys.executable,
            "-m",
            "lm_eval",
            "run",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={folder},dtype=float32",
            "--tasks",
            ",".join(names),
            "--include_path",
            str(FOLDER),
            "--limit",
            str(limit),
            "--batch_size",
            "4",
            "--device",
            "cpu",
            "--log_samples",
            "--output_path",
            str(out),
            *options,
        ],
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "DISABLE_MULTIPROC": "1"},
        capture_output=True,
    )
    results = json.loads(next(out.rglob("results_*.json")).read_text())["results"]
    found = {}
    for name in names:
        metric = TASKS[name]["metric"]
        rows = [
            json.loads(line)
            for line in next(out.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines()
        ]
        found[name] = (
            results[name][metric],
            {str(r["doc_id"]): (r[metric.split(",")[0]], r["filtered_resps"]) for r in rows},
        )
    return found


def same(ours, theirs):
    """The same answer on every document, log-likelihoods within 1e-4 (or float32's resolution, for
    long texts).
    """
    for result in ours:
        value, documents = theirs[result["name"]]
        assert result["n"] == len(documents) == len(result["items"])
        assert result["value"] == pytest.approx(value, abs=1e-6), result["name"]
        for item in result["items"]:
            score, responses = documents[item["id"]]
            if isinstance(item["response"], str):
                assert item["response"] == responses[0]
                assert item["score"] == pytest.approx(statistics.mean(score))
                continue
            mine = item["response"] if isinstance(item["response"], list) else [item["response"]]
            assert mine == pytest.approx([float(r[0]) for r in responses], abs=1e-4, rel=1e-6), (
                result["name"],
                item["id"],
            )
            if isinstance(score, float):
                assert item["score"] == score, (result["name"], item["id"])


def test_tiny_model_equals_the_command_in_chat_form(tiny, tmp_path):
    names = EMBEDDED
    theirs = command(tiny, names, 6, tmp_path, "--apply_chat_template")
    model, tokenizer = load(tiny)
    ours = run_suite(
        load_suite(entries(names, chat_template=True)), model, tokenizer, limit=6, batch_tokens=300
    )
    same(ours, theirs)
    instructions = next(result for result in ours if result["name"] == "embedded_following")
    # the generations say something
    assert any(item["response"].strip() for item in instructions["items"])
    # a mean over instructions, of which a prompt gives one or more
    weights = [item["weight"] for item in instructions["items"]]
    assert instructions["value"] == pytest.approx(
        sum(item["score"] * item["weight"] for item in instructions["items"]) / sum(weights)
    )


def test_embedded_model_equals_the_command(tmp_path):
    from harness.models.embedded import embedded_checkpoint

    names = ["embedded_minimal_pairs", "embedded_facts", "embedded_mmlu_cloze", "embedded_code"]
    theirs = command(embedded_checkpoint(), names, 8, tmp_path)
    model, tokenizer = load(embedded_checkpoint())
    ours = run_suite(load_suite(entries(names)), model, tokenizer, limit=8)
    same(ours, theirs)
    assert ours[1]["value"] > 0.5  # chance is 0.25


def test_bfloat16_flips_few_answers(capsys):
    """HFLM's softmax is in bfloat16 there and ours in float32: near ties may break otherwise."""
    from lm_eval.models.huggingface import HFLM

    from harness.models.embedded import embedded_checkpoint

    model, tokenizer = load(embedded_checkpoint(), torch.bfloat16)
    suite = load_suite(entries(["embedded_facts"]))
    ours = run_suite(suite, model, tokenizer, limit=24)[0]
    with quiet():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
        theirs = _evaluate(lm, suite.tasks[0], suite.load(suite.tasks[0]), 24)
    flips = sum(
        a["score"] != b["score"] for a, b in zip(ours["items"], theirs["items"], strict=True)
    )
    with capsys.disabled():
        print(f"\nbfloat16: {flips} of 24 answers differ from lm-eval's own")
    assert flips <= 3
    assert ours["protocol"]["dtype"] == "bfloat16"


SIZE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "qwen2": (transformers.Qwen2Config, {}, True, True),
    "mistral, window 16": (transformers.MistralConfig, {"sliding_window": 16}, True, True),
    "gemma2, capped logits": (
        transformers.Gemma2Config,
        {"query_pre_attn_scalar": 8, "sliding_window": 16},
        False,
        True,
    ),
    "cohere, scaled logits": (transformers.CohereConfig, {"logit_scale": 0.25}, False, True),
    "granite, scaled logits": (transformers.GraniteConfig, {"logits_scaling": 4.0}, False, True),
    "gpt2": (transformers.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4}, True, True),
    "bloom, no positions": (transformers.BloomConfig, {"n_layer": 2, "n_head": 4}, True, False),
    "mamba, no attention": (transformers.MambaConfig, {"state_size": 4}, True, False),
    "lfm2, convolutions": (
        transformers.Lfm2Config,
        {"layer_types": ["conv", "full_attention"]},
        True,
        False,
    ),
    "llama 4, chunks of 16": (
        transformers.Llama4TextConfig,
        {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 64},
        False,
        True,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_many_architectures_equal_hflm(name, tiny):
    """Against HFLM itself: the head on few positions and the shared context are used where they are
    right and only there.
    """
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.lm_eval_model import LiveModel

    config, changes, head, shares = MODELS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**SIZE | changes)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    with quiet():
        live = LiveModel(model, tokenizer, batch_tokens=128)
        reference = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    assert ((live.head is not None), live.shares) == (head, shares)
    draw = random.Random(0)
    requests = []
    for _ in range(12):
        context = [draw.randrange(3, 200) for _ in range(draw.choice([1, 4, 10, 14, 30]))]
        requests += [
            (None, context, [draw.randrange(3, 200) for _ in range(draw.choice([1, 1, 3, 6]))])
            for _ in range(4)
        ]
    ours, theirs = (
        live._loglikelihood_tokens(requests),
        reference._loglikelihood_tokens(requests, disable_tqdm=True),
    )
    assert [a[0] for a in ours] == pytest.approx([a[0] for a in theirs], abs=1e-4)
    assert [a[1] for a in ours] == [a[1] for a in theirs]


def test_rolling_windows_equal_hflm(tiny):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.lm_eval_model import LiveModel

    model, tokenizer = load(tiny)
    texts = [
        "A short one.",
        "A longer text that does not fit into a window of forty tokens at once. " * 3,
    ]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    with quiet():
        live, reference = (
            LiveModel(model, tokenizer),
            HFLM(pretrained=model, tokenizer=tokenizer, max_length=40),
        )
        live._max_length = 40
        assert live.loglikelihood_rolling(requests) == pytest.approx(
            reference.loglikelihood_rolling(requests), abs=1e-3
        )


@pytest.mark.parametrize("penalty", [None, 1.5])
def test_generated_answers_equal_hflm(tiny, penalty):
    """With stop strings of one and several tokens or none; a penalty on repetition, which the
    sampler does not know, counts too.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.lm_eval_model import LiveModel

    model, tokenizer = load(tiny)
    model.generation_config.repetition_penalty = penalty
    prompts = ["Two", "What is the capital of the country of", "A, b, c,", "Name one", "x" * 30]
    with quiet():
        live, reference = (
            LiveModel(model, tokenizer, batch_size=4),
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2),
        )
        free = reference.generate_until(
            [Instance("generate_until", {}, (p, {"max_gen_toks": 24}), 0) for p in prompts],
            disable_tqdm=True,
        )
        strings = sorted({text[3:k] for text in free for k in (4, 7)} - {""})
        assert len(strings) > 3
        requests = [
            Instance("generate_until", {}, (p, {"until": until, "max_gen_toks": 24}), 0)
            for p in prompts
            for until in ([], strings[:1], strings)
        ]
        found, wanted = (
            live.generate_until(requests),
            reference.generate_until(requests, disable_tqdm=True),
        )
    assert found == wanted and len(set(found)) > 4
    sampled = live._answers([[5, 6, 7]], 4, [])
    assert (sampled is None) == bool(penalty)


@pytest.mark.parametrize("tag", ["</think>", "[/THINK]"])
def test_thoughts_are_taken_off_as_hflm_does(tag, tmp_path):
    """By its ``think_end_token``: the text of the tag, or the id of one that is a special token."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.lm_eval_model import LiveModel

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([tag], special_tokens=tag == "[/THINK]")
    tokenizer.chat_template = "{{ '" + tag + "' }}" + tokenizer.chat_template
    model, _ = load(save_tiny(tmp_path / "m", vocab_size=len(tokenizer)))
    closing = tokenizer.convert_tokens_to_ids(tag)
    with torch.no_grad():
        model.get_input_embeddings().weight[closing] *= 2  # it is written now and then
    end = tag if tag == "</think>" else closing
    requests = [
        Instance("generate_until", {}, (p, {"until": until, "max_gen_toks": 16}), 0)
        for p in ("Two", "A, b, c,", "Name one", "What is it?")
        for until in ([], ["A"])
    ]
    with quiet():
        plain, reference = (
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, think_end_token=token)
            for token in (None, end)
        )
        live = LiveModel(model, tokenizer)
        assert live.think_end_token == end
        found = live.generate_until(requests)
        assert found == reference.generate_until(requests, disable_tqdm=True)
        assert found != plain.generate_until(requests, disable_tqdm=True)
    generated, scored = (
        load_suite(["embedded_instructions", "embedded_facts"])
        .protocols("float32", tokenizer)
        .values()
    )
    assert generated["think_end_token"] == end and "think_end_token" not in scored


def test_the_template_is_given_what_the_order_says(tiny):
    """lm-eval's own ``chat_template_args``; a task's prompts and its protocol have them."""
    from harness.evaluation.lm_eval_model import LiveModel

    model, tokenizer = load(tiny)
    tokenizer.chat_template += "{{ strftime_now('%Y') }}{{ 'no' if enable_thinking is false }}"
    chat = ChatInputs("2020-05-05", {"enable_thinking": False})
    with quiet():
        live = LiveModel(model, tokenizer, chat=chat)
    history = [{"role": "user", "content": "x"}]
    assert live.apply_chat_template(history) == "<|user|>x<|end|><|assistant|>2020no"
    for form, wanted in (
        (True, {"date": "2020-05-05", "template_arguments": chat.arguments}),
        (False, {}),
    ):
        suite = load_suite([{"task": "embedded_facts", "chat_template": form}])
        [protocol] = suite.protocols("float32", tokenizer, chat=chat).values()
        [before] = suite.protocols("float32", tokenizer).values()
        assert {**before, **wanted} == protocol
        entry = suite.tasks[0]
        task = suite.load(entry)["tasks"]["embedded_facts"]
        request = sample_requests(task, entry, 1, tokenizer, chat)[0]
        assert request.args[0].endswith("2020no") is form


class Engine:
    """Stands in for vLLM: it scores by plain forward passes and reads at most ``limit`` tokens."""

    limit = 20

    def __init__(self, model):
        self.model = model
        self.longest = 0

    def score(self, sequences, progress):
        answers = []
        for tokens, start in sequences:
            self.longest = max(self.longest, len(tokens))
            with torch.no_grad():
                logits = self.model(torch.tensor([tokens])).logits[0, start - 1 : -1]
            targets = torch.tensor(tokens[start:])
            scores = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
            answers.append((scores.tolist(), (logits.argmax(-1) == targets).tolist()))
            progress(len(answers))
        return answers


def test_an_engine_scores_what_it_has_room_for(tiny):
    """And the model the rest; the order is that of the requests."""
    from types import SimpleNamespace

    from harness.evaluation.lm_eval_model import EngineModel, LiveModel

    model, tokenizer = load(tiny)
    engine = Engine(model.eval())
    sampler = SimpleNamespace(model=model, tokenizer=tokenizer, ready=lambda: engine)
    draw = random.Random(0)
    requests = [
        (None, [draw.randrange(3, 200) for _ in range(length)], [draw.randrange(3, 200)] * 3)
        for length in (30, 4, 16, 17, 2, 25, 10)
    ]
    with quiet():
        ours = EngineModel(sampler)._loglikelihood_tokens(requests)
        wanted = LiveModel(model, tokenizer)._loglikelihood_tokens(requests)
    assert [a[0] for a in ours] == pytest.approx([a[0] for a in wanted], abs=1e-4)
    assert [a[1] for a in ours] == [a[1] for a in wanted] and engine.longest == 19


def test_a_forecast_may_be_made_while_a_task_is_measured(tiny):
    """What shows the progress asks what one measurement costs, at any moment."""
    model, tokenizer = load(tiny)
    suite = load_suite(entries(["embedded_facts", "embedded_instructions"]))
    alone = run_suite(suite, model, tokenizer, limit=3)
    costs = []
    beside = run_suite(
        suite, model, tokenizer, limit=3, progress=lambda *_: costs.append(suite.work(tokenizer))
    )
    assert beside == alone
    assert costs and all(cost == suite.work(tokenizer) for cost in costs)


def test_nothing_is_left_behind(tiny):
    model, tokenizer = load(tiny)
    model.train()
    model.model.layers[0].eval()
    tokenizer.padding_side, tokenizer.pad_token = "right", None
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = (
        [m.training for m in model.modules()],
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    seen = []
    suite = load_suite(entries(["embedded_facts", "embedded_instructions"]))
    run_suite(suite, model, tokenizer, limit=3, progress=lambda *call: seen.append(call))
    after = (
        [m.training for m in model.modules()],
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
    assert before == after
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("right", None)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert seen[0][0] == "embedded_facts" and seen[-1] == ("embedded_instructions", 3, 3)


def test_a_kill_keeps_the_tasks_that_are_done(tiny, tmp_path, monkeypatch):
    """And the same suite goes on with the others, to the evaluations of one that was not killed."""
    model, tokenizer = load(tiny)
    names, real, hashed = ["embedded_facts", "embedded_commonsense"], _evaluate, Counter()
    monkeypatch.setattr(
        suite_module,
        "task_definition",
        lambda task: hashed.update([task.task_name]) or task_definition(task),
    )

    def evaluations(folder, suite):
        return [
            found[2]
            for found in Evaluator(ResultsWriter(folder), suite, Evaluate(), {}, {}).retention(
                model, tokenizer, "0" * 32
            )
        ]

    def killed(live, entry, *rest):
        if entry.task == names[1]:
            raise KeyboardInterrupt
        return real(live, entry, *rest)

    suite = load_suite(entries(names, limit=4))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(retention, "_evaluate", killed)
        evaluations(tmp_path / "killed", suite)
    assert [
        json.loads(path.read_text())["name"] for path in (tmp_path / "killed/evaluations").iterdir()
    ] == names[:1]
    monkeypatch.setattr(
        retention,
        "_evaluate",
        lambda live, entry, *rest: measured.append(entry.task) or real(live, entry, *rest),
    )
    measured = []
    again = evaluations(tmp_path / "killed", suite)
    assert measured == names[1:] and hashed == Counter(names)  # the documents are hashed once
    assert json.dumps(again) == json.dumps(
        evaluations(tmp_path / "whole", load_suite(entries(names, limit=4)))
    )


def test_what_a_task_asks_is_kept_once_for_all_models(tiny, tmp_path):
    model, tokenizer = load(tiny)
    names = ["embedded_facts", "embedded_code"]
    suite = load_suite(entries(names, limit=3))
    evaluator = Evaluator(ResultsWriter(tmp_path), suite, Evaluate(), {}, {})
    facts, code = evaluator.retention(model, tokenizer, "0" * 32)
    files = {path.name for path in (tmp_path / "questions").iterdir()}
    assert files == {f"{facts.protocol}.json.gz", f"{code.protocol}.json.gz"}
    list(evaluator.retention(model, tokenizer, "1" * 32))
    assert {path.name for path in (tmp_path / "questions").iterdir()} == files
    for found, name in ((facts, names[0]), (code, names[1])):
        asked = read_questions(tmp_path, found.protocol)
        assert [*asked] == [item["id"] for item in found.evaluation["items"]]
        [task] = suite.load(suite.tasks[names.index(name)])["tasks"].values()
        for question, document in zip(asked.values(), task.test_docs(), strict=False):
            if name == "embedded_facts":
                assert question["prompt"] == document["text"]
                assert question["choices"] == [f" {choice}" for choice in document["choices"]]
                assert question["reference"] == f" {document['choices'][document['answer']]}"
            else:
                assert question == {
                    "id": question["id"],
                    "prompt": document["prompt"],
                    "reference": document["solution"],
                }


@pytest.mark.parametrize(
    ("arguments", "target", "asked"),
    [
        (  # pairs of sentences
            [("", "They are."), ("", "They is.")],
            0,
            {"prompt": "", "choices": ["They are.", "They is."], "reference": "They are."},
        ),
        (  # what stands before the blank differs, what stands behind it does not
            [("Ann beat Eve since Ann", " won."), ("Ann beat Eve since Eve", " won.")],
            "won.",
            {
                "prompt": "Ann beat Eve since ",
                "choices": ["Ann won.", "Eve won."],
                "reference": "won.",
            },
        ),
        (  # the same choices without a prompt, for mutual information
            [("Q:", " a"), ("Q:", " b"), ("", " a"), ("", " b")],
            [1],
            {"prompt": "Q:", "choices": [" a", " b"], "reference": " b"},
        ),
        ([("Q:", {"until": []})], ["a", "b"], {"prompt": "Q:", "reference": "a\nb"}),
        ([("Q:", {"until": []})], 3, {"prompt": "Q:", "reference": "3"}),
        ([("Q:", " 42")], 0, {"prompt": "Q:", "reference": " 42"}),
        ([("A text.",)], "A text.", {"prompt": "A text."}),
    ],
)
def test_a_question_is_what_the_model_read(arguments, target, asked):
    sample = {"doc_id": 7, "arguments": arguments, "target": target}
    assert _question(sample, "group/") == {"id": "group/7", **asked}


def test_a_continuation_that_no_model_reads_is_a_user_error(tiny):
    from harness.evaluation.lm_eval_model import LiveModel

    with (
        quiet(),
        pytest.raises(
            UserError, match="retention: a continuation has 1025 tokens, the model reads 1 to 1024"
        ),
    ):
        LiveModel(*load(tiny))._loglikelihood_tokens([(None, [5], [6] * 1025)])


def test_a_group_is_one_result_with_all_items(tiny, tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "retention")
    (tmp_path / "retention" / "tasks" / "both.yaml").write_text(
        "group: both\ntask: [embedded_facts, embedded_commonsense]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
        "metadata: {version: 1}\n"
    )
    monkeypatch.setattr(lm_eval_tasks, "FOLDER", tmp_path / "retention")
    _indexed.cache_clear()
    try:
        model, tokenizer = load(tiny)
        group = run_suite(load_suite(["both"]), model, tokenizer)[0]
        parts = run_suite(load_suite(["embedded_facts", "embedded_commonsense"]), model, tokenizer)
    finally:
        _indexed.cache_clear()
    assert (group["metric"], group["n"]) == ("acc,none", 152)
    assert group["value"] == pytest.approx(sum(p["value"] * p["n"] for p in parts) / 152)
    assert [i["score"] for i in group["items"]] == [i["score"] for p in parts for i in p["items"]]
    assert (
        group["items"][0]["id"] == "embedded_facts/0"
        and group["items"][-1]["id"] == "embedded_commonsense/49"
    )
    assert set(group["protocol"]["definitions"]) == {"embedded_facts", "embedded_commonsense"}


def test_protocol_is_known_before_and_says_what_counts(tiny):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    base = load_suite("embedded_1").protocols(torch.float32, tokenizer)
    assert base == load_suite("embedded_1").protocols("float32", tokenizer)
    assert json.loads(json.dumps(base)) == base and str(FOLDER) not in json.dumps(base)
    assert (
        base["embedded_instructions"]["max_gen_toks"] == [56]
        and base["embedded_facts"]["max_gen_toks"] is None
    )
    facts = {"task": "embedded_facts", "metric": "acc,none"}

    def digest(changes, limit=None, dtype="float32", **how):
        return json.dumps(
            load_suite([facts | changes]).protocols(dtype, tokenizer, limit, **how)[
                "embedded_facts"
            ]
        )

    kinds = [
        digest({}),
        digest({}, vllm=True),
        digest({}, dtype="bfloat16"),
        digest({}, limit=5),
        digest({"chat_template": True}),
        digest({"metric": "acc_norm"}),
    ]
    assert len(set(kinds)) == len(kinds)
    assert digest({"limit": 5}, limit=9) == kinds[3] == digest({"limit": 9}, limit=5)
    assert digest({"description": "other words"}) == kinds[0]
    tokenizer.chat_template = "{{ messages[-1].content }}"
    changed = load_suite("embedded_1").protocols("float32", tokenizer)
    assert {k for k in base if base[k] != changed[k]} == {"embedded_instructions"}
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        load_suite("embedded_1").protocols("float32", tokenizer)


def test_the_first_suite_is_that_of_the_committed_results():
    """Documents, prompts and scoring, by the hashes that committed results hold."""
    kept = json.loads(
        (ROOT / "results/measured/paper_embedded/table_5_elements/protocols.json").read_text()
    )
    of_task = {p["task"]: p for p in kept.values() if isinstance(p, dict) and "task" in p}
    suite = load_suite("embedded_1")
    assert set(of_task) == {task.task for task in suite.tasks}
    for task in suite.tasks:
        for name, lm_eval_task in suite.load(task)["tasks"].items():
            assert task_definition(lm_eval_task) == of_task[task.task]["definitions"][name]
    for path in (ROOT / "benchmarks" / "orders").rglob("*.yaml"):
        order = yaml.safe_load(path.read_text())
        if "table_5" in path.name:
            assert order["retention"] in ("embedded_1", "paper"), path


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("embeded", "did you mean 'embedded'"),
        (["embedded_fact"], "did you mean 'embedded_facts'"),
        ([{"task": "embedded_facts", "metrics": "acc"}], "did you mean 'metric'"),
        ([{"task": "embedded_facts", "metric": "acc_nrm,none"}], "did you mean 'acc_norm,none'"),
        ([{"task": "embedded_facts", "limit": 0}], "`limit` must be"),
        ([{"task": "embedded_facts", "chance": 25}], "`chance` must be from 0 to below 1"),
        ([{"task": "embedded_facts", "chance": "low"}], "`chance` must be"),
        ([{"task": "embedded_facts", "chat_template": "yes"}], "`chat_template` must be"),
        ([{"task": "embedded_facts", "num_fewshot": 3}], "no examples"),
        ([{"metric": "acc,none"}], "mapping with `task`"),
        (["embedded_facts", "embedded_facts"], "more than once"),
        ([], "empty"),
        (7, "a name or a list"),
    ],
)
def test_what_is_wrong_is_said_before_anything_loads(spec, said):
    with pytest.raises(UserError) as error:
        load_suite(spec, "order.yaml: retention")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "tasks: [embedded_facts]\ntasks: [embedded_grammar]\n",
            "line 2: is not YAML (key 'tasks'",
        ),
        ("tasks:\n- task: embedded_facts\n  limit: 1\n  limit: 2\n", "line 4: is not YAML (key"),
        ("tasks:\n- {task: embedded_facts, limit: 010}\n", "octal: write 8 or 10"),
        ("tasks:\n- {task: embedded_facts, limit: 1:30}\n", "to the base of 60"),
        ("tasks: [", "is not YAML ("),
        (b"\xff\xfe", "is not YAML (not UTF-8)"),
        ("[embedded_facts]", "must be a mapping with `description` and a list `tasks`"),
    ],
)
def test_the_file_of_a_suite_is_read_strictly(text, said, tmp_path, monkeypatch):
    monkeypatch.setattr(suite_module, "FOLDER", tmp_path)
    path = tmp_path / "own.yaml"
    path.write_text("description: x\ntasks:\n- {task: embedded_facts, limit: 10}\n")
    assert [task.limit for task in load_suite("own").tasks] == [10]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        load_suite("own", "order.yaml: retention")
    line = str(error.value)
    assert "/own.yaml" in line and said in line and "\n" not in line


def test_any_task_or_group_of_lm_eval_by_name_without_the_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a definition was downloaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    suite = load_suite(
        [
            "hellaswag",
            "mmlu",
            "winogrande",
            "truthfulqa_mc1",
            "wikitext",
            {"task": "ifeval", "metric": "inst_level_loose_acc", "chat_template": True},
            {"task": "gsm8k", "metric": "exact_match,flexible-extract", "num_fewshot": 5},
        ]
    )
    assert [(t.task, t.metric, t.higher_is_better) for t in suite.tasks] == [
        ("hellaswag", "acc,none", True),
        ("mmlu", "acc,none", True),
        ("winogrande", "acc,none", True),
        ("truthfulqa_mc1", "acc,none", True),
        ("wikitext", "word_perplexity,none", False),
        ("ifeval", "inst_level_loose_acc,none", True),
        ("gsm8k", "exact_match,flexible-extract", True),
    ]
    # a tag stands for its tasks
    assert [t.task for t in load_suite(["ai2_arc"]).tasks] == ["arc_challenge", "arc_easy"]
    with pytest.raises(UserError, match="HF_ALLOW_CODE_EVAL"):
        load_suite(["humaneval"])
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert (
        load_suite([{"task": "humaneval", "metric": "pass@1,create_test"}]).tasks[0].metric
        == "pass@1,create_test"
    )
    with pytest.raises(UserError, match="unknown metric"):
        load_suite([{"task": "mmlu", "metric": "acc_norm,none"}])
    with pytest.raises(UserError, match="did you mean"):
        load_suite(["helaswag"])


def test_the_data_are_what_they_say(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "tasks"))
    import grammar
    import utils

    pairs = grammar.rows()
    assert len(pairs) == 165 and len({tuple(sorted(p["choices"])) for p in pairs}) == 165
    assert all(p["choices"][0] != p["choices"][1] for p in pairs)
    for name, rows, choices in (
        ("pairs", pairs, 2),
        ("facts", utils.cloze_rows("facts"), 4),
        ("mmlu", utils.mmlu_rows(), 4),
        ("commonsense", utils.cloze_rows("commonsense"), 2),
    ):
        # a model of NaN takes the first
        first = sum(row["answer"] == 0 for row in rows) / len(rows)
        assert first == pytest.approx(1 / choices, abs=0.1), name
        assert all(len(set(row["choices"])) == choices for row in rows), name
    monkeypatch.setitem(utils.PINNED, "mmlu", "0" * 64)
    with pytest.raises(ValueError, match="SHA-256"):
        utils.mmlu_rows()


def test_instructions_are_checked_by_ifeval_without_its_download(monkeypatch):
    import nltk

    def refuse(*_, **__):
        raise AssertionError("NLTK data were asked for")

    monkeypatch.setattr(nltk, "download", refuse)
    monkeypatch.syspath_prepend(str(FOLDER / "tasks"))
    import utils

    utils._ifeval.cache_clear()
    rows = {r["prompt"]: r for r in utils._jsonl("instructions.jsonl")}
    # less than 25 words, and the word force
    letter = next(r for p, r in rows.items() if "gravity" in p)
    assert utils.instruction_scores(letter, ["Gravity is a force."])["inst_level_loose_acc"] == [
        True,
        True,
    ]
    assert utils.instruction_scores(letter, ["Gravity pulls."])["inst_level_loose_acc"] == [
        True,
        False,
    ]
    for row in rows.values():  # every checker runs, on an empty and on a long answer
        assert utils.instruction_scores(row, [""])["prompt_level_loose_acc"] is False
        assert len(utils.instruction_scores(row, ["word, " * 60])["inst_level_loose_acc"]) == len(
            row["instruction_id_list"]
        )
    assert not [m for m in sys.modules if m.startswith("lm_eval.tasks.ifeval")]


def test_jackknife_of_a_mean_is_the_usual_standard_error():
    values = [random.Random(1).random() for _ in range(3)] + [0.1, 0.9, 0.4]
    assert jackknife(statistics.mean, values) == pytest.approx(
        statistics.stdev(values) / len(values) ** 0.5
    )
    assert jackknife(statistics.mean, [1.0]) is None
