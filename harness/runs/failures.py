"""A run that fails: one line and the traceback go on record, and the other runs go on."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.base.errors import (
    UserError,
    called_exit,
    is_full_disk,
    lack_of_memory,
    one_line,
    raised,
)
from harness.base.files import write_text
from harness.results.formats import FAILED
from harness.results.writer import ResultsWriter
from harness.runs.order import Order


class RunFailed(Exception):
    """A run cannot go on, and others can; the text is the reason, in one line."""


@contextmanager
def failing_alone(order: Order, results: ResultsWriter, run: Path) -> Iterator[None]:
    """Turn an error of one run into RunFailed, with a record in the run's folder.

    Errors that concern every run pass: what is wrong with the order, its model or the results
    folder, and a disk that takes no more. ``sys.exit`` in a plug-in is an error like any other.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # asyncio's CancelledError and others are no Exceptions
        if _concerns_all(error, order, results):
            raise
        reason = _reason(error)
        text = "".join(traceback.format_exception(error))
        write_text(run / FAILED, f"{reason}\n\n{text}")
        raise RunFailed(reason) from None


def _concerns_all(error: BaseException, order: Order, results: ResultsWriter) -> bool:
    if is_full_disk(error):
        return True
    place = error.place if isinstance(error, UserError) else str(getattr(error, "filename", ""))
    return place.startswith((str(results.folder), order.place))


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SystemExit):
        return one_line(called_exit(error))
    if memory := lack_of_memory(error):
        return one_line(memory)
    return one_line(raised(error))
