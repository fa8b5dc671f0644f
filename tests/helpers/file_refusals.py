"""Error messages of study files."""

from __future__ import annotations

from pathlib import Path

import pytest

from supermask.core.errors import UserError
from supermask.study.loading import load_study


def refusal(text: str, tmp_path: Path, *overrides: str) -> str:
    """Return the error message for a study file with this text."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_study(str(path), overrides)
    return str(caught.value)
