"""Judged metrics: a model compares answers with their references. A pass over the evaluations that
a results folder holds.

    python -m harness.judge RESULTS_DIR

A run with a judge makes this pass after every stage; this command makes it later, where the judge
was down or came after the run. What is judged becomes an evaluation of its own, keyed like any
other (weights and protocol; the judge's model and the version of its prompt are in the protocol),
and records beside those of the stage, under names of their own. docs/judge.md has the details.
"""

import hashlib
import json
import re

from harness.base.errors import UserError, did_you_mean
from harness.base.files import read_json, read_jsonl, write_json, write_jsonl
from harness.base.metrics import mean_and_stderr
from harness.evaluation.endpoint import Endpoint, EndpointDown, Refused, without_secrets
from harness.results.formats import ORACLE
from harness.results.writer import ResultsWriter

SETTINGS = "judge.json"  # in the results folder: what the order says of the judge, without the key


def verdict_of(reply, verdicts):
    """The verdict in a reply: its last line, and its only one of this kind, is ``VERDICT: X`` with
    X one of ``verdicts``.

    Emphasis around it and a full stop are let pass; reasoning before ``</think>`` is no part of the
    reply. Nothing is guessed: raises ValueError saying why there is no verdict.
    """
    if reply.finish not in ("stop", None):
        raise ValueError(
            "the reply is cut short"
            if reply.finish == "length"
            else f"the reply ended by {reply.finish}"
        )
    text = reply.text.rpartition("</think>")[2].strip()
    if not text:
        raise ValueError("the reply is empty")
    if "<think>" in text:
        raise ValueError("the reasoning does not end")
    lines = text.splitlines()
    found = [
        line for line in lines if re.search(r"(?<![A-Za-z])VERDICT[\s*_`]*:", line, re.IGNORECASE)
    ]
    if len(found) != 1 or found[0] is not lines[-1]:
        raise ValueError("the reply does not end in its one line `VERDICT: ...`")
    match = re.fullmatch(
        r"[\s*_`#]*VERDICT[\s*`]*:[\s*_`]*([A-Z_]+?)[\s*_`.]*", found[0], re.IGNORECASE
    )
    if not match or match[1] not in verdicts:
        raise ValueError(f"{found[0].strip()[:80]!r} is none of the verdicts")
    return match[1]


def prompt_for(rubric, item):
    """The rubric's prompt for one item of an evaluation; see docs/judge.md for where question and
    reference come from.
    """
    reference = item["reference"]
    parts = reference if isinstance(reference, dict) else {"answer": reference}
    question, answer = parts.get("question"), parts.get("answer")
    values = {
        "question": question if isinstance(question, str) else item["prompt"],
        "reference": answer
        if isinstance(answer, str)
        else json.dumps(reference, sort_keys=True, ensure_ascii=False),
        # an answer comes after the reasoning
        "completion": item["completion"].rpartition("</think>")[2].split("<think>")[0],
    }
    # one pass: braces stay
    return re.sub(
        r"\{(question|reference|completion)\}", lambda match: values[match[1]], rubric.prompt
    )


def judged_protocol(meaning, rubric, config):
    """What a judged number depends on: all that the completions do, and the judge in place of the
    grader.
    """
    prompt = hashlib.sha256(rubric.prompt.encode()).hexdigest()[:12]
    judge = {
        "model": config.model,
        "prompt": f"{rubric.name}/{rubric.version}",
        "prompt_sha256": prompt,
        "temperature": 0,
        "max_tokens": config.max_tokens,
    }
    return {k: v for k, v in meaning.items() if k != "scorer"} | {"scorer": {"judge": judge}}


def judge(evaluation, protocol, rubric, endpoint, progress=None):
    """The judged form of a skill's evaluation.

    ``items`` hold what they held, with ``verdict``, ``reply`` and the judged ``scores``;
    ``unjudged`` the answers without a verdict, each with its ``error``: they count in
    ``judge_errors`` (their share) and in no other metric. Raises EndpointDown.
    """
    asked = [prompt_for(rubric, item) for item in evaluation["items"]]
    replies = endpoint.ask_all(asked, f"{rubric.name}/{rubric.version}", progress)
    if replies and all(isinstance(r, Refused) for r in replies):
        raise EndpointDown(str(replies[0]))
    items, unjudged, tokens = [], [], 0
    for item, reply in zip(evaluation["items"], replies):
        if isinstance(reply, Refused):
            unjudged.append({**item, "scores": {}, "error": str(reply)})
            continue
        tokens += reply.prompt_tokens + reply.completion_tokens
        try:
            verdict = verdict_of(reply, rubric.verdicts)
        except ValueError as error:
            unjudged.append({**item, "scores": {}, "error": str(error), "reply": reply.text})
        else:
            scores = {metric: values[verdict] for metric, values in rubric.metrics.items()}
            items.append({**item, "scores": scores, "verdict": verdict, "reply": reply.text})
    metrics = (
        {m: mean_and_stderr([i["scores"][m] for i in items]) for m in rubric.metrics}
        if items
        else {}
    )
    metrics["judge_errors"] = len(unjudged) / len(replies), None
    return {
        "protocol": protocol,
        "kind": "skill",
        "name": evaluation["name"],
        "split": evaluation["split"],
        "n": len(items),
        "metrics": metrics,
        "judge_tokens": tokens,
        "items": items,
        "unjudged": unjudged,
    }


