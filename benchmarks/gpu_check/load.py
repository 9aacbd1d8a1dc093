"""A checkpoint on disk, loaded as an order loads it, in both dtypes."""

import tempfile
from pathlib import Path

from benchmarks.gpu_check.bench import Bench, seconds_of
from benchmarks.gpu_check.material import small_checkpoint
from harness.base.errors import UserError
from harness.models.checkpoint import model_fingerprint
from harness.models.embedded import EMBEDDED, embedded_checkpoint
from harness.models.forward import can_share_prompts
from harness.models.load import head_difference, load_model
from harness.runs.provenance import package_version


def run(bench: Bench) -> None:
    """The checkpoint of this check, and the embedded model where its packages are there."""
    with tempfile.TemporaryDirectory() as folder:
        _load(bench, "", small_checkpoint(bench, Path(folder)))
    if bench.tiny or bench.model:
        return
    if package_version("gguf") is None:
        bench.note("the embedded model", "not tried: gguf is not installed")
        return
    try:
        _load(bench, "embedded: ", embedded_checkpoint(EMBEDDED))
    except UserError as error:
        bench.note("the embedded model", f"not tried: {error}")


def _load(bench: Bench, prefix: str, folder: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        name = f"{prefix}{dtype}"
        loaded = []
        seconds = seconds_of(
            lambda: loaded.append(load_model(str(folder), dtype, str(bench.device))),
            bench.device,
        )
        model, _ = loaded.pop()
        bench.note(f"{name}, loaded", seconds, "s")
        units = head_difference(model)
        bench.at_most(f"{name}, two ways to the logits", units, 2, "units")
        bench.equal(f"{name}, can share prompts", can_share_prompts(model), True)
        seconds = seconds_of(lambda: model_fingerprint(model), bench.device)
        bench.note(f"{name}, fingerprint", seconds, "s")
