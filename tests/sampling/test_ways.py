"""The ways of sampling draw the same tokens, and the check finds the first that is right."""

import contextlib
import copy
import itertools
import types
from typing import ClassVar

import pytest
import torch

from benchmarks.families.trial import own_logprobs, tiny_model
from harness.base.errors import UserError
from harness.learning.packing import Row
from harness.sampling import graphs
from harness.sampling import ways as ways_module
from harness.sampling.transformers import (
    BUFFERS,
    GRAPHS,
    WAYS,
    TransformersSampler,
    allow_graphs,
    keep_way,
    way_of,
)
from harness.sampling.ways import Way, find_way

EAGER = {name: way for name, way in WAYS.items() if name != GRAPHS}
TEXTS = ["abc", "a much longer question than the others, to be padded against", "?", "12 + 7 ="]


@pytest.fixture
def model(tiny_model):
    """A copy, whose way of sampling may be changed."""
    return copy.deepcopy(tiny_model[0])


@pytest.fixture
def prompts(tiny_model):
    return [tiny_model[1](text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("way", [way for way in WAYS if way != BUFFERS])
@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"n": 3, "seed": 5}, {"n": 2, "top_p": 0.8, "seed": 1}]
)
def test_every_way_draws_the_same(way, settings, model, tiny_model, prompts):
    sampler = TransformersSampler(model, tiny_model[1], batch_size=4)
    sampler.stops = sampler.stops | set(range(20))  # completions of many lengths
    settings = {**settings, "max_new_tokens": 16, "strings": ("e", "?!")}
    keep_way(model, "buffers")
    wanted = sampler.sample(prompts, **settings)
    keep_way(model, way)
    model.generation_config.repetition_penalty = 1.7  # a command's own, not the harness's
    config = model.generation_config
    made = sampler.sample(prompts, **settings)
    assert model.generation_config is config
    for ours, theirs in zip(made, wanted, strict=True):
        assert [(c.token_ids, c.text, c.finished) for c in ours] == [
            (c.token_ids, c.text, c.finished) for c in theirs
        ]
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert len({len(c.token_ids) for group in made for c in group}) > 1


@pytest.mark.parametrize("name", ["falcon", "falcon alibi", "lfm2", "mamba2", "recurrent_gemma"])
def test_greedy_answers_are_those_of_generate(name, tiny_model, prompts):
    model = tiny_model_of(name)
    sampler = TransformersSampler(model, tiny_model[1])
    answers = sampler.sample(prompts, max_new_tokens=12, temperature=0)
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        out = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=sorted(sampler.stops),
            pad_token_id=0,
        )
        assert answer.token_ids == out[0, len(prompt) :].tolist()
        own = own_logprobs(model, Row(prompt, answer.token_ids))
        assert answer.logprobs == pytest.approx(own.tolist(), abs=1e-4)


def tiny_model_of(name):
    return tiny_model(name, torch.float32)


def test_prompts_of_one_length_go_together_where_padding_is_not_taken(model, tiny_model):
    seen = []

    def complete(model, prompts, completions, answers):
        seen.append([len(prompt) for prompt in prompts])
        WAYS["buffers"].complete(model, prompts, completions, answers)

    sampler = TransformersSampler(model, tiny_model[1], batch_size=2)
    way = Way(complete, pads=False)
    prompts = [[1] * n for n in (3, 5, 3, 5, 3, 4)]
    for indices, turn in sampler._batches(prompts, 1, way, 2):
        seen.append([len(prompts[i]) for i in indices])
        assert turn == range(1)
    assert seen == [[3, 3], [3], [4], [5, 5]]


def test_the_answer_stays_with_the_model_and_its_copies(model, monkeypatch):
    asked = []

    def find(*arguments):
        asked.append(arguments)
        return "generate"

    monkeypatch.setattr("harness.sampling.transformers.find_way", find)
    vars(model).pop("_way_of_sampling", None)
    assert way_of(model) == way_of(model) == way_of(copy.deepcopy(model)) == "generate"
    assert len(asked) == 1


def broken(shift):
    """The fast way with logits that are off by ``shift``, in nats, at every tenth token."""

    class Off:
        def __init__(self, answers):
            self.answers = answers
            self.limit = answers.limit

        def add(self, logits):
            moved = logits.clone()
            moved[:, ::10] += shift
            return self.answers.add(moved)

    def complete(model, prompts, completions, answers):
        WAYS["buffers"].complete(model, prompts, completions, Off(answers))

    return Way(complete, pads=True)


