"""vLLM as a sampler, against transformers and plain forward passes; `make test-vllm` runs these."""

import copy
import inspect
import math

import pytest
import torch
import transformers
import yaml
from scipy import stats

from benchmarks.speed import rows
from benchmarks.speed.timing import Settings
from harness.base.errors import UserError
from harness.base.files import read_json
from harness.evaluation.retention import run_suite
from harness.evaluation.suite import load_suite
from harness.learning.trainer import Trainer
from harness.models.chat import chat_tokens
from harness.models.embedded import embedded_checkpoint
from harness.models.load import load_model
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.sampling.settings import VLLMConfig, version
from harness.sampling.transformers import TransformersSampler
from harness.sampling.vllm import Engine, VLLMSampler
from tests.conftest import read_lines, save_tiny, write_rows

if version() is None:
    pytest.skip(
        "vLLM is not installed; make test-vllm runs these in an environment of its own",
        allow_module_level=True,
    )

TEXTS = [
    "abc",
    "a much longer question than the others, to be cut into blocks",
    "?",
    "who are you",
    "12 + 7 =",
]
SMALL = VLLMConfig(kv_cache_gib=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with heads as wide as vLLM's attention wants them on a CPU."""
    return save_tiny(
        tmp_path_factory.mktemp("wide"),
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=128,
        max_position_embeddings=512,
    )


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(str(folder), "float32", "cpu")


@pytest.fixture(scope="module")
def engine():
    """One for all tests, as for all runs of an order."""
    engine = Engine(SMALL)
    yield engine
    engine.close()


@pytest.fixture(params=["transformers", "vllm"])
def sampler(request, loaded):
    """Each backend, with so many stop tokens that answers end at different lengths."""
    model, tokenizer = loaded
    sampler = (
        TransformersSampler(model, tokenizer)
        if request.param == "transformers"
        else VLLMSampler(request.getfixturevalue("engine"), model, tokenizer)
    )
    sampler.stops = sampler.stops | set(range(20))
    return sampler


@pytest.fixture
def prompts(loaded):
    return [loaded[1](t)["input_ids"] for t in TEXTS]


def token_lists(groups):
    return [[c.token_ids for c in group] for group in groups]


def forward_logprobs(model, prompt, tokens, temperature=1.0):
    """Log-probabilities of ``tokens`` after ``prompt`` in float64."""
    with torch.no_grad():
        logits = (
            copy.deepcopy(model)
            .double()(torch.tensor([prompt + tokens]))
            .logits[0, len(prompt) - 1 : -1]
        )
    return (
        (logits / temperature)
        .log_softmax(-1)
        .gather(1, torch.tensor(tokens)[:, None])[:, 0]
        .tolist()
    )


# ---- the sampler, on both backends ----


def test_greedy_is_generate(sampler, prompts, loaded):
    model, tokenizer = loaded
    groups = sampler.sample(prompts, max_new_tokens=16, temperature=0)
    for prompt, [answer] in zip(prompts, groups, strict=True):
        wanted = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=sorted(sampler.stops),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert answer.token_ids == wanted
        assert answer.text == tokenizer.decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize("temperature, top_p", [(0, 1.0), (1.0, 1.0), (1.0, 0.7)])
def test_logprobs_are_those_of_a_forward_pass(sampler, prompts, loaded, temperature, top_p):
    groups = sampler.sample(
        prompts, max_new_tokens=10, n=2, seed=5, temperature=temperature, top_p=top_p
    )
    for prompt, group in zip(prompts, groups, strict=True):
        for c in group:
            assert c.logprobs == pytest.approx(
                forward_logprobs(loaded[0], prompt, c.token_ids), abs=1e-4
            )


def test_an_answer_ends_with_its_stop_token(sampler, prompts):
    groups = sampler.sample(prompts, max_new_tokens=16, n=8, seed=1)
    assert [len(group) for group in groups] == [8] * 5
    completions = [c for group in groups for c in group]
    for c in completions:
        stopping = [t in sampler.stops for t in c.token_ids]
        assert not any(stopping[:-1]) and len(c.logprobs) == len(c.token_ids) <= 16
        assert c.finished == stopping[-1] and (c.finished or len(c.token_ids) == 16)
    assert {c.finished for c in completions} == {True, False}


def test_draws_are_keyed_by_seed_and_place(sampler, prompts):
    """Equal seeds give equal answers, other seeds others; n and the limit change no answer."""
    three = token_lists(sampler.sample(prompts, max_new_tokens=12, n=3, seed=9))
    assert token_lists(sampler.sample(prompts, max_new_tokens=12, n=3, seed=9)) == three
    assert token_lists(sampler.sample(prompts, max_new_tokens=12, n=3, seed=10)) != three
    assert [g[:1] for g in three] == token_lists(sampler.sample(prompts, max_new_tokens=12, seed=9))
    assert [[t[:4] for t in g] for g in three] == token_lists(
        sampler.sample(prompts, max_new_tokens=4, n=3, seed=9)
    )
    assert len({tuple(t) for g in three for t in g}) == 15


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6)])
def test_frequencies_follow_the_softmax(sampler, prompts, loaded, temperature, top_p):
    [group] = sampler.sample(
        prompts[:1], max_new_tokens=1, n=600, seed=3, temperature=temperature, top_p=top_p
    )
    counts = torch.bincount(
        torch.tensor([c.token_ids[0] for c in group]), minlength=len(loaded[1])
    ).double()
    with torch.no_grad():
        probs = (
            copy.deepcopy(loaded[0]).double()(torch.tensor([prompts[0]])).logits[0, -1]
            / temperature
        ).softmax(-1)
    ordered, places = probs.sort(descending=True)
    inside = torch.zeros(len(probs), dtype=torch.bool).scatter(
        0, places, ordered.cumsum(0) - ordered < top_p
    )
    assert counts[~inside].sum() == 0
    probs = torch.where(inside, probs, 0.0) / probs[inside].sum()
    common = probs * 600 >= 5
    rest = [x for x in [probs[~common].sum() * 600] if x >= 5]
    observed = torch.tensor([*counts[common], *([counts[~common].sum()] if rest else [])]).double()
    expected = torch.tensor([*(probs[common] * 600), *rest]).double()
    assert (
        len(observed) > 4
        and stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue > 0.001
    )


