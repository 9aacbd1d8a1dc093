"""Completions from vLLM: its engine in this process, with the live weights pushed into it.

One engine serves a whole order: rollouts, evaluations and all runs, whose models have one shape. It
is built from the model's configuration alone and never reads a checkpoint. Weights that have
changed go into it before the next use. On a GPU it sleeps in between, which gives its memory back
to the training.

Every call begins without cached prefixes, and every completion has a seed of its own. What a call
returns therefore depends on the weights and its arguments, not on the calls before it: a run that
is killed and resumed sees the same completions.

On the ranks of torchrun each rank has an engine (vLLM's external launcher). So many of them as the
order says hold one copy of the weights, in tensor parallelism; the copies divide the requests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from harness.base.errors import UserError
from harness.base.seeds import seed_for
from harness.models import ranks
from harness.models.chat import chat_tokens, stop_tokens
from harness.models.sharded import sharded, weights_of
from harness.sampling.sampler import Completion, Texts
from harness.sampling.settings import VLLMConfig
from harness.sampling.transformers import TransformersSampler
from harness.sampling.vllm_setup import (
    check_platform,
    innermost_reason,
    is_invariant,
    prepare_invariant,
    quiet_start,
    save_shape,
    undisturbed,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
    from vllm import LLM, RequestOutput, SamplingParams

KV_CACHE_GIB = {"cpu": 1.0, "cuda": 8.0}  # GiB of keys and values
# Nats: the mean difference of log-probabilities up to which the engine has the model's weights.
# Another model is far off.
PROBE = 0.5
COMPARED_WAKES = 10  # of an engine, after which it is compared with the model


class VLLMSampler:
    """Samples by ``engine`` from ``model`` with the weights that it has at the time of the call."""

    def __init__(
        self, engine: Engine, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.engine = engine
        self.model = model
        self.tokenizer = tokenizer
        self.end, self.stops = stop_tokens(model, tokenizer)
        self.texts = Texts(tokenizer)

    def sample(
        self,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        n: int = 1,
        seed: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[Completion]]:
        """Sample ``n`` completions of each of ``prompts``, as ``Sampler.sample``.

        Every completion has its own stream of random numbers, with the key that TransformersSampler
        gives it, but from vLLM's generator. Which rows are computed together changes the last
        digits of the logits, and now and then a token. Log-probabilities are NaN where the engine
        cannot give them (see ``Engine``).
        """
        engine = self.ready()
        from vllm import SamplingParams

        stops = sorted(token for token in self.stops if token >= 0)
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
        outputs = engine.run([prompts[i] for i, _ in keys], settings, progress)
        has_logprobs = engine.has_logprobs(temperature, top_p)
        completions: list[list[Completion]] = [[] for _ in prompts]
        for (i, _), output in zip(keys, outputs, strict=True):
            completions[i].append(self._completion(prompts[i], output, has_logprobs))
        return completions

    def _completion(
        self, prompt: list[int], output: RequestOutput, has_logprobs: bool
    ) -> Completion:
        """The Completion of a request for one answer to ``prompt``."""
        [answer] = output.outputs
        tokens = list(answer.token_ids)
        logprobs = [
            entries[token].logprob if has_logprobs else float("nan")
            for entries, token in zip(answer.logprobs, tokens, strict=True)
        ]
        finished = tokens[-1] in self.stops
        return Completion(tokens, logprobs, finished, *self.texts.of(prompt, tokens))

    def ready(self) -> Engine:
        """The engine, with the weights that the model has now."""
        self.engine.prepare(self.model, self.tokenizer)
        return self.engine

    def rest(self) -> None:
        """Let the engine give back its memory; training follows."""
        self.engine.rest()


@dataclass
class _RunningEngine:
    """vLLM's engine while it runs.

    can_sleep: whether it can give back its memory between two uses (on a GPU); is_invariant: as
    the function of that name.
    hashes: of the weights that it has, None before it has any. wakes: how often it woke up.
    """

    llm: LLM
    can_sleep: bool
    is_invariant: bool = False
    hashes: torch.Tensor | None = None
    asleep: bool = False
    wakes: int = 0

    def has_weights(self, hashes: torch.Tensor) -> bool:
        """Whether it is awake, with the weights of these hashes."""
        return not self.asleep and self.hashes is not None and torch.equal(hashes, self.hashes)

    def load(self, weights: Iterator[tuple[str, torch.Tensor]], hashes: torch.Tensor) -> None:
        """Wake up where it sleeps, and take ``weights``."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.apply_model(_renew_head)
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.wakes += 1
        self.hashes = hashes
        self.asleep = False


