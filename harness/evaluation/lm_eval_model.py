"""The model in memory as lm-eval sees it: lm-eval's own ``HFLM`` with a faster scorer and the
harness's sampler.

Prompts, tokenisation, truncation and stop strings are HFLM's. What differs most is the
log-likelihood: HFLM applies the head and a softmax over the vocabulary to every position of a
[batch, length, vocabulary] tensor, in the model's dtype, in batches of a fixed number of rows, and
reads a context once for each of its choices. Here the head sees the continuation's positions alone,
the softmax is float32, a batch holds a number of tokens, and the choices share their context. In
float32 the answers are lm-eval's own to rounding (tests/evaluation/test_retention.py).
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lm_eval import utils
from lm_eval.models.huggingface import HFLM

from harness.base.errors import UserError
from harness.sampling.transformers import TransformersSampler

HEAD_VALUES = 2**26  # logits held at once: 256 MiB in float32
GENERATED_AT_ONCE = 4096  # prompts given to vLLM, which schedules them itself
SHARED_FROM = 8  # tokens; a shorter context is not worth a mask
SHARED_ROOM = 512  # tokens of continuations behind one context: the mask grows with the square
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
# configuration keys of local attention, in tokens
LOCAL = ("sliding_window", "attention_chunk_size", "window_size")


@dataclass
class PackedRow:
    """One sequence of a batch. segments: 0 for the context, else the number of the continuation
    that a token belongs to; read: [(index of a request, the positions whose logits predict its
    continuation)].
    """

    tokens: list
    positions: list
    segments: list
    read: list


class LiveModel(HFLM):
    """A transformers causal language model and its tokenizer, without a reload and without a copy.

    batch_tokens: padded tokens in one forward pass (by default 1,024 on a CPU, whose caches are
    small, else 16,384); batch_size: rows in one generation. Its ``progress`` is called as ``f(done,
    total)`` in requests, its ``place`` is where errors are said to be. Use :func:`unchanged` around
    it, since HFLM sets the model's mode and the tokenizer's padding.
    """

    def __init__(self, model, tokenizer, *, batch_tokens=None, batch_size=32):
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size
        )
        self.rows = batch_size  # of what the model itself generates
        self.batch_tokens = batch_tokens or (1024 if self.device.type == "cpu" else 16384)
        self.place, self.progress = "retention", lambda done, total: None
        self.body, self.head = self._split()
        config = self.config.get_text_config()
        # Our own mask would let a model with local attention look further than it does.
        self.window = min(
            [w for w in (getattr(config, key, None) for key in LOCAL) if isinstance(w, int)],
            default=self.max_length,
        )
        self.shares = self._shares()

    @torch.no_grad()
    def _split(self):
        """(body, head) such that head(body(x)) are the model's logits; (None, None) where they are
        not.

        Some models do more than a linear map behind the body (Gemma caps the logits, Cohere and
        Granite scale them), so the two ways are compared on a few tokens.
        """
        body = getattr(self.model, getattr(self.model, "base_model_prefix", "") or "-", None)
        head = self.model.get_output_embeddings()
        # A cap hardly shows in the small logits of an untrained model, hence by its name.
        if (
            body is None
            or head is None
            or getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        ):
            return None, None
        tokens = (
            torch.arange(8, device=self.device)[None] % self.config.get_text_config().vocab_size
        )
        whole = self.model(tokens, use_cache=False).logits
        parts = head(body(tokens, use_cache=False).last_hidden_state)
        same = (
            whole.shape == parts.shape
            and (whole - parts).abs().max() <= 2 * torch.finfo(whole.dtype).eps * whole.abs().max()
        )
        return (body, head) if same else (None, None)

    @torch.no_grad()
    def _shares(self):
        """Whether the model takes a mask and positions of our own, so that choices can share their
        context in one row.

        Tried on a few tokens: flash attention takes no such mask, and some models know no
        positions.
        """
        requests = [(None, [5, 6, 7, 8, 9], [1, 2, 3]), (None, [5, 6, 7, 8, 9], [4, 3])]
        answers = []
        for rows in (
            self._plain_rows(requests),
            self._shared_rows([5, 6, 7, 8, 9], requests, [0, 1]),
        ):
            try:
                found = sorted(self._forward(rows, requests), key=lambda answer: answer[0])
            except (TypeError, ValueError, RuntimeError):
                return False
            answers.append(torch.stack([scores.sum() for _, scores, _ in found]))
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 0.05
        return bool((answers[0] - answers[1]).abs().max() <= tolerance * answers[0].abs().max())

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        """[(sum of the continuation's log-probabilities, whether it is the greedy one)], in the
        order of ``requests``.
        """
        contexts, shared, plain = {}, [], []
        for index, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    self.place,
                    f"a continuation has {len(continuation)} tokens, the model reads 1 to {self.max_length}",
                    "take a model that reads more, or leave the task out",
                )
            contexts.setdefault(tuple(context), []).append(index)
        for context, indices in contexts.items():
            longest = len(context) + max(len(requests[i][2]) for i in indices)
            if (
                self.shares
                and len(indices) > 1
                and len(context) >= SHARED_FROM
                and longest <= min(self.max_length, self.window)
            ):
                shared += self._shared_rows(list(context), requests, indices)
            else:
                plain += indices
        answers, done = [None] * len(requests), 0
        # apart: only the former replace the model's own mask
        for rows in (shared, self._plain_rows(requests, plain)):
            for batch in self._batches(sorted(rows, key=lambda row: -len(row.tokens))):
                for index, scores, greedy in self._forward(batch, requests):
                    answers[index] = (scores.sum().item(), bool(greedy.all()))
                    done += 1
                self.progress(done, len(requests))
        return answers

    def _plain_rows(self, requests, indices=None):
        """One row for every different input; choices of one token each differ in their last token
        alone and share one.
        """
        rows = {}
        for index in range(len(requests)) if indices is None else indices:
            _, context, continuation = requests[index]
            tokens = (context + continuation)[-(self.max_length + 1) : -1]
            row = rows.setdefault(
                tuple(tokens), PackedRow(tokens, list(range(len(tokens))), [0] * len(tokens), [])
            )
            row.read.append((index, list(range(len(tokens) - len(continuation), len(tokens)))))
        return list(rows.values())

    def _shared_rows(self, context, requests, indices):
        """Rows of the context once and, behind it, the continuations, each of which sees the
        context and itself alone.
        """
        rows = []
        for index in indices:
            rest = requests[index][2][:-1]  # the last token is only predicted
            if not rows or len(rows[-1].tokens) + len(rest) > len(context) + SHARED_ROOM:
                rows.append(
                    PackedRow(list(context), list(range(len(context))), [0] * len(context), [])
                )
            row = rows[-1]
            row.read.append(
                (index, [len(context) - 1, *range(len(row.tokens), len(row.tokens) + len(rest))])
            )
            row.tokens.extend(rest)
            row.positions.extend(range(len(context), len(context) + len(rest)))
            row.segments.extend([len(row.read)] * len(rest))
        return rows

    def _batches(self, rows):
        batch = []
        for row in rows:  # longest first: it sets the padding of its batch
            if batch and (len(batch) + 1) * len(batch[0].tokens) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _forward(self, rows, requests):
        """[(index of the request, log-probability of each token of its continuation, whether each
        is the greedy one)].
        """
        width = max(len(row.tokens) for row in rows)

        def padded(name, value):  # on the right, which a causal model never looks at
            return torch.tensor(
                [getattr(r, name) + [value] * (width - len(r.tokens)) for r in rows],
                device=self.device,
            )

        inputs = {"input_ids": padded("tokens", 0), "use_cache": False}
        if any(row.segments[-1] for row in rows):
            segments = padded("segments", -1)
            seen = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
            seen &= torch.ones(width, width, dtype=torch.bool, device=self.device).tril()
            mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
            inputs["attention_mask"] = mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[
                :, None
            ]
            inputs["position_ids"] = padded("positions", 0)
        places, positions, targets, owners = [], [], [], []
        for place, row in enumerate(rows):
            for index, read in row.read:
                places += [place] * len(read)
                positions += read
                targets += requests[index][2]
                owners.append((index, len(read)))
        found, greedy = self._score(
            inputs, *(torch.tensor(x, device=self.device) for x in (places, positions, targets))
        )
        lengths = [length for _, length in owners]
        return [
            (index, f, g)
            for (index, _), f, g in zip(
                owners, found.split(lengths), greedy.split(lengths), strict=True
            )
        ]

    def _score(self, inputs, places, positions, targets):
        """Log-probability (float32) and greediness of each target token at its row and position;
        tensors of equal length.
        """
        if self.head is None:
            states = self.model(**inputs).logits[places, positions]
        else:
            states = self.body(**inputs).last_hidden_state[places, positions]
        found, greedy = [], []
        size = max(1, HEAD_VALUES // self.config.get_text_config().vocab_size)
        for part, target in zip(states.split(size), targets.split(size), strict=True):
            logits = (part if self.head is None else self.head(part)).float()
            # HFLM's function: logsumexp is nearer to float64 on a CPU (3e-5 against 1.4e-4 over a
            # choice) but not lm-eval's.
            found.append(logits.log_softmax(1).gather(1, target[:, None])[:, 0])
            greedy.append(logits.argmax(1) == target)
        return torch.cat(found).cpu(), torch.cat(greedy).cpu()

    def loglikelihood(self, requests, disable_tqdm=True):
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests, disable_tqdm=True):
        """Log-likelihood of whole texts, [float]; HFLM's windows, all of them batched together."""
        windows, counts = [], []
        for request in requests:
            pieces = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pieces = [(None, *utils.make_disjoint_window(piece)) for piece in pieces]
            windows += pieces
            counts.append(len(pieces))
        found = iter(self._loglikelihood_tokens(windows))
        return [sum(next(found)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests, disable_tqdm=True):
        """HFLM's generation, prompts of like length together."""
        order = sorted(
            range(len(requests)),
            key=lambda i: (str(requests[i].args[1]), -len(requests[i].args[0])),
        )
        answers = [None] * len(requests)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for index, text in zip(
                batch,
                super().generate_until([requests[i] for i in batch], disable_tqdm=True),
                strict=True,
            ):
                answers[index] = text
            self.progress(start + len(batch), len(requests))
        return answers

    def _model_generate(self, context, max_length, stop, attention_mask=None, **how):
        """Greedy answers come from the harness's sampler, which is faster and gives the same; all
        others from ``generate``.
        """
        greedy = set(how) <= {"do_sample", "temperature", "top_p", "top_k"} and not (
            how.get("do_sample") or how.get("temperature")
        )
        prompts = [
            row[seen.bool()].tolist() for row, seen in zip(context.cpu(), attention_mask.cpu())
        ]
        answers = self._answers(prompts, max_length - context.shape[1], stop) if greedy else None
        if answers is None:
            return super()._model_generate(
                context, max_length, stop, attention_mask=attention_mask, **how
            )
        width = max(map(len, answers))
        rows = torch.tensor(
            [a + [self.tokenizer.pad_token_id] * (width - len(a)) for a in answers],
            device=context.device,
        )
        return torch.cat([context, rows], 1)

    def _answers(self, prompts, room, stop):
        """Greedy continuations (lists of token ids); None where the model asks for more than its
        likeliest token.
        """
        asked = self.model.generation_config.to_diff_dict() if self.model.generation_config else {}
        if {key for key, value in asked.items() if value and not key.startswith("_")} - PLAIN:
            return None
        sampler = TransformersSampler(self.model, self.tokenizer, self.rows)
        return [
            found[0].token_ids
            for found in sampler.sample(
                prompts, max_new_tokens=room, temperature=0, strings=tuple(stop)
            )
        ]


class EngineModel(LiveModel):
    """The same with vLLM's engine, through a VLLMSampler: it scores and generates what it has room
    for, the model the rest.

    Prompts, truncation, stop strings and windows are those of LiveModel. vLLM reads the context of
    every choice anew.
    """

    def __init__(self, sampler):
        super().__init__(sampler.model, sampler.tokenizer, batch_size=GENERATED_AT_ONCE)
        self.rows = 32
        self.sampler = sampler

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        engine = self.sampler.ready()
        cut = [
            ((context + continuation)[-(self.max_length + 1) :], len(continuation))
            for _, context, continuation in requests
        ]
        # vLLM adds a token to each
        inside = [i for i, (tokens, _) in enumerate(cut) if len(tokens) < engine.limit]
        answers = [None] * len(requests)
        scored = engine.score(
            [(cut[i][0], len(cut[i][0]) - cut[i][1]) for i in inside],
            lambda done: self.progress(done, len(requests)),
        )
        for i, (found, greedy) in zip(inside, scored, strict=True):
            answers[i] = (sum(found), all(greedy))
        outside = [i for i in range(len(requests)) if answers[i] is None]
        for i, answer in zip(
            outside,
            super()._loglikelihood_tokens([requests[i] for i in outside]) if outside else (),
        ):
            answers[i] = answer
        return answers

    def _answers(self, prompts, room, stop):
        engine = self.sampler.ready()
        if max(map(len, prompts)) + room > engine.limit:
            return super()._answers(prompts, room, stop)
        return engine.generate(
            prompts, room, stop, self.sampler.stops, self.model.generation_config
        )


@contextmanager
def unchanged(model, tokenizer):
    """Whatever happens inside, the modules' training flags and the tokenizer's padding are as
    before afterwards.
    """
    training = {module: module.training for module in model.modules()}
    padding = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token = padding