def test_progress_and_an_interruption(sampler, prompts):
    seen = []
    wanted = token_lists(sampler.sample(prompts, max_new_tokens=6, n=2, progress=seen.append))
    assert seen == sorted(seen) and seen[-1] == 10

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.sample(prompts, max_new_tokens=6, n=2, progress=stop)
    # The engine keeps nothing of the interrupted call.
    assert token_lists(sampler.sample(prompts, max_new_tokens=6, n=2)) == wanted


# ---- the weights ----


def both_logprobs(engine, model, tokenizer, prompt, tokens):
    """The engine's log-probabilities of ``tokens``, and the model's."""
    VLLMSampler(engine, model, tokenizer).ready()
    [(logprobs, _)] = engine.score([(prompt + tokens, len(prompt))])
    return logprobs, forward_logprobs(model, prompt, tokens)


def test_the_engine_has_the_weights_of_the_moment(engine, loaded, prompts):
    """After an optimizer step, a copy, a write that autograd does not see, another model."""
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    tokens, before = prompts[3], None

    def adamw():
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
        model(torch.tensor([prompts[1]])).logits.logsumexp(-1).sum().backward()
        optimizer.step()

    def copied():
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p * 1.1)

    def written():
        model.get_input_embeddings().weight.data.mul_(1.2)

    def other():
        nonlocal model
        model = copy.deepcopy(model)
        written()
        engine.rest()

    for change in (lambda: None, adamw, copied, written, other):
        change()
        logprobs, wanted = both_logprobs(engine, model, tokenizer, prompts[1], tokens)
        assert logprobs == pytest.approx(wanted, abs=1e-4)
        if before is not None:
            assert max(abs(a - b) for a, b in zip(logprobs, before, strict=True)) > 0.01
        before = logprobs


