"""Studies from dicts: labels of their treatments, and error messages."""

from __future__ import annotations

from typing import Any

import pytest

from supermask.core.errors import UserError
from supermask.study.loading import study_from_dict
from supermask.study.schema import Study


def labels(study: Study) -> list[str]:
    return [t.label for t in study.treatments]


def refusal(data: dict[str, Any], *overrides: str) -> str:
    """Return the error message for a dict, without its location."""
    with pytest.raises(UserError) as caught:
        study_from_dict(data, overrides, "mine")
    text = str(caught.value)
    assert text.startswith("study 'mine': ")
    return text.removeprefix("study 'mine': ")
