"""What surrounds every call of lm-eval: its seeds, its silence, its permission to run code."""

import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm-eval's defaults
# lm-eval's switch: its bootstrap stays in this process, since a pool would copy the model.
NO_POOL = "DISABLE_MULTIPROC"


def code_allowed() -> bool:
    """Whether tasks may run code that the model writes."""
    return os.environ.get("HF_ALLOW_CODE_EVAL") == "1"


@contextmanager
def seeded() -> Iterator[None]:
    """lm-eval's seeds inside; the states of Python, NumPy and torch are restored at the end."""
    import numpy as np
    import torch

    from harness.models.repeatable import same_draws

    with same_draws():
        random.seed(SEEDS["python"])
        np.random.seed(SEEDS["numpy"])
        torch.manual_seed(SEEDS["torch"])
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from lm-eval inside, and no processes for its bootstrap."""
    import lm_eval.api.task as api

    names = ["lm_eval", *(n for n in logging.Logger.manager.loggerDict if n.startswith("lm_eval"))]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    progress_bar = api.tqdm
    pool = os.environ.get(NO_POOL)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    api.tqdm = partial(progress_bar, disable=True)
    os.environ[NO_POOL] = "1"
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        api.tqdm = progress_bar
        if pool is None:
            del os.environ[NO_POOL]
        else:
            os.environ[NO_POOL] = pool
