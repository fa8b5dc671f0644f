"""Study files: the message of a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from supermask.core.errors import UserError
from supermask.study.loading import load_study


def refusal(text: str, tmp_path: Path, *overrides: str) -> str:
    """The message that a study file with this text is refused with."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_study(str(path), overrides)
    return str(caught.value)
