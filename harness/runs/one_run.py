"""One run while it goes on: a method x seed with its live model."""

import copy
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.base.console import Progress
from harness.base.errors import UserError
from harness.base.files import read_json, read_jsonl, write_json
from harness.models.forward import can_share_prompts, keep_sharing
from harness.results.writer import ResultsWriter
from harness.runs.engines import evaluator_for, sampler_for
from harness.runs.order import Order, Run
from harness.sampling.transformers import WAYS, keep_way, way_of
from harness.sampling.vllm import Engine


class OneRun:
    """One method x seed, with what its stages share.

    model, tokenizer: live, and taught in place; method: remembers what it wants of earlier skills;
    sampler, evaluator: of the evaluations; engine: vLLM's, if the order asks for it; abilities:
    file with what the model can do; title: of the run, for the progress line.
    """

    def __init__(
        self,
        order: Order,
        run: Run,
        results: ResultsWriter,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        engine: Engine | None,
        progress: Progress,
        title: str,
    ) -> None:
        self.order = order
        self.run = run
        self.results = results
        self.model = model
        self.tokenizer = tokenizer
        self.engine = engine
        self.progress = progress
        self.title = title
        self.spec = order.methods[run.label]
        self.method = self.spec.cls(copy.deepcopy(self.spec.config))
        self.abilities = results.run(run.name) / "model.json"
        keep_abilities(self.abilities, model)
        self.evaluator = evaluator_for(order, results)
        self.sampler = sampler_for(order.evaluate, engine, model, tokenizer)


def keep_abilities(path: Path, model: PreTrainedModel) -> None:
    """Ask once a run what the model can do: a resume must not find otherwise.

    path: of the run's file with the answers, which its first start writes: whether the model can
    share prompts, and the way of sampling that gives its log-probabilities.
    """
    kept = read_json(path) if path.exists() else {}
    if "shares_prompts" in kept:
        keep_sharing(model, bool(kept["shares_prompts"]))
    if kept.get("sampling") in WAYS:
        keep_way(model, kept["sampling"])
    abilities = {"shares_prompts": can_share_prompts(model), "sampling": way_of(model)}
    if abilities != kept:
        write_json(path, abilities)


def check_base_model(results: ResultsWriter, weights: str) -> None:
    """Raises UserError if the base model is not the one with which the folder's runs began.

    weights: its fingerprint. The name of a model may lead to other weights than it did before; what
    is learned from them would be compared with what the old ones could do.
    """
    for path in sorted(results.folder.glob("runs/*/stage-0/records.jsonl")):
        before = _evaluated_weights(path) if path.with_name("stage.json").exists() else None
        if before is None:
            continue
        if before != weights[:16]:
            raise UserError(
                path,
                f"is of a base model with other weights ({before}) than the order's model has now "
                f"({weights[:16]})",
                "put the old weights back, name their revision in the order, or give another "
                "folder with --out",
            )
        return  # All later runs were compared with this one.


def _evaluated_weights(records: Path) -> str | None:
    """The beginning of the fingerprint of the weights that a stage's first record is of."""
    for _, row in read_jsonl(records):
        if row.get("evaluation"):
            return str(row["evaluation"]).partition("-")[0]
    return None
