"""What an order will do, before it does it: runs, steps, evaluations, and an estimate of time and
disk.
"""

import copy
import statistics
from collections import Counter

import torch

from harness.base.console import clock
from harness.base.errors import UserError
from harness.base.files import read_json
from harness.learning.outlook import Outlook
from harness.models.load import cannot_load, load_tokenizer, resolve_device
from harness.results.writer import ResultsWriter
from harness.runs.cost import Machine, Memory
from harness.runs.engines import advice
from harness.sampling.vllm import ROOM
from harness.skills.templates import ORACLE_TEMPLATE


def plan(order, folder):
    """The text that --plan prints. Loads the tokenizer and the model's configuration, no weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    place = f"{order.path}: model"
    tokenizer, source = load_tokenizer(order.model.name, order.model.revision, place)
    order.check_prompts(tokenizer)
    device, dtype = resolve_device(order.model.device), order.dtype()
    try:
        with init_empty_weights():
            shape = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(source, revision=order.model.revision), dtype=dtype
            )
    except Exception as error:  # whatever transformers makes of a user's files
        raise cannot_load(order.model.name, error, place) from None
    shape.tie_weights()
    parameters = sum(p.numel() for p in shape.parameters())
    machine, results = Machine(parameters, dtype, device), ResultsWriter(folder)
    # of another order the start itself would be refused
    if (results.folder / "results.json").exists():
        results.check(order.about())
    outlooks = {
        s.name: Outlook(
            tokenizer, s, order.template(s), order.limit(s, rollout=True), order.prompts(s)
        )
        for s in order.skills
    }
    runs = order.runs()
    width = max(16, *(len(label) + 2 for label in order.methods))
    lines = [
        f"{order.name}: {len(runs)} runs ({len(order.methods)} methods x {len(order.seeds)} seeds), {len(order.skills)} stages each, "
        f"model {order.model.name} ({parameters / 1e6:.0f}M parameters, {str(dtype).removeprefix('torch.')})",
        "",
        f"{'method':<{width}}{'skill':<18}{'prompts':>8}{'batch':>7}{'steps':>7}{'evaluations':>13}{'about':>10}",
    ]
    count = {
        s.name: sum(
            min(len(s.examples(split)), order.evaluate.examples or 10**9)
            for split in order.splits(s)
        )
        for s in order.skills
    }
    cost = {
        s.name: machine.forward(outlooks[s.name].reading(count[s.name], order.evaluate.batch_size))
        + machine.sample(count[s.name], order.limit(s), order.evaluate.batch_size)
        for s in order.skills
    }
    further = {s.name: _further_time(machine, order, s, outlooks[s.name]) for s in order.skills}
    retention, uncounted = _retention_time(order, tokenizer, machine)
    total, memory, peaks = 0.0, Memory(shape, dtype, device), {}
    # of all skills, and of each: the base
    evaluations, times = 1, Counter(s.name for s in order.skills)
    for label, spec in order.methods.items():
        for number, skill in enumerate(order.skills, 1):
            prompts, batch, method = (
                order.prompts(skill, spec.config),
                order.batch_size(spec.config),
                spec.cls(spec.config),
            )
            drawn = method.phases(prompts)
            steps = sum(-(-p // batch) for p in drawn)
            outlook = copy.copy(outlooks[skill.name])
            outlook.prompts = prompts
            work = method.work(outlook)
            cached = max(
                min(order.rollout.batch_size, batch * work.answers)
                * (outlook.prompt + outlook.limit),
                *(
                    min(order.evaluate.batch_size, count[s.name])
                    * (outlooks[s.name].prompt + order.limit(s))
                    for s in order.skills
                ),
            )
            peaks[label] = max(
                peaks.get(label, (0, 0)),
                memory.of(spec.config, work, outlook.prompt + outlook.limit, cached),
            )
            inside = (steps - 1) // order.evaluate.every_steps if order.evaluate.every_steps else 0
            evaluated = [s.name for s in order.evaluated(number)] + [
                s.name for s in order.evaluated(number, False)
            ] * inside
            known = [
                read_json(p, "seconds")["seconds"]
                for s in order.seeds
                if (p := results.stage(f"{label}-seed{s}", number) / "stage.json").exists()
            ]
            if known:
                seconds = statistics.fmean(sum(k.values()) for k in known)
            else:
                seconds = prompts * (
                    3 * machine.forward(work.learned) + machine.forward(work.scored + work.read)
                )
                full, rest = divmod(prompts, batch)
                seconds += sum(
                    many
                    * machine.sample(rows * work.answers, work.sampled, order.rollout.batch_size)
                    for many, rows in ((full, batch), (1, rest))
                    if rows
                )
                seconds += machine.sample(
                    prompts * work.beforehand, work.sampled, order.rollout.batch_size
                )
                seconds += sum(cost[name] for name in evaluated) + retention
                seconds += further[skill.name]["pass_at_k"] + further[skill.name]["kl"]
            total += seconds * len(order.seeds)
            evaluations += (1 + inside) * len(order.seeds)
            times.update(evaluated * len(order.seeds))
            lines.append(
                f"{label:<{width}}{skill.name:<18}{sum(drawn):>8}{batch:>7}{steps:>7}{1 + inside:>13}{clock(seconds):>10}"
                + ("  measured" if known else "")
            )
    base = sum(part["pass_at_k"] + part["teacher"] + part["oracle"] for part in further.values())
    held = parameters * dtype.itemsize
    weights = (
        {"last": 1, "all": len(order.skills), "none": 0}[order.checkpoints.keep] * len(runs) * held
    )
    tasks = len(order.suite.tasks) if order.suite else 0
    suite = f"{tasks} retention task{'s' * (tasks > 1)} after each stage" if tasks else ""
    lines += [
        "",
        f"evaluations: {evaluations}, {sum(count[name] * n for name, n in times.items()):,} answers in all"
        + (
            f"; {suite}, "
            + (f"not counted ({uncounted})" if uncounted else f"about {clock(retention)} each time")
            if suite
            else ""
        ),
        *_further_lines(order, further),
        *_judge_lines(order, times),
        f"time: about {clock(total + sum(cost.values()) + base + retention)} on this machine "
        f"({machine.flops / 1e9:.0f} GFLOP/s measured)"
        + (", retention not counted" if uncounted else ""),
        "memory: about "
        + ", ".join(
            f"{gpu:.1f} GiB"
            + (f" and {host:.1f} GiB in host memory" if host else "")
            + f" for {label}"
            for label, (gpu, host) in peaks.items()
        ),
        *_engine_lines(order, device, held),
        f"disk: {weights / 2**30:.1f} GiB of weights when done, {(weights + 2 * held + 16 * parameters) / 2**30:.1f} GiB at most",
        f"results: {folder}",
    ]
    return "\n".join(lines)


def _retention_time(order, tokenizer, machine):
    """(seconds of the retention suite on one model, why they are not known or None); from the
    suite's own requests.
    """
    if order.suite is None:
        return 0.0, None
    try:
        read, generated = order.suite.work(tokenizer)
    except UserError as error:
        return 0.0, str(error).partition(";")[0]
    return machine.forward(read) + sum(
        machine.sample(rows, length, 32) for length, rows in generated.items()
    ), None


def _judge_lines(order, times):
    """How many verdicts a judge is asked for, by skill and split; by what a skill is graded where
    there is no judge.

    times: {skill: how often it is evaluated}. Equal answers to a question are judged once, so there
    may be fewer.
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
    used = [
        name
        for name, section in (("rollouts", order.rollout), ("evaluation", order.evaluate))
        if section.engine == "vllm"
    ]
    if used:
        on_gpu = torch.device(device).type != "cpu"
        room = order.vllm.kv_cache_gib or ROOM["cuda" if on_gpu else "cpu"]
        yield (
            f"vLLM for {' and '.join(used)}: {held / 2**30 + room:.1f} GiB on top"
            + (", given back while the model learns" if on_gpu else "")
        )


