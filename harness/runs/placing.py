"""Which run goes on where several wait: the longest first, and at the end none too late.

Runs cannot be divided, but they can go on elsewhere from a checkpoint. Longest first alone leaves
workers idle at the end: 324 runs on 256 workers take as long as two runs. So once fewer runs wait
than workers work, the one with most left takes the place of the one with least left. All are then
over near the lower bound: the longest run, or all work over all workers.
"""

from collections.abc import Mapping

# What a run must have more left than the one that gives way to it: seconds, and a share of its own.
GAIN, SHARE = 240.0, 0.3


def longest(waiting: Mapping[str, float]) -> str:
    """The run to start next; waiting: {run: seconds that it still takes}."""
    return max(waiting, key=lambda name: waiting[name])


def gives_way(
    waiting: Mapping[str, float], running: Mapping[str, float], workers: int
) -> str | None:
    """The running one that makes room for the longest that waits, None where none has to.

    waiting, running: {run: seconds that it still takes}; all ``workers`` are at work.
    """
    if not waiting or not running or len(waiting) >= workers:
        return None
    most, shortest = waiting[longest(waiting)], min(running, key=lambda name: running[name])
    return shortest if most > running[shortest] + max(GAIN, SHARE * most) else None
