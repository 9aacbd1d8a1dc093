"""The model in memory as lm-eval sees it: lm-eval's ``HFLM`` with a faster scorer and sampler.

Prompts, tokenisation, truncation and stop strings are HFLM's. What differs most is the
log-likelihood: HFLM applies the head and a softmax over the vocabulary to every position of a
[batch, length, vocabulary] tensor, in the model's dtype, in batches of a fixed number of rows, and
reads a context once for each of its choices. Here the head sees the continuation's positions alone,
the softmax is float32, a batch holds a number of tokens, and the choices share their context. In
float32 the answers are lm-eval's own to rounding (tests/evaluation/test_retention.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lm_eval import utils
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.base.errors import UserError
from harness.evaluation.loaded_tasks import GENERATED_TOKENS, think_end_token
from harness.evaluation.scoring_rows import PackedRow, Request, batches, plain_rows, shared_rows
from harness.models.chat import ChatInputs, declared_ends
from harness.models.forward import LOCAL, can_share_prompts, has_local_attention
from harness.models.rope import border_of, side_of
from harness.sampling.rows import rows_of
from harness.sampling.sampler import evenly
from harness.sampling.transformers import TransformersSampler
from harness.sampling.vllm import VLLMSampler

HEAD_VALUES = 2**26  # logits held at once: 256 MiB in float32
GENERATED_AT_ONCE = 4096  # prompts given to vLLM, which schedules them itself
SHARED_FROM = 8  # tokens; a shorter context is not worth a mask
# Padded tokens of a forward pass: the caches of a CPU are small.
BATCH_TOKENS_CPU = 1024
BATCH_TOKENS_GPU = 16384
# Keys of a generation config that do not change greedy answers, or that a request has of its own.
PLAIN = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "max_length",
    "max_new_tokens",
    "use_cache",
    "transformers_version",
}
SAMPLING = {"do_sample", "temperature", "top_p", "top_k"}  # keys of a greedy request of lm-eval

Score = tuple[float, bool]  # a continuation's log-probability, and whether it is the greedy one
# The index of a request, the log-probability of each token, whether each is the greedy one.
TokenScores = tuple[int, torch.Tensor, torch.Tensor]


def _no_progress(done: int, total: int) -> None:
    """The progress of a model that nobody watches."""


class LiveModel(HFLM):
    """A transformers causal language model and its tokenizer, without a reload and without a copy.

    ``progress`` is called as ``f(done, total)`` in requests; ``place`` begins the messages of
    errors. Use :func:`unchanged` around it: HFLM sets the model's mode and the tokenizer's padding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        chat: ChatInputs | None = None,
    ) -> None:
        """batch_tokens: padded tokens in one forward pass, by default 1,024 on a CPU and 16,384
        elsewhere; batch_size: rows in one generation, by the device if left out; chat: what the
        chat template is given.
        """
        template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size or rows_of(model, *GENERATED_TOKENS),
            think_end_token=think_end_token(tokenizer),
            chat_template_args=(chat or ChatInputs()).variables(template),
        )
        self.rows = batch_size  # of what the model itself generates
        default = BATCH_TOKENS_CPU if self.device.type == "cpu" else BATCH_TOKENS_GPU
        self.batch_tokens = batch_tokens or default
        self.place = "retention"
        self.progress: Callable[[int, int], object] = _no_progress
        config = self.config.get_text_config()
        self.vocabulary = config.vocab_size
        # A mask of our own would let a model with local attention look further than it does.
        windows = [getattr(config, key, None) for key in LOCAL]
        self.window = min([w for w in windows if isinstance(w, int)], default=self.max_length)
        self.body, self.head = self._split()
        self.shares = self._shares()

    @torch.no_grad()
    def _split(self) -> tuple[torch.nn.Module | None, torch.nn.Module | None]:
        """(body, head) such that head(body(x)) are the model's logits, else (None, None).

        Some models do more than a linear map behind the body (Gemma caps the logits, Cohere and
        Granite scale them), so the two ways are compared on a few tokens.
        """
        body = getattr(self.model, getattr(self.model, "base_model_prefix", "") or "-", None)
        head = self.model.get_output_embeddings()
        if body is None or head is None:
            return None, None
        # A cap hardly shows in the small logits of an untrained model: it is known by its name.
        if getattr(self.config.get_text_config(), "final_logit_softcapping", None):
            return None, None
        tokens = torch.arange(8, device=self.device)[None] % self.vocabulary
        whole = self.model(tokens, use_cache=False).logits
        parts = head(body(tokens, use_cache=False).last_hidden_state)
        if whole.shape != parts.shape:
            return None, None
        tolerance = 2 * torch.finfo(whole.dtype).eps * whole.abs().max()
        same = (whole - parts).abs().max() <= tolerance
        return (body, head) if same else (None, None)

    @torch.no_grad()
    def _shares(self) -> bool:
        """Whether the choices of a context can share one row.

        For that the model has to take a mask and positions of our own. It is tried on a few tokens:
        flash attention takes no such mask, and some models know no positions. Windows do not
        matter here, because no row is longer.
        """
        if not can_share_prompts(self.model) and not has_local_attention(self.model):
            return False
        context = [5, 6, 7, 8, 9]
        requests: list[Request] = [(None, context, [1, 2, 3]), (None, context, [4, 3])]
        sums = []
        for rows in (
            plain_rows(requests, [0, 1], self.max_length),
            shared_rows(context, requests, [0, 1]),
        ):
            try:
                answers = sorted(self._forward(rows, requests), key=lambda answer: answer[0])
            except (TypeError, ValueError, RuntimeError):
                return False
            sums.append(torch.stack([scores.sum() for _, scores, _ in answers]))
        alone, shared = sums
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 0.05
        return bool((alone - shared).abs().max() <= tolerance * alone.abs().max())

    # --- log-likelihoods ---

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Score]:
        """The score of each request, in the order of ``requests``."""
        shared, plain = self._rows(requests)
        answers: dict[int, Score] = {}
        # Apart from each other: only shared rows replace the model's own mask.
        for rows in (shared, plain):
            sides = partial(side_of, border_of(self.model.config))
            for batch in batches(rows, self.batch_tokens, sides):
                for index, scores, greedy in self._forward(batch, requests):
                    answers[index] = (scores.sum().item(), bool(greedy.all()))
                self.progress(len(answers), len(requests))
        return [answers[index] for index in range(len(requests))]

    def _rows(self, requests: Sequence[Request]) -> tuple[list[PackedRow], list[PackedRow]]:
        """(rows with a shared context, plain rows) that score all requests.

        Raises UserError for a continuation that the model cannot read.
        """
        contexts: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    self.place,
                    f"a continuation has {len(continuation)} tokens, "
                    f"the model reads 1 to {self.max_length}",
                    "take a model that reads more, or leave the task out",
                )
            contexts.setdefault(tuple(context), []).append(index)
        shared: list[PackedRow] = []
        plain: list[int] = []
        room = min(self.max_length, self.window)
        for tokens, indices in contexts.items():
            longest = len(tokens) + max(len(requests[index][2]) for index in indices)
            worth_it = len(indices) > 1 and len(tokens) >= SHARED_FROM
            if self.shares and worth_it and longest <= room:
                shared += shared_rows(list(tokens), requests, indices)
            else:
                plain += indices
        return shared, plain_rows(requests, plain, self.max_length)

    def _forward(self, rows: list[PackedRow], requests: Sequence[Request]) -> list[TokenScores]:
        """The scores of all continuations that a batch of rows holds."""
        places: list[int] = []
        positions: list[int] = []
        targets: list[int] = []
        indices: list[int] = []
        lengths: list[int] = []
        for place, row in enumerate(rows):
            for index, read in row.read:
                places += [place] * len(read)
                positions += read
                targets += requests[index][2]
                indices.append(index)
                lengths.append(len(read))
        scores, greedy = self._score(
            self._inputs(rows),
            torch.tensor(places, device=self.device),
            torch.tensor(positions, device=self.device),
            torch.tensor(targets, device=self.device),
        )
        return list(zip(indices, scores.split(lengths), greedy.split(lengths), strict=True))

    def _inputs(self, rows: list[PackedRow]) -> dict[str, Any]:
        """The model's inputs; a mask and positions only where continuations share a context."""
        width = max(len(row.tokens) for row in rows)

        def padded(lists: list[list[int]], value: int) -> torch.Tensor:
            """Padded on the right, where a causal model never looks."""
            filled = [values + [value] * (width - len(values)) for values in lists]
            return torch.tensor(filled, device=self.device)

        inputs = {"input_ids": padded([row.tokens for row in rows], 0), "use_cache": False}
        if not any(row.segments[-1] for row in rows):
            return inputs
        segments = padded([row.segments for row in rows], -1)
        sees = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        sees &= torch.ones(width, width, dtype=torch.bool, device=self.device).tril()
        mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=self.device)
        mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)
        inputs["attention_mask"] = mask[:, None]
        inputs["position_ids"] = padded([row.positions for row in rows], 0)
        return inputs

    def _score(
        self,
        inputs: dict[str, Any],
        places: torch.Tensor,
        positions: torch.Tensor,
        targets: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability (float32) and greediness of each target at its row and position.

        places: rows of the targets; all tensors are of equal length.
        """
        if self.body is None or self.head is None:
            states = self.model(**inputs).logits[places, positions]
        else:
            states = self.body(**inputs).last_hidden_state[places, positions]
        scores = []
        greedy = []
        size = max(1, HEAD_VALUES // self.vocabulary)
        for part, target in zip(states.split(size), targets.split(size), strict=True):
            logits = (part if self.head is None else self.head(part)).float()
            # HFLM's function: logsumexp is nearer to float64 on a CPU (3e-5 against 1.4e-4 over a
            # choice) but not lm-eval's.
            scores.append(logits.log_softmax(1).gather(1, target[:, None])[:, 0])
            greedy.append(logits.argmax(1) == target)
        return torch.cat(scores).cpu(), torch.cat(greedy).cpu()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Score]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihoods of whole texts, by HFLM's windows, which are batched together."""
        windows: list[Request] = []
        counts = []
        for request in requests:
            pieces = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(windows)
            windows += [(None, *utils.make_disjoint_window(piece)) for piece in pieces]
            counts.append(len(windows) - before)
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    # --- generation ---

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """HFLM's generation, prompts of like length together."""
        order = sorted(
            range(len(requests)),
            key=lambda i: (str(requests[i].args[1]), -len(requests[i].args[0])),
        )
        answers: dict[int, str] = {}
        for batch in evenly(order, self.batch_size):
            texts = super().generate_until([requests[i] for i in batch], disable_tqdm=True)
            answers |= zip(batch, texts, strict=True)
            self.progress(len(answers), len(requests))
        return [answers[index] for index in range(len(requests))]

    def _model_generate(
        self,
        context: torch.Tensor,
        max_length: int,
        stop: list[str],
        attention_mask: torch.Tensor | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        """Greedy answers of the harness's sampler, all others of ``generate``.

        The sampler is faster and gives the same answers.
        """
        answers = None
        samples = settings.get("do_sample") or settings.get("temperature")
        if set(settings) <= SAMPLING and not samples and attention_mask is not None:
            rows = zip(context.cpu(), attention_mask.cpu(), strict=True)
            prompts = [row[mask.bool()].tolist() for row, mask in rows]
            answers = self._answers(prompts, max_length - context.shape[1], stop)
        if answers is None:
            return super()._model_generate(
                context, max_length, stop, attention_mask=attention_mask, **settings
            )
        width = max(map(len, answers))
        pad = self.tokenizer.pad_token_id
        padded = [answer + [pad] * (width - len(answer)) for answer in answers]
        return torch.cat([context, torch.tensor(padded, device=context.device)], 1)

    def _answers(
        self, prompts: list[list[int]], room: int, stop: Sequence[str]
    ) -> list[list[int]] | None:
        """Greedy continuations as token ids, of at most ``room`` tokens.

        None where the model's generation config asks for more than the likeliest token.
        """
        config = self.model.generation_config
        changes = config.to_diff_dict() if config else {}
        special = {key for key, value in changes.items() if value and not key.startswith("_")}
        if special - PLAIN:
            return None
        sampler = TransformersSampler(self.model, self.tokenizer, self.rows)
        sampler.stops = declared_ends(self.model, self.tokenizer)  # lm-eval knows no other
        completions = sampler.sample(
            prompts, max_new_tokens=room, temperature=0, strings=tuple(stop)
        )
        return [completion.token_ids for (completion,) in completions]


class EngineModel(LiveModel):
    """A LiveModel that scores and generates with vLLM's engine, through a VLLMSampler.

    Prompts, truncation, stop strings and windows are those of LiveModel. What is too long for the
    engine goes to the model. vLLM reads the context once for each of its choices.
    """

    def __init__(self, sampler: VLLMSampler, chat: ChatInputs | None = None) -> None:
        super().__init__(sampler.model, sampler.tokenizer, batch_size=GENERATED_AT_ONCE, chat=chat)
        self.rows = 32
        self.sampler = sampler

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Score]:
        engine = self.sampler.ready()
        inside: dict[int, tuple[list[int], int]] = {}  # (tokens, where the continuation begins)
        outside = []
        for index, (_, context, continuation) in enumerate(requests):
            tokens = (context + continuation)[-(self.max_length + 1) :]
            if len(tokens) < engine.limit:  # vLLM adds a token to each
                inside[index] = (tokens, len(tokens) - len(continuation))
            else:
                outside.append(index)
        scored = engine.score(
            list(inside.values()), lambda done: self.progress(done, len(requests))
        )
        answers: dict[int, Score] = {}
        for index, (scores, greedy) in zip(inside, scored, strict=True):
            answers[index] = (sum(scores), all(greedy))
        if outside:
            rest = super()._loglikelihood_tokens([requests[index] for index in outside])
            answers |= zip(outside, rest, strict=True)
        return [answers[index] for index in range(len(requests))]

    def _answers(
        self, prompts: list[list[int]], room: int, stop: Sequence[str]
    ) -> list[list[int]] | None:
        engine = self.sampler.ready()
        if max(map(len, prompts)) + room > engine.limit:
            return super()._answers(prompts, room, stop)
        return engine.generate(
            prompts,
            room,
            stop,
            declared_ends(self.model, self.tokenizer),
            self.model.generation_config,
        )


@contextmanager
def unchanged(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Training flags of the modules and padding of the tokenizer are restored at the end."""
    training = {module: module.training for module in model.modules()}
    padding_side = tokenizer.padding_side
    truncation_side = tokenizer.truncation_side
    pad_token = tokenizer.pad_token
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        tokenizer.padding_side = padding_side
        tokenizer.truncation_side = truncation_side
        tokenizer.pad_token = pad_token
