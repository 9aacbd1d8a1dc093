"""Judged metrics: a model compares answers with their references.

A run with a judge makes this pass after every stage. The command `python -m harness.judge` makes it
later, where the judge was down or came after the run. A judged evaluation is keyed like any other,
by weights and protocol; the protocol holds the judge's model and the version of its prompt. Its
records join those of the stage under names of their own. docs/how-to/judge.md has the details.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.base.console import Progress
from harness.base.errors import UserError, did_you_mean
from harness.base.files import jsonl, read_json, write_sealed
from harness.base.metrics import mean_and_stderr
from harness.base.thoughts import THINK
from harness.evaluation.endpoint import (
    Endpoint,
    EndpointConfig,
    EndpointDown,
    Refused,
    Reply,
    without_secrets,
)
from harness.evaluation.protocol import key_under, protocol_hash
from harness.results.formats import ORACLE, Evaluation
from harness.results.writer import ResultsWriter
from harness.skills.rubrics import JUDGES, Rubric
from harness.skills.skill import Skill

SETTINGS = "judge.json"  # in the results folder: what the order says of the judge, without the key
PROTOCOLS = "protocols.json"  # in the results folder
# A verdict in any emphasis; and a line that is nothing but a verdict.
ANY_VERDICT = re.compile(r"(?<![A-Za-z])VERDICT[\s*_`]*:", re.IGNORECASE)
VERDICT_LINE = re.compile(r"[\s*_`#]*VERDICT[\s*`]*:[\s*_`]*([A-Z_]+?)[\s*_`.]*", re.IGNORECASE)
LONGEST_VERDICT = 200  # letters of its line, whose expression takes long on longer ones
PLACEHOLDER = re.compile(r"\{(question|reference|completion)\}")
# Control characters, and those that have no shape: a reader overlooks them.
UNSEEN = "\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
UNSEEN += "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff"


def _name(*words: str) -> str:
    """An expression for a tag's name, whatever stands unseen between its letters."""
    return rf"[\s_\-{UNSEEN}]*".join(f"[{UNSEEN}]*".join(word) for word in words)


# The tags around the texts of a prompt, in any case and with what a reader overlooks in them.
NAMES = (_name("question"), _name("reference", "answer"), _name("answer", "to", "grade"))
TAG = re.compile(rf"[<＜﹤‹〈⟨](?=[\s/\\／{UNSEEN}]*(?:{'|'.join(NAMES)}))", re.IGNORECASE)


# --- one answer ---


def verdict_of(reply: Reply, verdicts: tuple[str, ...]) -> str:
    """The verdict in a reply: its last line, and no other, is ``VERDICT: X``, X in ``verdicts``.

    Emphasis around it and a full stop are ignored; reasoning before ``</think>`` is no part of the
    reply. Nothing is guessed: raises ValueError that says why there is no verdict.
    """
    if reply.finish == "length":
        raise ValueError("the reply is cut short")
    if reply.finish not in ("stop", None):
        raise ValueError(f"the reply ended by {reply.finish}")
    if THINK.unfinished(reply.text):
        raise ValueError("the reasoning does not end")
    text = THINK.answer(reply.text).strip()
    if not text:
        raise ValueError("the reply is empty")
    lines = text.splitlines()
    places = [number for number, line in enumerate(lines) if ANY_VERDICT.search(line)]
    if places != [len(lines) - 1]:
        raise ValueError("the reply does not end in its one line `VERDICT: ...`")
    match = VERDICT_LINE.fullmatch(lines[-1]) if len(lines[-1]) <= LONGEST_VERDICT else None
    if not match or match[1] not in verdicts:
        raise ValueError(f"{lines[-1].strip()[:80]!r} is none of the verdicts")
    return match[1]


def prompt_for(rubric: Rubric, item: dict[str, Any]) -> str:
    """The rubric's prompt for one item of an evaluation.

    docs/how-to/judge.md says where question and reference come from. No text holds a tag of the
    prompt: the answer to grade cannot end itself and go on as a reference.
    """
    reference = item["reference"]
    parts = reference if isinstance(reference, dict) else {"answer": reference}
    question = parts.get("question")
    answer = parts.get("answer")
    if not isinstance(question, str):
        question = item["prompt"]
    if not isinstance(answer, str):
        answer = json.dumps(reference, sort_keys=True, ensure_ascii=False)
    completion = item.get("answer", item["completion"])  # without thoughts, if it has any
    values = {"question": question, "reference": answer, "completion": completion}
    # In one pass: braces inside the values stay as they are.
    return PLACEHOLDER.sub(lambda match: _data(values[match[1]]), rubric.prompt)


def _data(text: str) -> str:
    """A text that holds none of the prompt's tags, and no half of a character."""
    return TAG.sub("&lt;", text.encode(errors="replace").decode())


# --- one evaluation ---


