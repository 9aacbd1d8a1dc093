"""What an order will do, before it does it: runs, steps, evaluations, and an estimate of time and disk."""

import copy
import statistics
import time
from collections import Counter
from dataclasses import dataclass

import torch
from transformers import AttentionInterface

from harness import models
from harness.console import clock
from harness.errors import UserError
from harness.records import Results, read_json
from harness.sampler import common_prefix
from harness.skills import ORACLE_TEMPLATE, Skill
from harness.training import MICRO_BATCH_TOKENS, VOCABULARY_CHUNK
from harness.vllm_sampler import ROOM, advice


@dataclass
class Work:
    """Tokens per prompt drawn, as a method's ``work`` returns them. learned: through forward and backward; scored: through a
    forward pass; read: prompt tokens before sampling; answers: completions sampled at every step, beforehand: those sampled
    before the first one, of ``sampled`` tokens each. copies: of the model, beside the one that learns, that stay in memory;
    averaged: whether one of them is a moving average."""

    learned: float = 0
    scored: float = 0
    read: float = 0
    answers: float = 0
    beforehand: float = 0
    sampled: float = 0
    copies: int = 0
    averaged: bool = False


class Outlook:
    """What a method's ``work`` may ask about a skill: mean tokens of 32 training examples (prompt, demonstration), the limit of
    a rollout, the prompts of the budget; tokenizer and skill themselves."""

    def __init__(self, tokenizer, skill: Skill, template, limit, prompts):
        self.tokenizer, self.skill, self.template, self.limit, self.prompts = tokenizer, skill, template, limit, prompts
        self.examples = skill.examples("train")[:32]
        asked = [models.chat_tokens(tokenizer, e.prompt) for e in self.examples]
        self.prompt, self.shared = statistics.fmean(map(len, asked)), common_prefix(asked)
        shown = [e.demonstration for e in self.examples if e.demonstration is not None]
        self.demonstration = statistics.fmean(len(tokenizer(d)["input_ids"]) for d in shown) if shown else 0

    def reading(self, rows, batch):
        """Tokens that ``rows`` prompts cost to read, whose common beginning is read once for ``batch`` of them."""
        return rows * (self.prompt - self.shared) + -(-rows // batch) * self.shared

    @property
    def answer(self):
        """Tokens of a sampled answer: they become as long as the demonstrations."""
        return min(self.limit, self.demonstration or self.limit)

    def teacher_prompt(self, context=None, template=None, split=None):
        examples = self.skill.examples(split)[:32] if split else self.examples
        asked = [self.skill.teacher_prompt(e, template or self.template, context) for e in examples]
        return statistics.fmean(len(models.chat_tokens(self.tokenizer, messages)) for messages in asked)


class Machine:
    """Speed of this machine for a model of ``parameters`` weights in ``dtype``, from half a second of measuring."""

    def __init__(self, parameters, dtype, device):
        self.parameters = parameters
        self.flops = self._best(lambda a: a @ a, torch.randn(1536, 1536, device=device).to(dtype), 2 * 1536**3)
        block = torch.zeros(64 * 2**20, dtype=torch.uint8, device=device)
        self.step = parameters * dtype.itemsize / self._best(lambda a: a.clone(), block, 2 * 64 * 2**20)

    @staticmethod
    def _best(work, argument, amount):
        rates = []
        for _ in range(6):
            start = time.perf_counter()
            work(argument)
            if argument.is_cuda:
                torch.cuda.synchronize(argument.device)
            rates.append(amount / (time.perf_counter() - start))
        return max(rates)

    def forward(self, tokens):
        """Seconds of a forward pass; a backward pass costs two of them."""
        return 2 * self.parameters * tokens / self.flops

    def sample(self, rows, length, batch):
        """Seconds to decode ``rows`` answers of ``length`` tokens, ``batch`` at a time: weights are read once a step."""
        batches = -(-rows // batch) if rows else 0
        return length * (batches * self.step + 2 * self.parameters * rows / self.flops)


class _Attention(torch.autograd.Function):
    """What a fused attention kernel keeps for its backward pass: its inputs and its output, no weights."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def _counted(module, query, key, value, attention_mask, **kwargs):
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("counted", _counted)


def activations(shape, tokens=8):
    """Bytes that a forward pass keeps for each token's backward pass: of ``shape``, a model on the meta device, without its head.

    Counted, not computed: what autograd saves, parameters apart, with fused attention.
    """
    saved = {}

    def count(tensor):
        base = tensor if tensor._base is None else tensor._base
        if not isinstance(base, torch.nn.Parameter):
            saved[base.untyped_storage()._cdata] = base  # kept, so that no other storage gets its address
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    attention, shape.config._attn_implementation = shape.config._attn_implementation, "counted"
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        models.hidden(shape.train(), ids, position_ids=ids, attention_mask=ids.new_ones(1, 1, tokens, tokens).bool())
    shape.config._attn_implementation = attention
    return sum(tensor.nbytes for tensor in saved.values()) / tokens


class Memory:
    """Peak memory of a stage in GiB: weights, gradients, optimizer, copies, and the larger of one micro-batch and the rollouts.

    Without the runtime of Python and its libraries, and without what an allocator loses to fragments.
    """

    def __init__(self, shape, dtype, device):
        config = shape.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.parameters, self.size = sum(p.numel() for p in shape.parameters()), dtype.itemsize
        self.on_gpu = torch.device(device).type != "cpu"
        self.token = activations(shape)  # bytes of a token in a micro-batch, and of one in the sampler's cache
        self.cached = 2 * config.num_hidden_layers * heads * width * dtype.itemsize
        self.logits = 5 * 4 * VOCABULARY_CHUNK  # of one chunk: logits and log-probabilities of both models, and a gradient

    def of(self, config, work, length, cached):
        """(on the model's device, in host memory for its masters) for a method's config and its Work on rows of ``length`` tokens, with
        keys and values of ``cached`` tokens where answers are sampled, for learning or evaluation."""
        apart = self.size < 4 or (self.on_gpu and config.masters == "host")
        state = 8 + 4 + 4 * apart + 4 * (apart and work.averaged)  # AdamW's moments, gradients, masters, the average
        limit = config.micro_batch_tokens or MICRO_BATCH_TOKENS[self.on_gpu]
        passing = max(max(limit, length) * self.token + self.logits, cached * self.cached)
        fixed, state = self.parameters * self.size * (1 + work.copies), self.parameters * state
        host = state if apart and config.masters == "host" else 0
        return (fixed + passing + state - host) / 2**30, host / 2**30


def plan(order, folder):
    """The text that --plan prints. Loads the tokenizer and the model's configuration, no weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    place = f"{order.path}: model"
    tokenizer, source = models.load_tokenizer(order.model.name, order.model.revision, place)
    order.check_prompts(tokenizer)
    device, dtype = models.resolve_device(order.model.device), order.dtype()
    try:
        with init_empty_weights():
            shape = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, revision=order.model.revision), dtype=dtype)
    except Exception as error:  # whatever transformers makes of a user's files
        raise models._cannot_load(order.model.name, error, place) from None
    shape.tie_weights()
    parameters = sum(p.numel() for p in shape.parameters())
    machine, results = Machine(parameters, dtype, device), Results(folder)
    if (results.folder / "results.json").exists():  # of another order the start itself would be refused
        results.check(order.about())
    outlooks = {s.name: Outlook(tokenizer, s, order.template(s), order.limit(s, rollout=True), order.prompts(s)) for s in order.skills}
    runs = order.runs()
    width = max(16, *(len(label) + 2 for label in order.methods))
    lines = [f"{order.name}: {len(runs)} runs ({len(order.methods)} methods x {len(order.seeds)} seeds), {len(order.skills)} stages each, "
             f"model {order.model.name} ({parameters / 1e6:.0f}M parameters, {str(dtype).removeprefix('torch.')})",
             "", f"{'method':<{width}}{'skill':<18}{'prompts':>8}{'batch':>7}{'steps':>7}{'evaluations':>13}{'about':>10}"]
    count = {s.name: sum(min(len(s.examples(split)), order.evaluate.examples or 10**9) for split in order.splits(s)) for s in order.skills}
    cost = {s.name: machine.forward(outlooks[s.name].reading(count[s.name], order.evaluate.batch_size))
            + machine.sample(count[s.name], order.limit(s), order.evaluate.batch_size) for s in order.skills}
    further = {s.name: _further_time(machine, order, s, outlooks[s.name]) for s in order.skills}
    retention, uncounted = _retention_time(order, tokenizer, machine)
    total, memory, peaks = 0.0, Memory(shape, dtype, device), {}
    evaluations, times = 1, Counter(s.name for s in order.skills)  # of all skills, and of each: the base
    for label, spec in order.methods.items():
        for number, skill in enumerate(order.skills, 1):
            prompts, batch, method = order.prompts(skill, spec.config), order.batch_size(spec.config), spec.cls(spec.config)
            drawn = method.phases(prompts)
            steps = sum(-(-p // batch) for p in drawn)
            outlook = copy.copy(outlooks[skill.name])
            outlook.prompts = prompts
            work = method.work(outlook)
            cached = max(min(order.rollout.batch_size, batch * work.answers) * (outlook.prompt + outlook.limit), *(
                min(order.evaluate.batch_size, count[s.name]) * (outlooks[s.name].prompt + order.limit(s)) for s in order.skills))
            peaks[label] = max(peaks.get(label, (0, 0)), memory.of(spec.config, work, outlook.prompt + outlook.limit, cached))
            inside = (steps - 1) // order.evaluate.every_steps if order.evaluate.every_steps else 0
            evaluated = [s.name for s in order.evaluated(number)] + [s.name for s in order.evaluated(number, False)] * inside
            known = [read_json(p, "seconds")["seconds"] for s in order.seeds
                     if (p := results.stage(f"{label}-seed{s}", number) / "stage.json").exists()]
            if known:
                seconds = statistics.fmean(sum(k.values()) for k in known)
            else:
                seconds = prompts * (3 * machine.forward(work.learned) + machine.forward(work.scored + work.read))
                full, rest = divmod(prompts, batch)
                seconds += sum(many * machine.sample(rows * work.answers, work.sampled, order.rollout.batch_size)
                               for many, rows in ((full, batch), (1, rest)) if rows)
                seconds += machine.sample(prompts * work.beforehand, work.sampled, order.rollout.batch_size)
                seconds += sum(cost[name] for name in evaluated) + retention
                seconds += further[skill.name]["pass_at_k"] + further[skill.name]["kl"]
            total += seconds * len(order.seeds)
            evaluations += (1 + inside) * len(order.seeds)
            times.update(evaluated * len(order.seeds))
            lines.append(f"{label:<{width}}{skill.name:<18}{sum(drawn):>8}{batch:>7}{steps:>7}{1 + inside:>13}{clock(seconds):>10}"
                         + ("  measured" if known else ""))
    base = sum(part["pass_at_k"] + part["teacher"] + part["oracle"] for part in further.values())
    held = parameters * dtype.itemsize
    weights = {"last": 1, "all": len(order.skills), "none": 0}[order.checkpoints.keep] * len(runs) * held
    tasks = len(order.suite.tasks) if order.suite else 0
    suite = f"{tasks} retention task{'s' * (tasks > 1)} after each stage" if tasks else ""
    lines += ["", f"evaluations: {evaluations}, {sum(count[name] * n for name, n in times.items()):,} answers in all"
              + (f"; {suite}, " + (f"not counted ({uncounted})" if uncounted else f"about {clock(retention)} each time") if suite else ""),
              *_further_lines(order, further), *_judge_lines(order, times),
              f"time: about {clock(total + sum(cost.values()) + base + retention)} on this machine "
              f"({machine.flops / 1e9:.0f} GFLOP/s measured)" + (", retention not counted" if uncounted else ""),
              "memory: about " + ", ".join(
                  f"{gpu:.1f} GiB" + (f" and {host:.1f} GiB in host memory" if host else "") + f" for {label}"
                  for label, (gpu, host) in peaks.items()),
              *_engine_lines(order, device, held),
              f"disk: {weights / 2**30:.1f} GiB of weights when done, {(weights + 2 * held + 16 * parameters) / 2**30:.1f} GiB at most",
              f"results: {folder}"]
    return "\n".join(lines)


def _retention_time(order, tokenizer, machine):
    """(seconds of the retention suite on one model, why they are not known or None); from the suite's own requests."""
    if order.suite is None:
        return 0.0, None
    try:
        read, generated = order.suite.work(tokenizer)
    except UserError as error:
        return 0.0, str(error).partition(";")[0]
    return machine.forward(read) + sum(machine.sample(rows, length, 32) for length, rows in generated.items()), None


def _judge_lines(order, times):
    """How many verdicts a judge is asked for, by skill and split; by what a skill is graded where there is no judge.

    times: {skill: how often it is evaluated}. Equal answers to a question are judged once, so there may be fewer.
    """
    asked = {}
    for skill in (s for s in order.skills if s.judge):
        if order.judge is None:
            yield f"judge: none is configured; {skill.name} is graded by {skill.metric}"
            continue
        for split in order.splits(skill):
            examples = min(len(skill.examples(split)), order.evaluate.examples or 10**9)
            oracle = order.evaluate.oracle and split in order.reported(skill)
            asked[f"{skill.name} {split}"] = examples * (times[skill.name] + oracle)
    if asked:
        parts = ", ".join(f"{where} {count:,}" for where, count in asked.items())
        yield f"judge {order.judge.model}: at most {sum(asked.values()):,} verdicts ({parts})"


def _engine_lines(order, device, held):
    """What vLLM costs, or would spare; held: bytes of the weights."""
    if line := advice(order, device):
        yield line
    used = [name for name, section in (("rollouts", order.rollout), ("evaluation", order.evaluate)) if section.engine == "vllm"]
    if used:
        on_gpu = torch.device(device).type != "cpu"
        room = order.vllm.kv_cache_gib or ROOM["cuda" if on_gpu else "cpu"]
        yield (f"vLLM for {' and '.join(used)}: {held / 2**30 + room:.1f} GiB on top"
               + (", given back while the model learns" if on_gpu else ""))


def _further_time(machine, order, skill, outlook):
    """Seconds of pass@k and of the KL for one skill in one model, and of teacher and oracle, which only the base has."""
    asked, out = order.evaluate, {"pass_at_k": 0.0, "kl": 0.0, "teacher": 0.0, "oracle": 0.0}

    def sampling(rows):
        return machine.sample(rows, order.limit(skill), asked.batch_size)

    def count(split, most):
        return min(len(skill.examples(split)), most or 10**9)

    if asked.pass_at_k:
        out["pass_at_k"] = sampling(count(asked.split, asked.pass_at_k.prompts) * asked.pass_at_k.samples)
    if asked.kl:  # the answers of the model, and four passes over them and over those of the base, which are sampled once for all
        rows = count(asked.split, asked.kl.prompts)
        out["kl"] = sampling(rows) + machine.forward(4 * rows * (outlook.prompt + order.limit(skill)))
    if asked.teacher:
        split = order.teacher_split(skill)
        rows = count(split, asked.examples)
        out["teacher"] = sampling(rows) + machine.forward(rows * outlook.teacher_prompt())
        if split not in order.splits(skill):  # the model without the demonstration, beside it
            out["teacher"] += sampling(rows) + machine.forward(rows * outlook.prompt)
        if asked.kl:  # answers of the base and of the teacher, and two passes over each
            rows = count(split, asked.kl.prompts)
            out["teacher"] += 2 * sampling(rows) + machine.forward(2 * rows * (outlook.prompt + outlook.teacher_prompt()
                                                                               + 2 * order.limit(skill)))
    for split in order.reported(skill) if asked.oracle else ():
        rows = count(split, asked.examples)
        out["oracle"] += sampling(rows) + machine.forward(rows * outlook.teacher_prompt(template=ORACLE_TEMPLATE, split=split))
    return out


def _further_lines(order, further):
    asked, said = order.evaluate, {}
    if asked.pass_at_k:
        said["pass_at_k"] = f"pass@k: {asked.pass_at_k.samples} answers to each of {asked.pass_at_k.prompts or 'all'} prompts"
    if asked.kl:
        said["kl"] = "KL to the base policy: a second copy of the model in memory meanwhile"
    if asked.teacher:
        said["teacher"] = "accuracy of the teacher: once, at the base"
    if asked.oracle:
        answers = sum(min(len(s.examples(split)), asked.examples or 10**9) for s in order.skills for split in order.reported(s))
        said["oracle"] = f"oracle retrieval: once, at the base, {answers:,} answers"
    for key, text in said.items():
        yield f"{text}; about {clock(sum(part[key] for part in further.values()))} for each skill once"
    of = [spec.grid_of for spec in order.methods.values() if spec.grid_of]
    for label in dict.fromkeys(of):
        yield f"grid of {label}: {of.count(label)} points; the best on the validation split is the one reported"