class Engine:
    """vLLM's engine for models of one shape.

    A process has room for one running engine: one that starts closes the other, which starts again
    at its next use.

    rollout_temperature: the temperature at which log-probabilities are needed. vLLM gives those of
    the distribution either before temperature and top-p or after both, and that is fixed when it
    starts. Before is right at temperature 1, after is right without top-p. deterministic: whether
    answers may not depend on what is computed beside them, where vLLM has that (``is_invariant``).
    """

    running: ClassVar[Engine | None] = None  # the one in this process

    def __init__(
        self,
        config: VLLMConfig | None = None,
        rollout_temperature: float = 1.0,
        deterministic: bool = True,
    ) -> None:
        self.config = config or VLLMConfig()
        self.raw = rollout_temperature == 1
        self.deterministic = deterministic
        self._state: _RunningEngine | None = None  # None while it does not run

    @property
    def llm(self) -> LLM:
        """vLLM's own object. Raises RuntimeError while the engine does not run."""
        if self._state is None:
            raise RuntimeError("vLLM's engine does not run; VLLMSampler.ready starts it")
        return self._state.llm

    @property
    def limit(self) -> int:
        """Tokens of the longest prompt and answer together."""
        return self.llm.llm_engine.model_config.max_model_len

    def has_logprobs(self, temperature: float, top_p: float) -> bool:
        """Whether vLLM's log-probabilities are those at ``temperature`` before top-p."""
        return temperature == 0 or (temperature == 1 if self.raw else top_p == 1)

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Be ready to sample from ``model`` as it is now: start, wake up, take its weights.

        Only what is necessary is done. Raises UserError where vLLM cannot run the model.
        """
        hashes = _hashes(weights_of(model).values())
        is_ready = self._state is not None and self._state.has_weights(hashes)
        if all(ranks.gathered(is_ready)):
            self.llm.reset_prefix_cache()
            return
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # torch keeps for itself what training freed
        is_first_use = self._state is None
        if is_first_use:
            prepare_invariant(model.device, self.deterministic)
            check_platform(model.device)
        with undisturbed(is_invariant(model.device, self.deterministic)):
            if self._state is None:
                if Engine.running:
                    Engine.running.close()
                self._state = self._start(model, tokenizer)
                Engine.running = self
            was_asleep = self._state.asleep
            self._state.load(_whole_weights(model), hashes)
        # Does vLLM read the weights as the model does? A reload after sleep is another way in.
        if is_first_use or (was_asleep and self._state.wakes <= COMPARED_WAKES):
            self._compare(model, tokenizer)
        self._state.llm.reset_prefix_cache()

    def rest(self) -> None:
        """On a GPU, drop weights, keys and values until the next use; training follows."""
        if self._state is not None and self._state.can_sleep and not self._state.asleep:
            self._state.llm.sleep(level=2)
            self._state.asleep = True

    def close(self) -> None:
        """End the engine and give back all its memory; on ranks, once they part.

        vLLM ends what the ranks have in common as well.
        """
        if ranks.active():
            ranks.at_end(self.close)
        elif self._state is not None:
            Engine.running = None
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            self._state.llm.llm_engine.engine_core.shutdown()
            self._state = None  # the last reference, before the memory is collected
            cleanup_dist_env_and_memory()

    def run(
        self,
        prompts: Sequence[list[int]],
        settings: Sequence[SamplingParams],
        progress: Callable[[int], object] | None = None,
    ) -> list[RequestOutput]:
        """vLLM's outputs for ``prompts`` (lists of token ids), one each, in their order.

        settings: one for each prompt. progress: called with the number of requests that are
        finished so far. All ranks ask at once. Raises UserError for a prompt that is too long.
        """
        self._check_lengths(prompts, settings)
        engine = self.llm.llm_engine
        of_copy = self.config.tensor_parallel_size
        copies = ranks.count() // of_copy
        own = range(ranks.index() // of_copy, len(prompts), copies)
        outputs: dict[str, RequestOutput] = {}
        assert self._state is not None
        with undisturbed(self._state.is_invariant):
            try:
                for i in own:
                    request = {"type": "token", "prompt_token_ids": prompts[i]}
                    engine.add_request(str(i), request, settings[i])
                while engine.has_unfinished_requests():
                    outputs |= {out.request_id: out for out in engine.step() if out.finished}
                    if progress:
                        progress(min(len(outputs) * copies, len(prompts)))
            except BaseException:
                engine.abort_request([str(i) for i in own])
                raise
        for found in ranks.gathered(outputs):
            outputs |= found
        return [outputs[str(i)] for i in range(len(prompts))]

    def _check_lengths(
        self, prompts: Sequence[list[int]], settings: Sequence[SamplingParams]
    ) -> None:
        """Raises UserError for a prompt that is too long with its answer."""
        limit = self.limit
        for prompt, params in zip(prompts, settings, strict=True):
            if len(prompt) + params.max_tokens > limit:
                raise UserError(
                    "vllm.max_model_len",
                    f"a prompt of {len(prompt)} tokens and an answer of up to {params.max_tokens} "
                    f"are longer than {limit} tokens",
                    "raise vllm.max_model_len or vllm.kv_cache_gib, or take engine: transformers",
                )

    def score(
        self,
        sequences: Sequence[tuple[list[int], int]],
        progress: Callable[[int], object] | None = None,
    ) -> list[tuple[list[float], list[bool]]]:
        """(log-probabilities, whether each token is the greedy one) of the ends of ``sequences``.

        sequences: (tokens, the index of the first that is scored).
        """
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False, ignore_eos=True
        )
        prompts = [tokens for tokens, _ in sequences]
        outputs = self.run(prompts, [params] * len(prompts), progress)
        scores = []
        for (tokens, start), output in zip(sequences, outputs, strict=True):
            entries = [output.prompt_logprobs[i][tokens[i]] for i in range(start, len(tokens))]
            logprobs = [entry.logprob for entry in entries]
            scores.append((logprobs, [entry.rank == 1 for entry in entries]))
        return scores

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        strings: Iterable[str],
        stops: Iterable[int],
        defaults: GenerationConfig | None,
    ) -> list[list[int]]:
        """Greedy continuations (lists of token ids) of ``prompts``.

        They end with a text of ``strings`` or a token of ``stops``. defaults: the model's
        generation config, whose penalty on repetition counts as in its own ``generate``.
        """
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=max_new_tokens,
            temperature=0,
            stop=list(strings),
            stop_token_ids=sorted(stops),
            ignore_eos=True,
            repetition_penalty=getattr(defaults, "repetition_penalty", None) or 1.0,
        )
        outputs = self.run(prompts, [params] * len(prompts))
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _start(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> _RunningEngine:
        """Start vLLM with the model's shape; its weights have no meaning yet.

        Raises UserError where vLLM cannot run the model.
        """
        from vllm import LLM

        kind = model.device.type
        room = self.config.kv_cache_gib or KV_CACHE_GIB[kind]
        eager = self.config.enforce_eager
        can_sleep = kind == "cuda"
        invariant = is_invariant(model.device, self.deterministic)
        with tempfile.TemporaryDirectory(prefix="vllm-") as folder, quiet_start():
            save_shape(model, tokenizer, folder)
            try:
                llm = LLM(
                    model=folder,
                    load_format="dummy",
                    generation_config="vllm",
                    dtype=str(model.dtype).removeprefix("torch."),
                    max_model_len=self.config.max_model_len or -1,
                    kv_cache_memory_bytes=int(room * 2**30),
                    gpu_memory_utilization=0.01,  # the line above counts instead
                    enforce_eager=kind == "cpu" if eager is None else eager,
                    enable_sleep_mode=can_sleep,
                    enable_prefix_caching=True,
                    max_num_seqs=self.config.max_num_seqs,
                    max_num_batched_tokens=self.config.batched_tokens(on_gpu=kind != "cpu"),
                    # A seeded request whose prompt is read in parts fails in the CPU build.
                    enable_chunked_prefill=kind != "cpu",
                    logprobs_mode="raw_logprobs" if self.raw else "processed_logprobs",
                    tensor_parallel_size=self.config.tensor_parallel_size,
                    distributed_executor_backend="external_launcher" if ranks.active() else None,
                )
            except (ValueError, RuntimeError, NotImplementedError) as error:
                remedy = "change the section vllm, or take engine: transformers"
                raise UserError(
                    "engine: vllm",
                    f"vLLM cannot run {type(model).__name__} here ({innermost_reason(error)})",
                    f"set model.deterministic: false, {remedy}" if invariant else remedy,
                ) from error
        return _RunningEngine(llm, can_sleep, invariant)

    def _compare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError if the engine does not compute what the model computes.

        An architecture whose weights have other names in vLLM is an example.
        """
        sampler = TransformersSampler(model, tokenizer)
        sampler.stops = {-1}  # no token ends the answer
        prompt = chat_tokens(tokenizer, [{"role": "user", "content": "Who are you?"}])
        # Likely tokens have little noise.
        [[answer]] = sampler.sample([prompt], max_new_tokens=8, temperature=0)
        [(logprobs, _)] = self.score([(prompt + answer.token_ids, len(prompt))])
        pairs = zip(logprobs, answer.logprobs, strict=True)
        difference = sum(abs(engine - own) for engine, own in pairs) / len(logprobs)
        # Written so that NaN is refused as well.
        if not difference <= PROBE:
            raise UserError(
                "engine: vllm",
                f"vLLM's {type(model).__name__} is not this model: log-probabilities differ by "
                f"{difference:.3g}",
                "take engine: transformers",
            )


def _whole_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) of a model, each once, also where two modules share it.

    Of a model in parts each is made whole before the engine sees it; all ranks go through it.
    """
    parts = sharded(model)
    for name, weight in model.named_parameters():
        yield name, parts.whole(weight) if parts else weight.detach()


def _hashes(weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """Hashes of what the weights hold.

    Their version counters would not do: AdamW's fused step and a write into ``.data`` leave these
    as they are.
    """
    return torch.cat(
        [torch.hash_tensor(torch.atleast_2d(w).flatten(1), dim=-1) for w in weights if w.numel()]
    ).cpu()


def _renew_head(model: torch.nn.Module) -> None:
    """Let the head of vLLM's ``model`` prepare its weights for computing once more.

    On a CPU it computes with a packed copy. Where the head is tied to the embeddings, a reload of
    these leaves that copy as it was.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)