def judged_protocol(
    meaning: dict[str, Any], rubric: Rubric, config: EndpointConfig
) -> dict[str, Any]:
    """The protocol ``meaning`` of the completions with the judge in place of the grader."""
    judge = {
        "model": config.model,
        "prompt": f"{rubric.name}/{rubric.version}",
        "prompt_sha256": hashlib.sha256(rubric.prompt.encode()).hexdigest()[:12],
        "temperature": 0,
        "max_tokens": config.max_tokens,
    }
    completions = {key: value for key, value in meaning.items() if key != "scorer"}
    return {**completions, "scorer": {"judge": judge}}


def judge(
    evaluation: Mapping[str, Any],
    protocol: str,
    rubric: Rubric,
    endpoint: Endpoint,
    progress: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """The judged form of a skill's evaluation.

    ``items`` keep what they hold and gain ``verdict``, ``reply`` and the judged ``scores``.
    ``unjudged`` are the answers without a verdict, each with its ``error``: they count in
    ``judge_errors`` (their share) and in no other metric. Raises EndpointDown.
    """
    prompts = [prompt_for(rubric, item) for item in evaluation["items"]]
    replies = endpoint.ask_all(prompts, f"{rubric.name}/{rubric.version}", progress)
    if replies and all(isinstance(reply, Refused) for reply in replies):
        raise EndpointDown(str(replies[0]))
    items: list[dict[str, Any]] = []
    unjudged: list[dict[str, Any]] = []
    tokens = 0
    for item, reply in zip(evaluation["items"], replies, strict=True):
        result = _judged_item(item, reply, rubric)
        (unjudged if "error" in result else items).append(result)
        if isinstance(reply, Reply):
            tokens += reply.prompt_tokens + reply.completion_tokens
    metrics: dict[str, tuple[float, float | None]] = {}
    if items:
        for metric in rubric.metrics:
            metrics[metric] = mean_and_stderr([item["scores"][metric] for item in items])
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


def _judged_item(item: dict[str, Any], reply: Reply | Refused, rubric: Rubric) -> dict[str, Any]:
    """The item with its verdict and scores, or with the ``error`` for which it has none."""
    if isinstance(reply, Refused):
        return {**item, "scores": {}, "error": str(reply)}
    try:
        verdict = verdict_of(reply, rubric.verdicts)
    except ValueError as error:
        return {**item, "scores": {}, "error": str(error), "reply": reply.text}
    scores = {metric: values[verdict] for metric, values in rubric.metrics.items()}
    return {**item, "scores": scores, "verdict": verdict, "reply": reply.text}


# --- a results folder ---


def judge_folder(
    folder: str | os.PathLike[str], endpoint: Endpoint, progress: Progress | None = None
) -> dict[str, int]:
    """Judge all runs of a results folder; returns and raises as ``judge_runs`` does."""
    results = ResultsWriter(folder)
    counts = judge_runs(results, endpoint, progress=progress)
    results.rebuild()
    return counts


def judge_runs(
    results: ResultsWriter,
    endpoint: Endpoint,
    run: str = "*",
    progress: Progress | None = None,
) -> dict[str, int]:
    """Judge what the committed stages of ``run`` (all runs) have measured of skills with a rubric.

    Evaluations that were judged before are kept. An answer without a verdict is asked about again,
    once in the life of ``results``: the pass after a stage visits all earlier stages too, and all
    runs share the evaluations of the base model. ``records.jsonl`` is left to the caller. Returns
    {"answers", "unjudged"} over the evaluations of these stages. Raises EndpointDown, and UserError
    where no skill has a rubric.
    """
    folder = results.folder
    skills = _judged_skills(folder)
    judged = _Pass(results, endpoint, skills, read_json(folder / PROTOCOLS), progress)
    for stage in sorted(folder.glob(f"runs/{run}/stage-*/stage.json")):
        if not stage.parent.name.endswith(".partial"):
            judged.stage(stage.parent)
    return {
        "answers": sum(sum(counts) for counts in judged.counts.values()),
        "unjudged": sum(unjudged for _, unjudged in judged.counts.values()),
    }


@dataclass(frozen=True)
class _JudgedSkill:
    """A skill with a rubric; metric: of the grader; splits: those that a judge sees."""

    metric: str
    splits: list[str]
    rubric: Rubric


def _judged_skills(folder: Path) -> dict[str, _JudgedSkill]:
    """The skills with a rubric by name. Raises UserError for an unknown rubric, or for none."""
    about = folder / "results.json"
    skills = {}
    for skill in read_json(about, "skills")["skills"]:
        if not skill.get("judge"):
            continue
        rubric = skill["judge"]["rubric"]
        if rubric not in JUDGES:
            raise UserError(
                about,
                f"{skill['name']} is judged by an unknown rubric {rubric!r}",
                did_you_mean(rubric, JUDGES),
            )
        skills[skill["name"]] = _JudgedSkill(skill["metric"], skill["splits"], JUDGES[rubric])
    if not skills:
        raise UserError(
            folder,
            "holds no skill that is judged",
            "a skill says so (`judge: medical` or `knowledge` in the order)",
        )
    return skills


@dataclass
class _Pass:
    """One pass of a judge over stages.

    skills: those with a rubric, by name; protocols: what protocols.json holds; counts: {key of a
    judged evaluation: (answers with a verdict, answers without)}.
    """

    results: ResultsWriter
    endpoint: Endpoint
    skills: dict[str, _JudgedSkill]
    protocols: dict[str, Any]
    progress: Progress | None
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def stage(self, folder: Path) -> None:
        """Judge one committed stage and write its ``judged.jsonl``."""
        rows = []
        for record, skill in self._records(folder):
            key, protocol, evaluation = self._evaluation(record, skill.rubric)
            self.counts[key] = len(evaluation["items"]), len(evaluation["unjudged"])
            prefix = record["metric"].removesuffix(skill.metric)
            for metric, (value, stderr) in evaluation["metrics"].items():
                judged = {
                    "metric": prefix + metric,
                    "value": value,
                    "stderr": stderr,
                    "n": sum(self.counts[key]) if metric == "judge_errors" else evaluation["n"],
                    "protocol": protocol,
                    "evaluation": key,
                }
                rows.append({**record, **judged})
        if rows:
            self.results.save_judged(folder, jsonl(rows))

    def _records(self, folder: Path) -> Iterator[tuple[dict[str, Any], _JudgedSkill]]:
        """The stage's records that are to be judged, one an evaluation, each with its skill.

        That is the record of the grader's metric, also of the oracle's answers. The base model's
        answers on a split that is evaluated for the teacher alone keep the grader.
        """
        for record in self.results.rows(folder, "records.jsonl"):
            skill = self.skills.get(record["name"])
            if skill is None or record["kind"] != "skill" or record["split"] not in skill.splits:
                continue
            if record["metric"] in (skill.metric, ORACLE + skill.metric):
                yield record, skill

    def _evaluation(
        self, record: dict[str, Any], rubric: Rubric
    ) -> tuple[str, str, Mapping[str, Any]]:
        """(key, protocol, the judged evaluation) of a record, judged now or before."""
        if record["protocol"] not in self.protocols:
            raise UserError(
                self.results.folder / PROTOCOLS,
                f"does not say what protocol {record['protocol']} stands for",
                "put back a whole copy of it, or move the folder away and start again",
            )
        meaning = judged_protocol(self.protocols[record["protocol"]], rubric, self.endpoint.config)
        protocol = protocol_hash(meaning)
        key = key_under(record["evaluation"], protocol)
        evaluation: Mapping[str, Any] | None = self.results.evaluation(key)
        # Where some have no verdict the others' replies are on disk: only those are asked about.
        again = evaluation is not None and evaluation["unjudged"] and key not in self.results.asked
        if evaluation is None or again:
            evaluation = judge(
                self._measured(record), protocol, rubric, self.endpoint, self._shower(record)
            )
            self.results.protocol(protocol, meaning)
            self.results.save_evaluation(key, evaluation)
        self.results.asked.add(key)
        return key, protocol, evaluation

    def _measured(self, record: dict[str, Any]) -> Mapping[str, Any]:
        """The evaluation that holds the answers of a record."""
        evaluation = self.results.evaluation(record["evaluation"])
        if evaluation is None:
            raise UserError(
                f"{self.results.folder}: evaluations/{record['evaluation']}.json",
                "is not there",
                "a judge needs the answers in it",
            )
        return evaluation

    def _shower(self, record: dict[str, Any]) -> Callable[[int, int], None] | None:
        """The function that shows how many answers of a record are judged."""
        progress = self.progress
        if progress is None:
            return None
        what = (
            f"{record['run']}, stage {record['stage']}, step {record['step']}: "
            f"judges {record['name']} {record['split']}"
        )
        return lambda done, total: progress.show(f"{what} {done}/{total}")


# --- a run ---


class _JudgedOrder(Protocol):
    """What a pass needs of an order."""

    @property
    def judge(self) -> EndpointConfig | None: ...

    @property
    def skills(self) -> Sequence[Skill]: ...


def open_endpoint(config: EndpointConfig) -> Endpoint:
    """The Endpoint of ``config``, whose replies are kept in the cache folder."""
    from harness.models.embedded import cache_folder  # it takes PyTorch's seconds to import

    return Endpoint(config, cache_folder() / "replies")


def judge_stage(order: _JudgedOrder, results: ResultsWriter, run: str, progress: Progress) -> None:
    """Judge after a stage of ``run``, if the order names a judge and a skill has a rubric.

    A judge that is down stops no run: the completions wait for the command.
    """
    if order.judge is None or not any(skill.judge for skill in order.skills):
        return
    write_sealed(results.folder / SETTINGS, without_secrets(order.judge))
    endpoint = open_endpoint(order.judge)
    try:
        judge_runs(results, endpoint, run, progress)
        results.refresh()
    except EndpointDown as down:
        command = f"python -m harness.judge {results.folder} --base-url {order.judge.base_url}"
        progress.say(
            f"the judge gives no answers ({down}); the completions are kept, "
            f"`{command}` judges them"
        )
    if endpoint.counts:
        progress.say(f"judge {endpoint.summary()}")