def test_weights_are_pushed_only_when_they_changed(engine, loaded, prompts, monkeypatch):
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    sampler, pushed = VLLMSampler(engine, model, tokenizer), []
    sampler.sample(prompts, max_new_tokens=2)
    push = engine.llm.collective_rpc
    monkeypatch.setattr(
        engine.llm, "collective_rpc", lambda *args, **how: pushed.append(args) or push(*args, **how)
    )
    sampler.sample(prompts, max_new_tokens=2)
    assert not pushed
    with torch.no_grad():
        model.lm_head.weight[3, 5] *= 1.01
    sampler.sample(prompts, max_new_tokens=2)
    sampler.sample(prompts, max_new_tokens=2)
    assert len(pushed) == 1


def test_the_engine_disturbs_nothing(engine, loaded, prompts):
    """Random states, threads and the model's mode are what they were."""
    model, tokenizer = loaded
    torch.manual_seed(7)
    threads, wanted = torch.get_num_threads(), torch.rand(3)
    torch.manual_seed(7)
    VLLMSampler(engine, copy.deepcopy(model).train(), tokenizer).sample(prompts, max_new_tokens=3)
    assert torch.equal(torch.rand(3), wanted)
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


# ---- the same again ----


def test_the_same_model_answers_the_same(engine, loaded, prompts):
    """Scored, continued and sampled twice, with another call and other weights in between."""
    model, tokenizer = loaded
    sampler = VLLMSampler(engine, model, tokenizer)
    scored = [([*tokens, 70, 71, 72], len(tokens)) for tokens in prompts]

    def everything():
        ready = sampler.ready()
        return (
            ready.score(scored),
            ready.generate(prompts, 12, ("z",), {3}, model.generation_config),
            sampler.sample(prompts, max_new_tokens=12, temperature=0),
            sampler.sample(prompts, max_new_tokens=12, n=3, seed=4),
        )

    first = everything()
    assert everything() == first
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.3)
    VLLMSampler(engine, other, tokenizer).sample(prompts[::-1], max_new_tokens=5, seed=8)
    assert everything() == first


def test_the_same_model_is_evaluated_the_same(folder, tmp_path):
    """Two folders, each measured for itself: every answer and number of every evaluation."""
    order = vllm_order(folder, tmp_path)
    order.methods = {"sdft": order.methods["sdft"]}
    found = []
    for name in ("first", "second"):
        run_order(order, tmp_path / name)
        files = sorted((tmp_path / name / "evaluations").glob("*.json"))
        found.append({file.name: read_json(file) for file in files})
    assert found[0] == found[1] and len(found[0]) >= 2
    answers = [item for each in found[0].values() for item in each["items"]]
    assert len(answers) >= 8


def test_vllm_has_what_the_invariant_mode_is_made_of():
    """Names that are no part of its interface, and what it says of GPUs."""
    from vllm import envs
    from vllm.model_executor.determinism import batch_invariant as mode

    assert callable(mode.enable_batch_invariant_mode)
    assert mode._batch_invariant_LIB is None and mode._batch_invariant_MODE is False
    assert envs.VLLM_BATCH_INVARIANT is False
    source = inspect.getsource(envs)
    assert "Requires NVIDIA GPU with compute capability >= 9.0" in source


def test_what_a_batch_holds_is_an_option(loaded, prompts):
    config = VLLMConfig(kv_cache_gib=0.05, max_num_seqs=2, max_num_batched_tokens=600)
    engine = Engine(config)
    try:
        groups = VLLMSampler(engine, *loaded).sample(prompts, max_new_tokens=4, temperature=0)
        scheduler = engine.llm.llm_engine.vllm_config.scheduler_config
        assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens) == (2, 600)
        own = TransformersSampler(*loaded).sample(prompts, max_new_tokens=4, temperature=0)
        assert token_lists(groups) == token_lists(own)
    finally:
        engine.close()


# ---- log-probabilities that vLLM cannot give, and what does not fit ----


def test_unknown_logprobs_are_nan(engine, loaded, prompts):
    sampler = VLLMSampler(engine, *loaded)
    [[answer], *_] = sampler.sample(prompts, max_new_tokens=3, temperature=0.6, top_p=0.9)
    assert all(math.isnan(x) for x in answer.logprobs)


