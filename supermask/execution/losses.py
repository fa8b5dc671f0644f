"""The user's loss of a run, imported by the process that trains it."""

from __future__ import annotations

from functools import lru_cache

from supermask.core.recipe import CROSS_ENTROPY
from supermask.engines.job import LossFunction
from supermask.study.fields import resolve_loss
from supermask.study.run import Run
from supermask.study.user_code import guard_function


def load_loss(run: Run) -> LossFunction | None:
    """Return the loss that a run is trained on if it is the user's, else None.

    Raises UserError if it cannot be imported, or if its source is not the one that the run was planned with.
    """
    if run.recipe.loss == CROSS_ENTROPY or not run.is_trained:
        return None
    return _load_user_loss(run.recipe.loss, run.recipe.loss_source)


@lru_cache
def _load_user_loss(name: str, source: str | None) -> LossFunction:
    return guard_function("loss", resolve_loss(name), source)