def judge_folder(folder, endpoint, progress=None):
    """Judge all runs of a results folder; see judge_runs."""
    results = ResultsWriter(folder)
    done = judge_runs(results, endpoint, progress=progress)
    results.rebuild()
    return done


def judge_runs(results, endpoint, run="*", progress=None):
    """Judge what the committed stages of ``run`` (all runs) have measured of skills with a rubric;
    those judged before are kept.

    results: records.Results, whose records.jsonl is left to the caller. What got no verdict is
    asked again, once for each of these: the pass after a stage comes by all earlier ones, and all
    runs share the base model's. Returns {"answers", "unjudged"} over the evaluations of these
    stages. Raises EndpointDown, and UserError where nothing has a rubric.
    """
    from harness.evaluation.protocol import protocol_hash
    from harness.skills.rubrics import RUBRICS

    folder, skills = results.folder, {}
    about, meanings = folder / "results.json", folder / "protocols.json"
    for skill in read_json(about, "skills")["skills"]:
        if skill.get("judge"):
            rubric = skill["judge"]["rubric"]
            if rubric not in RUBRICS:
                raise UserError(
                    about,
                    f"{skill['name']} is judged by an unknown rubric {rubric!r}",
                    did_you_mean(rubric, RUBRICS),
                )
            skills[skill["name"]] = skill["metric"], skill["splits"], RUBRICS[rubric]
    if not skills:
        raise UserError(
            folder,
            "holds no skill that is judged",
            "a skill says so (`judge: medical` or `knowledge` in the order)",
        )
    protocols, counts = read_json(meanings), {}
    for stage in sorted(folder.glob(f"runs/{run}/stage-*/stage.json")):
        if stage.parent.name.endswith(".partial"):
            continue
        rows = []
        for _, record in read_jsonl(stage.with_name("records.jsonl")):
            metric, splits, rubric = skills.get(record["name"], (None, (), None))
            prefix = ORACLE if record["metric"].startswith(ORACLE) else ""
            # one record for each evaluation
            if record["kind"] != "skill" or record["metric"] != f"{prefix}{metric}":
                continue
            # only what the teacher is compared with, by the grader
            if record["split"] not in splits:
                continue
            if record["protocol"] not in protocols:
                raise UserError(
                    meanings,
                    f"does not say what protocol {record['protocol']} stands for",
                    "put back a whole copy of it, or move the folder away and start anew",
                )
            meaning = judged_protocol(protocols[record["protocol"]], rubric, endpoint.config)
            protocol = protocol_hash(meaning)
            key = f"{record['evaluation'].partition('-')[0]}-{protocol}"
            found = results.evaluation(key)
            # the other verdicts are kept replies
            if found is None or (found["unjudged"] and key not in results.asked):
                what = f"{record['run']}, stage {record['stage']}, step {record['step']}: judges {record['name']} {record['split']}"
                show = progress and (
                    lambda done, total, what=what: progress.show(f"{what} {done}/{total}")
                )
                measured = results.evaluation(record["evaluation"])
                if measured is None:
                    raise UserError(
                        f"{folder}: evaluations/{record['evaluation']}.json",
                        "is not there",
                        "a judge needs the answers in it",
                    )
                found = judge(measured, protocol, rubric, endpoint, show)
                results.protocol(protocol, meaning)
                results.save_evaluation(key, found)
            results.asked.add(key)
            counts[key] = len(found["items"]), len(found["unjudged"])
            for name, (value, stderr) in found["metrics"].items():
                n = sum(counts[key]) if name == "judge_errors" else found["n"]
                rows.append(
                    {
                        **record,
                        "metric": prefix + name,
                        "value": value,
                        "stderr": stderr,
                        "n": n,
                        "protocol": protocol,
                        "evaluation": key,
                    }
                )
        if rows:
            write_jsonl(stage.with_name("judged.jsonl"), rows)
    return {
        "answers": sum(sum(c) for c in counts.values()),
        "unjudged": sum(c[1] for c in counts.values()),
    }


def open_endpoint(config):
    from harness.models.embedded import cache_folder

    return Endpoint(config, cache_folder() / "replies")


def judge_stage(order, results, run, progress):
    """The pass after a stage of a run. A judge that is down stops no run: the completions wait for
    the command.
    """
    if order.judge is None or not any(s.judge for s in order.skills):
        return
    write_json(results.folder / SETTINGS, without_secrets(order.judge))
    endpoint = open_endpoint(order.judge)
    try:
        judge_runs(results, endpoint, run, progress)
        results.refresh()
    except EndpointDown as down:
        progress.say(
            f"the judge gives no answers ({down}); the completions are kept, "
            f"`python -m harness.judge {results.folder}` judges them"
        )
    if endpoint.counts:
        progress.say(f"judge {endpoint.summary()}")
