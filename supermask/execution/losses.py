"""The user's loss of a run, imported by the process that trains it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from supermask.core.errors import UserError
from supermask.core.recipe import CROSS_ENTROPY
from supermask.engines.job import LossFunction
from supermask.study.fields import resolve_loss
from supermask.study.run import Run
from supermask.study.user_code import error_location

if TYPE_CHECKING:
    from torch import Tensor


def load_loss(run: Run) -> LossFunction | None:
    """Return the loss that a run is trained on if it is the user's, else None.

    Raises UserError if it cannot be imported, or if its source is not the one that the run was planned with.
    """
    if run.recipe.loss == CROSS_ENTROPY or not run.is_trained:
        return None
    return _load_user_loss(run.recipe.loss, run.recipe.loss_source)


@lru_cache
def _load_user_loss(name: str, source: str | None) -> LossFunction:
    loss = resolve_loss(name)
    if loss.module_sha256 != source:
        raise UserError(
            f"loss {name!r}: its file was changed since the plan was made. Run the same command again: runs trained "
            "with the former source are kept, and the new source defines new runs."
        )

    def call(logits: Tensor, labels: Tensor) -> Tensor:
        try:
            return loss.function(logits, labels)  # type: ignore[no-any-return]
        except (Exception, SystemExit) as error:
            raise UserError(f"loss {name!r} failed {error_location(error)}: {type(error).__name__}: {error}") from error

    return call