def test_a_prompt_that_is_too_long_is_refused(engine, loaded):
    sampler = VLLMSampler(engine, *loaded)
    with pytest.raises(
        UserError,
        match="a prompt of 600 tokens and an answer of up to 8 are longer than 512 tokens",
    ):
        sampler.sample([[65] * 600], max_new_tokens=8)
    assert len(sampler.sample([[65] * 500], max_new_tokens=8)[0][0].token_ids) <= 8


# ---- whole stages ----


def vllm_order(folder, place):
    """An order for the wide model, sampled and evaluated by vLLM.

    The model has some success in its skill.
    """
    for split, count in (("train", 20), ("test", 4)):
        write_rows(
            place / f"{split}.jsonl",
            [
                {
                    "prompt": f"{split} {i}?",
                    "demonstration": f"v{i}!",
                    "reference": list("abcdefghijklmnopqr"),
                }
                for i in range(count)
            ],
        )
    skill = {
        "name": "letters",
        "train": "train.jsonl",
        "test": "test.jsonl",
        "grader": "contains",
        "max_new_tokens": 10,
    }
    (place / "order.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"name": str(folder), "dtype": "float32", "device": "cpu"},
                "skills": [skill],
                "methods": METHODS,
                "budget": {"prompts": 12, "batch_size": 4},
                "rollout": {"engine": "vllm"},
                "evaluate": {"engine": "vllm"},
                "vllm": {"kv_cache_gib": 0.05},
                "checkpoints": {"minutes": 0},
            }
        )
    )
    return read_order(place / "order.yaml")


METHODS = {
    "sdft": {"learning_rate": 1e-3},
    "grpo": {"learning_rate": 1e-3, "group_size": 4},
    "sft_reinvoke": {"learning_rate": 1e-3, "reinvoke_prompts": 4},
}


def lines(folder, run):
    """Training log and records of a run's first stage, without times."""
    stage = folder / "runs" / run / "stage-1"
    return [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_lines(stage / name)]
        for name in ("training.jsonl", "records.jsonl")
    ]


