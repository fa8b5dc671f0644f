"""Studies given as data: their treatments' labels, and the message of a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from supermask.core.errors import UserError
from supermask.study.loading import study_from_dict
from supermask.study.schema import Study


def labels(study: Study) -> list[str]:
    return [t.label for t in study.treatments]


def refusal(data: dict[str, Any], *overrides: str) -> str:
    """The message that plain data is refused with, without the place."""
    with pytest.raises(UserError) as caught:
        study_from_dict(data, overrides, "mine")
    text = str(caught.value)
    assert text.startswith("study 'mine': ")
    return text.removeprefix("study 'mine': ")
