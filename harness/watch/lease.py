"""What a run does goes into its lease, where ``--status`` finds it."""

from typing import TYPE_CHECKING

from harness.base.console import Listener, Progress

if TYPE_CHECKING:
    from harness.results.writer import ResultsWriter


class LeaseTeller(Listener):
    """Tells the lease of the run that ``results`` writes at the moment what is shown."""

    def __init__(self, results: "ResultsWriter") -> None:
        self.results = results

    def shown(self, progress: Progress) -> None:
        if self.results.lease:
            self.results.lease.tell({"doing": progress.text})