def test_a_stage_of_every_on_policy_method_and_a_resume(folder, tmp_path, monkeypatch):
    """Importance weights are on and near 1; a run that was killed ends in the same numbers."""
    order = vllm_order(folder, tmp_path)
    run_order(order, tmp_path / "whole")
    for label in METHODS:
        log, records = lines(tmp_path / "whole", f"{label}-seed0")
        on_policy = [
            row for row in log if row.get("phase") != 1 and row.get("groups_without_signal", 0) < 1
        ]
        assert [row["importance_weight"] for row in on_policy] == pytest.approx(
            [1] * len(on_policy), abs=1e-3
        ) and on_policy
        about = read_json(tmp_path / "whole" / "runs" / f"{label}-seed0" / "run.json")["engine"]
        assert (about["rollout"], about["evaluate"], about["vllm"]["version"]) == (
            "vllm",
            "vllm",
            version(),
        )
        protocols = read_json(tmp_path / "whole" / "protocols.json")
        assert all(protocols[r["protocol"]]["engine"] == "vllm" for r in records)
    assert read_json(tmp_path / "whole" / "results.json")["rollout"]["engine"] == "vllm"
    update, calls = Trainer.update, []

    def killed(trainer):
        calls.append(trainer)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return update(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run_order(order, tmp_path / "killed")
    run_order(order, tmp_path / "killed")
    for label in METHODS:
        assert lines(tmp_path / "killed", f"{label}-seed0") == lines(
            tmp_path / "whole", f"{label}-seed0"
        )


# ---- retention ----


def same(ours, theirs, tolerance):
    assert [r["name"] for r in ours] == [r["name"] for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a["items"], b["items"], strict=True):
            if isinstance(y["response"], str):
                assert x["response"] == y["response"], a["name"]
            else:
                assert x["response"] == pytest.approx(y["response"], abs=tolerance, rel=1e-5), a[
                    "name"
                ]
        assert a["value"] == pytest.approx(b["value"], abs=1e-5), a["name"]
        assert a["protocol"]["scorer"] != b["protocol"]["scorer"]


def test_retention_has_equal_scores(engine, loaded):
    """Choices, texts longer than the engine's room, and generation, against the model itself."""
    model, tokenizer = loaded
    suite = load_suite("embedded_1")  # whose texts this model of 512 positions reads
    seen = []
    ours = run_suite(
        suite,
        model,
        tokenizer,
        limit=3,
        vllm=VLLMSampler(engine, model, tokenizer),
        progress=lambda *at: seen.append(at),
    )
    same(ours, run_suite(suite, model, tokenizer, limit=3), 1e-3)
    assert any(
        isinstance(i["response"], str) and i["response"].strip() for r in ours for i in r["items"]
    )
    assert all(done <= total for _, done, total in seen)


def test_the_embedded_model(prompts):
    """Log-probabilities of SmolLM2 and its scores, in float32 and in bfloat16 as on a GPU."""
    folder = embedded_checkpoint()
    for dtype, tolerance in (("float32", 2e-3), ("bfloat16", 0.3)):
        model, tokenizer = load_model(str(folder), dtype, "cpu")
        engine = Engine(VLLMConfig(kv_cache_gib=0.2))
        try:
            sampler = VLLMSampler(engine, model, tokenizer)
            prompt = chat_tokens(tokenizer, [{"role": "user", "content": "Name three colours."}])
            [[answer]] = sampler.sample([prompt], max_new_tokens=8, seed=1)
            with torch.no_grad():
                logits = (
                    model(torch.tensor([prompt + answer.token_ids]))
                    .logits[0, len(prompt) - 1 : -1]
                    .float()
                )
            wanted = (
                logits.log_softmax(-1)
                .gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
                .tolist()
            )
            assert answer.logprobs == pytest.approx(wanted, abs=tolerance)
            if dtype == "float32":
                suite = load_suite([{"task": "embedded_facts", "metric": "acc,none"}])
                same(
                    run_suite(suite, model, tokenizer, limit=4, vllm=sampler),
                    run_suite(suite, model, tokenizer, limit=4),
                    5e-3,
                )
        finally:
            engine.close()


def test_the_benchmarks_row(folder, tmp_path):
    """Both sides make as many tokens, or the row raises."""
    (row,) = rows.sampling_vllm(
        Settings(
            tmp_path,
            model=str(folder),
            dtype="float32",
            skill="elements",
            prompts=3,
            tokens=5,
            repeats=1,
        )
    )
    assert row.ours > 0 and row.theirs > 0
    assert row.details["push"] > 0 and version() in row.notes[-1]


def test_another_architecture(loaded, prompts):
    """Biases and untied embeddings (Qwen2), log-probabilities after the temperature."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.Qwen2Config(
            vocab_size=len(loaded[1]),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            initializer_range=0.2,
            tie_word_embeddings=False,
            eos_token_id=256,
        )
    ).eval()
    engine = Engine(SMALL, rollout_temperature=0.6)
    try:
        [[answer]] = VLLMSampler(engine, model, loaded[1]).sample(
            prompts[:1], max_new_tokens=8, temperature=0.6, seed=2
        )
        assert answer.logprobs == pytest.approx(
            forward_logprobs(model, prompts[0], answer.token_ids, 0.6), abs=1e-4
        )
    finally:
        engine.close()


def test_more_prompt_tokens_than_one_batch_of_the_engine(loaded, engine):
    """Prompts that would be read in parts: the CPU build fails on those with a seed."""
    model, tokenizer = loaded
    prompts = [[i] + [20 + j % 200 for j in range(300)] for i in range(20, 40)]
    groups = VLLMSampler(engine, model, tokenizer).sample(prompts, max_new_tokens=3, seed=1)
    logprobs = [answer.logprobs[0] for [answer] in groups]
    tokens = torch.tensor([answer.token_ids[0] for [answer] in groups])
    own = model(torch.tensor(prompts)).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(
        torch.tensor(logprobs), own.gather(1, tokens[:, None])[:, 0], rtol=0, atol=1e-4
    )
