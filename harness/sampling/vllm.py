"""vLLM as a second sampler behind the same interface: its engine in this process, the live weights
pushed into it.

One engine serves a whole order: rollouts, evaluations and all runs, whose models have one shape. It
is built from the model's configuration alone and never reads a checkpoint: weights go into it
before the first use after they changed. On a GPU it sleeps in between, which gives its memory back
to the training.

Every call begins without cached prefixes and every completion has a seed of its own, so that what a
call returns depends on the weights and its arguments, not on the calls before it: a run that is
killed and resumed sees the same completions.
"""

import copy
import logging
import os
import random
import tempfile
import warnings
from contextlib import contextmanager

import numpy
import torch

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.models.chat import chat_tokens, stop_tokens
from harness.sampling.sampler import Completion
from harness.sampling.settings import REMEDY, VLLMConfig, version
from harness.sampling.transformers import TransformersSampler

# Before vLLM is imported: the engine in this process, where the weights are.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
ROOM = {"cpu": 1.0, "cuda": 8.0}  # GiB of keys and values
# nats by which log-probabilities of a sound engine may differ from the model's in the mean; another
# model is far off
PROBE = 0.5


class Engine:
    """vLLM's engine for models of one shape, and whose weights it has.

    vLLM has room for one in a process: one that starts ends another, which starts anew at its next
    use.

    rollout_temperature: at which log-probabilities will be asked for. vLLM tells those of the
    distribution either before temperature and top-p or after both, decided once: before is right at
    temperature 1, after is right without top-p.
    """

    running = None  # the one that there is

    def __init__(self, config=None, rollout_temperature=1.0):
        self.config, self.raw = config or VLLMConfig(), rollout_temperature == 1
        self.llm, self.held, self.asleep, self.woken = None, None, False, False

    def tells(self, temperature, top_p):
        """Whether log-probabilities are those at ``temperature`` before top-p."""
        return temperature == 0 or (temperature == 1 if self.raw else top_p == 1)

    @property
    def limit(self):
        """Tokens of the longest prompt and answer together."""
        return self.llm.llm_engine.model_config.max_model_len

    def hold(self, model, tokenizer):
        """Be ready to sample from ``model`` as it is now: start, wake up, take its weights, as far
        as there is need.
        """
        # tied ones once
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        # Of what they hold: AdamW's fused step and a write into `.data` leave no other trace.
        now = torch.cat(
            [
                torch.hash_tensor(torch.atleast_2d(w).flatten(1), dim=-1).cpu()
                for w in weights.values()
            ]
        )
        if self.llm is not None and not self.asleep and torch.equal(now, self.held):
            self.llm.reset_prefix_cache()
            return
        first = self.llm is None
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # what training freed, torch keeps for itself
        with _undisturbed():
            if first:
                if Engine.running:
                    Engine.running.close()
                self.llm, Engine.running = self._start(model, tokenizer), self
            elif self.asleep:
                self.llm.wake_up(tags=["weights"])
            self.llm.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": iter(weights.items())}
            )
            self.llm.apply_model(_renew_head)
            if self.asleep:
                self.llm.wake_up(tags=["kv_cache"])
        self.held, self.asleep, woken = now, False, self.asleep
        # whether it reads the weights as the model does, also after its first sleep
        if first or (woken and not self.woken):
            self._compare(model, tokenizer)
        self.woken = woken or self.woken
        self.llm.reset_prefix_cache()

    def rest(self):
        """Training follows: on a GPU, drop weights, keys and values; they come back at the next
        use.
        """
        if self.llm is not None and self.sleeps and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True

    def close(self):
        """End the engine and give back all it has."""
        if self.llm is not None:
            Engine.running = None
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            self.llm.llm_engine.engine_core.shutdown()
            self.llm, self.held, self.asleep, self.woken = None, None, False, False
            cleanup_dist_env_and_memory()

    def run(self, prompts, settings, progress=None):
        """vLLM's outputs for ``prompts`` (lists of token ids) under SamplingParams, one each, in
        their order.

        progress: called with the number of requests finished so far. Raises UserError for a prompt
        that is too long.
        """
        engine, found = self.llm.llm_engine, {}
        for prompt, how in zip(prompts, settings, strict=True):
            if len(prompt) + how.max_tokens > self.limit:
                raise UserError(
                    "vllm.max_model_len",
                    f"a prompt of {len(prompt)} tokens and an answer of up to {how.max_tokens} are "
                    f"longer than {self.limit} tokens",
                    "raise vllm.max_model_len or vllm.kv_cache_gib, or take engine: transformers",
                )
        with _undisturbed():
            try:
                for i, (prompt, how) in enumerate(zip(prompts, settings)):
                    engine.add_request(str(i), {"type": "token", "prompt_token_ids": prompt}, how)
                while engine.has_unfinished_requests():
                    found |= {out.request_id: out for out in engine.step() if out.finished}
                    if progress:
                        progress(len(found))
            except BaseException:
                engine.abort_request([str(i) for i in range(len(prompts))])
                raise
        return [found[str(i)] for i in range(len(prompts))]

    def score(self, sequences, progress=None):
        """[(log-probabilities, whether each is the greedy one)] of the tokens from ``start`` on;
        sequences: [(tokens, start)].
        """
        from vllm import SamplingParams

        how = SamplingParams(
            max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False, ignore_eos=True
        )
        out = []
        for (tokens, start), found in zip(
            sequences, self.run([t for t, _ in sequences], [how] * len(sequences), progress)
        ):
            told = [found.prompt_logprobs[i][tokens[i]] for i in range(start, len(tokens))]
            out.append(([t.logprob for t in told], [t.rank == 1 for t in told]))
        return out

    def generate(self, prompts, max_new_tokens, strings, stops, defaults):
        """Greedy continuations (lists of token ids) that end with a text of ``strings`` or a token
        of ``stops``; defaults: the model's generation config, whose penalty on repetition counts as
        in ``generate``.
        """
        from vllm import SamplingParams

        how = SamplingParams(
            max_tokens=max_new_tokens,
            temperature=0,
            stop=list(strings),
            stop_token_ids=sorted(stops),
            ignore_eos=True,
            repetition_penalty=getattr(defaults, "repetition_penalty", None) or 1.0,
        )
        return [
            list(found.outputs[0].token_ids) for found in self.run(prompts, [how] * len(prompts))
        ]

    def _start(self, model, tokenizer):
        """vLLM's LLM of the model's shape, with weights that mean nothing yet. Raises UserError
        where that cannot be.
        """
        if version() is None:
            raise UserError("engine: vllm", "vLLM is not installed", REMEDY)
        os.environ.update(
            {key: value for key, value in ENVIRONMENT.items() if key not in os.environ}
        )
        logging.getLogger("vllm").setLevel(logging.ERROR)  # what it says while it is imported
        kind = model.device.type
        from vllm.platforms import current_platform

        if current_platform.device_type != kind or (model.device.index or 0) != 0:
            raise UserError(
                "engine: vllm",
                f"this vLLM runs on {current_platform.device_type} and the model is on {model.device}",
                REMEDY
                if current_platform.device_type != kind
                else "choose the GPU by CUDA_VISIBLE_DEVICES",
            )
        if kind == "cpu":
            # no C++ compiler is wanted for its small helpers
            type(current_platform).simple_compile_backend = "eager"
        from vllm import LLM

        eager, room = self.config.enforce_eager, self.config.kv_cache_gib or ROOM[kind]
        self.sleeps = kind == "cuda"
        shape, set_threads, preload = (
            copy.deepcopy(model.config),
            torch.set_num_threads,
            os.environ.get("LD_PRELOAD"),
        )
        shape.architectures = [type(model).__name__]
        with tempfile.TemporaryDirectory(prefix="vllm-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            try:
                return LLM(
                    model=folder,
                    load_format="dummy",
                    generation_config="vllm",
                    dtype=str(model.dtype).removeprefix("torch."),
                    max_model_len=self.config.max_model_len or -1,
                    kv_cache_memory_bytes=int(room * 2**30),
                    gpu_memory_utilization=0.01,  # what counts is the line above
                    enforce_eager=kind == "cpu" if eager is None else eager,
                    enable_sleep_mode=self.sleeps,
                    enable_prefix_caching=True,
                    logprobs_mode="raw_logprobs" if self.raw else "processed_logprobs",
                )
            except (ValueError, RuntimeError, NotImplementedError) as error:
                raise UserError(
                    "engine: vllm",
                    f"vLLM cannot run {type(model).__name__} here ({_reason(error)})",
                    "change the section vllm, or take engine: transformers",
                ) from error
            finally:
                # vLLM's CPU worker puts a function there that does nothing,
                torch.set_num_threads = set_threads
                # and libraries here that workers of its own would want
                os.environ.pop("LD_PRELOAD", None)
                os.environ |= {"LD_PRELOAD": preload} if preload else {}

    def _compare(self, model, tokenizer):
        """Raises UserError if the engine is not the model: an architecture whose weights have other
        names there, say.
        """
        sampler, prompt = (
            TransformersSampler(model, tokenizer),
            chat_tokens(tokenizer, [{"role": "user", "content": "Who are you?"}]),
        )
        sampler.stops = {-1}
        # likely tokens: little noise
        [[answer]] = sampler.sample([prompt], max_new_tokens=8, temperature=0)
        [(found, _)] = self.score([(prompt + answer.token_ids, len(prompt))])
        off = sum(abs(a - b) for a, b in zip(found, answer.logprobs)) / len(found)
        if not off <= PROBE:
            raise UserError(
                "engine: vllm",
                f"vLLM's {type(model).__name__} is not this model: log-probabilities differ by {off:.3g}",
                "take engine: transformers",
            )


class VLLMSampler:
    """Samples from ``model``, whatever its weights are at the time of the call, by ``engine``: as
    harness.sampling.transformers.TransformersSampler.
    """

    def __init__(self, engine, model, tokenizer):
        self.engine, self.model, self.tokenizer = engine, model, tokenizer
        self.end, self.stops = stop_tokens(model, tokenizer)

    def sample(
        self, prompts, *, max_new_tokens, temperature=1.0, top_p=1.0, n=1, seed=0, progress=None
    ):
        """As Sampler.sample. Every completion has its own stream of random numbers, keyed as there,
        but of vLLM's making.

        Which rows are computed together moves the last digits of the logits, and now and then a
        token. Log-probabilities are NaN where the engine was not made to tell them (see Engine).
        """
        engine = self.ready()
        from vllm import SamplingParams

        stops = sorted(s for s in self.stops if s >= 0)
        keys = [(i, k) for i in range(len(prompts)) for k in range(n)]
        settings = [
            SamplingParams(
                max_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p if temperature else 1.0,
                seed=seed_for(seed, i, k),
                logprobs=0,
                stop_token_ids=stops,
                ignore_eos=True,
                detokenize=False,
            )
            for i, k in keys
        ]
        done, told = [[] for _ in prompts], engine.tells(temperature, top_p)
        for (i, _), found in zip(
            keys, engine.run([prompts[i] for i, _ in keys], settings, progress)
        ):
            [answer] = found.outputs
            tokens = list(answer.token_ids)
            logprobs = [
                step[token].logprob if told else float("nan")
                for step, token in zip(answer.logprobs, tokens)
            ]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            done[i].append(Completion(tokens, logprobs, tokens[-1] in self.stops, text))
        return done

    def ready(self):
        """The engine, with the model's weights of this moment."""
        self.engine.hold(self.model, self.tokenizer)
        return self.engine

    def rest(self):
        self.engine.rest()


def _renew_head(model):
    """Let the head of vLLM's ``model`` make what it computes with from its weights.

    On a CPU that is a packed copy; where the head is tied to the embeddings, reloading these leaves
    it as it was.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


@contextmanager
def _undisturbed():
    """Python's, NumPy's and torch's random states as before afterwards."""
    python, numpys = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numpys)


def _reason(error):
    """The first line of the innermost error."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error).strip().split("\n")[0][:200]
