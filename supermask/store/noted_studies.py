"""Plans of the studies that `supermask run` notes in a store. Anybody can write a note: none of it is trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from supermask.core.criteria import ALL_CRITERIA
from supermask.core.errors import SystemFailure, UserError
from supermask.core.recipe import CROSS_ENTROPY
from supermask.store.files.notes import Note
from supermask.study import study_from_dict
from supermask.study.plan import Plan, make_plan
from supermask.study.plan_inputs import PlanInputs

FUNCTION_KEYS = ("criterion", "start_from", "loss")
"""Keys of a study whose value may be the import path of a user-defined function."""


class UnknownFunctions(UserError):
    """A note that names user-defined functions whose code would have to be imported to plan its study."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


def plan_noted_study(note: Note, uses_recorded_sources: bool = False, imports_code: bool = False) -> Plan:
    """Return the plan of a note. Raises UserError for whatever is wrong with it; UnknownFunctions: see there.

    `uses_recorded_sources`: plan user-defined functions whose sources are in the note, which imports nothing.
    `imports_code`: import all others too; the store is trusted.
    """
    try:
        data = note.get("study")
        if not isinstance(data, dict):
            raise UserError("its note in the store is not a study.")
        inputs = PlanInputs.from_data(note.get("inputs"))
        names = {*_named_functions(data)} - {*ALL_CRITERIA, CROSS_ENTROPY}
        if uses_recorded_sources:
            names -= inputs.criterion_sources.keys() | inputs.loss_sources.keys()
        if names and not imports_code:
            raise UnknownFunctions(sorted(names))
        return make_plan(study_from_dict(data, name=str(note.get("name", "study"))), inputs)
    except (SystemFailure, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # A note of another version, or one that somebody made.
        raise UserError(f"its note in the store is not a study ({type(error).__name__}).") from error


def _named_functions(data: Any, is_function: bool = False) -> Iterator[str]:
    """Yield every string at or below a key that may name a function."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _named_functions(value, is_function or key in FUNCTION_KEYS)
    elif isinstance(data, list):
        for value in data:
            yield from _named_functions(value, is_function)
    elif is_function and isinstance(data, str):
        yield data