@pytest.mark.parametrize("shift, way", [(0, "buffers"), (1e-5, "buffers"), (1e-3, "generate")])
def test_the_check_sees_a_thousandth_of_a_nat(shift, way, model):
    assert find_way(model, {**EAGER, "buffers": broken(shift)}) == way


@pytest.mark.parametrize("shift, way", [(0, "buffers"), (0.5, "generate")])
def test_in_bfloat16_it_sees_what_is_more_than_rounding(shift, way, model):
    assert find_way(model.to(torch.bfloat16), {**EAGER, "buffers": broken(shift)}) == way


def test_where_no_way_is_right_the_model_is_refused(model, monkeypatch):
    monkeypatch.setattr(ways_module, "_distance", lambda *arguments: 1.0)
    with pytest.raises(UserError) as error:
        find_way(model, EAGER, "order.yaml: model")
    assert str(error.value).startswith("order.yaml: model: LlamaForCausalLM cannot be sampled from")


def test_dropout_is_off_meanwhile_and_the_mode_stays():
    model = tiny_model_of("gpt2").train()  # with dropout
    assert way_of(model) == "buffers"
    assert model.training


# ---- steps of one shape ----------------------------------------------------------------------


def test_graphs_are_a_way_where_they_are_asked_for(model):
    vars(model).pop("_way_of_sampling", None)
    other = copy.deepcopy(model)
    assert way_of(model) == BUFFERS
    allow_graphs(other)
    assert way_of(other) == way_of(copy.deepcopy(other)) == GRAPHS


def test_a_model_with_windows_takes_the_next_way(tiny_model):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=len(tiny_model[1]), sliding_window=64, **shape, **heads)
    windowed = MistralForCausalLM(config).eval()
    allow_graphs(windowed)
    assert way_of(windowed) == BUFFERS


def answers_of(model, tokenizer, prompts):
    sampler = TransformersSampler(model, tokenizer)
    sampler.stops = set(range(0, 256, 9))  # one answer after the other ends
    groups = sampler.sample(prompts, max_new_tokens=30, n=4, seed=2)
    return [answer for group in groups for answer in group]


def test_rows_leave_when_half_of_them_have_ended(model, tiny_model, prompts, monkeypatch):
    keep_way(model, BUFFERS)
    wanted = answers_of(model, tiny_model[1], prompts)
    seen, run = [], graphs._Step._run

    def watched(step):
        seen.append((len(step.tokens), len(step.live)))
        return run(step)

    monkeypatch.setattr(graphs._Step, "_run", watched)
    keep_way(model, GRAPHS)
    made = answers_of(model, tiny_model[1], prompts)
    assert [a.token_ids for a in made] == [a.token_ids for a in wanted]
    sizes = list(dict.fromkeys(size for size, _ in seen))
    assert len(sizes) >= 3 and all(2 * b <= a for a, b in itertools.pairwise(sizes))
    assert all(live <= size < 2 * live or size == live for size, live in seen)
    assert len(seen) == max(len(answer.token_ids) for answer in wanted) - 1


class FakeGraph:
    """A CUDA graph in Python: what is recorded does not run, and a replay writes the same tensor.

    recording: the graph that records now; made: all of them.
    """

    recording = None
    made: ClassVar[list] = []

    def __init__(self):
        self.made.append(self)
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.out.copy_(self.run(self.step))


def test_trial_steps_before_a_recording_are_taken_back(model, tiny_model, prompts, monkeypatch):
    keep_way(model, BUFFERS)
    wanted = answers_of(model, tiny_model[1], prompts)
    run, trials = graphs._Step._run, []

    def recorded(step):
        graph = FakeGraph.recording
        if graph is None:
            trials.append(len(step.tokens))
            return run(step)
        graph.step, graph.run = step, run
        graph.out = torch.full((len(step.tokens), model.config.vocab_size), torch.nan)
        return graph.out

    @contextlib.contextmanager
    def recording(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"  # other threads may copy checkpoints
        FakeGraph.recording = graph
        yield
        FakeGraph.recording = None

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(graphs._Step, "_run", recorded)
    monkeypatch.setattr(graphs, "_has_graphs", lambda device: True)
    for name, stand_in in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": FakeGraph,
        "graph": recording,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    FakeGraph.made.clear()
    keep_way(model, GRAPHS)
    made = answers_of(model, tiny_model[1], prompts)
    assert [a.token_ids for a in made] == [a.token_ids for a in wanted]
    for ours, theirs in zip(made, wanted, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
    assert len(FakeGraph.made) >= 3 and len(trials) == graphs.WARM_UP * len(FakeGraph.made)
    longest = max(len(answer.token_ids) for answer in wanted)
    assert sum(graph.replays for graph in FakeGraph.made) == longest - 1