def _further_time(machine, order, skill, outlook):
    """Seconds of pass@k and of the KL for one skill in one model, and of teacher and oracle, which
    only the base has.
    """
    asked, out = order.evaluate, {"pass_at_k": 0.0, "kl": 0.0, "teacher": 0.0, "oracle": 0.0}

    def sampling(rows):
        return machine.sample(rows, order.limit(skill), asked.batch_size)

    def count(split, most):
        return min(len(skill.examples(split)), most or 10**9)

    if asked.pass_at_k:
        out["pass_at_k"] = sampling(
            count(asked.split, asked.pass_at_k.prompts) * asked.pass_at_k.samples
        )
    # the answers of the model, and four passes over them and over those of the base, which are
    # sampled once for all
    if asked.kl:
        rows = count(asked.split, asked.kl.prompts)
        out["kl"] = sampling(rows) + machine.forward(
            4 * rows * (outlook.prompt + order.limit(skill))
        )
    if asked.teacher:
        split = order.teacher_split(skill)
        rows = count(split, asked.examples)
        out["teacher"] = sampling(rows) + machine.forward(rows * outlook.teacher_prompt())
        if split not in order.splits(skill):  # the model without the demonstration, beside it
            out["teacher"] += sampling(rows) + machine.forward(rows * outlook.prompt)
        if asked.kl:  # answers of the base and of the teacher, and two passes over each
            rows = count(split, asked.kl.prompts)
            out["teacher"] += 2 * sampling(rows) + machine.forward(
                2 * rows * (outlook.prompt + outlook.teacher_prompt() + 2 * order.limit(skill))
            )
    for split in order.reported(skill) if asked.oracle else ():
        rows = count(split, asked.examples)
        out["oracle"] += sampling(rows) + machine.forward(
            rows * outlook.teacher_prompt(template=ORACLE_TEMPLATE, split=split)
        )
    return out


def _further_lines(order, further):
    asked, said = order.evaluate, {}
    if asked.pass_at_k:
        said["pass_at_k"] = (
            f"pass@k: {asked.pass_at_k.samples} answers to each of {asked.pass_at_k.prompts or 'all'} prompts"
        )
    if asked.kl:
        said["kl"] = "KL to the base policy: a second copy of the model in memory meanwhile"
    if asked.teacher:
        said["teacher"] = "accuracy of the teacher: once, at the base"
    if asked.oracle:
        answers = sum(
            min(len(s.examples(split)), asked.examples or 10**9)
            for s in order.skills
            for split in order.reported(s)
        )
        said["oracle"] = f"oracle retrieval: once, at the base, {answers:,} answers"
    for key, text in said.items():
        yield f"{text}; about {clock(sum(part[key] for part in further.values()))} for each skill once"
    of = [spec.grid_of for spec in order.methods.values() if spec.grid_of]
    for label in dict.fromkeys(of):
        yield f"grid of {label}: {of.count(label)} points; the best on the validation split is the one reported"
