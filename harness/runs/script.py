"""An order in a script: ``from harness import Order, run``.

    order = Order("my_order.yaml", changes={"budget.prompts": 80}, seeds=[0, 1])
    results = run(order, out="results/mine")

What run_sequence.py does, without a command line: errors are exceptions, nothing exits.
"""

from pathlib import Path
from typing import Any

from harness.base.console import Progress
from harness.base.errors import UserError, called_exit, lack_of_memory, refused_write
from harness.base.files import ROOT
from harness.base.places import check_folder
from harness.base.stopping import heard
from harness.models.load import load_tokenizer
from harness.runs.context import check_context
from harness.runs.order import Order
from harness.runs.sequence import run_order


def run(
    order: Order,
    out: str | Path | None = None,
    *,
    fail_fast: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Run what ``order`` asks for and ``out`` does not hold yet; returns its results.

    They are those of ``open_results(out)``. out: the results folder, by default results/NAME of the
    checkout. The checks, the locks and the resume are those of the command, and so are the folder's
    files, but for the report. A run that fails leaves the others alone, unless ``fail_fast``.
    Ctrl-C raises KeyboardInterrupt at the next good moment; the same call goes on from there.

    Raises UserError for what a user can mend, and at the end where runs have failed.
    """
    from harness.results import open_results  # wants pandas, which the command does without

    folder = Path(out) if out else ROOT / "results" / order.name
    progress = progress or Progress()
    failed: dict[str, str] = {}
    try:
        check_folder(folder, "give a folder as `out`")
        with heard(), progress:
            try_prompts(order, progress)
            run_order(order, folder, progress, None if fail_fast else failed.__setitem__)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, SystemExit):
            reason: str | None = called_exit(error)
        else:
            reason = lack_of_memory(error) or refused_write(error, folder)
        if reason is None:
            raise
        raise UserError(order.place, reason) from error
    if failed:
        first = next(iter(failed.items()))
        raise UserError(
            folder,
            f"{len(failed)} of {len(order.runs())} runs failed, first {': '.join(first)}",
            "runs/NAME/failed.txt has the traceback, and the same call tries again",
        )
    return open_results(folder)


def try_prompts(order: Order, progress: Progress) -> None:
    """Try the model's chat template and positions on the prompts, before minutes are spent.

    Raises UserError for prompts that the model cannot read.
    """
    progress.say(f"tries the chat template of {order.model.name} on the prompts")
    place = f"{order.path}: model"
    tokenizer, source = load_tokenizer(order.model.name, order.model.revision, place)
    for note in order.check_prompts(tokenizer) + check_context(order, tokenizer, source):
        progress.say(note)
